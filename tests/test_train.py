"""Training as a user runs it: every method to its end and resumed, NaN, batches, bad clips, real clips."""
import dataclasses
import json
import shutil

import pytest
import torch

import eval as evaluation
import train
from config import METHODS, Config, UserError
from conftest import ROOT
from running import TINY, assert_same_state, on_files
from train import Run, check_batch_sizes, make_batches

pytestmark = pytest.mark.usefixtures('no_pictures')
SHORT = [*TINY, '--pretrain-steps', '0', '--clips-per-task', '16', '--test-clips', '3', '--save-every', '0',
         '--steps', '2']


def stop_after(monkeypatch, *numbers):
    """Stop the run after these of its checkpoints, counted over resumed runs."""
    save, saves = Run.save, [0]

    def save_and_stop(run):
        save(run)
        saves[0] += 1
        if saves[0] in numbers:
            raise KeyboardInterrupt
    monkeypatch.setattr(Run, 'save', save_and_stop)


@pytest.mark.parametrize('words', [*(f'--method {name}' for name in METHODS), '--scorer grid --pretrain-steps 1',
                                   '--precision bf16', '--scorer student --selection rank --scorer-every 3'])
def test_every_method_runs_and_resumes(words, tmp_path, here, monkeypatch):
    """Stopped within a task and at its end, a run continues to the same checkpoint bit for bit."""
    options, multitask = [*SHORT, *words.split()], 'multitask' in words
    code, out, err = here([*options, '--out', 'run'], tmp_path)
    assert code == 0 and 'audio to video' in out, err
    stop_after(monkeypatch, 2, 8)
    assert [here([*options, '--out', 'stopped', '--resume'], tmp_path)[0] for _ in range(3)] == [130, 130, 0]
    run, stopped = tmp_path / 'run', tmp_path / 'stopped'
    assert (run / 'results.json').read_bytes() == (stopped / 'results.json').read_bytes()
    for name in ('last.pt', 'models/1.pt'):
        assert_same_state(run / name, stopped / name)
    memory = torch.load(run / 'last.pt', weights_only=True)['rank_state']['memory']
    assert bool(memory and memory['seen']) == (not multitask and 'finetune' not in words)
    results = json.loads((run / 'results.json').read_text())
    acc = results['audio_to_video']['R@10']['acc']
    assert len(acc) == (1 if multitask else 6) and all(len(row) == 6 for row in acc)
    assert (results['audio_to_video']['R@10']['F'] is None) == multitask
    assert all((run / name).stat().st_size for name in ('config.json', 'log.jsonl', 'table.md'))


def test_cls_er_saves_the_stable_copy(tmp_path, here):
    """It has moved, and is neither the trained nor the plastic one. It is the one that was evaluated."""
    assert here([*SHORT, '--method', 'cls-er', '--out', 'run'], tmp_path)[0] == 0
    model, first, last = (torch.load(tmp_path / 'run' / name, weights_only=True)
                          for name in ('models/6.pt', 'models/0.pt', 'last.pt'))
    key = 'encoder.a.0.attn.qkv.weight'
    stable, trained, plastic = (last['method'][f'{part}.{key}'] for part in ('stable', 'backbone', 'plastic'))
    saved, initial = model['weights'][f'backbone.{key}'], first['weights'][f'backbone.{key}']
    assert torch.equal(saved, stable) and not any(torch.equal(saved, other) for other in (trained, plastic, initial))
    evaluation.main(['run', '--eval', 'retrieval', '--device', 'cpu'])
    results, again = (json.loads((tmp_path / 'run' / name).read_text()) for name in
                      ('results.json', 'eval/retrieval.json'))
    assert again['video_to_audio']['R@5']['acc'] == results['video_to_audio']['R@5']['acc']


def test_activation_checkpointing_changes_no_bit(tmp_path, here):
    for value in '01':
        assert here([*SHORT, '--out', value, '--activation-checkpointing', value], tmp_path)[0] == 0
    assert_same_state(tmp_path / '0/last.pt', tmp_path / '1/last.pt')


@pytest.mark.parametrize('method', ['finetune', 'flava', 'gmed', 'cls-er'])
def test_nan_stops_the_run_and_is_never_saved(method, tmp_path, here):
    code, _, err = here([*SHORT, '--steps', '4', '--method', method, '--out', 'run', '--lr', '1e30', '--log-every',
                         '3'], tmp_path)
    assert code == 2 and 'try a smaller --lr. The last checkpoint is run/last.pt' in err and 'Traceback' not in err
    state = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    assert all(x.isfinite().all() for x in state['weights'].values() if x.is_floating_point())
    log = tmp_path / 'run/log.jsonl'
    assert not log.exists() or 'NaN' not in log.read_text()


# ---------------------------------------------------------------------------------------- batches

def test_batches_follow_from_the_seed():
    """Each clip once an epoch, in a new order; no incomplete last batch; a resumed run continues anywhere."""
    batches = make_batches(23, 5, 3, -1, 4)            # clips, batch size, epochs, no maximum, seed
    planned = list(batches)
    assert len(batches) == 12 and [len(batch) for batch in planned] == [5] * 12
    assert planned == list(batches) != list(make_batches(23, 5, 3, -1, 5))
    epochs = [[clip for batch in planned[i:i + 4] for clip, _ in batch] for i in (0, 4, 8)]
    assert all(len(set(clips)) == 20 and set(clips) <= set(range(23)) for clips in epochs) and epochs[0] != epochs[1]
    assert len({seed for batch in planned for _, seed in batch}) == 60             # new augmentation each time
    assert list(make_batches(23, 5, 3, 7, 4)) == planned[:7] and list(make_batches(23, 5, 3, 0, 4)) == []
    for step in (0, 3, 4, 9, 12):
        rest = dataclasses.replace(batches, start_step=step)
        assert list(rest) == planned[step:] and len(rest) == 12 - step
    assert [len(batch) for batch in make_batches(3, 5, 2, -1, 4)] == [3, 3]        # a task smaller than a batch


def test_ranks_share_every_batch(monkeypatch):
    planned, shares = list(make_batches(23, 6, 2, -1, 4)), []
    monkeypatch.setattr(train, 'get_world_size', lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(train, 'get_rank', lambda: rank)
        shares.append(list(make_batches(23, 6, 2, -1, 4)))
    for batch, *parts in zip(planned, *shares):
        assert [len(part) for part in parts] == [2, 2, 2] and sorted(sum(parts, [])) == sorted(batch)
    with pytest.raises(UserError, match='2 clips cannot be split over 3 processes'):
        make_batches(2, 6, 2, -1, 4)


@pytest.mark.parametrize('world_size, options, message', [
    (1, {}, None), (8, dict(batch_size=48), None), (8, dict(batch_size=36), '--batch-size 36 must be a multiple of 8'),
    (16, dict(batch_size=32), 'at least 48'), (1, dict(batch_size=2), 'at least 3'),
    (2, dict(batch_size=2, method='er'), None), (2, dict(batch_size=3, method='er'), 'multiple of 2'),
    (4, dict(batch_size=2, method='er'), 'at least 4'), (3, dict(pretrain_batch_size=4), '--pretrain-batch-size 4'),
    (4, dict(pretrain_batch_size=4, pretrain_steps=0), None)])
def test_batch_sizes_that_ranks_cannot_share(world_size, options, message, monkeypatch):
    monkeypatch.setattr(train, 'get_world_size', lambda: world_size)
    if message is None:
        return check_batch_sizes(Config(**options))
    with pytest.raises(UserError, match=message):
        check_batch_sizes(Config(**options))


# ---------------------------------------------------------------------------------------- mistakes

@pytest.mark.parametrize('words, message', [
    ('--dataset vggsound', 'vggsound.csv'), ('--device cuda:99', 'GPUs'), ('--device qpu', 'unknown device'),
    ('--init nowhere.pt', 'no such file'), ('--out file/run', '--out file/run cannot be written'),
    ('--cache file/cache', '--cache file/cache cannot be written'), ('--memory-size 1000000000000', '--memory-size')])
def test_mistakes_end_with_a_message(words, message, tmp_path, here):
    (tmp_path / 'file').write_text('')
    code, _, err = here([*SHORT, *words.split()], tmp_path)
    assert code == 2 and message in err and 'Traceback' not in err and len(err.strip().splitlines()) <= 12, err


# --------------------------------------------------------------------------------------- files

def test_bad_clips_are_skipped_and_counted(files, tmp_path, here):
    folder = tmp_path / 'some'
    shutil.copytree(files, folder)
    clips = sorted((folder / 'video').glob('*.mp4'))
    clips[10].write_bytes(b'')
    clips[20].write_bytes(clips[20].read_bytes()[:2000])
    for clip in [clips[0], *clips[30:50]]:
        clip.unlink()
    code, _, err = here(on_files(folder, '--out', 'run'), tmp_path)
    assert code == 2 and '--max-bad' in err and 'Traceback' not in err
    code, out, err = here(on_files(folder, '--out', 'run', '--steps', '1', '--pretrain-steps', '1', '--max-bad', '0.5',
                                   '--method', 'er', '--batch-size', '100'), tmp_path)
    assert code == 0 and '23 clips were skipped: run/skipped.txt' in out, err
    assert '--batch-size 100: ash has only' in out
    assert out.count('--chunk has no effect here: it applies to flava, flava+\n') == 1             # of TINY
    skipped = (tmp_path / 'run/skipped.txt').read_text()
    assert len(skipped.splitlines()) == 23 and all(clips[i].name in skipped for i in (0, 10, 20))


CLIPS = ROOT.parent / 'shared' / 'clips' / 'vggsound'
needs_clips = pytest.mark.skipif(not CLIPS.exists(), reason='the real clips (../shared/clips) are missing')


@needs_clips
@pytest.mark.slow
def test_real_clips_at_the_small_size(tmp_path, here):
    """--size small has options for the built-in data, such as candidate sets, which files must not get."""
    code, _, err = here(['--dataset', 'vggsound', '--data', CLIPS, '--tasks', CLIPS / 'tasks.csv', '--size', 'small',
                         '--steps', '1', '--pretrain-steps', '0', '--device', 'cpu', '--out', 'run'], tmp_path)
    assert code == 0, err
    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['tasks'] == ['music', 'people', 'animals', 'others'] and results['candidates'] == 6


@needs_clips
@pytest.mark.slow
def test_real_clips_under_the_papers_tasks(tmp_path, here):
    """Half of the clips are of no task: the initial pre-training set."""
    code, out, err = here(['--dataset', 'vggsound', '--data', CLIPS, *TINY, '--epochs', '1', '--pretrain-epochs', '1',
                           '--workers', '0', '--method', 'flava+', '--out', 'run'], tmp_path)
    assert code == 0 and 'initial pre-training saved in cache' in out, err
    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['candidates'] == 3 and results['clips_left_out'] == 0
