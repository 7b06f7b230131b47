"""The backbone: an audio-video masked autoencoder (§3.1, App. C).

In:  Patches of a batch (`patches.py`), or whole clips.
Out: the losses of Eq. 8 and 9 on these patches, or embeddings for retrieval.

    patches ─ Eq. 1 ─► a, v ─► E_a, E_v ─► E_f (both modalities) ─► D ─► ℓ^r     Eq. 8
                                      └──► E_f (one modality alone) ─► mean ─► ℓ^c     Eq. 9

`python model.py` prints the number of parameters. Tour: stops 2, 3, 13 and 14.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from config import SIZES, Sizes
from patches import gather_rows, patchify, random_masks, to_float
from utils.distributed import all_gather_with_grad, get_rank
from utils.weights import backbone_weights


# -------------------------------------------------------------------------------------- blocks

class PatchEmbed(nn.Module):
    """Eq. 1: a linear map of each patch (N2). The weights have a convolution's shape, as in MAE's checkpoints, but are
    applied as a linear layer: so the module also takes a few patches instead of a whole picture."""

    def __init__(self, p, channels, dim):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=p, stride=p)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))    # as MAE does
        # DistributedDataParallel expects the gradient in the layout of the weight
        self.proj.weight.register_hook(lambda grad: grad.clone(memory_format=torch.contiguous_format))

    def forward(self, x):
        """x (B, n, p·p·channels) → (B, n, D)"""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)   # D, (row, column, channel) as in patchify
        return F.linear(x, weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention"""

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
    """A pre-norm transformer block"""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim)

    def forward(self, x):
        """x (B, n, D) → (B, n, D)"""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FusionBlock(nn.Module):
    """A block of E_f: one attention, one MLP, and a pair of LayerNorms for each input: both modalities jointly, audio
    alone (LN_a of Eq. 9), video alone (LN_v). (N3)"""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1 = nn.ModuleDict({name: nn.LayerNorm(dim) for name in ('joint', 'a', 'v')})
        self.norm2 = nn.ModuleDict({name: nn.LayerNorm(dim) for name in ('joint', 'a', 'v')})
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim)

    def forward(self, x, modality='joint'):
        """x (B, n, D) → (B, n, D)"""
        x = x + self.attn(self.norm1[modality](x))
        return x + self.mlp(self.norm2[modality](x))


def sincos(dim, length):
    """Sine-cosine embedding of positions 0 … length−1: (length, dim), all sines, then all cosines."""
    omega = 1 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], 1).float()


def sincos_2d(dim, rows, columns):
    """(1, rows·columns, dim): half of the channels encode the column, half the row, as in MAE."""
    column, row = sincos(dim // 2, columns), sincos(dim // 2, rows)
    return torch.cat([column.repeat(rows, 1), row.repeat_interleave(columns, 0)], 1)[None]


def add_positions(x, pos, ids):
    """x (B, n, D) + the position embeddings pos (1, all, D) at ids (B, n). F.embedding, because the gradient of plain
    indexing sums in a nondeterministic order."""
    return x + F.embedding(ids, pos[0])


# --------------------------------------------------------------------------------------- model

class Losses(NamedTuple):
    """What a training pass returns: losses per pair, because MIR and CLS-ER compare pairs; and pooled embeddings."""
    mae_a: torch.Tensor         # B    ℓ_a^r of Eq. 8
    mae_v: torch.Tensor         # B    ℓ_v^r of Eq. 8
    contrastive: torch.Tensor   # B    ℓ^c of Eq. 9
    pooled_a: torch.Tensor      # B,D  c_a before L2 normalization: the memory stores it for ℓ^p
    pooled_v: torch.Tensor      # B,D  c_v


class AudioVideoMAE(nn.Module):
    """E_a, E_v, E_f and D of App. C (N1). No task, memory or selection logic.
    sizes: a Sizes, a Config, or a dictionary of options, as in config.json"""

    def __init__(self, sizes):
        super().__init__()
        if isinstance(sizes, dict):                                # the options in config.json or in a saved model
            sizes = Sizes(**{name: sizes[name] for name in Sizes.__dataclass_fields__ if name in sizes})
        self.sizes = sizes
        self.activation_checkpointing = False
        p, D, Dd = sizes.patch_size, sizes.embed_dim, sizes.decoder_embed_dim
        # E_a, E_v: the modality encoders
        self.patch_embed = nn.ModuleDict({'a': PatchEmbed(p, 1, D), 'v': PatchEmbed(p, 3, D)})
        self.encoder = nn.ModuleDict({
            m: nn.ModuleList(Block(D, sizes.num_heads) for _ in range(sizes.encoder_depth)) for m in 'av'})
        # E_f: the fusion encoder
        self.fusion = nn.ModuleList(FusionBlock(D, sizes.num_heads) for _ in range(sizes.fusion_depth))
        self.norm = nn.ModuleDict({name: nn.LayerNorm(D) for name in ('joint', 'a', 'v')})
        # D: one decoder for both modalities, with a head for each
        self.decoder_embed = nn.Linear(D, Dd)
        self.decoder = nn.ModuleList(Block(Dd, sizes.decoder_num_heads) for _ in range(sizes.decoder_depth))
        self.decoder_norm = nn.LayerNorm(Dd)
        self.head = nn.ModuleDict({'a': nn.Linear(Dd, p * p), 'v': nn.Linear(Dd, p * p * 3)})

        # position embeddings, initialized with sines and cosines, then trained (N3)
        self.pos = self.position_embeddings(D)                     # at the encoders' input
        self.fusion_pos = self.position_embeddings(D)              # at the fusion's input
        self.decoder_pos = self.position_embeddings(Dd)            # at the decoder's input
        # modality embeddings and mask tokens
        self.modality_embed, self.decoder_modality_embed = random_tokens(D), random_tokens(Dd)
        self.mask_token = random_tokens(Dd)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def position_embeddings(self, dim):
        """{'a': (1, M, dim), 'v': (1, N, dim)}. All frames of a video are initialized alike."""
        frames, rows, columns = self.sizes.grid_v
        return nn.ParameterDict({'a': nn.Parameter(sincos_2d(dim, *self.sizes.grid_a)),
                                 'v': nn.Parameter(sincos_2d(dim, rows, columns).repeat(1, frames, 1))})

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Also loads saved models, whose names start with "backbone." or are those of an older version."""
        return super().load_state_dict(backbone_weights(state_dict), *args, **kwargs)

    def forward(self, patches, masks, tau):
        """Eq. 8 and 9 on the patches that a method learns from.

        patches  Patches of κ_a and κ_v patches, in float32
        masks    a Mask of audio and a Mask of video, into these patches
        tau      τ, temperature of Eq. 9
        returns  Losses
        """
        # a Mask has indices into these patches; ids are positions in the clip
        mask_a, mask_v = masks
        ids_keep_a, ids_mask_a = patches.ids_a.gather(1, mask_a.keep), patches.ids_a.gather(1, mask_a.masked)
        ids_keep_v, ids_mask_v = patches.ids_v.gather(1, mask_v.keep), patches.ids_v.gather(1, mask_v.masked)

        # encode the visible patches
        o_a, o_v = self.encode(gather_rows(patches.x_a, mask_a.keep), gather_rows(patches.x_v, mask_v.keep),
                               ids_keep_a, ids_keep_v)

        # reconstruct the masked patches from both modalities: ℓ^r; `checkpointed`: with activation checkpointing
        joint_a, joint_v = self.checkpointed(self.fuse, o_a, o_v, ids_keep_a, ids_keep_v)
        pred_a = self.decode(joint_a, ids_keep_a, ids_mask_a, 'a')
        pred_v = self.decode(joint_v, ids_keep_v, ids_mask_v, 'v')
        mae_a = reconstruction_loss(pred_a, gather_rows(patches.x_a, mask_a.masked))
        mae_v = reconstruction_loss(pred_v, gather_rows(patches.x_v, mask_v.masked))

        # contrast the pooled embeddings of each modality alone: ℓ^c
        c_a, c_v = self.checkpointed(self.pool, o_a, o_v, ids_keep_a, ids_keep_v)
        return Losses(mae_a, mae_v, contrastive_loss(c_a, c_v, tau), c_a, c_v)

    def encode(self, x_a, x_v, ids_a, ids_v):
        """E_a, E_v.  x_a (B, m, p·p) at positions ids_a (B, m); x_v (B, n, p·p·3) at ids_v (B, n)
        → o_a (B, m, D), o_v (B, n, D)"""
        return self.encode_modality(x_a, ids_a, 'a'), self.encode_modality(x_v, ids_v, 'v')

    def encode_modality(self, x, ids, modality):
        """x (B, n, values), ids (B, n) → (B, n, D)"""
        x = self.embed_patches(x, ids, modality)
        for block in self.encoder[modality]:
            x = block(x)
        return x

    def embed_patches(self, x, ids, modality):
        """Eq. 1, plus position and modality embedding (N3): the encoders' input.  x (B, n, values), ids (B, n) →
        (B, n, D)"""
        return add_positions(self.patch_embed[modality](x), self.pos[modality], ids) + self.modality_embed[modality]

    def fuse(self, o_a, o_v, ids_a, ids_v):
        """E_f on both modalities jointly.  → õ_a (B, m, D), õ_v (B, n, D), before E_f's last LayerNorm: the decoder
        applies norm['joint'] to them, the AVM applies its own LayerNorms"""
        x = torch.cat([add_positions(o_a, self.fusion_pos['a'], ids_a),
                       add_positions(o_v, self.fusion_pos['v'], ids_v)], 1)
        for block in self.fusion:
            x = block(x)
        return x.split([o_a.shape[1], o_v.shape[1]], 1)

    def unimodal_tokens(self, o_a, o_v, ids_a, ids_v):
        """E_f(o_a), E_f(o_v) of Eq. 9: each modality alone, with its own LayerNorms.  → (B, m, D), (B, n, D)"""
        a, v = add_positions(o_a, self.fusion_pos['a'], ids_a), add_positions(o_v, self.fusion_pos['v'], ids_v)
        for block in self.fusion:
            a, v = block(a, 'a'), block(v, 'v')
        return self.norm['a'](a), self.norm['v'](v)

    def pool(self, o_a, o_v, ids_a, ids_v):
        """c_a, c_v of Eq. 9: the mean of the unimodal tokens.  → (B, D), (B, D), before L2 normalization"""
        a, v = self.unimodal_tokens(o_a, o_v, ids_a, ids_v)
        return a.mean(1), v.mean(1)

    def decode(self, joint, ids_keep, ids_mask, modality):
        """D(õ) of one modality: predict the masked patches.

        joint (B, visible, D) at positions ids_keep (B, visible); ids_mask (B, masked) → (B, masked, values of a patch)
        The decoder sees visible and masked patches only, and no patches that are not selected (N7).
        """
        visible = self.decoder_embed(self.norm['joint'](joint))
        masked = self.mask_token[modality].expand(*ids_mask.shape, -1).to(visible.dtype)
        x = add_positions(torch.cat([visible, masked], 1), self.decoder_pos[modality],
                          torch.cat([ids_keep, ids_mask], 1)) + self.decoder_modality_embed[modality]
        for block in self.decoder:
            x = block(x)
        return self.head[modality](self.decoder_norm(x[:, ids_keep.shape[1]:]))    # masked patches only

    def checkpointed(self, function, *inputs):
        """function(*inputs), with activation checkpointing if it is on: keep only the inputs for the backward pass, and
        recompute the rest there. Nothing inside is random. The fusion runs twice on the same tokens, once per loss:
        recomputing it saves a quarter of the activations of encoders and fusion, for 4 % more operations. `AVM.match`
        is recomputed too."""
        if not self.activation_checkpointing:
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)

    def embed(self, audio, video):
        """Retrieval embeddings of whole clips, nothing masked.  audio (B, t, f), video (B, T, 3, H, W) float32,
        normalized → c_a, c_v (B, D), L2-normalized"""
        x = patchify(dict(audio=audio, video=video), self.sizes.patch_size)
        o_a, o_v = self.encode(*x)
        c_a, c_v = self.pool(o_a, o_v, x.ids_a, x.ids_v)
        return l2_normalize(c_a), l2_normalize(c_v)


def random_tokens(dim):
    """{'a', 'v': (1, 1, dim)}: a learned vector per modality"""
    return nn.ParameterDict({modality: nn.Parameter(torch.randn(1, 1, dim) * 0.02) for modality in 'av'})


# -------------------------------------------------------------------------------------- losses

def reconstruction_loss(pred, target):
    """Eq. 8 for one modality.  pred, target (B, m, values of a patch) → (B,)

    Each target patch is normalized by its own mean and unbiased variance, as in MAE (N8).
    """
    pred = pred.to(target.dtype)                       # under bf16 autocast, the difference is in float32
    target = target - target.mean(-1, keepdim=True)
    variance = target.square().sum(-1, keepdim=True) / (target.shape[-1] - 1)
    target = target / (variance + 1e-6).sqrt()
    return (pred - target).square().mean((1, 2))


def l2_normalize(c):
    """c (B, D) → (B, D) of length 1, in float32: bf16 is too coarse for cosines divided by τ = 0.05"""
    return F.normalize(c.to(torch.promote_types(c.dtype, torch.float32)), dim=-1)


def contrastive_loss(c_a, c_v, tau):
    """Eq. 9, the mean of both directions (N9).  c_a, c_v (B, D) → (B,)

    The negatives are the other pairs, of all processes.
    """
    c_a, c_v = l2_normalize(c_a), l2_normalize(c_v)
    all_a, all_v = all_gather_with_grad(c_a), all_gather_with_grad(c_v)
    labels = torch.arange(len(c_a), device=c_a.device) + get_rank() * len(c_a)     # this rank's rows among all
    with torch.autocast(c_a.device.type, enabled=False):                           # products in float32
        audio_to_video = F.cross_entropy(c_a @ all_v.T / tau, labels, reduction='none')
        video_to_audio = F.cross_entropy(c_v @ all_a.T / tau, labels, reduction='none')
    return (audio_to_video + video_to_audio) / 2


# ---------------------------------------------------------------- one training pass; compile, count

def run_backbone(cfg, backbone, patches, masks=None):
    """Patches → Losses. masks: a Mask of audio and a Mask of video; None: new random ones"""
    masks = masks or random_masks(cfg, patches)
    return backbone(to_float(patches, cfg.patch_size), masks, cfg.tau)


def loss_per_pair(cfg, losses):
    """ℓ^r + λℓ^c of each pair, (B,): what MIR, GMED and CLS-ER call the loss (N26). cfg.mae_weight 0 removes ℓ^r
    (Fig. 11)."""
    return cfg.mae_weight * (losses.mae_a + losses.mae_v) + cfg.lam * losses.contrastive


def log_dict(losses, **more):
    """Means to log. They stay tensors, because .item() is a host-device sync."""
    parts = dict(mae_a=losses.mae_a, mae_v=losses.mae_v, contrastive=losses.contrastive, **more)
    return {name: part.detach().mean() for name, part in parts.items()}


def compile_blocks(backbone):
    """`--compile`: compile every block → a line to print. Falls back to eager mode with a warning."""
    blocks = [*backbone.encoder['a'], *backbone.encoder['v'], *backbone.fusion, *backbone.decoder]
    x = torch.zeros(2, 3, backbone.sizes.embed_dim, device=backbone.pos['a'].device, requires_grad=True)
    try:
        torch.compile(blocks[0])(x).sum().backward()
    except Exception as error:                         # no compiler, no Triton, an old GPU: many types
        reason = (str(error).splitlines() or [''])[0][:150]
        return f'--compile: eager mode, because torch.compile fails here ({type(error).__name__}: {reason})'
    backbone.zero_grad()
    for block in blocks:
        block.compile()
    return f'--compile: {len(blocks)} blocks are compiled'


def print_parameters(size):
    """Print the parameters of backbone and AVM, part by part, for a name of SIZES (App. D)."""
    from avm import AVM                                # only this report needs it

    sizes = Sizes(**SIZES[size])
    backbone, avm = AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads)
    for title, module in (('backbone', backbone), ('AVM', avm)):
        for name, child in module.named_children():
            print(f'  {name:<24}{num_parameters(child):>13,}')
        number = num_parameters(module)
        print(f'{title:<26}{number:>13,}  = {number * 4 / 2 ** 20:.1f} MiB in float32\n')
    print(f'The AVM adds {num_parameters(avm) / num_parameters(backbone):.2%}.  '
          f'M = {sizes.num_patches_a}, N = {sizes.num_patches_v} patches.')


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == '__main__':
    print_parameters('base')
