"""A run on disk: killed, interrupted and resumed, a full disk, a folder in use; and what is read of it afterwards."""
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import pytest
import torch

from avm import AVM
from config import Config, parse
from conftest import ODD, ROOT
from model import AudioVideoMAE
from patches import UserError
from run import Recorded, read_config
from weights import pretraining_cache
from running import TINY, on_files, same_state, start, train


def test_killed_three_times_gives_the_same_results(files, tmp_path):
    """Decoding, augmentation, initial pre-training, memory, selection, optimizer: bit for bit."""
    code, out, err = train(on_files(files, '--out', 'whole', '--cache', 'cache1'), tmp_path)
    assert code == 0, err
    lines = (tmp_path / 'whole/log.jsonl').read_text().count('\n')
    arguments = on_files(files, '--out', 'killed', '--cache', 'cache2', '--resume')
    generator = random.Random(os.getpid())
    kills, stood = 0, []
    for _ in range(3):
        process = start(arguments, tmp_path)
        last = tmp_path / 'killed' / 'last.pt'
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        stood.append(torch.load(last, weights_only=True)['global_step'])
    code, out, err = train(arguments, tmp_path)
    assert code == 0, err
    assert kills >= 2, f'the run was over before it could be killed; it stood at {stood}'
    assert (tmp_path / 'whole/results.json').read_bytes() == (tmp_path / 'killed/results.json').read_bytes()
    assert same_state(tmp_path / 'whole/last.pt', tmp_path / 'killed/last.pt')
    steps = [json.loads(line)['global_step'] for line in (tmp_path / 'killed/log.jsonl').read_text().splitlines()]
    assert steps == sorted(set(steps)) and len(steps) == lines


def run_script(folder, before, options):
    """train.py's main, after lines that change what it does, in a process of its own."""
    lines = ['import sys', f'sys.path.insert(0, {str(ROOT)!r})', before, 'import train', f'train.main({options!r})']
    (folder / 'script.py').write_text('\n'.join(lines))
    return subprocess.run([sys.executable, 'script.py'], cwd=folder, capture_output=True, text=True)


def test_kill_during_the_checkpoint_write_loses_only_that_checkpoint(tmp_path):
    """SIGKILL when half of the third checkpoint's bytes are written."""
    options = [*TINY, '--steps', '3', '--pretrain-steps', '2', '--save-every', '0', '--out', 'run', '--method', 'er',
               '--resume']
    killed = run_script(tmp_path, '''
import io, os, signal, torch
real, count = torch.save, [0]
def save(content, file):
    count[0] += 1
    if count[0] == 5:
        whole = io.BytesIO(); real(content, whole)
        file.write(whole.getvalue()[:len(whole.getvalue()) // 2]); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(content, file)
torch.save = save
''', options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / 'run').glob('last.pt.*.tmp'))
    assert torch.load(tmp_path / 'run/last.pt', weights_only=True)['global_step'] >= 1
    code, _, err = train(options, tmp_path)
    assert code == 0, err
    code, _, err = train([*options, '--out', 'straight', '--cache', 'other'], tmp_path)
    assert code == 0, err
    assert (tmp_path / 'run/results.json').read_bytes() == (tmp_path / 'straight/results.json').read_bytes()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = start([*TINY, '--pretrain-steps', '0', '--out', 'run', '--save-every', '100000'], tmp_path)
    while not (tmp_path / 'run/log.jsonl').exists():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and '--resume' in err and 'Traceback' not in err
    state = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    assert state['global_step'] > 0                        # more than the checkpoint before the first step


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails half-way."""
    options = [*TINY, '--steps', '8', '--pretrain-steps', '0', '--save-every', '0', '--out', 'run',
               '--memory-size', '400']
    done = run_script(tmp_path, '''
import resource, run
real, count = run.save_atomically, [0]
def save(content, path):
    count[0] += 1
    if count[0] == 6:            # models/0.pt, last.pt before the first step and after three were the others
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    real(content, path)
run.save_atomically = save
''', options)
    assert done.returncode == 2 and 'intact' in done.stderr and '--resume' in done.stderr
    assert 'Traceback' not in done.stderr
    assert torch.load(tmp_path / 'run/last.pt', weights_only=True)['global_step'] == 3
    assert not list((tmp_path / 'run').glob('*.tmp'))
    code, _, err = train([*options, '--resume'], tmp_path)
    assert code == 0, err


def test_a_folder_in_use_and_changed_options_are_refused(tmp_path, here):
    base = [*TINY, '--steps', '1', '--pretrain-steps', '0', '--method', 'finetune', '--out', 'run']
    assert here(base, tmp_path)[0] == 0
    code, _, err = here(base, tmp_path)
    assert code == 2 and '--resume' in err
    code, _, err = here([*base, '--lr', '0.5', '--resume'], tmp_path)
    assert code == 2 and '--lr' in err
    before = (tmp_path / 'run/results.json').read_bytes()
    assert here([*base, '--resume'], tmp_path)[0] == 0
    assert (tmp_path / 'run/results.json').read_bytes() == before


def test_initial_pretraining_is_kept_under_all_that_it_depends_on(tmp_path):
    name = lambda *words, clips=60: pretraining_cache(parse([*TINY, *words])[0], torch.device('cpu'), clips)
    same = {name(), name('--method', 'er'), name('--lr', '0.5'), name('--batch-size', '6'), name('--out', 'x')}
    assert len(same) == 1                                          # what comes after it is no matter
    (tmp_path / 'vggsound.csv').write_text('one line\n')
    on_file = name('--data', str(tmp_path))
    (tmp_path / 'vggsound.csv').write_text('another list\n')
    others = {name('--seed', '1'), name('--pretrain-lr', '0.5'), name('--embed-dim', '32'), name(clips=61), on_file,
              name('--data', str(tmp_path)), name('--lam', '0.3')}
    assert len(same | others) == 8


@pytest.mark.parametrize('on_shapes', [True, False])
def test_a_run_older_than_an_option_goes_on_as_it_was(on_shapes, files, tmp_path, here):
    """Before --max-roll, clips of files were rolled by ten frames at most; shapes never are."""
    options = [*TINY, '--out', 'run', '--epochs', '1', '--resume', '--clips-per-task', '9']
    if not on_shapes:
        options = on_files(files, '--out', 'run', '--resume', '--max-roll', '10')
    code, _, err = here([*options, '--steps', '1', '--pretrain-steps', '1'], tmp_path)
    assert code == 0, err
    checkpoint = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    del checkpoint['config']['max_roll']
    torch.save(checkpoint, tmp_path / 'run/last.pt')
    file = tmp_path / 'run/config.json'
    saved = json.loads(file.read_text())
    del saved['max_roll']
    file.write_text(json.dumps(saved))
    assert read_config(tmp_path / 'run').max_roll == (-1 if on_shapes else 10)
    code, _, err = here([*options, '--steps', '1', '--pretrain-steps', '1'], tmp_path)
    assert code == 0, err
    code, _, err = here([word for word in options if word not in ('--max-roll', '10')]
                        + ['--steps', '1', '--pretrain-steps', '1'], tmp_path)
    assert code == (0 if on_shapes else 2) and ('--max-roll was 10, now -1' in err) == (not on_shapes), err


# -------------------------------------------------------------------------------------- a run, read

@pytest.fixture
def recorded(tmp_path):
    """A run's folder with the models before the stream and after two of its six tasks."""
    (tmp_path / 'models').mkdir()
    cfg = Config(**ODD, dataset='shapes', clips_per_task=4, test_clips=2)
    (tmp_path / 'config.json').write_text(json.dumps(dict(dataclasses.asdict(cfg), option_of_tomorrow=1)))
    for t in (0, 1, 2):
        modules = torch.nn.ModuleDict({'backbone': AudioVideoMAE(cfg), 'avm': AVM(cfg.embed_dim, cfg.avm_heads)})
        torch.save(dict(weights=modules.state_dict()), tmp_path / f'models/{t}.pt')
    return tmp_path


def test_models_of_a_run_have_the_names_of_their_tasks(recorded):
    run = Recorded(recorded, device='cpu')
    assert run.cfg == read_config(recorded) and run.cfg.clips_per_task == 4
    models, names = recorded / 'models', [name for _, name, _ in run.models()]
    assert run.models() == [(0, 'initial', models / '0.pt'), (1, names[1], models / '1.pt'),
                            (2, names[2], models / '2.pt')] and names[1:] == run.stream.names[:2]
    assert Recorded(recorded, last=True).models() == run.models()[2:]
    one = Recorded(models / '1.pt')
    assert one.models() == run.models()[1:2] and one.folder == recorded
    backbone, avm = run.load(models / '2.pt')
    kept = torch.load(models / '2.pt', weights_only=True)['weights']
    assert all(torch.equal(value, kept[f'backbone.{name}']) for name, value in backbone.state_dict().items())
    assert not any(weight.requires_grad for module in (backbone, avm) for weight in module.parameters())


def test_what_is_found_of_a_run_is_read_again(recorded):
    """What was found of one model stands beside what was found of all, which comes first."""
    all_, last = Recorded(recorded), Recorded(recorded, last=True)
    assert all_.read('gap') is None and all_.tensors('gap') is None
    one = Recorded(recorded / 'models/1.pt')
    for number, run in enumerate((one, last, all_)):
        figure = plt.figure()
        files = run.write('gap', {'number': number}, '| a table |', figure)
        plt.close(figure)
        assert [file.suffix for file in files] == ['.json', '.md', '.png'] and all(f.stat().st_size for f in files)
        assert all_.read('gap') == {1: {'number': 1}, 2: {'number': 2}}.get(number)      # one model's is no run's
    assert sorted(file.name for file in (recorded / 'eval').glob('*.md')) == ['gap-1.md', 'gap-last.md', 'gap.md']
    torch.save({'x': torch.ones(2)}, last.place('maps', 'pt'))
    assert torch.equal(all_.tensors('maps')['x'], torch.ones(2))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match='no such run'):
        Recorded(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='config.json is not there'):
        Recorded(tmp_path)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(UserError, match='cannot be read'):
        Recorded(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='holds no models'):
        Recorded(tmp_path, workers=0, device='cpu').models()
