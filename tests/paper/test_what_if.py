"""paper/what_if.py: each clip's own source is put in place of I, used and stored; all else stays."""
import subprocess
import sys

import pytest
import torch

import avm
import flava
import selection
from config import parse
from conftest import ROOT
from downstream.maps import moments, silent, true_source
from model import AudioVideoMAE
from paper.what_if import OF, Oracle, changed, options, prune_among_all, put
from patches import whole
from running import ONE_THREAD, TINY
from selection import select_audio, select_video
from streams.catalogue import open_stream


@pytest.fixture(scope='module')
def clips():
    cfg, _ = parse(['--clips-per-task', '9', '--test-clips', '5', '--cache', ''])
    torch.manual_seed(0)
    return cfg, open_stream(cfg, 0).train, AudioVideoMAE(cfg), avm.AVM(cfg.embed_dim, cfg.avm_heads)


@pytest.mark.parametrize('of', ['frames', 'sound', 'both'])
def test_each_clip_gets_its_own_source(clips, of):
    cfg, train, *model = clips
    oracle, asked = Oracle(cfg, train, of, 50), [(2, 5), (0, 1), (4, 8)]      # (task, clip), out of order
    one = [train[task][clip, 0] for task, clip in asked]
    patches = whole({x: torch.stack([clip[x] for clip in one]) for x in ('audio', 'video')}, cfg.patch_size)
    s, plain = oracle(cfg, *model, patches), avm.score(cfg, *model, patches)
    for name in s._fields:
        if name == 'importance_a' and of != 'frames' or name == 'importance_v' and of != 'sound':
            true = torch.stack([true_source(train[task], cfg, clip)['av'.index(name[-1])] for task, clip in asked])
            I = getattr(s, name)
            assert torch.allclose(I.sum(1), torch.ones(3))
            for row, source in zip(I, true):
                assert torch.allclose(row[source] / row[~source].mean(), torch.tensor(50.), rtol=0.01)
                assert len(row.unique()) > 0.9 * len(row)
        else:
            assert torch.equal(getattr(s, name), getattr(plain, name)), name


def test_objects_moments_and_what_is_seen(clips):
    cfg, train, *_ = clips
    beside, shares = 0, []
    for index in range(9):
        scene = train[1].scene(index)
        source_a, source_v = true_source(train[1], cfg, index)
        found = {of: put(scene, cfg, of) for of in OF}
        objects, at = found['objects']['importance_v'], found['moments']['importance_a']
        assert (objects | ~source_v).all() and list(found['objects']) == ['importance_v']
        assert objects.sum() == source_v.sum() + silent(scene, cfg).sum() - (silent(scene, cfg) & source_v).sum()
        beside += (objects & ~source_v).any().item()
        assert at.equal(moments(cfg)) and list(found['moments']) == ['importance_a']
        assert found['seen']['importance_a'].equal(at) and found['seen']['importance_v'].equal(source_v)
        assert found['both']['importance_a'].equal(source_a) and found['frames']['importance_v'].equal(source_v)
        alone = scene._replace(tracks=scene.tracks[:1])
        assert put(alone, cfg, 'objects')['importance_v'].equal(source_v)
        part = put(scene, cfg, 'part')['importance_v']
        assert (source_v | ~part).all() and part.equal(put(scene, cfg, 'part')['importance_v'])
        shares.append(part.sum().item() / source_v.sum().item())
    assert 0.5 < sum(shares) / 9 < 0.8 and 0 < min(shares)
    assert beside == 9                                     # with this preset each clip has a silent object


def test_the_top_eighth_of_the_AVM_s_own(clips):
    cfg, train, *model = clips
    one = [train[2][clip, 0] for clip in (3, 6)]
    patches = whole({x: torch.stack([clip[x] for clip in one]) for x in ('audio', 'video')}, cfg.patch_size)
    s, plain = Oracle(cfg, train, 'top', 50)(cfg, *model, patches), avm.score(cfg, *model, patches)
    assert torch.equal(s.importance_a, plain.importance_a)
    for I, own in zip(s.importance_v, plain.importance_v):
        top = I > 10 * I.median()
        assert top.sum() == len(own) // 8 and own[top].min() >= own[~top].max()


def test_the_odds_decide_how_much_of_the_source_is_drawn(clips):
    """By hand: of two patches, one of the source, the source is drawn first in odds / (odds + 1) of the draws."""
    cfg, *_ = clips
    for odds in (0.25, 1, 4):
        I = Oracle(cfg, [], 'both', odds).importance(torch.tensor([[True, False]]).expand(20_000, 2))
        first = (select_video(I, torch.zeros_like(I), 1) == 0).double().mean().item()
        assert abs(first - odds / (odds + 1)) < 0.015


def test_sound_is_drawn_in_chunks_so_odds_change_little(clips):
    """Of four chunks of two patches, one patch of the first is the source. At odds of 3 its chunk has the mean 2, the
    others 1: it is drawn first in 2 of 5 draws, though the patch alone would be in 3 of 10."""
    cfg, *_ = clips
    I = Oracle(cfg, [], 'both', 3).importance(torch.tensor([[True] + [False] * 7]).expand(20_000, 8))
    first = (select_audio(I, torch.zeros_like(I), 2, (4, 2), 1) == 0).any(1).double().mean().item()
    assert abs(first - 2 / 5) < 0.015


def test_a_step_uses_and_stores_what_is_put_there(clips):
    cfg, train, *model = clips
    of_task = [train[3][clip, 0] for clip in (4, 7, 1)]
    batch = {x: torch.stack([clip[x] for clip in of_task]) for x in ('audio', 'video')}
    args, _ = options(['--of', 'both', '--odds', '50', '--prune', 'all'])
    with changed(flava, args, cfg, train):
        method = flava.FLAVA(cfg, *model)
        method(batch), method(batch)
    assert flava.score is avm.score and flava.prune_probability is selection.prune_probability
    past = method.memory.sample(6, torch.device('cpu'))
    for x in 'av':
        true = torch.stack([true_source(train[3], cfg, clip)['av'.index(x)] for clip in (4, 7, 1)])
        stored = past[f'importance_{x}'] > past[f'importance_{x}'].median(1, keepdim=True).values * 10
        assert {tuple(row) for row in stored.tolist()} <= {tuple(row) for row in true.tolist()}
        assert (past[f'prune_{x}'] > 0).all(1).any()                          # of the second step, P of all patches


def test_P_of_all_patches_is_that_of_the_most_important_where_that_is(clips):
    I, k = torch.rand(2, 6), torch.randn(2, 3, 6, 4)
    now, past = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    all_of_them, some = prune_among_all(I, k, now, past, 2), selection.prune_probability(I, k, now, past, 2)
    assert (all_of_them > 0).all() and torch.allclose(all_of_them[some > 0], some[some > 0])


def test_a_run_with_the_source_known_and_what_it_refuses(tmp_path):
    run = lambda *words: subprocess.run([sys.executable, '-m', 'paper.what_if', *words], cwd=tmp_path, text=True,
                                        env={**ONE_THREAD, 'PYTHONPATH': str(ROOT)}, capture_output=True)
    of, here = ['--of', 'both', '--odds', '16'], ['--out', 'run', '--cache', 'cache', '--pretrain-steps', '0']
    done = run(*of, *TINY, *here, '--steps', '2', '--clips-per-task', '9')
    assert done.returncode == 0 and (tmp_path / 'run/results.json').exists(), done.stderr
    for words, said in (([*of, *TINY, *here, '--method', 'der++'], 'how FLAVA selects'),
                        ([*of, *TINY, '--pretrain-steps', '3'], 'initial pre-training selects nothing'),
                        (['--of', 'both', '--odds', '0'], '--odds: 0 must be'), ([*TINY, *here], 'nothing is changed'),
                        ([*of, *TINY, *here, '--odds', '2', '--resume'], 'was started with')):
        done = run(*words)
        assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_options_of_both_programs():
    args, words = options(['--of', 'sound', '--odds', '0.5', '--seed', '3'])
    assert (args.of, args.odds, words) == ('sound', 0.5, ['--seed', '3'])
