"""Conformance: does this code give the numbers of a golden file?

    python tests/conformance.py FILE...

A file (`torch.load(..., weights_only=True)`) holds weights of any size in the names of the authors' checkpoints,
inputs, and under `expected` what each stage must give, computed in float64. Each key's largest error is printed,
relative to the key's largest expected value; the exit code is 1 when one is over 1e-5 in float32 or 1e-9 in float64.
"""
import sys
from dataclasses import fields
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from avm import AVM, importance
from model import AudioVideoMAE
from patches import Sizes, all_positions, gather, patchify_a, patchify_v
from selection import discriminative_query, prune_probability
from weights import load_weights

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-9}


def slots(kept, positions):
    """At which places of `kept` (B, κ) the given positions (B, n) stand."""
    return (kept[:, None, :] == positions[:, :, None]).long().argmax(-1)


@torch.no_grad()
def compute(golden, path, dtype):
    """Every number that the file expects, computed here: {key: tensor}"""
    config = golden['config']
    sizes = Sizes(**{f.name: config[f.name] for f in fields(Sizes) if f.name in config})
    backbone, avm = AudioVideoMAE(sizes).to(dtype), AVM(sizes.embed_dim, sizes.avm_heads).to(dtype)
    load_weights(path, backbone, avm)
    audio, video = golden['audio'].to(dtype).flatten(0, 1), golden['video'].to(dtype)     # the file's audio is B,1,t,f
    x_a, x_v = patchify_a(audio, sizes.patch_size), patchify_v(video, sizes.patch_size)
    at_a, at_v = all_positions(x_a), all_positions(x_v)
    out = {}

    o_a, o_v = out['encoder_a'], out['encoder_v'] = backbone.encode(x_a, x_v, at_a, at_v)
    out['retrieval_a'], out['retrieval_v'] = backbone.embed(audio, video)
    joint_a, joint_v = out['joint_a'], out['joint_v'] = backbone.fuse(o_a, o_v, at_a, at_v)
    out['avm_logits'] = avm.match(joint_a, joint_v)

    p = avm.project(joint_a, joint_v)
    I_a, I_v = out['importance_a'], out['importance_v'] = importance(p, config['beta'])
    kappa_a, kappa_v = int(sizes.num_patches_a * config['rho_a']), int(sizes.num_patches_v * config['rho_v'])
    out['query_a'] = discriminative_query(I_a, p.q_a, kappa_a)
    out['query_v'] = discriminative_query(I_v, p.q_v, kappa_v)
    past_a, past_v = golden['past_query_a'].to(dtype), golden['past_query_v'].to(dtype)
    out['prune_a'] = prune_probability(I_a, p.k_a, out['query_v'], past_v, kappa_a)
    out['prune_v'] = prune_probability(I_v, p.k_v, out['query_a'], past_a, kappa_v)

    for name in ('full', 'selected'):
        given = golden['expected'][name]
        kept_a = torch.cat([given['visible_a'], given['target_a']], 1)
        kept_v = torch.cat([given['visible_v'], given['target_v']], 1)
        losses = backbone.losses(gather(x_a, kept_a), gather(x_v, kept_v), kept_a, kept_v,
                                 (slots(kept_a, given['visible_a']), slots(kept_a, given['target_a'])),
                                 (slots(kept_v, given['visible_v']), slots(kept_v, given['target_v'])), config['tau'])
        out[f'{name}.loss_mae_a'], out[f'{name}.loss_mae_v'] = losses.mae_a.mean(), losses.mae_v.mean()
        out[f'{name}.loss_contrastive'] = losses.contrastive.mean()
        out[f'{name}.pooled_a'], out[f'{name}.pooled_v'] = losses.pooled_a, losses.pooled_v
    return out


def flatten(expected, prefix=''):
    for key, value in expected.items():
        if isinstance(value, dict):
            yield from flatten(value, f'{prefix}{key}.')
        elif not key.startswith(('visible_', 'target_')):    # those are inputs
            yield prefix + key, value


def check(path, dtype):
    """Print a line per key. Returns True when all are within the limit."""
    golden = torch.load(path, weights_only=True)
    out, good = compute(golden, path, dtype), True
    print(f'{path} in {str(dtype)[6:]}')
    for key, value in flatten(golden['expected']):
        if key not in out:
            print(f'  {key:<28} not computed here')
            good = False
            continue
        scale = value.abs().max().clamp(min=1e-30)
        same_shape = out[key].shape == value.shape
        error = ((out[key].double() - value.double()).abs().max() / scale).item() if same_shape else float('inf')
        within = error <= LIMITS[dtype]        # NaN is not
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
