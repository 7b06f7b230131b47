"""For tests of runs: train.py in its own process or in this one, tiny options, and a comparison of two checkpoints."""
import os
import signal
import subprocess
import sys
import time

import torch

from conftest import ROOT, render_once

TINY = ('--size small --image-size 32 --num-frames 2 --audio-frames 64 --mel-bins 32 --frame-shift 62 --embed-dim 16 '
        '--num-heads 2 --encoder-depth 1 --fusion-depth 1 --decoder-embed-dim 16 --decoder-depth 1 '
        '--decoder-num-heads 2 --avm-heads 2 --test-clips 6 --candidate-sets 1 --batch-size 8 '
        '--memory-size 20 --pretrain-batch-size 8 --chunk 2 --device cpu').split()
METHODS = ['flava', 'flava+', 'finetune', 'multitask', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump']
REPLAY = [method for method in METHODS if method not in ('finetune', 'multitask')]
CLIPS = ROOT.parent / 'shared' / 'clips' / 'vggsound'
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone')   # on a free port
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


def start(arguments, folder, launcher=(sys.executable,)):
    """train.py in its own process → Popen"""
    command = [*launcher, str(ROOT / 'train.py'), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ONE_THREAD)


def train(arguments, folder, launcher=(sys.executable,)):
    """train.py in its own process, to its end → exit code, stdout, stderr"""
    process = start(arguments, folder, launcher)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def wait_until(condition, process, seconds=120):
    """Wait for a condition while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


class Here:
    """train.py's main in this process: saves the seconds of imports. → exit code, stdout, stderr"""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        render_once(monkeypatch)

    def __call__(self, arguments, folder):
        import train as program
        self.monkeypatch.chdir(folder)
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        code = 0
        try:
            program.main([str(a) for a in arguments])
        except SystemExit as stopped:
            code = stopped.code
        finally:
            for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
                signal.signal(s, handler)
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err


def without_pictures(monkeypatch):
    """Do not draw figures and reports: they take seconds, and other tests draw them."""
    monkeypatch.setattr('downstream.pictures.draw', lambda *run: [])
    monkeypatch.setattr('downstream.report.write', lambda folder: [])


def on_files(files, *more):
    """Options for a run on the files of the fixture `files`, with a checkpoint after every step."""
    return ['--dataset', 'vggsound', '--data', files, '--tasks', files / 'tasks.csv', *TINY, '--epochs', '1',
            '--pretrain-epochs', '2', '--workers', '0', '--save-every', '0', *more]


def flatten(x, at=''):
    """Nested dictionaries and lists → [(place, value)]"""
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, (list, tuple)) else None
    return [(at, x)] if items is None else [pair for key, y in items for pair in flatten(y, f'{at}.{key}')]


def same_state(first, second, has_memory=True):
    """Whether weights, memory, optimizer and random states of two checkpoints are equal bit for bit."""
    states = []
    for file in (first, second):
        saved = torch.load(file, weights_only=True)
        states.append(flatten({key: saved[key] for key in ('weights', 'method', 'optimizer', 'rank_state')
                               if key in saved}))
    assert states[0] and any('memory.rows' in at and len(x) for at, x in states[0]) == has_memory
    return len(states[0]) == len(states[1]) and all(
        a == b and (torch.equal(x, y) if torch.is_tensor(x) else x == y) for (a, x), (b, y) in zip(*states))
