"""Which way imports go; the names and links of the Markdown pages exist."""
import ast
import graphlib
import re

import pytest

from conftest import ROOT

FOLDERS = ('utils', 'streams', 'downstream', 'paper', 'study')
FILES = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): ast.parse(path.read_text())
         for pattern in ('*.py', *(f'{folder}/*.py' for folder in FOLDERS)) for path in sorted(ROOT.glob(pattern))}
READMES = [f'{folder}/README.md' for folder in (*FOLDERS, 'weights')]
PAGES = [path for pattern in ('*.md', 'docs/**/*.md', 'results/**/*.md', *READMES) for path in ROOT.glob(pattern)]


def imports(nodes):
    """Modules of this repository that these statements import"""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]      # from streams import shapes
            names = [name if name in FILES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name in FILES)


AT_MODULE_LEVEL = {name: set(imports(tree.body)) for name, tree in FILES.items()}


def test_imports_have_no_cycles():
    assert sum(map(len, AT_MODULE_LEVEL.values())) > 80
    graphlib.TopologicalSorter(AT_MODULE_LEVEL).prepare()


def test_core_modules_do_not_import_the_appendix():
    """Except inside a function, where a command line needs it. Nothing imports train."""
    for name, others in AT_MODULE_LEVEL.items():
        folders = {other.split('.')[0] for other in others}
        if '.' not in name:
            assert not folders & {'downstream', 'paper', 'study'}, name
        if name.startswith('utils.'):
            assert folders <= {'utils', 'config'}, name
        assert name == 'config' or AT_MODULE_LEVEL['config'] == set()
        imported = [node for block in FILES[name].body if '__main__' not in ast.unparse(block)[:30]
                    for node in ast.walk(block)]
        assert 'train' not in set(imports(imported)), name


def test_names_in_the_table_of_paper_and_code_exist():
    """Each row: `file.py`: `name`, `.method of the class before`; …"""
    checked = 0
    for file, names in re.findall(r'`([\w/]+\.py)`: ((?:`[^`]+`(?:, )?)+)', (ROOT / 'README.md').read_text()):
        code = (ROOT / file).read_text()
        for name in re.findall(r'\w+', names):
            assert re.search(rf'^ *(def|class) {name}\b', code, re.M), f'{file} has no {name}'
            checked += 1
    assert checked > 60


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_of_pages_exist(page):
    text = page.read_text()
    prose = re.sub(r'```.*?```|`[^`\n]*`', '', text, flags=re.S)
    for link in re.findall(r'\]\(([\w/.-]+)(?:#[\w-]+)?\)', prose):
        assert (page.parent / link).exists(), link
    if page.name != 'extending.md':                        # which has commands of its examples
        for module in re.findall(r'python (?:-m )?((?:tests/|\w+\.)?\w+(?:\.py)?)', text):
            file = module if module.endswith('.py') else module.replace('.', '/') + '.py'
            assert '.' not in module or (ROOT / file).exists(), module
