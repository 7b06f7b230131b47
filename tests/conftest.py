import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / 'tests'))
torch.set_num_threads(1)      # of tiny models two threads make nothing faster, and on busy cores much slower

from model import Sizes                                # the path had to be set first

# Sizes with no two numbers alike, so that a mixed-up axis shows.
ODD = dict(image_size=32, num_frames=3, audio_frames=64, mel_bins=48, frame_shift=20.0, patch_size=8, embed_dim=24, num_heads=3,
           encoder_depth=2, fusion_depth=1, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, avm_heads=6)


RENDERED = {}


def render_once(monkeypatch):
    """The built-in clips are the same in every run: make each but once."""
    import dataclasses

    import shapes
    render = shapes.render

    def cached(scene, sizes):
        key = scene.seed, scene.tracks[0].kind, len(scene.tracks), *(getattr(sizes, f.name) for f in dataclasses.fields(Sizes))
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
