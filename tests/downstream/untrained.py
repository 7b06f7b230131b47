"""What tests of the downstream tasks share: runs as train.py leaves them, with untrained models; options; literal
features."""
import argparse
import dataclasses
import json

import torch
import torch.nn.functional as F
from torch import nn

from avm import AVM
from config import PRESETS, Config
from model import AudioVideoMAE
from run import Recorded

from conftest import ODD

LOOKED_AT = dict(PRESETS['small'], image_size=48, audio_frames=128, mel_bins=32, embed_dim=16, encoder_depth=1,
                 decoder_embed_dim=16, num_heads=2, avm_heads=2, decoder_num_heads=2, test_clips=5, galleries=1,
                 clips_per_task=5, batch_size=3, size='small')       # small, and yet sources are seen in it


def options(**given):
    """What eval.py's command line would have read."""
    return argparse.Namespace(**dict(dict(data='', epochs=None, lr=None, batch_size=None, clips=None, finetune=False,
                                          seed=0), **given))


def make_run(folder, cfg, files):
    """A run's folder with the models after so many tasks → Recorded"""
    (folder / 'models').mkdir()
    (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    for t in files:
        torch.manual_seed(t)
        parts = nn.ModuleDict({'backbone': AudioVideoMAE(cfg), 'avm': AVM(cfg.embed_dim, cfg.avm_heads)})
        record = dict(config=dataclasses.asdict(cfg), weights=parts.state_dict())
        torch.save(record, folder / 'models' / f'{t}.pt')
    return Recorded(folder, device='cpu')


def odd_model():
    """Config of odd sizes, backbone, AVM, and a batch of five pairs."""
    cfg = Config(**ODD)
    batch = dict(audio=torch.randn(5, cfg.audio_frames, cfg.mel_bins),
                 video=torch.randint(0, 256, (5, cfg.num_frames, 3, cfg.image_size, cfg.image_size), dtype=torch.uint8))
    modules = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
    for parameter in [*modules[0].parameters(), *modules[1].parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)            # no two LayerNorms alike
    return cfg, *(module.eval().requires_grad_(False) for module in modules), batch


class Unknown(torch.utils.data.Dataset):
    """Clips whose source is not known, of which the last cannot be read."""

    def __init__(self, clips):
        self.clips, self.read = clips, []

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        self.read.append(key[0])
        return self.clips[key] | {'bad': 'gone' if key[0] == len(self) - 1 else ''}


def check_without_sources(run, task):
    """Of clips whose source is not known there are pictures and no numbers, and no more is decoded than is shown. What
    is found of one model is drawn from what was found of it, and not from an older record of all."""
    import eval as evaluation

    run.stream = run.stream._replace(test=[Unknown(dataset) for dataset in run.stream.test[:2]], names=['x', 'y'])
    run.models = lambda: [(0, 'initial', run.folder / 'models' / '0.pt')]
    (run.folder / 'eval').mkdir(exist_ok=True)
    torch.save({'clips': []}, run.folder / 'eval' / f'{task}.pt')
    results, table, figure = evaluation.answer(only_last(run), task, options())
    run.write(task, results, table, figure)
    assert set(results) == {'tasks', 'after'} and 'not known' in table
    clips = torch.load(run.folder / 'eval' / f'{task}-last.pt', weights_only=True)['clips']
    assert [clip['task'] for clip in clips] == [0, 1]                  # the first of each; the last cannot be read
    assert all(clip['truth_v'] is None for clip in clips)
    assert all(set(dataset.read) <= {0, 4} for dataset in run.stream.test)
    assert len([axis for axis in figure.axes if axis.get_ylabel()]) == 2       # a row a clip


def only_last(run):
    run.last = True
    return run


def uneven(sizes):
    """A backbone in which no LayerNorm is the same as another, in float64."""
    model = AudioVideoMAE(sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def literal_joint(model, audio, video, p):
    """One clip, patch after patch: audio (t, f), video (T, 3, H, W) → lists of joint vectors (D,) after `norm`."""
    def patches(image, embed):                                                 # image (channels, rows, columns)
        return [(embed.proj.weight * image[:, y:y + p, x:x + p]).sum((1, 2, 3)) + embed.proj.bias
                for y in range(0, image.shape[1], p) for x in range(0, image.shape[2], p)]

    a = patches(audio[None], model.patch_embed_a)
    v = [x for frame in video for x in patches(frame, model.patch_embed_v)]
    a, v = torch.stack(a) + model.pos_a[0] + model.modality_a[0], torch.stack(v) + model.pos_v[0] + model.modality_v[0]
    for block in model.encoder_a:
        a = block(a[None])[0]
    for block in model.encoder_v:
        v = block(v[None])[0]
    x = torch.cat([a + model.fusion_pos_a[0], v + model.fusion_pos_v[0]])[None]
    for block in model.fusion:
        x = block(x)
    x = F.layer_norm(x[0], x.shape[-1:], model.norm.weight, model.norm.bias, 1e-5)
    return list(x[:len(a)]), list(x[len(a):])
