"""Worker processes that load, test or prepare clips: how many, and what happens when one hangs or crashes (ours).

In:  a data set and batches of its keys; or jobs, one per clip.
Out: the loaded batches; or the result of each job, in order.
"""
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from multiprocessing import resource_tracker

import torch
from pebble import ProcessExpired, ProcessPool
from torch.utils.data import DataLoader

from config import UserError
from utils.distributed import get_rank, print_once

MAX_WORKERS = 32        # each may take a gigabyte, and prepared clips need only a few
TIMEOUT = 300           # seconds, for a batch to arrive and for a clip to be checked or prepared
START_TIMEOUT = 30      # seconds, for a worker to start
CHUNK = 10_000          # jobs that are queued at once


def count_workers(dataset, requested):
    """Number of data loader processes. requested: --workers; -1: one per core but one, shared by the ranks of this
    machine, and none for shapes, which are drawn faster than they are sent."""
    import joblib                                      # not above: it takes a sixth of a second

    cores = joblib.cpu_count() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))      # of those that a container grants
    if requested > cores and get_rank() == 0:
        print_once(f'--workers {requested} is more than the {cores} cores available to each rank')
    if requested >= 0:
        return requested
    return 0 if dataset == 'shapes' else max(1, min(cores - 1, MAX_WORKERS))


# ------------------------------------------------------------------------------ signals of workers

@contextlib.contextmanager
def signals_blocked(*signals):
    """Processes and threads that start within block these signals. Terminals and schedulers signal all processes at
    once, but the parent still needs its workers to finish its step."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(number=0):
    """Run at the start of each worker. It ends when its parent ends. Where SIGTERM is blocked, only the parent's own
    one ends it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process().pid                  # os.getppid() is another one if it has ended

    def watch_parent():
        while os.getppid() == parent:
            received = signal.sigtimedwait({signal.SIGTERM}, 1)
            if received and received.si_pid == parent:
                break
        os._exit(0)
    if hasattr(signal, 'sigtimedwait'):                            # not on macOS
        threading.Thread(target=watch_parent, daemon=True).start()


def start_job_worker(started):
    """Run at the start of each worker of `run_jobs`. started: a semaphore that counts them"""
    start_worker()
    started.release()


class Spawned(multiprocessing.context.SpawnProcess):
    """A process that does not import the script that started it again: all that it runs is in modules. So scripts and
    notebooks need no `if __name__ == '__main__'`."""

    def start(self):
        script, sys.modules['__main__'] = sys.modules['__main__'], types.ModuleType('__main__')
        try:
            super().start()
        finally:
            sys.modules['__main__'] = script


class SpawnContext(multiprocessing.context.SpawnContext):
    Process = Spawned


# ---------------------------------------------------------------------------------------- batches

class Loader(DataLoader):
    """A DataLoader of batches that are given as lists of the data set's keys. pin: into pinned memory, for
    asynchronous copies to a GPU."""

    def __init__(self, dataset, batches, workers, pin=False):
        # a generator of its own: seeding the workers must not advance torch's global random state
        super().__init__(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin,
                         timeout=TIMEOUT if workers else 0, worker_init_fn=start_worker, generator=torch.Generator())
        if workers and multiprocessing.get_start_method() != 'fork':                   # macOS
            self.multiprocessing_context = SpawnContext()

    def __iter__(self):
        with signals_blocked(signal.SIGINT, signal.SIGTERM):
            batches = super().__iter__()
        try:
            yield from batches
        except UserError as error:                                 # of a worker: torch adds the worker's traceback
            raise UserError(str(error).rpartition('UserError: ')[2].strip()) from None


def timed(loader, waits):
    """Iterate over the batches of a loader and append to `waits` the seconds that each took to arrive. A GPU works
    asynchronously, so it is idle for at most that long."""
    start = time.perf_counter()
    for batch in loader:
        waits.append(time.perf_counter() - start)
        yield batch
        start = time.perf_counter()


# ------------------------------------------------------------------------------------------- jobs

def run_jobs(function, jobs, workers, crash_result):
    """Iterate over function(*job) of each job, in order; `crash_result` in place of a job whose process dies or takes
    longer than TIMEOUT. workers: processes; 0: this one, without a timeout."""
    if not workers or not jobs:
        yield from itertools.starmap(function, jobs)
        return
    resource_tracker.ensure_running()          # now: when it starts, it unblocks SIGINT, also for the workers
    # spawn: a fork of a process with threads or a GPU may hang
    context, processes = SpawnContext(), min(workers, len(jobs))
    started = context.Semaphore(0)
    pool = ProcessPool(processes, initializer=start_job_worker, initargs=[started], context=context)
    try:
        for start in range(0, len(jobs), CHUNK):
            with signals_blocked(signal.SIGINT):                   # the pool starts its processes here
                futures = [pool.schedule(function, job, timeout=TIMEOUT) for job in jobs[start:start + CHUNK]]
            for future in futures:
                try:
                    yield future.result()
                except (ProcessExpired, TimeoutError):
                    yield crash_result
    finally:
        # a worker that is stopped before it has started prints a traceback
        for _ in range(processes):
            if not started.acquire(timeout=START_TIMEOUT):
                break
        pool.stop()                                                # not close: that would wait for jobs in the queue
        pool.join()
