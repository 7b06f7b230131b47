"""For tests of runs: train.py in its own process, tiny options, and a comparison of two checkpoints."""
import os
import subprocess
import sys
import time

import torch

from conftest import ROOT

TINY = ('--size small --image-size 32 --num-frames 2 --audio-frames 64 --mel-bins 32 --frame-shift 62 --embed-dim 16 '
        '--num-heads 2 --encoder-depth 1 --fusion-depth 1 --decoder-embed-dim 16 --decoder-depth 1 '
        '--decoder-num-heads 2 --avm-heads 2 --test-clips 6 --candidate-sets 1 --batch-size 8 '
        '--memory-size 20 --pretrain-batch-size 8 --chunk 2 --device cpu').split()
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone')   # on a free port
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


def start(arguments, folder, launcher=(sys.executable,)):
    """train.py in its own process → Popen"""
    command = [*launcher, str(ROOT / 'train.py'), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ONE_THREAD)


def wait_until(condition, process, seconds=120):
    """Wait for a condition while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def on_files(files, *more):
    """Options for a run on the files of the fixture `files`, with a checkpoint after every step."""
    return ['--dataset', 'vggsound', '--data', files, '--tasks', files / 'tasks.csv', *TINY, '--epochs', '1',
            '--pretrain-epochs', '2', '--workers', '0', '--save-every', '0', *more]


def assert_same_state(first, second):
    """Weights, memory, optimizer and random states of two checkpoints are equal bit for bit."""
    states = []
    for file in (first, second):
        saved = torch.load(file, weights_only=True)
        states.append({key: saved[key] for key in ('weights', 'method', 'optimizer', 'rank_state') if key in saved})
    torch.testing.assert_close(*states, rtol=0, atol=0)
