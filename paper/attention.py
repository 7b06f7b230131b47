"""Figures of attention (2, 3, 12, 16, 17): where the AVM and the backbone look, in frames and spectrogram.

In:  groups of finished runs with eval/localization.pt and eval/spurious.pt, which `downstream/` left.
Out: matplotlib figures. Where the source is known (shapes) it is outlined in white.

Each map goes from dark to bright between its own least and greatest value: one shows where it looks, not how strongly.
"""
import matplotlib.pyplot as plt
import torch

from baselines import WITHOUT_ATTENTION
from downstream.pictures import show_frames, show_sound
from paper.groups import Missing, compared, evaluated, labels

ROWS = 16   # of pictures that one page of print holds


# ------------------------------------------------------------------------------- what figures share

def page(rows, cfg):
    """Axes (rows, 4): two halves, each a place for frames and one for sound, all of a row as high as its frames. At
    most 7 inches wide, as a page of print is, the names of the rows included."""
    width_v, width_a = cfg.num_frames, max(1.6, 0.6 * cfg.num_frames)             # in heights of a frame
    height = min(0.55, 5.7 / (2 * (width_v + width_a)))                           # inches
    figure, axes = plt.subplots(rows, 4, squeeze=False, layout='constrained', width_ratios=[width_v, width_a] * 2,
                                figsize=(1.3 + 2 * height * (width_v + width_a), rows * (height + 0.05) + 0.6))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return figure, axes


def show_clip(axes, cfg, clip, of=''):
    """A clip's frames and sound, or with of='other_' those it is set beside, on two axes."""
    show_frames(axes[0], cfg, clip[f'{of}frames'])
    show_sound(axes[1], cfg, clip[f'{of}audio'])


def show_maps(axes, cfg, clip, I_v, I_a):
    """I_v (N,) over a clip's frames and I_a (M,) of its sound, on two axes."""
    show_frames(axes[0], cfg, clip['frames'], I_v, clip['truth_v'])
    show_sound(axes[1], cfg, clip['audio'], I_a, clip['truth_a'])


def name_row(axis, name):
    axis.set_ylabel(name, rotation=0, ha='right', va='center')


def explain(axes, words):
    """Words in place of pictures."""
    for axis in axes:
        axis.axis('off')
    axes[0].text(0.02, 0.5, words, transform=axes[0].transAxes, va='center').set_in_layout(False)


def note_on_truth(record):
    return '; white: the true source' if record['clips'][0]['truth_v'] is not None else ''


# --------------------------------------------------------------------- over the stream: Figures 2, 17

def same_clips(groups):
    """Of each group a run whose clips are the first one's → [(label, run, record of eval/localization.pt)]. Of other
    seeds of shapes the clips are others, and cannot be set side by side."""
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
        raise Missing(f'`python eval.py {chosen[0].runs[0].folder} --task localization` of a run with a model after '
                      'each task, without --last')
    return found


def has_own_avm(run):
    """Whether a run trained its AVM: methods that do not select have none to train."""
    return run.cfg.method.startswith('flava') and run.cfg.selection not in WITHOUT_ATTENTION


def fading(found, places, title):
    """Clips at these places of the record; under each one, a row a method: left after its own task, right at the end.
    The paper does not say by which AVM it shows DER++'s attention; here, by that of the initial pre-training."""
    cfg, record = found[0][1].cfg, found[0][2]
    figure, axes = page(len(places) * (1 + len(found)), cfg)
    last = f'right: after {record["after"][-1]}, the last'
    if not all(has_own_avm(run) for _, run, _ in found):
        last += '\nAVM: FLAVA\'s own; of others, that of\nthe initial pre-training, untrained since'
    for block, (place, rows) in enumerate(zip(places, axes.reshape(len(places), 1 + len(found), 4))):
        clip = record['clips'][place]
        task = record['tasks'][clip['task']]
        show_clip(rows[0], cfg, clip)
        name_row(rows[0, 0], f'({"abcdefghijklmnopqrstuvwxyz"[block % 26]}) {task}')
        explain(rows[0, 2:], f'left: right after {task}\n{last}')
        for row, (label, _, own) in zip(rows[1:], found):
            maps = own['clips'][place]
            name_row(row[0], label)
            for half, model in zip((row[:2], row[2:]), (own['after'].index(task), -1)):
                show_maps(half, cfg, clip, maps['I_v'][model], maps['I_a'][model])
    figure.suptitle(title + note_on_truth(record))
    return figure


def past(found):
    """Places of the clips whose task is not the last, those of the first task before others; one of each task, then the
    second."""
    record = found[0][2]
    tasks = [clip['task'] for clip in record['clips']]
    nth = lambda place: tasks[:place].count(tasks[place])          # the how-manieth of its task
    places = [place for place, task in enumerate(tasks) if task < len(record['tasks']) - 1]
    return sorted(places, key=lambda place: (nth(place), tasks[place]))


def figure_2(groups):
    """Attention of a clip of the first task, by the model that has just learned it and by the last: one for each run
    given."""
    found = followed(groups)
    if not past(found):
        raise Missing('a stream of two tasks or more')
    return fading(found, past(found)[:1], 'Attention ($I_v$, $I_a$) to a past clip')


def figure_17(groups):
    """Figure 2 with other clips: as many as a page holds."""
    found = followed(groups)
    if len(past(found)) < 2:
        raise Missing('a stream of two tasks or more')
    clips = max(1, ROWS // (1 + len(found)))
    return fading(found, past(found)[1:1 + clips], 'Attention ($I_v$, $I_a$) to past clips')


# --------------------------------------------------------------------------- spurious: Figures 3, 16

def swaps(groups):
    """→ name of the method, run and record of eval/spurious.pt: FLAVA's where there is one, else the first given"""
    found = [(g, run) for g in evaluated(groups, 'spurious') for run in g.runs if run.found('spurious', 'pt')]
    if not found:
        raise Missing('`python eval.py RUN --task spurious`, of which only the numbers are left')
    group, run = next((entry for entry in found if entry[0].cfg.method == 'flava'), found[0])
    return group.name, run, run.tensors('spurious')


def spurious(name, run, record, places):
    """Of each clip three rows: (a) its frames and sound, and the other's; (b) attention with its own; (c) with the
    other's."""
    cfg = run.cfg
    figure, axes = page(3 * len(places), cfg)
    for place, (raw, own, other) in zip(places, axes.reshape(len(places), 3, 4)):
        clip = record['clips'][place]
        task, other_task = record['tasks'][clip['task']], record['tasks'][clip['other_task']]
        show_clip(raw[:2], cfg, clip)
        show_clip(raw[2:], cfg, clip, of='other_')
        show_maps(own[:2], cfg, clip, clip['I_v'], clip['I_a'])
        show_maps(other[:2], cfg, clip, clip['I_v_other'], clip['I_a_other'])
        for row, words in zip((raw, own, other), (task, 'matched', 'unmatched')):
            name_row(row[0], words)
        explain(own[2:], '$I_v$ under its own sound,\n$I_a$ under its own frames')
        explain(other[2:], f'$I_v$ under the sound of {other_task},\n$I_a$ under the frames of {other_task}')
    axes[0, 0].set_title('a clip')
    axes[0, 2].set_title('a clip of another task')
    figure.suptitle(f'Attention, matched and unmatched\n{name}, after {record["after"]}' + note_on_truth(record))
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

def most_of_source(clip, cfg):
    """→ t, the frame in which the source is largest, where that is known, else the middle one; and truth_v by frames,
    or None"""
    if clip['truth_v'] is None:
        return len(clip['frames']) // 2, None
    truth = clip['truth_v'].reshape(cfg.grid_v)
    return int(truth.sum((1, 2)).argmax()), truth


def figure_12(groups):
    """Sound source localization by the last model, a column a clip: a frame, the backbone's cosine map of each method,
    and the AVM of FLAVA."""
    found = same_clips(compared(evaluated(groups, 'localization'), 'method'))
    if not found:
        raise Missing(f'`python eval.py {groups[0].runs[0].folder} --task localization`')
    cfg, record = found[0][1].cfg, found[0][2]
    tasks = [clip['task'] for clip in record['clips']]
    places = [tasks.index(task) for task in dict.fromkeys(tasks)][:8]
    rows = [(f'cosine: {label}', own, 'cosine_v') for label, _, own in found]
    label, _, own = next((entry for entry in found if entry[1].cfg.method == 'flava'), found[-1])
    rows.append((f'AVM: {label}', own, 'I_v'))
    size = min(0.8, 5.4 / len(places))
    figure, axes = plt.subplots(1 + len(rows), len(places), squeeze=False, layout='constrained',
                                figsize=(max(4.5, 1.6 + size * len(places)), (size + 0.05) * (1 + len(rows)) + 0.7))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for column, place in enumerate(places):
        clip = record['clips'][place]
        t, truth = most_of_source(clip, cfg)
        frame, true = clip['frames'][t:t + 1], None if truth is None else truth[t]
        show_frames(axes[0, column], cfg, frame)
        axes[0, column].set_title(record['tasks'][clip['task']].replace('_', '\n').replace('&', '\n&'))
        for axis, (_, own, key) in zip(axes[1:, column], rows):
            show_frames(axis, cfg, frame, own['clips'][place][key][-1].reshape(cfg.grid_v)[t], true)
    for axis, name in zip(axes[:, 0], ['raw'] + [name for name, _, _ in rows]):
        name_row(axis, name)
    figure.suptitle('Sound source localization' + note_on_truth(record))
    return figure
