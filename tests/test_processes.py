"""Several processes: what they refuse, how all stop when one is asked to, and that what they share is the whole."""
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import eval as evaluation
import processes
import train as program
from config import Config
from killed_runs import children_of
from patches import UserError
from running import METHODS, ONE_THREAD, TINY, TORCHRUN, on_files, start, train
from weights import read_checkpoint


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize('number, options, words', [
    (1, {}, None), (8, dict(batch_size=48), None), (8, dict(batch_size=36), 'share it evenly: 32 or 40 would do'),
    (16, dict(batch_size=32), 'each needs 3: 48 would do'),
    (1, dict(batch_size=2), 'each needs 3: 3 would do'),
    (2, dict(batch_size=2, method='er'), None), (2, dict(batch_size=3, method='er'), '2 or 4 would do'),
    (4, dict(batch_size=2, method='er'), 'each needs 1: 4 would do'),
    (3, dict(pretrain_batch_size=4), '--pretrain-batch-size 4'),
    (4, dict(pretrain_batch_size=4, pretrain_steps=0), None)])
def test_batches_that_cannot_be_shared(number, options, words, monkeypatch):
    monkeypatch.setattr(processes, 'world', lambda: number)
    cfg = Config(**options)
    if words is None:
        return processes.check_shares(cfg)
    with pytest.raises(UserError, match=words):
        processes.check_shares(cfg)


def test_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(processes, 'open_device', torch.device)
    with pytest.raises(UserError, match='--device cuda:1: under torchrun'):
        processes.start_processes(SimpleNamespace(device='cuda:1'))


def test_processes_that_see_other_clips_say_so_and_end(files, tmp_path):
    """Each in a folder of its own, with the same name, as on two machines."""
    for number in range(2):
        shutil.copytree(files, tmp_path / str(number) / 'data')
    lost = sorted((tmp_path / '1/data/video').glob('*.mp4'))[0]
    lost.unlink()
    (tmp_path / 'apart.py').write_text('import os, sys\nos.chdir(os.environ["RANK"])\n'
                                       f'sys.path.insert(0, {str(program.__file__).rpartition("/")[0]!r})\n'
                                       'import train\ntrain.main(sys.argv[1:])')
    options = on_files(Path('data'), '--out', 'run', '--steps', '1')
    done = subprocess.run([*TORCHRUN, 'apart.py', *map(str, options)], cwd=tmp_path, capture_output=True, text=True,
                          env=ONE_THREAD, timeout=120)
    err = done.stderr
    assert done.returncode != 0 and 'the processes see different clips in data' in err, err
    assert f'{lost.name} missing' in err


# ---------------------------------------------------------------- what is shared

def test_what_processes_embed_together_is_what_one_embeds(monkeypatch):
    """To the bit, and in the same order; the last batch of a task is smaller, and one clip cannot be read."""
    class Clips(torch.utils.data.Dataset):
        labels = [('x',)] * 7

        def __len__(self):
            return 7

        def __getitem__(self, key):
            torch.manual_seed(key[0])
            return dict(audio=torch.randn(4, 4), video=torch.zeros(1, 3, 2, 2, dtype=torch.uint8), clip=key[0],
                        bad='gone' if key[0] == 2 else '')

    backbone = SimpleNamespace(embed=lambda audio, video: (audio.flatten(1), 2 * audio.flatten(1)))
    embed = lambda: evaluation.embed_clips([backbone], [Clips(), Clips()], torch.device('cpu'), 3, 0)
    (whole,), task_of, bad = embed()
    assert task_of.tolist() == [0] * 6 + [1] * 6 and bad == ['gone'] * 2
    shares = []
    monkeypatch.setattr('streams.common.world', lambda: 3)
    for number in range(3):
        monkeypatch.setattr('streams.common.rank', lambda: number)
        monkeypatch.setattr(evaluation, 'gathered', lambda mine: shares.append(mine) or [mine])
        embed()
    monkeypatch.setattr(evaluation, 'gathered', lambda mine: shares)
    (together,), again, bad = embed()
    assert torch.equal(again, task_of) and bad == ['gone'] * 2
    assert all(torch.equal(a, b) for a, b in zip(whole, together))


def test_ranks_in_chunks_are_those_of_the_whole():
    query, candidates = torch.randn(50, 8).double(), torch.randn(50, 8).double()
    candidates[7] = query[7] * float('nan')
    whole = evaluation.ranks(query, candidates)
    for chunk in (1, 7, 50):
        assert torch.equal(evaluation.ranks(query, candidates, chunk), whole)


# ---------------------------------------------------------------- how they end

def test_a_signal_to_one_process_stops_all_and_the_run_goes_on(files, tmp_path):
    """Both save the same step and leave; the results are those of a run that nobody stopped. Asked between two tasks,
    one may leave with its file of a newer step written, to which no last.pt came: that of before stays whole."""
    options = on_files(files, '--steps', '6', '--pretrain-steps', '1')[:-2] + ['--pretrain-steps', '1']
    options = [*options, '--save-every', '1000', '--out', 'run', '--resume']
    process = start(options, tmp_path, TORCHRUN)
    while not (tmp_path / 'run/log.jsonl').exists() or '"stream"' not in (tmp_path / 'run/log.jsonl').read_text():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    os.kill(children_of(process.pid)[-1], signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and 'interrupted; the same command with --resume goes on' in err, err
    last = read_checkpoint(tmp_path / 'run/last.pt')
    assert (tmp_path / f'run/last.process1.{last["phase"]}.step{last["global_step"]}.pt').exists()
    code, _, err = train(options, tmp_path, TORCHRUN)
    assert code == 0, err
    code, _, err = train([*options, '--out', 'whole', '--cache', 'other'], tmp_path, TORCHRUN)
    assert code == 0, err
    assert (tmp_path / 'run/results.json').read_bytes() == (tmp_path / 'whole/results.json').read_bytes()
    assert len(list((tmp_path / 'run').glob('last.process1.*.pt'))) == 1


@pytest.mark.parametrize('method', METHODS)
def test_nan_ends_with_the_same_message_and_is_never_saved(method, tmp_path, here):
    options = [*TINY, '--steps', '4', '--pretrain-steps', '0', '--method', method, '--out', 'run', '--lr', '1e30',
               '--save-every', '0', '--log-every', '3']
    code, out, err = here(options, tmp_path)
    assert code == 2 and 'Traceback' not in err
    assert 'try a smaller --lr. The last checkpoint is run/last.pt' in err, err
    state = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    assert all(x.isfinite().all() for x in state['weights'].values() if x.is_floating_point())
    for line in (tmp_path / 'run/log.jsonl').read_text().splitlines() if (tmp_path / 'run/log.jsonl').exists() else ():
        assert 'NaN' not in line and json.loads(line)
