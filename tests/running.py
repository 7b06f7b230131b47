"""Runs as a user starts them, for the tests: in a process of their own or in this one; and whether two are the same."""
import os
import signal
import subprocess
import sys

import torch

from conftest import ROOT, render_once

TINY = ('--size small --image-size 32 --num-frames 2 --audio-frames 64 --mel-bins 32 --frame-shift 62 --embed-dim 16 '
        '--num-heads 2 --encoder-depth 1 --fusion-depth 1 --decoder-embed-dim 16 --decoder-depth 1 '
        '--decoder-num-heads 2 --avm-heads 2 --test-clips 6 --galleries 1 --batch-size 8 '
        '--memory-size 20 --pretrain-batch-size 8 --chunk 2 --device cpu').split()
METHODS = ['flava', 'flava+', 'finetune', 'multitask', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump']
CLIPS = ROOT.parent / 'shared' / 'clips' / 'vggsound'
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone')   # on a free port
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


def start(arguments, folder, launcher=(sys.executable,)):
    """train.py in a process of its own → Popen"""
    command = [*launcher, str(ROOT / 'train.py'), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ONE_THREAD)


def train(arguments, folder, launcher=(sys.executable,)):
    """train.py to its end → exit code, what it said, its errors"""
    process = start(arguments, folder, launcher)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


class Here:
    """train.py's main in this process, which spares the seconds that importing takes."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        render_once(monkeypatch)

    def __call__(self, arguments, folder):
        import train as program
        self.monkeypatch.chdir(folder)
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            program.main([str(a) for a in arguments])
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        finally:
            for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
                signal.signal(s, handler)
        said = self.capsys.readouterr()
        return code, said.out, said.err


def without_pictures(monkeypatch):
    """They take seconds, and one run of each kind has drawn them."""
    monkeypatch.setattr('downstream.pictures.draw', lambda *run: [])


def on_files(files, *more):
    """Options for a run on the files of the fixture `files`, saved after every step."""
    return ['--dataset', 'vggsound', '--data', files, '--tasks', files / 'tasks.csv', *TINY, '--epochs', '2',
            '--pretrain-epochs', '3', '--workers', '1', '--save-every', '0', *more]


def same_state(first, second, has_memory=True):
    """Weights, memory, optimizer and random states of two checkpoints, bit for bit: finer than any result."""
    def flat(x, at=''):
        if isinstance(x, dict):
            return [pair for key in x for pair in flat(x[key], f'{at}.{key}')]
        if isinstance(x, (list, tuple)):
            return [pair for i, y in enumerate(x) for pair in flat(y, f'{at}.{i}')]
        return [(at, x)]
    one, two = ([pair for key, x in torch.load(file, weights_only=True).items()
                 if key in ('weights', 'method', 'optimizer', 'own') for pair in flat(x, key)]
                for file in (first, second))
    assert one and any('memory.rows' in at and len(x) for at, x in one) == has_memory
    return len(one) == len(two) and all(a == b and (torch.equal(x, y) if torch.is_tensor(x) else x == y)
                                        for (a, x), (b, y) in zip(one, two))
