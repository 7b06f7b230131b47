"""FLAVA and FLAVA+ (§4.3, Algorithm 1): what one step does, in its order; and the initial pre-training (App. B).

In:  a batch {audio (B, t, f) float32, video (B, T, 3, H, W) uint8} of the current stream.
Out: the loss to step along, and what is worth logging.

    loss, log = method(batch)      method.backbone is the model being trained; method.avm its matching module

A method owns its memory, and is never told which task it is in (Multitask and the others: `baselines.py`).

Tour: stops 7, 15, 16 and 17.
"""
import torch
from torch import nn

from avm import matching_loss, score
from memory import Memory, patch_capacity, penalty, share_of_process
from model import autoencode, logged, objective
from patches import Patches, chosen, joined, whole
from selection import discriminative_query, prune_probability, select


class FLAVA(nn.Module):
    """Learns from the patches that belong together and do not overwrite what was learned, and replays past pairs so."""

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone, self.avm = cfg, backbone, avm
        self.memory = Memory(share_of_process(self.pairs_in_memory()))

    def forward(self, batch):
        cfg, B = self.cfg, len(batch['audio'])
        patches = whole(batch, cfg.patch_size)                                  # x_a, x_v: M and N of each pair

        # Localized alignment (§4.1): which patches of one modality does the other attend to?
        s = score(cfg, self.backbone, self.avm, patches)                        # I of Eq. 3; queries, keys of Eq. 10
        avm_loss = matching_loss(self.backbone, self.avm, s, patches)           # L^avm, Eq. 11

        s = s._replace(o_a=None, o_v=None, joint_a=None, joint_v=None)          # read no more: 0.4 GB at 48 pairs

        # Forget-robustness (§4.2): which of them answer more to the past than to the present?
        past = self.memory.sample(B, batch['audio'].device)                     # as many pairs as are current
        query_a = discriminative_query(s.importance_a, s.q_a, cfg.kappa_a)      # q̂_a of Eq. 4
        query_v = discriminative_query(s.importance_v, s.q_v, cfg.kappa_v)      # q̂_v
        P_a, P_v = self.prune(s, query_a, query_v, past)                        # Eq. 5
        s = s._replace(q_a=None, q_v=None, k_a=None, k_v=None)                  # what is left is I

        # Learn from those that are left (§4.3), and from replayed pairs beside them.
        kept_a, kept_v = select(cfg, s.importance_a, s.importance_v, P_a, P_v)  # S̃_a, S̃_v: Algorithm 2, Eq. 6
        now = chosen(patches, kept_a, kept_v)                                   # x̂_a, x̂_v of Eq. 7
        learned = joined(now, self.replayed(past)) if past else now
        losses = autoencode(cfg, self.backbone, learned)                        # ℓ^r of Eq. 8, ℓ^c of Eq. 9
        loss = objective(cfg, losses).mean() + avm_loss                         # ℓ^r + λℓ^c + L^avm
        log = logged(losses, avm=avm_loss)
        if past:
            drift = penalty(past, losses.pooled_a[B:], losses.pooled_v[B:])     # ℓ^p, of the replayed pairs
            loss, log['penalty'] = loss + cfg.alpha * drift, drift.detach()

        self.memory.add(query_a=query_a, query_v=query_v, pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B],
                        **self.stored(batch, now, s, P_a, P_v))
        return loss, log

    def prune(self, s, query_a, query_v, past):
        """P_a (B, M), P_v (B, N) of Eq. 5. Each current pair meets the q̂ᵖ of one replayed pair, audio patches that
        of video and the reverse; the first batch meets none: P = 0."""
        if not past:
            return torch.zeros_like(s.importance_a), torch.zeros_like(s.importance_v)
        partner = torch.arange(len(query_a), device=query_a.device) % len(past['query_a'])
        past_a, past_v = past['query_a'][partner].to(query_a.dtype), past['query_v'][partner].to(query_v.dtype)
        return (prune_probability(s.importance_a, s.k_a, query_v, past_v, self.cfg.kappa_a),
                prune_probability(s.importance_v, s.k_v, query_a, past_a, self.cfg.kappa_v))

    # What the memory keeps of a pair besides q̂ and c, how many pairs, and what becomes of them again.

    def pairs_in_memory(self):
        return self.cfg.memory_size

    def stored(self, batch, now, s, P_a, P_v):
        """The pair itself, with I and P as they are now."""
        return dict(audio=batch['audio'], video=batch['video'],
                    importance_a=s.importance_a, importance_v=s.importance_v, prune_a=P_a, prune_v=P_v)

    def replayed(self, past):
        """Replayed pairs are selected anew each time, from the I and P that were stored."""
        kept = select(self.cfg, past['importance_a'], past['importance_v'], past['prune_a'], past['prune_v'])
        return chosen(whole(past, self.cfg.patch_size), *kept)


class FLAVAPlus(FLAVA):
    """FLAVA+ (§4.3): the memory stores the selected patches in place of the pair, and so 1/ρ times as many."""

    def pairs_in_memory(self):
        return patch_capacity(self.cfg.memory_size, self.cfg, self.cfg.kappa_a, self.cfg.kappa_v)

    def stored(self, batch, now, s, P_a, P_v):
        return dict(patches_a=now.x_a, patches_v=now.x_v, kept_a=now.kept_a, kept_v=now.kept_v)

    def replayed(self, past):
        return Patches(past['patches_a'], past['patches_v'], past['kept_a'], past['kept_v'])


class InitialPretraining(nn.Module):
    """What happens before the stream (App. B), the same for every method: ℓ^r + λℓ^c on all patches, and L^avm beside
    it."""

    memory = None

    def __init__(self, cfg, backbone, avm):
        super().__init__()
        self.cfg, self.backbone, self.avm = cfg, backbone, avm

    def forward(self, batch):
        patches = whole(batch, self.cfg.patch_size)
        avm_loss = matching_loss(self.backbone, self.avm, score(self.cfg, self.backbone, self.avm, patches), patches)
        losses = autoencode(self.cfg, self.backbone, patches)
        return objective(self.cfg, losses).mean() + avm_loss, logged(losses, avm=avm_loss)
