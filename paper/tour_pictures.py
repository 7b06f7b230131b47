"""The pictures of the tour.

In:  the `Clip`, and the tensors that a stop computes, of this clip alone.
Out: matplotlib figures, 7 inches wide.

Most pictures are `rows` of the same two panels: frames left, spectrogram right. A panel shows the clip itself, a map
with one number a patch, or some of the patches. The true source has a white outline. The others have a function each.
"""
import functools
import io
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle

from config import Config
from downstream.pictures import OKABE_ITO, show_frames, show_sound
from paper.plot_style import HATCHES, PRINT, bars, legend_below
from patches import IMAGE_MEAN, IMAGE_STD, Patches, patchify

ORANGE, BLUE = OKABE_ITO[0], OKABE_ITO[4]
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


def corner_v(cfg, i):
    """Position of a video patch → corner (x, y) of its square in `show_frames`, which has a gap between frames"""
    frame, row, column = np.unravel_index(int(i), cfg.grid_v)
    return cfg.patch_size * (frame * (cfg.grid_v[2] + 1) + column), cfg.patch_size * row


def corner_a(cfg, i):
    """Position of an audio patch → corner (x, y) of its square in `show_sound`"""
    time, freq = divmod(int(i), cfg.grid_a[1])
    return cfg.patch_size * time, cfg.patch_size * freq


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


def make_rows(clip, contents, outlined=True, scale='', limits=None):
    """contents {name of a row: (of the frames, of the spectrogram)}, as for `panel` → figure, axes (rows, 2)

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
    return figure, axes


@picture
def rows(clip, contents, **options):
    """`make_rows`, without its axes"""
    return make_rows(clip, contents, **options)[0]


def frame_patch(axis, cfg, corner):
    """An orange frame around a patch"""
    for colour, width in (('black', 3.2), (ORANGE, 1.8)):
        axis.add_patch(Rectangle(corner, cfg.patch_size, cfg.patch_size, fill=False, edgecolor=colour, linewidth=width))


def stacked_bars(parts, names, total, xlabel=''):
    """parts {part: lengths, one a name} → a figure with a stacked bar for each name. total: the format of its length"""
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.4 * len(names)), layout='constrained')
    left = np.zeros(len(names))
    for k, (part, lengths) in enumerate(parts.items()):
        axis.barh(range(len(names)), lengths, left=left, color=OKABE_ITO[k], hatch=HATCHES[k], edgecolor='black',
                  linewidth=0.7, label=part)
        left = left + lengths
    for row, length in enumerate(left):
        axis.annotate(total.format(length), (length, row), (4, 0), textcoords='offset points', va='center')
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel(xlabel)
    legend_below(figure, axis)
    return figure


def pair_names(number):
    """→ names of the pairs of a batch"""
    return ['the clip'] + [f'pair {k}' for k in range(1, number)]


# ------------------------------------------------------------------------------ stops 1 to 6: Eq. 1-3

@picture
def patches(clip):
    """The grid of patches, with some of their positions."""
    cfg, p, per_frame = clip.cfg, clip.cfg.patch_size, clip.cfg.grid_v[1] * clip.cfg.grid_v[2]
    figure, axes = make_rows(clip, {'patches': (None, None)})
    numbered_v = [frame * per_frame + k for frame in range(cfg.num_frames)
                  for k in (0, 1, cfg.grid_v[2], per_frame - 1)]
    numbered_a = [0, 1, cfg.grid_a[1], cfg.num_patches_a - 1]
    for axis, corner, n, numbered in ((axes[0, 0], corner_v, cfg.num_patches_v, numbered_v),
                                      (axes[0, 1], corner_a, cfg.num_patches_a, numbered_a)):
        for i in range(n):
            x, y = corner(cfg, i)
            axis.add_patch(Rectangle((x, y), p, p, fill=False, edgecolor='white', linewidth=0.6))
            if i in numbered:
                axis.text(x + p / 2, y + p / 2, str(i), ha='center', va='center', fontsize=6,
                          bbox=dict(facecolor='white', edgecolor='none', pad=0.6))
    return figure


@picture
def representation(clip, best_a, best_v, o_a, o_v, joint_a, joint_v):
    """Cosine of each patch with the framed one, before and after the fusion."""
    cosines = {name: (F.cosine_similarity(v, v[best_v][None]), F.cosine_similarity(a, a[best_a][None]))
               for name, a, v in (('$o$: encoders', o_a, o_v), (r'$\tilde{o}$: fusion', joint_a, joint_v))}
    figure, axes = make_rows(clip, cosines, outlined=False, scale='cosine with the framed patch')
    for row in axes:
        frame_patch(row[0], clip.cfg, corner_v(clip.cfg, best_v))
        frame_patch(row[1], clip.cfg, corner_a(clip.cfg, best_a))
    return figure


@picture
def attention(clip, best_a, best_v, A_a, A_v):
    """The framed patch is the query. The map is its attention, the mean over heads."""
    figure, axes = make_rows(clip, {'audio query: $A_v$': (A_v[:, best_a].mean(0), None),
                                    'video query: $A_a$': (None, A_a[:, best_v].mean(0))})
    frame_patch(axes[0, 1], clip.cfg, corner_a(clip.cfg, best_a))
    frame_patch(axes[1, 0], clip.cfg, corner_v(clip.cfg, best_v))
    return figure


@picture
def matching(logit, partner):
    """ŷ of each pair of the batch, and whose audio the pair has."""
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.33 * len(logit)), layout='constrained')
    names, own = pair_names(len(logit)), partner == torch.arange(len(partner))
    labels = [f'frames of {name}, ' + ('its own audio' if same else f'audio of {names[other]}')
              for name, same, other in zip(names, own, partner)]
    bars(axis, labels, [(probability, None) for probability in logit.sigmoid().tolist()],
         [BLUE if same else ORANGE for same in own], 'ŷ: probability that they belong together', 2)
    return figure


# ----------------------------------------------------------------------- stops 7 to 12: the selection

@picture
def queries(clip, past_clip, top_a, top_v, current, past):
    """Logits of the current q̂ and of the past q̂ᵖ on the κ most important patches. current, past: (audio, video)"""
    def spread(logits, top, x):
        return torch.full((len(x),), float('nan')).scatter(0, top, logits.mean(0))     # mean over heads
    (x_a, x_v), (past_x_a, past_x_v), every = clip.patches[:2], past_clip.patches[:2], slice(None)
    return make_rows(clip, {
        'past clip': ((past_x_v, every), (past_x_a, every)),
        'the clip: top κ': ((x_v, top_v), (x_a, top_a)),
        r'$\hat{A}$: current q': (spread(current[1], top_v, x_v), spread(current[0], top_a, x_a)),
        r'$\hat{A}^p$: past q': (spread(past[1], top_v, x_v), spread(past[0], top_a, x_a))},
        outlined=False, scale='attention logit')[0]


@picture
def video_selection(clip, *draws):
    """S̃_v (κ_v,) of the step, and of more draws with the same I_v and P_v"""
    figure, axes = plt.subplots(1, len(draws), layout='constrained',
                                figsize=(7, 0.4 + 6.4 / len(draws) / (clip.cfg.num_frames * 1.1)))
    for k, (axis, ids) in enumerate(zip(axes, draws)):
        panel(axis, clip, 'v', (clip.patches.x_v, ids), outlined=True)
        axis.set_title(f'draw {k + 1}' + (': the step\'s' if k == 0 else ''))
    return figure


@picture
def audio_selection(clip, weight, pruned, ids, turn):
    """Algorithm 2 from top to bottom: weights of the chunks and their turns; unpruned patches; selected patches.
    weight, turn (chunks,); pruned (M,); ids (κ_a,)"""
    cfg, x_a, width = clip.cfg, clip.patches.x_a, clip.cfg.chunk * clip.cfg.patch_size
    figure, axes = plt.subplots(3, 1, figsize=(7, 4), sharex=True, layout='constrained')
    centres = (np.arange(len(weight)) + 0.5) * width
    axes[0].bar(centres, weight.tolist(), 0.9 * width, color=BLUE)
    for x, value, k in zip(centres, weight.tolist(), turn.tolist()):
        axes[0].annotate(f'turn {k}', (x, value), (0, 2), textcoords='offset points', ha='center', fontsize=7)
    axes[0].set(ylabel='mean $I_a$', yticks=[])
    axes[0].margins(y=0.25)
    panel(axes[1], clip, 'a', (x_a, pruned == 0))
    panel(axes[2], clip, 'a', (x_a, ids))
    axes[1].set_ylabel('not pruned')
    axes[2].set_ylabel('selected')
    for axis in axes:                                  # borders of the chunks
        axis.tick_params(length=0)
        for k in range(1, len(weight)):
            axis.axvline(k * width, color='black', linewidth=0.8)
    axes[2].set_xticks(centres, [f'chunk {k}' for k in range(len(weight))])
    return figure


# ------------------------------------------------------------------------ stops 13 to 17: the losses

def denormalize(pred, target):
    """Undo the normalization of each patch (Eq. 8) with its true mean and variance, as MAE's pictures do.
    pred, target (m, values) → (m, values)"""
    return pred * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)


@picture
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
    return make_rows(clip, {'the clip': (None, None), 'visible': ((x_v, keep[1]), (x_a, keep[0])),
                            'masked': ((x_v, mask[1]), (x_a, mask[0])),
                            'predicted': ((pred_v, both_v), (pred_a, both_a))}, outlined=False)[0]


@picture
def similarity(cosine, B):
    """Cosines of c_a and c_v of all pairs. The diagonal should be the highest in its row and column. cosine (n, n)"""
    names = pair_names(B) + ['replayed'] * (len(cosine) - B)
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


@picture
def memory(stored):
    """Bytes that each method stores of a pair. stored {method: {name of a tensor: bytes}}"""
    kinds = dict(video='frames', audio='spectrogram', patches_v='frame patches', patches_a='spectrogram patches')
    other = 'I, P, positions, q̂, c'
    parts = {kind: [0] * len(stored) for kind in (*kinds.values(), other)}
    for row, tensors in enumerate(stored.values()):
        for name, size in tensors.items():
            parts[kinds.get(name, other)][row] += size
    return stacked_bars(parts, list(stored), '{:,.0f} bytes', 'bytes of one pair')


@picture
def drift(stored, now):
    """c of the past clip as stored and now. ℓ^p is their mean squared distance. stored, now: (c_a, c_v), (D,) each"""
    figure, axes = plt.subplots(2, 1, figsize=(7, 3), sharex=True, layout='constrained')
    for axis, n, then, after in zip(axes, 'av', stored, now):
        axis.plot(then.numpy(), color=BLUE, marker='o', markersize=3, linewidth=1, label='stored')
        axis.plot(after.detach().numpy(), color=ORANGE, marker='s', markersize=2.5, linewidth=1, linestyle='--',
                  label='now')
        axis.set_ylabel(f'$c_{n}$')
        axis.grid(alpha=0.25)
    axes[0].legend(loc='lower right', ncols=2, frameon=False)
    axes[1].set_xlabel('dimension')
    return figure


@picture
def terms(weighted):
    """The terms of the loss, each times its weight. weighted {symbol: number}"""
    return stacked_bars({f'${symbol}$': [value] for symbol, value in weighted.items()}, ['loss'], '{:.2f}')
