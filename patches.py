"""A clip as a set of patches (§3.1, Eq. 1), the selected patches (Eq. 7), and random masking (Eq. 8).

In:  a batch {'audio': (B, t, f) float32, 'video': (B, T, 3, H, W) uint8}.
Out: Patches: the patches of each clip, and the position of each patch in its clip.

Patches that are masked or not selected are dropped, not set to zero. That saves memory and time.

Shapes, in all files:
    B     pairs in a batch                        p        side of a patch
    D     embedding dimension                     H, d     attention heads, and dimension of a head: D = H·d
    t, f  spectrogram frames and mel bins         M, N     audio and video patches of a whole clip
    T     video frames of H × W pixels            κ_a, κ_v selected audio and video patches
As in the paper, H is also the height of a frame, D the decoder, and T the number of tasks.

Tour: stops 2, 12 and 13 of docs/tour/README.md. N1, N2, … are notes of docs/paper-notes.md.
"""
import functools
from typing import NamedTuple

import torch

from config import num_kept

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # Table 6: of red, green, blue in [0, 1]


class Patches(NamedTuple):
    """Patches of a batch, and where they are in their clips."""
    x_a: torch.Tensor      # B,κ_a,p·p     normalized log mel energies
    x_v: torch.Tensor      # B,κ_v,p·p·3   uint8; float32 and normalized after `to_float`
    ids_a: torch.Tensor    # B,κ_a         positions in 0 … M−1: S̃_a of Eq. 7
    ids_v: torch.Tensor    # B,κ_v         positions in 0 … N−1: S̃_v


class Mask(NamedTuple):
    """A random mask of one modality, as indices into the patches that a method learns from."""
    keep: torch.Tensor     # B,n           visible to the encoders
    masked: torch.Tensor   # B,κ−n         the decoder predicts them


# ------------------------------------------------------------------------------ Eq. 1: cut patches

def patchify_a(audio, p):
    """audio (B, t, f) → x_a (B, M, p·p): time-major; inside a patch (time, frequency) (N2)."""
    B, t, f = audio.shape
    x = audio[:, :t // p * p, :f // p * p].reshape(B, t // p, p, f // p, p)
    return x.permute(0, 1, 3, 2, 4).reshape(B, -1, p * p)


def patchify_v(video, p):
    """video (B, T, 3, H, W) → x_v (B, N, p·p·3): frame by frame; inside a patch (row, column, channel)."""
    B, T, C, H, W = video.shape
    x = video[..., :H // p * p, :W // p * p].reshape(B, T, C, H // p, p, W // p, p)
    return x.permute(0, 1, 3, 5, 4, 6, 2).reshape(B, -1, p * p * C)


def all_ids(x):
    """x (B, n, ...): all patches of whole clips → their positions 0 … n−1, (B, n)"""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)


def patchify(batch, p):
    """A batch → Patches of whole clips: κ_a = M, κ_v = N."""
    x_a, x_v = patchify_a(batch['audio'], p), patchify_v(batch['video'], p)
    return Patches(x_a, x_v, all_ids(x_a), all_ids(x_v))


# ------------------------------------------------------------------------- Eq. 7: selected patches

def gather_rows(x, ids):
    """x (B, n, ...), ids (B, k) → (B, k, ...): for each sample its own rows."""
    B, n = x.shape[:2]
    # one flat list of rows: index_select copies whole rows, which is faster than torch.gather
    rows = ids + torch.arange(0, B * n, n, device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, ids.shape)


def gather_patches(patches, ids_a, ids_v):
    """Eq. 7: x̂_a (B, κ_a, p·p), x̂_v (B, κ_v, p·p·3). patches: of whole clips; ids_a, ids_v: S̃_a, S̃_v"""
    return Patches(gather_rows(patches.x_a, ids_a), gather_rows(patches.x_v, ids_v), ids_a, ids_v)


def concat_patches(current, past):
    """Current and replayed pairs as one batch, current pairs first."""
    return Patches(*(torch.cat(pair) for pair in zip(current, past)))


# ------------------------------------------------------------------------- Eq. 8: random masking

def random_masking(ids, num_visible):
    """ids (B, κ) of the selected patches, for their shape alone → Mask of num_visible visible and κ − num_visible
    masked patches. Every subset is equally likely (N6)."""
    order = torch.rand(ids.shape, device=ids.device).argsort(1)
    return Mask(order[:, :num_visible], order[:, num_visible:])


def random_masks(cfg, patches):
    """A Mask of audio and a Mask of video. The mask ratio is of all patches of a clip, selected or not (N7)."""
    # num_kept(ratio, n) = ⌊ratio · n⌋
    return (random_masking(patches.ids_a, num_kept(1 - cfg.mask_ratio, cfg.num_patches_a)),
            random_masking(patches.ids_v, num_kept(1 - cfg.mask_ratio, cfg.num_patches_v)))


# ------------------------------------------------------------------------------ pixels as floats

@functools.cache
def image_statistics(device):
    """IMAGE_MEAN and IMAGE_STD, (3,) each, on a device. Cached: each copy to a GPU is a host-device sync."""
    return torch.tensor(IMAGE_MEAN, device=device), torch.tensor(IMAGE_STD, device=device)


def normalize_frames(frames):
    """frames (..., 3, H, W) uint8 → float32, normalized"""
    mean, std = (x.view(3, 1, 1) for x in image_statistics(frames.device))
    return (frames.float() / 255 - mean) / std


def to_float(patches, p):
    """Patches with x_v in uint8 → x_v in float32, normalized. Frames stay uint8 in batches and in the memory, a quarter
    of the bytes, until here."""
    if patches.x_v.dtype != torch.uint8:               # GMED edits and LUMP mixes clips in float32
        return patches
    mean, std = (x.repeat(p * p) for x in image_statistics(patches.x_v.device))    # the channel is innermost
    return patches._replace(x_v=patches.x_v.float().div_(255).sub_(mean).div_(std))
