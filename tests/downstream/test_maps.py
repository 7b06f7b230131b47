"""Maps and metrics: against scikit-learn, slow references, and by hand."""
import math

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
    assert maps.auc(torch.zeros(0, 30), source[:0]).shape == (0,)


def test_a_map_that_equals_the_source_is_perfect_and_its_opposite_scores_0():
    source = random_source(20, 24)
    for metric, best in ((maps.auc, 1), (maps.pointing, 100), (maps.share, 100)):
        assert (metric(source.float(), source) == best).all() and (metric((~source).float(), source) == 0).all()


def test_ties_for_the_top_patch_and_NaN_do_not_score():
    source = torch.tensor([[True, True, False, False]])
    assert maps.pointing(torch.ones(1, 4), source).item() == 0
    assert maps.pointing(torch.tensor([[2., 1, 2, 0]]), source).item() == 0
    assert maps.pointing(torch.tensor([[2., 2, 1, 0]]), source).item() == 100          # both on the source
    assert maps.pointing(torch.full((1, 4), torch.nan), source).item() == 0
    assert maps.auc(torch.full((1, 4), torch.nan), source).item() == 0


def test_a_clip_without_a_source_in_one_modality_is_left_out_of_this_modality_only():
    source_a = torch.tensor([[True, False], [False, False], [True, True]])
    source_v = torch.tensor([[True, False], [True, False], [True, False]])
    map_a, map_v = torch.tensor([[.9, .1]] * 3), torch.tensor([[.9, .1], [.2, .8], [.2, .8]])
    first = [x[:1] for x in (map_a, map_v, source_a, source_v)]
    mean = maps.mean_scores([maps.score_maps('avm', map_a, map_v, source_a, source_v), maps.score_maps('avm', *first)])
    assert mean['auc_a'] == 1 and math.isclose(mean['share_a'], 90, rel_tol=1e-6)
    assert mean['auc_v'] == 0.5 and mean['pointing_v'] == 50                           # over clips: 1, 0, 0 and 1
    assert math.isclose(mean['share_v'], (90 + 20 + 20 + 90) / 4, rel_tol=1e-6)
    assert maps.source_area(source_a) == 50 and maps.source_area(source_a[1:]) is None
    none = maps.mean_scores([maps.score_maps('backbone', map_a[1:], map_v[1:], source_a[1:], source_v[1:])])
    assert none['auc_a'] is None and none['auc_v'] == 0
    assert set(none) == {'auc_a', 'auc_v', 'pointing_a', 'pointing_v'}


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


def test_sources_come_from_the_scenes(sizes):
    dataset = Shapes(kinds()[:3], 4, sizes, (0, 1), 7)
    source_a, source_v = maps.sources(dataset, sizes)
    assert source_a.shape == (4, sizes.num_patches_a) and source_v.shape == (4, sizes.num_patches_v)
    for index in range(4):
        own_a, own_v = truth(dataset.scene(index), sizes)
        assert torch.equal(source_a[index], own_a) and torch.equal(source_v[index], own_v)
    assert torch.equal(maps.source_of_clip(dataset, sizes)[1], source_v[0])
    assert maps.sources([], sizes) == maps.source_of_clip([], sizes) == (None, None)


def test_silent_objects_and_frame_moments(sizes):
    scene = Shapes(kinds()[:3], 2, sizes, (1, 1), 7).scene(0)
    source_v, silent = truth(scene, sizes)[1], maps.silent_objects(scene, sizes)
    assert silent.any() and not (silent & source_v).any()
    assert maps.frame_moments(sizes).reshape(sizes.grid_a).any(1).sum() == sizes.num_frames
