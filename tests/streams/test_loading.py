"""streams/loading.py: the number of workers, signals, and clips that hang or crash their process."""
import os
import signal
import subprocess
import sys
import textwrap
import time

from conftest import ROOT
from streams import loading
from streams.loading import count_workers, run_jobs
from utils.cli import loading_error


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr('joblib.cpu_count', lambda: 8)
    assert [count_workers('vggsound', requested) for requested in (-1, 0, 3)] == [7, 0, 3]
    assert [count_workers('shapes', requested) for requested in (-1, 0, 3)] == [0, 0, 3]
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert count_workers('audioset', -1) == 1 and count_workers('audioset', 3) == 3
    monkeypatch.setattr('joblib.cpu_count', lambda: 1000)
    assert count_workers('audioset', -1) == loading.MAX_WORKERS


# ---------------------------------------------------------------- signals, and a reader that hangs

def run_script(body):
    """A script in a process group of its own → Popen"""
    start = 'import os, signal, time, torch\nfrom streams import loading\nfrom streams.loading import Loader\n'
    return subprocess.Popen([sys.executable, '-c', start + textwrap.dedent(body)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                            env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))


def running(pids):
    return [pid for pid in pids if os.path.exists(f'/proc/{pid}')]


SLOW = """
class Slow:
    def __getitem__(self, key):
        time.sleep(key[1])
        return dict(clip=key[0])
"""


def test_a_reader_that_hangs_ends_the_run_with_a_sentence():
    process = run_script(SLOW + """
from utils.cli import cli_errors
loading.TIMEOUT = 2
with cli_errors('the same command goes on'):
    for batch in Loader(Slow(), [[(0, 1000)]], 1):
        pass
""")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and 'Traceback' not in err
    assert 'timed out after 2 seconds' in err and '--workers' in err and 'the same command goes on' in err


EIGHT_BATCHES = SLOW + """
received = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(number))
for count, batch in enumerate(Loader(Slow(), [[(index, 0.05)] for index in range(8)], 2)):
    if count == 0:
        print(*(worker.pid for worker in torch.multiprocessing.active_children()), flush=True)
    time.sleep(0.2)
print(len(received), count + 1, flush=True)
"""


def test_terminal_signals_leave_the_workers_to_their_parent():
    """Schedulers (SIGTERM) and terminals (SIGINT) signal the whole group. The parent loads all batches and ends, and
    its workers end with it."""
    process = run_script(EIGHT_BATCHES)
    pids = process.stdout.readline().split()
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.split() == ['2', '8'] and len(pids) == 2 and not running(pids), (out, err)


def test_workers_end_when_their_parent_is_killed():
    process = run_script(EIGHT_BATCHES)
    pids = process.stdout.readline().split()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(pids) == 2 and not running(pids)


# ---------------------------------------------------------------- jobs

def double(job):
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)           # as a decoder with a fault would
    if job == 5:
        time.sleep(1000)
    return 2 * job


def test_jobs_that_crash_or_hang_are_told_from_the_others(monkeypatch):
    monkeypatch.setattr(loading, 'TIMEOUT', 2)
    assert list(run_jobs(double, [(n,) for n in range(8)], 2, 'crashed')) == [0, 2, 4, 'crashed', 8, 'crashed', 12, 14]
    assert list(run_jobs(double, [(1,), (2,)], 0, 'crashed')) == [2, 4]
    assert list(run_jobs(double, [], 2, 'crashed')) == []


def test_an_error_in_a_data_set_keeps_its_traceback():
    text = 'Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last): …'
    assert loading_error(RuntimeError(text)) is None
