"""The pictures of the tour.

In:  the `Clip`, and the tensors that a stop computes, of this clip alone.
Out: matplotlib figures, 7 inches wide.

Most pictures are `rows` of the same two panels: frames left, spectrogram right. A panel shows the clip itself, a map
with one number a patch, or some of the patches. The true source has a white outline.
"""
import functools
import io
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from config import Config
from downstream.pictures import show_frames, show_sound
from paper.plot_style import PRINT
from patches import IMAGE_MEAN, IMAGE_STD, Patches, patchify

BLANK = 225                                    # gray value of patches that are left out


class Clip(NamedTuple):
    """One clip, without a batch dimension."""
    cfg: Config
    patches: Patches       # x_a (M, p·p), x_v (N, p·p·3) uint8; ids: all
    source_a: torch.Tensor | None   # M, bool: patches of the true source; None where it is unknown
    source_v: torch.Tensor | None   # N, bool


def first_clip(cfg, batch, source=(None, None)):
    """The first pair of a batch → Clip"""
    return Clip(cfg, Patches(*(x[0] for x in patchify(batch, cfg.patch_size))), *source)


def picture(make):
    """Decorator: a figure with the font sizes of print, which a notebook shows as a PNG."""
    @functools.wraps(make)
    def made(*args, **options):
        with plt.rc_context(PRINT):
            figure = make(*args, **options)
            plt.close(figure)                          # or the notebook shows it twice
        figure._repr_png_ = functools.partial(png, figure)
        return figure
    return made


def png(figure):
    """→ bytes of a PNG file"""
    file = io.BytesIO()
    with plt.rc_context(PRINT):
        figure.savefig(file, dpi=100, metadata={'Software': None}, pil_kwargs={'optimize': True})
    return file.getvalue()


# ------------------------------------------------------------------------------- what pictures share

def unpatchify_v(cfg, x):
    """x_v (N, p·p·3) → frames (T, 3, H, W)"""
    (T, rows, columns), p = cfg.grid_v, cfg.patch_size
    return x.reshape(T, rows, columns, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(T, 3, rows * p, columns * p)


def unpatchify_a(cfg, x):
    """x_a (M, p·p) → spectrogram (t, f)"""
    (time, freq), p = cfg.grid_a, cfg.patch_size
    return x.reshape(time, freq, p, p).permute(0, 2, 1, 3).reshape(time * p, freq * p)


def panel(axis, clip, modality, content=None, outlined=False):
    """Frames ('v') or spectrogram ('a'): the clip itself if content is None; a map (n,), NaN where it has no value; or
    (x, ids): these of the patches x (n, values). outlined: whether to outline the true source"""
    x, source = (clip.patches.x_a, clip.source_a) if modality == 'a' else (clip.patches.x_v, clip.source_v)
    low, high = x.min().item(), x.max().item()
    x, ids = content if isinstance(content, tuple) else (x, slice(None))
    heat = content if torch.is_tensor(content) else None
    shown = torch.full_like(x, float('nan') if modality == 'a' else BLANK)
    shown[ids] = x[ids]
    if modality == 'v':
        show_frames(axis, clip.cfg, unpatchify_v(clip.cfg, shown), heat, source if outlined else None)
    else:
        show_sound(axis, clip.cfg, unpatchify_a(clip.cfg, shown), heat, source if outlined else None)
        axis.set_facecolor(str(BLANK / 255))
        if heat is None:                               # all spectrograms have the colours of the clip
            axis.get_images()[0].set_clim(low, high)
        else:                                          # where a map has no value
            axis.patch.set(hatch='////', edgecolor='silver')


@picture
def rows(clip, contents, outlined=True, scale='', limits=None):
    """contents {name of a row: (of the frames, of the spectrogram)}, as for `panel` → figure

    outlined: whether panels other than the clip itself outline the source
    scale: the maps in a column share their colours, and get a colour bar with this label; limits: their (min, max)
    """
    widths = [clip.cfg.num_frames * 1.1, 2.6]
    height = 0.5 + len(contents) * 6.6 / sum(widths) + (0.5 if scale else 0)
    figure, axes = plt.subplots(len(contents), 2, squeeze=False, layout='constrained', width_ratios=widths,
                                figsize=(7, height))
    axes[0, 0].set_title('frames, a second apart')
    axes[0, 1].set_title('sound: time →, frequency ↑')
    for row, name in zip(axes, contents):
        row[0].set_ylabel(name)
    for column, modality in enumerate('va'):
        images = []
        for axis, row in zip(axes[:, column], contents.values()):
            panel(axis, clip, modality, row[column], outlined and row[column] is not None)
            images += axis.get_images()[-1:] if torch.is_tensor(row[column]) else []
        # one scale and one colour bar for all maps of the column
        if scale:
            values = np.concatenate([image.get_array().compressed() for image in images])
            for image in images:
                image.set_clim(*(limits or (np.nanmin(values), np.nanmax(values))))
            figure.colorbar(images[0], ax=axes[:, column], location='bottom', label=scale, aspect=45, pad=0.03)
    return figure


def queries(clip, past_clip, top_a, top_v, current, past):
    """Logits of the current q̂ and of the past q̂ᵖ on the κ most important patches. current, past: (audio, video)"""
    def spread(logits, top, x):
        return torch.full((len(x),), float('nan')).scatter(0, top, logits.mean(0))     # mean over heads
    (x_a, x_v), (past_x_a, past_x_v), every = clip.patches[:2], past_clip.patches[:2], slice(None)
    return rows(clip, {
        'past clip': ((past_x_v, every), (past_x_a, every)),
        'the clip: top κ': ((x_v, top_v), (x_a, top_a)),
        r'$\hat{A}$: current q': (spread(current[1], top_v, x_v), spread(current[0], top_a, x_a)),
        r'$\hat{A}^p$: past q': (spread(past[1], top_v, x_v), spread(past[0], top_a, x_a))},
        outlined=False, scale='attention logit')


def denormalize(pred, target):
    """Undo the normalization of each patch (Eq. 8) with its true mean and variance, as MAE's pictures do.
    pred, target (m, values) → (m, values)"""
    return pred * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)


def reconstruction(clip, keep, mask, pred, target):
    """Visible patches, masked patches, and what the decoder predicts for them. All arguments: (audio, video)"""
    x_a, x_v = clip.patches[:2]
    pred_a, pred_v = x_a.clone(), x_v.clone()
    pred_a[mask[0]] = denormalize(pred[0].detach(), target[0])
    # from normalized values back to bytes
    mean, std = (torch.tensor(values).repeat(clip.cfg.patch_size ** 2) for values in (IMAGE_MEAN, IMAGE_STD))
    pixels = denormalize(pred[1].detach(), target[1]) * std + mean
    pred_v[mask[1]] = (255 * pixels).round().clamp(0, 255).byte()
    both_a, both_v = torch.cat([keep[0], mask[0]]), torch.cat([keep[1], mask[1]])
    return rows(clip, {'the clip': (None, None), 'visible': ((x_v, keep[1]), (x_a, keep[0])),
                       'masked': ((x_v, mask[1]), (x_a, mask[0])),
                       'visible and predicted': ((pred_v, both_v), (pred_a, both_a))}, outlined=False)


@picture
def similarity(cosine, B):
    """Cosines of c_a and c_v of all pairs. The diagonal should be the highest in its row and column. cosine (n, n)"""
    names = ['the clip'] + [f'pair {k}' for k in range(1, B)] + ['replayed'] * (len(cosine) - B)
    figure, axis = plt.subplots(figsize=(4.4, 3.4), layout='constrained')
    image = axis.imshow(cosine.detach().numpy(), cmap='cividis')
    middle = sum(image.get_clim()) / 2
    for i, row in enumerate(cosine.tolist()):
        for j, value in enumerate(row):
            axis.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=7, fontweight='bold' if i == j else None,
                      color='white' if value < middle else 'black')
    axis.set_xticks(range(len(names)), names, rotation=35, ha='right')
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel='$c_v$', ylabel='$c_a$')
    figure.colorbar(image, label='cosine')
    return figure
