"""The tour: its page is up to date, what it shows is what FLAVA's step computes, any clip and any run."""
import ast
import re

import pytest
import torch
import torch.nn.functional as F

from avm import AVM
from clips import make as make_clip
from conftest import ROOT
from data import check_clip
from flava import FLAVA
from model import AudioVideoMAE, reconstruction_loss
from one_step import config
from paper import tour, tour_pictures

PAGE = ROOT / 'docs' / 'tour' / 'README.md'
NUMBER = re.compile(r'(?<![\w.{^_])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The page made again, with links as in docs/tour → folder, arguments of `take_step`, Seen"""
    folder, calls = tmp_path_factory.mktemp('made'), []
    link, take_step = tour.link, tour.take_step

    def record(*args):
        calls.append((args, take_step(*args)))
        return calls[-1][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour, 'link', lambda out, place: link(PAGE.parent, place))
        patch.setattr(tour, 'take_step', record)
        tour.main(['--out', str(folder)])
    return folder, *calls[0]


def test_the_page_is_up_to_date(made):
    """Text and code are equal; numbers differ by up to 2 %, because processors add up in different orders."""
    new, old = (made[0] / 'README.md').read_text(), PAGE.read_text()
    assert NUMBER.sub('#', new) == NUMBER.sub('#', old), 'make it again: python -m paper.tour --out docs/tour'
    for a, b in zip(NUMBER.findall(new), NUMBER.findall(old)):
        assert float(a.replace(',', '')) == pytest.approx(float(b.replace(',', '')), rel=0.02, abs=1e-9)
    assert {path.name for path in made[0].iterdir()} == {path.name for path in PAGE.parent.iterdir()}


def test_stops_links_and_equations():
    text = PAGE.read_text()
    stops = [int(n) for n in re.findall(r'^## (\d+)\. ', text, re.M)]
    assert stops == list(range(1, 18)) and len(re.findall(r'^!\[', text, re.M)) == 17 and '{{' not in text
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        assert (PAGE.parent / target).exists(), target
    for equation in range(1, 12):
        assert re.search(rf'Eq\. (?:\d+ and )?{equation}\b', text), equation


def test_each_core_file_names_its_stops():
    """A module's docstring names the stops that show its code."""
    shown = {}
    for stop in PAGE.read_text().split('\n## ')[1:]:
        for file in re.findall(r'\[`(\w+\.py)`\]\([^)]+\), `', stop):
            shown.setdefault(file, set()).add(int(stop.split('.')[0]))
    for path in ROOT.glob('*.py'):
        found = re.search(r'Tour: stops? ([\d, toand]+)\.', ast.get_docstring(ast.parse(path.read_text())))
        numbers = [int(n) for n in re.findall(r'\d+', found[1])] if found else []
        stops = set(range(numbers[0], numbers[1] + 1)) if found and ' to ' in found[1] else set(numbers)
        assert stops == shown.get(path.name, set()), path.name


def test_what_is_shown_is_what_the_step_computes(made):
    """The same step from the same seed: the draws that the tour repeats are those of the step, to the bit."""
    _, (cfg, backbone, avm, batch, past), seen = made
    t, B, cfg = seen.t, tour.PAIRS, seen.cfg
    method = FLAVA(cfg, backbone, avm)
    torch.manual_seed(tour.SEED)
    method.step(past)
    step = method.step(batch)
    # selection
    for name, x in (('I_a', step.attention.importance_a), ('q_v', step.attention.q_v), ('query_a', step.query_a),
                    ('P_a', step.P_a), ('P_v', step.P_v), ('ids_a', step.current.ids_a),
                    ('selected_v', step.current.x_v)):
        assert torch.equal(t[name], x), name
    assert torch.allclose(t['A_a'].mean((1, 2)), t['I_a']) and torch.allclose(t['A_v'].mean((1, 2)), t['I_v'])
    share = torch.stack([t['current_v'], t['past_v']]).softmax(0)[1].mean(1)                  # Eq. 5
    assert torch.allclose(t['P_v'].gather(1, t['top_v']), share)
    # coins: pruned patches are selected only where too few are left
    for n, kappa in (('a', cfg.kappa_a), ('v', cfg.kappa_v)):
        enough = (1 - t[f'pruned_{n}']).sum(1) >= kappa
        assert enough[0] and not t[f'pruned_{n}'].gather(1, t[f'ids_{n}'])[enough].any()
    # chunks, in the order drawn, give their unpruned patches until there are κ_a
    needed, (unpruned, taken) = cfg.kappa_a, tour_pictures.chunk_counts(seen)
    for k in t['turn'][0].argsort().tolist():
        assert taken[k] == min(unpruned[k], needed)
        needed -= taken[k]
    # losses
    log = {name: value.item() for name, value in step.log.items()}
    for n in 'av':
        mae = reconstruction_loss(t[f'pred_{n}'], t[f'target_{n}'])
        assert torch.allclose(mae, step.losses._asdict()[f'mae_{n}'][:B], rtol=1e-4)
    assert F.binary_cross_entropy_with_logits(t['logit'], t['matched']).item() == pytest.approx(log['avm'], rel=1e-4)
    assert seen.log['loss'] == step.loss.item()
    weighted = sum(weight * log[name] for name, (_, weight) in tour_pictures.loss_terms(cfg).items())
    assert weighted == pytest.approx(step.loss.item(), rel=1e-5)


def test_each_module_learns_from_its_own_terms(made):
    log = made[2].log
    assert log['avm_backbone'] == log['rest_AVM'] == 0 and log['avm_AVM'] > 0 and log['rest_backbone'] > 0


def test_unpatchify(made):
    seen = made[2]
    assert torch.equal(tour_pictures.unpatchify_v(seen.cfg, seen.t['x_v'][0]), seen.t['video'][0])
    assert torch.equal(tour_pictures.unpatchify_a(seen.cfg, seen.t['x_a'][0]), seen.t['audio'][0])


def test_odd_sizes(tmp_path):
    """Sizes with no two numbers alike, and without a known source."""
    cfg = config(method='flava', lam=0.5)
    backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
    generator = torch.Generator().manual_seed(0)
    clips = dict(audio=torch.randn(4, 64, 48, generator=generator),
                 video=torch.randint(0, 256, (4, 3, 3, 32, 32), dtype=torch.uint8, generator=generator))
    seen = tour.take_step(cfg, backbone, avm, clips, {name: x[:1] for name, x in clips.items()})
    tour.write(tmp_path, seen, (None, None), dict(clip='a', past='b', model='c', known='d'))
    assert len(list(tmp_path.glob('*.png'))) == 17


def test_any_video_with_sound(tmp_path, monkeypatch):
    monkeypatch.setattr(tour_pictures.plt.Figure, 'savefig', lambda *args, **more: None)     # slow, and tested above
    clip = make_clip(tmp_path / 'a clip.mp4', size=(48, 96), rate=44100, layout='stereo')
    tour.main(['--clip', clip, '--past', clip, '--out', str(tmp_path / 'page')])
    text = (tmp_path / 'page' / 'README.md').read_text()
    assert text.count('`a clip.mp4`') == 2 and str(tmp_path) not in text and 'the sound: unknown' in text


def test_unreadable_clips_are_refused(tmp_path, capsys):
    silent, broken = make_clip(tmp_path / 'silent.mp4', acodec=None), tmp_path / 'broken.mp4'
    broken.write_bytes(b'no video')
    for path in (silent, str(broken), str(tmp_path / 'absent.mp4')):
        with pytest.raises(SystemExit) as stopped:
            tour.main(['--clip', path, '--out', str(tmp_path / 'page')])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and check_clip(path)[0] in error and len(error.splitlines()) == 1
    assert not (tmp_path / 'page').exists()
