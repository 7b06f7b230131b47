"""The tour: its page and notebook are up to date, they show what FLAVA's step computes, any clip and any run."""
import ast
import json
import re
import subprocess
import sys

import pytest
import torch

from clips import make as make_clip
from conftest import ROOT
from data import check_clip
from paper import tour, tour_pictures
from running import ONE_THREAD, TINY

FOLDER = ROOT / 'docs' / 'tour'
PAGE = FOLDER / 'README.md'
NUMBER = re.compile(r'(?<![\w.{^_])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The page made again, with links as in docs/tour → folder, the names that its code defines"""
    folder, relative = tmp_path_factory.mktemp('made'), tour.relative
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour, 'relative', lambda path, out: relative(path, FOLDER))
        return folder, tour.write(folder)


def test_page_and_notebook_are_up_to_date(made):
    """Text and code are equal; numbers differ by up to 2 %, because processors add up in different orders."""
    for name in ('README.md', 'tour.ipynb'):
        new, old = (made[0] / name).read_text(), (FOLDER / name).read_text()
        assert NUMBER.sub('#', new) == NUMBER.sub('#', old), 'make it again: python -m paper.tour --out docs/tour'
        for a, b in zip(NUMBER.findall(new), NUMBER.findall(old)):
            assert float(a.replace(',', '')) == pytest.approx(float(b.replace(',', '')), rel=0.02, abs=1e-6)
    assert {path.name for path in made[0].iterdir()} == {path.name for path in FOLDER.iterdir()}


def test_stops_names_and_equations():
    text = PAGE.read_text()
    stops = [int(n) for n in re.findall(r'^## (\d+)\. ', text, re.M)]
    pictures = [int(n) for n in re.findall(r'^!\[picture of stop (\d+)\]', text, re.M)]
    assert stops == list(range(1, 18)) and pictures == [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 14] and '{{' not in text
    for equation in range(1, 12):
        assert re.search(rf'Eq\. (?:\d+ and )?{equation}\b', text), equation
    for file, name in re.findall(r'\[`([\w/]+\.py)`\]\([^)]+\), `([\w.]+)`', text):
        assert re.search(rf'(def|class) {name.split(".")[-1]}\b', (ROOT / file).read_text()), (file, name)


def test_each_core_file_names_its_stops():
    """A module's docstring names the stops that link to its code."""
    shown = {}
    for stop in PAGE.read_text().split('\n## ')[1:]:
        for file in re.findall(r'\[`(\w+\.py)`\]\([^)]+\), `', stop):
            shown.setdefault(file, set()).add(int(stop.split('.')[0]))
    for path in ROOT.glob('*.py'):
        found = re.search(r'Tour: stops? ([\d, toand]+)\b', ast.get_docstring(ast.parse(path.read_text())))
        numbers = [int(n) for n in re.findall(r'\d+', found[1])] if found else []
        stops = set(range(numbers[0], numbers[1] + 1)) if found and ' to ' in found[1] else set(numbers)
        assert stops == shown.get(path.name, set()), path.name


def test_what_is_shown_is_what_the_step_computes(made):
    """What the page computes piece by piece is what `FLAVA.step` computes from the same random state."""
    names = made[1]
    step = names['step']
    for name, x in (('I_a', step.scores.I_a), ('I_v', step.scores.I_v), ('P_a', step.scores.P_a),
                    ('P_v', step.scores.P_v), *step.scores.queries.items(),
                    ('mae_a', step.losses.mae_a), ('mae_v', step.losses.mae_v),
                    ('contrastive', step.losses.contrastive), ('pooled_v', step.losses.pooled_v),
                    ('drift', step.log['penalty']), ('avm_loss', step.log['avm']), ('loss', step.loss)):
        assert torch.allclose(names[name], x, rtol=1e-4, atol=1e-6), name
    for name, x in (('ids_a', step.selected.ids_a), ('ids_v', step.selected.ids_v), ('selected_v', step.selected.x_v)):
        assert torch.equal(names[name], x), name
    assert torch.equal(names['ids_v'][0], names['drawn_v'])
    # chunks of the clip, in the order in which they are drawn, give their unpruned patches until there are κ_a
    needed, taken, unpruned = names['cfg'].kappa_a, names['taken'][0], names['unpruned'][0]
    for k in names['order_a'][0].tolist():
        assert taken[k] == min(unpruned[k], needed)
        needed -= int(taken[k])

    # pictures show the clip; each module learns from its own terms
    cfg, patches = names['cfg'], names['clip'].patches
    assert torch.equal(tour_pictures.unpatchify_v(cfg, patches.x_v), names['video'][0])
    assert torch.equal(tour_pictures.unpatchify_a(cfg, patches.x_a), names['audio'][0])
    for loss, own, other in (('avm_loss', 'avm', 'backbone'), ('rest', 'backbone', 'avm')):
        assert tour.gradient_length(names[loss], names[own]) > 0 == tour.gradient_length(names[loss], names[other])


def test_notebook_runs():
    """All code cells in one process, from the notebook's folder."""
    cells = json.loads((FOLDER / 'tour.ipynb').read_text())['cells']
    code = '\n'.join(cell['source'] for cell in cells if cell['cell_type'] == 'code')
    code += '\nassert torch.allclose(loss, step.loss, rtol=1e-4) and show.similarity(cosine, B)._repr_png_()'
    done = subprocess.run([sys.executable, '-c', code], cwd=FOLDER, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_own_clips_and_run(tmp_path, here, monkeypatch):
    """Any video with sound, and the last model of a run of another method at other sizes."""
    monkeypatch.setattr(tour, 'png', lambda figure: b'')                                     # slow, and tested above
    clip = make_clip(tmp_path / 'a clip.mp4', size=(48, 96), rate=44100, layout='stereo')
    assert here(['--method', 'er', '--steps', '1', '--pretrain-steps', '0', *TINY, '--out', 'run'], tmp_path)[0] == 0
    tour.main(['--clip', clip, '--past', clip, '--run', str(tmp_path / 'run'), '--out', str(tmp_path / 'page')])
    text = (tmp_path / 'page' / 'README.md').read_text()
    assert text.count(': `a clip.mp4`') == 2 and f': `{tmp_path / "run"}`' in text and 'the sound: unknown' in text
    notebook = (tmp_path / 'page' / 'tour.ipynb').read_text()
    assert f'{str(tmp_path / "run")!r}' in notebook
    assert (tmp_path / 'page' / re.search(r"sys.path.insert\(0, '(.*?)'\)", notebook)[1]).resolve() == ROOT


def test_unreadable_clips_are_refused(tmp_path, capsys):
    silent, broken = make_clip(tmp_path / 'silent.mp4', acodec=None), tmp_path / 'broken.mp4'
    broken.write_bytes(b'no video')
    for path in (silent, str(broken)):
        with pytest.raises(SystemExit) as stopped:
            tour.main(['--clip', path, '--out', str(tmp_path / 'page')])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and check_clip(path)[0] in error and len(error.splitlines()) == 1
    assert not (tmp_path / 'page').exists()
