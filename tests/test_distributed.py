"""Two processes: the gradients of one, every method, a stop that reaches both, resuming on another number of them."""
import os
import signal
import subprocess

import psutil
import pytest
import torch

from config import Config, UserError
from conftest import ROOT
from running import ONE_THREAD, TINY, TORCHRUN, on_files, start, wait_until
from utils import distributed
from utils.checkpoint import read_checkpoint


@pytest.mark.slow
def test_two_processes_train_every_method_as_one_would(tmp_path):
    """They stop, resume, and refuse the same things on both ranks: see two_processes.py."""
    options = [*TINY, '--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '8', '--test-clips', '2',
               '--save-every', '0']
    done = subprocess.run([*TORCHRUN, str(ROOT / 'tests/two_processes.py'), *options], cwd=tmp_path,
                          capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_process_continues(files, tmp_path, here, no_pictures):
    """Both save the same step. One process continues with both memories."""
    options = on_files(files, '--epochs', '4', '--save-every', '1000', '--log-every', '1', '--out', 'run', '--resume')
    run = tmp_path / 'run'
    process = start(options, tmp_path, TORCHRUN)
    wait_until(lambda: (run / 'log.jsonl').exists() and '"stream"' in (run / 'log.jsonl').read_text(), process)
    workers = [child for child in psutil.Process(process.pid).children() if 'train.py' in ' '.join(child.cmdline())]
    os.kill(workers[-1].pid, signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and 'the same command with --resume continues' in err, err
    state = read_checkpoint(run / 'last.pt')
    step, memory = state['global_step'], state['rank_state']['memory']
    assert state['phase'] == 'stream' and (run / f'last.process1.stream.step{step}.pt').exists()
    assert memory['capacity'] == 10                                # 20 pairs, divided over two processes

    code, out, err = here(options, tmp_path)
    assert code == 0 and 'was saved by 2 processes and continues with 1' in out, err
    state = read_checkpoint(run / 'last.pt')
    steps = state['global_step'] - step
    assert state['rank_state']['memory']['capacity'] == 20 and steps > 0
    assert state['rank_state']['memory']['seen'] == 2 * memory['seen'] + 8 * steps
    assert not list(run.glob('last.process*')) and (run / 'results.json').exists()


def test_mistakes_with_torchrun(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UserError, match='RANK is set, but not .*WORLD_SIZE'):
        distributed.init_distributed(Config(device='cpu'))
    monkeypatch.setattr(distributed, 'get_device', torch.device)
    with pytest.raises(UserError, match='under torchrun each process has its own GPU'):
        distributed.init_distributed(Config(device='cuda:1'))
