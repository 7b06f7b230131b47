"""What tests share: where the repository is, odd sizes, a seed, fixed masks, built-in clips rendered but once."""
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / 'tests'))
torch.set_num_threads(1)      # of tiny models two threads make nothing faster, and on busy cores much slower

from patches import Sizes                              # the path had to be set first

# Sizes with no two numbers alike, so that a mixed-up axis shows.
ODD = dict(image_size=32, num_frames=3, audio_frames=64, mel_bins=48, frame_shift=20.0, patch_size=8, embed_dim=24,
           num_heads=3, encoder_depth=2, fusion_depth=1, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
           avm_heads=6)

RENDERED = {}


def render_once(monkeypatch):
    """The built-in clips are the same in every run: make each but once."""
    from streams import shapes
    render = shapes.render

    def cached(scene, sizes):
        numbers = (getattr(sizes, field.name) for field in dataclasses.fields(Sizes))
        key = scene.seed, scene.tracks[0].kind, len(scene.tracks), *numbers
        if key not in RENDERED:
            RENDERED[key] = render(scene, sizes)
        return RENDERED[key]
    monkeypatch.setattr(shapes, 'render', cached)


@pytest.fixture
def sizes():
    return Sizes(**ODD)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """The built-in clips as mp4 files in VGGSound's layout."""
    folder = tmp_path_factory.mktemp('files')
    subprocess.run([sys.executable, '-m', 'streams.shapes', '--out', str(folder), '--train', '9', '--test', '3',
                    '--pretrain', '12', '--size', '48'], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def here(monkeypatch, capsys):
    """train.py's main in this process."""
    from running import Here
    return Here(monkeypatch, capsys)


@pytest.fixture
def fixed_masks(monkeypatch):
    """The same mask for every call of the same size, so that two computations can be compared."""
    import baselines
    import model
    from one_step import draw_fixed
    monkeypatch.setattr(model, 'draw_masks', draw_fixed)           # where `autoencode` looks it up
    monkeypatch.setattr(baselines, 'draw_masks', draw_fixed)
    return draw_fixed
