"""The audio-video matching module, AVM (§4.1, App. D).

A small module on top of the frozen backbone. Trained to tell whether audio and video belong together, its
cross-attention shows which patches of one modality answer to the other.

In:  õ_a (B, M, D), õ_v (B, N, D), the backbone's joint representation of all patches, without gradient.
Out: importance scores I_a (B, M), I_v (B, N) (Eq. 2, 3); queries and keys for the selection; a matching loss (Eq. 11).

Tour: stops 3, 4, 5 and 6.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from patches import normalized


class Projections(NamedTuple):
    """Eq. 10, first line, split into heads; d = D/H."""
    q_a: torch.Tensor   # B,H,M,d
    k_a: torch.Tensor
    v_a: torch.Tensor
    q_v: torch.Tensor   # B,H,N,d
    k_v: torch.Tensor
    v_v: torch.Tensor


def mu(q, k, beta):
    """μ(q, k; β) of Eq. 2 without its Softmax: q (..., n, d), k (..., m, d) → logits (..., n, m)

    The printed "/β*√d" divides by both: a small β sharpens the attention.
    """
    return q @ k.transpose(-1, -2) / (beta * k.shape[-1] ** 0.5)


class AVM(nn.Module):
    """Six projections, cross-attention both ways, and a classifier on what it highlights (App. D, Fig. 8).
    dim = D, heads = H; d = D/H"""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim)
        linear = lambda: nn.Linear(dim, dim, bias=False)
        self.to_q_a, self.to_k_a, self.to_v_a = linear(), linear(), linear()   # W^Q_a, W^K_a, W^V_a
        self.to_q_v, self.to_k_v, self.to_v_v = linear(), linear(), linear()
        self.fc = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.Tanh(), nn.Linear(2 * dim, 1))

    def project(self, joint_a, joint_v):
        """Eq. 10, first line.  õ_a (B, M, D), õ_v (B, N, D) → queries, keys and values of both, by head"""
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)   # B,n,D → B,H,n,d
        a, v = self.norm_a(joint_a), self.norm_v(joint_v)
        return Projections(*(split(to(a)) for to in (self.to_q_a, self.to_k_a, self.to_v_a)),
                           *(split(to(v)) for to in (self.to_q_v, self.to_k_v, self.to_v_v)))

    def match(self, joint_a, joint_v):
        """Eq. 10 and 11: the logit (B,), before the sigmoid, that each audio belongs to its video."""
        p = self.project(joint_a, joint_v)
        # softmax(μ(q, k, β=1)) v is plain attention: A_a weighs audio values by video queries, and the reverse.
        highlighted_a = F.scaled_dot_product_attention(p.q_v, p.k_a, p.v_a)   # V_a: B,H,N,d
        highlighted_v = F.scaled_dot_product_attention(p.q_a, p.k_v, p.v_v)   # V_v: B,H,M,d
        # "We average the values head-wise and token-wise": the released module reads V's memory, laid out B,H,n,d, as
        # B,n,D rows without moving the heads back, so each slot of the mean is over all heads and every H-th patch.
        # The released weights were trained so; a mean that keeps heads apart would not fit them.
        pooled = [V.contiguous().flatten(1).unflatten(1, (-1, V.shape[1] * V.shape[3])).mean(1)   # B,D
                  for V in (highlighted_a, highlighted_v)]   # the one that video's queries asked for stands first
        return self.fc(torch.cat(pooled, -1)).squeeze(-1)


def importance(p, beta):
    """Eq. 2 and 3: how much the other modality attends to each patch, the mean over heads and queries.

    p  Projections  →  I_a (B, M), I_v (B, N), each summing to 1 over its patches
    """
    I_a = mu(p.q_v, p.k_a, beta).softmax(-1).mean((1, 2))   # A_a: B,H,N,M
    I_v = mu(p.q_a, p.k_v, beta).softmax(-1).mean((1, 2))   # A_v: B,H,M,N
    return I_a, I_v


# ------------------------------------------------------------------------- as methods ask for it

class Scores(NamedTuple):
    """What the AVM says of a batch, for the selection; from an unmasked pass without gradient."""
    o_a: torch.Tensor            # B,M,D
    o_v: torch.Tensor            # B,N,D
    joint_a: torch.Tensor        # B,M,D   õ_a
    joint_v: torch.Tensor        # B,N,D   õ_v
    importance_a: torch.Tensor   # B,M     I_a
    importance_v: torch.Tensor   # B,N     I_v
    q_a: torch.Tensor            # B,H,M,d
    q_v: torch.Tensor            # B,H,N,d
    k_a: torch.Tensor            # B,H,M,d
    k_v: torch.Tensor            # B,H,N,d


@torch.no_grad()
def score(cfg, backbone, avm, patches):
    """Eq. 2 and 3 for patches of whole clips → Scores"""
    x = normalized(patches, cfg.patch_size)
    o_a, o_v = backbone.encode(x.x_a, x.x_v, x.kept_a, x.kept_v)
    joint_a, joint_v = backbone.fuse(o_a, o_v, x.kept_a, x.kept_v)
    p = avm.project(joint_a, joint_v)
    return Scores(o_a, o_v, joint_a, joint_v, *importance(p, cfg.beta), p.q_a, p.q_v, p.k_a, p.k_v)


def matching_loss(backbone, avm, s, patches):
    """L^avm of Eq. 11, from the Scores s of these patches. Its gradient reaches the AVM alone, as scores carry none.

    Half of the batch keeps its own audio, the other half gets another pair's; one or two pairs are all matched.
    """
    B = len(s.joint_a)
    joint_a, joint_v, matched = s.joint_a, s.joint_v, torch.ones(B, device=s.joint_a.device)
    if B > 2:
        order = torch.randperm(B, device=joint_a.device)
        other, place = order[:B // 2].sort()
        audio_of = order.roll(1)[place]                            # along one cycle: no audio meets its own video
        with torch.no_grad():       # only the fusion sees both modalities: E_a and E_v need no second pass
            fused_a, fused_v = backbone.fuse(                   # positions of whole clips are alike, whosever they are
                s.o_a[audio_of], s.o_v[other], patches.kept_a[other], patches.kept_v[other])
        joint_a, joint_v = joint_a.index_copy(0, other, fused_a), joint_v.index_copy(0, other, fused_v)
        matched = matched.index_fill(0, other, 0)
    loss = F.binary_cross_entropy_with_logits(avm.match(joint_a, joint_v).float(), matched)
    return with_gradient_taken(loss, list(avm.parameters()))


class _GradientTaken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return None, None, *(grad * gradient for gradient in ctx.gradients)


def with_gradient_taken(loss, parameters):
    """The same scalar, with the same gradient for the parameters: it is computed now, so that what the loss was made of
    need not be kept through the backbone's forward pass."""
    if not loss.requires_grad:
        return loss
    with torch.autocast(loss.device.type, enabled=False):      # a backward pass goes back in the precision it came in
        gradients = torch.autograd.grad(loss, parameters)
    return _GradientTaken.apply(loss.detach(), gradients, *parameters)
