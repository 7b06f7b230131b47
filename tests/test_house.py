"""The house stands as its plan has it: which rooms there are, which way they lean on each other, how large they are."""
import ast
import graphlib

import pytest

from conftest import ROOT

CORE = {'patches', 'model', 'avm', 'selection', 'memory', 'flava', 'baselines', 'data', 'train', 'eval', 'config',
        'weights', 'run', 'processes'}
WINGS = ('streams', 'downstream', 'paper')
FILES = {path: ast.parse(path.read_text()) for pattern in ('*.py', *(f'{wing}/*.py' for wing in WINGS))
         for path in sorted(ROOT.glob(pattern))}
NAMES = {path: '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in FILES}


def imported(tree):
    """(name of a module of ours, whether inside a function) for every import of a file, wherever it stands, but for
    `if __name__ == '__main__':`, which an import does not run"""
    of_command = {node for block in tree.body if isinstance(block, ast.If) and '__main__' in ast.unparse(block.test)
                  for node in ast.walk(block)}
    inside = {node for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.Lambda))
              for node in ast.walk(function)}
    for node in set(ast.walk(tree)) - of_command:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute here'
            names = [f'{node.module}.{alias.name}' for alias in node.names]      # from streams import shapes
            names = [name if name in NAMES.values() else node.module for name in names]
        else:
            continue
        yield from ((name, node in inside) for name in names if name in NAMES.values())


IMPORTS = {NAMES[path]: list(imported(tree)) for path, tree in FILES.items()}
ALL = [(name, other, inside) for name, others in IMPORTS.items() for other, inside in others]


def test_fourteen_rooms_and_three_wings():
    assert {path.stem for path in ROOT.glob('*.py')} == CORE
    for wing in WINGS:
        assert [type(node) for node in FILES[ROOT / wing / '__init__.py'].body] == [ast.Expr], 'a docstring and no more'


def test_no_circles():
    graphlib.TopologicalSorter({name: {other for other, _ in others} for name, others in IMPORTS.items()}).prepare()


def test_which_way_the_arrows_go():
    assert len(ALL) > 80
    for name, other, inside in ALL:
        wing, of = name.split('.')[0], other.split('.')[0]
        assert other != 'train', f'{name} imports train'
        if name in CORE:
            assert inside or of not in ('downstream', 'paper'), f'{name} imports {other} outside of a function'
        if wing == 'streams':
            assert of in ('streams', 'patches', 'data'), f'{name} imports {other}'
        if wing in ('downstream', 'paper'):
            assert other != 'eval' and (wing, of) != ('downstream', 'paper'), f'{name} imports {other}'


def test_nothing_is_imported_by_another_way():
    """What the tests above would not see."""
    for path, tree in FILES.items():
        called = {getattr(node.func, 'id', getattr(node.func, 'attr', '')) for node in ast.walk(tree)
                  if isinstance(node, ast.Call)}
        assert not called & {'__import__', 'import_module', 'run_module', 'run_path'}, path


def test_no_module_shadows_the_standard_library():
    import sys
    assert not [path for path in FILES if path.stem in sys.stdlib_module_names]


@pytest.mark.parametrize('path', FILES, ids=NAMES.values())
def test_a_file_can_be_held_in_the_head(path):
    """Each says in one line what it is, and neither it nor any function of it is long."""
    tree, lines = FILES[path], path.read_text().splitlines()
    first = (ast.get_docstring(tree) or '').splitlines()[:1]
    assert first and first[0].endswith(('.', '?')) and 20 < len(first[0]) <= 117, first
    assert len(lines) <= (350 if path.parent == ROOT else 400), len(lines)
    assert max(map(len, lines)) <= 120
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, f'{node.name}: {node.end_lineno - node.lineno + 1} lines'


def test_lines_of_the_tests_have_their_length_too():
    for path in (ROOT / 'tests').rglob('*.py'):
        long = [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
        assert not long, f'{path}: {long}'


def test_algorithm_1_is_the_first_thing_in_train():
    tree = FILES[ROOT / 'train.py']
    functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [node.name for node in functions[:2]] == ['learn_stream', 'take_steps']
    assert functions[1].end_lineno < 120 and len((ROOT / 'train.py').read_text().splitlines()) < 250


def test_a_line_of_flavas_step_leaves_the_file_at_most_once():
    """Of what FLAVA's step calls by name, at most one in a statement is of another file."""
    tree = FILES[ROOT / 'flava.py']
    foreign = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
               and node.module in CORE for alias in node.names}
    flava = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == 'FLAVA')
    step = next(node for node in flava.body if isinstance(node, ast.FunctionDef) and node.name == 'forward')
    simple = [node for node in ast.walk(step) if isinstance(node, (ast.Assign, ast.Expr, ast.Return, ast.AugAssign))]
    assert len(simple) > 12
    for statement in simple:
        calls = [node.func.id for node in ast.walk(statement)
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in foreign]
        assert len(calls) <= 1, ast.unparse(statement)
