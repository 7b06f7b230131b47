"""The README's table of paper and code, and its options, name things that exist."""
import ast
import re

from conftest import ROOT


def names_of(path):
    """Functions, classes and Class.method of a module."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f'{node.name}.{sub.name}' for sub in getattr(node, 'body', []) if isinstance(sub, ast.FunctionDef)}
    return names


def test_paper_and_code_table():
    text = (ROOT / 'README.md').read_text()
    table = text[text.index('| paper | here |'):].split('\n\n')[0]
    checked = 0
    for file, code in re.findall(r'`(\w+\.py)`: ((?:`[^`]+`(?:, )?)+)', table):
        names, owner = names_of(ROOT / file), ''
        for name in re.findall(r'`([^`]+)`', code):
            owner = name.split('.')[0] or owner                # `.fuse` after `AudioVideoMAE.encode`
            assert (owner + name if name.startswith('.') else name) in names, f'{file} has no {name}'
            checked += 1
    assert checked > 30


def test_tables_figures_and_equations_are_all_there():
    """Every equation, both algorithms, and each table and figure that is made of numbers or attention."""
    text = (ROOT / 'README.md').read_text()
    code = text[text.index('| paper | here |'):].split('\n\n')[0]
    commands = text[text.index('| paper | runs of'):].split('\n\n')[0]

    def numbers(kind, where):
        """Eq. 2; Eq. 10, 11; Tables 1, 3, 4 …"""
        return {int(n) for group in re.findall(kind + r's?\.? ((?:\d+(?:, | and )?)+)', where) for n in re.findall(r'\d+', group)}
    assert numbers('Eq', code) == set(range(1, 12)) and numbers('Algorithm', code) == {1, 2}
    assert numbers('Table', code) == numbers('Table', commands) == set(range(1, 11))
    drawn = {2, 3, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17}
    assert numbers('Figure', commands) == drawn and numbers('Figure', code) == drawn
    import figures
    import tables
    assert set(figures.FIGURES) == drawn and set(tables.TABLES) == {1, 3, 4, 7, 8, 9, 10}


def test_options_and_files_named_exist():
    import dataclasses

    from config import Config
    text = (ROOT / 'README.md').read_text()
    options = {'--' + field.name.replace('_', '-') for field in dataclasses.fields(Config)} | {'--resume', '--help'}
    for program in ('eval.py', 'figures.py', 'bench.py', 'shapes.py'):
        options |= set(re.findall(r"add_argument\('(--[a-z-]+)'", (ROOT / program).read_text()))
    used = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text.replace('--nproc_per_node', '')))
    assert used and used <= options, used - options
    for file in re.findall(r'`([\w/]+\.(?:py|csv|pt|png))`', text):
        assert (ROOT / file).exists() or file in ('last.pt', 'vggsound.csv', 'select.py'), file
    for command in re.findall(r'python (\w+\.py|tests/\w+\.py)', text):
        assert (ROOT / command).exists(), command
    from methods import METHODS
    for name in METHODS:
        assert f'`{name}`' in text, name
