"""Maps of one number a patch, and how well they find the source: against literal versions and by hand."""
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from avm import score
from downstream import maps
from patches import normalized, whole
from streams.scenes import truth as truth_of
from untrained import odd_model


def some_truth(clips, n, share=0.3):
    truth = torch.rand(clips, n) < share
    truth[:, 0], truth[:, 1] = True, False
    return truth


# ------------------------------------------------------------------------------------ measures

def test_auc_is_scikit_learns_with_ties_too():
    truth = some_truth(40, 30)
    for values in (torch.randn(40, 30), torch.randint(0, 4, (40, 30)).float(), torch.zeros(40, 30)):
        expected = torch.tensor([roc_auc_score(t, v) for t, v in zip(truth.numpy(), values.numpy())]).double()
        torch.testing.assert_close(maps.auc(values, truth).double(), expected, atol=1e-6, rtol=0)


def test_a_map_equal_to_the_truth_is_perfect_and_its_opposite_finds_nothing():
    truth = some_truth(20, 24)
    for measure, best in ((maps.auc, 1), (maps.pointing, 100), (maps.share, 100)):
        assert (measure(truth.float(), truth) == best).all() and (measure((~truth).float(), truth) == 0).all()


def test_random_maps_are_at_chance():
    clips, n = 4000, 24
    truth, I = some_truth(clips, n), torch.randn(clips, n).softmax(1)
    true = truth.double().mean(1)
    error = lambda values: values.double().std() / math.sqrt(clips)
    within = lambda values, chance: abs(values.double().mean() - chance) < 4.5 * error(values)
    assert within(maps.auc(I, truth), 0.5)
    assert within(maps.share(I, truth) - 100 * true, 0) and within(maps.pointing(I, truth) - 100 * true, 0)
    assert math.isclose(maps.area(truth), 100 * true.mean().item(), rel_tol=1e-9)


def test_ties_for_the_top_patch_and_broken_maps_do_not_score():
    truth = torch.tensor([[True, True, False, False]])
    assert maps.pointing(torch.ones(1, 4), truth).item() == 0
    assert maps.pointing(torch.tensor([[2., 1, 2, 0]]), truth).item() == 0
    assert maps.pointing(torch.tensor([[2., 2, 1, 0]]), truth).item() == 100          # both on the source
    assert maps.pointing(torch.full((1, 4), torch.nan), truth).item() == 0
    assert maps.auc(torch.full((1, 4), torch.nan), truth).item() == 0


def test_a_modality_without_a_source_is_left_out_of_its_own_measures_only():
    truth_a = torch.tensor([[True, False], [False, False], [True, True]])
    truth_v = torch.tensor([[True, False], [True, False], [True, False]])
    map_a, map_v = torch.tensor([[.9, .1]] * 3), torch.tensor([[.9, .1], [.2, .8], [.2, .8]])
    first = lambda *tensors: (x[:1] for x in tensors)
    mean = maps.means([maps.scored('avm', map_a, map_v, truth_a, truth_v),
                       maps.scored('avm', *first(map_a, map_v, truth_a, truth_v))])
    assert mean['auc_a'] == 1 and math.isclose(mean['share_a'], 90, rel_tol=1e-6)
    assert mean['auc_v'] == 0.5 and mean['pointing_v'] == 50                           # over clips: 1, 0, 0 and 1
    assert math.isclose(mean['share_v'], (90 + 20 + 20 + 90) / 4, rel_tol=1e-6)
    assert maps.area(truth_a) == 50 and maps.area(truth_a[1:]) is None
    nothing = maps.means([maps.scored('backbone', map_a[1:], map_v[1:], truth_a[1:], truth_v[1:])])
    assert nothing['auc_a'] is None and nothing['auc_v'] == 0
    assert set(nothing) == {'auc_a', 'auc_v', 'pointing_a', 'pointing_v'}


def test_a_row_of_the_table():
    chance = {'area_v': 12.34, 'area_a': None}
    assert maps.row_of_table('avm', 'auc_v', (0.75, 0.5), chance) == '| I_v: ROC-AUC | 0.750 | 0.500 | 0.250 | 0.500 |'
    assert maps.row_of_table('avm', 'share_v', (None, 50), chance).endswith('source, % | – | 50.0 | – | 12.3 |')
    assert maps.row_of_table('backbone', 'pointing_a', (20, 50), chance).endswith('| 20.0 | 50.0 | -30.0 | – |')


# ---------------------------------------------------------------------------------------- maps

def test_cosine_maps_are_literal_and_their_tokens_are_those_that_pool_averages():
    cfg, backbone, avm, batch = odd_model()
    x = normalized(whole(batch, cfg.patch_size), cfg.patch_size)
    o_a, o_v = backbone.encode(x.x_a, x.x_v, x.kept_a, x.kept_v)
    a, v = backbone.tokens(o_a, o_v, x.kept_a, x.kept_v)
    c_a, c_v = backbone.pool(o_a, o_v, x.kept_a, x.kept_v)
    torch.testing.assert_close(a.mean(1), c_a)
    torch.testing.assert_close(v.mean(1), c_v)

    m = maps.maps(cfg, backbone, avm, batch)
    assert m.cosine_a.shape == m.I_a.shape == (5, cfg.num_patches_a)
    assert m.cosine_v.shape == m.I_v.shape == (5, cfg.num_patches_v)
    for b in range(5):
        for n in range(0, cfg.num_patches_v, 7):
            cosine = (v[b, n] @ c_a[b] / v[b, n].norm() / c_a[b].norm()).item()
            assert math.isclose(m.cosine_v[b, n].item(), cosine, abs_tol=1e-5)
        for n in range(0, cfg.num_patches_a, 7):
            cosine = (a[b, n] @ c_v[b] / a[b, n].norm() / c_v[b].norm()).item()
            assert math.isclose(m.cosine_a[b, n].item(), cosine, abs_tol=1e-5)
    s = score(cfg, backbone, avm, whole(batch, cfg.patch_size))
    assert torch.equal(m.I_a, s.importance_a) and torch.equal(m.I_v, s.importance_v)


# ------------------------------------------------------------------------------------- sources

def test_sources_are_those_of_the_scenes(sizes):
    from streams.shapes import Shapes, kinds
    dataset = Shapes(kinds()[:3], 4, sizes, (0, 1), 7)
    truth_a, truth_v = maps.sources(dataset, sizes)
    assert truth_a.shape == (4, sizes.num_patches_a) and truth_v.shape == (4, sizes.num_patches_v)
    for index in range(4):
        for own, true in zip((truth_a[index], truth_v[index]), truth_of(dataset.scene(index), sizes)):
            assert torch.equal(own, true)
    assert torch.equal(maps.true_source(dataset, sizes)[1], truth_v[0])
    assert maps.sources([], sizes) == maps.true_source([], sizes) == (None, None)


def test_a_row_that_is_kept_does_not_keep_its_batch():
    x = torch.arange(12.).reshape(3, 4)
    row = maps.alone(x, 1)
    assert torch.equal(row, x[1]) and row.untyped_storage().nbytes() == 16 and maps.alone(None, 1) is None
