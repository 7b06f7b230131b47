"""paper/README.md names every table and figure, each file of the folder, and only commands and options that exist."""
import dataclasses
import re

from config import Config
from conftest import ROOT
from paper import figures, tables

TEXT = (ROOT / 'paper' / 'README.md').read_text()


def numbers(kind, where):
    """Table 1; Figures 2, 17; Tables 1, 3 and 4"""
    groups = re.findall(kind + r's? ((?:\d+(?:, | and )?)+)', where)
    return {int(n) for group in groups for n in re.findall(r'\d+', group)}


def test_every_table_and_figure_has_its_command():
    """Each that is made of numbers or attention; and the others are named as not drawn."""
    commands = TEXT[TEXT.index('| paper | runs of'):].split('\n\n')[0]
    drawn = {2, 3, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17}
    assert numbers('Table', commands) == set(range(1, 11))
    assert numbers('Figure', commands) == drawn
    assert numbers('Figure', TEXT[TEXT.index('Figures 1, 4'):]) == set(range(1, 18)) - drawn
    assert set(figures.FIGURES) == drawn and set(tables.TABLES) == {1, 3, 4, 7, 8, 9, 10}


def test_every_file_is_named():
    files = TEXT[TEXT.index('| file |'):].split('\n\n')[0]
    here = {path.name for path in (ROOT / 'paper').glob('*.py')} - {'__init__.py'}
    assert set(re.findall(r'`(\w+\.py)` \|', files)) == here
    for row in re.findall(r'^\| `(?:figures|gaps|attention|tables|bench)\.py` .*', files, re.M):
        assert numbers('Figure', row) | numbers('Table', row), row
    assert numbers('Figure', files) == set(figures.FIGURES) and numbers('Table', files) == set(tables.TABLES) | {2}


def test_options_and_commands_named_exist():
    options = {'--' + field.name.replace('_', '-') for field in dataclasses.fields(Config)} | {'--resume', '--help'}
    for program in ('eval.py', 'paper/figures.py', 'paper/bench.py'):
        options |= set(re.findall(r"\('(--[a-z-]+)'", (ROOT / program).read_text()))
    used = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', TEXT))
    assert used and used <= options, used - options
    for command in re.findall(r'python (\w+\.py)', TEXT):
        assert (ROOT / command).exists(), command
    for module in re.findall(r'python -m ([\w.]+)', TEXT):
        assert (ROOT / module.replace('.', '/')).with_suffix('.py').exists(), module
