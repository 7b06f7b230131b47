"""Two processes: the gradients of one, every method, a stop that reaches both, resuming on another number."""
import os
import shutil
import signal
import subprocess

import psutil
import pytest
import torch

from conftest import ROOT
from running import METHODS, ONE_THREAD, REPLAY, TINY, TORCHRUN, on_files, same_state, start, train, wait_until
from utils.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


def test_two_processes_train_every_method_as_one_would(tmp_path):
    """And refuse the same things on both ranks. See two_processes.py."""
    options = [*TINY, '--steps', '2', '--pretrain-steps', '0', '--clips-per-task', '16', '--save-every', '0']
    script = str(ROOT / 'tests' / 'two_processes.py')
    done = subprocess.run([*TORCHRUN, script, *METHODS, '--', *options], cwd=tmp_path, capture_output=True, text=True,
                          env=ONE_THREAD)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for method in METHODS:
        assert (tmp_path / 'whole' / method / 'results.json').exists()
    for method in ('flava+', 'gmed', 'cls-er'):
        whole, stopped = tmp_path / 'whole' / method, tmp_path / 'stopped' / method
        assert (whole / 'results.json').read_bytes() == (stopped / 'results.json').read_bytes()
        assert same_state(whole / 'last.pt', stopped / 'last.pt', method in REPLAY)


def test_a_signal_to_one_process_stops_both_and_the_run_resumes(files, tmp_path, here):
    """Both save the same step. The results are those of a run that was not stopped. One process can continue, too."""
    options = on_files(files, '--epochs', '4', '--save-every', '1000', '--log-every', '1', '--workers', '0', '--out', 'run',
                       '--resume')
    run, straight, alone = tmp_path / 'run', tmp_path / 'straight', tmp_path / 'alone'
    process = start(options, tmp_path, TORCHRUN)
    wait_until(lambda: (run / 'log.jsonl').exists() and '"stream"' in (run / 'log.jsonl').read_text(), process)
    workers = [child for child in psutil.Process(process.pid).children() if 'train.py' in ' '.join(child.cmdline())]
    os.kill(workers[-1].pid, signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and 'the same command with --resume continues' in err, err
    stopped = read_checkpoint(run / 'last.pt')
    step = stopped['global_step']
    assert stopped['phase'] == 'stream' and (run / f'last.process1.stream.step{step}.pt').exists()
    assert stopped['rank_state']['memory']['capacity'] == 10       # 20 pairs, divided over two
    shutil.copytree(run, alone)

    # two processes continue bit for bit
    for more in ([], ['--out', 'straight', '--cache', 'other']):
        code, _, err = train([*options, *more], tmp_path, TORCHRUN)
        assert code == 0, err
    assert (run / 'results.json').read_bytes() == (straight / 'results.json').read_bytes()
    assert same_state(run / 'last.pt', straight / 'last.pt')
    assert len(list(run.glob('last.process1.*.pt'))) == 1

    # one process continues with both memories
    code, out, err = here([*options, '--out', 'alone'], tmp_path)
    assert code == 0 and 'was saved by 2 processes and continues with 1' in out, err
    one, two = (torch.load(folder / 'last.pt', weights_only=True) for folder in (alone, straight))
    assert one['rank_state']['memory']['capacity'] == 20 and one['global_step'] == two['global_step'] >= step
    assert one['rank_state']['memory']['seen'] == 2 * two['rank_state']['memory']['seen']
    assert not list(alone.glob('last.process*'))
