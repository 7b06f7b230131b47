"""FLAVA and FLAVA+ (§4.1-4.3, summarized in Algorithm 1): one training step; and the initial pre-training (App. B).

In:  a batch {'audio': (B, t, f) float32, 'video': (B, T, 3, H, W) uint8} of the current stream.
Out: the loss to minimize, and values to log:  loss, log = method(batch)

FLAVA is DER++ (`baselines.py`) on selected patches. Tour: stops 7, 15, 16 and 17.
"""
from typing import NamedTuple

import torch

import baselines
from avm import attend, matching_loss, unmasked_tokens
from baselines import DERpp, Method
from config import num_kept
from memory import patch_capacity
from model import Losses, log_dict, run_backbone
from patches import Patches, gather_patches, patchify
from scorer import Student, score_by_student, score_on_grid
from selection import Scores, discriminative_query, prune_probability, select_patches


class FLAVAStep(NamedTuple):
    """What one step computes: for the tour and for experiments."""
    loss: torch.Tensor
    log: dict
    patches: Patches         # all M and N patches of the current pairs
    scores: Scores           # I, P and q̂ of these patches
    past: dict               # the replayed pairs, as the memory returns them
    selected: Patches        # their selected κ_a and κ_v patches: x̂_a, x̂_v
    losses: Losses


class FLAVA(DERpp):
    """Trains on patches that are well aligned and unlikely to overwrite earlier knowledge. Replays past pairs with
    their patches selected in the same way. From DER++ it has the memory and `replay_loss`; `select_patches` replaces
    DER++'s `select`."""

    def __init__(self, cfg, backbone, avm):
        super().__init__(cfg, backbone, avm)
        self.avm = avm
        self.student = Student(cfg) if cfg.scorer == 'student' else None       # `scorer.py`

    def forward(self, batch):
        step = self.step(batch)
        return step.loss, step.log

    def step(self, batch):
        """Algorithm 1, one step → FLAVAStep"""
        cfg, B = self.cfg, len(batch['audio'])
        patches = patchify(batch, cfg.patch_size)

        past = self.sample(batch)                                                              # from the memory

        # score all patches: importance I (§4.1), and pruning probability P against the past queries (§4.2)
        scores = self.score(patches, past)

        # select patches (§4.3)
        ids_a, ids_v = select_patches(cfg, scores.I_a, scores.I_v, scores.P_a, scores.P_v)     # S̃_a, S̃_v
        selected = gather_patches(patches, ids_a, ids_v)                                       # x̂_a, x̂_v of Eq. 7

        # learn from them and from replayed pairs, as DER++ does
        replayed = self.select_replayed(past) if past else None
        loss, log, losses = self.replay_loss(selected, replayed, past)                         # ℓ^r + λℓ^c + αℓ^p
        loss = loss + sum(scores.aux_losses.values())                                          # + L^avm, weight 1 (N11)
        log |= {name: part.detach() for name, part in scores.aux_losses.items()}

        # offer the current pairs to the memory
        self.memory.add(pooled_a=losses.pooled_a[:B], pooled_v=losses.pooled_v[:B], **scores.queries,
                        **self.to_store(batch, selected, scores))
        return FLAVAStep(loss, log, patches, scores, past, selected, losses)

    def score(self, patches, past):
        """Patches of the current pairs, the replayed pairs → Scores. `--scorer`: by the AVM, or cheaper (ours)"""
        if self.cfg.scorer == 'grid':
            return score_on_grid(self, patches, past)
        if self.cfg.scorer == 'student':
            return score_by_student(self, patches)
        return self.score_by_avm(patches, past)

    def score_by_avm(self, patches, past):
        """§4.1 and 4.2: patches of the current pairs, the replayed pairs → Scores"""
        # localized alignment (§4.1): which patches does the other modality attend to?
        out, avm_loss = self.attend_and_match(patches)                         # I of Eq. 3; L^avm of Eq. 11

        # forget-robustness (§4.2): which of them does a past query attend to more than the current one?
        kappa_a, kappa_v = self.num_selected(out)
        query_a = discriminative_query(out.I_a, out.q_a, kappa_a)              # q̂_a, q̂_v of Eq. 4
        query_v = discriminative_query(out.I_v, out.q_v, kappa_v)
        P_a, P_v = self.prune_probabilities(out, query_a, query_v, past)
        return Scores(out.I_a, out.I_v, P_a, P_v, dict(query_a=query_a, query_v=query_v), dict(avm=avm_loss))

    def attend_and_match(self, patches):
        """§4.1, App. D → AVMOutput, L^avm"""
        out = attend(self.cfg, self.backbone, self.avm, patches)
        return out, matching_loss(self.backbone, self.avm, out.tokens, patches)

    def num_selected(self, out):
        """κ_a and κ_v of Eq. 4: shares ρ of the patches, which on a grid (`--scorer grid`) are fewer than M and N."""
        return num_kept(self.cfg.rho_a, out.I_a.shape[1]), num_kept(self.cfg.rho_v, out.I_v.shape[1])

    def prune_probabilities(self, out, query_a, query_v, past):
        """P_a (B, M), P_v (B, N) of Eq. 5. Each current pair is compared with one replayed pair: its audio patches with
        q̂ᵖ_v, its video patches with q̂ᵖ_a. With an empty memory, P = 0 (N17)."""
        if not past:
            return torch.zeros_like(out.I_a), torch.zeros_like(out.I_v)
        kappa_a, kappa_v = self.num_selected(out)
        partner = torch.arange(len(query_a), device=query_a.device) % len(past['query_a'])
        past_a, past_v = past['query_a'][partner].to(query_a.dtype), past['query_v'][partner].to(query_v.dtype)
        return (prune_probability(out.I_a, out.k_a, query_v, past_v, kappa_a),
                prune_probability(out.I_v, out.k_v, query_a, past_a, kappa_v))

    def to_store(self, batch, selected, scores):
        """What the memory stores besides q̂ and c: the pair, with I and P as they are at this step (N23)."""
        return dict(audio=batch['audio'], video=batch['video'], importance_a=scores.I_a, importance_v=scores.I_v,
                    prune_a=scores.P_a, prune_v=scores.P_v)

    def select_replayed(self, past):
        """Replayed pairs → Patches, selected anew at each replay from the stored I and P."""
        ids_a, ids_v = select_patches(self.cfg, past['importance_a'], past['importance_v'],
                                      past['prune_a'], past['prune_v'])
        return gather_patches(patchify(past, self.cfg.patch_size), ids_a, ids_v)


class FLAVAPlus(FLAVA):
    """FLAVA+ (§4.3): the memory stores the selected patches instead of the pair, so more pairs fit into the same bytes:
    1/ρ times as many where ρ_a = ρ_v = ρ."""

    def memory_pairs(self):
        return patch_capacity(self.cfg.memory_size, self.cfg, self.cfg.kappa_a, self.cfg.kappa_v)

    def to_store(self, batch, selected, scores):
        return dict(patches_a=selected.x_a, patches_v=selected.x_v, ids_a=selected.ids_a, ids_v=selected.ids_v)

    def select_replayed(self, past):
        return Patches(past['patches_a'], past['patches_v'], past['ids_a'], past['ids_v'])


class InitialPretraining(Method):
    """Before the stream, for every method (App. B): ℓ^r + λℓ^c on all patches, + L^avm."""

    def __init__(self, cfg, backbone, avm):
        super().__init__(cfg, backbone, avm)
        self.avm = avm

    def forward(self, batch):
        patches = patchify(batch, self.cfg.patch_size)
        tokens = unmasked_tokens(self.cfg, self.backbone, patches)
        avm_loss = matching_loss(self.backbone, self.avm, tokens, patches)
        losses = run_backbone(self.cfg, self.backbone, patches)
        return self.total_loss(losses) + avm_loss, log_dict(losses, avm=avm_loss)


METHODS = {   # --method, in Table 1's order
    'finetune': baselines.Finetune, 'er': baselines.ER, 'mir': baselines.MIR, 'der++': baselines.DERpp,
    'gmed': baselines.GMED, 'cls-er': baselines.CLSER, 'lump': baselines.LUMP, 'flava': FLAVA, 'flava+': FLAVAPlus,
    'multitask': baselines.Finetune,                   # on all tasks at once (`train.py`)
}
SELECTION_BASELINES = {'random': baselines.Random, 'mats': baselines.MATS}     # --selection: DER++ in place of FLAVA


def build_method(cfg, backbone, avm):
    """The method that the options name."""
    if cfg.selection in SELECTION_BASELINES:           # config.py: only with --method flava
        return SELECTION_BASELINES[cfg.selection](cfg, backbone, avm)
    return METHODS[cfg.method](cfg, backbone, avm)
