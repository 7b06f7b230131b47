"""study/oracle.py: each clip's own source is used and stored; other draws; coverage. study/pool.py: partial pools."""
from functools import partial

import pytest
import torch

import avm
import baselines
import flava
import model
import selection
from downstream.maps import frame_moments, silent_objects, source_of_clip
from flava import build_method
from patches import normalize_frames, patchify
from selection import select_audio, select_video
from streams.catalogue import open_stream
from study import oracle
from study.pool import PartialPool
from utils.cli import parse

SMALL = ['--clips-per-task', '9', '--test-clips', '5', '--cache', '', '--candidate-sets', '1']


@pytest.fixture(scope='module')
def setting():
    """Config, training data sets, backbone, AVM"""
    cfg, _ = parse(SMALL)
    torch.manual_seed(0)
    return cfg, open_stream(cfg, 0).train, model.AudioVideoMAE(cfg), avm.AVM(cfg.embed_dim, cfg.avm_heads)


def batch_of(train, clips):
    """[(task, clip)] → a batch"""
    items = [train[task][clip, 0] for task, clip in clips]
    return {name: torch.stack([item[name] for item in items]) for name in ('audio', 'video')}


@pytest.mark.parametrize('of', ['frames', 'sound', 'both'])
def test_each_clip_gets_its_own_source(setting, of):
    cfg, train, *networks = setting
    clips = [(2, 5), (0, 1), (4, 8)]
    patches = patchify(batch_of(train, clips), cfg.patch_size)
    out, plain = oracle.Oracle(cfg, train, of, 50)(cfg, *networks, patches), avm.attend(cfg, *networks, patches)
    sources = [source_of_clip(train[task], cfg, clip) for task, clip in clips]
    replaced = {'frames': 'v', 'sound': 'a', 'both': 'av'}[of]
    for modality, x in enumerate('av'):
        I = getattr(out, f'I_{x}')
        if x not in replaced:
            assert torch.equal(I, getattr(plain, f'I_{x}'))
            continue
        assert torch.allclose(I.sum(1), torch.ones(3))
        for row, source in zip(I, [source[modality] for source in sources]):
            assert torch.allclose(row[source] / row[~source].mean(), torch.tensor(50.), rtol=0.01)
            assert len(row.unique()) > 0.9 * len(row)                        # no ties


def test_what_each_name_marks(setting):
    cfg, train, *networks = setting
    for index in range(9):
        scene = train[1].scene(index)
        _, source_v = source_of_clip(train[1], cfg, index)
        marked = {of: oracle.marked_patches(scene, cfg, of) for of in oracle.MARKS}
        assert marked['objects']['I_v'].equal(source_v | silent_objects(scene, cfg))
        assert marked['moments']['I_a'].equal(frame_moments(cfg))
        assert marked['seen'].keys() == {'I_a', 'I_v'}
        part = marked['part']['I_v']
        assert (source_v | ~part).all() and 0 < part.sum() < source_v.sum()
        assert part.equal(oracle.marked_patches(scene, cfg, 'part')['I_v'])

    patches = patchify(batch_of(train, [(2, 3), (2, 6)]), cfg.patch_size)
    assert oracle.ClipIndex(cfg, [train[2], train[2]]).find(patches) == [None, None]         # two clips with one patch
    out, plain = oracle.Oracle(cfg, train, 'top', 50)(cfg, *networks, patches), avm.attend(cfg, *networks, patches)
    for I, own in zip(out.I_v, plain.I_v):
        top = I > 10 * I.median()
        assert top.sum() == len(own) // 8 and own[top].min() >= own[~top].max()


def test_odds_by_hand():
    """Of two patches one is marked: it is drawn first in odds / (odds + 1) of the draws. In sound, a chunk of a marked
    patch at odds of 3 and another has the mean 2, three other chunks 1: it is first in 2 of 5 draws."""
    for odds in (0.25, 1, 4):
        I = oracle.oracle_importance(torch.tensor([[odds, 1.]]).expand(20_000, 2))
        assert abs((select_video(I, torch.zeros_like(I), 1) == 0).double().mean().item() - odds / (odds + 1)) < 0.015
    I = oracle.oracle_importance(torch.tensor([[3.] + [1.] * 7]).expand(20_000, 8))
    first = (select_audio(I, torch.zeros_like(I), 2, (4, 2), 1) == 0).any(1).double().mean().item()
    assert abs(first - 2 / 5) < 0.015


def test_a_step_uses_and_stores_the_source(setting):
    cfg, train, *networks = setting
    batch = batch_of(train, [(3, 4), (3, 7), (3, 1)])
    args, _ = oracle.parse_options(['--of', 'both', '--odds', '50', '--prune', 'all'])
    with oracle.patched(flava, args, cfg, train):
        method = flava.FLAVA(cfg, *networks)
        method(batch), method(batch)
    assert flava.attend is avm.attend and flava.prune_probability is selection.prune_probability
    past = method.memory.sample(6, torch.device('cpu'))
    for modality, x in enumerate('av'):
        sources = {tuple(source_of_clip(train[3], cfg, clip)[modality].tolist()) for clip in (4, 7, 1)}
        stored = past[f'importance_{x}'] > past[f'importance_{x}'].median(1, keepdim=True).values * 10
        assert {tuple(row) for row in stored.tolist()} <= sources
        assert (past[f'prune_{x}'] > 0).all(1).any()                         # of the second step: P of all patches


def test_other_weights_for_the_draw(setting):
    """`--draw-v rank` is `--selection rank` to the bit; mixtures by hand."""
    cfg, *_ = setting
    I_a, I_v = torch.rand(4, cfg.num_patches_a), torch.rand(4, cfg.num_patches_v)
    by_rank, _ = parse(['--selection', 'rank'])
    args, _ = oracle.parse_options(['--draw-v', 'rank'])
    torch.manual_seed(1)
    expected = selection.select_patches(by_rank, I_a, I_v, I_a, I_v)
    torch.manual_seed(1)
    with oracle.patched(flava, args, cfg, []):
        ids = flava.select_patches(cfg, I_a, I_v, I_a, I_v)
    assert all(map(torch.equal, ids, expected))
    I = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    assert torch.allclose(oracle.weights_of('mixture', cfg, I, 0.5), torch.tensor([[0.375, 0.275, 0.225, 0.125]]))
    assert torch.allclose(oracle.weights_of('even', cfg, I, 0.5), torch.tensor(0.25))


@pytest.mark.parametrize('options', [['--method', 'der++'], ['--method', 'flava+'], ['--selection', 'rank']])
def test_coverage_by_hand(setting, options, monkeypatch):
    """A method's steps with recording: the same losses, and what was selected and visible of each clip."""
    _, train, *networks = setting
    cfg, _ = parse([*options, *SMALL])
    batches, losses, drawn = [[(3, 4), (0, 7)], [(1, 1), (2, 2)]], [], []
    coverage = oracle.Coverage(cfg, train)

    def keep(cfg, patches):
        masks = coverage(cfg, patches)
        drawn.append((coverage.clips.find(patches), patches, masks))
        return masks

    for recorded in (False, True):
        method = build_method(cfg, *networks)
        torch.manual_seed(5)
        if recorded:
            monkeypatch.setattr(model, 'random_masks', keep)
            monkeypatch.setattr(baselines, 'random_masks', keep)
        losses.append([method(batch_of(train, clips))[0].item() for clips in batches])
    assert losses[0] == losses[1]

    # in order of the steps: the two clips of the first batch; the second batch and both replayed clips
    first, second = ([9 * task + clip for task, clip in clips] for clips in batches)
    assert drawn[0][0] == first and drawn[1][0][:2] == second and sorted(drawn[1][0][2:]) == sorted(first)
    selected, visible = set(), set()
    for clips, patches, masks in drawn:
        row = clips.index(first[0])
        selected |= set(patches.ids_v[row].tolist())
        visible |= set(patches.ids_v[row][masks[1].keep[row]].tolist())
    assert coverage.seen['selected_v'][first[0]].nonzero().flatten().tolist() == sorted(selected)
    assert coverage.seen['visible_v'][first[0]].nonzero().flatten().tolist() == sorted(visible)
    summary = coverage.summary()
    assert (summary['clips'], summary['steps']) == (4, 1.5)
    assert (summary['never_selected_a'] == 0) == (options[1] == 'der++')
    assert summary['never_visible_a'] > summary['never_selected_a']


def test_pooling_keeps_the_patches_of_highest_importance(setting):
    """Of all patches it is the usual embedding. The partner of another clip: literally, a clip at a time."""
    cfg, train, backbone, matching = setting
    batch = batch_of(train, [(0, 0), (1, 1), (2, 2)])
    audio, video = batch['audio'], normalize_frames(batch['video'])

    def attend(i, j):
        """Audio i with video j"""
        return avm.attend(cfg, backbone, matching, patchify(dict(audio=audio[[i]], video=video[[j]]), cfg.patch_size))

    def embed(dropped, partner):
        return PartialPool(cfg, backbone, matching, dropped, partner).embed(audio, video)

    with torch.no_grad():
        usual, half, half_by_other = backbone.embed(audio, video), embed(0.5, 'own'), embed(0.5, 'other')
        assert all(map(partial(torch.allclose, atol=1e-5), embed(0, 'own'), usual))
        for i in range(3):
            own, after, before = attend(i, i), attend((i + 1) % 3, i), attend(i, (i - 1) % 3)
            patches = patchify(dict(audio=audio[[i]], video=video[[i]]), cfg.patch_size)
            tokens = backbone.unimodal_tokens(own.tokens.o_a, own.tokens.o_v, patches.ids_a, patches.ids_v)
            for k, (x, of_own, of_other) in enumerate(zip(tokens, (own.I_a, own.I_v),
                                                          (before.I_a, after.I_v))):
                for I, found in ((of_own, half), (of_other, half_by_other)):
                    pooled = x[0, I[0].argsort()[x.shape[1] // 2:]].mean(0)
                    assert torch.allclose(found[k][i], pooled / pooled.norm(), atol=1e-4)


def test_the_command_line_and_what_it_refuses(tmp_path, capsys, monkeypatch):
    """With a `train` that does nothing; tests of runs.py train through this program."""
    monkeypatch.chdir(tmp_path)
    of, here, started = ['--of', 'sound'], ['--out', 'run', '--cache', '', '--clips-per-task', '2'], []

    def train(words):
        started.append(words)
        assert isinstance(flava.attend, oracle.Oracle)

    oracle.main(train, [*of, *here])
    assert started == [here] and '"of": "sound"' in (tmp_path / 'run/oracle.json').read_text()
    (tmp_path / 'run/last.pt').touch()
    for words, error in (([*of, '--method', 'der++'], 'how FLAVA selects'), (['--dataset', 'ave'], 'ave'),
                         (['--coverage', *here, '--resume'], 'cannot --resume'),
                         (['--of', 'frames', *here, '--resume'], 'run holds a run of another variant')):
        with pytest.raises(SystemExit) as stopped:
            oracle.main(train, words)
        assert stopped.value.code == 2 and error in capsys.readouterr().err
    assert len(started) == 1
