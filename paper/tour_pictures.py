"""The pictures of the tour: a function a stop, each of the very tensors that the step computed.

In:  `Seen` of `tour_step.py`; truth (M,), (N,) bool where the source is known, else None, None.
Out: matplotlib figures, 7 inches wide, as a page of print is. A known source is outlined in white.

Each map goes from dark to bright between its own least and greatest value, unless a scale stands beside it.
"""
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

import selection
from downstream.pictures import OKABE_ITO, outline, show_frames, show_sound, side_by_side
from patches import IMAGE_MEAN, IMAGE_STD
from paper.looks import HATCHES
from paper.tour_step import turns, weighted

ORANGE, BLUE = OKABE_ITO[0], OKABE_ITO[4]
BLANK = '#e1e1e1'   # what is left out; in frames the byte 225
DRAWS = 3   # of Eq. 6, the step's own included


# ------------------------------------------------------------------------------- what pictures share

def rows(cfg, names):
    """Axes (rows, 2), frames to the left and sound to the right, with a name a row."""
    width = cfg.num_frames * 1.1 + 2.6
    figure, axes = plt.subplots(len(names), 2, squeeze=False, layout='constrained',
                                figsize=(7, 0.5 + len(names) * 6.6 / width),
                                width_ratios=[cfg.num_frames * 1.1, 2.6])
    for axis, name in zip(axes[:, 0], names):
        axis.set_ylabel(name)
    axes[0, 0].set_title('frames, a second apart')
    axes[0, 1].set_title('sound: time →, frequency ↑')
    return figure, axes


def as_frames(cfg, x):
    """x_v (N, p·p·3) → (T, 3, H, W)"""
    (T, rows_, columns), p = cfg.grid_v, cfg.patch_size
    return x.reshape(T, rows_, columns, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(T, 3, rows_ * p, columns * p)


def as_sound(cfg, x):
    """x_a (M, p·p) → (t, f)"""
    (time, freq), p = cfg.grid_a, cfg.patch_size
    return x.reshape(time, freq, p, p).permute(0, 2, 1, 3).reshape(time * p, freq * p)


def only(axes, cfg, x_a, x_v, at_a, at_v, truth=(None, None)):
    """On two axes the patches x_a (M, p·p), x_v (N, p·p·3) that are at these positions; the others are left blank."""
    blank_v, blank_a = torch.full_like(x_v, 225), torch.full_like(x_a, float('nan'))
    blank_v[at_v], blank_a[at_a] = x_v[at_v], x_a[at_a]
    show_frames(axes[0], cfg, as_frames(cfg, blank_v))
    show_sound(axes[1], cfg, as_sound(cfg, blank_a))
    axes[1].get_images()[0].set_clim(x_a.min().item(), x_a.max().item())
    axes[1].set_facecolor(BLANK)
    for axis, true, where in zip(axes, truth[::-1], (show_frames, show_sound)):
        if true is not None:
            outline_only(axis, cfg, true, where is show_frames)


def outline_only(axis, cfg, true, frames):
    """The source's border, over whatever is drawn."""
    mask = side_by_side(true.reshape(cfg.grid_v), False) if frames else true.reshape(cfg.grid_a).T
    outline(axis, mask, cfg.patch_size)


def place_v(cfg, number):
    """Patch number of the video → the corner (x, y) of its square in `show_frames`, with a patch between two frames"""
    frame, rest = divmod(number, cfg.grid_v[1] * cfg.grid_v[2])
    row, column = divmod(rest, cfg.grid_v[2])
    return cfg.patch_size * (frame * (cfg.grid_v[2] + 1) + column), cfg.patch_size * row


def place_a(cfg, number):
    time, freq = divmod(number, cfg.grid_a[1])
    return cfg.patch_size * time, cfg.patch_size * freq


def frame_it(axis, cfg, corner, colour=ORANGE):
    for edge, width in (('black', 3.2), (colour, 1.8)):
        axis.add_patch(Rectangle(corner, cfg.patch_size, cfg.patch_size, fill=False, edgecolor=edge, linewidth=width))


def cross_out(axis, cfg, corners):
    """A cross over each of the patches with these corners."""
    p, thin = cfg.patch_size, min(1, 20 / cfg.grid_a[0])               # of the paper's size, patches are tiny here
    for x, y in corners:
        for ends in (((x, x + p), (y, y + p)), ((x, x + p), (y + p, y))):
            axis.plot(*ends, color='black', linewidth=2.4 * thin)
            axis.plot(*ends, color='white', linewidth=1.1 * thin)


def maps(axes, seen, map_a, map_v, truth):
    show_frames(axes[0], seen.cfg, seen.t['video'][0], map_v, truth[1])
    show_sound(axes[1], seen.cfg, seen.t['audio'][0], map_a, truth[0])
    axes[1].set_facecolor(BLANK)                                    # where a map has nothing


def strongest(seen):
    """The patches with the greatest I_a and I_v: whose queries and whose likeness are shown."""
    return seen.t['importance_a'][0].argmax().item(), seen.t['importance_v'][0].argmax().item()


# ------------------------------------------------------------------------------------- the stops

def clip(seen, truth):
    figure, axes = rows(seen.cfg, ['the clip'])
    maps(axes[0], seen, None, None, truth)
    return figure


def patches(seen, truth):
    """The grid, and the number of every patch that begins a row of it."""
    cfg, p = seen.cfg, seen.cfg.patch_size
    figure, axes = rows(cfg, ['patches'])
    maps(axes[0], seen, None, None, (None, None))
    for number in range(cfg.num_patches_v):
        axes[0, 0].add_patch(Rectangle(place_v(cfg, number), p, p, fill=False, edgecolor='white', linewidth=0.6))
    for number in range(cfg.num_patches_a):
        axes[0, 1].add_patch(Rectangle(place_a(cfg, number), p, p, fill=False, edgecolor='white', linewidth=0.6))
    per = cfg.grid_v[1] * cfg.grid_v[2]
    some = [frame * per + k for frame in range(cfg.num_frames) for k in (0, 1, cfg.grid_v[2], per - 1)]
    label(axes[0, 0], p, [(number, place_v(cfg, number)) for number in some])
    label(axes[0, 1], p, [(number, place_a(cfg, number)) for number in (0, 1, cfg.grid_a[1], cfg.num_patches_a - 1)])
    return figure


def label(axis, p, numbers):
    for number, (x, y) in numbers:
        axis.text(x + p / 2, y + p / 2, str(number), ha='center', va='center', fontsize=6, color='black',
                  bbox=dict(facecolor='white', edgecolor='none', pad=0.6))


def representation(seen, truth):
    """How alike each patch's vector is to that of the strongest patch of its modality: cosine, before and after E_f."""
    cfg, (top_a, top_v) = seen.cfg, strongest(seen)
    figure, axes = rows(cfg, ['$o$: encoders', r'$\tilde{o}$: fusion'])
    like = lambda x, top: torch.nn.functional.cosine_similarity(x[0], x[0, top][None], dim=-1)
    for row, name in zip(axes, ('o', 'joint')):
        maps(row, seen, like(seen.t[f'{name}_a'], top_a), like(seen.t[f'{name}_v'], top_v), (None, None))
        frame_it(row[0], cfg, place_v(cfg, top_v))
        frame_it(row[1], cfg, place_a(cfg, top_a))
    return figure


def attention(seen, truth):
    """One query each way: the orange patch asks, and the map is what it finds, the mean over heads."""
    cfg, (top_a, top_v) = seen.cfg, strongest(seen)
    figure, axes = rows(cfg, ['sound asks: $A_v$', 'frames ask: $A_a$'])
    maps(axes[0], seen, None, seen.t['A_v'][0, :, top_a].mean(0), (None, truth[1]))
    maps(axes[1], seen, seen.t['A_a'][0, :, top_v].mean(0), None, (truth[0], None))
    frame_it(axes[0, 1], cfg, place_a(cfg, top_a))
    frame_it(axes[1, 0], cfg, place_v(cfg, top_v))
    return figure


def importance(seen, truth):
    figure, axes = rows(seen.cfg, ['$I_v$, $I_a$'])
    maps(axes[0], seen, seen.t['importance_a'][0], seen.t['importance_v'][0], truth)
    return figure


def matching(seen, truth):
    """ŷ of each pair of the batch: whether it was given its own sound, and what the AVM says."""
    says, y = seen.t['logit'].sigmoid().tolist(), seen.t['matched'].tolist()
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.33 * len(y)), layout='constrained')
    for k, (value, right) in enumerate(zip(says, y)):
        axis.barh(k, value, color=BLUE if right else ORANGE, hatch='' if right else '///', edgecolor='black',
                  height=0.6)
        axis.annotate(f'{value:.2g}', (value, k), (4, 0), textcoords='offset points', va='center')
    whose = seen.t['partner'].tolist()
    name = lambda k: 'the clip' if k == 0 else f'pair {k}'
    axis.set_yticks(range(len(y)), [f'frames: {name(k)}; sound: {"its own" if right else "of " + name(whose[k])}'
                                    for k, right in enumerate(y)])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.12), xlabel='ŷ: 1 says "they belong together" (plain bars do, hatched ones do not)')
    return figure


def queries(seen, truth):
    """Where the present q̂ and the past one look among the κ most important patches of the clip."""
    cfg, t = seen.cfg, seen.t
    figure, axes = rows(cfg, ['past clip', 'the clip: top κ', r'$\hat{A}$: now asks', r'$\hat{A}^p$: past asks'])
    show_frames(axes[0, 0], cfg, seen.past['video'][0])
    show_sound(axes[0, 1], cfg, seen.past['audio'][0])
    top = {n: t[f'importance_{n}'][0].topk(t[f'key_{n}'].shape[2]).indices for n in 'av'}
    only(axes[1], cfg, t['x_a'][0], t['x_v'][0], top['a'], top['v'], truth)
    for row, name in zip(axes[2:], ('now', 'then')):
        inside = {n: torch.full((len(t[f'importance_{n}'][0]),), float('nan')).scatter(
            0, top[n], t[f'{name}_{n}'][0].mean(0)) for n in 'av'}
        maps(row, seen, inside['a'], inside['v'], truth)
    return figure


def pruning(seen, truth):
    """P, all on one scale from 0 to 1."""
    figure, axes = rows(seen.cfg, ['$P_v$, $P_a$'])
    maps(axes[0], seen, seen.t['prune_a'][0], seen.t['prune_v'][0], truth)
    for axis in axes[0]:
        axis.get_images()[-1].set_clim(0, 1)
    figure.colorbar(axes[0, 1].get_images()[-1], ax=axes[0, 1], label='P')
    return figure


def coins(seen, truth):
    """The patches that the coins prune are crossed out, over P."""
    cfg = seen.cfg
    figure, axes = rows(cfg, ['$F_v$, $F_a$'])
    maps(axes[0], seen, seen.t['prune_a'][0], seen.t['prune_v'][0], truth)
    for axis, name, place in ((axes[0, 0], 'coins_v', place_v), (axes[0, 1], 'coins_a', place_a)):
        axis.get_images()[-1].set_clim(0, 1)
        cross_out(axis, cfg, [place(cfg, k) for k in seen.t[name][0].nonzero()[:, 0].tolist()])
    return figure


def drawn(seen):
    """S̃_v of the clip by Eq. 6, as the step drew it and as it might have."""
    torch.manual_seed(1)
    again = [selection.select_video(seen.t['importance_v'][:1], seen.t['prune_v'][:1], seen.cfg.kappa_v)[0]
             for _ in range(DRAWS - 1)]
    return [seen.t['kept_v'][0], *again]


def video_selection(seen, truth):
    cfg, found = seen.cfg, drawn(seen)
    figure, axes = plt.subplots(1, DRAWS, layout='constrained', figsize=(7, 0.4 + 6.4 / DRAWS / (cfg.num_frames * 1.1)))
    for axis, at, name in zip(axes, found, ['the step\'s draw'] + ['another draw'] * DRAWS):
        blank = torch.full_like(seen.t['x_v'][0], 225)
        blank[at] = seen.t['x_v'][0][at]
        show_frames(axis, cfg, as_frames(cfg, blank))
        if truth[1] is not None:
            outline_only(axis, cfg, truth[1], frames=True)
        axis.set_title(name)
    return figure


def audio_selection(seen, truth):
    """Chunks with the turn at which each was drawn; crossed out what the coins prune; the trimmed chunk is hatched."""
    cfg, p = seen.cfg, seen.cfg.patch_size
    figure, axis = plt.subplots(figsize=(7, 1.9), layout='constrained')
    blank = torch.full_like(seen.t['x_a'][0], float('nan'))
    blank[seen.t['kept_a'][0]] = seen.t['x_a'][0][seen.t['kept_a'][0]]
    show_sound(axis, cfg, as_sound(cfg, blank))
    axis.set_facecolor(BLANK)
    cross_out(axis, cfg, [place_a(cfg, k) for k in seen.t['coins_a'][0].nonzero()[:, 0].tolist()])
    width = cfg.chunk * p
    for k, (turn, left, taken) in enumerate(zip(*turns(seen))):
        trimmed = 0 < taken < left
        axis.add_patch(Rectangle((k * width, 0), width, cfg.mel_bins, fill=False, edgecolor='black', linewidth=1.5,
                                 hatch='...' if trimmed else '', clip_on=False))
        word = 'trimmed' if trimmed else 'taken' if taken else 'not'
        axis.text((k + 0.5) * width, 1.02 * cfg.mel_bins, f'{turn + 1}.\n{word}', ha='center', va='bottom', fontsize=7,
                  fontweight='bold' if taken else 'normal')
    if truth[0] is not None:
        outline_only(axis, cfg, truth[0], frames=False)
    axis.set_xlabel('time → ; above each chunk: at which turn it was drawn')
    return figure


def selected(seen, truth):
    figure, axes = rows(seen.cfg, [r'$\hat{x}_v$, $\hat{x}_a$'])
    t = seen.t
    only(axes[0], seen.cfg, t['x_a'][0], t['x_v'][0], t['kept_a'][0], t['kept_v'][0], truth)
    return figure


def denormalized(guess, x):
    """What D guesses of a patch is relative to that patch's own mean and deviation: here they are put back, from the
    true patch, as MAE's pictures have it.  guess, x (m, values) → (m, values)"""
    return guess * (x.var(-1, keepdim=True) + 1e-6).sqrt() + x.mean(-1, keepdim=True)


def as_bytes(x, p):
    """x_v (m, p·p·3), normalized → uint8"""
    mean, std = (torch.tensor(v).repeat(p * p) for v in (IMAGE_MEAN, IMAGE_STD))
    return ((x * std + mean) * 255).round().clamp(0, 255).byte()


def reconstruction(seen, truth):
    cfg, t = seen.cfg, seen.t
    figure, axes = rows(cfg, ['the clip', 'seen', 'to predict', 'predicted'])
    maps(axes[0], seen, None, None, truth)
    x_a, x_v = t['x_a'][0], t['x_v'][0]
    only(axes[1], cfg, x_a, x_v, t['seen_a'][0], t['seen_v'][0])
    only(axes[2], cfg, x_a, x_v, t['hidden_a'][0], t['hidden_v'][0])
    guess_a, guess_v = x_a.clone(), x_v.clone()
    guess_a[t['hidden_a'][0]] = denormalized(t['guess_a'][0], t['target_a'][0])
    guess_v[t['hidden_v'][0]] = as_bytes(denormalized(t['guess_v'][0], t['target_v'][0]), cfg.patch_size)
    only(axes[3], cfg, guess_a, guess_v, torch.cat([t['seen_a'][0], t['hidden_a'][0]]),
         torch.cat([t['seen_v'][0], t['hidden_v'][0]]))
    axes[3, 1].get_images()[0].set_clim(x_a.min().item(), x_a.max().item())
    return figure


def similarity(seen, truth):
    """Cosines of all sounds with all frames of the batch; the diagonal should be the largest of its row and column."""
    cosine, B = seen.t['cosine'], len(seen.t['audio'])
    names = ['the clip'] + [f'pair {k}' for k in range(1, B)] + ['replayed'] * (len(cosine) - B)
    figure, axis = plt.subplots(figsize=(4.4, 3.4), layout='constrained')
    image = axis.imshow(cosine, cmap='cividis', vmin=-1, vmax=1)
    for i, row in enumerate(cosine.tolist()):
        for j, value in enumerate(row):
            axis.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=7, fontweight='bold' if i == j else None,
                      color='white' if value < 0.2 else 'black')
    axis.set_xticks(range(len(names)), names, rotation=35, ha='right')
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel='$c_v$', ylabel='$c_a$')
    figure.colorbar(image, label='cosine')
    return figure


def memory(seen, truth):
    """Bytes of the clip, by what they hold, for FLAVA and FLAVA+."""
    kinds = dict(video='frames', audio='spectrogram', patches_v='frame patches', patches_a='spectrogram patches')
    figure, axis = plt.subplots(figsize=(7, 1.7), layout='constrained')
    left = [0, 0]                                          # bytes drawn so far, of FLAVA and of FLAVA+
    for k, kind in enumerate([*kinds.values(), 'all else']):
        sizes = [sum(size for name, (_, _, size) in of.items() if kinds.get(name, 'all else') == kind)
                 for of in (seen.stored, seen.plus)]
        axis.barh([0, 1], [size / 1024 for size in sizes], left=[x / 1024 for x in left], color=OKABE_ITO[k],
                  hatch=HATCHES[k], edgecolor='black', linewidth=0.7, label=kind)
        left = [x + size for x, size in zip(left, sizes)]
    for row, size in enumerate(left):
        axis.annotate(f'{size:,} bytes', (size / 1024, row), (4, 0), textcoords='offset points', va='center')
    axis.set_yticks([0, 1], ['FLAVA', 'FLAVA+'])
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel('KiB of one pair')
    figure.legend(*axis.get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
    return figure


def drift(seen, truth):
    """c of the past clip as it was stored, and as it is now: ℓ^p is their mean squared distance."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 3), sharex=True, layout='constrained')
    for axis, n in zip(axes, 'av'):
        stored, now = seen.past[f'pooled_{n}'][0], seen.past[f'now_pooled_{n}'][0]
        axis.plot(stored, color=BLUE, marker='o', markersize=3, linewidth=1, label='stored')
        axis.plot(now, color=ORANGE, marker='s', markersize=2.5, linewidth=1, linestyle='--', label='now')
        axis.set_ylabel(f'$c_{n}$')
        axis.grid(alpha=0.25)
    axes[0].legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes[1].set_xlabel('place in the vector')
    return figure


def terms(seen, truth):
    """The weighted terms of the loss, which add up to it."""
    figure, axis = plt.subplots(figsize=(7, 1.3), layout='constrained')
    left = 0
    for k, (name, value) in enumerate(weighted(seen).items()):
        axis.barh(0, value, left=left, color=OKABE_ITO[k], hatch=HATCHES[k], edgecolor='black', label=name)
        left += value
    axis.annotate(f'{left:.2f}', (left, 0), (4, 0), textcoords='offset points', va='center')
    axis.set_yticks([])
    axis.margins(x=0.08)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
    return figure
