"""Pictures of attention (Figures 2, 3, 12, 16, 17): where the AVM and the backbone look, in frames and spectrogram.

In:  eval/localization.pt and eval/spurious.pt of finished runs; for `attention`, a model and its retrieval clips.
Out: matplotlib figures. Where the source is known (shapes) it is outlined in white.

Each map goes from dark to bright between its own least and greatest value: one shows where it looks, not how strongly.
"""
import matplotlib

matplotlib.use('Agg')   # no screen needed
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection

from methods import WITHOUT_ATTENTION
from steps import score, whole
from tables import Missing, compared, evaluated, labels

ROWS = 16   # of pictures that one page of print holds


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
        axis.add_collection(LineCollection(border, colors=colour, linewidths=width, capstyle='projecting'), autolim=False)


def side_by_side(x, blank, gap=1):
    """x (T, …, h, w) → (…, h, T·w + (T − 1)·gap): frames next to each other, with blank columns between, so that what is at one
    frame's edge does not join what is at the next one's"""
    return torch.cat([F.pad(frame, (0, gap), value=blank) for frame in x], -1)[..., :-gap]


def show_frames(axis, cfg, frames, heat=None, truth=None):
    """Frames (T, 3, H, W) uint8 side by side; with heat (N,), in gray under it; truth (N,) bool outlined."""
    grid, p = (len(frames), *cfg.grid_v[1:]), cfg.patch_size
    picture = side_by_side(frames, 255, gap=p).permute(1, 2, 0).numpy()                # a patch wide, as in heat and truth
    extent = (0, picture.shape[1], picture.shape[0], 0)
    if heat is None:
        axis.imshow(picture, extent=extent)
    else:
        axis.imshow(picture.mean(-1), cmap='gray', extent=extent)
        axis.imshow(side_by_side(heat.float().reshape(grid), float('nan')).numpy(), cmap='viridis', alpha=0.65, extent=extent)
    if truth is not None:
        outline(axis, side_by_side(truth.reshape(grid), False), p)
    axis.set(xticks=[], yticks=[])


def show_sound(axis, cfg, audio, heat=None, truth=None):
    """Spectrogram (t, f), time to the right and frequency upwards; or heat (M,) in its place; truth (M,) bool outlined."""
    picture, cmap = (audio, 'magma') if heat is None else (heat.float().reshape(cfg.grid_a), 'viridis')
    axis.imshow(picture.numpy().T, origin='lower', aspect='auto', cmap=cmap, extent=(0, cfg.audio_frames, 0, cfg.mel_bins))
    if truth is not None:
        outline(axis, truth.reshape(cfg.grid_a).T, cfg.patch_size)
    axis.set(xticks=[], yticks=[])


def page(rows, cfg):
    """Axes (rows, 4): two halves, each a place for frames and one for sound, all of a row as high as its frames. At most 7 inches
    wide, as a page of print is, the names of the rows included."""
    width_v, width_a = cfg.num_frames, max(1.6, 0.6 * cfg.num_frames)             # in heights of a frame
    height = min(0.55, 5.7 / (2 * (width_v + width_a)))                           # inches
    figure, axes = plt.subplots(rows, 4, squeeze=False, layout='constrained', width_ratios=[width_v, width_a] * 2,
                                figsize=(1.3 + 2 * height * (width_v + width_a), rows * (height + 0.05) + 0.6))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return figure, axes


def name_row(axis, name):
    axis.set_ylabel(name, rotation=0, ha='right', va='center')


def explain(axes, words):
    """Words in place of pictures."""
    for axis in axes:
        axis.axis('off')
    axes[0].text(0.02, 0.5, words, transform=axes[0].transAxes, va='center').set_in_layout(False)


# --------------------------------------------------------------------- over the stream: Figures 2, 17

def same_clips(groups):
    """Of each group a run whose clips are the first one's → [(label, run, record of eval/localization.pt)]. Of other seeds of
    shapes the clips are others, and cannot be set side by side."""
    found = []
    for label, group in zip(labels(groups), groups):
        for run in group.runs:
            record = run.tensors('localization')
            if record and (not found or alike(record['clips'], found[0][2]['clips'])):
                found.append((label, run, record))
                break
    return found


def alike(clips, others):
    return len(clips) == len(others) and all(torch.equal(x['frames'], y['frames']) for x, y in zip(clips, others))


def followed(groups):
    """What Figures 2 and 17 need of each method: `same_clips` in which a model of each task was looked at."""
    chosen = compared(evaluated(groups, 'localization'), 'method')
    found = [entry for entry in same_clips(chosen) if set(entry[2]['tasks']) <= set(entry[2]['after'])]
    if not found:
        raise Missing(f'`python eval.py {chosen[0].runs[0].folder} --task localization` of a run with a model after each task, '
                      'without --last')
    return found


def fading(found, places, title):
    """Clips at these places of the record; under each one, a row a method: left after its own task, right at the end. Methods
    that do not select have no AVM to train; the paper does not say by which it shows DER++'s attention."""
    cfg, record = found[0][1].cfg, found[0][2]
    figure, axes = page(len(places) * (1 + len(found)), cfg)
    for block, place in enumerate(places):
        top = block * (1 + len(found))
        clip = record['clips'][place]
        task = record['tasks'][clip['task']]
        show_frames(axes[top, 0], cfg, clip['frames'])
        show_sound(axes[top, 1], cfg, clip['audio'])
        name_row(axes[top, 0], f'({"abcdefghijklmnopqrstuvwxyz"[block % 26]}) {task}')
        frozen = any(not run.cfg.method.startswith('flava') or run.cfg.selection in WITHOUT_ATTENTION for _, run, _ in found)
        explain(axes[top, 2:], f'left: right after {task}\nright: after {record["after"][-1]}, the last'
                + ('\nAVM: FLAVA\'s own; of others, that of\nthe initial pre-training, untrained since' if frozen else ''))
        for row, (label, run, own) in zip(axes[top + 1:top + 1 + len(found)], found):
            maps = own['clips'][place]
            name_row(row[0], label)
            for half, model in enumerate((own['after'].index(task), -1)):
                show_frames(row[2 * half], cfg, clip['frames'], maps['I_v'][model], clip['truth_v'])
                show_sound(row[2 * half + 1], cfg, clip['audio'], maps['I_a'][model], clip['truth_a'])
    figure.suptitle(title + ('; white: the true source' if record['clips'][0]['truth_v'] is not None else ''))
    return figure


def past(found):
    """Places of the clips whose task is not the last, those of the first task before others; one of each task, then the second."""
    record = found[0][2]
    tasks = [clip['task'] for clip in record['clips']]
    nth = lambda place: tasks[:place].count(tasks[place])          # the how-manieth of its task
    return sorted((place for place, task in enumerate(tasks) if task < len(record['tasks']) - 1), key=lambda k: (nth(k), tasks[k]))


def figure_2(groups):
    """Attention of a clip of the first task, by the model that has just learned it and by the last: one for each run given."""
    found = followed(groups)
    if not past(found):
        raise Missing('a stream of two tasks or more')
    return fading(found, past(found)[:1], 'Attention ($I_v$, $I_a$) to a past clip')


def figure_17(groups):
    """Figure 2 with other clips: as many as a page holds."""
    found = followed(groups)
    if len(past(found)) < 2:
        raise Missing('a stream of two tasks or more')
    return fading(found, past(found)[1:1 + max(1, ROWS // (1 + len(found)))], 'Attention ($I_v$, $I_a$) to past clips')


# --------------------------------------------------------------------------- spurious: Figures 3, 16

def swaps(groups):
    """→ name of the method, run and record of eval/spurious.pt: FLAVA's where there is one, else the first given"""
    found = [(g, run) for g in evaluated(groups, 'spurious') for run in g.runs if run.found('spurious', 'pt')]
    if not found:
        raise Missing('`python eval.py RUN --task spurious`, of which only the numbers are left')
    group, run = next((entry for entry in found if entry[0].cfg.method == 'flava'), found[0])
    return group.name, run, run.tensors('spurious')


def spurious(name, run, record, places):
    """Of each clip three rows: (a) its frames and sound, and the other's; (b) attention with its own; (c) with the other's."""
    cfg = run.cfg
    figure, axes = page(3 * len(places), cfg)
    for place, (raw, own, other) in zip(places, axes.reshape(len(places), 3, 4)):
        clip = record['clips'][place]
        task, other_task = record['tasks'][clip['task']], record['tasks'][clip['other_task']]
        show_frames(raw[0], cfg, clip['frames'])
        show_sound(raw[1], cfg, clip['audio'])
        show_frames(raw[2], cfg, clip['other_frames'])
        show_sound(raw[3], cfg, clip['other_audio'])
        show_frames(own[0], cfg, clip['frames'], clip['I_v'], clip['truth_v'])
        show_sound(own[1], cfg, clip['audio'], clip['I_a'], clip['truth_a'])
        show_frames(other[0], cfg, clip['frames'], clip['I_v_other'], clip['truth_v'])
        show_sound(other[1], cfg, clip['audio'], clip['I_a_other'], clip['truth_a'])
        for row, words in zip((raw, own, other), (task, 'matched', 'unmatched')):
            name_row(row[0], words)
        explain(own[2:], '$I_v$ under its own sound,\n$I_a$ under its own frames')
        explain(other[2:], f'$I_v$ under the sound of {other_task},\n$I_a$ under the frames of {other_task}')
    axes[0, 0].set_title('a clip')
    axes[0, 2].set_title('a clip of another task')
    figure.suptitle(f'Attention, matched and unmatched\n{name}, after {record["after"]}'
                    + ('; white: the true source' if record['clips'][0]['truth_v'] is not None else ''))
    return figure


def figure_3(groups):
    """Attention of a clip of the last task, with its own other modality and with that of a past task's clip."""
    name, run, record = swaps(groups)
    return spurious(name, run, record, [len(record['clips']) - 1])


def figure_16(groups):
    """Figure 3 with other clips: as many as a page holds."""
    name, run, record = swaps(groups)
    return spurious(name, run, record, list(range(len(record['clips']) - 1))[::-1][:ROWS // 3])


# ------------------------------------------------------------------------------ sound sources: Figure 12

def figure_12(groups):
    """Sound source localization by the last model, a column a clip: a frame, the backbone's cosine map of each method, and the
    AVM of FLAVA. The frame is the one in which the source is largest, where that is known, else the middle one."""
    found = same_clips(compared(evaluated(groups, 'localization'), 'method'))
    if not found:
        raise Missing(f'`python eval.py {groups[0].runs[0].folder} --task localization`')
    cfg, record = found[0][1].cfg, found[0][2]
    tasks = [clip['task'] for clip in record['clips']]
    places = [tasks.index(task) for task in dict.fromkeys(tasks)][:8]
    with_avm = [entry for entry in found if entry[1].cfg.method == 'flava'] or found[-1:]
    rows = [(f'cosine: {label}', own, 'cosine_v') for label, _, own in found] + [(f'AVM: {with_avm[0][0]}', with_avm[0][2], 'I_v')]
    size = min(0.8, 5.4 / len(places))
    figure, axes = plt.subplots(1 + len(rows), len(places), squeeze=False, layout='constrained',
                                figsize=(max(4.5, 1.6 + size * len(places)), (size + 0.05) * (1 + len(rows)) + 0.7))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for column, place in enumerate(places):
        clip = record['clips'][place]
        truth = None if clip['truth_v'] is None else clip['truth_v'].reshape(cfg.grid_v)
        t = len(clip['frames']) // 2 if truth is None else int(truth.sum((1, 2)).argmax())
        frame = clip['frames'][t:t + 1]
        show_frames(axes[0, column], cfg, frame)
        axes[0, column].set_title(record['tasks'][clip['task']].replace('_', '\n').replace('&', '\n&'))
        for axis, (_, own, key) in zip(axes[1:, column], rows):
            heat = own['clips'][place][key][-1].reshape(cfg.grid_v)[t]
            show_frames(axis, cfg, frame, heat, None if truth is None else truth[t])
    for axis, name in zip(axes[:, 0], ['raw'] + [name for name, _, _ in rows]):
        name_row(axis, name)
    figure.suptitle('Sound source localization' + ('; white: the true source' if record['clips'][0]['truth_v'] is not None else ''))
    return figure


# --------------------------------------------------------------------- after a run: RUN/figures/attention.png

def attention(backbone, avm, stream, cfg, device, clips=4):
    """One retrieval clip of each of some tasks: its frames and I_v over them, its spectrogram and I_a over it.

    Returns the figure. Without a trained AVM (a method that does not select keeps that of the initial pre-training) it shows
    what little there is.
    """
    tasks = torch.linspace(0, len(stream.test) - 1, min(clips, len(stream.test))).round().int().tolist()
    figure, axes = plt.subplots(len(tasks), 4, squeeze=False, layout='constrained', width_ratios=[cfg.num_frames] * 2 + [1.5] * 2,
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
    figure.suptitle('Where the AVM looks (importance scores, Eq. 3)' + ('; white: the true source' if true_v is not None else ''))
    return figure


def true_source(dataset, cfg):
    """truth_a (M,), truth_v (N,) of a data set's first clip where the source is known, else None, None"""
    if not hasattr(dataset, 'scene'):
        return None, None
    from shapes import truth
    return truth(dataset.scene(0), cfg)
