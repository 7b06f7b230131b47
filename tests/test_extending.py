"""docs/extending.md: apply every change to a copy of the repository, and run the page's commands."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from running import TINY

PAGE = (ROOT / 'docs' / 'extending.md').read_text()
SECTIONS = {part.split('\n')[0]: part for part in re.split(r'^## ', PAGE, flags=re.M)[1:]}
BLOCK = re.compile(r'In (a new file )?`([\w/]+\.py)`(?:, above `(\w+)`)?:\n\n```(?:python|diff)\n(.*?)```', re.S)


def unique(lines, starts):
    """The only place at which consecutive lines start with these words"""
    places = [place for place in range(len(lines)) if len(lines) - place >= len(starts)
              and all(line.startswith(start) for line, start in zip(lines[place:], starts))]
    assert len(places) == 1, f'{len(places)} places for {starts}'
    return places[0]


def apply_diff(lines, block):
    """Lines of a file → the same with a diff applied. Its lines may show only how a line of the file begins."""
    place = unique(lines, [line[1:] for line in block if line[0] in ' -'])
    result, rest = lines[:place], ''
    for line in block:
        if line[0] == '+':
            result.append(line[1:])
            continue
        result[-1:] = [result[-1] + rest] if rest else result[-1:]
        rest = ''
        if line[0] == ' ':
            result.append(lines[place])
        else:
            rest = lines[place][len(line) - 1:]        # what the page does not show of the removed line
        place += 1
    if rest:
        result[-1] += rest
    return result + lines[place:]


def apply(section, folder):
    """Make the changes that a section describes → the files that it touches."""
    assert section.count('```python') + section.count('```diff') == len(BLOCK.findall(section)), 'a block names no file'
    touched = set()
    for is_new, name, above, code in BLOCK.findall(section):
        file = folder / name
        touched.add(name)
        assert file.exists() != bool(is_new)
        if is_new:
            file.write_text(code)
            continue
        lines = file.read_text().split('\n')
        if above:
            place = next(i for i, line in enumerate(lines) if re.match(rf'(def |class )?{above}\b', line))
            lines[place:place] = [*code.split('\n'), '']
        else:
            lines = apply_diff(lines, code.splitlines())
        file.write_text('\n'.join(lines))
    return touched


def commands(section):
    """The commands of a section → [(module, arguments)]; training is as short as it can be."""
    for line in re.findall(r'^python (\w+)\.py (.*)$', ''.join(re.findall(r'```sh\n(.*?)```', section, re.S)), re.M):
        module, words = line[0], line[1].replace('DIR', 'clips').split()
        if module == 'train':
            words = [*TINY, '--steps', '1', '--pretrain-steps', '0', '--workers', '0', *words]
        else:
            words += ['--device', 'cpu']
        yield module, words


@pytest.fixture(scope='module')
def changed(tmp_path_factory):
    """A copy of the code with all changes of the page; the files that each section touches"""
    folder = tmp_path_factory.mktemp('copy')
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        if name.endswith(('.py', '.pt', '.csv')) and not name.startswith('tests/') and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder, {title: apply(section, folder) for title, section in SECTIONS.items()}


def test_a_change_touches_two_files_at_most(changed):
    assert len(SECTIONS) == 11
    for title, files in changed[1].items():
        assert len(files) <= 2, f'{title}: {files}'


PROGRAM = """
import importlib, pathlib
import train
from downstream import pictures, report
from streams import shapes

pictures.draw = report.write = lambda *run: []         # no figures: they take seconds

# without the table of the example, the new dataset ends with a message
try:
    train.main(['--dataset', 'csv', *{tiny}])
except SystemExit as end:
    assert end.code == 2

# a few built-in clips as video files, with that table
shapes.main('--out clips --train 3 --test 3 --pretrain 0 --size 48'.split())
rows = ['file,class,task,split']
for line in pathlib.Path('clips/vggsound.csv').read_text().splitlines():
    name, _, label, split = line.split(',')
    if name.startswith('ash'):
        rows.append(f'video/{{name}}_000000.mp4,{{label}},{{label}},{{split}}')
pathlib.Path('clips/clips.csv').write_text('\\n'.join(rows))

for module, words in {lines}:
    importlib.import_module(module).main(words)
"""


def test_the_commands_run(changed):
    """All in one process, because importing takes seconds."""
    folder = changed[0]
    lines = [command for section in SECTIONS.values() for command in commands(section)]
    assert len(lines) >= len(SECTIONS)
    (folder / 'program.py').write_text(PROGRAM.format(tiny=TINY, lines=lines))
    done = subprocess.run([sys.executable, 'program.py'], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'set --data to a folder with clips.csv' in done.stderr

    def read(name):
        return json.loads((folder / 'runs' / name).read_text())

    def optimizer(name):
        return torch.load(folder / 'runs' / name / 'last.pt', weights_only=True)['optimizer']['param_groups'][0]

    assert read('time-mask/config.json')['audio_mask'] == 'time'
    assert 'pull' in (folder / 'runs/anchored/log.jsonl').read_text().splitlines()[-1]
    assert len(read('anchored/eval/gap-last.json')['after']) == 1
    assert read('sharp/config.json')['selection'] == 'sharp'
    assert len(read('csv/results.json')['tasks']) == 3
    found = read('sharp/eval/alignment.json')['alignment']
    assert len(found) == 7 and all(0 < x < 4 for x in found)
    assert len(read('mirrored/results.json')['tasks']) == 3
    assert optimizer('warmup')['lr'] == pytest.approx(read('warmup/config.json')['lr'] / 100)
    assert optimizer('adamw')['decoupled_weight_decay'] and optimizer('adamw')['weight_decay'] == 1e-2
    logged = folder / 'runs' / 'logged'
    assert len((logged / 'log.csv').read_text().splitlines()) == len((logged / 'log.jsonl').read_text().splitlines())
    assert read('eight-frames/config.json')['num_frames'] == 8


def test_a_diff_may_show_the_beginning_of_a_line():
    lines = ['a = 1  # first', 'b = (2, 3)', 'c = 4']
    assert apply_diff(lines, [' a = 1', '+x = 0']) == ['a = 1  # first', 'x = 0', 'b = (2, 3)', 'c = 4']
    assert apply_diff(lines, ['-b = (', '+b = (1, ']) == ['a = 1  # first', 'b = (1, 2, 3)', 'c = 4']
