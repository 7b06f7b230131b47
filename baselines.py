"""The methods that the paper compares with (App. A): a short class each, to be read one after the other.

In:  a batch {'audio': (B, t, f) float32, 'video': (B, T, 3, H, W) uint8} of the current stream.
Out: the loss to minimize, and values to log:  loss, log = method(batch)

No method sees labels, so "the loss" of a method is ℓ = ℓ^r + λℓ^c (N26). No method sees task boundaries.
FLAVA is in `flava.py`; it builds on DER++.
"""
import copy
import math
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from data import AUDIO_MEAN, AUDIO_STD
from memory import Memory, penalty, per_rank, to_device
from model import log_dict, loss_per_pair, run_backbone
from patches import Mask, Patches, all_ids, concat_patches, gather_patches, image_statistics, patchify, random_masks, \
    to_float
from selection import select_motion, select_random
from utils.distributed import get_world_size


class Method(nn.Module):
    """Base class: how a batch becomes a loss. backbone: the model in training; avm: its AVM, which most
    methods do not use."""

    memory = None

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone

    def forward(self, batch):
        """A batch {'audio': (B, t, f), 'video': (B, T, 3, H, W) uint8} of current pairs → the loss to minimize, a
        scalar; {name: scalar} to log"""
        raise NotImplementedError

    def total_loss(self, losses):
        """ℓ^r + λℓ^c, the mean over pairs; some methods add terms of their own"""
        return loss_per_pair(self.cfg, losses).mean()

    def after_step(self):
        """Called after each optimizer step."""

    @property
    def eval_model(self):
        """The backbone to evaluate."""
        return self.backbone


class Replay(Method):
    """Base class of the methods with a rehearsal memory."""

    def __init__(self, cfg, backbone, avm):
        super().__init__(cfg, backbone, avm)
        self.memory = Memory(per_rank(self.memory_pairs()))

    def memory_pairs(self):
        """Capacity of the memory, over all ranks."""
        return self.cfg.memory_size

    def sample(self, batch, factor=1):
        """As many past pairs as the batch has, times `factor` → {name: (n, ...)}; {} at the first step"""
        return self.memory.sample(factor * len(batch['audio']), batch['audio'].device)


# ------------------------------------------------------------------------------- Finetune, ER, DER++

class Finetune(Method):
    """No defence against forgetting: ℓ on the current batch. The lower bound. On all tasks at once it is Multitask, the
    upper bound."""

    def forward(self, batch):
        losses = run_backbone(self.cfg, self.backbone, patchify(batch, self.cfg.patch_size))
        return self.total_loss(losses), log_dict(losses)


class ER(Replay):
    """Experience replay (Rolnick et al. 2019): ℓ on current and replayed pairs in one batch."""

    def forward(self, batch):
        patches = patchify(batch, self.cfg.patch_size)
        past = self.sample(batch)
        if past:
            patches = concat_patches(patches, patchify(past, self.cfg.patch_size))
        losses = run_backbone(self.cfg, self.backbone, patches)
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return self.total_loss(losses), log_dict(losses)


class DERpp(Replay):
    """DER++ (Buzzega et al. 2020): ER + α ℓ^p. The penalty ℓ^p keeps the embeddings of replayed pairs near the stored
    ones."""

    def forward(self, batch):
        """ℓ on current and replayed pairs + α ℓ^p → loss, log, as `Method.forward`"""
        current = self.select(patchify(batch, self.cfg.patch_size))
        past = self.sample(batch)
        replayed = self.select(patchify(past, self.cfg.patch_size)) if past else None
        loss, log, losses = self.replay_loss(current, replayed, past)
        B = len(batch['audio'])
        self.memory.add(audio=batch['audio'], video=batch['video'],
                        pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B])
        return loss, log

    def select(self, patches):
        """Patches of whole clips → the patches to learn from: all of them. Random and MATS override it."""
        return patches

    def replay_loss(self, current, replayed, past):
        """ℓ^r + λℓ^c of current and replayed Patches in one batch, + α ℓ^p of the replayed ones → loss, log, Losses.
        past: what the memory stores of the replayed pairs, with their embeddings; {} at the first step"""
        patches = concat_patches(current, replayed) if past else current
        losses = run_backbone(self.cfg, self.backbone, patches)
        loss, log = self.total_loss(losses), log_dict(losses)
        if past:
            B = len(current.x_a)
            drift = penalty(past, losses.pooled_a[B:], losses.pooled_v[B:])            # ℓ^p
            loss, log['penalty'] = loss + self.cfg.alpha * drift, drift.detach()
        return loss, log, losses


class Random(DERpp):
    """Table 3, "Random": DER++ on κ_a and κ_v random patches, drawn anew at each replay."""

    def select(self, patches):
        cfg = self.cfg
        return gather_patches(patches, select_random(patches.ids_a, cfg.kappa_a),
                              select_random(patches.ids_v, cfg.kappa_v))


class MATS(DERpp):
    """Table 3, MATS (Hwang et al. 2022): DER++ on the video patches that move most, and on random audio patches
    (N21)."""

    def select(self, patches):
        cfg = self.cfg
        with torch.no_grad(), no_autocast(patches.ids_a.device):           # bf16 is too coarse for small motions
            v = self.backbone.patch_embed['v'](to_float(patches, cfg.patch_size).x_v)              # B,N,D
        return gather_patches(patches, select_random(patches.ids_a, cfg.kappa_a),
                              select_motion(v, cfg.kappa_v, cfg.grid_v))


# ---------------------------------------------------------------------- MIR, GMED: a virtual step

def isolated_rng(device):
    """A context that restores the random states at its end, so a virtual step does not change later random numbers."""
    return torch.random.fork_rng([device] if device.type == 'cuda' else [])


def no_autocast(device):
    """A context in float32: bf16 is too coarse for what a virtual step changes."""
    return torch.autocast(device.type, enabled=False)


@torch.enable_grad()
def batch_gradient(cfg, backbone, patches):
    """∇ℓ(current) for every weight, the mean over ranks → list of tensors"""
    loss = loss_per_pair(cfg, run_backbone(cfg, backbone, patches)).mean()
    gradient = torch.autograd.grad(loss, list(backbone.parameters()))
    if dist.is_initialized():
        flat = torch.cat([part.flatten() for part in gradient])            # one all-reduce for all weights
        dist.all_reduce(flat)
        parts = (flat / get_world_size()).split([part.numel() for part in gradient])
        gradient = [part.view_as(weight) for part, weight in zip(parts, gradient)]
    return gradient


@contextmanager
def virtual_step(backbone, gradient, lr):
    """θᵛ = θ − η∇ℓ inside the context: one plain gradient step (N27). Afterwards the weights are restored exactly.
    gradient: a tensor per weight, of its shape"""
    weights = list(backbone.parameters())
    with torch.no_grad():
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, gradient, alpha=-lr)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)


class MIR(Replay):
    """Maximally interfered retrieval (Aljundi et al. 2019): ER on the candidates whose loss a step on the current batch
    would raise most."""

    def forward(self, batch):
        """ℓ on the current pairs and on as many candidates, those of highest interference → loss, log"""
        cfg = self.cfg
        patches = current = patchify(batch, cfg.patch_size)
        past = self.sample(batch, factor=cfg.mir_candidates)
        if past:
            candidates = patchify(past, cfg.patch_size)
            interference = self.interference(current, candidates)
            most = interference.topk(min(len(batch['audio']), len(interference))).indices
            patches = concat_patches(current, Patches(*(x[most] for x in candidates)))
        losses = run_backbone(cfg, self.backbone, patches)
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return self.total_loss(losses), log_dict(losses)

    @torch.no_grad()
    def interference(self, current, candidates):
        """ℓ(x; θᵛ) − ℓ(x; θ) of each candidate, (n,), both under the same mask. current, candidates: Patches"""
        cfg = self.cfg
        device = candidates.x_a.device
        with isolated_rng(device), no_autocast(device):
            gradient = batch_gradient(cfg, self.backbone, current)
            masks = random_masks(cfg, candidates)
            before = loss_per_pair(cfg, run_backbone(cfg, self.backbone, candidates, masks))
            with virtual_step(self.backbone, gradient, cfg.lr):
                return loss_per_pair(cfg, run_backbone(cfg, self.backbone, candidates, masks)) - before


# Bounds of normalized log mel energies: silence is float32's epsilon in fbank; 13 is above any full-scale
# wave at the default sizes.
MIN_AUDIO = (math.log(torch.finfo(torch.float32).eps) - AUDIO_MEAN) / AUDIO_STD
MAX_AUDIO = (13 - AUDIO_MEAN) / AUDIO_STD


def patch_bounds(p, device):
    """Bounds of a patch's normalized pixels: two tensors (p·p·3,), the channel innermost"""
    mean, std = image_statistics(device)
    return (-mean / std).repeat(p * p), ((1 - mean) / std).repeat(p * p)


class GMED(Replay):
    """Gradient-based memory editing (Jin et al. 2021): ER on replayed clips that are edited to suffer more from a step
    on the current batch. The edits are written back to the memory (N28)."""

    def forward(self, batch):
        """ℓ on the current pairs and on edited past pairs → loss, log"""
        cfg = self.cfg
        patches = current = to_float(patchify(batch, cfg.patch_size), cfg.patch_size)
        past = self.sample(batch)
        if past:
            x_a, x_v = past['edited_a'], past['edited_v']
            edited = self.edit(current, Patches(x_a, x_v, all_ids(x_a), all_ids(x_v)))
            self.memory.replace(edited_a=edited.x_a, edited_v=edited.x_v)
            patches = concat_patches(current, edited)
        losses = run_backbone(cfg, self.backbone, patches)
        self.memory.add(edited_a=current.x_a, edited_v=current.x_v)        # not edited yet
        return self.total_loss(losses), log_dict(losses)

    def edit(self, current, replayed):
        """x ← γx + α ∇ₓ[(ℓ(x; θᵛ) − ℓ(x; θ)) − βℓ(x; θ)], clipped to the values that a clip can have

        current, replayed: Patches of clips in float32 → Patches like replayed
        """
        cfg = self.cfg
        device = replayed.x_a.device
        with isolated_rng(device), no_autocast(device):
            gradient = batch_gradient(cfg, self.backbone, current)
            masks = random_masks(cfg, replayed)
            before_a, before_v = self.input_gradient(replayed, masks)
            with virtual_step(self.backbone, gradient, cfg.lr):
                after_a, after_v = self.input_gradient(replayed, masks)
        x_a = cfg.gmed_gamma * replayed.x_a + cfg.gmed_alpha * (after_a - (1 + cfg.gmed_beta) * before_a)
        x_v = cfg.gmed_gamma * replayed.x_v + cfg.gmed_alpha * (after_v - (1 + cfg.gmed_beta) * before_v)
        low, high = patch_bounds(cfg.patch_size, x_v.device)
        return replayed._replace(x_a=x_a.clamp(MIN_AUDIO, MAX_AUDIO), x_v=torch.maximum(torch.minimum(x_v, high), low))

    @torch.enable_grad()
    def input_gradient(self, replayed, masks):
        """∇ₓ of the sum of the pairs' losses → two tensors like replayed.x_a, replayed.x_v"""
        x_a, x_v = replayed.x_a.detach().requires_grad_(), replayed.x_v.detach().requires_grad_()
        losses = run_backbone(self.cfg, self.backbone, replayed._replace(x_a=x_a, x_v=x_v), masks)
        return torch.autograd.grad(loss_per_pair(self.cfg, losses).sum(), (x_a, x_v))


# ------------------------------------------------------------------------------------ CLS-ER, LUMP

class CLSER(Replay):
    """CLS-ER (Arani et al. 2022): ER with two averaged copies of the backbone, plastic and stable. Replayed pairs stay
    near the embeddings of the copy with the lower loss. The stable copy is evaluated (N29)."""

    def __init__(self, cfg, backbone, avm):
        super().__init__(cfg, backbone, avm)
        self.plastic = copy.deepcopy(backbone).requires_grad_(False)
        self.stable = copy.deepcopy(backbone).requires_grad_(False)
        self.register_buffer('steps', torch.zeros((), dtype=torch.long))

    @property
    def eval_model(self):
        return self.stable

    def forward(self, batch):
        """ℓ on current and replayed pairs + λ · the distance of replayed embeddings from the teacher's → loss, log"""
        cfg, B = self.cfg, len(batch['audio'])
        patches = patchify(batch, cfg.patch_size)
        past = self.sample(batch)
        if past:
            patches = concat_patches(patches, patchify(past, cfg.patch_size))
        masks = random_masks(cfg, patches)
        losses = run_backbone(cfg, self.backbone, patches, masks)
        loss, log = self.total_loss(losses), log_dict(losses)
        if past:
            replayed = Patches(*(x[B:] for x in patches))
            replayed_masks = [Mask(mask.keep[B:], mask.masked[B:]) for mask in masks]
            teacher_a, teacher_v = self.teacher_embeddings(replayed, replayed_masks)
            drift = F.mse_loss(losses.pooled_a[B:], teacher_a) + F.mse_loss(losses.pooled_v[B:], teacher_v)
            loss, log['consistency'] = loss + cfg.cls_er_lam * drift, drift.detach()
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return loss, log

    @torch.no_grad()
    def teacher_embeddings(self, replayed, masks):
        """Pooled c_a, c_v (n, D) of each pair, from the copy with the lower loss on it"""
        plastic = run_backbone(self.cfg, self.plastic, replayed, masks)
        stable = run_backbone(self.cfg, self.stable, replayed, masks)
        stable_wins = (loss_per_pair(self.cfg, stable) < loss_per_pair(self.cfg, plastic))[:, None]
        return (torch.where(stable_wins, stable.pooled_a, plastic.pooled_a),
                torch.where(stable_wins, stable.pooled_v, plastic.pooled_v))

    @torch.no_grad()
    def after_step(self):
        """θ_P ← aθ_P + (1 − a)θ with probability r_P, likewise θ_S; a = min(1 − 1/(step + 1), α)"""
        cfg = self.cfg
        self.steps += 1
        step = self.steps.item()
        rand_p, rand_s = self.shared_rand(step)
        for rand, rate, alpha, teacher in ((rand_p, cfg.cls_er_r_p, cfg.cls_er_alpha_p, self.plastic),
                                         (rand_s, cfg.cls_er_r_s, cfg.cls_er_alpha_s, self.stable)):
            if rand < rate:
                a = min(1 - 1 / (step + 1), alpha)
                torch._foreach_lerp_(list(teacher.parameters()), list(self.backbone.parameters()), 1 - a)

    def shared_rand(self, step):
        """Two numbers in [0, 1), the same on all ranks"""
        generator = torch.Generator().manual_seed(self.cfg.seed * 1_000_003 + step)
        return torch.rand(2, generator=generator).tolist()


class LUMP(Replay):
    """LUMP (Madaan et al. 2022): ℓ on mixtures of current and past pairs, one ratio for both modalities of a pair
    (N30)."""

    def forward(self, batch):
        """ℓ(m · current + (1 − m) · past), with an m for each pair → loss, log"""
        cfg, B, p = self.cfg, len(batch['audio']), self.cfg.patch_size
        patches = to_float(patchify(batch, p), p)
        past = self.sample(batch)
        if past:
            replayed = to_float(patchify(past, p), p)
            partner = torch.arange(B, device=replayed.x_a.device) % len(replayed.x_a)
            m = to_device(self.mixing_ratio(B).to(replayed.x_a.dtype), replayed.x_a.device)[:, None, None]
            patches = patches._replace(x_a=m * patches.x_a + (1 - m) * replayed.x_a[partner],
                                       x_v=m * patches.x_v + (1 - m) * replayed.x_v[partner])
        losses = run_backbone(cfg, self.backbone, patches)
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return self.total_loss(losses), log_dict(losses)

    def mixing_ratio(self, B):
        """m ~ Beta(β, β), (B,); β = 0.05 gives values near 0 or near 1. In float64: float32 can give 0/0."""
        beta = torch.tensor(self.cfg.lump_beta, dtype=torch.float64)
        return torch.distributions.Beta(beta, beta, validate_args=False).sample((B,))
