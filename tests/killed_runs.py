"""Runs of two processes, each killed once at a random moment, resumed, and compared with a run that was not killed.

    python tests/killed_runs.py [--runs 20] [--seed N]

SIGTERM to one process, SIGTERM to all, or SIGKILL to one. The exit code is 1 if results differ by a byte, or if a
process still runs a minute after the signal.
"""
import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from running import TINY, TORCHRUN, start, train


def kill(process, number):
    """Send a signal, of a kind by the number → whether all processes end within a minute"""
    workers = psutil.Process(process.pid).children(recursive=True)
    targets = [process.pid, *(worker.pid for worker in workers)] if number % 3 == 0 else \
        [random.choice(workers or [process]).pid]
    for target in targets:
        os.kill(target, signal.SIGKILL if number % 3 == 2 else signal.SIGTERM)
    _, alive = psutil.wait_procs([psutil.Process(process.pid), *workers], timeout=60)
    process.communicate(timeout=300)
    return not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--runs', type=int, default=20)
    parser.add_argument('--seed', type=int, default=random.randrange(2 ** 32))
    args = parser.parse_args()
    print(f'--seed {args.seed}')
    random.seed(args.seed)
    base, failed = [*TINY, '--steps', '8', '--pretrain-steps', '4', '--clips-per-task', '80', '--save-every', '0.01'], 0
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        assert train([*base, '--out', 'whole', '--cache', 'whole-cache'], folder, TORCHRUN)[0] == 0
        seconds = time.monotonic() - begin
        for number in range(args.runs):
            options = [*base, '--out', f'run{number}', '--cache', f'cache{number}', '--resume']
            process = start(options, folder, TORCHRUN)
            time.sleep(random.uniform(0.1, 0.95) * seconds)
            ended = kill(process, number) if process.poll() is None else True
            code, _, err = train(options, folder, TORCHRUN)
            files = [Path(folder) / run / 'results.json' for run in ('whole', f'run{number}')]
            same = code == 0 and files[0].read_bytes() == files[1].read_bytes()
            failed += not (same and ended)
            print(f'{number}: {"same results" if same else "OTHER RESULTS"}{"" if ended else ", a process survived"}\n'
                  f'{err[-2000:] if code else ""}', flush=True)
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
