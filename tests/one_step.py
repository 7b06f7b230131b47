"""Methods at odd sizes, batches for them, and masks that repeat: what the tests of single steps share."""
import torch

import baselines
import patches
from avm import AVM
from config import Config
from conftest import ODD
from model import AudioVideoMAE, autoencode, objective

B = 4


def config(**more):
    return Config(**{**ODD, 'mask_ratio': 0.7, 'chunk': 2, 'memory_size': 10, 'lam': 0.7, 'lr': 0.05, **more})


def make(name, **more):
    torch.manual_seed(1)
    cfg = config(method=name, **more)
    return baselines.build(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))


def batch(seed, pairs=B):
    generator = torch.Generator().manual_seed(seed)
    return dict(audio=torch.randn(pairs, 64, 48, generator=generator).half().float(),    # as the memory gives it back
                video=torch.randint(0, 256, (pairs, 3, 3, 32, 32), dtype=torch.uint8, generator=generator))


def rows_of(seed, rows):
    """Some pairs of `batch(seed)`, as a batch."""
    return {name: x[rows] for name, x in batch(seed).items()}


def whole(method, seed_or_batch):
    """All patches of a batch, as numbers of the network's range."""
    given, p = batch(seed_or_batch) if isinstance(seed_or_batch, int) else seed_or_batch, method.cfg.patch_size
    return patches.normalized(patches.whole(given, p), p)


def losses_of(method, these, backbone=None, masks=None):
    return autoencode(method.cfg, backbone or method.backbone, these, masks)


def loss_each(method, these, backbone=None, masks=None):
    return objective(method.cfg, losses_of(method, these, backbone, masks))


def draw_fixed(cfg, these):
    """`patches.draw_masks`, but the same for every call of the same size."""
    def one(kept, share):
        generator = torch.Generator().manual_seed(kept.shape[1])
        order = torch.rand(64, kept.shape[1], generator=generator)[:len(kept)].argsort(1)
        return order[:, :share], order[:, share:]
    return (one(these.kept_a, patches.count(1 - cfg.mask_ratio, cfg.num_patches_a)),
            one(these.kept_v, patches.count(1 - cfg.mask_ratio, cfg.num_patches_v)))
