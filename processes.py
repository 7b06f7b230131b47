"""The processes that torchrun started, one a GPU: how they begin, agree and end together (ours).

In:  options, signals.
Out: a device; UserError, where the processes could not train together.
"""
import gc
import os
import resource
import signal
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm

from config import open_device
from patches import UserError, patient, rank, world


def say(line):
    """A line for the user, from the first process, above any progress bar."""
    if rank() == 0:
        tqdm.write(line)


def start_processes(cfg):
    """Under torchrun, join the other processes. Returns this one's device. Raises UserError."""
    device, several = open_device(cfg.device), 'RANK' in os.environ
    if several and device.index is not None:
        raise UserError(f'--device {cfg.device}: under torchrun each process has a GPU of its own; say cuda')
    if device.type == 'cuda':
        torch.cuda.set_device(device if device.index is not None else int(os.environ.get('LOCAL_RANK', 0)))
        device = torch.device('cuda', torch.cuda.current_device())
    if several:
        gpu = device.type == 'cuda'
        dist.init_process_group('nccl' if gpu else 'gloo', device_id=device if gpu else None)
    return device


def leave_processes():
    """The group's threads must be gone before Python is: killed in the middle of C++ they would abort the process."""
    wait_for_all()
    if dist.is_initialized():
        gc.collect()                                   # what remains of DDP refers to itself, and holds the group
        dist.destroy_process_group()
        patient.cache_clear()


def wait_for_all():
    if dist.is_initialized():
        dist.barrier(group=patient())


def agreed(answer):
    """The first process's answer, for all: what one sees on the disk, the next may see a moment later."""
    answers = [answer]
    if dist.is_initialized():
        dist.broadcast_object_list(answers, group=patient())
    return answers[0]


def stop_gently(run):
    """The first Ctrl-C, or SIGTERM, ends the step, saves and leaves; a second leaves at once. Of several processes, all
    do when one of them is asked to. Those that load clips hear of neither (`streams/workers.py`)."""
    def handler(number, frame):
        if run.stop and world() > 1 and number == signal.SIGTERM:
            return                                     # torchrun passes on what all have heard; if need be, it kills
        if run.stop or not run.stepping:
            raise KeyboardInterrupt
        run.stop = True
        tqdm.write('stopping after this step (again: at once)')
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def check_shares(cfg):
    """Refuse a batch that the processes cannot share evenly, and one with too few pairs of which an AVM could learn: of
    one or two, none is mismatched. Raises UserError."""
    for name, has_avm in (('batch_size', cfg.method.startswith('flava')),
                          ('pretrain_batch_size', cfg.pretrain_steps != 0)):
        size, least = getattr(cfg, name), (3 if has_avm else 1) * world()
        if size % world() or size < least:
            below = size // world() * world()
            fit = ' or '.join(str(n) for n in (below, below + world()) if n >= least and n != size) or least
            why = f'of which each needs {least // world()}' if size < least else 'which cannot share it evenly'
            raise UserError(f'--{name.replace("_", "-")} {size} is not for {world()} process{"es" * (world() > 1)}, '
                            f'{why}: {fit} would do')


def peak_memory(device):
    """GB that this process has held at most: of the GPU, or else of this machine."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == 'darwin' else 1024             # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
