"""Figures of attention (2, 3, 12, 16, 17): where the AVM and the backbone look, in frames and spectrogram.

In:  groups of finished runs with eval/localization.pt and eval/spurious.pt, written by `downstream/`.
Out: matplotlib figures with one row a map pair, drawn by `downstream.pictures.plot_maps`.
"""
import copy

import torch

from downstream.pictures import plot_maps
from paper.groups import Missing, comparable, labels, with_evaluation


def same_clips(groups):
    """For each group a run with the same clips as the first one → [(label, run, record of eval/localization.pt)].

    Other data seeds of shapes make other clips.
    """
    found, frames = [], None
    for label, group in zip(labels(groups), groups):
        for run in group.runs:
            record = run.load_tensors('localization')
            if record is None:
                continue
            own = torch.stack([clip['frames'] for clip in record['clips']])
            if frames is None or torch.equal(own, frames):
                found.append((label, run, record))
                frames = own
                break
    if not found:
        raise Missing('eval/localization.pt: `python eval.py RUN --eval localization`')
    return found


# --------------------------------------------------------------------- over the stream: Figures 2, 17

def attention_over_stream(groups, first, number):
    """Past clips number first … first + number − 1: one row a method.

    The maps are those right after the clip's own task, and those of the last model. The paper does not say by which AVM
    it shows the attention of DER++. Here, methods that do not train the AVM show that of the initial pre-training.
    """
    found = same_clips(comparable(with_evaluation(groups, 'localization'), 'method'))
    found = [(label, run, record) for label, run, record in found
             if len(record['tasks']) > 1 and set(record['tasks']) <= set(record['after'])]
    if not found:
        raise Missing('`python eval.py RUN --eval localization` of a run with models after two tasks, without --last')
    _, run, record = found[0]
    past = [k for k, clip in enumerate(record['clips']) if clip['task'] < len(record['tasks']) - 1]
    rows = []
    for k in past[first:first + number]:
        for label, _, own in found:
            clip, task = own['clips'][k], own['tasks'][own['clips'][k]['task']]
            after = own['after'].index(task)
            maps = {f'{name}_{when}': clip[name][model] for name in ('I_v', 'I_a')
                    for when, model in (('then', after), ('last', -1))}
            rows.append((f'{task}\n{label}', clip | maps))
    last = record['after'][-1]
    return plot_maps(run.cfg, rows, [('$I_v$ after its task', 'I_v_then'), (f'$I_v$ after {last}', 'I_v_last')],
                     [('$I_a$ after its task', 'I_a_then'), (f'$I_a$ after {last}', 'I_a_last')],
                     'Attention to past clips')


def figure_2(groups):
    """Attention to a clip of the first task, right after that task and at the end."""
    return attention_over_stream(groups, 0, 1)


def figure_17(groups):
    """Figure 2 with three other clips."""
    return attention_over_stream(groups, 1, 3)


# --------------------------------------------------------------------------- spurious: Figures 3, 16

def spurious_attention(groups, clips):
    """Attention with a clip's own other modality (matched), and with that of another task's clip (unmatched).

    clips: a slice of the clips of eval/spurious.pt. The run is FLAVA's, or else the first one.
    """
    found = [(group, run) for group in with_evaluation(groups, 'spurious') for run in group.runs
             if run.load_tensors('spurious') is not None]
    if not found:
        raise Missing('eval/spurious.pt: `python eval.py RUN --eval spurious`')
    group, run = next((pair for pair in found if pair[0].cfg.method == 'flava'), found[0])
    record = run.load_tensors('spurious')
    tasks = record['tasks']
    rows = [(f'{tasks[clip["task"]]}\nwith {tasks[clip["other_task"]]}', clip) for clip in record['clips'][clips]]
    return plot_maps(run.cfg, rows, [('$I_v$, matched', 'I_v'), ('$I_v$, unmatched', 'I_v_other')],
                     [('$I_a$, matched', 'I_a'), ('$I_a$, unmatched', 'I_a_other')],
                     f'Attention of {group.title} after {record["after"]}')


def figure_3(groups):
    """Attention to a clip of the last task, with its own other modality and with that of a past task's clip."""
    return spurious_attention(groups, slice(-1, None))


def figure_16(groups):
    """Figure 3 with clips of the other tasks."""
    return spurious_attention(groups, slice(None, -1))


# ------------------------------------------------------------------------------ sound sources: Figure 12

def figure_12(groups):
    """Sound source localization by the last model, one row a task: cosine map of each method, and the AVM of FLAVA."""
    found = same_clips(comparable(with_evaluation(groups, 'localization'), 'method'))
    _, run, record = found[0]
    columns = [(f'cosine: {label}', f'cosine {k}') for k, (label, _, _) in enumerate(found)]
    flava = next((k for k, (_, run, _) in enumerate(found) if run.cfg.method == 'flava'), len(found) - 1)
    columns.append((f'AVM: {found[flava][0]}', 'AVM'))

    # the middle frame of the first clip of each task
    cfg, middle, rows = copy.copy(run.cfg), run.cfg.num_frames // 2, {}
    cfg.num_frames = 1
    for k, clip in enumerate(record['clips']):
        maps = {f'cosine {j}': own['clips'][k]['cosine_v'][-1] for j, (_, _, own) in enumerate(found)}
        maps |= {'AVM': found[flava][2]['clips'][k]['I_v'][-1], 'truth_v': clip['truth_v']}
        maps = {name: None if x is None else x.reshape(run.cfg.grid_v)[middle] for name, x in maps.items()}
        clip = clip | maps | {'frames': clip['frames'][middle:middle + 1]}
        rows.setdefault(record['tasks'][clip['task']], clip)
    return plot_maps(cfg, list(rows.items()), columns, [], 'Sound sources')
