"""Cheap scoring (ours): importance scores of all patches, without the AVM on all patches (`--scorer`).

In:  a FLAVA method, Patches of the current pairs, and the replayed pairs.
Out: Scores of all patches, as `FLAVA.score_by_avm` computes them, approximately.

The pass that scores all patches is three tenths of FLAVA's operations (results/details-cost.md). App. K names this pass
as the limitation of the method. Two ways to spend less:

    grid      the AVM scores every s-th patch along each side (`--scorer-stride`); I and P are interpolated in between
    student   a narrow network predicts I from the patch embeddings; every k-th step (`--scorer-every`) the AVM scores
              and teaches it

In training the encoders see a part of the patches at a time (a fifth in the paper), so a sparse grid is like their
usual input. The student has no queries and keys, so it is for selections without P.

On a grid of m patches, κ of Eq. 4 is ⌊ρ·m⌋. A patch beside one with P > 0 gets an interpolated P. The interpolated I
does not sum to 1; drawing by weight does not need that.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from model import Block
from patches import gather_patches, to_float
from selection import Scores


# ---------------------------------------------------------------------------------------- the grid

def score_on_grid(method, patches, past):
    """FLAVA's I, P and L^avm on the patches of a grid → Scores, interpolated to all patches"""
    grid = SparseGrid(method.cfg, patches.ids_a.device)
    scores = method.score_by_avm(grid.subset(patches), past)
    (I_a, I_v), (P_a, P_v) = grid.fill(scores.I_a, scores.I_v), grid.fill(scores.P_a, scores.P_v)
    return scores._replace(I_a=I_a, I_v=I_v, P_a=P_a, P_v=P_v)


class SparseGrid:
    """A sparse grid in both modalities: which patches the AVM scores, and the way back to all patches. All on one
    device, without a host-device sync."""

    def __init__(self, cfg, device):
        self.grid_a, self.grid_v = cfg.grid_a, cfg.grid_v
        self.axes_a = [axis_positions(length, cfg.scorer_stride, device) for length in self.grid_a]
        self.axes_v = [axis_positions(length, cfg.scorer_stride, device) for length in self.grid_v[1:]]

    def subset(self, patches):
        """Patches of whole clips → Patches of the grid"""
        B = len(patches.x_a)
        return gather_patches(patches, grid_ids(self.grid_a, *self.axes_a).expand(B, -1),
                              grid_ids(self.grid_v, *self.axes_v).expand(B, -1))

    def fill(self, x_a, x_v):
        """Values of the grid's patches, (B, m) and (B, n) → of all patches, (B, M) and (B, N)"""
        return interpolate(x_a, self.grid_a, *self.axes_a), interpolate(x_v, self.grid_v, *self.axes_v)


def axis_positions(length, stride, device):
    """Every stride-th of `length` positions, from a random offset: (n,)"""
    offset = int(torch.randint(min(stride, length), (), device='cpu'))
    return torch.arange(offset, length, stride, device=device)


def grid_ids(grid, rows, columns):
    """grid (..., rows, columns) in patches → positions of those rows and columns, in all frames: (n,)"""
    num_rows, num_columns = grid[-2:]
    frames = torch.arange(math.prod(grid[:-2]), device=rows.device)    # T; 1 for audio
    return ((frames[:, None, None] * num_rows + rows[:, None]) * num_columns + columns).flatten()      # T,r,c, flat


def interpolate(x, grid, rows, columns):
    """Bilinear interpolation; beyond the outermost rows and columns, the nearest values. In x's precision: bf16 would
    round the I of important patches to equal values.

    x (B, n) at those rows and columns of a clip's grid → (B, M) or (B, N)
    """
    weight_r, weight_c = linear_weights(grid[-2], rows).to(x.dtype), linear_weights(grid[-1], columns).to(x.dtype)
    x = x.unflatten(1, (-1, len(rows), len(columns)))                  # B,T,r,c
    with torch.autocast(x.device.type, enabled=False):
        return (weight_r @ x @ weight_c.T).flatten(1)


def linear_weights(length, positions):
    """Linear interpolation from `positions` (n,) to 0 … length−1: weights (length, n); each row sums to 1"""
    target = torch.arange(length, device=positions.device)
    target = torch.minimum(torch.maximum(target, positions[0]), positions[-1])
    spacing = positions[1] - positions[0] if len(positions) > 1 else 1
    return (1 - (target[:, None] - positions).abs() / spacing).clamp(min=0)


# ------------------------------------------------------------------------------------- the student

def score_by_student(method, patches):
    """The student predicts I; P = 0. Every k-th step the AVM scores and learns, and teaches the student.  → Scores"""
    # the memory counts the pairs seen so far, also after a resume; each step adds a batch
    step = method.memory.seen // len(patches.x_a)
    if step % method.cfg.scorer_every == 0:
        out, avm_loss = method.attend_and_match(patches)
        I_a, I_v = out.I_a, out.I_v
        losses = dict(avm=avm_loss, student=distillation_loss(*method.student(method.backbone, patches), I_a, I_v))
    else:
        with torch.no_grad():
            log_a, log_v = method.student(method.backbone, patches)
        I_a, I_v, losses = log_a.exp(), log_v.exp(), {}
    return Scores(I_a, I_v, torch.zeros_like(I_a), torch.zeros_like(I_v), queries={}, aux_losses=losses)


class Student(nn.Module):
    """Two transformer blocks, a quarter as wide as the backbone, on the patch embeddings of both modalities."""

    def __init__(self, sizes):
        super().__init__()
        dim, heads = sizes.embed_dim // 4, max(1, sizes.num_heads // 4)
        self.embed = nn.ModuleDict({m: nn.Linear(sizes.embed_dim, dim) for m in 'av'})
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.ModuleDict({m: nn.Linear(dim, 1) for m in 'av'})

    def forward(self, backbone, patches):
        """Patches of whole clips → log I_a (B, M), log I_v (B, N). No gradient reaches the backbone."""
        with torch.no_grad():
            x = to_float(patches, backbone.sizes.patch_size)
            a, v = backbone.embed_patches(x.x_a, x.ids_a, 'a'), backbone.embed_patches(x.x_v, x.ids_v, 'v')
        x = torch.cat([self.embed['a'](a), self.embed['v'](v)], 1)     # B,M+N,D/4
        for block in self.blocks:
            x = block(x)
        a, v = self.norm(x).split([a.shape[1], v.shape[1]], 1)
        return tuple(self.head[m](x).squeeze(-1).float().log_softmax(1) for m, x in (('a', a), ('v', v)))


def distillation_loss(log_a, log_v, I_a, I_v):
    """KL(I ‖ prediction), the sum of both modalities, the mean over pairs.  log_a, I_a (B, M), log_v, I_v (B, N) →
    scalar"""
    return F.kl_div(log_a, I_a, reduction='batchmean') + F.kl_div(log_v, I_v, reduction='batchmean')
