"""The backbone: an audio-video masked autoencoder (§3.1, App. C).

In:  patches of a batch of clips and their positions (`patches.py`), or whole clips.
Out: the losses of Eq. 8 and 9 on the patches that were kept, or embeddings for retrieval.

    patches ─ Eq. 1 ─► a, v ─► E_a, E_v ─► E_f (jointly) ─► D ─► ℓ^r      Eq. 8
                                      └──► E_f (each modality alone, LN_a, LN_v) ─► ℓ^c   Eq. 9

Whatever is masked, or was not selected, is dropped before the first layer rather than zeroed.

`python model.py` prints the number of parameters, part by part. Tour: stops 2, 3, 13 and 14.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from patches import (SIZES, Sizes, all_positions, draw_masks, gather, gather_processes, normalized, patchify_a,
                     patchify_v, rank)


def take(position, at):
    """position (1, all, D), at (B, n) → (B, n, D). As an embedding, since the gradient of plain indexing adds up in
    whatever order threads come: then no run could be repeated to the bit."""
    return F.embedding(at, position[0])


def computed_again(part, *inputs):
    """part(*inputs), of which only the inputs are kept for the backward pass, which computes the rest once more.

    For E_f, which goes over the same tokens twice, once for each loss: a quarter of what encoders and fusion would
    keep, and a fiftieth of the operations.
    """
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)      # nothing in it is random


# -------------------------------------------------------------------------------------- blocks

class PatchEmbed(nn.Module):
    """Eq. 1. A convolution whose stride is its kernel is one linear map per patch; applied so, it
    can be given the few patches that were kept instead of the whole picture."""

    def __init__(self, p, channels, dim):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=p, stride=p)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))   # as a linear layer, which it is (MAE)

    def forward(self, x):
        """x (B, n, p·p·channels) → (B, n, D)"""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)   # D, (row, column, channel) as patchify
        return F.linear(x, weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention; which kernel computes it, torch chooses."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        """x (B, n, D) → (B, n, D)"""
        B, n, D = x.shape
        q, k, v = self.qkv(x).reshape(B, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)                # B, heads, n, D/heads
        return self.proj(x.transpose(1, 2).reshape(B, n, D))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * 4)
        self.fc2 = nn.Linear(dim * 4, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim)

    def forward(self, x):
        """x (B, n, D) → (B, n, D)"""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FusionBlock(Block):
    """A block of E_f: one attention and one MLP, and three pairs of LayerNorms: for both modalities
    jointly, for audio alone (LN_a of Eq. 9) and for video alone (LN_v)."""

    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.norm1_a, self.norm2_a = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm1_v, self.norm2_v = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward_a(self, x):
        x = x + self.attn(self.norm1_a(x))
        return x + self.mlp(self.norm2_a(x))

    def forward_v(self, x):
        x = x + self.attn(self.norm1_v(x))
        return x + self.mlp(self.norm2_v(x))


def sincos(dim, length):
    """The sine-cosine code of positions 0 … length−1: (length, dim), all sines, then all cosines."""
    omega = 1 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], 1).float()


def sincos_2d(dim, rows, columns):
    """(1, rows·columns, dim): half of the channels code the column, half the row, as MAE's does."""
    column, row = sincos(dim // 2, columns), sincos(dim // 2, rows)
    return torch.cat([column.repeat(rows, 1), row.repeat_interleave(columns, 0)], 1)[None]


# --------------------------------------------------------------------------------------- model

class Losses(NamedTuple):
    """What one pass through the autoencoder gives. Losses are per pair, since some methods rank pairs by them."""
    mae_a: torch.Tensor         # B    ℓ_a^r of Eq. 8
    mae_v: torch.Tensor         # B    ℓ_v^r of Eq. 8
    contrastive: torch.Tensor   # B    ℓ^c of Eq. 9, the mean of the two directions
    pooled_a: torch.Tensor      # B,D  c_a before its L2 normalization: what the memory keeps for ℓ^p
    pooled_v: torch.Tensor      # B,D  c_v

    def each(self, lam, mae_weight=1.0):
        """ℓ^r + λ ℓ^c of each pair (B,) (§3.1). mae_weight 0 leaves ℓ^r out (Fig. 11)."""
        return mae_weight * (self.mae_a + self.mae_v) + lam * self.contrastive


class AudioVideoMAE(nn.Module):
    """E_a, E_v, E_f and D of App. C. Sizes come from a `Sizes`; nothing here knows of tasks, memories or selection."""

    def __init__(self, sizes):
        super().__init__()
        s = self.sizes = sizes
        p, D, Dd = s.patch_size, s.embed_dim, s.decoder_embed_dim
        self.patch_embed_a, self.patch_embed_v = PatchEmbed(p, 1, D), PatchEmbed(p, 3, D)
        self.encoder_a = nn.ModuleList(Block(D, s.num_heads) for _ in range(s.encoder_depth))        # E_a
        self.encoder_v = nn.ModuleList(Block(D, s.num_heads) for _ in range(s.encoder_depth))        # E_v
        self.fusion = nn.ModuleList(FusionBlock(D, s.num_heads) for _ in range(s.fusion_depth))      # E_f
        self.norm, self.norm_a, self.norm_v = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.decoder_embed = nn.Linear(D, Dd)
        self.decoder = nn.ModuleList(Block(Dd, s.decoder_num_heads) for _ in range(s.decoder_depth))  # D
        self.decoder_norm = nn.LayerNorm(Dd)
        self.head_a, self.head_v = nn.Linear(Dd, p * p), nn.Linear(Dd, p * p * 3)

        # Positions and modality marks. They start as sine-cosine codes and are trained from there.
        position_a = lambda dim: nn.Parameter(sincos_2d(dim, *s.grid_a))
        position_v = lambda dim: nn.Parameter(sincos_2d(dim, *s.grid_v[1:]).repeat(1, s.num_frames, 1))
        mark = lambda dim: nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_a, self.pos_v = position_a(D), position_v(D)                         # at the encoders' input
        self.fusion_pos_a, self.fusion_pos_v = position_a(D), position_v(D)           # at the fusion's input
        self.decoder_pos_a, self.decoder_pos_v = position_a(Dd), position_v(Dd)       # at the decoder's input
        self.modality_a, self.modality_v = mark(D), mark(D)
        self.decoder_modality_a, self.decoder_modality_v = mark(Dd), mark(Dd)
        self.mask_token_a, self.mask_token_v = mark(Dd), mark(Dd)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        assert all(norm.eps == 1e-5 for norm in self.modules() if isinstance(norm, nn.LayerNorm))

    # -- the four networks -------------------------------------------------------------------

    def encode(self, x_a, x_v, at_a, at_v):
        """E_a(a), E_v(v).  x_a (B, m, p·p) at positions at_a (B, m); x_v (B, n, p·p·3) at at_v (B, n)
        →  o_a (B, m, D), o_v (B, n, D)"""
        a = self.patch_embed_a(x_a) + take(self.pos_a, at_a) + self.modality_a
        v = self.patch_embed_v(x_v) + take(self.pos_v, at_v) + self.modality_v
        for block in self.encoder_a:
            a = block(a)
        for block in self.encoder_v:
            v = block(v)
        return a, v

    def fuse(self, o_a, o_v, at_a, at_v):
        """E_f(o_a, o_v) on both modalities jointly.  → õ_a (B, m, D), õ_v (B, n, D), before the last LayerNorm"""
        x = torch.cat([o_a + take(self.fusion_pos_a, at_a), o_v + take(self.fusion_pos_v, at_v)], 1)
        for block in self.fusion:
            x = block(x)
        return x.split([o_a.shape[1], o_v.shape[1]], 1)

    def tokens(self, o_a, o_v, at_a, at_v):
        """E_f(o_a), E_f(o_v) of Eq. 9: each modality alone, with its own LayerNorms.  → (B, m, D), (B, n, D)"""
        a, v = o_a + take(self.fusion_pos_a, at_a), o_v + take(self.fusion_pos_v, at_v)
        for block in self.fusion:
            a, v = block.forward_a(a), block.forward_v(v)
        return self.norm_a(a), self.norm_v(v)

    def pool(self, o_a, o_v, at_a, at_v):
        """c_a, c_v of Eq. 9: the mean of those tokens over patches.  → (B, D), (B, D), not yet L2-normalized"""
        a, v = self.tokens(o_a, o_v, at_a, at_v)
        return a.mean(1), v.mean(1)

    def decode(self, joint, mask_token, position, modality, head, at, target):
        """D(õ) at the hidden positions of one modality.

        joint (B, n, D), normalized, at positions at (B, n); target (B, m) positions to predict;
        position (1, all, Dd), mask_token and modality (1, 1, Dd)  →  (B, m, values of a patch).
        Patches that are neither visible nor a target do not exist for the decoder.
        """
        seen = self.decoder_embed(joint)
        hidden = mask_token.expand(*target.shape, -1).to(seen.dtype)
        x = torch.cat([seen, hidden], 1) + take(position, torch.cat([at, target], 1)) + modality
        for block in self.decoder:
            x = block(x)
        return head(self.decoder_norm(x[:, at.shape[1]:]))   # only the hidden ones are scored

    # -- what is asked of them ---------------------------------------------------------------

    def losses(self, x_a, x_v, kept_a, kept_v, slots_a, slots_v, tau):
        """Eq. 8 and 9 on the kept patches.

        x_a (B, κ_a, p·p), x_v (B, κ_v, p·p·3)   kept patches
        kept_a (B, κ_a), kept_v (B, κ_v)         their positions
        slots_a, slots_v                         (visible, target) from `draw_visible`
        tau                                      temperature of Eq. 9
        """
        (see_a, hide_a), (see_v, hide_v) = slots_a, slots_v
        at_a, at_v = kept_a.gather(1, see_a), kept_v.gather(1, see_v)
        o_a, o_v = self.encode(gather(x_a, see_a), gather(x_v, see_v), at_a, at_v)

        joint_a, joint_v = computed_again(self.fuse, o_a, o_v, at_a, at_v)
        guess_a = self.decode(self.norm(joint_a), self.mask_token_a, self.decoder_pos_a, self.decoder_modality_a,
                              self.head_a, at_a, kept_a.gather(1, hide_a))
        guess_v = self.decode(self.norm(joint_v), self.mask_token_v, self.decoder_pos_v, self.decoder_modality_v,
                              self.head_v, at_v, kept_v.gather(1, hide_v))

        c_a, c_v = computed_again(self.pool, o_a, o_v, at_a, at_v)
        return Losses(reconstruction_loss(guess_a, gather(x_a, hide_a)),
                      reconstruction_loss(guess_v, gather(x_v, hide_v)), contrastive_loss(c_a, c_v, tau), c_a, c_v)

    def embed(self, audio, video):
        """Nothing masked: what retrieval compares.  audio (B, t, f), video (B, T, 3, H, W) → c_a, c_v (B, D),
        L2-normalized"""
        x_a, x_v = patchify_a(audio, self.sizes.patch_size), patchify_v(video, self.sizes.patch_size)
        at_a, at_v = all_positions(x_a), all_positions(x_v)
        c_a, c_v = self.pool(*self.encode(x_a, x_v, at_a, at_v), at_a, at_v)
        return on_sphere(c_a), on_sphere(c_v)


# -------------------------------------------------------------------------------------- losses

def reconstruction_loss(guess, x):
    """Eq. 8 for one modality, per pair.  guess, x (B, m, values) → (B,)

    The target is normalized by its own patch's mean and variance, as in MAE (readings: unbiased variance).
    """
    guess = guess.to(x.dtype)      # under bf16 autocast the difference is still taken in float32
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().sum(-1, keepdim=True) / (x.shape[-1] - 1) + 1e-6).sqrt()   # x.var is slow on a CPU
    return (guess - x).square().mean((1, 2))


def on_sphere(c):
    """c (B, D) → (B, D) of length 1, in float32 at least: bf16 is too coarse for cosines divided by 0.05"""
    return F.normalize(c.to(torch.promote_types(c.dtype, torch.float32)), dim=-1)


def contrastive_loss(c_a, c_v, tau):
    """Eq. 9, per pair.  c_a, c_v (B, D) → (B,)

    The paper sums the two directions; its released configuration averages them, and so do we.
    Under several processes every process's pairs serve as negatives for every other's.
    """
    c_a, c_v = on_sphere(c_a), on_sphere(c_v)
    all_a, all_v = gather_processes(c_a), gather_processes(c_v)
    first = rank() * len(c_a)                                      # where this process's pairs stand among all
    own = torch.arange(first, first + len(c_a), device=c_a.device)
    with torch.autocast(c_a.device.type, enabled=False):           # or the products would be bf16 again
        to_video = F.cross_entropy(c_a @ all_v.T / tau, own, reduction='none')
        to_audio = F.cross_entropy(c_v @ all_a.T / tau, own, reduction='none')
    return (to_video + to_audio) / 2


# ------------------------------------------------------------------- one pass, as methods take it

def autoencode(cfg, backbone, patches, masks=None):
    """Patches → Losses: Eq. 8 and 9 under the masks given, or under new ones."""
    masks = masks or draw_masks(cfg, patches)
    return backbone.losses(*normalized(patches, cfg.patch_size), *masks, cfg.tau)


def objective(cfg, losses):
    """ℓ = ℓ^r + λℓ^c of each pair (B,)"""
    return losses.each(cfg.lam, cfg.mae_weight)


def logged(losses, **more):
    """Means of what is worth logging. Tensors still: a GPU need not stop for numbers that nobody prints."""
    parts = dict(mae_a=losses.mae_a, mae_v=losses.mae_v, contrastive=losses.contrastive, **more)
    return {name: part.detach().mean() for name, part in parts.items()}


def compile_blocks(backbone):
    """`--compile`: each block goes through torch.compile, which takes it once for all blocks alike. → what to say of
    it; where it cannot be had, all is as without."""
    blocks = [*backbone.encoder_a, *backbone.encoder_v, *backbone.fusion, *backbone.decoder]
    x = torch.zeros(2, 3, backbone.sizes.embed_dim, device=backbone.pos_a.device, requires_grad=True)
    try:
        torch.compile(blocks[0])(x).sum().backward()
    except Exception as error:     # of many kinds: no compiler, no Triton, an old GPU
        reason = (str(error).splitlines() or [''])[0][:150]
        return f'--compile: the blocks cannot be compiled here, and run as they are ({type(error).__name__}: {reason})'
    backbone.zero_grad()
    for block in blocks:
        block.compile()
    return f'--compile: {len(blocks)} blocks are compiled'


def print_parameters(size):
    """Backbone and AVM, part by part, for a name of SIZES (App. D: 707.8 MB, and 3.18 % more)."""
    from avm import AVM   # only this report knows both

    sizes = Sizes(**SIZES[size])
    backbone, avm = AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads)
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    for title, module in (('backbone', backbone), ('AVM', avm)):
        for name, child in module.named_children():
            print(f'  {name:<16}{count(child):>13,}')
        direct = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if direct:
            print(f'  {"positions, marks":<16}{direct:>13,}')
        print(f'{title:<18}{count(module):>13,}  = {count(module) * 4 / 2 ** 20:.1f} MiB in float32\n')
    patches = f'M = {sizes.num_patches_a}, N = {sizes.num_patches_v} patches.'
    print(f'The AVM adds {count(avm) / count(backbone):.2%}.  {patches}')


if __name__ == '__main__':
    import sys
    print_parameters(*sys.argv[1:] or ['base'])
