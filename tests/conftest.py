import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / 'tests'))
torch.set_num_threads(2)

# Sizes with no two numbers alike, so that a mixed-up axis shows.
ODD = dict(image_size=32, num_frames=3, audio_frames=64, mel_bins=48, frame_shift=20.0, patch_size=8, embed_dim=24, num_heads=3,
           encoder_depth=2, fusion_depth=1, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, avm_heads=6)


@pytest.fixture
def sizes():
    from model import Sizes
    return Sizes(**ODD)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
