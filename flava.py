"""FLAVA and FLAVA+ (§4.3, Algorithm 1): one training step, in its order; and the initial pre-training (App. B).

In:  a batch {'audio': (B, t, f) float32, 'video': (B, T, 3, H, W) uint8} of the current stream.
Out: the loss to minimize, and values to log:  loss, log = method(batch)

FLAVA is DER++ (`baselines.py`) on selected patches. `--scorer` is ours (`scorer.py`). Tour: stops 7, 15, 16 and 17.
"""
from typing import NamedTuple

import torch

import baselines
from avm import AVMOutput, attend, joint_tokens, matching_loss
from baselines import DERpp, Method
from config import num_kept
from memory import patch_capacity
from model import Losses, log_dict, run_backbone
from patches import Patches, gather_patches, patchify
from scorer import Grid, Student, distillation_loss
from selection import discriminative_query, prune_probability, select_patches


class FLAVAStep(NamedTuple):
    """What one step computes: for the tour and for experiments."""
    loss: torch.Tensor
    log: dict
    patches: Patches         # all M and N patches of the current pairs
    attention: AVMOutput     # I, queries, keys; of the grid's patches with --scorer grid
    query_a: torch.Tensor    # B,H,d   q̂_a; None with --scorer student
    query_v: torch.Tensor    # B,H,d   q̂_v
    past: dict               # the replayed pairs, as they are stored
    P_a: torch.Tensor        # B,M
    P_v: torch.Tensor        # B,N
    current: Patches         # the selected κ_a and κ_v patches: x̂_a, x̂_v
    losses: Losses


class FLAVA(DERpp):
    """Trains on patches that are well aligned and unlikely to overwrite earlier knowledge. Replays past pairs with
    their patches selected in the same way."""

    def __init__(self, cfg, backbone, avm):
        super().__init__(cfg, backbone, avm)
        self.avm = avm
        self.student = Student(cfg) if cfg.scorer == 'student' else None

    def forward(self, batch):
        step = self.step(batch)
        return step.loss, step.log

    def step(self, batch):
        """Algorithm 1, one step → FLAVAStep"""
        cfg, B = self.cfg, len(batch['audio'])
        patches = patchify(batch, cfg.patch_size)
        grid = Grid(cfg, patches.ids_a.device) if cfg.scorer == 'grid' else None

        # localized alignment (§4.1): which patches does the other modality attend to? On a grid, I, q, k and P are of
        # the grid's patches until `grid.fill`.
        localize = self.localize_by_student if self.student else self.localize
        attention, avm_loss = localize(grid.take(patches) if grid else patches)     # I of Eq. 3; L^avm of Eq. 11
        I_a, I_v = attention.importance_a, attention.importance_v

        # forget-robustness (§4.2): which of them does a past query attend to more than the current one?
        past = self.sample(batch)
        query_a, query_v = self.discriminative_queries(attention)                   # q̂_a, q̂_v of Eq. 4
        P_a, P_v = self.prune_probabilities(attention, query_a, query_v, past)      # Eq. 5
        if grid:
            (I_a, I_v), (P_a, P_v) = grid.fill(I_a, I_v), grid.fill(P_a, P_v)

        # select patches (§4.3)
        ids_a, ids_v = select_patches(cfg, I_a, I_v, P_a, P_v)                      # S̃_a, S̃_v: Algorithm 2, Eq. 6
        current = gather_patches(patches, ids_a, ids_v)                             # x̂_a, x̂_v of Eq. 7

        # learn from them and from replayed pairs, as DER++ does
        replayed = self.select_replayed(past) if past else None
        loss, log, losses = self.replay_loss(current, past, replayed)                     # ℓ^r + λℓ^c + αℓ^p
        loss, log['avm'] = loss + avm_loss, avm_loss.detach()                       # + L^avm, weight 1 (N11)

        queries = {} if self.student else dict(query_a=query_a, query_v=query_v)
        self.memory.add(pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B], **queries,
                        **self.to_store(batch, current, I_a, I_v, P_a, P_v))
        return FLAVAStep(loss=loss, log=log, patches=patches, attention=attention, query_a=query_a, query_v=query_v,
                         past=past, P_a=P_a, P_v=P_v, current=current, losses=losses)

    def localize(self, patches):
        """§4.1, App. D → AVMOutput, L^avm. Drops the tokens o and õ, which nothing needs afterwards: 0.4 GB at 48
        pairs."""
        attention = attend(self.cfg, self.backbone, self.avm, patches)
        avm_loss = matching_loss(self.backbone, self.avm, attention, patches)
        return attention._replace(o_a=None, o_v=None, joint_a=None, joint_v=None), avm_loss

    def localize_by_student(self, patches):
        """As `localize`, but the student predicts I. Every k-th step the AVM scores and learns, and teaches the
        student."""
        step = self.memory.seen // len(patches.x_a)
        if step % self.cfg.scorer_every == 0:
            attention, avm_loss = self.localize(patches)
            log_I = self.student(self.backbone, patches)
            return attention, avm_loss + distillation_loss(*log_I, attention.importance_a, attention.importance_v)
        with torch.no_grad():
            log_a, log_v = self.student(self.backbone, patches)
        return AVMOutput(importance_a=log_a.exp(), importance_v=log_v.exp()), log_a.new_zeros(())

    def discriminative_queries(self, attention):
        """q̂_a, q̂_v (B, H, d) of Eq. 4. With a student, which has no queries: None, None"""
        if self.student:
            return None, None
        I_a, I_v = attention.importance_a, attention.importance_v
        return (discriminative_query(I_a, attention.q_a, num_kept(self.cfg.rho_a, I_a.shape[1])),
                discriminative_query(I_v, attention.q_v, num_kept(self.cfg.rho_v, I_v.shape[1])))

    def prune_probabilities(self, attention, query_a, query_v, past):
        """P_a (B, M), P_v (B, N) of Eq. 5. Each current pair meets q̂ᵖ of one replayed pair, audio patches the q̂ᵖ of
        video and the reverse. With an empty memory, P = 0 (N17)."""
        I_a, I_v = attention.importance_a, attention.importance_v
        if not past or self.student:
            return torch.zeros_like(I_a), torch.zeros_like(I_v)
        partner = torch.arange(len(query_a), device=query_a.device) % len(past['query_a'])
        past_a, past_v = past['query_a'][partner].to(query_a.dtype), past['query_v'][partner].to(query_v.dtype)
        return (prune_probability(I_a, attention.k_a, query_v, past_v, num_kept(self.cfg.rho_a, I_a.shape[1])),
                prune_probability(I_v, attention.k_v, query_a, past_a, num_kept(self.cfg.rho_v, I_v.shape[1])))

    def to_store(self, batch, current, I_a, I_v, P_a, P_v):
        """What the memory stores besides q̂ and c: the pair, with I and P as they are now (N23)."""
        return dict(audio=batch['audio'], video=batch['video'], importance_a=I_a, importance_v=I_v,
                    prune_a=P_a, prune_v=P_v)

    def select_replayed(self, past):
        """Replayed pairs → Patches, selected anew at each replay from the stored I and P."""
        ids_a, ids_v = select_patches(self.cfg, past['importance_a'], past['importance_v'],
                                      past['prune_a'], past['prune_v'])
        return gather_patches(patchify(past, self.cfg.patch_size), ids_a, ids_v)


class FLAVAPlus(FLAVA):
    """FLAVA+ (§4.3): the memory stores the selected patches instead of the pair, so it holds 1/ρ times as many."""

    def memory_pairs(self):
        return patch_capacity(self.cfg.memory_size, self.cfg, self.cfg.kappa_a, self.cfg.kappa_v)

    def to_store(self, batch, current, I_a, I_v, P_a, P_v):
        return dict(patches_a=current.x_a, patches_v=current.x_v, ids_a=current.ids_a, ids_v=current.ids_v)

    def select_replayed(self, past):
        return Patches(past['patches_a'], past['patches_v'], past['ids_a'], past['ids_v'])


class InitialPretraining(Method):
    """Before the stream, for every method (App. B): ℓ^r + λℓ^c on all patches, + L^avm."""

    def __init__(self, cfg, backbone, avm):
        super().__init__(cfg, backbone, avm)
        self.avm = avm

    def forward(self, batch):
        patches = patchify(batch, self.cfg.patch_size)
        tokens = joint_tokens(self.cfg, self.backbone, patches)
        avm_loss = matching_loss(self.backbone, self.avm, tokens, patches)
        losses = run_backbone(self.cfg, self.backbone, patches)
        return self.total_loss(losses) + avm_loss, log_dict(losses, avm=avm_loss)


METHODS = {   # --method, in Table 1's order
    'finetune': baselines.Finetune, 'er': baselines.ER, 'mir': baselines.MIR, 'der++': baselines.DERpp,
    'gmed': baselines.GMED, 'cls-er': baselines.CLSER, 'lump': baselines.LUMP, 'flava': FLAVA, 'flava+': FLAVAPlus,
    'multitask': baselines.Finetune,                   # on all tasks at once (`train.py`)
}
WITHOUT_AVM = {'random': baselines.Random, 'mats': baselines.MATS}     # --selection of Table 3, in place of FLAVA


def build_method(cfg, backbone, avm):
    """The method that the options name."""
    if cfg.selection in WITHOUT_AVM:                   # with --method flava alone (config.py)
        return WITHOUT_AVM[cfg.selection](cfg, backbone, avm)
    return METHODS[cfg.method](cfg, backbone, avm)
