"""Files of weights: `--init FILE` (App. A, App. B), models of runs, and the cache of the initial pre-training.

In:  a file of the authors' released checkpoints, of an ImageNet MAE (ViT-B), or of this project.
Out: backbone and AVM with the weights that fit, and a line that says what was loaded.
"""
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import torch
from torch import nn

from config import PATH_FIELDS, RUNTIME_FIELDS, STREAM_FIELDS, UserError
from utils.checkpoint import read_checkpoint
from utils.distributed import get_world_size

# Names in the authors' checkpoints → names here. Their prefix "backbone.transformer." is removed before.
RELEASED_BACKBONE = {
    'pos_embed_': 'pos_', 'inter_pos_embed_': 'fusion_pos_', 'decoder_pos_embed_': 'decoder_pos_',
    'blocks_a.': 'encoder_a.', 'blocks_v.': 'encoder_v.', 'blocks_u.': 'fusion.', 'decoder_blocks.': 'decoder.',
    'mae_score_audio.decoder.': 'head_a.', 'mae_score_video.decoder.': 'head_v.'}
RELEASED_AVM = {
    **{f'to_{n}_{x}.': f'to_{x}_{n}.' for n in 'av' for x in 'qkv'},
    'matching_score.pooler.dense.': 'fc.0.', 'matching_score.fc.': 'fc.2.'}


def replace_prefix(name, table):
    for old, new in table.items():
        if name.startswith(old):
            return new + name[len(old):]
    return name


def by_modality(name):
    """'encoder_a.0.norm1.weight' → 'encoder.a.0.norm1.weight': the backbone keeps what belongs to a modality in
    dictionaries. The authors' files and older ones of this project have a suffix instead."""
    if not name.startswith('backbone.'):
        return name
    name = re.sub(r'^backbone\.(fusion\.\d+\.norm[12]|norm)\.(weight|bias)$', r'backbone.\1.joint.\2', name)
    name = re.sub(r'_([av])(?=\.|$)', r'.\1', name, count=1)
    return re.sub(r'\b(decoder_)?modality\.', r'\1modality_embed.', name)


def released_names(weights):
    """{name: tensor} of the authors' checkpoint, with or without "module." in front → {name here: tensor}"""
    renamed = {}
    for name, tensor in weights.items():
        name = name.removeprefix('module.')
        if name.startswith('backbone.transformer.'):
            name = 'backbone.' + replace_prefix(name.removeprefix('backbone.transformer.'), RELEASED_BACKBONE)
        elif name.startswith('avmatching_module.'):
            name = 'avm.' + replace_prefix(name.removeprefix('avmatching_module.'), RELEASED_AVM)
        renamed[by_modality(name)] = tensor
    return renamed


def tensors_in(saved):
    """The {name: tensor} in the content of a file, whichever key they are under; {} if there are none"""
    for key in ('model', 'state_dict', 'weights'):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    saved = saved if isinstance(saved, dict) else {}
    return {name.removeprefix('module.'): x for name, x in saved.items() if torch.is_tensor(x)}        # of DataParallel


def backbone_weights(saved):
    """The content of a saved model, of this or an older version or of the authors → {name in AudioVideoMAE: tensor}"""
    weights = tensors_in(saved)
    if not any('backbone.' in name for name in weights):               # the backbone alone
        weights = {'backbone.' + name: x for name, x in weights.items()}
    return {name.removeprefix('backbone.'): x for name, x in released_names(weights).items()
            if not name.startswith('avm.')}


def from_image_mae(weights, sizes):
    """{name: tensor} of an ImageNet MAE (ViT-B) → {name here: tensor} (N36).

    The first `encoder_depth` blocks initialize both encoders, the others the fusion, with each LayerNorm copied to all
    three. Audio has one channel instead of three: its kernel is the sum over channels. Class tokens are dropped. Audio
    positions stay sine-cosine.
    """
    taken = {}
    for name, tensor in weights.items():
        module, _, rest = name.partition('.')
        if name == 'patch_embed.proj.weight':
            taken['patch_embed.v.proj.weight'] = tensor
            taken['patch_embed.a.proj.weight'] = tensor.sum(1, keepdim=True)
        elif name == 'patch_embed.proj.bias':
            taken['patch_embed.v.proj.bias'] = taken['patch_embed.a.proj.bias'] = tensor
        elif name in ('pos_embed', 'decoder_pos_embed'):
            taken[name.removesuffix('_embed') + '.v'] = tensor[:, 1:].repeat(1, sizes.num_frames, 1)
        elif name == 'mask_token':
            taken['mask_token.a'] = taken['mask_token.v'] = tensor
        elif module == 'blocks':
            number, _, rest = rest.partition('.')
            number = int(number)
            if number < sizes.encoder_depth:
                taken[f'encoder.a.{number}.{rest}'] = taken[f'encoder.v.{number}.{rest}'] = tensor
            elif rest.startswith('norm'):
                norm, _, part = rest.partition('.')
                for key in ('joint', 'a', 'v'):
                    taken[f'fusion.{number - sizes.encoder_depth}.{norm}.{key}.{part}'] = tensor
            else:
                taken[f'fusion.{number - sizes.encoder_depth}.{rest}'] = tensor
        elif module == 'norm':
            for key in ('joint', 'a', 'v'):
                taken[f'norm.{key}.{rest}'] = tensor
        elif module == 'decoder_blocks':
            taken[f'decoder.{rest}'] = tensor
        elif module == 'decoder_pred':
            taken[f'head.v.{rest}'] = tensor
            taken[f'head.a.{rest}'] = tensor[:sizes.patch_size ** 2]
        elif module in ('decoder_embed', 'decoder_norm'):
            taken[name] = tensor
    return {'backbone.' + name: tensor for name, tensor in taken.items()}


LACKS_DECODER = """
{path} holds no decoder, so the decoder starts at random and ℓ^r means little at first. The paper starts from a whole
MAE: the file mae_pretrain_vit_base_full.pth."""


def load_weights(path, backbone, avm):
    """Load the authors' checkpoint, an ImageNet MAE, or a file of this project → a line that says what was loaded.

    Raises UserError if the sizes differ, or if the file holds no weights that are known here.
    """
    weights = tensors_in(read_checkpoint(path))
    if not weights:
        raise UserError(f'{path}: holds no weights')
    is_image_mae = 'patch_embed.proj.weight' in weights
    given = from_image_mae(weights, backbone.sizes) if is_image_mae else released_names(weights)

    # load what has a name here
    own = nn.ModuleDict({'backbone': backbone, 'avm': avm}).state_dict()
    found = {name: value for name, value in given.items() if name in own}
    wrong = [f'{name} is {tuple(value.shape)}, here {tuple(own[name].shape)}'
             for name, value in found.items() if value.shape != own[name].shape]
    if wrong:
        raise UserError(f'{path}: weights of another size: {wrong[0]} ({len(wrong)} tensors differ). Without --init, '
                        '--pretrain-steps -1 trains initial weights of this size')
    if not found:
        raise UserError(f'{path}: none of its {len(weights)} tensors is known here (the first: {next(iter(weights))})')
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)                     # tensors of a state_dict share the parameters' memory

    # report
    kind = 'an image MAE' if is_image_mae else 'an audio-video checkpoint'
    unused = ['cls_token'] if is_image_mae and 'cls_token' in weights else [name for name in given if name not in own]
    missing = [name for name in own if name not in found]
    return (f'{path}: {kind}; loaded {len(found)} of {len(own)} tensors'
            + (f'; not used: {first_names(unused)}' if unused else '')
            + (f'; not in the file, so as initialized: {first_names(missing)}' if missing else '')
            + (LACKS_DECODER.format(path=path) if 'backbone.decoder_norm.weight' in missing else ''))


def first_names(names):
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def pretraining_cache(cfg, device, digest):
    """The file of this initial pre-training on clips with this digest. Its name depends on every option, but for those
    of the stream, those that change no result, and where the clips lie."""
    options = {name: value for name, value in dataclasses.asdict(cfg).items()
               if name not in RUNTIME_FIELDS | STREAM_FIELDS | PATH_FIELDS}
    init = [os.path.getsize(cfg.init), os.path.getmtime(cfg.init)] if os.path.exists(cfg.init) else []
    text = json.dumps([sorted(options.items()), get_world_size(), device.type, digest, init])
    name = f'initial-{cfg.dataset}-{cfg.size}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pt'
    return Path(cfg.cache) / name
