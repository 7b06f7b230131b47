"""The loop as a user runs it: every method to its end and resumed, several processes, bad clips, real clips."""
import json
import shutil
import signal
import subprocess
import time

import pytest
import torch

import eval as evaluation
from conftest import ROOT
from run import Run
from running import CLIPS, METHODS, ONE_THREAD, TINY, TORCHRUN, on_files, same_state, start, train, without_pictures
from train import plan

REPLAY = [method for method in METHODS if method not in ('finetune', 'multitask')]


@pytest.mark.parametrize('method', METHODS)
def test_every_method_runs_and_resumes(method, tmp_path, here, monkeypatch):
    options = [*TINY, '--steps', '3', '--pretrain-steps', '0', '--method', method, '--save-every', '0']
    code, out, err = here([*options, '--out', 'run'], tmp_path)
    assert code == 0, err
    save, saves = Run.save, [0]

    def save_and_stop(run):                                    # after its 5th and its 11th checkpoint
        save(run)
        saves[0] += 1
        if saves[0] in (5, 11):
            raise KeyboardInterrupt
    monkeypatch.setattr(Run, 'save', save_and_stop)
    without_pictures(monkeypatch)
    codes = [here([*options, '--out', 'stopped', '--resume'], tmp_path)[0] for _ in range(3)]
    assert codes == [130, 130, 0]
    assert (tmp_path / 'run/results.json').read_bytes() == (tmp_path / 'stopped/results.json').read_bytes()
    assert same_state(tmp_path / 'run/last.pt', tmp_path / 'stopped/last.pt', method in REPLAY)
    assert same_state(tmp_path / 'run/models/1.pt', tmp_path / 'stopped/models/1.pt', False)
    if method == 'cls-er':                             # what is kept and evaluated is the stable copy, which has moved
        kept, first, last = (torch.load(tmp_path / 'run' / name, weights_only=True)
                             for name in ('models/6.pt', 'models/0.pt', 'last.pt'))
        key = 'encoder_a.0.attn.qkv.weight'
        stable, trained, plastic = (last['method'][f'{part}.{key}'] for part in ('stable', 'backbone', 'plastic'))
        kept, first = kept['weights'][f'backbone.{key}'], first['weights'][f'backbone.{key}']
        assert torch.equal(kept, stable) and not any(torch.equal(kept, other) for other in (trained, plastic, first))
    results = json.loads((tmp_path / 'run/results.json').read_text())
    rows = 1 if method == 'multitask' else 6
    acc = results['audio_to_video']['R@10']['acc']
    assert len(acc) == rows and all(len(row) == 6 for row in acc) and 'audio to video' in out
    assert (results['audio_to_video']['R@10']['F'] is None) == (method == 'multitask')
    for name in ('config.json', 'log.jsonl', 'table.md', 'figures/stream.png', 'figures/attention.png', 'last.pt'):
        assert (tmp_path / 'run' / name).stat().st_size > 0
    evaluation.main(['run', '--task', 'retrieval', '--device', 'cpu'])         # the models kept are the evaluated ones
    again = json.loads((tmp_path / 'run/eval/retrieval.json').read_text())
    assert again['video_to_audio']['R@5']['acc'] == results['video_to_audio']['R@5']['acc']


def test_batches_are_planned_before_the_phase_begins():
    """Every clip once an epoch, in another order each; the seed decides; the last incomplete batch is dropped."""
    planned = lambda *numbers: list(plan(*numbers))
    batches = planned(23, 5, 3, -1, 4)                 # clips, batch size, epochs, no cap, seed
    assert len(plan(23, 5, 3, -1, 4)) == 12 and [len(batch) for batch in batches] == [5] * 12
    assert batches == planned(23, 5, 3, -1, 4) != planned(23, 5, 3, -1, 5)
    epochs = [[clip for batch in batches[i:i + 4] for clip, _ in batch] for i in (0, 4, 8)]
    assert all(len(set(clips)) == 20 and set(clips) <= set(range(23)) for clips in epochs) and epochs[0] != epochs[1]
    assert len({seed for batch in batches for _, seed in batch}) == 60             # each clip augmented anew
    assert planned(23, 5, 3, 7, 4) == batches[:7] and planned(23, 5, 3, 0, 4) == []
    for done in (0, 3, 4, 9, 12):                                                  # a resumed run goes on anywhere
        rest = plan(23, 5, 3, -1, 4).after(done)
        assert list(rest) == batches[done:] and len(rest) == 12 - done
    assert [len(batch) for batch in planned(3, 5, 2, -1, 4)] == [3, 3]                # a task smaller than a batch


# -------------------------------------------------------------------------------- several processes

def under_two_processes(script, *arguments, folder=None):
    return subprocess.run([*TORCHRUN, str(ROOT / 'tests' / script), *arguments], cwd=folder, capture_output=True,
                          text=True, env=ONE_THREAD)


def test_two_processes_give_the_gradients_of_one():
    done = under_two_processes('two_processes.py')
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'largest difference' in done.stdout


def test_two_processes_run_and_resume(files, tmp_path):
    code, _, err = train(on_files(files, '--out', 'whole', '--cache', 'c1', '--steps', '2'), tmp_path, TORCHRUN)
    assert code == 0, err
    arguments = on_files(files, '--out', 'killed', '--cache', 'c2', '--steps', '2', '--resume')
    process = start(arguments, tmp_path, TORCHRUN)
    while not list((tmp_path / 'killed').glob('last.process1.stream.step[5-9].pt')):
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)                    # torchrun kills its processes
    process.communicate(timeout=60)
    shutil.copytree(tmp_path / 'killed', tmp_path / 'alone')
    code, _, err = train(arguments, tmp_path, TORCHRUN)
    assert code == 0, err
    assert (tmp_path / 'whole/results.json').read_bytes() == (tmp_path / 'killed/results.json').read_bytes()
    assert same_state(tmp_path / 'whole/last.pt', tmp_path / 'killed/last.pt')
    memory = torch.load(tmp_path / 'whole/last.pt', weights_only=True)['own']['memory']
    assert memory['capacity'] == 10                        # 20 pairs, divided over two
    step = torch.load(tmp_path / 'killed/last.pt', weights_only=True)['global_step']
    beside = [file.name for file in (tmp_path / 'killed').glob('last.process*')]
    assert beside == [f'last.process1.stream.step{step}.pt']

    code, out, err = train([*arguments, '--out', 'alone'], tmp_path)            # as one process
    assert code == 0 and 'was saved by 2 processes and goes on with 1: its memory is dealt out anew' in out, err
    state = torch.load(tmp_path / 'alone/last.pt', weights_only=True)
    seen = torch.load(tmp_path / 'whole/last.pt', weights_only=True)['own']['memory']['seen']
    assert state['own']['memory']['capacity'] == 20 and state['own']['memory']['seen'] == 2 * seen
    assert state['global_step'] == step and not list((tmp_path / 'alone').glob('last.process*'))
    assert (tmp_path / 'alone/results.json').exists()


def test_every_method_runs_under_two_processes(tmp_path):
    """And resumes: the script stops each run once. The copies that CLS-ER averages are alike in both processes."""
    done = under_two_processes('two_processes_methods.py', *METHODS, '--', *TINY, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for method in METHODS:
        assert f'{method}: done' in done.stdout
        whole, stopped = tmp_path / 'whole' / method, tmp_path / 'stopped' / method
        assert (whole / 'results.json').read_bytes() == (stopped / 'results.json').read_bytes()
        assert same_state(whole / 'last.pt', stopped / 'last.pt', method in REPLAY)


# --------------------------------------------------------------------------------------- files

def test_bad_clips_are_named_counted_and_left_out(files, tmp_path, here):
    folder = tmp_path / 'some'
    shutil.copytree(files, folder)
    clips = sorted((folder / 'video').glob('*.mp4'))
    clips[0].unlink()
    clips[10].write_bytes(b'')
    clips[20].write_bytes(clips[20].read_bytes()[:2000])
    few = ['--steps', '1', '--pretrain-steps', '1']
    code, out, err = here(on_files(folder, '--out', 'run', *few), tmp_path)
    assert code == 0, err
    for clip in (clips[0], clips[10], clips[20]):
        assert any(line.startswith('left out') and clip.name in line for line in out.splitlines()), out
    assert out.rstrip().endswith('3 clips were left out')
    for clip in clips[30:50]:
        clip.unlink()
    code, out, err = here(on_files(folder, '--out', 'run2'), tmp_path)
    assert code == 2 and '--max-bad' in err and 'Traceback' not in err
    code, out, err = here(on_files(folder, '--out', 'run2', *few, '--max-bad', '0.5'), tmp_path)
    assert code == 0 and '23 clips were left out' in out, err


@pytest.mark.skipif(not CLIPS.exists(), reason='the real clips (../shared/clips) are not here')
@pytest.mark.parametrize('own_tasks, method', [(True, method) for method in METHODS] + [(False, 'flava')])
def test_real_clips(own_tasks, method, tmp_path, here, monkeypatch):
    if method != 'flava':
        without_pictures(monkeypatch)
    more = ['--tasks', CLIPS / 'tasks.csv', '--method', method] if own_tasks else []
    code, out, err = here(['--dataset', 'vggsound', '--data', CLIPS, *more, *TINY, '--epochs', '1',
                           '--pretrain-epochs', '1', '--batch-size', '48', '--workers', '0', '--out', 'run'], tmp_path)
    assert code == 0, err
    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['clips_left_out'] == 0
    if own_tasks:
        assert results['tasks'] == ['music', 'people', 'animals', 'others'] and results['candidates'] == 6
    else:
        assert 'left out' in out and 'initial pre-training is kept' in out
