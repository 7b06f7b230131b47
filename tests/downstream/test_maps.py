"""Maps and metrics: against scikit-learn, slow references, and by hand."""
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from avm import attend
from downstream import maps
from downstream.multi_model import right_after
from patches import patchify, to_float
from streams.scenes import truth
from streams.shapes import Shapes, kinds
from untrained import odd_model


def random_source(clips, n):
    source = torch.rand(clips, n) < 0.3
    source[:, 0], source[:, 1] = True, False
    return source


def test_auc_equals_scikit_learns_with_ties_too():
    source = random_source(40, 30)
    for m in (torch.randn(40, 30), torch.randint(0, 4, (40, 30)).float(), torch.zeros(40, 30)):
        expected = torch.tensor([roc_auc_score(t, v) for t, v in zip(source.numpy(), m.numpy())]).double()
        torch.testing.assert_close(maps.auc(m, source).double(), expected, atol=1e-6, rtol=0)


def test_a_map_that_equals_the_source_is_perfect_and_its_opposite_scores_0():
    source = random_source(20, 24)
    for metric, best in ((maps.auc, 1), (maps.pointing, 100), (maps.share, 100)):
        assert (metric(source.float(), source) == best).all() and (metric((~source).float(), source) == 0).all()


@pytest.mark.parametrize('m, score', [([1., 1, 1, 1], 0), ([2., 1, 2, 0], 0), ([2., 2, 1, 0], 100)])
def test_ties_for_the_top_patch_do_not_score(m, score):
    assert maps.pointing(torch.tensor([m]), torch.tensor([[True, True, False, False]])).item() == score


def test_a_clip_without_a_source_in_one_modality_is_left_out_of_this_modality_only():
    source_a = torch.tensor([[True, False], [False, False], [True, True]])
    source_v = torch.tensor([[True, False], [True, False], [True, False]])
    map_a, map_v = torch.tensor([[.9, .1]] * 3), torch.tensor([[.9, .1], [.2, .8], [.2, .8]])
    scores = maps.score_maps('avm', map_a, map_v, source_a, source_v)
    assert scores == pytest.approx(dict(auc_a=1, share_a=90, pointing_a=100, auc_v=1 / 3, pointing_v=100 / 3,
                                        share_v=(90 + 20 + 20) / 3))
    assert maps.source_area(source_a) == 50 and maps.source_area(source_a[1:]) is None
    none = maps.score_maps('backbone', map_a[1:], map_v[1:], source_a[1:], source_v[1:])
    assert none == dict(auc_a=None, pointing_a=None, auc_v=0, pointing_v=0)


def test_values_right_after_each_task():
    rows = [[9, 9, 9], [1, 9, 9], [2, 3, 9], [4, 5, 6]]
    assert right_after(rows, [0, 1, 2, 3]) == [1, 3, 6] and right_after(rows[:1], [0]) == []
    assert right_after(rows[::3], [0, 3]) is None


def test_cosine_maps_equal_the_slow_reference():
    """Their tokens are those that the pooled embeddings average."""
    cfg, backbone, avm, batch = odd_model()
    x = to_float(patchify(batch, cfg.patch_size), cfg.patch_size)
    o_a, o_v = backbone.encode(*x)
    a, v = backbone.unimodal_tokens(o_a, o_v, x.ids_a, x.ids_v)
    c_a, c_v = backbone.pool(o_a, o_v, x.ids_a, x.ids_v)
    m = maps.compute_maps(cfg, backbone, avm, batch)
    assert m.cosine_a.shape == m.I_a.shape == (5, cfg.num_patches_a)
    assert m.cosine_v.shape == m.I_v.shape == (5, cfg.num_patches_v)
    for tokens, c, cosine in ((a, c_v, m.cosine_a), (v, c_a, m.cosine_v)):
        for b in range(5):
            for n in range(0, tokens.shape[1], 7):
                slow = (tokens[b, n] @ c[b] / tokens[b, n].norm() / c[b].norm()).item()
                assert math.isclose(cosine[b, n].item(), slow, abs_tol=1e-5)
    out = attend(cfg, backbone, avm, patchify(batch, cfg.patch_size))
    assert torch.equal(m.I_a, out.importance_a) and torch.equal(m.I_v, out.importance_v)


def test_sources_silent_objects_and_moments_of_frames(sizes):
    dataset = Shapes(kinds()[:3], 2, sizes, (1, 1), 7)
    source_a, source_v = maps.sources(dataset, sizes)
    for index in range(2):
        own_a, own_v = truth(dataset.scene(index), sizes)
        assert torch.equal(source_a[index], own_a) and torch.equal(source_v[index], own_v)
    silent = maps.silent_objects(dataset.scene(0), sizes)
    assert silent.any() and not (silent & source_v[0]).any()
    assert maps.frame_moments(sizes).reshape(sizes.grid_a).any(1).sum() == sizes.num_frames
