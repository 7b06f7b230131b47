"""Files of weights: reading `--init FILE` (App. A, App. B; readings), reading and writing checkpoints.

In:  a file of the authors' released checkpoints, of an ImageNet MAE (ViT-B), or of this project's runs.
Out: backbone and AVM with the weights that fit, and one line that says what was taken and what was left.

Nothing but tensors and plain values is ever read: a file that would run code is refused.
"""
import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import nn

from config import OF_PRETRAINING
from patches import UserError, world

# Names in the authors' checkpoints, beside which nothing but "backbone.transformer." stands in front → names here.
RELEASED_BACKBONE = {
    'pos_embed_': 'pos_', 'inter_pos_embed_': 'fusion_pos_', 'decoder_pos_embed_': 'decoder_pos_',
    'blocks_a.': 'encoder_a.', 'blocks_v.': 'encoder_v.', 'blocks_u.': 'fusion.', 'decoder_blocks.': 'decoder.',
    'mae_score_audio.decoder.': 'head_a.', 'mae_score_video.decoder.': 'head_v.'}
RELEASED_AVM = {
    **{f'to_{n}_{x}.': f'to_{x}_{n}.' for n in 'av' for x in 'qkv'},
    'matching_score.pooler.dense.': 'fc.0.', 'matching_score.fc.': 'fc.2.'}


def _rename(name, table):
    for old, new in table.items():
        if name.startswith(old):
            return new + name[len(old):]
    return name


def released_names(weights):
    """{name: tensor} of an authors' checkpoint, with or without "module." in front → {name here: tensor}"""
    renamed = {}
    for name, tensor in weights.items():
        name = name.removeprefix('module.')
        if name.startswith('backbone.transformer.'):
            name = 'backbone.' + _rename(name.removeprefix('backbone.transformer.'), RELEASED_BACKBONE)
        elif name.startswith('avmatching_module.'):
            name = 'avm.' + _rename(name.removeprefix('avmatching_module.'), RELEASED_AVM)
        renamed[name] = tensor
    return renamed


def from_image_mae(weights, sizes):
    """{name: tensor} of an ImageNet MAE (ViT-B) → {name here: tensor} (readings; the paper starts from it).

    Its first `encoder_depth` blocks start both encoders and the rest the fusion, each LayerNorm copied to
    all three; audio has one channel where RGB has three, so that kernel is summed over channels. Class tokens
    have no place here. Audio positions stay sine-cosine.
    """
    taken = {}
    for name, tensor in weights.items():
        if name == 'patch_embed.proj.weight':
            taken['patch_embed_v.proj.weight'] = tensor
            taken['patch_embed_a.proj.weight'] = tensor.sum(1, keepdim=True)
        elif name == 'patch_embed.proj.bias':
            taken['patch_embed_v.proj.bias'] = taken['patch_embed_a.proj.bias'] = tensor
        elif name in ('pos_embed', 'decoder_pos_embed'):
            taken['pos_v' if name == 'pos_embed' else 'decoder_pos_v'] = tensor[:, 1:].repeat(1, sizes.num_frames, 1)
        elif name == 'mask_token':
            taken['mask_token_a'] = taken['mask_token_v'] = tensor
        elif name.startswith('blocks.'):
            _, number, rest = name.split('.', 2)
            number = int(number)
            if number < sizes.encoder_depth:
                taken[f'encoder_a.{number}.{rest}'] = taken[f'encoder_v.{number}.{rest}'] = tensor
            else:
                number -= sizes.encoder_depth
                for suffix in ('', '_a', '_v') if rest.startswith('norm') else ('',):
                    kind, _, part = rest.partition('.')
                    taken[f'fusion.{number}.{kind}{suffix}.{part}'] = tensor
        elif name.startswith('norm.'):
            for suffix in ('', '_a', '_v'):
                taken[f'norm{suffix}.{name[5:]}'] = tensor
        elif name.startswith('decoder_blocks.'):
            taken['decoder.' + name[15:]] = tensor
        elif name.startswith('decoder_pred.'):
            taken['head_v.' + name[13:]] = tensor
            taken['head_a.' + name[13:]] = tensor[:sizes.patch_size ** 2]
        elif name.startswith(('decoder_embed.', 'decoder_norm.')):
            taken[name] = tensor
    return {'backbone.' + name: tensor for name, tensor in taken.items()}


def read_checkpoint(path):
    """`torch.load`, tensors and plain values only: a file that would run code is refused. Raises UserError."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True,
                          mmap=zipfile.is_zipfile(path))            # older files have another format
    except FileNotFoundError:
        raise UserError(f'{path}: there is no such file')
    except Exception as error:   # torch raises many kinds, for truncated files not always the same one
        if 'GLOBAL' in str(error) or 'Unsupported class' in str(error):
            raise UserError(f'{path}: refused, since loading it would execute code that it contains '
                            f'({str(error).splitlines()[0][:120]})')
        raise UserError(f'{path}: not a whole checkpoint; truncated, or not one at all ({type(error).__name__})')


LACKS_DECODER = """
{path} holds no decoder: it starts at random, with its mask tokens and heads, and must learn to reconstruct before ℓ^r
says anything. The paper starts from a whole MAE: the file mae_pretrain_vit_base_full.pth."""


def load_weights(path, backbone, avm):
    """`--init FILE`: start from the authors' checkpoints, an ImageNet MAE's, or one of this project's.

    Returns a line that says what was taken and what was left, and a further one where the file lacks the decoder.
    Raises UserError when the sizes differ.
    """
    file = read_checkpoint(path)
    weights = file
    for key in ('model', 'state_dict', 'weights'):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not any(torch.is_tensor(value) for value in weights.values()):
        raise UserError(f'{path}: holds no weights')
    weights = {name: value for name, value in weights.items() if torch.is_tensor(value)}
    kind = 'a checkpoint of audio and video'
    given = released_names(weights)
    if 'patch_embed.proj.weight' in weights:
        kind, given = 'an image MAE', from_image_mae(weights, backbone.sizes)

    own = nn.ModuleDict({'backbone': backbone, 'avm': avm}).state_dict()
    found = {name: value for name, value in given.items() if name in own}
    wrong = [f'{name} is {tuple(value.shape)}, here {tuple(own[name].shape)}'
             for name, value in found.items() if value.shape != own[name].shape]
    if wrong:
        more = f' (and {len(wrong) - 1} more)' if wrong[1:] else ''
        raise UserError(f'{path}: weights of another size: {wrong[0]}{more}')
    if not found:
        raise UserError(f'{path}: none of its {len(weights)} tensors is known here (its first: {next(iter(weights))})')
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)   # state_dict's tensors are the parameters' own memory
    left = [name for name in given if name not in own]
    if kind == 'an image MAE':
        left = [name for name in ('cls_token',) if name in weights]
    fresh = [name for name in own if name not in found]
    return (f'{path}: {kind}; took {len(found)} of {len(own)} tensors'
            + (f'; left in the file: {_some(left)}' if left else '')
            + (f'; not in the file, so as initialized: {_some(fresh)}' if fresh else '')
            + (LACKS_DECODER.format(path=path) if 'backbone.decoder_norm.weight' in fresh else ''))


def _some(names):
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def pretraining_cache(cfg, device, clips):
    """The file that holds this initial pre-training on so many clips: its name depends on all that its result does."""
    folders = [folder for folder in (cfg.data, cfg.pretrain_data) if folder]
    lists = [path for folder in folders for path in sorted(Path(folder).glob('*.csv'))]
    files = [path for path in (cfg.init, cfg.tasks, *lists) if path and os.path.exists(path)]
    text = json.dumps([{name: getattr(cfg, name) for name in sorted(OF_PRETRAINING)}, world(), device.type, clips,
                       [(os.path.getsize(file), os.path.getmtime(file)) for file in files]])
    name = f'initial-{cfg.dataset}-{cfg.size}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pt'
    return Path(cfg.cache) / name


def save_atomically(content, path):
    """Write to a temporary file, then rename: whatever happens meanwhile, `path` is whole. Raises UserError when the
    disk is full."""
    temporary = Path(f'{path}.{os.getpid()}.tmp')      # two runs may finish the same initial pre-training
    try:
        with open(temporary, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:   # torch reports a failed write as a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f'; the last checkpoint, {path}, is intact' if Path(path).exists() else ''
        raise UserError(f'could not write {path}: {getattr(error, "strerror", None) or "is the disk full?"}{kept}. '
                        'Make room and go on with --resume.')


def check_writable(folder, named=''):
    """Makes the folder, where there is none, and tries to write to it. named: '--out ' if so asked for. Raises
    UserError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f'{named}{folder} cannot be written: {error.strerror}')


def write_text(path, text):
    temporary = Path(f'{path}.{os.getpid()}.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)
