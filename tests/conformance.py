"""Conformance: does this code compute the numbers of a golden file?

    python tests/conformance.py FILE...

A file (`torch.load(..., weights_only=True)`) holds weights in the names of the authors' checkpoints, inputs, and under
`expected` the result of each stage, computed in float64. Prints the largest error of each key, relative to the largest
expected value. The exit code is 1 if one is over 1e-5 in float32 or 1e-9 in float64.
"""
import sys
from dataclasses import fields
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from avm import AVM, importance
from config import Sizes
from model import AudioVideoMAE
from patches import Mask, Patches, all_ids, gather_rows, patchify_a, patchify_v
from selection import discriminative_query, prune_probability
from utils.weights import load_weights

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-9}


def places(ids, positions):
    """Where the positions (B, n) are in ids (B, κ) → indices (B, n)"""
    return (ids[:, None, :] == positions[:, :, None]).long().argmax(-1)


@torch.no_grad()
def compute(golden, path, dtype):
    """Every number that the file expects → {key: tensor}"""
    config = golden['config']
    sizes = Sizes(**{f.name: config[f.name] for f in fields(Sizes) if f.name in config})
    backbone, avm = AudioVideoMAE(sizes).to(dtype), AVM(sizes.embed_dim, sizes.avm_heads).to(dtype)
    load_weights(path, backbone, avm)
    audio, video = golden['audio'].to(dtype).flatten(0, 1), golden['video'].to(dtype)     # the file's audio is B,1,t,f
    x_a, x_v = patchify_a(audio, sizes.patch_size), patchify_v(video, sizes.patch_size)
    ids_a, ids_v = all_ids(x_a), all_ids(x_v)
    out = {}

    # backbone and AVM on whole clips
    o_a, o_v = out['encoder_a'], out['encoder_v'] = backbone.encode(x_a, x_v, ids_a, ids_v)
    out['retrieval_a'], out['retrieval_v'] = backbone.embed(audio, video)
    joint_a, joint_v = out['joint_a'], out['joint_v'] = backbone.fuse(o_a, o_v, ids_a, ids_v)
    out['avm_logits'] = avm.match(joint_a, joint_v)

    # importance and pruning probability
    p = avm.project(joint_a, joint_v)
    I_a, I_v = out['importance_a'], out['importance_v'] = importance(p, config['beta'])
    kappa_a, kappa_v = int(sizes.num_patches_a * config['rho_a']), int(sizes.num_patches_v * config['rho_v'])
    out['query_a'] = discriminative_query(I_a, p.q_a, kappa_a)
    out['query_v'] = discriminative_query(I_v, p.q_v, kappa_v)
    past_a, past_v = golden['past_query_a'].to(dtype), golden['past_query_v'].to(dtype)
    out['prune_a'] = prune_probability(I_a, p.k_a, out['query_v'], past_v, kappa_a)
    out['prune_v'] = prune_probability(I_v, p.k_v, out['query_a'], past_a, kappa_v)

    # losses of whole clips and of selected patches, under the file's masks
    for name in ('full', 'selected'):
        given = golden['expected'][name]
        kept_a = torch.cat([given['visible_a'], given['target_a']], 1)
        kept_v = torch.cat([given['visible_v'], given['target_v']], 1)
        masks = [Mask(places(kept, given[f'visible_{m}']), places(kept, given[f'target_{m}']))
                 for m, kept in (('a', kept_a), ('v', kept_v))]
        selected = Patches(gather_rows(x_a, kept_a), gather_rows(x_v, kept_v), kept_a, kept_v)
        losses = backbone(selected, masks, config['tau'])
        out[f'{name}.loss_mae_a'], out[f'{name}.loss_mae_v'] = losses.mae_a.mean(), losses.mae_v.mean()
        out[f'{name}.loss_contrastive'] = losses.contrastive.mean()
        out[f'{name}.pooled_a'], out[f'{name}.pooled_v'] = losses.pooled_a, losses.pooled_v
    return out


def flatten(expected, prefix=''):
    """(key, value) of nested dictionaries, without the inputs"""
    for key, value in expected.items():
        if isinstance(value, dict):
            yield from flatten(value, f'{prefix}{key}.')
        elif not key.startswith(('visible_', 'target_')):
            yield prefix + key, value


def check(path, dtype):
    """Print a line per key → whether all are within the limit"""
    golden = torch.load(path, map_location=torch.get_default_device(), weights_only=True)
    out, good = compute(golden, path, dtype), True
    print(f'{path} in {str(dtype)[6:]}')
    for key, value in flatten(golden['expected']):
        error = float('inf')
        if key in out and out[key].shape == value.shape:
            scale = value.abs().max().clamp(min=1e-30)
            error = ((out[key].double() - value.double()).abs().max() / scale).item()
        within = error <= LIMITS[dtype]                # False for NaN
        good &= within
        print(f'  {key:<28}{error:10.1e}{"" if within else "   over the limit"}')
    return good


def main(paths):
    if not paths:
        sys.exit(__doc__)
    good = [check(path, dtype) for path in paths for dtype in LIMITS]
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__':
    main(sys.argv[1:])
