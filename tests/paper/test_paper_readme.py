"""paper/README.md names every table, every figure and every file, and only options that exist."""
import dataclasses
import re

from config import Config
from conftest import ROOT
from paper import figures, tables

TEXT = (ROOT / 'paper' / 'README.md').read_text()
COMMANDS = TEXT[TEXT.index('| paper | runs of'):].split('\n\n')[0]
FILES = TEXT[TEXT.index('| file |'):].split('\n\n')[0]


def numbers(kind, text):
    """The numbers in "Table 1; Figures 2, 17; Tables 1, 3 and 4" """
    groups = re.findall(kind + r's? ((?:\d+(?:, | and )?)+)', text)
    return {int(n) for group in groups for n in re.findall(r'\d+', group)}


def test_every_table_and_figure_has_a_command():
    assert numbers('Table', COMMANDS) == set(range(1, 11)) and set(tables.TABLES) == {1, 3, 4, 7, 8, 9, 10}
    assert numbers('Figure', COMMANDS) == set(figures.FIGURES) == {2, 3, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17}
    assert numbers('Figure', TEXT[TEXT.index('Figures 1, 4'):]) == set(range(1, 18)) - set(figures.FIGURES)


def test_every_file_is_named():
    assert set(re.findall(r'^\| `(\w+\.py)` \|', FILES, re.M)) == {
        path.name for path in (ROOT / 'paper').glob('*.py')} - {'__init__.py'}
    assert numbers('Figure', FILES) == set(figures.FIGURES) and numbers('Table', FILES) == set(tables.TABLES) | {2}


def test_options_exist():
    options = {'--' + field.name.replace('_', '-') for field in dataclasses.fields(Config)} | {'--resume', '--help'}
    for program in ('eval.py', 'paper/figures.py', 'paper/bench.py'):
        options |= set(re.findall(r"\('(--[a-z-]+)'", (ROOT / program).read_text()))
    used = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', TEXT))
    assert used <= options, used - options
