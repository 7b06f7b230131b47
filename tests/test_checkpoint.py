"""A run on disk: atomic files, the lock, interrupted and killed runs, changed options."""
import errno
import json
import os
import random
import signal
import time

import pytest
import torch

from config import UserError
from running import TINY, assert_same_state, on_files, start, wait_until
from utils.checkpoint import read_checkpoint, run_lock, save_atomically, write_text

pytestmark = pytest.mark.usefixtures('no_pictures')


# ---------------------------------------------------------------------------------- files and locks

@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left'), RuntimeError('as torch reports it')])
def test_a_failed_write_leaves_the_old_file_intact(error, tmp_path, monkeypatch):
    path, save = tmp_path / 'last.pt', torch.save
    save_atomically(dict(x=torch.ones(3)), path)

    def fails(content, file):
        save(content, file)
        raise error
    monkeypatch.setattr(torch, 'save', fails)
    with pytest.raises(UserError, match=f'cannot write {path}.*is intact.*--resume'):
        save_atomically(dict(x=torch.zeros(3)), path)
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


# ------------------------------------------------------------------------------------ interruptions

@pytest.mark.slow
def test_killed_twice_a_run_gives_the_same_results(files, tmp_path, here):
    """Decoding, augmentation, initial pre-training, memory, selection, optimizer: bit for bit, with data loader
    processes and without."""
    options = on_files(files, '--out', 'killed', '--cache', 'cache2', '--resume')
    last, generator, kills = tmp_path / 'killed/last.pt', random.Random(os.getpid()), 0
    for _ in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(options, tmp_path)
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 1))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills, 'the run ended before it could be killed'
    code, _, err = here(options, tmp_path)
    assert code == 0, err
    code, _, err = here(on_files(files, '--out', 'straight', '--cache', 'cache1', '--workers', '1'), tmp_path)
    assert code == 0, err
    straight, killed = tmp_path / 'straight', tmp_path / 'killed'
    assert (straight / 'results.json').read_bytes() == (killed / 'results.json').read_bytes()
    assert_same_state(straight / 'last.pt', killed / 'last.pt')
    steps = [[json.loads(line)['global_step'] for line in (run / 'log.jsonl').read_text().splitlines()]
             for run in (straight, killed)]
    assert steps[0] == steps[1] == sorted(set(steps[0]))


def test_a_checkpoint_that_is_cut_short_is_not_used(tmp_path, here, monkeypatch):
    """As a kill does it, when half of the bytes are written."""
    options = [*TINY, '--steps', '1', '--pretrain-steps', '2', '--clips-per-task', '8', '--save-every', '0',
               '--method', 'er', '--resume']
    run, save, calls = tmp_path / 'run', torch.save, [0]

    def save_half(content, file):
        calls[0] += 1
        if calls[0] == 5:
            file.write(b'half')
            raise KeyboardInterrupt
        save(content, file)
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', save_half)
        assert here([*options, '--out', 'run'], tmp_path)[0] == 130
    assert torch.load(run / 'last.pt', weights_only=True)['global_step'] >= 1
    (run / 'last.pt.0a1b.tmp').write_bytes(b'half')    # as SIGKILL leaves it
    (run / 'notes.tmp').write_bytes(b'')               # of the user
    for more in (['--out', 'run'], ['--out', 'straight', '--cache', 'other']):
        code, _, err = here([*options, *more], tmp_path)
        assert code == 0, err
    assert [file.name for file in run.glob('*.tmp')] == ['notes.tmp']
    assert (run / 'results.json').read_bytes() == (tmp_path / 'straight/results.json').read_bytes()


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


# ---------------------------------------------------------------------------------- options of a run

def test_options_of_a_run_that_is_continued(tmp_path, here):
    options = [*TINY, '--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '8', '--method', 'finetune',
               '--out', 'run']
    assert here(options, tmp_path)[0] == 0
    before, path = (tmp_path / 'run/results.json').read_bytes(), tmp_path / 'run/last.pt'
    state = torch.load(path, weights_only=True)

    def refused(reason, *more):
        code, _, err = here([*options, *more], tmp_path)
        return code == 2 and reason in err
    assert refused('already holds a run')
    assert refused('--lr was 0.001, now 0.5', '--lr', '0.5', '--resume')

    # an option that the checkpoint does not know counts as its default; --log-every changes no result
    del state['config']['rank_share']
    torch.save(state, path)
    assert refused('--rank-share was 0.125, now 0.5', '--rank-share', '0.5', '--resume')
    code, _, err = here([*options, '--log-every', '3', '--resume'], tmp_path)
    assert code == 0 and (tmp_path / 'run/results.json').read_bytes() == before, err

    # an option that this version does not know, and a checkpoint without the states of its ranks
    state['config']['option_of_tomorrow'] = 1
    torch.save(state, path)
    assert refused("--option-of-tomorrow was 1, now 'unknown'", '--resume')
    del state['rank_state']
    torch.save(state, path)
    assert refused('written by an older version', '--resume')
