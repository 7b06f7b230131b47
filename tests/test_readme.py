"""The READMEs name things that exist: the table of paper and code, files, commands, options."""
import ast
import dataclasses
import re

import pytest

from baselines import METHODS
from config import FIRST_OF_GROUP, Config
from conftest import ROOT

README = (ROOT / 'README.md').read_text()
PAGES = [f'{folder}/README.md' for folder in ('.', 'streams', 'paper', 'results', 'weights')] \
    + ['docs/your-own.md', 'docs/tour/README.md']
ON_DISK = {   # of a run, of a data set, or of the examples in docs/your-own.md
    'last.pt', 'vggsound.csv', 'select.py', 'streams/folders.py', 'downstream/alignment.py', 'bench.py', 'tasks.csv',
    'class_labels_indices.csv', 'balanced_train_segments.csv', 'unbalanced_train_segments.csv', 'eval_segments.csv'}


def names_of(path):
    """Functions, classes and Class.method of a module."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f'{node.name}.{sub.name}' for sub in node.body if isinstance(sub, ast.FunctionDef)}
    return names


def table_of(page, header):
    text = (ROOT / page).read_text()
    return text[text.index(header):].split('\n\n')[0]


def numbers(kind, where):
    """Eq. 2; Eq. 10, 11; Tables 1, 3, 4 …"""
    groups = re.findall(kind + r's?\.? ((?:\d+(?:, | and )?)+)', where)
    return {int(n) for group in groups for n in re.findall(r'\d+', group)}


def test_paper_and_code_table():
    checked = 0
    for file, code in re.findall(r'`([\w/]+\.py)`: ((?:`[^`]+`(?:, )?)+)', table_of('README.md', '| paper | here |')):
        names, owner = names_of(ROOT / file), ''
        for name in re.findall(r'`([^`]+)`', code):
            if name.endswith('.py'):
                break
            owner = name.split('.')[0] or owner                # `.fuse` after `AudioVideoMAE.encode`
            assert (owner + name if name.startswith('.') else name) in names, f'{file} has no {name}'
            checked += 1
    assert checked > 60


def test_every_equation_algorithm_table_and_figure_has_its_place():
    from paper import figures, tables
    code = table_of('README.md', '| paper | here |')
    drawn = {2, 3, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17}
    assert numbers('Eq', code) == set(range(1, 12)) and numbers('Algorithm', code) == {1, 2}
    assert numbers('Table', code) - {7} == set(range(1, 11)) - {7} and numbers('Figure', code) == drawn
    assert set(figures.FIGURES) == drawn and set(tables.TABLES) == {1, 3, 4, 7, 8, 9, 10}


def test_the_reading_order_names_every_room():
    order = re.findall(r'^\| `([\w/.]+)`', table_of('README.md', '| file | section |'), re.M)
    assert sorted(order) == sorted([path.name for path in ROOT.glob('*.py')] + ['streams/', 'downstream/', 'paper/'])


@pytest.mark.parametrize('page', PAGES)
def test_options_files_and_commands_named_exist(page):
    text = (ROOT / page).read_text()
    options = {'--' + field.name.replace('_', '-') for field in dataclasses.fields(Config)} | {'--resume', '--help'}
    for program in ('eval.py', 'paper/figures.py', 'paper/bench.py', 'paper/tour.py', 'paper/what_if.py',
                    'streams/shapes.py', 'streams/prepare.py'):
        options |= set(re.findall(r"(?:add_argument|option)\('(--[a-z-]+)'", (ROOT / program).read_text()))
    used = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text.replace('--nproc_per_node', '')))
    assert used <= options, used - options
    folder = (ROOT / page).parent
    for file in re.findall(r'`([\w/]+\.(?:py|csv|pt|png))`', text):
        assert (ROOT / file).exists() or (folder / file).exists() or file in ON_DISK, file
    for link in re.findall(r'\]\(([\w/.-]+)\)', text):
        assert (folder / link).exists(), link
    for command in re.findall(r'python (\w+\.py|tests/\w+\.py)', text):
        assert (ROOT / command).exists() or command in ON_DISK, command
    for module in re.findall(r'python -m (\w+\.\w+)', text):
        assert (ROOT / module.replace('.', '/')).with_suffix('.py').exists(), module


def test_methods_and_headings_of_help_are_named():
    for name in METHODS:
        assert f'`{name}`' in README, name
    for heading in FIRST_OF_GROUP.values():
        assert f'**{heading}**' in README, heading
