"""The loop as a user runs it: start, kill, resume, several processes, wrong options, full disk, real clips."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from conftest import ROOT, render_once

TINY = ('--size small --image-size 32 --num-frames 2 --audio-frames 64 --mel-bins 32 --frame-shift 62 --embed-dim 16 --num-heads 2 '
        '--encoder-depth 1 --fusion-depth 1 --decoder-embed-dim 16 --decoder-depth 1 --decoder-num-heads 2 --avm-heads 2 '
        '--test-clips 6 --batch-size 8 --memory-size 20 --pretrain-batch-size 8 --chunk 2 --device cpu').split()
CLIPS = ROOT.parent / 'shared' / 'clips' / 'vggsound'


def start(arguments, folder, launcher=(sys.executable,)):
    command = [*launcher, str(ROOT / 'train.py'), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})


def train(arguments, folder, launcher=(sys.executable,)):
    process = start(arguments, folder, launcher)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


class Here:
    """train.py's main in this process, which spares the seconds that importing takes."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        render_once(monkeypatch)

    def __call__(self, arguments, folder):
        import train as program
        self.monkeypatch.chdir(folder)
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            program.main([str(a) for a in arguments])
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        finally:
            for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
                signal.signal(s, handler)
        said = self.capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def here(monkeypatch, capsys):
    return Here(monkeypatch, capsys)


TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone')   # on a free port


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The built-in clips as mp4 files in VGGSound's layout."""
    folder = tmp_path_factory.mktemp('files')
    subprocess.run([sys.executable, str(ROOT / 'shapes.py'), '--out', str(folder), '--train', '9', '--test', '3', '--pretrain', '12',
                    '--size', '48'], check=True, capture_output=True)
    return folder


def on_files(files, *more):
    return ['--dataset', 'vggsound', '--data', files, '--tasks', files / 'tasks.csv', *TINY, '--epochs', '2', '--pretrain-epochs', '3',
            '--workers', '1', '--save-every', '1', *more]


def same_state(first, second, has_memory=True):
    """Weights, memory, optimizer and random states of two checkpoints, bit for bit: finer than any result."""
    def flat(x, at=''):
        if isinstance(x, dict):
            return [pair for key in x for pair in flat(x[key], f'{at}.{key}')]
        if isinstance(x, (list, tuple)):
            return [pair for i, y in enumerate(x) for pair in flat(y, f'{at}.{i}')]
        return [(at, x)]
    one, two = ([pair for key, x in torch.load(file, weights_only=True).items() if key in ('weights', 'method', 'optimizer', 'own')
                 for pair in flat(x, key)] for file in (first, second))
    assert one and any('memory.rows' in at and len(x) for at, x in one) == has_memory
    return len(one) == len(two) and all(a == b and (torch.equal(x, y) if torch.is_tensor(x) else x == y)
                                        for (a, x), (b, y) in zip(one, two))


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


def test_kill_during_the_checkpoint_write_loses_only_that_checkpoint(tmp_path):
    """SIGKILL when half of the third checkpoint's bytes are written."""
    options = [*TINY, '--steps', '3', '--pretrain-steps', '2', '--save-every', '1', '--out', 'run', '--method', 'er', '--resume']
    (tmp_path / 'killer.py').write_text(f'''
import io, os, signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
import train
real, count = torch.save, [0]
def save(content, file):
    count[0] += 1
    if count[0] == 5:
        whole = io.BytesIO(); real(content, whole)
        file.write(whole.getvalue()[:len(whole.getvalue()) // 2]); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(content, file)
torch.save = save
train.main({options!r})
''')
    killed = subprocess.run([sys.executable, 'killer.py'], cwd=tmp_path, capture_output=True, text=True)
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
    options = [*TINY, '--steps', '8', '--pretrain-steps', '0', '--save-every', '3', '--out', 'run', '--memory-size', '400']
    (tmp_path / 'full.py').write_text(f'''
import resource, sys, torch
sys.path.insert(0, {str(ROOT)!r})
import train
real, count = train.save_atomically, [0]
def save(content, path):
    count[0] += 1
    if count[0] == 4:                          # models/0.pt, last.pt before the first step and after the third were the others
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    real(content, path)
train.save_atomically = save
train.main({options!r})
''')
    done = subprocess.run([sys.executable, 'full.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and 'intact' in done.stderr and '--resume' in done.stderr and 'Traceback' not in done.stderr
    assert torch.load(tmp_path / 'run/last.pt', weights_only=True)['global_step'] == 3
    assert not list((tmp_path / 'run').glob('*.tmp'))
    code, _, err = train([*options, '--resume'], tmp_path)
    assert code == 0, err


METHODS = ['flava', 'flava+', 'finetune', 'multitask', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump']


@pytest.mark.parametrize('method', METHODS)
def test_every_method_runs_and_resumes(method, tmp_path, here, monkeypatch):
    import train as program
    options = [*TINY, '--steps', '3', '--pretrain-steps', '0', '--method', method, '--save-every', '2']
    code, out, err = here([*options, '--out', 'run'], tmp_path)
    assert code == 0, err
    save, saves = program.Run.save, [0]

    def save_and_stop(run):                                    # after its 5th and its 11th checkpoint
        save(run)
        saves[0] += 1
        if saves[0] in (5, 11):
            raise KeyboardInterrupt
    monkeypatch.setattr(program.Run, 'save', save_and_stop)
    monkeypatch.setattr(program.figures, 'draw', lambda *run: [])      # seconds each; the first run has drawn
    codes = [here([*options, '--out', 'stopped', '--resume'], tmp_path)[0] for _ in range(3)]
    assert codes == [130, 130, 0]
    assert (tmp_path / 'run/results.json').read_bytes() == (tmp_path / 'stopped/results.json').read_bytes()
    assert same_state(tmp_path / 'run/last.pt', tmp_path / 'stopped/last.pt', method not in ('finetune', 'multitask'))
    assert same_state(tmp_path / 'run/models/1.pt', tmp_path / 'stopped/models/1.pt', False)
    if method == 'cls-er':                                     # what is kept and evaluated is the stable copy, which has moved
        kept, first, last = (torch.load(tmp_path / 'run' / name, weights_only=True) for name in ('models/6.pt', 'models/0.pt', 'last.pt'))
        key = 'encoder_a.0.attn.qkv.weight'
        weights = [kept['weights'][f'backbone.{key}'], last['method'][f'stable.{key}'], last['method'][f'backbone.{key}'],
                   last['method'][f'plastic.{key}'], first['weights'][f'backbone.{key}']]
        assert torch.equal(weights[0], weights[1]) and not any(torch.equal(weights[0], other) for other in weights[2:])
    results = json.loads((tmp_path / 'run/results.json').read_text())
    rows = 1 if method == 'multitask' else 6
    acc = results['audio_to_video']['R@10']['acc']
    assert len(acc) == rows and all(len(row) == 6 for row in acc) and 'audio to video' in out
    assert (results['audio_to_video']['R@10']['F'] is None) == (method == 'multitask')
    for name in ('config.json', 'log.jsonl', 'table.md', 'figures/stream.png', 'figures/attention.png', 'last.pt'):
        assert (tmp_path / 'run' / name).stat().st_size > 0
    import eval as evaluation
    evaluation.main(['run', '--task', 'retrieval', '--device', 'cpu'])         # the models kept are the evaluated ones
    again = json.loads((tmp_path / 'run/eval/retrieval.json').read_text())
    assert again['video_to_audio']['R@5']['acc'] == results['video_to_audio']['R@5']['acc']


def test_two_processes_give_the_gradients_of_one(tmp_path):
    done = subprocess.run([*TORCHRUN, str(ROOT / 'tests' / 'two_processes.py')], capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'largest difference' in done.stdout


def test_two_processes_run_and_resume(files, tmp_path):
    code, _, err = train(on_files(files, '--out', 'whole', '--cache', 'c1', '--steps', '2'), tmp_path, TORCHRUN)
    assert code == 0, err
    arguments = on_files(files, '--out', 'killed', '--cache', 'c2', '--steps', '2', '--resume')
    process = start(arguments, tmp_path, TORCHRUN)
    while not list((tmp_path / 'killed').glob('last.process1.stream.step[5-9].pt')):
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)                    # torchrun kills its processes
    process.communicate(timeout=60)
    code, _, err = train(arguments, tmp_path, TORCHRUN)
    assert code == 0, err
    assert (tmp_path / 'whole/results.json').read_bytes() == (tmp_path / 'killed/results.json').read_bytes()
    assert same_state(tmp_path / 'whole/last.pt', tmp_path / 'killed/last.pt')
    memory = torch.load(tmp_path / 'whole/last.pt', weights_only=True)['own']['memory']
    assert memory['capacity'] == 10                        # 20 pairs, divided over two
    step = torch.load(tmp_path / 'killed/last.pt', weights_only=True)['global_step']
    assert [file.name for file in (tmp_path / 'killed').glob('last.process*')] == [f'last.process1.stream.step{step}.pt']


def test_every_method_runs_under_two_processes(tmp_path):
    """And resumes: the script stops each run once. The copies that CLS-ER averages are alike in both processes."""
    done = subprocess.run([*TORCHRUN, str(ROOT / 'tests' / 'two_processes_methods.py'), *METHODS, '--', *TINY], cwd=tmp_path,
                          capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for method in METHODS:
        assert f'{method}: done' in done.stdout
        assert (tmp_path / 'whole' / method / 'results.json').read_bytes() == (tmp_path / 'stopped' / method / 'results.json').read_bytes()
        assert same_state(tmp_path / 'whole' / method / 'last.pt', tmp_path / 'stopped' / method / 'last.pt',
                          method not in ('finetune', 'multitask'))


def test_bad_clips_are_named_counted_and_left_out(files, tmp_path, here):
    import shutil
    folder = tmp_path / 'some'
    shutil.copytree(files, folder)
    clips = sorted((folder / 'video').glob('*.mp4'))
    clips[0].unlink()
    clips[10].write_bytes(b'')
    clips[20].write_bytes(clips[20].read_bytes()[:2000])
    arguments = on_files(folder, '--out', 'run', '--steps', '1', '--pretrain-steps', '1')
    code, out, err = here(arguments, tmp_path)
    assert code == 0, err
    for clip in (clips[0], clips[10], clips[20]):
        assert any(line.startswith('left out') and clip.name in line for line in out.splitlines()), out
    assert out.rstrip().endswith('3 clips were left out')
    for clip in clips[30:50]:
        clip.unlink()
    code, out, err = here(arguments[:-6] + ['--out', 'run2'], tmp_path)
    assert code == 2 and '--max-bad' in err and 'Traceback' not in err
    code, out, err = here(arguments[:-6] + ['--out', 'run2', '--steps', '1', '--pretrain-steps', '1', '--max-bad', '0.5'], tmp_path)
    assert code == 0 and '23 clips were left out' in out, err


@pytest.mark.parametrize('arguments, reason', [
    ('--dataset vggsound', '--dataset shapes'), ('--methd er', '--method'), ('--method flva', 'flava'), ('--size smal', 'small'),
    ('--dataset shape', 'shapes'), ('--mask-ratio 0.4', 'mask'), ('--rho-v 0.3 --mask-ratio 0.7', 'nothing to predict'),
    ('--chunk 3', 'divide'), ('--method er --selection importance', 'for --method flava'), ('--selection mats --num-frames 1', 'two frames'),
    ('--device cuda:99', 'GPUs'), ('--device qpu', 'no such kind'), ('--init nowhere.pt', 'no such file'), ('--batch-size x', 'invalid int'), ('--image-size 100', 'multiples')])
def test_mistakes_get_one_message(arguments, reason, tmp_path, here):
    code, out, err = here(arguments.split(), tmp_path)
    assert code == 2 and reason in err and len(err.strip().splitlines()) <= 12, err


def test_a_mistake_on_the_command_line(tmp_path):
    """What the user sees: no traceback, exit code 2."""
    code, out, err = train(['--dataset', 'vggsound'], tmp_path)
    assert code == 2 and 'vggsound.csv' in err and '--dataset shapes' in err and 'Traceback' not in err
    done = subprocess.run([sys.executable, str(ROOT / 'eval.py'), 'nowhere', '--task', 'retrieval'], capture_output=True, text=True)
    assert done.returncode == 2 and 'nowhere' in done.stderr and 'Traceback' not in done.stderr


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


@pytest.mark.skipif(not CLIPS.exists(), reason='the real clips (../shared/clips) are not here')
@pytest.mark.parametrize('own_tasks, method', [(True, method) for method in METHODS] + [(False, 'flava')])
def test_real_clips(own_tasks, method, tmp_path, here, monkeypatch):
    import train as program
    if method != 'flava':
        monkeypatch.setattr(program.figures, 'draw', lambda *run: [])
    more = ['--tasks', CLIPS / 'tasks.csv', '--method', method] if own_tasks else []
    code, out, err = here(['--dataset', 'vggsound', '--data', CLIPS, *more, *TINY, '--epochs', '1', '--pretrain-epochs', '1',
                            '--batch-size', '48', '--workers', '0', '--out', 'run'], tmp_path)
    assert code == 0, err
    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['clips_left_out'] == 0
    if own_tasks:
        assert results['tasks'] == ['music', 'people', 'animals', 'others'] and results['candidates'] == 6
    else:
        assert 'left out' in out and 'initial pre-training is kept' in out


def test_refuses_to_train_without_anything_to_predict():
    from model import UserError
    from config import parse
    parse(['--method', 'er', '--rho-a', '0.1'])            # does not select, so ρ is no matter
    with pytest.raises(UserError, match='nothing to predict'):
        parse(['--rho-a', '0.3', '--mask-ratio', '0.7'])


def test_no_module_shadows_the_standard_library():
    assert not [p.stem for p in ROOT.glob('*.py') if p.stem in sys.stdlib_module_names]
