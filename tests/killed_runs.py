"""Runs under two processes, each killed once at a random moment, resumed, and compared with one that nobody killed.

    python tests/killed_runs.py [--runs 20] [--seed N]

SIGTERM to one process, SIGTERM to the group, or SIGKILL to one. A run whose results differ by a byte, or that is not
gone a minute after the signal, is named, and the exit code is 1.
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

WAYS = ('SIGTERM to one', 'SIGTERM to the group', 'SIGKILL to one')


def children_of(process):
    """Numbers of the processes that it started, oldest first (Linux)"""
    return [int(number) for number in Path(f'/proc/{process}/task/{process}/children').read_text().split()]


def launch(options, folder):
    from running import ONE_THREAD, TORCHRUN
    return subprocess.Popen([*TORCHRUN, str(ROOT / 'train.py'), *options], cwd=folder, env=ONE_THREAD, text=True,
                            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process, way):
    """→ seconds until torchrun and all that it started were gone"""
    workers, asked = children_of(process.pid), time.monotonic()
    if way == 'SIGTERM to the group':
        os.killpg(process.pid, signal.SIGTERM)
    elif workers:
        os.kill(random.choice(workers), signal.SIGTERM if way == 'SIGTERM to one' else signal.SIGKILL)
    process.communicate(timeout=300)
    while any(Path(f'/proc/{worker}').exists() for worker in workers) and time.monotonic() < asked + 300:
        time.sleep(0.1)
    return time.monotonic() - asked


def main():
    from running import TINY
    parser = argparse.ArgumentParser()
    parser.add_argument('--runs', type=int, default=20)
    parser.add_argument('--seed', type=int, default=random.randrange(2 ** 32))
    args = parser.parse_args()
    print(f'--seed {args.seed}')
    random.seed(args.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        base = [*TINY, '--steps', '8', '--pretrain-steps', '4', '--clips-per-task', '80', '--save-every', '0.01']
        begun = time.monotonic()
        assert launch([*base, '--out', 'whole', '--cache', 'whole-cache'], folder).wait() == 0
        took = time.monotonic() - begun
        whole = (Path(folder) / 'whole' / 'results.json').read_bytes()
        for number in range(args.runs):
            way, after = WAYS[number % len(WAYS)], random.uniform(0.1, 0.95) * took
            options = [*base, '--out', f'run{number}', '--cache', f'cache{number}', '--resume']
            process = launch(options, folder)
            time.sleep(after)
            gone = kill(process, way) if process.poll() is None else 0
            again = launch(options, folder)
            _, err = again.communicate(timeout=600)
            results = Path(folder) / f'run{number}' / 'results.json'
            same = results.exists() and results.read_bytes() == whole
            fine = again.returncode == 0 and same and gone < 60
            wrong += not fine
            print(f'{number}: {way} after {after:.1f} of {took:.1f} s, gone in {gone:.1f} s, '
                  f'{"same results" if same else "OTHER RESULTS"}' + ('' if fine else f'\n{err[-2000:]}'), flush=True)
    sys.exit(wrong > 0)


if __name__ == '__main__':
    main()
