"""docs/your-own.md: each example is taken from the page, put where the page says, and run."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT
from running import TINY

PAGE = (ROOT / 'docs' / 'your-own.md').read_text()
SECTIONS = {part.split('\n')[0]: part for part in re.split(r'^## ', PAGE, flags=re.M)[1:]}


@pytest.fixture
def checkout(tmp_path):
    """This checkout's code, to be changed."""
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        if name.endswith(('.py', '.pt', '.csv')) and not name.startswith('tests/') and (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def apply(section, folder):
    """Make the changes that a section of the page describes → the files it changed. Each place must exist once."""
    changed = set()
    blocks = re.findall(r'(?:(Into|In a new file|In) `([\w/]+\.py)`(?:, above `(\w+)`)?:\n\n)?'
                        r'```(python|diff)\n(.*?)```', section, re.S)
    for how, name, above, kind, code in blocks:
        name = name or last                                # a second block for the same file
        file, last = folder / name, name
        changed.add(name)
        if how == 'In a new file':
            assert not file.exists()
            file.write_text(code)
            continue
        text = file.read_text()
        if kind == 'python':
            before, after = f'\n{above} = ', f'\n{code}\n\n{above} = '
        else:
            lines = code.splitlines()
            before = ''.join(line[1:] + '\n' for line in lines if line[0] in ' -')
            after = ''.join(line[1:] + '\n' for line in lines if line[0] in ' +')
        if kind == 'diff' and not text.count(before):      # the page shows how a line begins
            before, after = before.rstrip('\n'), after.rstrip('\n')
        assert text.count(before) == 1, f'{name}: {text.count(before)} places for {before!r}'
        file.write_text(text.replace(before, after))
    return changed


def commands(section):
    """The commands of a section, trainings as small as they can be: [(module, words)]"""
    lines = re.findall(r'^python .*$', ''.join(re.findall(r'```sh\n(.*?)```', section, re.S)), re.M)
    assert lines
    for line in lines:
        _, program, *words = line.replace('DIR', 'clips').split()
        small = [*TINY, '--steps', '1', '--pretrain-steps', '0', '--workers', '0']
        yield program.removesuffix('.py'), words + (small if program == 'train.py' else ['--device', 'cpu'])


def test_every_example_is_tested_and_changes_two_files_at_most(checkout):
    assert list(SECTIONS) == ['A method', 'A selection', 'A data set', 'A downstream task']
    for section in SECTIONS.values():
        assert 1 <= len(apply(section, checkout)) <= 2
    code = re.search(r'```python\n(.*?)```', SECTIONS['A method'], re.S)[1]
    assert len(code.splitlines()) <= 25 and len(ast.parse(code).body) == 1


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """A few built-in clips as files, in the layout of the example."""
    folder = tmp_path_factory.mktemp('layout')
    words = ['--out', str(folder / 'files'), '--train', '3', '--test', '3', '--pretrain', '0', '--size', '48']
    subprocess.run([sys.executable, '-m', 'streams.shapes', *words], cwd=ROOT, check=True, capture_output=True)
    for line in (folder / 'files/vggsound.csv').read_text().splitlines():
        name, _, label, split = line.split(',')
        if name.startswith('ash'):
            (folder / 'clips' / split / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / 'files/video' / f'{name}_000000.mp4', folder / 'clips' / split / label)
    return folder / 'clips'


def test_the_examples_run(checkout, clips):
    """All four in one checkout and, since importing takes seconds, by one process; then tables of what they left."""
    shutil.copytree(clips, checkout / 'clips')
    for section in SECTIONS.values():
        apply(section, checkout)
    lines = [(module, words) for section in SECTIONS.values() for module, words in commands(section)]
    lines += [('paper.figures', ['runs/anchored', 'runs/sharp']), ('eval', ['runs/anchored', 'runs/sharp'])]
    (checkout / 'all.py').write_text(f'import importlib\nfor module, words in {lines!r}:\n'
                                     '    importlib.import_module(module).main(words)\n')
    done = subprocess.run([sys.executable, 'all.py'], cwd=checkout, capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    read = lambda name: json.loads((checkout / 'runs' / name).read_text())
    assert 'pull' in (checkout / 'runs/anchored/log.jsonl').read_text().splitlines()[-1]
    assert read('anchored/eval/gap-last.json')['after'] == ['oak']
    assert read('sharp/config.json')['selection'] == 'sharp'
    found = read('sharp/eval/alignment.json')
    assert len(found['alignment']) == 7 and all(0 < x < 4 for x in found['alignment'])
    assert '| alignment ↓ |' in done.stdout and (checkout / 'runs/sharp/eval/alignment.png').stat().st_size > 5000
    assert len(read('folders/results.json')['tasks']) == 3
    assert 'anchored' in (checkout / 'figures/table_01.md').read_text()
    assert 'figure 5: figures/figure_05.png' in done.stdout and '| anchored |' in done.stdout


def test_the_data_set_says_what_is_missing(checkout):
    apply(SECTIONS['A data set'], checkout)
    done = subprocess.run([sys.executable, 'train.py', '--dataset', 'folders', *TINY], cwd=checkout, text=True,
                          capture_output=True)
    assert done.returncode == 2 and '--data' in done.stderr and 'Traceback' not in done.stderr
