"""Processes that read clips: how many, what they hear of signals, and what is said when one hangs or dies (ours).

In:  a data set and batches of its keys; or jobs, one a clip.
Out: the batches, loaded; or what was found of each job, in order.
"""
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from patches import UserError, rank

MOST_WORKERS = 32            # each may take a gigabyte (`data.py`); and of prepared clips, a few feed any GPU
AHEAD, IN_USE = 2, 2         # batches that each worker loads ahead; those that this process holds, or is about to
TOO_LONG = 300               # seconds, for a clip that is tested or prepared, or until a batch is there
SHARED, ENOUGH = '/dev/shm', 2 ** 34     # where batches come through; bytes of it that are enough for any batches
RAISE = 'Start the container with more of it (docker run --shm-size 8g), or load without processes: --workers 0'


def count_workers(dataset, wanted):
    """How many processes load clips: as many as wanted; for -1, a core each, but for one that is left to this process,
    and as many fewer as torchrun started others; none for shapes, which are made faster than they are sent."""
    there = cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if wanted > there and rank() == 0:
        say_once(f'--workers {wanted}: for so many processes there are {there} cores, so some only wait for others')
    if wanted >= 0:
        return wanted
    mine = there - 1
    return 0 if dataset == 'shapes' else max(1, min(mine, MOST_WORKERS))


def cores(groups=Path('/sys/fs/cgroup'), own=Path('/proc/self/cgroup')):
    """How many cores this process may use: by its affinity, and by the share of their time that a container or a
    scheduler grants. On Linux; elsewhere, all."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(':', 2)                  # '' of version 2, cpu,cpuacct or others of version 1
        group = groups / controllers / path.lstrip('/')
        for folder in (group, *group.parents):                     # each of which may grant less
            quota = [word for name in ('cpu.max', 'cpu.cfs_quota_us', 'cpu.cfs_period_us')
                     for word in ((folder / name).read_text().split() if (folder / name).is_file() else ())]
            if quota and quota[0] not in ('max', '-1'):
                mine = min(mine, int(quota[0]) // int(quota[1]))
    return max(1, mine)


# ---------------------------------------------------------------------------------------- batches

class Loader(DataLoader):
    """Batches, as lists of a data set's keys → what the data set has of them, loaded by so many processes.

    pin: for copies to a GPU that need not be waited for. `said` has a sentence where shared memory allows fewer."""

    def __init__(self, dataset, batches, workers, pin=False):
        workers, ahead = fitting(dataset, batches, workers)
        super().__init__(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin,
                         prefetch_factor=ahead if workers else None, timeout=TOO_LONG if workers else 0,
                         worker_init_fn=_only_obey_parent,
                         generator=torch.Generator())    # its own: workers' seeds must not use up the masks' randomness

    def __iter__(self):
        # Schedulers and terminals signal all processes at once; but it is with its workers that this one finishes its
        # step. They start with these signals blocked, and remain so.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield from batches
        except UserError as error:                                 # of a worker: with the worker's traceback around it
            raise UserError(str(error).rpartition('UserError: ')[2].strip()) from None


def waiting(loaded, waits):
    """The batches of a loader; the seconds that each was waited for join the list `waits`.

    It is this process that waits. A GPU is given its work ahead and may still be at the step before, so it stands idle
    for that long at most."""
    asked = time.perf_counter()
    for batch in loaded:
        waits.append(time.perf_counter() - asked)
        yield batch
        asked = time.perf_counter()


def _only_obey_parent(worker):
    """In a worker: SIGTERM ends it when its parent sends it; so does the parent's death. (Linux; else neither does.)"""
    parent = os.getppid()

    def listen():
        while True:
            heard = signal.sigtimedwait({signal.SIGTERM}, 5)
            if os.getppid() != parent or heard and heard.si_pid == parent:
                os._exit(0)                                        # which is no failure to torch
    if hasattr(signal, 'sigtimedwait'):
        threading.Thread(target=listen, daemon=True).start()


def fitting(dataset, batches, workers):
    """→ how many workers, and how many batches ahead of each, have room in the shared memory that batches come through:
    a container may have little of it. Raises UserError where it has none."""
    free = _free(SHARED) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    batch = next(iter(batches), None) if workers and free < ENOUGH else None
    if not batch:
        return workers, AHEAD
    size = len(batch) * sum(value.nbytes for value in dataset[batch[0]].values() if torch.is_tensor(value))
    room = free // max(1, size) - IN_USE
    if room < 1:
        raise UserError(f'{SHARED} has {free / 1e6:.0f} MB free, too few for batches of {size / 1e6:.0f} MB. {RAISE}')
    if room < workers and rank() == 0:
        say_once(f'{SHARED} has room for {room} processes that load clips, not {workers}. {RAISE}')
    return min(workers, room), AHEAD if room >= AHEAD * workers else 1


def _free(folder):
    try:
        room = os.statvfs(folder)
    except OSError:                                                # not Linux: no such limit
        return 2 ** 60
    return room.f_bavail * room.f_frsize


say_once = functools.cache(tqdm.write)


def why_loading_failed(error):
    """What a RuntimeError means that comes of workers, as a sentence for the user; None of others. It may come up
    anywhere, for torch looks after its workers by a signal."""
    text = str(error)
    if 'DataLoader timed out' in text:
        workers = multiprocessing.active_children()
        names = ', '.join(sorted({name for worker in workers for name in _files_of(worker.pid)})) or 'a clip'
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)              # torch need not tell of their end
        for worker in workers:
            worker.kill()                                          # else this process would wait for them
        return (f'no batch was loaded for {TOO_LONG} s: reading hangs at {names}. Play it, or take it away; of a disk '
                'that is this slow, ask for smaller batches')
    if 'Bus error' in text or 'shared memory' in text or '/torch_' in text:
        return f'the shared memory that batches come through ({SHARED}) is full. {RAISE}'
    if 'DataLoader worker' in text and ('killed' in text or 'exited' in text):
        return ('a process that loads clips was killed, most likely for lack of memory: try fewer of them (--workers), '
                f'or a smaller batch ({text.splitlines()[0].strip()})')
    return None


def _files_of(process):
    """Names of the files that another process, but not this one, has open: those that it reads (Linux)"""
    def opened(number):
        with contextlib.suppress(OSError):
            return {os.readlink(link) for link in Path(f'/proc/{number}/fd').iterdir()}
        return set()
    return {os.path.basename(file) for file in opened(process) - opened('self')
            if os.path.isfile(file) and not file.startswith('/dev/')}


# ------------------------------------------------------------------------------------------- jobs

def in_processes(do, jobs, workers, felled):
    """do(job) of each job, in order, done by so many processes; `felled` of one that fells its process, or takes too
    long. When a process dies, the next jobs are done again, by one process alone, so that it is known which it is."""
    alone = False
    while jobs:
        batch = jobs[:4 * workers] if alone else jobs[:10_000]     # of millions, not all wait in a queue
        # Spawned processes, for a forked copy of a process that has threads or a GPU may hang.
        pool = ProcessPoolExecutor(1 if alone else workers, multiprocessing.get_context('spawn'), _begin)
        done = 0
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})     # Ctrl-C is the first process' matter: those
            results = pool.map(functools.partial(_guarded, do), batch)    # that it starts now do not hear of it
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for result in results:
                yield result
                done += 1
            alone = False
        except BrokenProcessPool:
            if alone:
                yield felled
                done += 1
            alone = not alone
        finally:
            pool.shutdown(cancel_futures=True)
        jobs = jobs[done:]


def _begin():
    """When the first process is killed, none goes on."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(1)


def _guarded(do, job):
    """do(job), in a process that ends where a decoder hangs: nothing gentler would stop it."""
    signal.alarm(TOO_LONG)
    try:
        return do(job)
    finally:
        signal.alarm(0)
