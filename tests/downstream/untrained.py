"""Shared by the tests of downstream/: runs with untrained models, options of eval.py, slow reference features."""
import argparse
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avm import AVM
from config import PRESETS, Config
from conftest import ODD, render_once
from downstream.finished_run import FinishedRun
from model import AudioVideoMAE

SMALL = dict(PRESETS['small'], image_size=48, audio_frames=128, mel_bins=32, embed_dim=16, encoder_depth=1,
             decoder_embed_dim=16, num_heads=2, avm_heads=2, decoder_num_heads=2, test_clips=5, candidate_sets=1,
             clips_per_task=5, batch_size=3, size='small')       # small, but the sources are still visible
SHARED = []     # the folder of `shared_run`


def options(**given):
    """The parsed command line of eval.py"""
    default = dict(data='', epochs=None, lr=None, batch_size=None, clips=None, finetune=False, seed=0)
    return argparse.Namespace(**default | given)


def make_run(folder, cfg, tasks_learned):
    """A run's folder with an untrained model after each of these numbers of tasks → FinishedRun"""
    (folder / 'models').mkdir()
    (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    for t in tasks_learned:
        torch.manual_seed(t)
        modules = nn.ModuleDict({'backbone': AudioVideoMAE(cfg), 'avm': AVM(cfg.embed_dim, cfg.avm_heads)})
        torch.save(dict(config=dataclasses.asdict(cfg), weights=modules.state_dict()), folder / 'models' / f'{t}.pt')
    return FinishedRun(folder, device='cpu')


@pytest.fixture(name='run')
def shared_run(tmp_path_factory, monkeypatch):
    """A FinishedRun with an untrained model after each of 0 … 6 tasks. Folder and clips are made once."""
    render_once(monkeypatch)
    if not SHARED:
        SHARED.append(make_run(tmp_path_factory.mktemp('shared'), Config(**SMALL), range(7)).folder)
    monkeypatch.chdir(SHARED[0])                               # of the cache of clips
    return FinishedRun(SHARED[0], device='cpu')


def only_last(run):
    run.last = True
    return run


def randomized(*modules):
    """Change all parameters a little, so that no two LayerNorms are alike."""
    for module in modules:
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return [module.eval().requires_grad_(False) for module in modules]


def odd_model():
    """→ Config of odd sizes, backbone, AVM, a batch of five pairs"""
    cfg = Config(**ODD)
    batch = dict(audio=torch.randn(5, cfg.audio_frames, cfg.mel_bins),
                 video=torch.randint(0, 256, (5, cfg.num_frames, 3, cfg.image_size, cfg.image_size), dtype=torch.uint8))
    return cfg, *randomized(AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)), batch


def reference_joint(model, audio, video, p):
    """Joint tokens of one clip, patch by patch: audio (t, f), video (T, 3, H, W) → two lists of vectors (D,)"""
    def patches(image, embed):                                                 # image (channels, rows, columns)
        return [(embed.proj.weight * image[:, y:y + p, x:x + p]).sum((1, 2, 3)) + embed.proj.bias
                for y in range(0, image.shape[1], p) for x in range(0, image.shape[2], p)]

    a = torch.stack(patches(audio[None], model.patch_embed['a'])) + model.pos['a'][0] + model.modality_embed['a'][0]
    v = torch.stack([x for frame in video for x in patches(frame, model.patch_embed['v'])])
    v = v + model.pos['v'][0] + model.modality_embed['v'][0]
    for block in model.encoder['a']:
        a = block(a[None])[0]
    for block in model.encoder['v']:
        v = block(v[None])[0]
    x = torch.cat([a + model.fusion_pos['a'][0], v + model.fusion_pos['v'][0]])[None]
    for block in model.fusion:
        x = block(x)
    norm = model.norm['joint']
    x = F.layer_norm(x[0], x.shape[-1:], norm.weight, norm.bias, 1e-5)
    return list(x[:len(a)]), list(x[len(a):])
