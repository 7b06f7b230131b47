"""A clip as a set of patches (§3.1): the ground that everything else stands on.

In:  a batch {audio (B, t, f) float32, video (B, T, 3, H, W) uint8}, and the `Sizes` that fix every shape.
Out: patches and where they are in their clip: all of them (Eq. 1), some (Eq. 7), the masked and the visible (Eq. 8).

A set of patches is always a pair: the patches themselves (B, n, values) and their positions (B, n) in the whole clip.
Whatever is masked, or was not selected, is dropped rather than zeroed: that is where memory and time are saved.

Tour: stops 2, 12 and 13.

Letters, here and everywhere: B pairs in a batch; t, f spectrogram frames and mel bins; T frames of H × W pixels; p the
side of a patch; M, N audio and video patches of a whole clip; κ_a, κ_v those that are kept.
"""
import argparse
import dataclasses
import datetime
import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist


class UserError(Exception):
    """A mistake the user can mend: the message is printed without a traceback, and the exit code is 2."""


def rank():
    """Which of the processes that torchrun started this one is; 0 without it."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@functools.cache
def patient():
    """All processes as a group on the CPU, for waits that may be long: for a slow disk, or a download. Gradients meet
    elsewhere, where whoever is late for long is taken for dead."""
    return dist.new_group(backend='gloo', timeout=datetime.timedelta(hours=6))


def gathered(mine):
    """What each of the processes has, in their order."""
    found = [mine] * world()
    if dist.is_initialized():
        dist.all_gather_object(found, mine, group=patient())
    return found


class _GatherProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        # x was a negative in every process's loss: its gradient is the sum over all of them. The mean over
        # processes that DDP takes afterwards makes it the gradient of the mean loss.
        grad = grad.clone(memory_format=torch.contiguous_format)   # autograd may still need the one it gave
        dist.all_reduce(grad)
        return grad.chunk(world())[rank()]


def gather_processes(x):
    """x (B, ...) of each process → (processes · B, ...) in order of rank, gradients included. Alone: x itself."""
    return _GatherProcesses.apply(x) if dist.is_initialized() else x


# --------------------------------------------------------------------------- options, and what they can be

class Range(NamedTuple):
    """The numbers of a kind, int or float, from low to high, without those of `without`; infinity and NaN are none of
    them. As text, what is said to the user."""
    kind: type
    low: float
    high: float = math.inf
    without: tuple = ()

    def __contains__(self, value):
        return (type(value) in (int, self.kind) and self.low <= value <= self.high
                and value not in (*self.without, math.inf))

    def __str__(self):
        ends = ('over' if self.low in self.without else 'at least') + f' {self.low:,}'
        if self.high < math.inf:
            ends += (' and under' if self.high in self.without else ' and at most') + f' {self.high:,}'
        return 'a whole number, ' * (self.kind is int) + ends

    def read(self, word):
        """An argparse type: a word of a command line → the number."""
        try:
            value = self.kind(word)
        except ValueError:
            value = None
        if value not in self:
            raise argparse.ArgumentTypeError(f'{word} must be {self}')
        return value

    def asked(self, meaning):
        """What `add_argument` is told of an option that can be such numbers."""
        return dict(type=self.read, help=f'{meaning}; {self}')


class Names(tuple):
    """The words that an option can be."""

    def __str__(self):
        return f'one of {", ".join(self)}'


COUNT, MANY = Range(int, 1), Range(int, 1, 10 ** 6)     # MANY: of which lists are made
AT_LEAST_0, CAP = Range(float, 0), Range(int, -1)       # CAP: -1 is for none
POSITIVE, SHARE, PART = Range(float, 0, without=(0,)), Range(float, 0, 1), Range(float, 0, 1, without=(0,))
WORKERS, SWITCH = Range(int, -1, 1000), Range(int, 0, 1)
FRAME_SHIFT = Range(float, 0.0625, 10_000)     # from a sample of 16 kHz to a whole clip
SEED = Range(int, 0, 2 ** 32 - 1)              # products with it must fit into 63 bits


def option(default, meaning, allowed=None, of=''):
    """A field of a configuration. What `--help` says of it stands beside its default, and so does what it can be: a
    Range, Names, or None for any word. of: 'er, mir', the methods, data sets or other circumstances that it has an
    effect on (`config.circumstances`); '' for all."""
    return field(default=default, metadata={'help': meaning, 'allowed': allowed, 'of': of})


def spelled(name):
    """A field's name → the option's"""
    return '--' + name.replace('_', '-')


def check_ranges(options):
    """Every field of a configuration against what it can be, beside its default. Raises UserError that names the
    option, its value and what is allowed."""
    for each in dataclasses.fields(options):
        value, allowed = getattr(options, each.name), each.metadata['allowed']
        if value != each.default and (value not in allowed if allowed else not isinstance(value, each.type)):
            raise UserError(f'{spelled(each.name)} {value} must be {allowed or f"of type {each.type.__name__}"}')


# ---------------------------------------------------------------------------------------- sizes

@dataclass
class Sizes:
    """Every number that a tensor's shape depends on. The defaults are the paper's (`--size base`)."""
    image_size: int = option(224, 'H = W, pixels; App. B', COUNT)
    num_frames: int = option(4, 'T, frames one second apart', COUNT)
    audio_frames: int = option(1024, 't, spectrogram frames: ten seconds and a little', COUNT)
    mel_bins: int = option(128, 'f, spectrogram bins', Range(int, 4))
    frame_shift: float = option(10.0, 'milliseconds from one spectrogram frame to the next', FRAME_SHIFT)
    patch_size: int = option(16, 'p; §3.1', COUNT)
    embed_dim: int = option(768, 'D, the width of ViT-B', COUNT)
    num_heads: int = option(12, 'heads of E_a, E_v and E_f', COUNT)
    encoder_depth: int = option(10, 'blocks of E_a, and again of E_v; App. C', COUNT)
    fusion_depth: int = option(2, 'blocks of E_f; App. C', COUNT)
    decoder_embed_dim: int = option(512, 'width of the decoder D; App. C', COUNT)
    decoder_depth: int = option(8, 'blocks of the decoder', COUNT)
    decoder_num_heads: int = option(16, 'heads of the decoder', COUNT)
    avm_heads: int = option(12, 'H, heads of the AVM; App. D', COUNT)

    @property
    def grid_a(self):
        """(⌊t/p⌋, ⌊f/p⌋): audio patches are counted along time first, so one time step is a run of ⌊f/p⌋."""
        return self.audio_frames // self.patch_size, self.mel_bins // self.patch_size

    @property
    def grid_v(self):
        """(T, ⌊H/p⌋, ⌊W/p⌋)"""
        return self.num_frames, self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def num_patches_a(self):
        """M"""
        return math.prod(self.grid_a)

    @property
    def num_patches_v(self):
        """N"""
        return math.prod(self.grid_v)


SIZES = {   # --size NAME
    'base': {},
    'small': dict(image_size=96, num_frames=2, audio_frames=256, mel_bins=64, frame_shift=15.5,
                  embed_dim=64, num_heads=4, encoder_depth=3, fusion_depth=1,
                  decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4, avm_heads=4),
}


def count(share, patches):
    """⌊share · patches⌋, spared from 0.2 · 40 = 7.999…"""
    return int(share * patches + 1e-6)


# -------------------------------------------------------------------------------------- cutting

def patchify_a(audio, p):
    """audio (B, t, f) → x_a (B, M, p·p): time-major, and inside a patch (time, frequency)."""
    B, t, f = audio.shape
    x = audio[:, :t // p * p, :f // p * p].reshape(B, t // p, p, f // p, p)
    return x.permute(0, 1, 3, 2, 4).reshape(B, -1, p * p)


def patchify_v(video, p):
    """video (B, T, 3, H, W) → x_v (B, N, p·p·3): frame after frame, inside a patch (row, column, channel)."""
    B, T, C, H, W = video.shape
    x = video[..., :H // p * p, :W // p * p].reshape(B, T, C, H // p, p, W // p, p)
    return x.permute(0, 1, 3, 5, 4, 6, 2).reshape(B, -1, p * p * C)


def all_positions(x):
    """The positions (B, n) of patches x (B, n, ...) of which none is missing: 0 … n−1 in every row."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)


class Patches(NamedTuple):
    """Patches to learn from, and where they are in their clips."""
    x_a: torch.Tensor      # B,κ_a,p·p     normalized
    x_v: torch.Tensor      # B,κ_v,p·p·3   uint8 until `normalized`, then float32
    kept_a: torch.Tensor   # B,κ_a         S̃_a
    kept_v: torch.Tensor   # B,κ_v         S̃_v


def whole(batch, p):
    """A batch → all of its Patches: κ_a = M, κ_v = N."""
    x_a, x_v = patchify_a(batch['audio'], p), patchify_v(batch['video'], p)
    return Patches(x_a, x_v, all_positions(x_a), all_positions(x_v))


# ---------------------------------------------------------------------------- frames as numbers

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # Table 6, of red, green, blue in [0, 1]


@functools.cache
def image_statistics(device):
    """IMAGE_MEAN and IMAGE_STD (3,) on a device, sent there once: each sending makes the host wait for the device."""
    return torch.tensor(IMAGE_MEAN, device=device), torch.tensor(IMAGE_STD, device=device)


def normalize_frames(frames):
    """(..., 3, H, W) uint8, a quarter of the bytes in a memory and on the way to a device → float32, normalized."""
    mean, std = (x.view(3, 1, 1) for x in image_statistics(frames.device))
    return frames.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)    # in place: it is four times the bytes


def normalized(patches, p):
    """Frames stay bytes in batches and memory, and become numbers of the network's range only here. What is none any
    more is left as it is."""
    if patches.x_v.dtype != torch.uint8:
        return patches
    mean, std = (x.repeat(p * p) for x in image_statistics(patches.x_v.device))    # the channel is the innermost
    return patches._replace(x_v=patches.x_v.float().div_(255).sub_(mean).div_(std))


# ------------------------------------------------------------------------------ choosing, joining

def gather(x, index):
    """x (B, n, ...), index (B, k) → (B, k, ...): for each sample its own choice of rows."""
    B, n = x.shape[:2]
    rows = index + torch.arange(0, B * n, n, device=x.device)[:, None]          # of x as one list of rows, which is
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)   # copied row by row


def chosen(patches, kept_a, kept_v):
    """Eq. 7: of Patches that hold whole clips, x̂_a (B, κ_a, p·p) and x̂_v (B, κ_v, p·p·3), those at S̃_a, S̃_v."""
    return Patches(gather(patches.x_a, kept_a), gather(patches.x_v, kept_v), kept_a, kept_v)


def joined(now, past):
    """Current and replayed pairs in one batch."""
    return Patches(*(torch.cat([n, p]) for n, p in zip(now, past)))


# -------------------------------------------------------------------------------------- masking

def draw_visible(kept, num_visible):
    """The random mask of Eq. 8: which of the kept patches the encoders see.

    kept (B, κ)  positions  →  slots (B, num_visible) and (B, κ − num_visible) into `kept`:
    the visible patches and the ones to be reconstructed. Every subset is equally likely.
    """
    order = torch.rand(kept.shape, device=kept.device).argsort(1)
    return order[:, :num_visible], order[:, num_visible:]


def draw_masks(cfg, patches):
    """The masks of Eq. 8, for audio and for video. The masked share is of *all* patches, kept or not (readings)."""
    return (draw_visible(patches.kept_a, count(1 - cfg.mask_ratio, cfg.num_patches_a)),
            draw_visible(patches.kept_v, count(1 - cfg.mask_ratio, cfg.num_patches_v)))
