"""Pictures of what a run has recorded (Figures 2 and 12 in kind; the rest of the paper's figures are not here).

In:  a run's folder with results.json, its model and its retrieval clips.
Out: figures/stream.png    accuracy of each task over the stream, with chance drawn in
     figures/attention.png where the AVM looks, in frames and spectrogram; for shapes with the true source outlined

Colours are told apart in print and by the colour-blind: viridis and Okabe & Ito's palette, with a marker to each line.
"""
import json

import matplotlib

matplotlib.use('Agg')   # no screen needed
import matplotlib.pyplot as plt
import torch

from methods import score, whole

OKABE_ITO = ('#E69F00', '#56B4E9', '#009E73', '#CC79A7', '#0072B2', '#D55E00', '#000000', '#F0E442')
MARKERS = 'osD^vPX*'


def draw(out, backbone, avm, stream, cfg, device):
    """Draw the figures of a finished run into out/figures. Returns their paths."""
    folder = out / 'figures'
    folder.mkdir(exist_ok=True)
    results = json.loads((out / 'results.json').read_text())
    drawn = {'stream.png': accuracy_over_stream(results), 'attention.png': attention(backbone, avm, stream, cfg, device)}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=130, bbox_inches='tight')
        plt.close(figure)
    return [folder / name for name in drawn]


def accuracy_over_stream(results):
    """R@10 of each task after each task: forgetting is a line that falls. A line begins where its task is learned, with a
    large marker; what it was before that is dotted."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout='constrained')
    highest = results['chance']['R@10']
    for axis, direction in zip(axes, ('audio_to_video', 'video_to_audio')):
        acc = [results['initial'][direction]['R@10']] + results[direction]['R@10']['acc']
        ticks = ['initial'] + (results['tasks'] if len(acc) == len(results['tasks']) + 1 else ['all tasks'])
        for i, name in enumerate(results['tasks']):
            line = [row[i] for row in acc]
            highest = max(highest, *line)
            learned = min(i + 1, len(acc) - 1)
            style = dict(color=OKABE_ITO[i % 8], marker=MARKERS[i % 8])
            axis.plot(range(learned + 1), line[:learned + 1], ':', alpha=0.5, **(style | dict(marker='')))
            axis.plot(range(learned, len(acc)), line[learned:], label=name, markersize=5, **style)
            axis.plot(learned, line[learned], markersize=10, **style)
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


def attention(backbone, avm, stream, cfg, device, clips=4):
    """One retrieval clip of each of some tasks: its frames and I_v over them, its spectrogram and I_a over it.

    Returns the figure. Without a trained AVM (a method that does not select keeps that of the initial pre-training) it shows
    what little there is.
    """
    tasks = torch.linspace(0, len(stream.test) - 1, min(clips, len(stream.test))).round().int().tolist()
    figure, axes = plt.subplots(len(tasks), 2 * cfg.num_frames + 2, squeeze=False, layout='constrained',
                                figsize=(2.1 * (2 * cfg.num_frames + 3), 2.1 * len(tasks)),
                                width_ratios=[1] * 2 * cfg.num_frames + [1.5] * 2)
    for row, task in zip(axes, tasks):
        dataset = stream.test[task]
        item = dataset[0, 0]
        batch = {name: item[name][None].to(device) for name in ('audio', 'video')}
        s = score(cfg, backbone, avm, whole(batch, cfg.patch_size))
        true_a, true_v = true_source(dataset, cfg)
        I_v = s.importance_v[0].float().cpu().reshape(cfg.grid_v).numpy()
        I_a = s.importance_a[0].float().cpu().reshape(cfg.grid_a).numpy()
        for t in range(cfg.num_frames):
            frame = item['video'][t].permute(1, 2, 0).numpy()
            row[2 * t].imshow(frame)
            row[2 * t].set_title(f'frame {t + 1}', fontsize=8)
            row[2 * t + 1].imshow(frame.mean(-1), cmap='gray', alpha=0.6, extent=(0, cfg.image_size, cfg.image_size, 0))
            row[2 * t + 1].imshow(I_v[t], alpha=0.6, vmin=0, vmax=I_v.max(), extent=(0, cfg.image_size, cfg.image_size, 0))
            row[2 * t + 1].set_title('$I_v$', fontsize=8)
            if true_v is not None:
                outline(row[2 * t + 1], true_v.reshape(cfg.grid_v)[t], cfg.patch_size)
        row[-2].imshow(item['audio'].numpy().T, origin='lower', aspect='auto', cmap='magma')
        row[-2].set_title('spectrogram: time →, frequency ↑', fontsize=8)
        row[-1].imshow(I_a.T, origin='lower', aspect='auto', vmin=0, extent=(0, cfg.audio_frames, 0, cfg.mel_bins))
        row[-1].set_title('$I_a$', fontsize=8)
        if true_a is not None:
            outline(row[-1], true_a.reshape(cfg.grid_a).T, cfg.patch_size)
        row[0].set_ylabel(stream.names[task], fontsize=9)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle('Where the AVM looks (importance scores, Eq. 3)' + ('; white: the true source' if true_v is not None else ''))
    return figure


def true_source(dataset, cfg):
    """truth_a (M,), truth_v (N,) of a data set's first clip where the source is known, else None, None"""
    if not hasattr(dataset, 'scene'):
        return None, None
    from shapes import truth
    return truth(dataset.scene(0), cfg)


def outline(axis, mask, p):
    """Draw the border of the true patches of mask (rows, columns), each p wide, in white on black."""
    rows, columns = mask.shape
    inside = lambda y, x: 0 <= y < rows and 0 <= x < columns and bool(mask[y, x])
    for y, x in mask.nonzero().tolist():
        for dy, dx, line in ((-1, 0, ((x, x + 1), (y, y))), (1, 0, ((x, x + 1), (y + 1, y + 1))),
                             (0, -1, ((x, x), (y, y + 1))), (0, 1, ((x + 1, x + 1), (y, y + 1)))):
            if not inside(y + dy, x + dx):
                xs, ys = ([c * p for c in coordinates] for coordinates in line)
                axis.plot(xs, ys, color='black', linewidth=3)
                axis.plot(xs, ys, color='white', linewidth=1.5)
