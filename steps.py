"""What several methods do (§4.1, §4.3): cut clips into patches, mask, encode, score, train the AVM, try a step.

In:  batches {audio (B, t, f) float32, video (B, T, 3, H, W) uint8}.
Out: patches to learn from, per-pair losses, the AVM's scores and its loss; for MIR and GMED, a step that is undone.
"""
import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from avm import importance
from data import AUDIO_MEAN, AUDIO_STD, IMAGE_MEAN, IMAGE_STD, normalize_frames
from model import all_positions, draw_visible, patchify_a, patchify_v
from selection import discriminative_query, select_patches


class Patches(NamedTuple):
    """Patches to learn from, and where they are in their clips."""
    x_a: torch.Tensor      # B,κ_a,p·p     normalized
    x_v: torch.Tensor      # B,κ_v,p·p·3   uint8 until `normalized`, then float32
    kept_a: torch.Tensor   # B,κ_a
    kept_v: torch.Tensor   # B,κ_v


def whole(batch, p):
    """All patches of a batch."""
    x_a, x_v = patchify_a(batch['audio'], p), patchify_v(batch['video'], p)
    return Patches(x_a, x_v, all_positions(x_a), all_positions(x_v))


def normalized(patches, p):
    """Frames stay bytes in batches and memory, and become numbers of the network's range only here. What is none any more
    is left as it is."""
    if patches.x_v.dtype != torch.uint8:
        return patches
    as_pictures = patches.x_v.unflatten(-1, (p, p, 3)).movedim(-1, -3)          # B,κ,3,p,p
    return patches._replace(x_v=normalize_frames(as_pictures).movedim(-3, -1).flatten(-3))


def chosen(patches, kept_a, kept_v):
    """Eq. 7 on patches that hold a whole clip."""
    return Patches(select_patches(patches.x_a, kept_a), select_patches(patches.x_v, kept_v), kept_a, kept_v)


def joined(now, past):
    """Current and replayed pairs in one batch."""
    return Patches(*(torch.cat([n, p]) for n, p in zip(now, past)))


def count(share, patches):
    """⌊share · patches⌋, spared from 0.2 · 40 = 7.999…"""
    return int(share * patches + 1e-6)


def draw_masks(cfg, patches):
    """The masks of Eq. 8, for audio and for video. The masked share is of *all* patches, kept or not (readings)."""
    return (draw_visible(patches.kept_a, count(1 - cfg.mask_ratio, cfg.num_patches_a)),
            draw_visible(patches.kept_v, count(1 - cfg.mask_ratio, cfg.num_patches_v)))


def autoencode(cfg, backbone, patches, masks=None):
    """Eq. 8 and 9, under the masks given or under new ones → Losses"""
    return backbone.losses(*normalized(patches, cfg.patch_size), *(masks or draw_masks(cfg, patches)), cfg.tau)


def objective(cfg, losses):
    """ℓ = ℓ^r + λℓ^c of each pair (B,)"""
    return losses.each(cfg.lam, cfg.mae_weight)


class Scores(NamedTuple):
    """What the AVM says of a batch, for the selection; from an unmasked pass without gradient."""
    o_a: torch.Tensor            # B,M,D
    o_v: torch.Tensor            # B,N,D
    joint_a: torch.Tensor        # B,M,D
    joint_v: torch.Tensor        # B,N,D
    importance_a: torch.Tensor   # B,M
    importance_v: torch.Tensor   # B,N
    query_a: torch.Tensor        # B,H,d   q̂_a
    query_v: torch.Tensor        # B,H,d
    key_a: torch.Tensor          # B,H,M,d
    key_v: torch.Tensor          # B,H,N,d


@torch.no_grad()
def score(cfg, backbone, avm, patches):
    """Eq. 2, 3 and 4 (lines 1-3) for patches of whole clips."""
    x = normalized(patches, cfg.patch_size)
    o_a, o_v = backbone.encode(x.x_a, x.x_v, x.kept_a, x.kept_v)
    joint_a, joint_v = backbone.fuse(o_a, o_v, x.kept_a, x.kept_v)
    p = avm.project(joint_a, joint_v)
    I_a, I_v = importance(p, cfg.beta)
    return Scores(o_a, o_v, joint_a, joint_v, I_a, I_v,
                  discriminative_query(I_a, p.q_a, count(cfg.rho_a, cfg.num_patches_a)),
                  discriminative_query(I_v, p.q_v, count(cfg.rho_v, cfg.num_patches_v)), p.k_a, p.k_v)


def matching_loss(backbone, avm, s, patches):
    """L^avm of Eq. 11. Its gradient reaches the AVM alone, as the scores carry none.

    Half of the batch keeps its own audio, the other half gets another pair's; one or two pairs are all matched.
    """
    B = len(s.joint_a)
    audio_of = torch.arange(B, device=s.joint_a.device)
    if B > 2:
        order = torch.randperm(B, device=audio_of.device)
        audio_of[order[:B // 2]] = order.roll(1)[:B // 2]          # along one cycle: no audio meets its own video
    matched = audio_of == torch.arange(B, device=audio_of.device)
    other = ~matched
    joint_a, joint_v = s.joint_a.clone(), s.joint_v.clone()
    if other.any():
        with torch.no_grad():                                      # only the fusion sees both modalities: E_a, E_v need no second pass
            joint_a[other], joint_v[other] = backbone.fuse(s.o_a[audio_of[other]], s.o_v[other],
                                                           patches.kept_a[other], patches.kept_v[other])   # all patches, so alike
    return F.binary_cross_entropy_with_logits(avm.match(joint_a, joint_v).float(), matched.float())


def share_of_process(pairs):
    """The paper divides the memory over the GPUs."""
    return max(1, pairs // (dist.get_world_size() if dist.is_initialized() else 1))


def logged(losses, **more):
    """Means of what is worth logging. Tensors still: a GPU need not stop for numbers that nobody prints."""
    parts = dict(mae_a=losses.mae_a, mae_v=losses.mae_v, contrastive=losses.contrastive, **more)
    return {name: part.detach().mean() for name, part in parts.items()}


# --------------------------------------------------------------- virtual steps (MIR, GMED)

# Log mel energies lie between that of silence, which fbank raises to float32's epsilon, and about that of a full-scale wave.
RANGE_OF_AUDIO = (math.log(torch.finfo(torch.float32).eps) - AUDIO_MEAN) / AUDIO_STD, (13 - AUDIO_MEAN) / AUDIO_STD


def range_of_frames(p, device):
    """What a patch's normalized values can be: two (p·p·3,), its channels being the innermost."""
    mean, std = torch.tensor(IMAGE_MEAN, device=device), torch.tensor(IMAGE_STD, device=device)
    return (-mean / std).repeat(p * p), ((1 - mean) / std).repeat(p * p)


@contextmanager
def aside(device):
    """What is tried in here leaves no trace in the random states. It is computed in float32: a virtual step changes weights
    by less than bf16 can tell."""
    with torch.random.fork_rng([device] if device.type == 'cuda' else []), torch.autocast(device.type, enabled=False):
        yield


@torch.enable_grad()
def gradient_of_batch(cfg, backbone, patches):
    """∇ℓ(current) for every weight, over all processes."""
    loss = objective(cfg, autoencode(cfg, backbone, patches)).mean()
    gradient = torch.autograd.grad(loss, list(backbone.parameters()))
    if dist.is_initialized():
        for part in gradient:
            dist.all_reduce(part)
            part /= dist.get_world_size()
    return gradient


@contextmanager
def virtual_step(backbone, gradient, rate):
    """θᵛ = θ − η∇ℓ, one plain gradient step, as long as the context lasts; then every weight is again what it was, to the bit."""
    weights = list(backbone.parameters())
    with torch.no_grad():
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, gradient, alpha=-rate)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
