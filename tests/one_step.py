"""For tests of single steps: methods at odd sizes, batches for them, masks that repeat, a record of calls."""
import torch

from avm import AVM
from config import Config, num_kept
from conftest import ODD
from flava import build_method
from model import AudioVideoMAE, run_backbone, loss_per_pair
from patches import Mask, patchify, to_float

B = 4


def config(**more):
    return Config(**{**ODD, 'mask_ratio': 0.7, 'chunk': 2, 'memory_size': 10, 'lam': 0.7, 'lr': 0.05, **more})


def make(name, **more):
    """A method of this name, with the same weights each time"""
    torch.manual_seed(1)
    cfg = config(method=name, **more)
    return build_method(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))


def batch(seed, pairs=B):
    generator = torch.Generator().manual_seed(seed)
    return dict(audio=torch.randn(pairs, 64, 48, generator=generator).half().float(),    # as the memory returns it
                video=torch.randint(0, 256, (pairs, 3, 3, 32, 32), dtype=torch.uint8, generator=generator))


def rows_of(seed, rows):
    """Some pairs of `batch(seed)`, as a batch"""
    return {name: x[rows] for name, x in batch(seed).items()}


def all_patches(method, seed_or_batch):
    """All patches of a batch, in float32"""
    given, p = batch(seed_or_batch) if isinstance(seed_or_batch, int) else seed_or_batch, method.cfg.patch_size
    return to_float(patchify(given, p), p)


def losses_of(method, patches, backbone=None, masks=None):
    """Losses, as a step computes them"""
    return run_backbone(method.cfg, backbone or method.backbone, patches, masks)


def loss_each(method, patches, backbone=None, masks=None):
    """ℓ^r + λℓ^c of each pair"""
    return loss_per_pair(method.cfg, losses_of(method, patches, backbone, masks))


def fixed_random_masks(cfg, patches):
    """`patches.random_masks`, but the same for every call of the same size"""
    def one(ids, num_visible):
        generator = torch.Generator().manual_seed(ids.shape[1])
        order = torch.rand(64, ids.shape[1], generator=generator)[:len(ids)].argsort(1)
        return Mask(order[:, :num_visible], order[:, num_visible:])
    return (one(patches.ids_a, num_kept(1 - cfg.mask_ratio, cfg.num_patches_a)),
            one(patches.ids_v, num_kept(1 - cfg.mask_ratio, cfg.num_patches_v)))


def record_calls(monkeypatch, module, name):
    """Record every call of a function that a module imports → list of (arguments, result)"""
    calls, function = [], getattr(module, name)

    def recorded(*given):
        calls.append((given, function(*given)))
        return calls[-1][1]
    monkeypatch.setattr(module, name, recorded)
    return calls
