"""Figures of a run (Fig. 2, 3, 12, 16, 17): frames and spectrograms with maps over them; retrieval over the stream.

In:  a clip as frames (T, 3, H, W) uint8 and spectrogram (t, f), its maps (N,) and (M,); results of a run; a model.
Out: matplotlib figures. A known source (shapes) has a white outline.

The colours of each map go from its own minimum (dark) to its own maximum (bright). So a map shows where the model
looks, not how strongly. The palette is colour-blind safe (Okabe & Ito), and each colour has a marker or hatch.
"""
import json

import matplotlib

matplotlib.use('Agg')   # no display needed
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection

from downstream.maps import add_maps, compute_maps, make_batch, read_clips
from eval import DIRECTIONS

OKABE_ITO = ('#E69F00', '#56B4E9', '#009E73', '#CC79A7', '#0072B2', '#D55E00', '#000000', '#999999')   # no yellow: gray
MARKERS = 'osD^vPX*'
BESIDE = dict(fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))    # a legend to the right of its axes


def task_style(i):
    """Colour and marker of task i: no two of 64 tasks have the same"""
    return dict(color=OKABE_ITO[i % 8], marker=MARKERS[(i + i // 8) % 8])


def display_name(name):
    """The name of a task or clip for matplotlib, which reads $ as mathematics and hides labels that begin with _. Long
    names are cut, because they would overlap."""
    short = name if len(name) <= 16 else name[:15] + '…'
    return (' ' if name.startswith('_') else '') + short.replace('$', r'\$')


# ---------------------------------------------------------------------------------- one clip

def outline(axis, mask, p):
    """Draw the border of the true patches of mask (rows, columns). A patch is p wide. The line is white on black."""
    padded = F.pad(mask.bool(), (1, 1, 1, 1))
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]         # rows+1,columns   is there an edge above the patch?
    vertical = padded[1:-1, 1:] != padded[1:-1, :-1]           # rows,columns+1   … to its left?
    edges = [((p * x, p * y), (p * x + p, p * y)) for y, x in horizontal.nonzero().tolist()]
    edges += [((p * x, p * y), (p * x, p * y + p)) for y, x in vertical.nonzero().tolist()]
    for colour, width in (('black', 2), ('white', 1)):
        lines = LineCollection(edges, colors=colour, linewidths=width, capstyle='projecting')
        axis.add_collection(lines, autolim=False)


def side_by_side(x, blank, gap=1):
    """x (T, …, h, w) → (…, h, T·w + (T − 1)·gap): the frames in a row. Blank columns keep their borders apart."""
    return torch.cat([F.pad(frame, (0, gap), value=blank) for frame in x], -1)[..., :-gap]


def show_frames(axis, cfg, frames, heat=None, source=None):
    """Show frames (T, 3, H, W) uint8 in a row. With a map heat (N,), show it over gray frames. Outline source (N,)
    bool."""
    grid, p = (len(frames), *cfg.grid_v[1:]), cfg.patch_size
    pixels = side_by_side(frames, 255, gap=p).permute(1, 2, 0).numpy()           # the gap is a patch wide, as in heat
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    if heat is None:
        axis.imshow(pixels, extent=extent)
    else:
        heat = side_by_side(heat.float().reshape(grid), float('nan')).numpy()
        axis.imshow(pixels.mean(-1), cmap='gray', extent=extent)
        axis.imshow(heat, cmap='viridis', alpha=0.65, extent=extent)
    if source is not None:
        outline(axis, side_by_side(source.reshape(grid), False), p)
    axis.set(xticks=[], yticks=[])


def show_sound(axis, cfg, audio, heat=None, source=None):
    """Show a spectrogram (t, f), or a map heat (M,) in its place. Time goes right, frequency up. Outline source (M,)
    bool."""
    pixels, cmap = (audio, 'magma') if heat is None else (heat.float().reshape(cfg.grid_a), 'viridis')
    extent = (0, cfg.audio_frames, 0, cfg.mel_bins)
    axis.imshow(pixels.numpy().T, origin='lower', aspect='auto', cmap=cmap, extent=extent)
    if source is not None:
        outline(axis, source.reshape(cfg.grid_a).T, cfg.patch_size)
    axis.set(xticks=[], yticks=[])


# ------------------------------------------------------------------------------- several clips

def plot_maps(cfg, rows, columns_v, columns_a, title):
    """A figure with one row per clip: frames, maps over the frames, spectrogram, maps of the spectrogram.

    rows     [(label, clip)], clip: frames (T, 3, H, W), audio (t, f), truth_a, truth_v or None, and maps (M,), (N,)
    columns  [(title, name of the map in clip)]
    """
    widths = [cfg.num_frames] * (1 + len(columns_v)) + [1.8] * (1 + len(columns_a))
    figure, axes = plt.subplots(len(rows), len(widths), squeeze=False, layout='constrained', width_ratios=widths,
                                figsize=(1.4 * sum(widths) + 1, 1.55 * len(rows) + 0.8))
    for row, (label, clip) in zip(axes, rows):
        frame_axes, sound_axes = row[:1 + len(columns_v)], row[1 + len(columns_v):]
        show_frames(frame_axes[0], cfg, clip['frames'])
        show_sound(sound_axes[0], cfg, clip['audio'])
        for axis, (_, name) in zip(frame_axes[1:], columns_v):
            show_frames(axis, cfg, clip['frames'], clip[name], clip['truth_v'])
        for axis, (_, name) in zip(sound_axes[1:], columns_a):
            show_sound(axis, cfg, clip['audio'], clip[name], clip['truth_a'])
        frame_axes[0].set_ylabel(display_name(label), fontsize=9)
    titles = [('frames', ''), *columns_v, ('sound: time →, frequency ↑', ''), *columns_a]
    for axis, (name, _) in zip(axes[0], titles):
        axis.set_title(name, fontsize=9)
    known = any(clip['truth_v'] is not None for _, clip in rows)
    figure.suptitle(f'{title}. Colours: minimum (dark) to maximum (bright) of each map'
                    + ('; white: the true source' if known else ''), fontsize=10)
    return figure


def plot_attention(backbone, avm, stream, cfg, device):
    """I_v and I_a of one retrieval clip for each of at most four tasks → figure

    A method without selection does not train its AVM. It shows the AVM of the initial pre-training.
    """
    tasks = torch.linspace(0, len(stream.retrieval) - 1, min(4, len(stream.retrieval))).round().int().tolist()
    clips = read_clips(stream.retrieval, cfg, [(task, 0) for task in tasks])
    add_maps(clips, compute_maps(cfg, backbone, avm, make_batch(clips, device))._asdict())
    rows = [(stream.names[clip['task']], clip) for clip in clips]
    return plot_maps(cfg, rows, [('$I_v$', 'I_v')], [('$I_a$', 'I_a')], 'Importance scores of the AVM (Eq. 3)')


# -------------------------------------------------------------------------------------- retrieval

def recalls(results):
    """R@10 of each task after each task. A falling line is forgetting.  results: eval.py's, with `after`"""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout='constrained')
    for axis, direction in zip(axes, DIRECTIONS):
        plot_over_stream(axis, results[direction]['R@10']['acc'], results['tasks'], results['after'],
                         results['chance']['R@10'])
        axis.set_title(direction.replace('_', ' '))
    axes[0].set_ylim(bottom=0)                                 # both panels share it
    axes[0].set_ylabel(f'R@10 in %, {results["candidates"]} candidates')
    axes[1].legend(title='task', **BESIDE)
    figure.suptitle('Retrieval over the stream')
    return figure


def plot_over_stream(axis, matrix, tasks, after, chance=None):
    """One line per task, dotted until the task is learned; there it has a large marker. And a line for chance.

    matrix [model][task], None where nothing was measured; after: the name of each model
    """
    for i, task in enumerate(tasks):
        line = np.array([row[i] for row in matrix], float)     # None becomes NaN
        # Multitask has learned all tasks at the end; a task that no model has just learned has no marker
        learned = after.index(task) if task in after else len(after) - 1
        style = task_style(i)
        axis.plot(range(learned + 1), line[:learned + 1], ':', alpha=0.5, color=style['color'])
        axis.plot(range(learned, len(line)), line[learned:], label=display_name(task), markersize=5, **style)
        if task in after or after[-1] == 'all tasks':
            axis.plot(learned, line[learned], markersize=10, **style)
    if chance is not None:
        axis.axhline(chance, color='gray', linestyle='--', linewidth=1, label='chance')
    axis.set_xticks(range(len(after)), map(display_name, after), rotation=30, ha='right')
    axis.set_xlabel('after learning')
    axis.grid(alpha=0.25)


def draw(out, backbone, avm, stream, cfg, device):
    """Write the figures of a finished run to out/figures, from out/results.json and its model → their paths"""
    (out / 'figures').mkdir(exist_ok=True)
    results = json.loads((out / 'results.json').read_text('utf-8'))

    # the initial model comes first; Multitask has one model after all tasks
    acc = [results[direction]['R@10']['acc'] for direction in DIRECTIONS]
    results['after'] = ['initial', *(results['tasks'] if len(acc[0]) == len(results['tasks']) else ['all tasks'])]
    for direction, rows in zip(DIRECTIONS, acc):
        rows.insert(0, results['initial'][direction]['R@10'])
    return [save_figure(recalls(results), out / 'figures' / 'stream.png'),
            save_figure(plot_attention(backbone, avm, stream, cfg, device), out / 'figures' / 'attention.png')]


def save_figure(figure, path):
    """Write and close a figure → its path"""
    figure.savefig(path, dpi=130, bbox_inches='tight')
    plt.close(figure)
    return path
