"""docs/extending.md: apply every change to a copy of the repository, and run the page's commands."""
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from running import ONE_THREAD, TINY

PAGE = (ROOT / 'docs' / 'extending.md').read_text()
SECTIONS = {part.split('\n')[0]: part for part in re.split(r'^## ', PAGE, flags=re.M)[1:]}
BLOCK = re.compile(r'In (a new file )?`([\w/]+\.py)`(?:, above `(\w+)`)?:\n\n```(?:python|diff)\n(.*?)```', re.S)


def apply_diff(text, block):
    """The text of a file → the same with a diff applied. A line of the diff may show only how a line begins: its rest
    stays."""
    def plus_lines(added):
        return re.sub(r'^\+', '', added, flags=re.M)
    before = plus_lines(re.match(r'(?:\+.*\n)*', block)[0])          # above the first line that the file has
    for sign, line, after in re.findall(r'^([ -])(.*)\n((?:\+.*\n)*)', block, re.M):
        assert text.count('\n' + line) == 1, f'not in the code: {line}. Mend or remove this section of extending.md'
        start = text.index('\n' + line) + 1
        if sign == '-':
            text = text[:start] + plus_lines(after).removesuffix('\n') + text[start + len(line):]
        else:
            end = text.index('\n', start) + 1
            text, before = text[:start] + before + text[start:end] + plus_lines(after) + text[end:], ''
    return text


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
        text = file.read_text()
        if above:
            start = re.search(rf'^(def |class )?{above}\b', text, re.M).start()
            file.write_text(f'{text[:start]}{code}\n\n{text[start:]}')
        else:
            file.write_text(apply_diff(text, code))
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
    """A copy of the code with all changes of the page. A section touches two files at most."""
    folder = tmp_path_factory.mktemp('copy')
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        if name.endswith(('.py', '.pt', '.csv')) and not name.startswith('tests/') and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for title, section in SECTIONS.items():
        files = apply(section, folder)
        assert len(files) <= 2, f'{title}: {files}'
    return folder


PROGRAM = """
import importlib, pathlib
from downstream import pictures, report
from streams import shapes

pictures.draw = report.write_report = lambda *run: []         # no figures: they take seconds

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
    folder = changed
    lines = [command for section in SECTIONS.values() for command in commands(section)]
    assert len(lines) >= len(SECTIONS)
    (folder / 'program.py').write_text(PROGRAM.format(lines=lines))
    done = subprocess.run([sys.executable, 'program.py'], cwd=folder, capture_output=True, text=True,
                          env=ONE_THREAD)
    assert done.returncode == 0, done.stderr[-3000:]

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
    assert len(read('mirrored/results.json')['tasks']) == 6
    assert optimizer('warmup')['lr'] == pytest.approx(read('warmup/config.json')['lr'] / 100)
    assert optimizer('adamw')['decoupled_weight_decay'] and optimizer('adamw')['weight_decay'] == 1e-2
    logged = folder / 'runs' / 'logged'
    assert len((logged / 'log.csv').read_text().splitlines()) == len((logged / 'log.jsonl').read_text().splitlines())
    assert read('eight-frames/config.json')['num_frames'] == 8
