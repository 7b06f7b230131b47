"""Processes that read clips: how many, what they hear of signals, what is said when one hangs, dies or has no room."""
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from conftest import ROOT
from patches import UserError
from streams import workers
from streams.workers import Loader, cores, count_workers, fitting, in_processes, why_loading_failed


class Clips(torch.utils.data.Dataset):
    """A megabyte each."""

    def __len__(self):
        return 12

    def __getitem__(self, key):
        return dict(audio=torch.full((250_000,), float(key[0])), clip=key[0], bad='')


BATCHES = [[(index, 0), (index + 1, 0)] for index in range(0, 12, 2)]          # of two megabytes


# ---------------------------------------------------------------- how many

def test_as_many_as_cores_may_be_used_less_one(monkeypatch):
    monkeypatch.setattr(workers, 'cores', lambda: 8)
    assert [count_workers('vggsound', wanted) for wanted in (-1, 0, 3)] == [7, 0, 3]
    assert [count_workers('shapes', wanted) for wanted in (-1, 0, 3)] == [0, 0, 3]
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert count_workers('audioset', -1) == 1 and count_workers('audioset', 3) == 3
    monkeypatch.setattr(workers, 'cores', lambda: 1000)
    assert count_workers('audioset', -1) == workers.MOST_WORKERS


@pytest.mark.parametrize('own, files, expected', [
    ('0::/', {'cpu.max': '200000 100000'}, 2),                                               # version 2, a container
    ('0::/', {'cpu.max': 'max 100000'}, 64),
    ('0::/slurm/job', {'slurm/cpu.max': '300000 100000', 'slurm/job/cpu.max': 'max 100000'}, 3),
    ('0::/', {'cpu.max': '50000 100000'}, 1),                                                # half a core is one
    ('4:cpu,cpuacct:/', {'cpu,cpuacct/cpu.cfs_quota_us': '500000', 'cpu,cpuacct/cpu.cfs_period_us': '100000'}, 5),
    ('4:cpu,cpuacct:/', {'cpu,cpuacct/cpu.cfs_quota_us': '-1', 'cpu,cpuacct/cpu.cfs_period_us': '100000'}, 64),
    (None, {}, 64)])                                                                         # not Linux
def test_cores_are_those_that_the_groups_grant(own, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / 'groups' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'groups' / name).write_text(text + '\n')
    if own:
        (tmp_path / 'own').write_text(own + '\n')
    assert cores(tmp_path / 'groups', tmp_path / 'own') == expected


def test_batches_ahead_fit_the_shared_memory(monkeypatch, capsys):
    free = lambda megabytes: monkeypatch.setattr(workers, '_free', lambda folder: int(megabytes * 1e6))
    free(1e6)
    assert fitting(Clips(), BATCHES, 3) == (3, workers.AHEAD)
    free(17)                                                       # 8 batches, 2 of them in use: 6 ahead
    assert fitting(Clips(), BATCHES, 3) == (3, 2) and fitting(Clips(), BATCHES, 4) == (4, 1)
    assert capsys.readouterr().out == ''
    assert fitting(Clips(), BATCHES, 9) == (6, 1)
    assert 'has room for 6 processes that load clips, not 9' in capsys.readouterr().out
    free(3)
    assert fitting(Clips(), BATCHES, 0) == (0, workers.AHEAD)      # without processes, it does not matter
    with pytest.raises(UserError, match='3 MB free, too few for batches of 2 MB.*--shm-size'):
        fitting(Clips(), BATCHES, 1)


# ---------------------------------------------------------------- what goes wrong

@pytest.mark.parametrize('text, words', [
    ('DataLoader timed out after 300 seconds', 'no batch was loaded for 300 s'),
    ('DataLoader worker (pid 7) is killed by signal: Bus error. It is possible …', 'shared memory'),
    ('unable to open shared memory object </torch_1_2>', '--shm-size'),
    ('DataLoader worker (pid(s) 7) exited unexpectedly', 'lack of memory'),
    ('mat1 and mat2 shapes cannot be multiplied', None)])
def test_what_is_said_of_workers_that_fail(text, words, monkeypatch):
    monkeypatch.setattr(workers.multiprocessing, 'active_children', lambda: [])
    monkeypatch.setattr(signal, 'signal', lambda *arguments: None)
    said = why_loading_failed(RuntimeError(text))
    assert said is None if words is None else words in said


def run_script(body, **given):
    """A script with the workers' names → the process that runs it"""
    script = textwrap.dedent(body)
    return subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True,
                            env=dict(os.environ, PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', OMP_NUM_THREADS='1'), **given)


def test_a_reader_that_hangs_is_named(tmp_path):
    (tmp_path / 'slow.mp4').write_text('')
    process = run_script(f"""
        import time
        from config import exit_politely
        from streams import workers
        workers.TOO_LONG = 2

        class Hangs:
            def __len__(self): return 1
            def __getitem__(self, key):
                with open({str(tmp_path / 'slow.mp4')!r}):
                    time.sleep(1000)

        with exit_politely('the same command goes on'):
            for batch in workers.Loader(Hangs(), [[(0, 0)]], 1):
                pass
        """)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and 'Traceback' not in err
    assert 'no batch was loaded for 2 s: reading hangs at slow.mp4' in err and 'the same command goes on' in err


def test_a_signal_to_the_group_leaves_the_workers_to_the_process_that_finishes_its_step():
    """As schedulers (SIGTERM) and terminals (SIGINT) send them. When the process ends, so do its workers."""
    process = run_script("""
        import os, signal, time, torch
        from streams.workers import Loader

        class Slow:
            def __getitem__(self, key):
                time.sleep(0.05)
                return dict(clip=key[0])

        heard = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: heard.append(number))
        loaded = Loader(Slow(), [[(index, 0)] for index in range(8)], 2)
        for count, batch in enumerate(loaded):
            if count == 0:
                print(*(worker.pid for worker in torch.multiprocessing.active_children()), flush=True)
            time.sleep(0.2)
        print(len(heard), count + 1, flush=True)
        """)
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.split() == ['2', '8'], (out, err)
    assert not any(os.path.exists(f'/proc/{pid}') for pid in pids)


def test_workers_end_with_their_process():
    process = run_script("""
        import torch, time
        from streams.workers import Loader

        class Slow:
            def __getitem__(self, key):
                time.sleep(0.05)
                return dict(clip=key[0])

        for batch in Loader(Slow(), [[(index, 0)] for index in range(100)], 2):
            print(*(worker.pid for worker in torch.multiprocessing.active_children()), flush=True)
            time.sleep(1000)
        """)
    pids = list(map(int, process.stdout.readline().split()))
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while any(os.path.exists(f'/proc/{pid}') for pid in pids) and time.monotonic() < until:
        time.sleep(0.2)
    assert len(pids) == 2 and not any(os.path.exists(f'/proc/{pid}') for pid in pids)


# ---------------------------------------------------------------- jobs

def double(job):
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * job


def test_a_job_that_fells_its_process_is_told_from_the_others():
    assert list(in_processes(double, list(range(7)), 2, 'felled')) == [0, 2, 4, 'felled', 8, 10, 12]


def hang(job):
    if job == 1:
        signal.alarm(1)                                            # instead of workers.TOO_LONG
        time.sleep(1000)
    return job


def test_a_job_that_hangs_ends():
    assert list(in_processes(hang, [0, 1, 2], 2, 'felled')) == [0, 'felled', 2]


def test_items_are_those_of_the_data_set_and_mistakes_are_named():
    assert [batch['clip'].tolist() for batch in Loader(Clips(), BATCHES, 2)] == [[i, i + 1] for i in range(0, 12, 2)]

    class Wrong(Clips):
        def __getitem__(self, key):
            raise UserError('None of the 12 clips can be read any more')
    with pytest.raises(UserError, match='^None of the 12 clips can be read any more$'):
        list(Loader(Wrong(), BATCHES, 1))
