"""Options: what they default to, what is refused and how, and what `--help` says of them."""
import dataclasses
import re
import subprocess
import sys

import pytest

from config import FREE_TO_CHANGE, OF_PRETRAINING, PRESETS, Config, make_parser, parse
from conftest import ROOT
from patches import SIZES, Sizes, UserError
from running import train

FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def test_defaults_are_those_of_the_data_and_the_size():
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
    assert (given.batch_size, given.memory_size, given.epochs) == (16, 5000, 15)   # the benchmark's are for shapes alone
    assert given.galleries == 1 and small.galleries == 5 and (small.memory_size, small.epochs) == (160, 4)


def test_shipped_weights_are_for_their_own_sizes_only():
    shipped = parse([])[0]
    assert shipped.init.endswith('weights/shapes_small.pt') and shipped.pretrain_steps == 0
    for own in ('--embed-dim 32', '--pretrain-epochs 2', '--init other.pt', '--size base'):
        cfg = parse(own.split())[0]
        assert cfg.init == ('other.pt' if 'init' in own else '') and cfg.pretrain_steps == -1


def test_names_of_options_in_lists_are_options():
    assert OF_PRETRAINING <= set(FIELDS) and FREE_TO_CHANGE <= set(FIELDS)
    assert set(PRESETS) == set(SIZES)
    assert not OF_PRETRAINING & FREE_TO_CHANGE                     # a run that goes on began from the same weights


# ------------------------------------------------------------------------------------------- help

def test_help_has_five_groups_and_every_option():
    groups = {group.title: group._group_actions for group in make_parser()._action_groups if group._group_actions}
    options = {title: [action.dest for action in actions] for title, actions in groups.items() if title != 'options'}
    assert list(options) == ['data', 'method', 'training', 'sizes', 'run']
    assert sorted(sum(options.values(), [])) == sorted([*FIELDS, 'resume'])        # each once
    assert options['sizes'] == ['size', *(field.name for field in dataclasses.fields(Sizes))]
    assert {'dataset', 'tasks', 'workers'} <= set(options['data']) and {'method', 'rho_a'} <= set(options['method'])
    assert {'lr', 'epochs', 'init'} <= set(options['training']) and {'out', 'resume'} <= set(options['run'])


def test_help_says_the_default_where_there_is_one(capsys):
    of_option = {action.dest: action.help for action in make_parser()._actions}
    for name, field in FIELDS.items():
        assert field.metadata['help'] and field.metadata['help'].replace('%', '%%') in of_option[name]
        assert (f'(default {field.default}' in of_option[name]) == (field.default != ''), of_option[name]
        assert field.default != '' or '(default' not in of_option[name]
    assert '(default 2000; small shapes: 160; audioset: 5000)' in of_option['memory_size']
    with pytest.raises(SystemExit) as end:
        parse(['--help'])
    said, groups = capsys.readouterr().out, ('data', 'method', 'training', 'sizes', 'run')
    assert end.value.code == 0 and all(f'\n{title}:' in said for title in groups)


# --------------------------------------------------------------------------------- what is refused

@pytest.mark.parametrize('arguments, reason', [
    ('--dataset vggsound', '--dataset shapes'), ('--methd er', '--method'), ('--method flva', 'flava'),
    ('--size smal', 'small'), ('--dataset shape', 'shapes'), ('--mask-ratio 0.4', 'mask'),
    ('--rho-v 0.3 --mask-ratio 0.7', 'nothing to predict'), ('--chunk 3', 'divide'),
    ('--method er --selection importance', 'for --method flava'), ('--selection mats --num-frames 1', 'two frames'),
    ('--device cuda:99', 'GPUs'), ('--device qpu', 'no such kind'), ('--init nowhere.pt', 'no such file'),
    ('--batch-size x', 'invalid int'), ('--image-size 100', 'multiples')])
def test_mistakes_get_one_message(arguments, reason, tmp_path, here):
    code, out, err = here(arguments.split(), tmp_path)
    assert code == 2 and reason in err and len(err.strip().splitlines()) <= 12, err


@pytest.mark.parametrize('arguments, reason', [
    ('--embed-dim 50', 'multiples of 4'), ('--num-heads 5', '--num-heads 5 does not divide the width 64'),
    ('--avm-heads 3', '--avm-heads 3'), ('--decoder-num-heads 7', '--decoder-num-heads 7'),
    ('--batch-size 0', '--batch-size 0 must be a whole number, at least 1'), ('--memory-size 0', '--memory-size 0'),
    ('--method flava+ --selection mats', 'for --method flava'), ('--lump-beta 0', '--lump-beta'),
    ('--max-silent 3', '--max-silent'), ('--mask-ratio 0.99', '0 of 64 patches'),
    ('--pretrain-mask-ratio 0.99', '0 of 64'), ('--rho-a 1.5', 'at most 1'),
    ('--rho-a 0.01', 'nothing to predict'), ('--mask-ratio 0.4', 'nothing to predict')])
def test_what_cannot_be_trained(arguments, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        parse(arguments.split())


def test_what_asks_for_no_selection_may_have_any_shares():
    assert parse('--method er --rho-a 0.1 --chunk 3'.split())[0].rho_a == 0.1
    assert parse('--audio-selection none --chunk 3'.split())[0].chunk == 3         # only time has chunks
    with pytest.raises(UserError, match='nothing to predict'):
        parse(['--rho-a', '0.3', '--mask-ratio', '0.7'])


def test_a_mistake_on_the_command_line(tmp_path):
    """What the user sees: no traceback, exit code 2."""
    code, out, err = train(['--dataset', 'vggsound'], tmp_path)
    assert code == 2 and 'vggsound.csv' in err and '--dataset shapes' in err and 'Traceback' not in err
    done = subprocess.run([sys.executable, str(ROOT / 'eval.py'), 'nowhere', '--task', 'retrieval'],
                          capture_output=True, text=True)
    assert done.returncode == 2 and 'nowhere' in done.stderr and 'Traceback' not in done.stderr
