"""Continual-learning methods (§4.3, App. A): each takes a batch and gives a loss.

In:  a batch {audio (B, t, f) float32, video (B, T, 3, H, W) uint8} of the current stream.
Out: the loss to step along, and what is worth logging.

    loss, log = method(batch)      method.backbone is the model being trained; method.avm its matching module

A method owns its memory. None is told which task it is in. They are written to be read side by side.
"""
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from avm import importance
from data import normalize_frames
from memory import Memory, patch_capacity, penalty
from model import all_positions, draw_visible, patchify_a, patchify_v
from selection import discriminative_query, prune_probability, select_audio, select_patches, select_video


# ------------------------------------------------------------- steps that the methods share

class Patches(NamedTuple):
    """Patches to learn from, and where they are in their clips."""
    x_a: torch.Tensor      # B,κ_a,p·p     normalized
    x_v: torch.Tensor      # B,κ_v,p·p·3   0 … 255 until `normalized`
    kept_a: torch.Tensor   # B,κ_a
    kept_v: torch.Tensor   # B,κ_v


def whole(batch, p):
    """All patches of a batch."""
    x_a, x_v = patchify_a(batch['audio'], p), patchify_v(batch['video'], p)
    return Patches(x_a, x_v, all_positions(x_a), all_positions(x_v))


def normalized(patches, p):
    """Frames stay bytes in batches and memory, and become numbers of the network's range only here."""
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


def autoencode(cfg, backbone, patches):
    """Draw the mask and compute Eq. 8 and 9. The masked share is of *all* patches, kept or not (readings)."""
    see_a = draw_visible(patches.kept_a, count(1 - cfg.mask_ratio, cfg.num_patches_a))
    see_v = draw_visible(patches.kept_v, count(1 - cfg.mask_ratio, cfg.num_patches_v))
    return backbone.losses(*normalized(patches, cfg.patch_size), see_a, see_v, cfg.tau)


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


# ------------------------------------------------------------------------------- the methods

class Finetune(nn.Module):
    """No defence against forgetting: ℓ^r + λℓ^c on the current batch. The paper's lower bound; and, given all tasks at
    once, its upper bound, Multitask."""

    memory = None

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone

    def forward(self, batch):
        losses = autoencode(self.cfg, self.backbone, whole(batch, self.cfg.patch_size))
        return losses.total(self.cfg.lam), logged(losses)


class InitialPretraining(nn.Module):
    """What happens before the stream, the same for every method: Finetune's loss, and L^avm beside it."""

    memory = None

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone, self.avm = cfg, backbone, avm

    def forward(self, batch):
        patches = whole(batch, self.cfg.patch_size)
        avm_loss = matching_loss(self.backbone, self.avm, score(self.cfg, self.backbone, self.avm, patches), patches)
        losses = autoencode(self.cfg, self.backbone, patches)
        return losses.total(self.cfg.lam) + avm_loss, logged(losses, avm=avm_loss)


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
        return losses.total(self.cfg.lam), logged(losses)


class DERpp(nn.Module):
    """DER++ (Buzzega et al. 2020): ER, and the replayed pairs' pooled embeddings are held where they were: + α ℓ^p."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.memory = Memory(share_of_process(cfg.memory_size))

    def forward(self, batch):
        B, patches = len(batch['audio']), whole(batch, self.cfg.patch_size)
        past = self.memory.sample(B, batch['audio'].device)
        if past:
            patches = joined(patches, whole(past, self.cfg.patch_size))
        losses = autoencode(self.cfg, self.backbone, patches)
        loss, log = losses.total(self.cfg.lam), logged(losses)
        if past:
            drift = penalty(past, losses.pooled_a[B:], losses.pooled_v[B:])
            loss, log['penalty'] = loss + self.cfg.alpha * drift, drift.detach()
        self.memory.add(audio=batch['audio'], video=batch['video'], pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B])
        return loss, log


class FLAVA(nn.Module):
    """This paper's (Algorithm 1): DER++ on the patches that belong together and do not overwrite what was learned."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone, self.avm = cfg, backbone, avm
        self.kappa_a, self.kappa_v = count(cfg.rho_a, cfg.num_patches_a), count(cfg.rho_v, cfg.num_patches_v)
        self.memory = Memory(share_of_process(self.pairs_in_memory()))

    def forward(self, batch):
        cfg, B, device = self.cfg, len(batch['audio']), batch['audio'].device
        patches = whole(batch, cfg.patch_size)
        s = score(cfg, self.backbone, self.avm, patches)           # §4.1: I, q̂, k
        avm_loss = matching_loss(self.backbone, self.avm, s, patches)

        past = self.memory.sample(B, device)
        P_a, P_v = self.prune(s, past)                             # §4.2
        now = chosen(patches, *self.select(s.importance_a, s.importance_v, P_a, P_v))   # §4.3
        losses = autoencode(cfg, self.backbone, joined(now, self.replayed(past)) if past else now)
        loss, log = losses.total(cfg.lam) + avm_loss, logged(losses, avm=avm_loss)
        if past:
            drift = penalty(past, losses.pooled_a[B:], losses.pooled_v[B:])
            loss, log['penalty'] = loss + cfg.alpha * drift, drift.detach()   # ℓ^r + λℓ^c + αℓ^p, and L^avm

        self.memory.add(query_a=s.query_a, query_v=s.query_v, pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B],
                        **self.kept_of(batch, now, s, P_a, P_v))
        return loss, log

    def prune(self, s, past):
        """P of Eq. 5. Each current pair meets the q̂ᵖ of one replayed pair; in the first batch there is none: P = 0."""
        if not past:
            return torch.zeros_like(s.importance_a), torch.zeros_like(s.importance_v)
        partner = torch.arange(len(s.query_a), device=s.query_a.device) % len(past['query_a'])
        past_a, past_v = past['query_a'][partner].to(s.query_a.dtype), past['query_v'][partner].to(s.query_v.dtype)
        return (prune_probability(s.importance_a, s.key_a, s.query_v, past_v, self.kappa_a),
                prune_probability(s.importance_v, s.key_v, s.query_a, past_a, self.kappa_v))

    def select(self, I_a, I_v, P_a, P_v):
        """S̃_a (B, κ_a) by Algorithm 2, S̃_v (B, κ_v) by Eq. 6"""
        return (select_audio(I_a, P_a, self.kappa_a, self.cfg.grid_a, self.cfg.chunk),
                select_video(I_v, P_v, self.kappa_v))

    # What FLAVA+ does otherwise:

    def pairs_in_memory(self):
        return self.cfg.memory_size

    def kept_of(self, batch, now, s, P_a, P_v):
        """What is stored of each pair, besides q̂ and c: the pair itself, with I and P."""
        return dict(audio=batch['audio'], video=batch['video'], importance_a=s.importance_a, importance_v=s.importance_v,
                    prune_a=P_a, prune_v=P_v)

    def replayed(self, past):
        """Replayed pairs are selected anew each time, from the I and P that were stored."""
        kept = self.select(past['importance_a'], past['importance_v'], past['prune_a'], past['prune_v'])
        return chosen(whole(past, self.cfg.patch_size), *kept)


class FLAVAPlus(FLAVA):
    """FLAVA+ (§4.3): the memory stores the selected patches in place of the pair, and so 1/ρ times as many."""

    def pairs_in_memory(self):
        return patch_capacity(self.cfg.memory_size, self.cfg, self.kappa_a, self.kappa_v)

    def kept_of(self, batch, now, s, P_a, P_v):
        return dict(patches_a=now.x_a, patches_v=now.x_v, kept_a=now.kept_a, kept_v=now.kept_v)

    def replayed(self, past):
        return Patches(past['patches_a'], past['patches_v'], past['kept_a'], past['kept_v'])


METHODS = {'flava': FLAVA, 'flava+': FLAVAPlus, 'finetune': Finetune, 'multitask': Finetune, 'er': ER, 'der++': DERpp}
