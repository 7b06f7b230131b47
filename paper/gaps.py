"""Figures of the modality gap (5, 13, 14, 15): over the stream, at its end, and the clouds it is measured between.

In:  groups of finished runs with eval/gap.json, which `downstream/gap.py` left.
Out: matplotlib figures.
"""
import matplotlib.pyplot as plt
import numpy as np

from paper.groups import (SELECTIONS, Missing, command, compared, dataset_name, evaluated, labels, over_seeds,
                          with_value)
from paper.looks import SELECTION_STYLES, STYLES, bars, legend_below, look, looks, spans, ticks_of_tasks


# ------------------------------------------------------------------------------- what figures share

def gap_line(run):
    """→ {place of the task just learned: mean gap of the tasks learned so far}; a Multitask's is at the end"""
    record = run.read('gap')
    after = [name for name in record['after'] if name != 'initial']
    tasks = record['tasks']
    places = [tasks.index(name) if name in tasks else len(tasks) - 1 for name in after]
    return dict(zip(places, record['over_stream']))


def gap_over_stream(axis, groups, names, styles):
    """Fig. 5 a, 13 b, 15 a: a line a group; a single number, which has no stream, is a line across."""
    tasks = groups[0].runs[0].read('gap')['tasks']
    for k, (group, name, style) in enumerate(zip(groups, names, styles)):
        beside = 0.05 * (k - (len(groups) - 1) / 2)        # so that error bars do not cover each other
        places = sorted({place for run in group.runs for place in gap_line(run)})
        numbers = [over_seeds(group, lambda run: gap_line(run).get(place)) for place in places]
        means = [mean for mean, _ in numbers]
        if len(places) == 1 < len(tasks):
            axis.axhline(means[0], label=name, **(style | dict(marker='')))
        else:
            x = places if spans(numbers) is None else [place + beside for place in places]
            axis.errorbar(x, means, spans(numbers), label=name, capsize=1.5, elinewidth=0.7, **style)
    ticks_of_tasks(axis, tasks)
    axis.set_ylabel('modality gap')


def gap_difference(run):
    return run.read('gap')['difference']


def reach(groups, task):
    """How far from the origin the clouds of a task go, over the first runs of these groups."""
    return 1.05 * max(np.abs(xy).max() for g in groups for xy in g.runs[0].read('gap')['clouds'][task].values())


def cloud(axis, run, task, title, far):
    """Both clouds of a task's clips by the last model (Fig. 5 b, 14), and a line from one centre to the other; all that
    is compared goes as far."""
    points = {name: np.array(xy) for name, xy in run.read('gap')['clouds'][task].items()}
    for (name, xy), colour, marker in zip(points.items(), ('#0072B2', '#E69F00'), 'o^'):
        axis.scatter(*xy.T, s=7, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
    centres = np.stack([xy.mean(0) for xy in points.values()])
    axis.plot(*centres.T, color='black', marker='+', markersize=7, label='centres')
    axis.set(title=title, aspect='equal', xlim=(-far, far), ylim=(-far, far))


def main_gaps(all_groups):
    """The methods' groups whose gaps may stand side by side; AudioSet's, which have panels of their own, only when
    alone."""
    found = evaluated(all_groups, 'gap')
    return compared([g for g in found if g.cfg.dataset != 'audioset'] or found, 'method')


def gaps_of_audioset(all_groups):
    """AudioSet's groups whose gaps may stand side by side."""
    return compared([g for g in evaluated(all_groups, 'gap') if g.cfg.dataset == 'audioset'], 'method')


# ------------------------------------------------------------------------------------- the figures

def figure_5(groups):
    """Modality gap: a) over the stream, b) both clouds of the second task, for FLAVA and the method given beside it:
    CLS-ER where it is among the runs, as in the paper."""
    found = main_gaps(groups)
    own = [g for g in found if g.cfg.method == 'flava'] or found[:1]
    others = [g for g in found if g is not own[0] and g.cfg.method != 'multitask']
    pair = sorted(others, key=lambda g: g.cfg.method != 'cls-er')[:1] + own[:1]
    figure, axes = plt.subplots(1, 1 + len(pair), figsize=(7, 3), layout='constrained',
                                width_ratios=[1.9] + [1] * len(pair))
    gap_over_stream(axes[0], found, labels(found), looks(found))
    axes[0].set_title('(a) modality gap')
    tasks = pair[0].runs[0].read('gap')['tasks']
    task = min(1, len(tasks) - 1)
    for axis, group in zip(axes[1:], pair):
        cloud(axis, group.runs[0], task, f'(b) {tasks[task]}:\n{group.name}', reach(pair, task))
        axis.tick_params(labelleft=axis is axes[1])
    axes[1].legend(loc='upper left', bbox_to_anchor=(-0.1, -0.14), ncols=3, frameon=False).set_in_layout(False)
    legend_below(figure, axes[0])
    return figure


def figure_13(groups):
    """Modality gap: a) difference between the end and each task's own completion, a bar a method; b) over the stream of
    AudioSet."""
    found, audioset = with_value(main_gaps(groups), gap_difference), gaps_of_audioset(groups)
    if not found:
        raise Missing('`python eval.py RUN --task gap` of a run with a model after each task, without --last')
    panels = 1 + bool(audioset)
    figure, axes = plt.subplots(1, panels, squeeze=False, layout='constrained',
                                figsize=(3.5 * panels, 1.4 + 0.2 * max(len(found), 5)))
    bars(axes[0, 0], labels(found), [over_seeds(g, gap_difference) for g in found],
         [STYLES[g.cfg.method][0] for g in found], 'modality gap difference', 3)
    axes[0, 0].set_title(f'(a) {dataset_name(found[0].cfg.dataset)}')
    if audioset:
        gap_over_stream(axes[0, 1], audioset, labels(audioset), looks(audioset))
        axes[0, 1].set_title('(b) AudioSet')
        legend_below(figure, axes[0, 1])
    return figure


def figure_14(groups):
    """Both clouds of the first task by the last model, a panel a method: a) of the main data set, b) of AudioSet."""
    main, audioset = main_gaps(groups), gaps_of_audioset(groups)
    parts = [main] + ([audioset] if audioset and main[0].cfg.dataset != 'audioset' else [])
    columns = min(5, max(map(len, parts)))
    rows = [-(-len(part) // columns) for part in parts]
    figure, axes = plt.subplots(sum(rows), columns, squeeze=False, layout='constrained',
                                figsize=(max(3.5, 1.4 * columns), 1.6 * sum(rows) + 0.7))
    far = reach(sum(parts, []), 0)
    for letter, part, top in zip('ab', parts, (0, rows[0])):
        for axis, group, name in zip(axes[top:].flat, part, labels(part)):
            cloud(axis, group.runs[0], 0, name, far)
        task = part[0].runs[0].read('gap')['tasks'][0]
        axes[top, 0].set_ylabel(f'({letter}) {dataset_name(part[0].cfg.dataset)}: {task}')
    for axis in axes.flat:
        axis.label_outer()
        if not axis.has_data():
            axis.axis('off')
    legend_below(figure, axes[0, 0])
    return figure


def figure_15(groups):
    """Modality gap of each component of the selection: a) over the stream, b) difference as in Figure 13."""
    flava = [g for g in groups if g.cfg.method == 'flava']
    selections = compared(flava, 'selection')
    if len(selections) < 2:
        raise Missing(command((flava or [None])[0], method='flava', selection='importance')
                      + ', likewise forget-robust, and their gaps')
    found = compared(evaluated(selections, 'gap'), 'selection')
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.1), layout='constrained', width_ratios=[1.4, 1])
    gap_over_stream(axes[0], found, [SELECTIONS[g.cfg.selection] for g in found],
                    [look(SELECTION_STYLES[g.cfg.selection]) for g in found])
    axes[0].set_title('(a)')
    legend_below(figure, axes[0])
    there = with_value(found, gap_difference)
    bars(axes[1], [SELECTIONS[g.cfg.selection] for g in there], [over_seeds(g, gap_difference) for g in there],
         [SELECTION_STYLES[g.cfg.selection][0] for g in there], 'modality gap difference', 3)
    axes[1].set_title('(b)')
    return figure
