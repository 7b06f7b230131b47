"""docs/paper-notes.md: its numbers are in order, code cites every note, and what a note names exists."""
import re

import pytest

from conftest import ROOT

PAGE = (ROOT / 'docs' / 'paper-notes.md').read_text()
# number → (title, text without line breaks)
NOTES = {int(number): (title, ' '.join(text.split()))
         for number, title, text in re.findall(r'^### <a id="n\d+"></a>N(\d+) · (.*)\n((?:(?!#).*\n)*)', PAGE, re.M)}
SOURCES = [path for path in sorted(ROOT.rglob('*.py'))
           if not {'tests', 'cache', 'runs'} & set(path.relative_to(ROOT).parts) and '/.' not in str(path)]


def test_numbers_titles_and_contents_agree():
    assert list(NOTES) == list(range(1, len(NOTES) + 1))
    contents = re.findall(r'^- \[N(\d+)\]\(#n(\d+)\) (.*)$', PAGE, re.M)
    assert contents == [(str(number), str(number), title) for number, (title, _) in NOTES.items()]
    assert re.findall(r'<a id="n(\d+)">', PAGE) == [str(number) for number in NOTES]


@pytest.mark.parametrize('number', NOTES)
def test_a_note_has_all_of_its_parts_and_names_places_that_exist(number):
    text = NOTES[number][1]
    assert re.search(r'"[^"]+".*\*\*Unclear:\*\* .*\*\*Here:\*\* .*\*\*Why:\*\* .*\*\*Where:\*\* ', text)
    assert {int(other) for other in re.findall(r'\bN(\d+)\b', text)} <= set(NOTES)
    places = re.findall(r'`([\w/]+\.py)`((?:: `[\w.]+`|, `[\w.]+`)*)', text.split('**Where:** ')[1])
    assert places
    for file, names in places:
        code = (ROOT / file).read_text()
        for name in re.findall(r'\w+', names):                     # a function, class, method or field
            assert re.search(rf'^ *((def|class) {name}\b|{name}: )', code, re.M), f'{file} has no {name}'


def test_code_cites_every_note_and_no_other():
    cited = {int(number): path.name for path in SOURCES for number in re.findall(r'\bN(\d+)\b', path.read_text())}
    assert sorted(cited) == list(NOTES), {number: cited.get(number) for number in set(cited) ^ set(NOTES)}
