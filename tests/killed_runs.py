"""Runs of two processes, each killed once at a random moment, resumed, and compared with a run that was not killed.

    python tests/killed_runs.py [--runs 20] [--seed N]

SIGTERM to one process, SIGTERM to all, or SIGKILL to one. The exit code is 1 if results differ by a byte, or if a
process still runs a minute after the signal.
"""
import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from running import TINY, TORCHRUN, start


def kill(process, number):
    """Send a signal, of a kind by the number → whether all processes end within a minute"""
    workers = psutil.Process(process.pid).children(recursive=True)
    processes = [psutil.Process(process.pid), *workers]
    for target in processes if number % 3 == 0 else [random.choice(workers or processes)]:
        target.send_signal(signal.SIGKILL if number % 3 == 2 else signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=60)
    process.communicate(timeout=300)
    return all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)


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
        start([*base, '--out', 'whole', '--cache', 'whole-cache'], folder, TORCHRUN).communicate(timeout=400)
        seconds = time.monotonic() - begin
        expected = (Path(folder) / 'whole/results.json').read_bytes()
        for number in range(args.runs):
            options = [*base, '--out', f'run{number}', '--cache', f'cache{number}', '--resume']
            process = start(options, folder, TORCHRUN)
            time.sleep(random.uniform(0.1, 0.95) * seconds)
            ended = process.poll() is not None or kill(process, number)
            _, err = start(options, folder, TORCHRUN).communicate(timeout=400)
            results = Path(folder) / f'run{number}/results.json'
            same = results.exists() and results.read_bytes() == expected
            failed += not (same and ended)
            print(f'{number}: same results: {same}, all processes ended: {ended}', flush=True)
            if not same:
                print(err[-2000:])
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
