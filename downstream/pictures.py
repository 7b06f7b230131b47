"""Pictures of a run (Fig. 2, 3, 12, 16, 17): frames and spectrograms with maps over them; retrieval over the stream.

In:  a clip as frames (T, 3, H, W) uint8 and spectrogram (t, f), its maps (N,) and (M,); results of a run; a model.
Out: matplotlib figures. Where the source is known (shapes) it is outlined in white.

Each map goes from dark to bright between its own least and greatest value: one shows where it looks, not how strongly.
Colours are told apart in print and by the colour-blind (Okabe & Ito's palette), each with a marker or a hatch.
"""
import json

import matplotlib

matplotlib.use('Agg')   # no screen needed
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection

from avm import score
from downstream.maps import true_source
from patches import whole

OKABE_ITO = ('#E69F00', '#56B4E9', '#009E73', '#CC79A7', '#0072B2', '#D55E00', '#000000', '#999999')   # no yellow: gray
MARKERS = 'osD^vPX*'
DIRECTIONS = ('audio_to_video', 'video_to_audio')


def look(i):
    """Colour and marker of the line of task i."""
    return dict(color=OKABE_ITO[i % 8], marker=MARKERS[i % 8])


# ----------------------------------------------------------------------------------- one picture

def outline(axis, mask, p):
    """Draw the border of the true patches of mask (rows, columns), each p wide, in white on black."""
    rows, columns = mask.shape
    inside = lambda y, x: 0 <= y < rows and 0 <= x < columns and bool(mask[y, x])
    border = []
    for y, x in mask.nonzero().tolist():
        for dy, dx, edge in ((-1, 0, ((x, y), (x + 1, y))), (1, 0, ((x, y + 1), (x + 1, y + 1))),
                             (0, -1, ((x, y), (x, y + 1))), (0, 1, ((x + 1, y), (x + 1, y + 1)))):
            if not inside(y + dy, x + dx):
                border.append([(p * column, p * row) for column, row in edge])
    for colour, width in (('black', 2), ('white', 1)):
        lines = LineCollection(border, colors=colour, linewidths=width, capstyle='projecting')
        axis.add_collection(lines, autolim=False)


def side_by_side(x, blank, gap=1):
    """x (T, …, h, w) → (…, h, T·w + (T − 1)·gap): frames next to each other, with blank columns between, so that what
    is at one frame's edge does not join what is at the next one's"""
    return torch.cat([F.pad(frame, (0, gap), value=blank) for frame in x], -1)[..., :-gap]


def show_frames(axis, cfg, frames, heat=None, truth=None):
    """Frames (T, 3, H, W) uint8 side by side; with heat (N,), in gray under it; truth (N,) bool outlined."""
    grid, p = (len(frames), *cfg.grid_v[1:]), cfg.patch_size
    picture = side_by_side(frames, 255, gap=p).permute(1, 2, 0).numpy()          # a patch wide, as in heat and truth
    extent = (0, picture.shape[1], picture.shape[0], 0)
    if heat is None:
        axis.imshow(picture, extent=extent)
    else:
        heat = side_by_side(heat.float().reshape(grid), float('nan')).numpy()
        axis.imshow(picture.mean(-1), cmap='gray', extent=extent)
        axis.imshow(heat, cmap='viridis', alpha=0.65, extent=extent)
    if truth is not None:
        outline(axis, side_by_side(truth.reshape(grid), False), p)
    axis.set(xticks=[], yticks=[])


def show_sound(axis, cfg, audio, heat=None, truth=None):
    """Spectrogram (t, f), time to the right and frequency upwards; or heat (M,) in its place; truth (M,) bool
    outlined."""
    picture, cmap = (audio, 'magma') if heat is None else (heat.float().reshape(cfg.grid_a), 'viridis')
    extent = (0, cfg.audio_frames, 0, cfg.mel_bins)
    axis.imshow(picture.numpy().T, origin='lower', aspect='auto', cmap=cmap, extent=extent)
    if truth is not None:
        outline(axis, truth.reshape(cfg.grid_a).T, cfg.patch_size)
    axis.set(xticks=[], yticks=[])


# ------------------------------------------------------------------------------- a row a clip

def overlays(cfg, rows, columns_v, columns_a, title):
    """A picture with a row a clip: frames, maps over frames, spectrogram, maps of the spectrogram's patches.

    rows     [(label, clip)], clip: frames (T, 3, H, W), audio (t, f), truth_a, truth_v or None, and maps (M,), (N,)
    columns  [(title, name of the map in clip)]
    """
    widths = [cfg.num_frames] * (1 + len(columns_v)) + [1.8] * (1 + len(columns_a))
    figure, axes = plt.subplots(len(rows), len(widths), squeeze=False, layout='constrained', width_ratios=widths,
                                figsize=(1.4 * sum(widths) + 1, 1.55 * len(rows) + 0.8))
    for row, (label, clip) in zip(axes, rows):
        seen, heard = row[:1 + len(columns_v)], row[1 + len(columns_v):]
        show_frames(seen[0], cfg, clip['frames'])
        show_sound(heard[0], cfg, clip['audio'])
        for axis, (_, name) in zip(seen[1:], columns_v):
            show_frames(axis, cfg, clip['frames'], clip[name], clip['truth_v'])
        for axis, (_, name) in zip(heard[1:], columns_a):
            show_sound(axis, cfg, clip['audio'], clip[name], clip['truth_a'])
        seen[0].set_ylabel(label, fontsize=9)
    (names_v, _), (names_a, _) = zip(*columns_v), zip(*columns_a)
    for axis, name in zip(axes[0], ('frames', *names_v, 'sound: time →, frequency ↑', *names_a)):
        axis.set_title(name, fontsize=9)
    known = any(clip['truth_v'] is not None for _, clip in rows)
    figure.suptitle(f'{title}. Each map from its least (dark) to its greatest (bright)'
                    + ('; white: the true source' if known else ''), fontsize=10)
    return figure


def attention(backbone, avm, stream, cfg, device, clips=4):
    """One retrieval clip of each of some tasks: its frames and I_v over them, its spectrogram and I_a over it → figure

    Without a trained AVM (a method that does not select keeps that of the initial pre-training) it shows what little
    there is.
    """
    tasks = torch.linspace(0, len(stream.test) - 1, min(clips, len(stream.test))).round().int().tolist()
    figure, axes = plt.subplots(len(tasks), 4, squeeze=False, layout='constrained',
                                width_ratios=[cfg.num_frames] * 2 + [1.5] * 2,
                                figsize=(2.1 * (2 * cfg.num_frames + 3), 2.1 * len(tasks)))
    for row, task in zip(axes, tasks):
        item = stream.test[task][0, 0]
        batch = {name: item[name][None].to(device) for name in ('audio', 'video')}
        s = score(cfg, backbone, avm, whole(batch, cfg.patch_size))
        true_a, true_v = true_source(stream.test[task], cfg)
        show_frames(row[0], cfg, item['video'])
        show_frames(row[1], cfg, item['video'], s.importance_v[0].cpu(), true_v)
        show_sound(row[2], cfg, item['audio'])
        show_sound(row[3], cfg, item['audio'], s.importance_a[0].cpu(), true_a)
        row[0].set_ylabel(stream.names[task])
    for axis, name in zip(axes[0], ('frames, a second apart', '$I_v$', 'spectrogram: time →, frequency ↑', '$I_a$')):
        axis.set_title(name)
    figure.suptitle('Where the AVM looks (importance scores, Eq. 3)'
                    + ('; white: the true source' if true_v is not None else ''))
    return figure


# -------------------------------------------------------------------------------------- retrieval

def recalls(results):
    """Bars of R@1, 5, 10 of each task by the last model, with chance drawn in.  results: eval.py's, with `after`"""
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True, layout='constrained')
    for axis, direction in zip(axes, DIRECTIONS):
        for j, (recall, colour, hatch) in enumerate(zip(('R@1', 'R@5', 'R@10'), OKABE_ITO, ('', '//', '..'))):
            places = [i + (j - 1) * 0.27 for i in range(len(results['tasks']))]
            axis.bar(places, results[direction][recall]['acc'][-1], 0.27, label=recall, color=colour, hatch=hatch,
                     edgecolor='white')
            for x in places:
                axis.hlines(results['chance'][recall], x - 0.135, x + 0.135, color='black', linewidth=1.5)
        axis.set_xticks(range(len(results['tasks'])), results['tasks'], rotation=20)
        axis.set_title(direction.replace('_', ' '))
    axes[0].set_ylabel(f'% of {results["candidates"]} candidates; black: chance')
    axes[1].legend()
    figure.suptitle(f'Retrieval after {results["after"][-1]}')
    return figure


def accuracy_over_stream(results):
    """R@10 of each task after each task: forgetting is a line that falls. A line begins where its task is learned, with
    a large marker; what it was before that is dotted.  results: those of results.json"""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout='constrained')
    highest = results['chance']['R@10']
    for axis, direction in zip(axes, DIRECTIONS):
        acc = [results['initial'][direction]['R@10']] + results[direction]['R@10']['acc']
        ticks = ['initial'] + (results['tasks'] if len(acc) == len(results['tasks']) + 1 else ['all tasks'])
        for i, name in enumerate(results['tasks']):
            line = [row[i] for row in acc]
            highest = max(highest, *line)
            learned = min(i + 1, len(acc) - 1)
            axis.plot(range(learned + 1), line[:learned + 1], ':', alpha=0.5, **(look(i) | dict(marker='')))
            axis.plot(range(learned, len(acc)), line[learned:], label=name, markersize=5, **look(i))
            axis.plot(learned, line[learned], markersize=10, **look(i))
        axis.axhline(results['chance']['R@10'], color='gray', linestyle='--', linewidth=1, label='chance')
        axis.set_xticks(range(len(acc)), ticks, rotation=20)
        axis.set_xlabel('after learning')
        axis.set_title(direction.replace('_', ' '))
        axis.grid(alpha=0.25)
    axes[0].set_ylim(0, 1.08 * highest)                    # shared by both
    axes[0].set_ylabel(f'R@10 in % of {results["candidates"]} candidates')
    axes[1].legend(title='task', fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(f'Retrieval over the stream: {results["method"]}')
    return figure


# ----------------------------------------------------------------------------- after a run: RUN/figures

def draw(out, backbone, avm, stream, cfg, device):
    """Draw the figures of a finished run into out/figures, from out/results.json and its model → their paths"""
    folder = out / 'figures'
    folder.mkdir(exist_ok=True)
    results = json.loads((out / 'results.json').read_text())
    drawn = {'stream.png': accuracy_over_stream(results),
             'attention.png': attention(backbone, avm, stream, cfg, device)}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=130, bbox_inches='tight')
        plt.close(figure)
    return [folder / name for name in drawn]
