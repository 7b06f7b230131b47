"""The processes that torchrun started, one a GPU: how they begin, agree and end together (ours).

In:  options, signals.
Out: a device, a folder of their own; UserError, where the processes could not train together.
"""
import contextlib
import fcntl
import gc
import os
import re
import resource
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from config import circumstances, open_device
from memory import fits_gpu, full
from patches import UserError, gathered, patient, rank, world
from weights import check_writable


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


def check_memory(cfg, device):
    """Refuse a rehearsal memory that this machine has no room for; say so where other programs have taken the room.
    Raises UserError."""
    found = [full(cfg, name) for name in circumstances(cfg)]
    pairs, each = max(found, key=lambda full: full[1])             # of what is no method, 0 bytes
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    needed, (there, free) = here * pairs * each, machine_memory()
    if fits_gpu(pairs * each, device) or needed <= free:
        return
    told = (f'--memory-size {cfg.memory_size}: {here * pairs:,} pairs of {each:,} bytes are {needed / 1e9:,.2f} GB, '
            f'and this machine has {there / 1e9:.2f} GB')
    if needed > there:
        raise UserError(told)
    say(f'{told}, of which {free / 1e9:.2f} GB are free now')


def machine_memory():
    """Bytes that this machine has, and that are free of them; at most as many as a container may have. Where it is not
    Linux, all are taken as free."""
    there = free = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if Path('/proc/meminfo').exists():
        free = 1024 * int(re.search(r'MemAvailable: *(\d+) kB', Path('/proc/meminfo').read_text())[1])
    limit = Path('/sys/fs/cgroup/memory.max')
    words = limit.read_text().split() if limit.exists() else ['max']
    most = there if words == ['max'] else int(words[0])
    return min(there, most), min(free, most)


# ------------------------------------------------------------------------------ a folder of their own

@contextlib.contextmanager
def claimed(cfg):
    """As long as it lasts, the run's folder is this run's alone. Raises UserError, in all processes, where it is
    another run's, or where one of them cannot write to it or to the cache."""
    with contextlib.ExitStack() as held:
        wrong = ''
        try:
            check_writable(cfg.out, '--out ')
            if rank() == 0:
                held.enter_context(alone(Path(cfg.out)))
            check_writable(cfg.cache, '--cache ')
        except (UserError, OSError) as error:
            wrong = str(error)
        wrong = [of for of in gathered(wrong) if of]
        if wrong:
            raise UserError(wrong[0])
        yield


@contextlib.contextmanager
def alone(folder):
    """A lock on a run's folder, which ends with this process at the latest, however that ends. A run that never began
    leaves no folder. Raises UserError where another process has the lock."""
    lock = folder / '.lock'
    with open(lock, 'w') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)    # not flock: processes that load clips would inherit
        except (BlockingIOError, PermissionError):              # it, and may outlive a killed run by seconds
            raise UserError(f'another run is at work in {folder}: wait until it ends, or name another folder by --out')
        except OSError:
            say(f'{folder} is on a disk that knows no locks: take care that no other run writes there')
        try:
            yield
        finally:
            if not (folder / 'config.json').exists():
                lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
