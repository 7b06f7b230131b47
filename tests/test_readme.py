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


def test_options_and_files_named_exist():
    import dataclasses

    from config import Config
    text = (ROOT / 'README.md').read_text()
    options = {'--' + field.name.replace('_', '-') for field in dataclasses.fields(Config)} | {'--resume', '--help', '--out'}
    used = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text.replace('--nproc_per_node', '')))
    assert used and used <= options, used - options
    for file in re.findall(r'`([\w/]+\.(?:py|csv|pt|png))`', text):
        assert (ROOT / file).exists() or file in ('last.pt', 'vggsound.csv', 'select.py'), file
