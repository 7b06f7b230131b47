"""The pictures of the tour: one function for each stop.

In:  `Seen` of `tour.py`; source: (source_a (M,), source_v (N,)) bool, or (None, None) where it is unknown.
Out: matplotlib figures, 7 inches wide.

A known source has a white outline. Colours of a map range from its minimum (dark) to its maximum (bright), unless a
colour bar says otherwise.
"""
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle

from downstream.pictures import OKABE_ITO, outline, show_frames, show_sound, side_by_side
from paper.plot_style import HATCHES
from patches import IMAGE_MEAN, IMAGE_STD
from selection import select_video

ORANGE, BLUE = OKABE_ITO[0], OKABE_ITO[4]
BLANK = 225              # gray value of patches that are left out
UNKNOWN = None, None     # no source to outline


# ------------------------------------------------------------------------------- what pictures share

def make_rows(cfg, names):
    """Axes (rows, 2): frames left, spectrogram right, with a name a row."""
    widths = [cfg.num_frames * 1.1, 2.6]
    figure, axes = plt.subplots(len(names), 2, squeeze=False, layout='constrained', width_ratios=widths,
                                figsize=(7, 0.5 + len(names) * 6.6 / sum(widths)))
    for axis, name in zip(axes[:, 0], names):
        axis.set_ylabel(name)
    axes[0, 0].set_title('frames, a second apart')
    axes[0, 1].set_title('sound: time →, frequency ↑')
    return figure, axes


def unpatchify_v(cfg, x):
    """x_v (N, p·p·3) → frames (T, 3, H, W)"""
    (T, rows, columns), p = cfg.grid_v, cfg.patch_size
    return x.reshape(T, rows, columns, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(T, 3, rows * p, columns * p)


def unpatchify_a(cfg, x):
    """x_a (M, p·p) → spectrogram (t, f)"""
    (time, freq), p = cfg.grid_a, cfg.patch_size
    return x.reshape(time, freq, p, p).permute(0, 2, 1, 3).reshape(time * p, freq * p)


def show_maps(axes, seen, map_a, map_v, source=UNKNOWN):
    """I (M,) of the clip's spectrogram and (N,) over its frames; None: the clip itself."""
    show_frames(axes[0], seen.cfg, seen.t['video'][0], map_v, source[1])
    show_sound(axes[1], seen.cfg, seen.t['audio'][0], map_a, source[0])
    axes[1].set_facecolor(str(BLANK / 255))               # where a map has no value


def show_frame_patches(axis, cfg, x_v, ids_v, source_v=None):
    """The patches x_v (N, p·p·3) at these positions; the others are blank."""
    shown = torch.full_like(x_v, BLANK)
    shown[ids_v] = x_v[ids_v]
    show_frames(axis, cfg, unpatchify_v(cfg, shown))
    if source_v is not None:
        outline(axis, side_by_side(source_v.reshape(cfg.grid_v), False), cfg.patch_size)


def show_sound_patches(axis, cfg, x_a, ids_a, source_a=None, colours=None):
    """The patches x_a (M, p·p) at these positions; the others are blank. colours: the tensor that sets their range"""
    shown, colours = torch.full_like(x_a, float('nan')), x_a if colours is None else colours
    shown[ids_a] = x_a[ids_a]
    show_sound(axis, cfg, unpatchify_a(cfg, shown))
    axis.get_images()[0].set_clim(colours.min().item(), colours.max().item())
    axis.set_facecolor(str(BLANK / 255))
    if source_a is not None:
        outline(axis, source_a.reshape(cfg.grid_a).T, cfg.patch_size)


def corner_v(cfg, i):
    """Position of a video patch → corner (x, y) of its square in `show_frames`, which has a gap between frames"""
    frame, rest = divmod(i, cfg.grid_v[1] * cfg.grid_v[2])
    row, column = divmod(rest, cfg.grid_v[2])
    return cfg.patch_size * (frame * (cfg.grid_v[2] + 1) + column), cfg.patch_size * row


def corner_a(cfg, i):
    """Position of an audio patch → corner (x, y) of its square in `show_sound`"""
    time, freq = divmod(i, cfg.grid_a[1])
    return cfg.patch_size * time, cfg.patch_size * freq


def frame_patch(axis, cfg, corner):
    """An orange frame around a patch"""
    for colour, width in (('black', 3.2), (ORANGE, 1.8)):
        axis.add_patch(Rectangle(corner, cfg.patch_size, cfg.patch_size, fill=False, edgecolor=colour, linewidth=width))


def cross_out(axis, cfg, corners):
    """A cross over each patch"""
    p, width = cfg.patch_size, min(1, 20 / cfg.grid_a[0])            # thin where patches are small
    for x, y in corners:
        for ends in (((x, x + p), (y, y + p)), ((x, x + p), (y + p, y))):
            axis.plot(*ends, color='black', linewidth=2.4 * width)
            axis.plot(*ends, color='white', linewidth=1.1 * width)


def stacked_bars(axis, bars):
    """bars {name: lengths, one a row}: stacked horizontal bars → the length of each row"""
    left = np.zeros(len(next(iter(bars.values()))))
    for k, (name, lengths) in enumerate(bars.items()):
        axis.barh(range(len(left)), lengths, left=left, color=OKABE_ITO[k], hatch=HATCHES[k], edgecolor='black',
                  linewidth=0.7, label=name)
        left = left + lengths
    axis.figure.legend(*axis.get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
    return left


def most_important(seen):
    """Positions of the clip's patches with the highest I_a and I_v"""
    return seen.t['I_a'][0].argmax().item(), seen.t['I_v'][0].argmax().item()


# ------------------------------------------------------------------------------ stops 1 to 6: Eq. 1-3

def clip(seen, source):
    figure, axes = make_rows(seen.cfg, ['the clip'])
    show_maps(axes[0], seen, None, None, source)
    return figure


def patches(seen, source):
    """The grid of patches, with some of their positions."""
    cfg, p, per_frame = seen.cfg, seen.cfg.patch_size, seen.cfg.grid_v[1] * seen.cfg.grid_v[2]
    figure, axes = make_rows(cfg, ['patches'])
    show_maps(axes[0], seen, None, None)
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


def representation(seen, source):
    """Cosine of each patch's vector with that of the most important patch, before and after the fusion."""
    cfg, (top_a, top_v) = seen.cfg, most_important(seen)
    figure, axes = make_rows(cfg, ['$o$: encoders', r'$\tilde{o}$: fusion'])
    for row, name in zip(axes, ('o', 'joint')):
        x_a, x_v = seen.t[f'{name}_a'][0], seen.t[f'{name}_v'][0]
        show_maps(row, seen, F.cosine_similarity(x_a, x_a[top_a][None]), F.cosine_similarity(x_v, x_v[top_v][None]))
        frame_patch(row[0], cfg, corner_v(cfg, top_v))
        frame_patch(row[1], cfg, corner_a(cfg, top_a))
    return figure


def attention(seen, source):
    """The orange patch is the query; the map is its attention, the mean over heads."""
    cfg, (top_a, top_v) = seen.cfg, most_important(seen)
    figure, axes = make_rows(cfg, ['audio query: $A_v$', 'video query: $A_a$'])
    show_maps(axes[0], seen, None, seen.t['A_v'][0, :, top_a].mean(0), (None, source[1]))
    show_maps(axes[1], seen, seen.t['A_a'][0, :, top_v].mean(0), None, (source[0], None))
    frame_patch(axes[0, 1], cfg, corner_a(cfg, top_a))
    frame_patch(axes[1, 0], cfg, corner_v(cfg, top_v))
    return figure


def importance(seen, source):
    figure, axes = make_rows(seen.cfg, ['$I_v$, $I_a$'])
    show_maps(axes[0], seen, seen.t['I_a'][0], seen.t['I_v'][0], source)
    return figure


def matching(seen, source):
    """ŷ of each pair of the batch, and whose audio the pair has."""
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.33 * len(seen.t['logit'])), layout='constrained')
    names = ['the clip'] + [f'pair {k}' for k in range(1, len(seen.t['logit']))]
    ticks = []
    for k, (prediction, partner) in enumerate(zip(seen.t['logit'].sigmoid().tolist(), seen.t['partner'].tolist())):
        own = partner == k
        axis.barh(k, prediction, color=BLUE if own else ORANGE, hatch='' if own else '///', edgecolor='black',
                  height=0.6)
        axis.annotate(f'{prediction:.2g}', (prediction, k), (4, 0), textcoords='offset points', va='center')
        ticks.append(f'frames of {names[k]}, ' + ('its own audio' if own else f'audio of {names[partner]}'))
    axis.set_yticks(range(len(ticks)), ticks)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.12), xlabel='ŷ: probability that they belong together (hatched: they do not)')
    return figure


# ----------------------------------------------------------------------- stops 7 to 12: the selection

def queries(seen, source):
    """Attention of the current q̂ and of the past q̂ᵖ to the κ most important patches."""
    cfg, t = seen.cfg, seen.t
    figure, axes = make_rows(cfg, ['past clip', 'the clip: top κ', r'$\hat{A}$: current q', r'$\hat{A}^p$: past q'])
    show_frames(axes[0, 0], cfg, seen.past['video'][0])
    show_sound(axes[0, 1], cfg, seen.past['audio'][0])
    show_frame_patches(axes[1, 0], cfg, t['x_v'][0], t['top_v'][0], source[1])
    show_sound_patches(axes[1, 1], cfg, t['x_a'][0], t['top_a'][0], source[0])
    for row, name in zip(axes[2:], ('current', 'past')):
        maps = []
        for n in 'av':
            blank = torch.full_like(t[f'I_{n}'][0], float('nan'))
            maps.append(blank.scatter(0, t[f'top_{n}'][0], t[f'{name}_{n}'][0].mean(0)))
        show_maps(row, seen, *maps, source)
    return figure


def pruning(seen, source):
    """P on a scale from 0 to 1"""
    figure, axes = make_rows(seen.cfg, ['$P_v$, $P_a$'])
    show_maps(axes[0], seen, seen.t['P_a'][0], seen.t['P_v'][0], source)
    for axis in axes[0]:
        axis.get_images()[-1].set_clim(0, 1)
    figure.colorbar(axes[0, 1].get_images()[-1], ax=axes[0, 1], label='P')
    return figure


def coins(seen, source):
    """P, with a cross over each pruned patch"""
    figure = pruning(seen, source)
    for axis, name, corner in zip(figure.axes, ('pruned_v', 'pruned_a'), (corner_v, corner_a)):
        pruned = seen.t[name][0].nonzero()[:, 0].tolist()
        cross_out(axis, seen.cfg, [corner(seen.cfg, i) for i in pruned])
    figure.axes[0].set_ylabel('$F_v$, $F_a$')
    return figure


def video_selection(seen, source):
    """S̃_v of the step, and two more draws with the same I_v and P_v"""
    cfg, t = seen.cfg, seen.t
    torch.manual_seed(1)
    draws = {'the step\'s draw': t['ids_v'][0]}
    for name in ('another draw', 'a third draw'):
        draws[name] = select_video(t['I_v'][:1], t['P_v'][:1], cfg.kappa_v)[0]
    figure, axes = plt.subplots(1, 3, layout='constrained', figsize=(7, 0.4 + 6.4 / 3 / (cfg.num_frames * 1.1)))
    for axis, (name, ids) in zip(axes, draws.items()):
        show_frame_patches(axis, cfg, t['x_v'][0], ids, source[1])
        axis.set_title(name)
    return figure


def chunk_counts(seen):
    """→ unpruned, taken: for each chunk of the clip's audio, how many patches are not pruned, and how many selected"""
    size = seen.cfg.chunk * seen.cfg.grid_a[1]
    unpruned = (1 - seen.t['pruned_a'][0]).reshape(-1, size).sum(1)
    taken = torch.bincount(seen.t['ids_a'][0] // size, minlength=len(unpruned))
    return unpruned.tolist(), taken.tolist()


def audio_selection(seen, source):
    """The chunks, with the turn at which each is drawn. Dots: the chunk that gives only a part of its patches."""
    cfg, t, width = seen.cfg, seen.t, seen.cfg.chunk * seen.cfg.patch_size
    figure, axis = plt.subplots(figsize=(7, 1.9), layout='constrained')
    show_sound_patches(axis, cfg, t['x_a'][0], t['ids_a'][0], source[0])
    cross_out(axis, cfg, [corner_a(cfg, i) for i in t['pruned_a'][0].nonzero()[:, 0].tolist()])
    for k, (unpruned, taken) in enumerate(zip(*chunk_counts(seen))):
        word = 'not' if not taken else 'all' if taken >= unpruned else 'a part'
        axis.add_patch(Rectangle((k * width, 0), width, cfg.mel_bins, fill=False, edgecolor='black', linewidth=1.5,
                                 hatch='...' if word == 'a part' else '', clip_on=False))
        axis.text((k + 0.5) * width, 1.02 * cfg.mel_bins, f'{t["turn"][0, k] + 1}.\n{word}', ha='center',
                  va='bottom', fontsize=7, fontweight='bold' if taken else 'normal')
    axis.set_xlabel('time → ; above each chunk: its turn, and how much of it is taken')
    return figure


def selected(seen, source):
    figure, axes = make_rows(seen.cfg, [r'$\hat{x}_v$, $\hat{x}_a$'])
    show_frame_patches(axes[0, 0], seen.cfg, seen.t['x_v'][0], seen.t['ids_v'][0], source[1])
    show_sound_patches(axes[0, 1], seen.cfg, seen.t['x_a'][0], seen.t['ids_a'][0], source[0])
    return figure


# ------------------------------------------------------------------------ stops 13 to 17: the losses

def denormalize(pred, target):
    """Undo the normalization of each patch (Eq. 8) with its true mean and variance, as MAE's pictures do.
    pred, target (m, values) → (m, values)"""
    return pred * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)


def reconstruction(seen, source):
    """Visible patches, masked patches, and what the decoder predicts for them"""
    cfg, t = seen.cfg, seen.t
    keep_a, keep_v, mask_a, mask_v = (t[f'ids_{name}'][0] for name in ('keep_a', 'keep_v', 'mask_a', 'mask_v'))
    figure, axes = make_rows(cfg, ['the clip', 'visible', 'masked', 'predicted'])
    show_maps(axes[0], seen, None, None, source)
    x_a, x_v = t['x_a'][0], t['x_v'][0]
    pred_a, pred_v = x_a.clone(), x_v.clone()
    pred_a[mask_a] = denormalize(t['pred_a'][0], t['target_a'][0])
    # from normalized values back to bytes
    mean, std = (torch.tensor(values).repeat(cfg.patch_size ** 2) for values in (IMAGE_MEAN, IMAGE_STD))
    pixels = denormalize(t['pred_v'][0], t['target_v'][0]) * std + mean
    pred_v[mask_v] = (255 * pixels).round().clamp(0, 255).byte()
    shown = [(x_a, x_v, keep_a, keep_v), (x_a, x_v, mask_a, mask_v),
             (pred_a, pred_v, torch.cat([keep_a, mask_a]), torch.cat([keep_v, mask_v]))]
    for row, (patches_a, patches_v, ids_a, ids_v) in zip(axes[1:], shown):
        show_frame_patches(row[0], cfg, patches_v, ids_v)
        show_sound_patches(row[1], cfg, patches_a, ids_a, colours=x_a)
    return figure


def similarity(seen, source):
    """Cosines of c_a and c_v of all pairs. The diagonal should be the highest in its row and column."""
    cosine, B = seen.t['cosine'], len(seen.t['audio'])
    names = ['the clip'] + [f'pair {k}' for k in range(1, B)] + ['replayed'] * (len(cosine) - B)
    figure, axis = plt.subplots(figsize=(4.4, 3.4), layout='constrained')
    image = axis.imshow(cosine.numpy(), cmap='cividis', vmin=-1, vmax=1)
    for i, row in enumerate(cosine.tolist()):
        for j, value in enumerate(row):
            axis.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=7, fontweight='bold' if i == j else None,
                      color='white' if value < 0.2 else 'black')
    axis.set_xticks(range(len(names)), names, rotation=35, ha='right')
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel='$c_v$', ylabel='$c_a$')
    figure.colorbar(image, label='cosine')
    return figure


def memory(seen, source):
    """Bytes that FLAVA and FLAVA+ store of the clip"""
    kinds = dict(video='frames', audio='spectrogram', patches_v='frame patches', patches_a='spectrogram patches')
    bars = {kind: [0, 0] for kind in (*kinds.values(), 'I, P, positions, q̂, c')}
    for row, tensors in enumerate(seen.stored.values()):
        for name, size in tensors.items():
            bars[kinds.get(name, 'I, P, positions, q̂, c')][row] += size / 1024
    figure, axis = plt.subplots(figsize=(7, 1.7), layout='constrained')
    for row, length in enumerate(stacked_bars(axis, bars)):
        axis.annotate(f'{1024 * length:,.0f} bytes', (length, row), (4, 0), textcoords='offset points', va='center')
    axis.set_yticks([0, 1], list(seen.stored))
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel('KiB of one pair')
    return figure


def drift(seen, source):
    """c of the past clip as stored and now. ℓ^p is their mean squared distance."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 3), sharex=True, layout='constrained')
    for axis, n in zip(axes, 'av'):
        axis.plot(seen.past[f'pooled_{n}'][0].numpy(), color=BLUE, marker='o', markersize=3, linewidth=1, label='stored')
        axis.plot(seen.past[f'now_{n}'][0].numpy(), color=ORANGE, marker='s', markersize=2.5, linewidth=1, linestyle='--',
                  label='now')
        axis.set_ylabel(f'$c_{n}$')
        axis.grid(alpha=0.25)
    axes[0].legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes[1].set_xlabel('dimension')
    return figure


def loss_terms(cfg):
    """{name in the log: (symbol, weight)} of the terms that make up the loss"""
    return {'mae_a': (r'\ell^r_a', cfg.mae_weight), 'mae_v': (r'\ell^r_v', cfg.mae_weight),
            'contrastive': (r'\ell^c', cfg.lam), 'avm': (r'\mathcal{L}^{avm}', 1.0), 'penalty': (r'\ell^p', cfg.alpha)}


def terms(seen, source):
    """The weighted terms of the loss"""
    figure, axis = plt.subplots(figsize=(7, 1.3), layout='constrained')
    bars = {f'{weight:g} · ${symbol}$': [weight * seen.log[name]]
            for name, (symbol, weight) in loss_terms(seen.cfg).items()}
    total, = stacked_bars(axis, bars)
    axis.annotate(f'{total:.2f}', (total, 0), (4, 0), textcoords='offset points', va='center')
    axis.set_yticks([])
    axis.margins(x=0.08)
    return figure
