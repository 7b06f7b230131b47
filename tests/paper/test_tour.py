"""The tour: its page made anew, what it shows against FLAVA's own step, any clip and any run."""
import ast
import re

import pytest
import torch

import avm as matching
import flava
import model
import selection
from avm import AVM
from clips import make as make_clip
from conftest import ROOT
from data import check_clip
from model import AudioVideoMAE
from one_step import config
from paper import tour, tour_pictures, tour_step, tour_words
from running import CLIPS

PAGE = ROOT / 'docs' / 'tour' / 'README.md'
NUMBER = re.compile(r'(?<![\w.{^_])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The page and its pictures, made anew where its links to the code are the same."""
    folder = tmp_path_factory.mktemp('made')
    drawn, named = [], tour.tour_words.link
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour_words, 'link', lambda out, file: named(PAGE.parent, file))
        kept = tour.watch
        patch.setattr(tour, 'watch', lambda *given: drawn.append((given, kept(*given))) or drawn[-1][1])
        tour.main(['--out', str(folder)])
    return folder, *drawn[0]


def test_the_page_is_the_committed_one(made):
    """Text and code to the letter; numbers to 2 %, since another processor adds up in another order."""
    new, old = (made[0] / 'README.md').read_text(), PAGE.read_text()
    assert NUMBER.sub('#', new) == NUMBER.sub('#', old), 'make it anew: python -m paper.tour --out docs/tour'
    for a, b in zip(NUMBER.findall(new), NUMBER.findall(old)):
        a, b = (float(x.replace(',', '') or 0) for x in (a, b))
        assert a == pytest.approx(b, rel=0.02, abs=1e-9)
    assert {path.name for path in made[0].iterdir()} == {path.name for path in PAGE.parent.iterdir()}
    assert sum(path.stat().st_size for path in PAGE.parent.glob('*.png')) < 2_000_000


def test_links_pictures_and_names_exist():
    text = PAGE.read_text()
    links = re.findall(r'\]\(([^)#]+)\)', text)
    assert len(links) > 40 and all((PAGE.parent / link).exists() for link in links)
    titles = re.findall(r'^#+ (.+)$', text, re.M)
    anchors = {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}
    assert set(re.findall(r'\]\(#([^)]+)\)', text)) <= anchors
    stops = re.findall(r'^## (\d+)\. ', text, re.M)
    assert stops == [str(n) for n in range(1, 18)] and len(re.findall(r'^!\[', text, re.M)) == 17
    for file, name in re.findall(r'^\[`([\w.]+)`\]\([^)]+\), `([\w.]+)`', text, re.M):
        tour_words.definition(file, name)
    assert not re.findall(r'\{\{\w', text)
    for equation in range(1, 12):
        assert re.search(rf'Eq\. (?:\d+ and )?{equation}\b', text), equation


def test_each_core_file_names_its_stops():
    """Its docstring says where the tour shows its lines, and the tour shows them there."""
    shown = {}
    for stop in PAGE.read_text().split('\n## ')[1:]:
        for file in re.findall(r'^\[`([\w.]+)`\]\([^)]+\), `', stop, re.M):
            shown.setdefault(file, set()).add(int(stop.split('.')[0]))
    assert set(shown) == {'data.py', 'patches.py', 'model.py', 'avm.py', 'selection.py', 'memory.py', 'flava.py',
                          'train.py'}
    for path in ROOT.glob('*.py'):
        said = re.search(r'Tour: stops? ([\d, toand]+)\.', ast.get_docstring(ast.parse(path.read_text())))
        numbers = [int(n) for n in re.findall(r'\d+', said[1])] if said else []
        stops = set(range(numbers[0], numbers[1] + 1)) if said and ' to ' in said[1] else set(numbers)
        assert stops == shown.get(path.name, set()), path.name


def test_the_readme_leads_there_in_its_second_sentence():
    words = (ROOT / 'README.md').read_text().split('\n', 2)[2].replace('\n', ' ')
    assert 'docs/tour/README.md' in words.split('. ')[1] and 'docs/tour' not in words.split('. ')[0]


def test_what_is_shown_is_what_flavas_step_computes(made):
    """The step taken once more from the same seed, with spies of this test's own: the tensors are the same, to the bit,
    and the numbers on the page are theirs."""
    _, (cfg, backbone, avm, batch, past), seen = made
    cfg = type(cfg)(**{**vars(cfg), 'memory_size': len(batch['audio']) + 1})
    noted = {}

    def spy(patch, owner, name):
        real = getattr(owner, name)

        def call(*given):
            noted.setdefault(name, []).append((given, real(*given)))
            return noted[name][-1][1]
        patch.setattr(owner, name, call)
    torch.manual_seed(tour_step.SEED)
    method = flava.FLAVA(cfg, backbone, avm)
    method(past)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((flava, 'score'), (flava, 'prune_probability'), (flava, 'select'), (flava, 'chosen'),
                            (flava, 'penalty'), (flava, 'autoencode'), (selection, 'coins'), (model, 'draw_masks'),
                            (model, 'reconstruction_loss')):
            spy(patch, owner, name)
        loss, log = method(batch)
    t, same, B = seen.t, torch.equal, len(batch['audio'])
    s = noted['score'][0][1]
    for name in s._fields:
        assert same(t[name], getattr(s, name)), name
    for i, n in enumerate('av'):
        given, P = noted['prune_probability'][i]
        other = 'va'[i]
        assert same(t[f'prune_{n}'], P)
        assert same(t[f'query_{other}'], given[2]) and same(t[f'past_query_{other}'], given[3])
        assert same(t[f'coins_{n}'], noted['coins'][i][1]) and same(t[f'kept_{n}'], noted['select'][0][1][i])
        assert same(t[f'chosen_{n}'], noted['chosen'][0][1][i])
        (guess, x), _ = noted['reconstruction_loss'][i]
        assert same(t[f'guess_{n}'], guess[:B]) and same(t[f'target_{n}'], x[:B])
        learned, (see, hide) = noted['autoencode'][0][0][2], noted['draw_masks'][0][1][i]
        kept = (learned.kept_a, learned.kept_v)[i]
        assert same(t[f'seen_{n}'], kept.gather(1, see)[:B]) and same(t[f'hidden_{n}'], kept.gather(1, hide)[:B])
        # a second road to what is only passed through: Eq. 2, and the softmax of Eq. 5
        A = matching.mu(s[6 + (i == 0)], s[8 + i], cfg.beta).softmax(-1)
        assert same(t[f'A_{n}'], A) and torch.allclose(A.mean((1, 2)), t[f'importance_{n}'])
        share = torch.stack([t[f'now_{n}'], t[f'then_{n}']]).softmax(0)[1].mean(1)
        top = t[f'importance_{n}'].topk(share.shape[1], 1).indices
        assert torch.allclose(t[f'prune_{n}'].gather(1, top), share)
    c_a, c_v = (model.on_sphere(c) for c in noted['penalty'][0][0][1:])
    losses = noted['autoencode'][0][1]
    assert same(c_a, model.on_sphere(losses.pooled_a[B:])) and same(seen.log['loss'], loss)
    every_a, every_v = model.on_sphere(losses.pooled_a), model.on_sphere(losses.pooled_v)
    assert torch.allclose(seen.t['cosine'], every_a @ every_v.T, atol=1e-6)
    assert all(same(seen.log[name], value) for name, value in log.items())
    assert sum(tour_step.weighted(seen).values()) == pytest.approx(loss.item(), rel=1e-5)
    text = (made[0] / 'README.md').read_text()
    for name, x in (('importance_v', s.importance_v), ('prune_a', noted['prune_probability'][0][1])):
        assert f'{x[0].min():.3g} … {x[0].max():.3g} |' in re.search(rf'^\| `{name}`.*$', text, re.M)[0]
    assert f'**{loss.item():.3g}**' in text


def test_the_avm_learns_from_its_game_alone_and_gives_the_backbone_nothing(made):
    norms = made[2].norms
    assert norms['avm backbone'] is None and norms['rest AVM'] is None
    assert norms['avm AVM'] > 0 and norms['rest backbone'] > 0


def test_chunks_are_told_as_they_were_taken(made):
    """Turns of Algorithm 2 against a literal count over the coins and the draw."""
    seen = made[2]
    turn, left, taken = tour_step.turns(seen)
    size, needed = seen.cfg.chunk * seen.cfg.grid_a[1], seen.cfg.kappa_a
    for k in seen.t['chunks'][0].tolist():
        here = int((seen.t['coins_a'][0][k * size:(k + 1) * size] == 0).sum())
        assert left[k] == here and taken[k] == min(here, needed)
        needed -= taken[k]
    assert needed == 0 and sorted(turn) == list(range(len(turn)))


def test_patches_are_put_back_together(made):
    seen = made[2]
    assert torch.equal(tour_pictures.as_frames(seen.cfg, seen.t['x_v'][0]), seen.t['video'][0])
    assert torch.equal(tour_pictures.as_sound(seen.cfg, seen.t['x_a'][0]), seen.t['audio'][0])


def test_sizes_with_no_two_numbers_alike(tmp_path):
    """A base-size run differs in every number: the same page of odd sizes, without a known source."""
    cfg = config(method='flava', lam=0.5)
    backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
    generator = torch.Generator().manual_seed(0)
    clips = dict(audio=torch.randn(4, 64, 48, generator=generator),
                 video=torch.randint(0, 256, (4, 3, 3, 32, 32), dtype=torch.uint8, generator=generator))
    seen = tour.watch(cfg, backbone, avm, clips, {name: x[:1] for name, x in clips.items()})
    tour.write(tmp_path, seen, (None, None), dict(clip='a', past='b', model='c', truth='d'))
    assert len(list(tmp_path.glob('*.png'))) == 17


@pytest.fixture
def no_pictures(monkeypatch):
    """Reading, the step and the words; pictures take most of the time, and one page has drawn them."""
    monkeypatch.setattr(tour_pictures.plt.Figure, 'savefig', lambda *given, **more: None)


@pytest.mark.parametrize('kind', [dict(size=(48, 96)), dict(seconds=1.2), dict(fps=60, seconds=2),
                                  dict(rate=44100, layout='stereo')])
def test_any_video_with_sound(tmp_path, kind, no_pictures):
    clip = make_clip(tmp_path / 'a clip.mp4', **kind)
    tour.main(['--clip', clip, '--out', str(tmp_path / 'page')])
    text = (tmp_path / 'page' / 'README.md').read_text()
    assert '`a clip.mp4`' in text and str(tmp_path) not in text and 'nobody has said' in text


@pytest.mark.skipif(not CLIPS.exists(), reason='the real clips are not here')
def test_every_real_clip(tmp_path, no_pictures, monkeypatch):
    """As the clip and as the past one."""
    cfg = tour.open_model(None)[0]
    found = sorted((CLIPS / 'video').glob('*.mp4'))
    assert len(found) == 22
    for path in found:
        item = tour.read_file(path, cfg)
        assert item['audio'].shape == (cfg.audio_frames, cfg.mel_bins) and item['video'].shape[0] == cfg.num_frames
    tour.main(['--clip', str(found[0]), '--past', str(found[1]), '--out', str(tmp_path)])
    assert found[0].name in (tmp_path / 'README.md').read_text()


def test_what_training_refuses_is_refused_with_its_words(tmp_path, capsys):
    silent = make_clip(tmp_path / 'silent.mp4', acodec=None)
    broken = tmp_path / 'broken.mp4'
    broken.write_bytes(b'no video')
    for path in (silent, broken, tmp_path / 'absent.mp4'):
        with pytest.raises(SystemExit) as stopped:
            tour.main(['--clip', str(path), '--out', str(tmp_path / 'page')])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said == f'error: {tmp_path.joinpath(path).name}: {check_clip(path)[0]}\n'
    assert not (tmp_path / 'page').exists()
