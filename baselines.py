"""The methods that FLAVA is compared with (App. A), and the ablations that need no attention (Table 3).

In:  a batch {audio (B, t, f) float32, video (B, T, 3, H, W) uint8} of the current stream.
Out: the loss to step along, and what is worth logging.

    loss, log = method(batch)      method.backbone is the model being trained

A method owns its memory. None is told which task it is in. They are written to be read side by side. One may also have
`after_step()`, called after each step, and `stable`, a backbone that is evaluated in place of the trained one (CLS-ER).
At the end, METHODS: what `--method` can name.
"""
import copy
import math
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from data import AUDIO_MEAN, AUDIO_STD
from flava import FLAVA, FLAVAPlus
from memory import Memory, penalty, sent, share_of_process
from model import autoencode, logged, objective
from patches import Patches, all_positions, chosen, draw_masks, image_statistics, joined, normalized, whole, world
from selection import select_motion, select_random


class Finetune(nn.Module):
    """No defence against forgetting: ℓ^r + λℓ^c on the current batch. The paper's lower bound; and, given all tasks at
    once, its upper bound, Multitask."""

    memory = None

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone

    def forward(self, batch):
        losses = autoencode(self.cfg, self.backbone, whole(batch, self.cfg.patch_size))
        return objective(self.cfg, losses).mean(), logged(losses)


class ER(nn.Module):
    """Experience replay (Rolnick et al. 2019): the same loss on current and replayed pairs in one batch."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        patches = whole(batch, self.cfg.patch_size)
        past = self.memory.sample(len(batch['audio']), batch['audio'].device)
        if past:
            patches = joined(patches, whole(past, self.cfg.patch_size))
        losses = autoencode(self.cfg, self.backbone, patches)
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return objective(self.cfg, losses).mean(), logged(losses)


class DERpp(nn.Module):
    """DER++ (Buzzega et al. 2020): ER, and the replayed pairs' pooled embeddings are held where they were: + α ℓ^p."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        B, patches = len(batch['audio']), self.pick(whole(batch, self.cfg.patch_size))
        past = self.memory.sample(B, batch['audio'].device)
        if past:
            patches = joined(patches, self.pick(whole(past, self.cfg.patch_size)))
        losses = autoencode(self.cfg, self.backbone, patches)
        loss, log = objective(self.cfg, losses).mean(), logged(losses)
        if past:
            drift = penalty(past, losses.pooled_a[B:], losses.pooled_v[B:])
            loss, log['penalty'] = loss + self.cfg.alpha * drift, drift.detach()
        self.memory.add(audio=batch['audio'], video=batch['video'],
                        pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B])
        return loss, log

    def pick(self, patches):
        """All of them; the two below learn from some."""
        return patches


class Random(DERpp):
    """Table 3, "Random": DER++ on κ_a and κ_v patches drawn at random, anew at each replay."""

    def pick(self, patches):
        cfg, device = self.cfg, patches.kept_a.device
        return chosen(patches, select_random(patches.kept_a.shape, cfg.kappa_a, device),
                      select_random(patches.kept_v.shape, cfg.kappa_v, device))


class MATS(DERpp):
    """Table 3, "MATS" (Hwang et al. 2022): DER++ on the video patches that move most, and on audio patches at
    random."""

    def pick(self, patches):
        cfg, device = self.cfg, patches.kept_a.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):   # in bf16 small motions would all be alike
            v = self.backbone.patch_embed_v(normalized(patches, cfg.patch_size).x_v)          # B,N,D
        return chosen(patches, select_random(patches.kept_a.shape, cfg.kappa_a, device),
                      select_motion(v, cfg.kappa_v, cfg.grid_v))


# --------------------------------------------------------- a step that is tried and undone: MIR, GMED

@contextmanager
def aside(device):
    """What is tried in here leaves no trace in the random states. It is computed in float32: a virtual step changes
    weights by less than bf16 can tell."""
    with torch.random.fork_rng([device] if device.type == 'cuda' else []), torch.autocast(device.type, enabled=False):
        yield


@torch.enable_grad()
def gradient_of_batch(cfg, backbone, patches):
    """∇ℓ(current) for every weight, over all processes."""
    loss = objective(cfg, autoencode(cfg, backbone, patches)).mean()
    gradient = torch.autograd.grad(loss, list(backbone.parameters()))
    if dist.is_initialized():
        total = torch.cat([part.flatten() for part in gradient])      # one message, not one a weight
        dist.all_reduce(total)
        parts = (total / world()).split([x.numel() for x in gradient])
        gradient = [part.view_as(x) for part, x in zip(parts, gradient)]
    return gradient


@contextmanager
def virtual_step(backbone, gradient, rate):
    """θᵛ = θ − η∇ℓ, one plain gradient step, as long as the context lasts; then every weight is again what it was, to
    the bit."""
    weights = list(backbone.parameters())
    with torch.no_grad():
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, gradient, alpha=-rate)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)


class MIR(nn.Module):
    """Maximally interfered retrieval (Aljundi et al. 2019): of many pairs drawn, ER on those whose loss a step on the
    current batch would raise most."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        cfg, B, patches = self.cfg, len(batch['audio']), whole(batch, self.cfg.patch_size)
        candidates = self.memory.sample(cfg.mir_candidates * B, batch['audio'].device)
        if candidates:
            candidates = whole(candidates, cfg.patch_size)
            rise = self.rise(patches, candidates)
            most = rise.topk(min(B, len(rise))).indices
            patches = joined(patches, Patches(*(x[most] for x in candidates)))
        losses = autoencode(cfg, self.backbone, patches)
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return objective(cfg, losses).mean(), logged(losses)

    @torch.no_grad()
    def rise(self, patches, candidates):
        """ℓ(x; θᵛ) − ℓ(x; θ) of each candidate (n,), both under the same mask, or its chance would be measured"""
        cfg = self.cfg
        with aside(candidates.x_a.device):
            gradient = gradient_of_batch(cfg, self.backbone, patches)
            masks = draw_masks(cfg, candidates)
            before = objective(cfg, autoencode(cfg, self.backbone, candidates, masks))
            with virtual_step(self.backbone, gradient, cfg.lr):
                return objective(cfg, autoencode(cfg, self.backbone, candidates, masks)) - before


# Log mel energies lie between that of silence, which fbank raises to float32's epsilon, and about that of a full-scale
# wave.
RANGE_OF_AUDIO = (math.log(torch.finfo(torch.float32).eps) - AUDIO_MEAN) / AUDIO_STD, (13 - AUDIO_MEAN) / AUDIO_STD


def range_of_frames(p, device):
    """What a patch's normalized values can be: two (p·p·3,), its channels being the innermost."""
    mean, std = image_statistics(device)
    return (-mean / std).repeat(p * p), ((1 - mean) / std).repeat(p * p)


class GMED(nn.Module):
    """Gradient-based memory editing (Jin et al. 2021): ER on replayed clips that are edited to suffer more from a step
    on the current batch; the edits stay in the memory."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        cfg, patches = self.cfg, normalized(whole(batch, self.cfg.patch_size), self.cfg.patch_size)
        now, past = patches, self.memory.sample(len(batch['audio']), batch['audio'].device)
        if past:
            x_a, x_v = past['edited_a'], past['edited_v']
            past = self.edited(patches, Patches(x_a, x_v, all_positions(x_a), all_positions(x_v)))
            self.memory.replace(edited_a=past.x_a, edited_v=past.x_v)
            patches = joined(patches, past)
        losses = autoencode(cfg, self.backbone, patches)
        self.memory.add(edited_a=now.x_a, edited_v=now.x_v)
        return objective(cfg, losses).mean(), logged(losses)

    def edited(self, patches, past):
        """x ← γx + α ∇ₓ[(ℓ(x; θᵛ) − ℓ(x; θ)) − βℓ(x; θ)], within what a clip's values can be"""
        cfg = self.cfg
        with aside(past.x_a.device):
            gradient = gradient_of_batch(cfg, self.backbone, patches)
            masks = draw_masks(cfg, past)
            before = self.gradient_of_clips(past, masks)
            with virtual_step(self.backbone, gradient, cfg.lr):
                after = self.gradient_of_clips(past, masks)
        x_a, x_v = (cfg.gmed_gamma * x + cfg.gmed_alpha * (a - (1 + cfg.gmed_beta) * b)
                    for x, a, b in zip(past[:2], after, before))
        low, high = range_of_frames(cfg.patch_size, x_v.device)
        return past._replace(x_a=x_a.clamp(*RANGE_OF_AUDIO), x_v=torch.maximum(torch.minimum(x_v, high), low))

    @torch.enable_grad()
    def gradient_of_clips(self, past, masks):
        """∇ₓ of the sum of the pairs' losses: each clip's own, to which the others add only as its negatives in ℓ^c"""
        x_a, x_v = past.x_a.detach().requires_grad_(), past.x_v.detach().requires_grad_()
        losses = autoencode(self.cfg, self.backbone, past._replace(x_a=x_a, x_v=x_v), masks)
        return torch.autograd.grad(objective(self.cfg, losses).sum(), (x_a, x_v))


# ------------------------------------------------------------------------------------------------

class CLSER(nn.Module):
    """CLS-ER (Arani et al. 2022): ER, and two averaged copies of the backbone; replayed pairs are held near what the
    better of the two makes of them. The stable one is evaluated."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.plastic, self.stable = (copy.deepcopy(backbone).requires_grad_(False) for _ in range(2))
        self.register_buffer('steps', torch.zeros((), dtype=torch.long))       # for checkpoints
        self.step = 0                                                          # the same: to ask the device is to wait
        self.register_load_state_dict_post_hook(lambda method, _: setattr(method, 'step', method.steps.item()))
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        cfg, B, patches = self.cfg, len(batch['audio']), whole(batch, self.cfg.patch_size)
        past = self.memory.sample(B, batch['audio'].device)
        if past:
            patches = joined(patches, whole(past, cfg.patch_size))
        masks = draw_masks(cfg, patches)
        losses = autoencode(cfg, self.backbone, patches, masks)
        loss, log = objective(cfg, losses).mean(), logged(losses)
        if past:
            replayed = Patches(*(x[B:] for x in patches))
            better_a, better_v = self.better_copy(replayed, [[m[B:] for m in pair] for pair in masks])
            drift = F.mse_loss(losses.pooled_a[B:], better_a) + F.mse_loss(losses.pooled_v[B:], better_v)
            loss, log['consistency'] = loss + cfg.cls_er_lam * drift, drift.detach()
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return loss, log

    @torch.no_grad()
    def better_copy(self, past, masks):
        """Pooled c_a, c_v (n, D) of each pair by the copy that has the lower loss on it"""
        plastic, stable = (autoencode(self.cfg, copy_, past, masks) for copy_ in (self.plastic, self.stable))
        wins = (objective(self.cfg, stable) < objective(self.cfg, plastic))[:, None]
        return (torch.where(wins, stable.pooled_a, plastic.pooled_a),
                torch.where(wins, stable.pooled_v, plastic.pooled_v))

    @torch.no_grad()
    def after_step(self):
        """θ_P ← aθ_P + (1 − a)θ with probability r_P, likewise θ_S; a = min(1 − 1/(step + 1), α)"""
        cfg = self.cfg
        self.steps += 1
        self.step += 1
        coins = self.toss()
        for coin, r, alpha, copy_ in ((coins[0], cfg.cls_er_r_p, cfg.cls_er_alpha_p, self.plastic),
                                      (coins[1], cfg.cls_er_r_s, cfg.cls_er_alpha_s, self.stable)):
            if coin < r:
                a = min(1 - 1 / (self.step + 1), alpha)
                torch._foreach_lerp_(list(copy_.parameters()), list(self.backbone.parameters()), 1 - a)

    def toss(self):
        """Two numbers in [0, 1), the same in all processes."""
        generator = torch.Generator().manual_seed(self.cfg.seed * 1_000_003 + self.step)
        return torch.rand(2, generator=generator).tolist()


class LUMP(nn.Module):
    """LUMP (Madaan et al. 2022): trains on mixtures of current and past pairs, one ratio for both modalities of a
    pair."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        cfg, B, p = self.cfg, len(batch['audio']), self.cfg.patch_size
        patches = normalized(whole(batch, p), p)
        past = self.memory.sample(B, batch['audio'].device)
        if past:
            past = normalized(whole(past, p), p)
            partner = torch.arange(B, device=past.x_a.device) % len(past.x_a)
            m = sent(self.ratio(B).to(past.x_a.dtype), past.x_a.device)[:, None, None]
            patches = patches._replace(x_a=m * patches.x_a + (1 - m) * past.x_a[partner],
                                       x_v=m * patches.x_v + (1 - m) * past.x_v[partner])
        losses = autoencode(cfg, self.backbone, patches)
        self.memory.add(audio=batch['audio'], video=batch['video'])
        return objective(cfg, losses).mean(), logged(losses)

    def ratio(self, B):
        """m ~ Beta(0.05, 0.05) (B,): mostly almost 0 or almost 1. In float64, since in float32 0/0 can come of it."""
        both = torch.full((2,), self.cfg.lump_beta, dtype=torch.float64)
        return torch.distributions.Beta(*both, validate_args=False).sample((B,))


# --------------------------------------------------------------------------- what --method can name

METHODS = {   # in Table 1's order
    'finetune': Finetune,
    'er': ER,
    'mir': MIR,
    'der++': DERpp,
    'gmed': GMED,
    'cls-er': CLSER,
    'lump': LUMP,
    'flava': FLAVA,
    'flava+': FLAVAPlus,
    'multitask': Finetune,      # of all tasks at once (`train.tasks_of`)
}
WITHOUT_ATTENTION = {'random': Random, 'mats': MATS}   # --selection of Table 3 that takes FLAVA's place


def build(cfg, backbone, avm):
    """The method that the options name."""
    return {**METHODS, 'flava': WITHOUT_ATTENTION.get(cfg.selection, FLAVA)}[cfg.method](cfg, backbone, avm)
