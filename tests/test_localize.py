"""Where the source is looked for, spurious attention and the modality gap, against literal versions and by hand."""
import argparse
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import gap
import localize
import recorded
from avm import AVM
from config import PRESETS, Config
from data import normalize_frames
from model import AudioVideoMAE, UserError, all_positions, patchify_a, patchify_v
from steps import Patches, normalized, score, whole

from conftest import ODD


@pytest.fixture(autouse=True)
def one_thread():
    """Two would mostly wait for each other in models so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    """Config of odd sizes, backbone, AVM, and a batch of five pairs."""
    cfg = Config(**ODD)
    batch = dict(audio=torch.randn(5, cfg.audio_frames, cfg.mel_bins),
                 video=torch.randint(0, 256, (5, cfg.num_frames, 3, cfg.image_size, cfg.image_size), dtype=torch.uint8))
    modules = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
    for parameter in [*modules[0].parameters(), *modules[1].parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)            # no two LayerNorms alike
    return cfg, *(module.eval().requires_grad_(False) for module in modules), batch


def some_truth(clips, n, share=0.3):
    truth = torch.rand(clips, n) < share
    truth[:, 0], truth[:, 1] = True, False
    return truth


# ------------------------------------------------------------------------------------ measures

def test_auc_is_scikit_learns_with_ties_too():
    truth = some_truth(40, 30)
    for values in (torch.randn(40, 30), torch.randint(0, 4, (40, 30)).float(), torch.zeros(40, 30)):
        expected = [roc_auc_score(t, v) for t, v in zip(truth.numpy(), values.numpy())]
        torch.testing.assert_close(localize.auc(values, truth).double(), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_a_map_equal_to_the_truth_is_perfect_and_its_opposite_finds_nothing():
    truth = some_truth(20, 24)
    assert (localize.auc(truth.float(), truth) == 1).all() and (localize.auc((~truth).float(), truth) == 0).all()
    assert (localize.pointing(truth.float(), truth) == 100).all() and (localize.pointing((~truth).float(), truth) == 0).all()
    assert (localize.share(truth.float(), truth) == 100).all() and (localize.share((~truth).float(), truth) == 0).all()


def test_random_maps_are_at_chance():
    clips, n = 4000, 24
    truth, I = some_truth(clips, n), torch.randn(clips, n).softmax(1)
    true = truth.double().mean(1)
    within = lambda values, chance: abs(values.double().mean() - chance) < 4.5 * values.double().std() / math.sqrt(clips)
    assert within(localize.auc(I, truth), 0.5)
    assert within(localize.share(I, truth) - 100 * true, 0) and within(localize.pointing(I, truth) - 100 * true, 0)
    assert math.isclose(localize.area(truth), 100 * true.mean().item(), rel_tol=1e-9)


def test_ties_for_the_top_patch_and_broken_maps_do_not_score():
    truth = torch.tensor([[True, True, False, False]])
    assert localize.pointing(torch.ones(1, 4), truth).item() == 0
    assert localize.pointing(torch.tensor([[2., 1, 2, 0]]), truth).item() == 0
    assert localize.pointing(torch.tensor([[2., 2, 1, 0]]), truth).item() == 100          # both on the source
    assert localize.pointing(torch.full((1, 4), torch.nan), truth).item() == 0
    assert localize.auc(torch.full((1, 4), torch.nan), truth).item() == 0


def test_a_modality_without_a_source_is_left_out_of_its_own_measures_only():
    truth_a = torch.tensor([[True, False], [False, False], [True, True]])
    truth_v = torch.tensor([[True, False], [True, False], [True, False]])
    map_a, map_v = torch.tensor([[.9, .1]] * 3), torch.tensor([[.9, .1], [.2, .8], [.2, .8]])
    first = lambda *tensors: (x[:1] for x in tensors)
    mean = localize.means([localize.measure('avm', map_a, map_v, truth_a, truth_v),
                           localize.measure('avm', *first(map_a, map_v, truth_a, truth_v))])
    assert mean['auc_a'] == 1 and math.isclose(mean['share_a'], 90, rel_tol=1e-6)
    assert mean['auc_v'] == 0.5 and mean['pointing_v'] == 50                                # over clips: 1, 0, 0 and 1
    assert math.isclose(mean['share_v'], (90 + 20 + 20 + 90) / 4, rel_tol=1e-6)
    assert localize.area(truth_a) == 50 and localize.area(truth_a[1:]) is None
    nothing = localize.means([localize.measure('backbone', map_a[1:], map_v[1:], truth_a[1:], truth_v[1:])])
    assert nothing['auc_a'] is None and nothing['auc_v'] == 0 and set(nothing) == {'auc_a', 'auc_v', 'pointing_a', 'pointing_v'}


# ---------------------------------------------------------------------------------------- maps

def test_cosine_maps_are_literal_and_their_tokens_are_those_that_pool_averages(model):
    cfg, backbone, avm, batch = model
    x = normalized(whole(batch, cfg.patch_size), cfg.patch_size)
    o_a, o_v = backbone.encode(x.x_a, x.x_v, x.kept_a, x.kept_v)
    a, v = localize.tokens(backbone, o_a, o_v, x.kept_a, x.kept_v)
    c_a, c_v = backbone.pool(o_a, o_v, x.kept_a, x.kept_v)
    torch.testing.assert_close(a.mean(1), c_a)
    torch.testing.assert_close(v.mean(1), c_v)

    m = localize.maps(cfg, backbone, avm, batch)
    assert m.cosine_a.shape == m.I_a.shape == (5, cfg.num_patches_a) and m.cosine_v.shape == m.I_v.shape == (5, cfg.num_patches_v)
    for b in range(5):
        for n in range(0, cfg.num_patches_v, 7):
            cosine = (v[b, n] @ c_a[b] / v[b, n].norm() / c_a[b].norm()).item()
            assert math.isclose(m.cosine_v[b, n].item(), cosine, abs_tol=1e-5)
        for n in range(0, cfg.num_patches_a, 7):
            cosine = (a[b, n] @ c_v[b] / a[b, n].norm() / c_v[b].norm()).item()
            assert math.isclose(m.cosine_a[b, n].item(), cosine, abs_tol=1e-5)
    s = score(cfg, backbone, avm, whole(batch, cfg.patch_size))
    assert torch.equal(m.I_a, s.importance_a) and torch.equal(m.I_v, s.importance_v)


def test_swapping_a_modality_gives_the_scores_of_that_very_pair(model):
    cfg, backbone, avm, batch = model
    batch |= dict(other_audio=torch.randn_like(batch['audio']), other_video=batch['video'].flip(0, 4))
    I_a, I_v, I_a_other, I_v_other = localize.swapped(cfg, backbone, avm, batch)
    p = cfg.patch_size
    for b in range(5):
        def pair(audio, video):
            x_a, x_v = patchify_a(batch[audio][b:b + 1], p), patchify_v(batch[video][b:b + 1], p)
            return score(cfg, backbone, avm, Patches(x_a, x_v, all_positions(x_a), all_positions(x_v)))

        torch.testing.assert_close(I_a[b:b + 1], pair('audio', 'video').importance_a)
        torch.testing.assert_close(I_v[b:b + 1], pair('audio', 'video').importance_v)
        torch.testing.assert_close(I_v_other[b:b + 1], pair('other_audio', 'video').importance_v)
        torch.testing.assert_close(I_a_other[b:b + 1], pair('audio', 'other_video').importance_a)
    assert (I_v - I_v_other).abs().max() > 1e-5 and (I_a - I_a_other).abs().max() > 1e-5


def test_partners_are_of_every_other_task_and_never_of_the_own():
    lengths = [7, 5, 6]
    for task in range(3):
        pairs = localize.Pairs([range(n) for n in lengths], task)
        partners = [pairs.partner(index) for index in range(len(pairs))]
        assert {other for other, _ in partners} == {0, 1, 2} - {task}
        assert all(clip < lengths[other] for other, clip in partners)


# --------------------------------------------------------------------------------- modality gap

def test_modality_gap_by_hand_and_what_it_does_not_depend_on():
    c_a, c_v = torch.tensor([[2., 0], [0, 5]]), torch.tensor([[0., -3], [0, -1]])
    assert math.isclose(gap.modality_gap(c_a, c_v), math.hypot(0.5, 1.5), rel_tol=1e-6)     # centres (½, ½) and (0, −1)
    c_a, c_v = torch.randn(30, 8).double() + 1, torch.randn(30, 8).double() - 1
    expected = gap.modality_gap(c_a, c_v)
    turn = torch.linalg.qr(torch.randn(8, 8).double())[0]
    lengths = torch.rand(30, 1).double() + 0.1
    assert math.isclose(gap.modality_gap(lengths * c_a @ turn, c_v.flip(0) @ turn), expected, rel_tol=1e-9)
    assert gap.modality_gap(c_a, c_a) == 0 and math.isclose(gap.modality_gap(c_a[:1], -c_a[:1]), 2, rel_tol=1e-9)


def test_difference_by_hand():
    rows = [[9, 9, 9], [1.0, 9, 9], [2, 1.5, 9], [0.7, 1.9, 3]]
    assert math.isclose(gap.difference(rows, [0, 1, 2, 3]), (0.3 + 0.4) / 2)
    assert gap.difference(rows[::3], [0, 3]) is None and gap.difference(rows[:2], [0, 1]) is None


def test_clouds_lie_in_the_plane_of_most_variance():
    c_a, c_v = torch.randn(gap.POINTS + 50, 6), torch.randn(gap.POINTS + 50, 6) + 2
    drawn = gap.clouds(c_a, c_v)
    assert len(drawn['audio']) == len(drawn['video']) == gap.POINTS and len(gap.clouds(c_a[:9], c_v[:9])['audio']) == 9
    few = gap.clouds(c_a[:150], c_v[:150])
    both = F.normalize(torch.cat([c_a[:150], c_v[:150]]), dim=1).double()
    points = torch.tensor(few['audio'] + few['video']).double()
    largest = torch.linalg.eigvalsh(both.T.cov(correction=0))[-2:]
    torch.testing.assert_close(points.T.cov(correction=0), largest.flip(0).diag(), atol=1e-7, rtol=0)
    assert torch.tensor(few['audio'])[:, 0].mean() < torch.tensor(few['video'])[:, 0].mean()


# ------------------------------------------------------------------------------------ end to end

TINY = dict(PRESETS['small'], image_size=48, audio_frames=128, mel_bins=32, embed_dim=16, encoder_depth=1, decoder_embed_dim=16,
            num_heads=2, avm_heads=2, decoder_num_heads=2, test_clips=5, clips_per_task=5, batch_size=3, size='small')
OPTIONS = argparse.Namespace()


def only_last(run):
    run.last = True
    return run


def make_run(folder, files, **options):
    """A run of shapes as train.py leaves one, with untrained models."""
    config = dataclasses.asdict(Config(**(TINY | options)))
    (folder / 'models').mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    for t in files:
        torch.manual_seed(t)
        parts = {'backbone': AudioVideoMAE(Config(**config)), 'avm': AVM(config['embed_dim'], config['avm_heads'])}
        weights = {f'{part}.{name}': value for part, module in parts.items() for name, value in module.state_dict().items()}
        torch.save(dict(config=config, weights=weights), folder / 'models' / f'{t}.pt')
    return recorded.Recorded(folder, device='cpu')


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, range(7))


def test_localization_of_a_run(run):
    results, table, figure = localize.localization(run, OPTIONS)
    run.write('localization', results, table, figure)
    assert results['after'] == ['initial', *results['tasks']] and len(results['tasks']) == 6
    for which, modalities in (('avm', ('auc', 'share', 'pointing')), ('backbone', ('auc', 'pointing'))):
        assert set(results[which]) == {f'{name}_{x}' for name in modalities for x in 'av'}
        assert all(len(matrix) == 7 and all(len(row) == 6 for row in matrix) for matrix in results[which].values())

    backbone, avm = run.load(run.models()[3][2])                       # one cell, clip by clip
    dataset, found, cosine = run.stream.test[4], [], []
    for index in range(len(dataset)):
        item = dataset[index, 0]
        m = localize.maps(run.cfg, backbone, avm, {name: item[name][None] for name in ('audio', 'video')})
        true_a, true_v = localize.truth(dataset.scene(index), run.cfg)
        assert true_v.any()
        found.append(100 * m.I_v[0][true_v].sum().item())
        cosine += [roc_auc_score(true_a, m.cosine_a[0])] if true_a.any() and not true_a.all() else []
    assert math.isclose(results['avm']['share_v'][3][4], sum(found) / len(found), rel_tol=1e-4)
    assert math.isclose(results['backbone']['auc_a'][3][4], sum(cosine) / len(cosine), rel_tol=1e-4)

    own = sum(results['avm']['auc_v'][i + 1][i] for i in range(6)) / 6
    end = sum(results['avm']['auc_v'][-1]) / 6
    assert f'| I_v: ROC-AUC | {own:.3f} | {end:.3f} | {own - end:.3f} | 0.500 |' in table
    for kind in ('json', 'md', 'png', 'pt'):
        assert (run.folder / 'eval' / f'localization.{kind}').stat().st_size > 0

    record = torch.load(run.folder / 'eval' / 'localization.pt', weights_only=True)
    assert [(clip['task'], clip['clip']) for clip in record['clips']] == [(task, clip) for task in range(6) for clip in (0, 4)]
    assert all(x.untyped_storage().nbytes() == x.nbytes for clip in record['clips'] for x in clip.values()
               if torch.is_tensor(x))                                  # no batch is written behind its row
    clip = record['clips'][9]                                          # task 4, clip 4, which the loop above ended with
    torch.testing.assert_close(clip['I_v'][3], m.I_v[0])
    torch.testing.assert_close(clip['cosine_a'][3], m.cosine_a[0])
    assert torch.equal(clip['frames'], item['video']) and torch.equal(clip['audio'], item['audio'])
    assert torch.equal(clip['truth_v'], true_v) and clip['I_a'].shape == (7, run.cfg.num_patches_a)


def test_spurious_attention_of_a_run(run):
    results, table, figure = localize.spurious(run, OPTIONS)
    run.write('spurious', results, table, figure)
    again, _, _ = localize.localization(only_last(run), OPTIONS)
    assert results['after'] == 'oak' and again['after'] == ['oak']
    for name, value in results['avm'].items():                         # the last model's own pairs, as localization has them
        if name.endswith('_v'):                                        # every clip shows its source: a mean of means is the mean
            assert math.isclose(value['own'], sum(again['avm'][name][0]) / 6, rel_tol=1e-5)
        assert 0 <= value['other'] <= 100
    assert results['avm']['share_v']['own'] != results['avm']['share_v']['other']
    record = torch.load(run.folder / 'eval' / 'spurious.pt', weights_only=True)
    for task, clip in enumerate(record['clips']):
        backbone, avm = run.load(run.models()[-1][2])
        assert clip['task'] == task != clip['other_task'] and torch.equal(clip['frames'], run.stream.test[task][0, 0]['video'])
        batch = dict(audio=clip['other_audio'][None], video=clip['frames'][None])
        s = score(run.cfg, backbone, avm, whole(batch, run.cfg.patch_size))
        torch.testing.assert_close(clip['I_v_other'][None], s.importance_v)
    assert len(record['clips']) == 6 and (run.folder / 'eval' / 'spurious.png').exists()


class Unknown(torch.utils.data.Dataset):
    """Clips whose source is not known, of which the last cannot be read."""

    def __init__(self, clips):
        self.clips, self.read = clips, []

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        self.read.append(key[0])
        return self.clips[key] | {'bad': 'gone' if key[0] == len(self) - 1 else ''}


def test_without_a_known_source_there_are_pictures_and_no_numbers(run):
    run.stream = run.stream._replace(test=[Unknown(dataset) for dataset in run.stream.test[:2]], names=['x', 'y'])
    run.models = lambda: [(0, 'initial', run.folder / 'models' / '0.pt')]
    for name in ('localization', 'spurious'):
        results, table, figure = getattr(localize, name)(only_last(run), OPTIONS)
        run.write(name, results, table, figure)
        assert set(results) == {'tasks', 'after'} and 'not known' in table
        clips = torch.load(run.folder / 'eval' / f'{name}-last.pt', weights_only=True)['clips']
        assert [clip['task'] for clip in clips] == [0, 1]              # the first of each; the last cannot be read
        assert all(clip['truth_v'] is None for clip in clips)
    assert all(set(dataset.read) <= {0, 4} for dataset in run.stream.test)   # no more was decoded


def test_gap_of_a_run(run):
    results, table, figure = gap.gap(run, OPTIONS)
    run.write('gap', results, table, figure)
    assert len(results['gap']) == 7 and len(results['over_stream']) == 6 and len(results['clouds']) == 6
    assert math.isclose(results['over_stream'][1], sum(results['gap'][2][:2]) / 2)
    assert math.isclose(results['difference'], sum(abs(results['gap'][6][i] - results['gap'][i + 1][i]) for i in range(5)) / 5)
    backbone = run.load(run.models()[2][2])[0]
    items = [run.stream.test[3][index, 0] for index in range(5)]
    c = backbone.embed(torch.stack([item['audio'] for item in items]),
                       normalize_frames(torch.stack([item['video'] for item in items])))
    assert math.isclose(results['gap'][2][3], gap.modality_gap(*c), rel_tol=1e-5)
    assert f'{results["gap"][2][3]:.3f}' in table and json.loads((run.folder / 'eval' / 'gap.json').read_text()) == results


def test_a_multitask_run_has_no_model_after_each_task(tmp_path):
    run = make_run(tmp_path, [0, 6], method='multitask')
    results, table, _ = gap.gap(run, OPTIONS)
    assert results['difference'] is None and results['after'] == ['initial', 'all tasks'] and 'difference' not in table
    assert results['over_stream'] == [sum(results['gap'][1]) / 6]
    _, table, _ = localize.localization(run, OPTIONS)
    assert '| I_v: ROC-AUC | – | 0.' in table


def test_one_task_has_no_other(run):
    run.stream = run.stream._replace(test=run.stream.test[:1])
    with pytest.raises(UserError, match='two tasks'):
        localize.spurious(only_last(run), OPTIONS)
