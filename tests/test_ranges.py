"""Ranges of options: what is in them is accepted, what is not gets one sentence and exit code 2, as does what this
machine cannot do; what is odd is said in a line. And a run's folder: another run in it, edited options, no right to
write.
"""
import dataclasses
import json
import math
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import processes
import streams.workers as workers
from avm import AVM
from baselines import build
from config import Config, circumstances, make_parser, parse, without_effect
from conftest import ODD, ROOT
from memory import STORED_BY, full
from model import AudioVideoMAE
from patches import COUNT, SHARE, Names, Range, Sizes, UserError, check_ranges, spelled
from running import ONE_THREAD, TINY, TORCHRUN, start, train
from train import open_data

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
ALLOWED = {name: field.metadata['allowed'] for name, field in FIELDS.items()}
RANGES = {name: allowed for name, allowed in ALLOWED.items() if isinstance(allowed, Range)}
SENSELESS = '''
chunk 0, patch-size 0, num-heads 0, avm-heads 0, mask-ratio nan, chunk -2, patch-size -16, embed-dim 0, encoder-depth
-1, fusion-depth 0, frame-shift 0, frame-shift nan, lr nan, lr -1, lr inf, tau 0, beta 0, beta1 2, weight-decay -1,
lam nan, alpha nan, mae-weight -1, seed -1, steps -5, workers -7, max-bad 3, clips-per-task 0, test-clips 0,
clips-per-class 0, cls-er-r-p 3, pretrain-lr nan, keep-models 7, batch-size 0, memory-size 0, epochs 0, log-every 0,
mir-candidates 0, pretrain-batch-size 0, lump-beta 0, max-silent 3, save-every nan, mask-ratio 1, rho-a 0, rho-v 1.5'''
SENSELESS = [f'--{words}'.split() for words in SENSELESS.replace('\n', ' ').strip().split(', ')]
SENSELESS += ['--method er --rho-a 2'.split()]
RELATED = {*Sizes.__dataclass_fields__, 'mask_ratio', 'pretrain_mask_ratio', 'rho_a', 'rho_v', 'chunk', 'test_clips',
           'galleries', 'min_silent', 'max_silent'}   # to others


def refused(arguments, capsys):
    """What a user reads, one sentence, whichever way it comes; '' of what is accepted."""
    try:
        parse([str(word) for word in arguments])
    except UserError as error:
        said = str(error)
    except SystemExit as end:
        assert end.code == 2
        said = capsys.readouterr().err
    else:
        return ''
    assert said.strip() and '\n' not in said.strip() and len(said) < 250, said
    return said


# --------------------------------------------------------------------------------------- every field

def test_every_number_states_its_range_and_help_shows_it():
    shown = {action.dest: action.help for action in make_parser()._actions}
    for name, field in FIELDS.items():
        allowed = field.metadata['allowed']
        assert isinstance(allowed, Range) == (field.type in (int, float)), name
        if allowed:
            assert f'; {allowed}' in shown[name] and field.default in (*allowed, '') if isinstance(allowed, Names) \
                else field.default in allowed, name
        if isinstance(allowed, Range):
            assert allowed.kind is field.type


@pytest.mark.parametrize('arguments', SENSELESS, ids=' '.join)
def test_what_no_run_can_mean_is_refused(arguments, capsys):
    option, value = arguments[-2:]
    said = refused(arguments, capsys)
    assert option in said and re.search('must be (a whole number, )?(at least|over)', said), said
    assert f'{option} {FIELDS[option[2:].replace("-", "_")].type(value)} ' in said


def drawn(name, allowed, number):
    """Lawful values of a field: its ends and some at random, spread over many magnitudes."""
    generator = random.Random(f'{name} {number}')
    low, high = allowed.low, min(allowed.high, allowed.low + 10.0 ** generator.uniform(0, 5))
    if allowed.kind is int:
        value = generator.choice([int(low), int(high), generator.randint(int(low), int(high))])
        return value
    value = generator.choice([low, high, generator.uniform(low, high), math.nextafter(low, math.inf)])
    return value if value in allowed else generator.uniform(low, high)


def just_outside(allowed):
    """Below, above, what the ends leave out, and what is no number of the kind."""
    step = (lambda x, to: x - 1 if to < x else x + 1) if allowed.kind is int else math.nextafter
    outside = [step(allowed.low, -math.inf), 'x', '', 'nan', 'inf', *allowed.without]
    outside += [step(allowed.high, math.inf)] if allowed.high < math.inf else []
    return outside + ([0.5] if allowed.kind is int else [])


@pytest.mark.parametrize('name', RANGES)
def test_values_of_each_range_and_just_outside(name, capsys):
    """Six of each are drawn, and up to eight just outside: more than 500 in all. Of options that stand in relation to
    others, what is drawn is only asked of its own range, and below of all together."""
    allowed, option = RANGES[name], spelled(name)
    for number in range(6):
        value = drawn(name, allowed, number)
        if name in RELATED:
            check_ranges(dataclasses.replace(Config(), **{name: value}))
        else:
            assert refused([f'{option}={value}'], capsys) == '', value
    for value in just_outside(allowed):
        said = refused([f'{option}={value}'], capsys)
        assert option in said and ('must be' in said or 'invalid' in said), f'{option}={value}: {said!r}'


def test_relations_between_lawful_values_end_without_a_traceback(capsys):
    """Whatever is drawn for all sizes and shares at once is accepted, or refused in a sentence."""
    names = [name for name in RANGES if name in Sizes.__dataclass_fields__] + ['chunk', 'mask_ratio', 'rho_a', 'rho_v']
    for number in range(150):
        values = {name: drawn(name, RANGES[name], number) for name in names}
        refused([f'{spelled(name)}={value}' for name, value in values.items()], capsys)


def test_a_range_in_words():
    assert str(COUNT) == 'a whole number, at least 1' and str(SHARE) == 'at least 0 and at most 1'
    assert str(Range(float, 0, 1, (0, 1))) == 'over 0 and under 1' and str(Range(float, 0, without=(0,))) == 'over 0'
    assert True not in COUNT and 1.0 not in COUNT and 1 in SHARE and '1' not in COUNT and None not in SHARE
    assert 10 ** 400 in COUNT and math.inf not in SHARE and math.nan not in SHARE


# ---------------------------------------------------------------------------------------- the machine

def test_a_memory_that_the_machine_has_no_room_for(tmp_path, here, monkeypatch, capsys):
    """Refused with the numbers before a folder is made or a clip drawn; said where the room is only taken."""
    code, out, err = here([*TINY, '--memory-size', '1000000000', '--out', 'run', '--method', 'er'], tmp_path)
    assert code == 2 and not (tmp_path / 'run').exists() and not (tmp_path / 'cache').exists()
    assert re.search(r': 1,000,000,000 pairs of 10,240 bytes are 10,240.00 GB, and this machine has \d.* GB$', err), err
    assert here([*TINY, '--memory-size', '1000000000', '--method', 'finetune', '--out', 'run', '--steps', '0',
                 '--pretrain-steps', '0'], tmp_path)[0] == 0                   # it has no memory
    monkeypatch.setattr(processes, 'machine_memory', lambda: (10 ** 9, 10 ** 6))
    cfg = parse([*TINY, '--memory-size', '200', '--method', 'er'])[0]
    processes.check_memory(cfg, torch.device('cpu'))
    assert 'GB, and this machine has 1.00 GB, of which 0.00 GB are free now' in capsys.readouterr().out
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '1000')                          # as many processes have as many memories
    with pytest.raises(UserError, match='200,000 pairs'):
        processes.check_memory(cfg, torch.device('cpu'))


@pytest.mark.parametrize('name', STORED_BY)
def test_what_a_memory_takes_is_known_before_there_is_one(name):
    chosen = dict(method='flava', selection=name) if name in ('random', 'mats') else dict(method=name)
    cfg = Config(**ODD, memory_size=12, chunk=2, **chosen)
    method = build(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))
    s = cfg
    method(dict(audio=torch.randn(4, s.audio_frames, s.mel_bins),
                video=torch.randint(0, 256, (4, s.num_frames, 3, s.image_size, s.image_size), dtype=torch.uint8)))
    pairs, each = full(cfg, name)
    assert method.memory.capacity == pairs and method.memory.bytes == pairs * each
    assert name in circumstances(cfg)


def test_machine_memory():
    there, free = processes.machine_memory()
    assert 2 ** 28 < free <= there


def test_odd_numbers_are_said_in_a_line(tmp_path, here, capsys):
    workers.say_once.cache_clear()
    few = [*TINY, '--method', 'finetune', '--clips-per-task', '9', '--batch-size', '100000', '--out', 'run']
    code, out, err = here([*few, '--steps', '1', '--pretrain-steps', '0'], tmp_path)
    assert code == 0, err
    assert out.count('--batch-size 100000 is more than there is: ash has 9 training clips (and 5 more of 6)') == 1, out
    open_data(parse([*few, '--pretrain-batch-size', '7000'])[0])
    said = capsys.readouterr().out
    assert '--pretrain-batch-size 7000 is more than there is: initial pre-training has 6000 training clips' in said


def test_more_workers_than_cores_are_said_in_a_line(capsys):
    workers.say_once.cache_clear()
    for _ in range(2):
        assert workers.count_workers('vggsound', 1000) == 1000 and workers.count_workers('shapes', 0) == 0
    assert capsys.readouterr().out.count('--workers 1000: for so many processes there are') == 1


def test_batches_are_said_before_a_clip_of_a_file_is_decoded(files, tmp_path, here, monkeypatch):
    monkeypatch.setattr('streams.common._check', lambda job: pytest.fail('a clip was tested'))
    monkeypatch.setattr('streams.common.world', lambda: 100)
    workers.say_once.cache_clear()
    code, out, err = here(['--dataset', 'vggsound', '--data', files, '--tasks', files / 'tasks.csv', *TINY,
                           '--workers', '0'], tmp_path)
    assert code == 2 and 'ash has 9 training clips, too few for 100 processes' in err, err


# --------------------------------------------------------------------------- the other command lines

@pytest.mark.parametrize('command, words', [
    ('eval.py run --task gap --seed -1', '--seed: -1 must be a whole number, at least 0'),
    ('eval.py run --task ave --lr nan', '--lr: nan must be over 0'),
    ('eval.py run --task ave --epochs 0', '--epochs: 0 must be'), ('eval.py run --clips 0', '--clips: 0 must be'),
    ('eval.py run --batch-size -2', '--batch-size: -2 must be'), ('eval.py run --workers -2', '--workers: -2 must'),
    ('paper.bench --batch 0', '--batch: 0 must be'), ('paper.bench --rounds -1', '--rounds: -1 must be'),
    ('paper.bench --steps x', '--steps: x must be'), ('paper.bench --data d --workers -3', '--workers: -3 must be'),
    ('paper.bench --out {file}/below/costs.json', 'file/below cannot be written: Not a directory'),
    ('paper.bench --out {folder}', 'is a folder, where a file is to be'),
    ('paper.figures nowhere --out {file}/below', 'file/below cannot be written: Not a directory'),
    ('streams.shapes --out x --train 0', '--train: 0 must be'), ('streams.shapes --out x --test -1', '--test: -1'),
    ('streams.shapes --out x --pretrain -1', '--pretrain: -1 must'), ('streams.shapes --out x --size 8', '--size: 8'),
    ('streams.shapes --out x --size 95', '--size 95: H.264 needs an even number'),
    ('streams.shapes --out x --seed -1', '--seed: -1 must'),
    ('streams.shapes --out {file}/below', 'file/below cannot be written: Not a directory'),
    ('data.py prepare --data d --out x --max-bad 3', '--max-bad: 3 must be at least 0 and at most 1'),
    ('data.py prepare --data d --out x --max-bad nan', '--max-bad: nan must be'),
    ('data.py prepare --data d --out x --workers -2', '--workers: -2 must be'),
    ('data.py prepare --data d --out x --shard 0/4', '--shard 0/4')])
def test_other_commands_refuse_in_a_sentence(command, words, tmp_path, capsys, monkeypatch):
    from config import exit_politely
    import eval as evaluation
    from paper import bench, figures
    from streams import prepare, shapes
    (tmp_path / 'file').write_text('')
    monkeypatch.chdir(tmp_path)
    name, *arguments = command.format(file=tmp_path / 'file', folder=tmp_path).split()
    main = {'eval.py': evaluation, 'paper.bench': bench, 'paper.figures': figures, 'streams.shapes': shapes,
            'data.py': prepare}[name].main
    with pytest.raises(SystemExit) as end, exit_politely():
        main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and len(said.strip().splitlines()) == 1, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


def test_help_of_the_other_commands_shows_ranges(capsys):
    import eval as evaluation
    from paper import bench
    from streams import prepare, shapes
    for main, arguments, number in ((evaluation.main, [], 6), (bench.main, [], 4), (shapes.main, [], 5),
                                    (prepare.main, ['prepare'], 2)):
        with pytest.raises(SystemExit):
            main([*arguments, '--help'])
        said = ' '.join(capsys.readouterr().out.split())
        assert len(re.findall('; (?:a whole number, )?(?:at least|over) [0-9-]', said)) == number, said


# ------------------------------------------------------------------------------ a folder of its own

def test_of_two_runs_in_one_folder_the_second_is_refused(tmp_path):
    """Both are started at the same time; whichever comes second. A killed one leaves no lock behind, though processes
    that load its clips may live on for seconds."""
    options = [*TINY, '--method', 'finetune', '--pretrain-steps', '0', '--save-every', '0', '--workers', '1',
               '--out', 'run']
    both = [start([*options, *more], tmp_path) for more in ([], ['--resume'])]
    while all(process.poll() is None for process in both):
        time.sleep(0.02)
    second, first = sorted(both, key=lambda process: process.poll() is None)
    out, err = second.communicate()
    assert second.returncode == 2 and 'another run is at work in run' in err and len(err.strip().splitlines()) == 1, err
    while not (tmp_path / 'run/log.jsonl').exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    code, _, err = train([*options, '--steps', '1', '--resume'], tmp_path)
    assert code == 2 and 'another run' not in err and '--steps was -1, now 1' in err, err     # it was let in
    first.communicate()


def test_a_lock_is_of_one_process_and_ends_with_what_holds_it(tmp_path):
    held = f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom processes import alone\n'
    run = lambda code: subprocess.run([sys.executable, '-c', held + code], cwd=tmp_path, capture_output=True, text=True,
                                      env=ONE_THREAD)
    (tmp_path / 'config.json').write_text('{}')
    with processes.alone(tmp_path):
        assert 'another run is at work' in run('with alone(Path(".")): pass').stderr
    assert run('with alone(Path(".")): pass').returncode == 0 and (tmp_path / '.lock').exists()
    (tmp_path / 'never').mkdir()
    with pytest.raises(KeyError), processes.alone(tmp_path / 'never'):
        raise KeyError
    assert not (tmp_path / 'never').exists()                                   # as if it had not been


def test_two_processes_are_refused_together(tmp_path):
    (tmp_path / 'file').write_text('')
    options = [*TINY, '--method', 'finetune', '--out', 'run']
    with processes.claimed(Config(out=str(tmp_path / 'run'), cache=str(tmp_path / 'cache'))):
        code, _, err = train(options, tmp_path, TORCHRUN)
    assert code != 0 and err.count('error: another run is at work in run') == 2, err
    code, _, err = train([*options, '--cache', 'file/cache'], tmp_path, TORCHRUN)
    assert code != 0 and err.count('error: --cache file/cache cannot be written: Not a directory') == 2, err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('option, at', [('--out', 'file/run'), ('--cache', 'file/cache'), ('--out', '/proc/run')])
def test_folders_that_cannot_be_written_end_a_run_before_it_begins(option, at, tmp_path, here, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('train.open_stream', lambda *options: pytest.fail('data were opened'))
    code, out, err = here([*TINY, '--out', 'run', option, at], tmp_path)
    assert code == 2 and f'error: {option} {at} cannot be written: ' in err and len(err.strip().splitlines()) == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


# ------------------------------------------------------------------------------------ edited options

@pytest.fixture
def finished(tmp_path, here):
    """A run's folder, and the words that it was started by."""
    words = [*TINY, '--method', 'er', '--steps', '1', '--pretrain-steps', '0', '--out', 'run']
    assert here(words, tmp_path)[0] == 0
    return tmp_path / 'run', words


def edit(run, **changes):
    """RUN/config.json with other values; None takes one away."""
    saved = json.loads((run / 'config.json').read_text()) | changes
    (run / 'config.json').write_text(json.dumps({name: value for name, value in saved.items() if value is not None}))


def evaluate(run, capsys, *words):
    import eval as evaluation
    with pytest.raises(SystemExit) as end:
        evaluation.main([str(run), *words])
        raise SystemExit(0)
    said = capsys.readouterr()
    return end.value.code, said.out + said.err


def test_a_config_that_was_edited_or_is_older_is_named(finished, tmp_path, here, capsys, monkeypatch):
    run, words = finished
    workers.say_once.cache_clear()
    edit(run, option_of_tomorrow=1, alpha=None, save_every=None)
    code, said = evaluate(run, capsys)
    assert code == 0 and 'config.json, edited or of another version: option_of_tomorrow: no option here' in said
    assert 'of another version: alpha: not there: its default' in said and 'save_every' not in said
    for changes, reason in ((dict(lr='fast'), '--lr fast must be over 0'), (dict(out=7), '--out 7 must be of type str'),
                            (dict(epochs=2.5), '--epochs 2.5 must be a whole number'),
                            (dict(method='erx'), '--method erx must be one of finetune, er,'),
                            (dict(patch_size=7), 'multiples of --patch-size 7'), (dict(tau=float('nan')), '--tau nan')):
        before = (run / 'config.json').read_text()
        edit(run, **changes)
        code, said = evaluate(run, capsys)
        assert code == 2 and 'config.json: ' in said and reason in said and 'Traceback' not in said, said
        (run / 'config.json').write_text(before)
    edit(run, num_heads=4)                                                      # which fits the weights' shapes
    code, said = evaluate(run, capsys, '--task', 'gap', '--last', '--device', 'cpu')
    assert code == 2 and re.search(r'config.json is not of .*/6.pt: --num-heads was 2, now 4$', said.strip()), said


def test_a_run_that_goes_on_says_that_its_config_was_edited(finished, tmp_path, here):
    run, words = finished
    before = json.loads((run / 'config.json').read_text())
    edit(run, lr=0.25, alpha=None)
    code, out, err = here([*words, '--resume'], tmp_path)
    assert code == 0 and 'was edited (--lr was 0.001, now 0.25): that changes nothing' in out, out + err
    assert json.loads((run / 'config.json').read_text()) == before
    code, out, err = here([*words, '--resume'], tmp_path)
    assert code == 0 and 'edited' not in out
    state = torch.load(run / 'last.pt', weights_only=True)
    state['config']['option_of_tomorrow'] = 1
    torch.save(state, run / 'last.pt')
    code, out, err = here([*words, '--resume'], tmp_path)
    assert code == 2 and '--option-of-tomorrow was 1, now not there' in err, err


# ------------------------------------------------------------------------- options without effect

@pytest.mark.parametrize('words, named', [
    ('--method er --chunk 2 --memory-size 9', ['chunk']), ('--clips-per-class 3 --max-bad 0.2', ['max_bad',
                                                                                                 'clips_per_class']),
    ('--method flava --mir-candidates 2 --alpha 1', ['mir_candidates']), ('--method er --alpha 1', ['alpha']),
    ('--method finetune --memory-size 3 --lump-beta 1', ['memory_size', 'lump_beta']),
    ('--dataset audioset --clips-per-class 3 --tasks x --data d --max-silent 2', ['max_silent', 'clips_per_class']),
    ('--method flava --selection random --alpha 1 --rho-a 0.6 --audio-selection none', ['audio_selection']),
    ('--pretrain-steps 0 --pretrain-lr 1 --method er --beta 1', ['pretrain_lr', 'beta']),
    ('--pretrain-steps 5 --pretrain-lr 1 --method er --beta 1', []), ('--size small --seed 3 --workers 0', []),
    ('--method der++ --alpha 1', []), ('--method flava+ --chunk 2 --rho-a 0.6', []), ('', [])])
def test_options_without_effect(words, named):
    said = without_effect(words.split(), parse(words.split())[0])
    assert sorted(line.split()[0] for line in said) == sorted(map(spelled, named)), said


def test_options_without_effect_are_said_once(tmp_path, here):
    code, out, err = here([*TINY, '--method', 'er', '--steps', '1', '--pretrain-steps', '0', '--clips-per-class', '3',
                           '--out', 'run'], tmp_path)
    assert code == 0
    assert out.count('--chunk has no effect here: it is for flava, flava+\n') == 1                # of TINY
    assert out.count('--clips-per-class has no effect here: it is for vggsound\n') == 1


def test_what_an_option_is_for_exists():
    known = {name for field in FIELDS.values() for name in field.metadata['of'].split(', ') if name}
    lawful = set().union(*(circumstances(parse(words.split())[0]) for words in (
        '--pretrain-steps 1', '--dataset vggsound', '--dataset audioset', *(f'--method {name}' for name in
        ('mir', 'gmed', 'cls-er', 'lump', 'der++', 'flava+')), '--selection random', '--selection mats')))
    assert known <= lawful, known - lawful
