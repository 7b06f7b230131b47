"""The audio-video matching module, AVM (§4.1, App. D).

A small module on the backbone's output, without gradient through the backbone. It learns whether audio and video belong
together. Its cross-attention shows which patches of one modality the other modality attends to.

In:  õ_a (B, M, D), õ_v (B, N, D): the backbone's joint representation of all patches, without gradient.
Out: importance scores I_a (B, M), I_v (B, N) of Eq. 2 and 3; queries and keys for the selection; L^avm of Eq. 11.

Tour: stops 3, 4, 5 and 6.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from patches import to_float


class Projections(NamedTuple):
    """Eq. 10, first line: queries, keys and values of both modalities, split into heads; d = D/H."""
    q_a: torch.Tensor   # B,H,M,d
    k_a: torch.Tensor
    v_a: torch.Tensor
    q_v: torch.Tensor   # B,H,N,d
    k_v: torch.Tensor
    v_v: torch.Tensor


def mu(q, k, beta):
    """μ(q, k; β) of Eq. 2, before the Softmax: q (..., n, d), k (..., m, d) → logits (..., n, m)

    The printed "/β*√d" is read as dividing by both: a small β sharpens the attention (N13).
    """
    return q @ k.transpose(-1, -2) / (beta * k.shape[-1] ** 0.5)


class AVM(nn.Module):
    """Six projections, cross-attention in both directions, and a classifier (App. D, Fig. 8, N4).
    dim: D; heads: H"""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # W^Q_a, W^K_a, W^V_a; W^Q_v, W^K_v, W^V_v
        self.to_q_a, self.to_k_a, self.to_v_a = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_q_v, self.to_k_v, self.to_v_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.fc = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.Tanh(), nn.Linear(2 * dim, 1))

    def split_heads(self, x):
        """(B, n, D) → (B, H, n, d)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, joint_a, joint_v):
        """Eq. 10, first line.  õ_a (B, M, D), õ_v (B, N, D) → Projections"""
        a, v = self.norm_a(joint_a), self.norm_v(joint_v)
        return Projections(
            self.split_heads(self.to_q_a(a)), self.split_heads(self.to_k_a(a)), self.split_heads(self.to_v_a(a)),
            self.split_heads(self.to_q_v(v)), self.split_heads(self.to_k_v(v)), self.split_heads(self.to_v_v(v)))

    def match(self, joint_a, joint_v):
        """Eq. 10 and 11: the logit (B,), before the sigmoid, that each audio belongs to its video."""
        proj = self.project(joint_a, joint_v)
        # softmax(μ(q, k; β=1)) v is plain attention: video queries weigh audio values, and the reverse
        attended_a = F.scaled_dot_product_attention(proj.q_v, proj.k_a, proj.v_a)      # V_a: B,H,N,d
        attended_v = F.scaled_dot_product_attention(proj.q_a, proj.k_v, proj.v_v)      # V_v: B,H,M,d
        pooled = torch.cat([mean_as_released(attended_a), mean_as_released(attended_v)], -1)         # B,2D
        return self.fc(pooled).squeeze(-1)


def mean_as_released(V):
    """MeanPool of Eq. 11: "we average the values head-wise and token-wise".  V (B, H, n, d) → (B, D)

    The released module reshapes (B, H, n, d) to (B, n, H·d) without a transpose, and the released weights were trained
    with it (N5). So this is not the mean over tokens per head: of the H·n rows (d values each), head by head, row r
    goes into block r mod H of the output, and each block is the mean of its rows.
    """
    B, H, n, d = V.shape
    return V.reshape(B, n, H * d).mean(1)


def importance(proj, beta):
    """Eq. 2 and 3: how much the other modality attends to each patch, the mean over heads and queries.

    proj: Projections → I_a (B, M), I_v (B, N); each sums to 1 over its patches.
    """
    I_a = mu(proj.q_v, proj.k_a, beta).softmax(-1).mean((1, 2))       # A_a: B,H,N,M
    I_v = mu(proj.q_a, proj.k_v, beta).softmax(-1).mean((1, 2))       # A_v: B,H,M,N
    return I_a, I_v


# ------------------------------------------------------------------------------- in a training step

class UnmaskedTokens(NamedTuple):
    """Tokens of all patches, unmasked, computed without gradient (N12)."""
    o_a: torch.Tensor            # B,M,D
    o_v: torch.Tensor            # B,N,D
    joint_a: torch.Tensor        # B,M,D   õ_a
    joint_v: torch.Tensor        # B,N,D   õ_v


class AVMOutput(NamedTuple):
    """What the AVM computes from these tokens: importance scores, queries and keys."""
    tokens: UnmaskedTokens
    I_a: torch.Tensor            # B,M
    I_v: torch.Tensor            # B,N
    q_a: torch.Tensor            # B,H,M,d
    q_v: torch.Tensor            # B,H,N,d
    k_a: torch.Tensor            # B,H,M,d
    k_v: torch.Tensor            # B,H,N,d


@torch.no_grad()
def unmasked_tokens(cfg, backbone, patches):
    """E_a, E_v, E_f on Patches, none of them masked → UnmaskedTokens"""
    x = to_float(patches, cfg.patch_size)
    o_a, o_v = backbone.encode(*x)
    return UnmaskedTokens(o_a, o_v, *backbone.fuse(o_a, o_v, x.ids_a, x.ids_v))


@torch.no_grad()
def attend(cfg, backbone, avm, patches):
    """Backbone and AVM on all of these Patches, without gradient: Eq. 2 and 3 → AVMOutput"""
    tokens = unmasked_tokens(cfg, backbone, patches)
    proj = avm.project(tokens.joint_a, tokens.joint_v)
    return AVMOutput(tokens, *importance(proj, cfg.beta), proj.q_a, proj.q_v, proj.k_a, proj.k_v)


def matching_loss(backbone, avm, tokens, patches):
    """L^avm of Eq. 11 → scalar. tokens: UnmaskedTokens of these patches. The gradient reaches the AVM alone.

    Half of the batch keeps its own audio. The other half gets the audio of another pair. In a batch of one or two pairs,
    all keep their own audio (N12). Both terms of the cross-entropy count (N11).
    """
    B = len(tokens.joint_a)
    joint_a, joint_v, matched = tokens.joint_a, tokens.joint_v, torch.ones(B, device=tokens.joint_a.device)
    if B > 2:
        # in a random cycle of the pairs, each mismatched pair gets the audio of the one before it: never its own
        order = torch.randperm(B, device=joint_a.device)
        mismatched, audio_of = order[:B // 2], order.roll(1)[:B // 2]
        with torch.no_grad():                          # only the fusion sees both modalities
            fused_a, fused_v = backbone.fuse(tokens.o_a[audio_of], tokens.o_v[mismatched],
                                             patches.ids_a[audio_of], patches.ids_v[mismatched])
        joint_a, joint_v = joint_a.index_copy(0, mismatched, fused_a), joint_v.index_copy(0, mismatched, fused_v)
        matched = matched.index_fill(0, mismatched, 0)
    logit = backbone.checkpointed(avm.match, joint_a, joint_v)  # the AVM's only pass with a gradient
    return F.binary_cross_entropy_with_logits(logit.float(), matched)
