"""Run by torchrun: every method, to the end, under two processes; and once more, stopped and resumed.

    two_processes_methods.py METHOD ... -- OPTION ...
"""
import os
import sys
from pathlib import Path

import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parent.parent)]
import downstream.pictures
import train
from run import Run

methods, options = sys.argv[1:sys.argv.index('--')], sys.argv[sys.argv.index('--') + 1:]
save, leave, start, device = Run.save, train.leave_processes, train.start_processes, []
saves = [0]


def save_and_stop(run):
    save(run)
    saves[0] += 1
    if saves[0] == 4:
        raise KeyboardInterrupt


def start_once(cfg):
    """One group for all runs."""
    return device[0] if device else device.append(start(cfg)) or device[0]


downstream.pictures.draw = lambda *run: []           # seconds each, and drawn in other tests
train.start_processes, train.leave_processes = start_once, lambda: None
os._exit = sys.exit                                   # how several processes leave: here the next run follows
for method in methods:
    own = [*options, '--method', method, '--steps', '2', '--pretrain-steps', '0', '--cache', 'cache',
           '--save-every', '0']
    train.main([*own, '--out', f'whole/{method}'])
    saves[0], Run.save = 0, save_and_stop
    try:
        train.main([*own, '--out', f'stopped/{method}'])
        raise AssertionError('was not stopped')
    except SystemExit as stopped:
        assert stopped.code == 130
    dist.barrier()                              # the first process may still be writing what the other is about to read
    Run.save = save
    train.main([*own, '--out', f'stopped/{method}', '--resume'])
    if dist.get_rank() == 0:
        print(f'{method}: done')
leave()
