"""docs/paper-notes.md: its numbers are in order, code cites every note, and what a note names exists."""
import ast
import io
import re
import tokenize

import pytest

from conftest import ROOT

PAGE = (ROOT / 'docs' / 'paper-notes.md').read_text()
# number → (title, text without line breaks)
NOTES = {int(number): (title, ' '.join(text.split()))
         for number, title, text in re.findall(r'^### <a id="n\d+"></a>N(\d+) · (.*)\n((?:(?!#).*\n)*)', PAGE, re.M)}
SOURCES = [path for path in sorted(ROOT.rglob('*.py'))
           if not {'tests', 'cache', 'runs'} & set(path.relative_to(ROOT).parts) and '/.' not in str(path)]


def comments_and_docstrings(path):
    """All comments and docstrings of a file, as one string"""
    text = path.read_text()
    found = [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
             if token.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found += [ast.get_docstring(node) or '' for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return '\n'.join(found)


def names_in(path):
    """Functions, classes, methods and fields that a file defines"""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_numbers_titles_and_contents_agree():
    assert list(NOTES) == list(range(1, len(NOTES) + 1))
    contents = re.findall(r'^- \[N(\d+)\]\(#n(\d+)\) (.*)$', PAGE, re.M)
    assert contents == [(str(number), str(number), title) for number, (title, _) in NOTES.items()]
    assert re.findall(r'<a id="n(\d+)">', PAGE) == [str(number) for number in NOTES]


@pytest.mark.parametrize('number', NOTES)
def test_a_note_has_all_of_its_parts(number):
    _, text = NOTES[number]
    assert re.search(r'"[^"]+".*\*\*Unclear:\*\* .*\*\*Here:\*\* .*\*\*Why:\*\* .*\*\*Where:\*\* ', text)
    assert {int(other) for other in re.findall(r'\bN(\d+)\b', text)} <= set(NOTES)


@pytest.mark.parametrize('number', NOTES)
def test_the_named_places_exist(number):
    where = NOTES[number][1].split('**Where:** ')[1]
    places = re.findall(r'`([\w/]+\.py)`((?:: `[\w.]+`|, `[\w.]+`)*)', where)
    assert places
    for file, names in places:
        assert (ROOT / file).is_file(), file
        for name in re.findall(r'`([\w.]+)`', names):
            assert set(name.split('.')) <= names_in(ROOT / file), f'{file} has no {name}'


def test_code_cites_every_note_and_no_other():
    cited = {}
    for path in SOURCES:
        for number in re.findall(r'\bN(\d+)\b', comments_and_docstrings(path)):
            cited.setdefault(int(number), []).append(str(path.relative_to(ROOT)))
    unknown = {number: files for number, files in cited.items() if number not in NOTES}
    assert not unknown, f'cited, but not in docs/paper-notes.md: {unknown}'
    missing = [f'N{number} {title}' for number, (title, _) in NOTES.items() if number not in cited]
    assert not missing, f'cited nowhere: {missing}'
