"""Options: defaults and presets, ranges, combinations, help; options of saved runs."""
import dataclasses
import re

import pytest
import torch

import config
from config import BENCHMARK, PATH_FIELDS, RUNTIME_FIELDS, STREAM_FIELDS, Config, Sizes, UserError
from flava import METHODS, SELECTION_BASELINES
from streams import catalogue
from utils.checkpoint import config_changes, with_older_defaults
from utils.cli import flag_name, parse, unused_flags
from utils.weights import pretraining_cache

FIELDS = {field.name: field for field in dataclasses.fields(Config)}


# ------------------------------------------------------------------------------ defaults and presets

def test_defaults_follow_dataset_and_size():
    paper = parse(['--dataset', 'vggsound'])[0]
    assert paper == Config(dataset='vggsound', data='data/vggsound', size='base', out='runs/vggsound-base-flava-0')
    assert (paper.kappa_a, paper.kappa_v) == (256, 392)
    audioset = parse('--dataset audioset --method er --seed 3'.split())[0]
    assert (audioset.batch_size, audioset.epochs, audioset.memory_size) == (36, 15, 5000)
    assert audioset.data == 'data/audioset' and audioset.out == 'runs/audioset-base-er-3'
    small, resume = parse(['--resume'])
    assert resume and (small.dataset, small.size, small.data, small.image_size) == ('shapes', 'small', '', 96)
    assert small.lr == 1e-3 and small.out == 'runs/shapes-small-flava-0'
    given = parse('--dataset audioset --size small --lr 0.5 --rho-a 0.6 --data here --out there'.split())[0]
    assert (given.lr, given.rho_a, given.data, given.out) == (0.5, 0.6, 'here', 'there')
    assert (given.batch_size, given.memory_size, given.epochs) == (16, 5000, 15)


def test_the_benchmarks_numbers_are_for_small_shapes_alone():
    defaults = dataclasses.asdict(Config())
    shapes, other = (dataclasses.asdict(parse(words.split())[0]) for words in
                     ('--pretrain-steps 0', '--dataset vggsound --size small'))
    base = dataclasses.asdict(parse(['--size', 'base'])[0])
    for name, value in BENCHMARK.items():
        assert shapes[name] == value and other[name] == defaults[name] == base[name], name


def test_committed_weights_are_for_their_own_sizes_only():
    cfg = parse([])[0]
    assert cfg.init.endswith('weights/shapes_small.pt') and cfg.pretrain_steps == 0
    for words in ('--embed-dim 32', '--pretrain-epochs 2', '--init other.pt', '--size base'):
        cfg = parse(words.split())[0]
        assert cfg.init == ('other.pt' if 'init' in words else '') and cfg.pretrain_steps == -1


def test_names_in_the_config_exist_and_numbers_have_a_lower_bound():
    assert tuple(catalogue.DATASETS) == config.DATASETS and tuple(METHODS) == config.METHODS
    known = {*METHODS, *SELECTION_BASELINES, *config.SELECTIONS, *config.SCORERS, *config.DATASETS, config.FILES, config.REPLAY,
             config.PRETRAINING}
    for name, field in FIELDS.items():
        assert set(field.metadata['applies_to'].split(', ')) <= known | {''}, name
        bounds = field.metadata['bounds']
        assert field.type is str or bounds['min'] is not None or bounds['over'] is not None, name


# ------------------------------------------------------------------------------ ranges, combinations

@pytest.mark.parametrize('name, accepted, refused', [
    ('batch_size', [1], [0, 2.5, 'x']),                            # a minimum
    ('activation_checkpointing', [-1, 1], [-2, 2]),                # a minimum and a maximum
    ('lr', [1e-9], [0.0, -1.0, float('nan'), float('inf')]),       # above
    ('beta1', [0.0, 0.99], [-0.1, 1.0]),                           # at least, below
    ('rho_a', [0.5, 1.0], [0.0, 1.1]),                             # above, at most
    ('method', ['er'], ['nonsense'])])
def test_ranges(name, accepted, refused, capsys):
    """By Config, and on the command line."""
    for value in accepted:
        assert getattr(Config(**{name: value}), name) == value
        assert getattr(parse([f'{flag_name(name)}={value}'])[0], name) == value
    for value in refused:
        with pytest.raises(UserError, match=f'{flag_name(name)} .*{value}.* must be '):
            Config(**{name: value})
        with pytest.raises(SystemExit) as end:
            parse([f'{flag_name(name)}={value}'])
        printed = capsys.readouterr().err
        assert end.value.code == 2 and flag_name(name) in printed and len(printed.splitlines()) == 1, printed


@pytest.mark.parametrize('arguments, reason', [
    ('--image-size 100', 'multiples of --patch-size 16'), ('--embed-dim 50', 'multiples of 4'),
    ('--num-heads 5', '--num-heads 5 does not divide'), ('--avm-heads 3', '--avm-heads 3'),
    ('--decoder-num-heads 7', '--decoder-num-heads 7'), ('--chunk 3', '--chunk 3 must divide'),
    ('--method er --selection importance', 'needs --method flava'),
    ('--method flava+ --selection mats', '--selection mats needs --method flava'),
    ('--selection mats --num-frames 1', '--num-frames 2 or more'), ('--mask-ratio 0.99', '0 of 64 patches visible'),
    ('--scorer grid --selection random', '--scorer grid needs'), ('--scorer student', '--selection both needs'),
    ('--pretrain-mask-ratio 0.99', '0 of 64'), ('--rho-a 0.01', '--rho-a 0.01'),
    ('--mask-ratio 0.4', 'no selected patch to predict'), ('--rho-v 0.3 --mask-ratio 0.7', '--rho-v 0.3'),
    ('--min-silent 2 --max-silent 1', '--min-silent 2 is larger'), ('--test-clips 7', 'not a multiple'),
    ('--dataset vggsound --candidate-sets 2', 'needs --dataset shapes')])
def test_impossible_combinations(arguments, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        parse(arguments.split())


# ------------------------------------------------------------------------------ the command line

def test_similar_names_are_suggested(capsys):
    for words, suggestion in (('--methd er', "'--method'"), ('--method flva', "'flava'"), ('--size smal', "'small'")):
        with pytest.raises(SystemExit) as end:
            parse(words.split())
        assert end.value.code == 2 and f'did you mean {suggestion}' in capsys.readouterr().err


def test_help_has_every_option_its_range_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        parse(['--help'])
    printed = ' '.join(capsys.readouterr().out.split())
    assert end.value.code == 0 and all(f'{flag_name(name)} {name.upper()}' in printed for name in FIELDS)
    assert 'a whole number at least 1 (default 2000; small shapes: 160; audioset: 5000)' in printed
    assert 'a number at least 0 and below 1 (default 0.95)' in printed


@pytest.mark.parametrize('words, unused', [
    ('--method er --chunk 3 --rho-a 0.1 --memory-size 9', ['chunk', 'rho_a']),     # any chunk, without a selection
    ('--selection random --chunk 3', ['chunk']), ('--audio-selection none --chunk 3', []),     # any chunk: no chunks
    ('--clips-per-class 3 --max-bad 0.2', ['clips_per_class', 'max_bad']),
    ('--method flava --mir-candidates 2 --alpha 1', ['mir_candidates']), ('--method er --alpha 1', ['alpha']),
    ('--method finetune --memory-size 3 --lump-beta 1', ['memory_size', 'lump_beta']),
    ('--dataset audioset --clips-per-class 3 --tasks x --data d --max-silent 2', ['clips_per_class', 'max_silent']),
    ('--method flava --selection random --alpha 1 --rho-a 0.6 --audio-selection none', ['audio_selection']),
    ('--pretrain-steps 0 --pretrain-lr 1 --method er --beta 1', ['beta', 'pretrain_lr']),
    ('--pretrain-steps 5 --pretrain-lr 1 --method er --beta 1', ['beta']), ('--size small --seed 3 --workers 0', []),
    ('--method der++ --alpha 1', []), ('--method flava+ --chunk 2 --rho-a 0.6', []), ('', [])])
def test_options_without_effect_are_named(words, unused):
    lines = unused_flags(words.split(), parse(words.split())[0])
    assert sorted(line.split()[0] for line in lines) == sorted(map(flag_name, unused)), lines


# ------------------------------------------------------------------------------ options of saved runs

def changed(name):
    """A Config in which one option is not the default. Nothing checks it."""
    cfg = Config()
    setattr(cfg, name, cfg.__dict__[name] + ('x' if FIELDS[name].type is str else 1))
    return cfg


def test_the_cache_of_the_pretraining_depends_on_every_other_option():
    """A new option counts, unless it is listed among the options of the stream or of the run."""
    assert RUNTIME_FIELDS | STREAM_FIELDS <= set(FIELDS) and not RUNTIME_FIELDS & STREAM_FIELDS
    assert not set(Sizes.__dataclass_fields__) & (RUNTIME_FIELDS | STREAM_FIELDS)

    def cache_name(cfg, clips=60):
        return pretraining_cache(cfg, torch.device('cpu'), clips).name
    for name in FIELDS:
        differs = cache_name(changed(name)) != cache_name(Config())
        assert differs == (name not in RUNTIME_FIELDS | STREAM_FIELDS | PATH_FIELDS), name
    assert cache_name(Config(), clips=61) != cache_name(Config())


def test_an_option_that_a_saved_run_does_not_know_counts_as_its_default():
    now = dataclasses.asdict(Config())
    for name in FIELDS:
        was = {other: value for other, value in now.items() if other != name}
        assert with_older_defaults(was) == now and config_changes(was, now) == []
        changes = config_changes(was, dataclasses.asdict(changed(name)))
        expected = [] if name in RUNTIME_FIELDS | PATH_FIELDS | {'scorer_every'} else [flag_name(name)]
        assert [change.split()[0] for change in changes] == expected


def test_older_runs_on_files_rolled_by_ten_frames():
    files = dataclasses.asdict(Config(dataset='vggsound'))
    del files['max_roll']
    assert config_changes(files, dataclasses.asdict(Config(dataset='vggsound', max_roll=10))) == []
    assert config_changes(files, dataclasses.asdict(Config(dataset='vggsound'))) == ['--max-roll was 10, now -1']
    assert config_changes({'init': '/a/x.pt'}, {'init': '/b/x.pt', 'tomorrow': 1}) == \
        ["--tomorrow was 'unknown', now 1"]
