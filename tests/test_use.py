"""docs/use.md: every snippet runs as a script, in IPython and in a notebook; loading a model reads no clip."""
import json
import re
import subprocess
import sys

import pytest
import torch

from clips import make
from config import Config, UserError
from conftest import ROOT
from downstream import finished_run
from downstream.finished_run import FinishedRun
from model import AudioVideoMAE
from running import ONE_THREAD, TINY
from utils.cli import parse

SNIPPETS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/use.md').read_text(), re.S)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a run of the small size, written without training, and four videos. Its clips are nowhere."""
    import hubconf
    folder = tmp_path_factory.mktemp('use')
    (folder / 'videos').mkdir()
    for number in range(4):
        make(folder / f'videos/{number}.mp4', seconds=3)
    torch.manual_seed(0)
    cfg, _ = parse([*TINY, '--dataset', 'vggsound', '--data', 'nowhere'])
    (folder / 'RUN/models').mkdir(parents=True)
    model = hubconf.FlavaModel(cfg)
    for t in range(2):
        torch.save(dict(config=vars(cfg), weights=model.state_dict()), folder / f'RUN/models/{t}.pt')
    (folder / 'RUN/config.json').write_text(json.dumps(vars(cfg)))
    return folder


def run(code, folder, script, interpreter=()):
    """Code in its own process → what it prints"""
    (folder / script).write_text(code)
    done = subprocess.run([sys.executable, *interpreter, script], cwd=folder, capture_output=True, text=True,
                          env={**ONE_THREAD, 'MPLBACKEND': 'Agg'}, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def run_in_notebook(snippets, folder):
    """A cell for each snippet → what they print"""
    nbformat, nbclient, _ = (pytest.importorskip(name, reason=f'{name} is not installed')
                             for name in ('nbformat', 'nbclient', 'ipykernel'))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in snippets])
    client = nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': folder}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    return ''.join(part.get('text', '') for cell in notebook.cells for part in cell.outputs)


@pytest.mark.parametrize('kind', ['script', 'IPython', 'notebook'])
def test_the_snippets_run(kind, place):
    assert len(SNIPPETS) >= 7 and all(len(code.strip().splitlines()) <= 14 for code in SNIPPETS)
    snippets = [code.replace('PATH/TO/THE/CLONE', str(ROOT)).replace('PATH/TO/VIDEOS', 'videos') for code in SNIPPETS]
    if kind == 'script':
        output = run('\n'.join(snippets), place, 'script.py')
    elif kind == 'IPython':
        pytest.importorskip('IPython', reason='IPython is not installed')
        output = run('\n'.join(snippets), place, 'script.ipy', ['-m', 'IPython'])
    else:
        output = run_in_notebook(snippets, place)
    assert 'sounds like' in output and 'torch.Size([4, 16])' in output and 'flava 32 2' in output
    for name in ('attention.png', 'mine.pt'):
        (place / name).unlink()


# ---------------------------------------------------------------------------------- loading a model

def test_loading_a_model_opens_no_stream(place, monkeypatch):
    import hubconf

    def refuse(*arguments):
        raise AssertionError('the stream was opened')
    monkeypatch.setattr(finished_run, 'open_stream', refuse)
    whole, one = (hubconf.flava(place / path, device='cpu') for path in ('RUN', 'RUN/models/1.pt'))
    finished = FinishedRun(place / 'RUN', workers=0, device='cpu')
    backbone, avm = finished.load_model(finished.model_files()[-1])
    for name, weight in backbone.state_dict().items():
        assert all(torch.equal(weight, model.backbone.state_dict()[name]) for model in (whole, one))
    (place / 'RUN/results.json').write_text('{"tasks": ["music"]}')        # a finished run knows the names of its tasks
    finished = FinishedRun(place / 'RUN', device='cpu')
    assert [name for _, name, _ in finished.models()] == ['initial', 'music']
    (place / 'RUN/results.json').unlink()


def test_embeddings_and_ranking(place):
    import hubconf
    model = hubconf.flava(place / 'RUN', device='cpu')
    files = sorted(map(str, (place / 'videos').glob('*.mp4')))
    audio, video = model.embed(files, batch_size=3)
    assert audio.shape == video.shape == (4, 16) and torch.allclose(audio.norm(dim=1), torch.ones(4))
    alone = model.embed(files[3])
    assert torch.allclose(alone[0], audio[3:], atol=1e-5) and torch.allclose(alone[1], video[3:], atol=1e-5)
    queries, candidates = torch.eye(2), torch.tensor([[0.0, 1], [1, 0], [0.6, 0.8]])
    assert model.retrieve(queries, candidates).tolist() == [[1, 2, 0], [0, 2, 1]]
    for wrong in ([], ['nowhere.mp4']):
        with pytest.raises(UserError):
            model.embed(wrong)


def test_a_backbone_of_options_and_saved_names():
    """From a dictionary of options; with names as they are saved, as older versions saved them, or without a prefix."""
    cfg = Config(image_size=32, num_frames=2, embed_dim=24, num_heads=3, avm_heads=3, encoder_depth=1, decoder_depth=1)
    backbone, other = AudioVideoMAE(vars(cfg)), AudioVideoMAE(cfg)
    plain = other.state_dict()
    older = {re.sub(r'(encoder|pos|patch_embed|head)\.([av])\b', r'\1_\2', 'backbone.' + name): x
             for name, x in plain.items()}
    assert 'backbone.encoder_a.0.norm1.weight' in older
    saved = {'backbone.' + name: x for name, x in plain.items()} | {'avm.fc.0.weight': torch.zeros(1)}
    for weights in (plain, saved, dict(config={}, weights=saved), older):
        backbone = AudioVideoMAE(vars(cfg))
        backbone.load_state_dict(weights)
        assert all(torch.equal(x, plain[name]) for name, x in backbone.state_dict().items())


def test_workers_do_not_run_the_script_again(place):
    """A script without a __main__ guard that tests clips in worker processes, which are spawned"""
    output = run(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
print('started')
from config import Config
from streams.common import Clip, filter_clips
good, bad = filter_clips('videos', [Clip(f'videos/{{n}}.mp4', ('x',)) for n in range(4)], Config(), 1)
print(len(good), bad)
""", place, 'no_guard.py')
    assert output.splitlines() == ['started', '4 []']
