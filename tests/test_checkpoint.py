"""A run on disk: atomic files, the lock, interrupted and killed runs, a full disk, changed options."""
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from config import UserError
from conftest import ROOT
from running import ONE_THREAD, TINY, on_files, same_state, start, wait_until, without_pictures
from utils.checkpoint import check_writable, read_checkpoint, run_lock, save_atomically, write_text


# ---------------------------------------------------------------------------------- files and locks

def test_a_failed_write_leaves_the_old_file_intact(tmp_path, monkeypatch):
    path, save = tmp_path / 'last.pt', torch.save
    save_atomically(dict(x=torch.ones(3)), path)

    def fails(content, file):
        save(content, file)
        raise RuntimeError('the write failed')                     # as torch reports a full disk
    monkeypatch.setattr(torch, 'save', fails)
    with pytest.raises(UserError, match=f'{path}, is intact.*--resume'):
        save_atomically(dict(x=torch.zeros(3)), path)
    with pytest.raises(UserError) as refused:
        save_atomically(dict(x=torch.zeros(3)), tmp_path / 'first.pt')
    assert 'intact' not in str(refused.value)                      # there is none
    assert torch.equal(read_checkpoint(path)['x'], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ['last.pt']


def test_text_is_replaced_as_a_whole(tmp_path):
    for text in ('a longer first\n', 'second'):
        write_text(tmp_path / 'config.json', text)
        assert (tmp_path / 'config.json').read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ['config.json']


def test_the_lock_of_a_run(tmp_path):
    with run_lock(tmp_path / 'run', tmp_path / 'cache'):
        (tmp_path / 'run/config.json').write_text('{}')
        with pytest.raises(UserError, match='another run uses .*run'), run_lock(tmp_path / 'run', tmp_path / 'cache'):
            pass
    with run_lock(tmp_path / 'run', tmp_path / 'cache'):           # free again
        pass
    with pytest.raises(KeyError), run_lock(tmp_path / 'never', tmp_path / 'cache'):
        raise KeyError
    assert not (tmp_path / 'never').exists()                       # a run that never starts leaves no folder


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--out .*file/run cannot be written: Not a directory'):
        check_writable(tmp_path / 'file' / 'run', '--out')
    with pytest.raises(UserError, match='^/proc/run cannot be written'):
        check_writable('/proc/run')


# ------------------------------------------------------------------------------------ interruptions

@pytest.mark.slow
def test_killed_twice_a_run_gives_the_same_results(files, tmp_path, here, monkeypatch):
    """Decoding, augmentation, initial pre-training, memory, selection, optimizer: bit for bit, with data loader
    processes and without."""
    without_pictures(monkeypatch)
    arguments = on_files(files, '--out', 'killed', '--cache', 'cache2', '--resume')
    last, generator, kills = tmp_path / 'killed/last.pt', random.Random(os.getpid()), 0
    for _ in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(arguments, tmp_path)
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 1))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills, 'the run ended before it could be killed'
    code, _, err = here(arguments, tmp_path)
    assert code == 0, err
    code, _, err = here(on_files(files, '--out', 'straight', '--cache', 'cache1', '--workers', '1'), tmp_path)
    assert code == 0, err
    straight, killed = tmp_path / 'straight', tmp_path / 'killed'
    assert (straight / 'results.json').read_bytes() == (killed / 'results.json').read_bytes()
    assert same_state(straight / 'last.pt', killed / 'last.pt')
    steps = [[json.loads(line)['global_step'] for line in (run / 'log.jsonl').read_text().splitlines()]
             for run in (straight, killed)]
    assert steps[0] == steps[1] == sorted(set(steps[0]))


@pytest.mark.slow
def test_a_kill_during_a_checkpoint_loses_that_checkpoint_alone(tmp_path, here, monkeypatch):
    """SIGKILL when half of the bytes are written."""
    without_pictures(monkeypatch)
    options = [*TINY, '--steps', '2', '--pretrain-steps', '2', '--clips-per-task', '16', '--save-every', '0',
               '--method', 'er', '--resume']
    script = f'''
import io, os, signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
save, calls = torch.save, [0]
def save_half(content, file):
    calls[0] += 1
    if calls[0] == 5:
        buffer = io.BytesIO(); save(content, buffer)
        file.write(buffer.getvalue()[:len(buffer.getvalue()) // 2]); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)
torch.save = save_half
import train
train.main({[*options, '--out', 'run']!r})'''
    killed = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True,
                            env=ONE_THREAD)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / 'run').glob('last.pt.*.tmp'))
    assert torch.load(tmp_path / 'run/last.pt', weights_only=True)['global_step'] >= 1
    for more in (['--out', 'run'], ['--out', 'straight', '--cache', 'other']):
        code, _, err = here([*options, *more], tmp_path)
        assert code == 0, err
    assert not list((tmp_path / 'run').glob('*.tmp'))
    assert (tmp_path / 'run/results.json').read_bytes() == (tmp_path / 'straight/results.json').read_bytes()


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_run_is_refused(tmp_path, here):
    options = [*TINY, '--pretrain-steps', '0', '--out', 'run', '--save-every', '100000']
    process = start(options, tmp_path)
    wait_until((tmp_path / 'run/log.jsonl').exists, process)
    code, _, err = here([*options, '--resume'], tmp_path)
    assert code == 2 and 'another run uses run' in err and len(err.strip().splitlines()) == 1, err
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'the same command with --resume continues' in err and 'Traceback' not in err
    assert torch.load(tmp_path / 'run/last.pt', weights_only=True)['global_step'] > 0
    code, _, err = here([*options, '--resume', '--steps', '3'], tmp_path)              # the lock is free again
    assert code == 2 and '--steps was -1, now 3' in err, err


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, here, monkeypatch):
    without_pictures(monkeypatch)
    options = [*TINY, '--steps', '3', '--pretrain-steps', '0', '--clips-per-task', '24', '--save-every', '0',
               '--method', 'er']
    save, calls = torch.save, [0]

    def save_until_full(content, file):
        calls[0] += 1
        if calls[0] == 5:                  # models/0.pt, and last.pt before the first step and after two
            file.write(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device')
        save(content, file)
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', save_until_full)
        code, _, err = here([*options, '--out', 'run'], tmp_path)
    assert code == 2 and 'No space left' in err and 'intact' in err and '--resume' in err and 'Traceback' not in err
    assert torch.load(tmp_path / 'run/last.pt', weights_only=True)['global_step'] == 2
    assert not list((tmp_path / 'run').glob('*.tmp'))
    assert here([*options, '--out', 'run', '--resume'], tmp_path)[0] == here([*options, '--out', 'x'], tmp_path)[0] == 0
    assert (tmp_path / 'run/results.json').read_bytes() == (tmp_path / 'x/results.json').read_bytes()


# ---------------------------------------------------------------------------------- options of a run

@pytest.fixture
def finished(tmp_path, here, monkeypatch):
    """A finished run in tmp_path / 'run', and its options"""
    without_pictures(monkeypatch)
    options = [*TINY, '--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '16', '--method', 'finetune',
               '--out', 'run']
    assert here(options, tmp_path)[0] == 0
    return options


def test_a_run_is_not_overwritten_and_keeps_its_options(finished, tmp_path, here):
    before = (tmp_path / 'run/results.json').read_bytes()
    code, _, err = here(finished, tmp_path)
    assert code == 2 and 'already holds a run' in err and '--resume' in err
    code, _, err = here([*finished, '--lr', '0.5', '--resume'], tmp_path)
    assert code == 2 and '--lr was 0.001, now 0.5' in err
    code, _, err = here([*finished, '--log-every', '3', '--resume'], tmp_path)         # changes no result
    assert code == 0 and (tmp_path / 'run/results.json').read_bytes() == before, err


def test_a_checkpoint_older_than_an_option_continues_with_its_default(finished, tmp_path, here):
    path = tmp_path / 'run/last.pt'
    state = torch.load(path, weights_only=True)
    del state['config']['rank_share']
    torch.save(state, path)
    code, _, err = here([*finished, '--resume'], tmp_path)
    assert code == 0, err
    code, _, err = here([*finished, '--resume', '--rank-share', '0.5'], tmp_path)
    assert code == 2 and '--rank-share was 0.125, now 0.5' in err
    state['config']['option_of_tomorrow'] = 1
    torch.save(state, path)
    code, _, err = here([*finished, '--resume'], tmp_path)
    assert code == 2 and "--option-of-tomorrow was 1, now 'unknown'" in err
    del state['rank_state']
    torch.save(state, path)
    code, _, err = here([*finished, '--resume'], tmp_path)
    assert code == 2 and 'written by an older version' in err
