"""Where models look. Maps and metrics against scikit-learn, slow references and by hand; localization, spurious
attention and selection statistics of whole runs."""
import dataclasses
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from avm import attend
from config import UserError
from downstream import localization, maps, selection_stats, spurious
from downstream.selection_stats import ATTENTION_SELECTIONS, PARTNERS
from eval import run_evaluation
from patches import patchify, to_float
from selection import prune_probability
from streams.scenes import truth
from streams.shapes import Shapes, kinds
from untrained import odd_model, only_last, options, shared_run  # noqa: F401
from utils.checkpoint import read_checkpoint


# ---------------------------------------------------------------------------------------- metrics

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
    # a tie for the top patch does not score
    source = torch.tensor([[True, True, False, False]])
    tied = [[1., 1, 1, 1]], [[2., 1, 2, 0]], [[2., 2, 1, 0]]
    assert [maps.pointing(torch.tensor(m), source).item() for m in tied] == [0, 0, 100]


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


def test_selection_statistics_by_hand():
    source = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    ids = torch.tensor([[0, 3], [1, 2], [0, 1], [0, 1]])           # half, all; no source, nothing but source
    assert selection_stats.coverage(ids, source) == 75
    assert selection_stats.coverage(ids[2:], source[2:]) is None
    # P on and off the source, of the three most important patches
    I, P = torch.tensor([[5., 4., 3., 2., 1.]]), torch.tensor([[0.8, 0.2, 0.6, 0., 0.]])
    found = selection_stats.mean_on_and_off(I, P, torch.tensor([[True, False, False, True, False]]), 3)
    assert found == pytest.approx((0.8, 0.4), abs=1e-6)
    partners = selection_stats.partner_kinds(['x', 'x', 'y', 'y'], 1, [(1, 'x'), (1, 'y'), (0, 'z'), (0, 'z')])
    assert [partners[kind].nonzero()[:, 0].tolist() for kind in PARTNERS] == [[0], [1], [2, 3]]


# ------------------------------------------------------------------------------- maps and sources

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
    assert torch.equal(m.I_a, out.I_a) and torch.equal(m.I_v, out.I_v)


def test_swapped_maps_are_those_of_the_swapped_pair():
    cfg, backbone, avm, batch = odd_model()
    batch |= dict(other_audio=torch.randn_like(batch['audio']), other_video=batch['video'].flip(0, 4))
    swapped = spurious.attend_swapped(cfg, backbone, avm, batch)
    for b in range(5):
        def pair(audio, video):
            clip = dict(audio=batch[audio][b:b + 1], video=batch[video][b:b + 1])
            return attend(cfg, backbone, avm, patchify(clip, cfg.patch_size))

        own = pair('audio', 'video')
        expected = (own.I_a, own.I_v, pair('audio', 'other_video').I_a,
                    pair('other_audio', 'video').I_v)
        for I, slow in zip(swapped, expected):
            torch.testing.assert_close(I[b:b + 1], slow)


def test_statistics_compare_with_past_queries_of_the_other_modality():
    """P of frames has the past sound of a random pair, P of sound its frames (Eq. 5)."""
    cfg, *networks, batch = odd_model()
    attention = selection_stats.attend_batch(cfg, networks, batch)
    I_a, I_v, k_a, k_v, query_a, query_v = attention
    source_a, source_v = (torch.rand(I.shape) < 0.5 for I in (I_a, I_v))
    found = selection_stats.task_statistics(cfg, [attention], (source_a, source_v), [['x'] * 5], 0, 1)['P']
    torch.manual_seed(0)
    past = torch.randint(5, (5,))
    for x, I, k, query, source, kappa in (('a', I_a, k_a, query_v, source_a, cfg.kappa_a),
                                          ('v', I_v, k_v, query_a, source_v, cfg.kappa_v)):
        P = prune_probability(I, k, query, query[past], kappa)
        expected = selection_stats.mean_on_and_off(I, P, source, kappa)
        assert (found[f'on_{x}'], found[f'beside_{x}']) == pytest.approx(expected)


def test_partners_come_from_all_other_tasks():
    lengths = [7, 5, 6]
    for task in range(3):
        pairs = spurious.SwappedPairs([range(n) for n in lengths], task)
        partners = [pairs.partner(index) for index in range(len(pairs))]
        assert {other for other, _ in partners} == {0, 1, 2} - {task}
        assert all(clip < lengths[other] for other, clip in partners)


def test_sources_silent_objects_and_moments_of_frames(sizes):
    dataset = Shapes(kinds()[:3], 2, sizes, (1, 1), 7)
    source_a, source_v = maps.sources(dataset, sizes)
    for index in range(2):
        own_a, own_v = truth(dataset.scene(index), sizes)
        assert torch.equal(source_a[index], own_a) and torch.equal(source_v[index], own_v)
    silent = maps.silent_objects(dataset.scene(0), sizes)
    assert silent.any() and not (silent & source_v[0]).any()
    assert maps.frame_moments(sizes).reshape(sizes.grid_a).any(1).sum() == sizes.num_frames


# ------------------------------------------------------------------------------------ whole runs

def test_localization_of_a_run(run):
    results, table, _ = run_evaluation(run, 'localization', options())
    assert results['after'] == ['initial', *results['tasks']] and len(results['tasks']) == 6
    for which, metrics in (('avm', ('auc', 'share', 'pointing')), ('backbone', ('auc', 'pointing'))):
        assert set(results[which]) == {f'{name}_{x}' for name in metrics for x in 'av'}
        assert all(len(matrix) == 7 and all(len(row) == 6 for row in matrix) for matrix in results[which].values())

    # one cell, clip by clip
    backbone, avm = run.load_model(run.models()[3][2])
    dataset, share_v, cosine_a = run.stream.retrieval[4], [], []
    for index in range(len(dataset)):
        item = dataset[index, 0]
        m = maps.compute_maps(run.cfg, backbone, avm, {name: item[name][None] for name in ('audio', 'video')})
        source_a, source_v = truth(dataset.scene(index), run.cfg)
        share_v.append(100 * m.I_v[0][source_v].sum().item())
        if source_a.any() and not source_a.all():
            cosine_a.append(roc_auc_score(source_a, m.cosine_a[0]))
    assert math.isclose(results['avm']['share_v'][3][4], sum(share_v) / len(share_v), rel_tol=1e-4)
    assert math.isclose(results['backbone']['auc_a'][3][4], sum(cosine_a) / len(cosine_a), rel_tol=1e-4)

    # the table
    own = sum(results['avm']['auc_v'][i + 1][i] for i in range(6)) / 6
    end = sum(results['avm']['auc_v'][-1]) / 6
    assert f'| I_v: ROC-AUC | {own:.3f} | {end:.3f} | {own - end:.3f} | 0.500 |' in table
    assert '| I_v: ROC-AUC | – | 0.' in localization.table(results, [0, 6])            # Multitask

    # the saved clips: first and last of each task
    clips = read_checkpoint(run.eval_path('localization', 'pt'))['clips']
    assert [clip['task'] for clip in clips] == [task for task in range(6) for _ in range(2)]
    assert all(x.untyped_storage().nbytes() == x.nbytes for clip in clips for x in clip.values() if torch.is_tensor(x))
    clip = clips[9]                                                    # the last one of task 4, as of the loop above
    torch.testing.assert_close(clip['I_v'][3], m.I_v[0])
    torch.testing.assert_close(clip['cosine_a'][3], m.cosine_a[0])
    assert torch.equal(clip['frames'], item['video']) and torch.equal(clip['audio'], item['audio'])
    assert torch.equal(clip['truth_v'], source_v) and clip['I_a'].shape == (7, run.cfg.num_patches_a)


def test_spurious_attention_of_a_run(run):
    results, table, _ = run_evaluation(only_last(run), 'spurious', options())
    # with its own modality, the numbers are those of localization
    last = localization.evaluate(run, options())
    assert results['after'] == 'oak' and 'I_v: ROC-AUC' in table
    for name, value in results['avm'].items():
        if name.endswith('_v'):                                # all clips show their source
            assert math.isclose(value['own'], sum(last['avm'][name][0]) / 6, rel_tol=1e-5)
    assert results['avm']['share_v']['own'] != results['avm']['share_v']['other']

    # the saved clips
    clips = torch.load(run.eval_path('spurious', 'pt'), weights_only=True)['clips']
    backbone, avm = run.load_model(run.models()[-1][2])
    assert [clip['task'] for clip in clips] == list(range(6))
    for clip in clips:
        other = run.stream.retrieval[clip['other_task']][0, 0]
        batch = dict(audio=other['audio'][None], video=clip['frames'][None])
        out = attend(run.cfg, backbone, avm, patchify(batch, run.cfg.patch_size))
        torch.testing.assert_close(clip['I_v_other'][None], out.I_v)

    run.stream = run.stream._replace(retrieval=run.stream.retrieval[:1])
    with pytest.raises(UserError, match='two tasks'):
        spurious.evaluate(run, options())


def test_selection_statistics_of_a_run(run):
    models = run.models()[:3]
    run.models = lambda: models
    results, table, figure = run_evaluation(run, 'selection', options())
    assert results == selection_stats.evaluate(run, options())                          # the same random numbers
    assert results['after'] == ['ash', 'birch'] and set(results['selected_v']) == set(ATTENTION_SELECTIONS)
    for x in 'va':
        for rows in results[f'selected_{x}'].values():
            assert len(rows) == 2 and all(len(row) == 6 and all(0 <= share <= 100 for share in row) for row in rows)
    P = results['P']
    assert P['same task'][0][0] is not None and P['other task'][0][0] is None           # after ash there is only ash
    assert P['other task'][0][1] is not None and P['same class'][0][1] is None
    assert '| excess |' in table and len(figure.axes) == 2


@pytest.mark.parametrize('changed', [dict(method='der++'), dict(selection='importance', scorer='student')])
def test_statistics_of_a_run_that_selects_otherwise_or_not_at_all(run, changed):
    models = run.models()[1:2]
    run.models, run.cfg = (lambda: models), dataclasses.replace(run.cfg, **changed)
    assert set(selection_stats.evaluate(run, options())['selected_v']) == set(ATTENTION_SELECTIONS)


class Unknown(torch.utils.data.Dataset):
    """Clips without a known source"""

    def __init__(self, clips):
        self.clips, self.read = clips, set()

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        self.read.add(key[0])
        return self.clips[key]


@pytest.mark.parametrize('name', ['localization', 'spurious', 'selection'])
def test_without_a_known_source_there_is_a_figure_and_no_number(name, run):
    tests = [Unknown(dataset) for dataset in run.stream.retrieval]
    run.stream = run.stream._replace(retrieval=tests)
    results, table, figure = run_evaluation(only_last(run), name, options())
    assert set(results) == {'tasks', 'after'} and 'not known' in table
    clips = torch.load(run.eval_path(name, 'pt'), weights_only=True)['clips']
    assert all(clip['truth_v'] is None for clip in clips)
    assert len([axis for axis in figure.axes if axis.get_ylabel()]) == 6       # one row per task
    assert set.union(*(dataset.read for dataset in tests)) <= {0, 4}           # no clip is decoded that is not shown
