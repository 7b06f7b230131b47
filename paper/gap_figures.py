"""Figures of the modality gap (5, 13, 14, 15): over the stream, at its end, and the embeddings in 2-D.

In:  groups of finished runs with eval/gap.json, written by `downstream/gap.py`.
Out: matplotlib figures.
"""
import matplotlib.pyplot as plt
import numpy as np

from paper.groups import (DATASET_TITLES, SELECTION_TITLES, Missing, comparable, labels, over_seeds, with_evaluation,
                          with_value)
from paper.plot_style import (SELECTION_STYLES, STYLES, bars, legend_below, line_style, line_styles, line_with_errors,
                              ticks_of_tasks)


# ------------------------------------------------------------------------------- what figures share

def gap_by_task(run):
    """→ {index of the last learned task: mean gap of the tasks learned so far}. Multitask has one value, at the end."""
    record = run.load('gap')
    tasks, after = record['tasks'], [name for name in record['after'] if name != 'initial']
    places = [tasks.index(name) if name in tasks else len(tasks) - 1 for name in after]
    return dict(zip(places, record['over_stream']))


def gap_difference(run):
    """|gap at the end − gap right after each task|, the mean over tasks (Fig. 13 a); None without all models."""
    return run.load('gap')['difference']


def gap_over_stream(axis, groups, names, styles):
    """Fig. 5 a, 13 b, 15 a: one line a group. A group with a single value gets a horizontal line."""
    tasks = groups[0].runs[0].load('gap')['tasks']
    for k, (group, name, style) in enumerate(zip(groups, names, styles)):
        gaps = [gap_by_task(run) for run in group.runs]
        places = sorted({place for gap in gaps for place in gap})
        numbers = [over_seeds(group, lambda run: gap_by_task(run).get(place)) for place in places]
        if len(places) == 1 < len(tasks):
            axis.axhline(numbers[0][0], label=name, **(style | dict(marker='')))
        else:
            # shift the lines a little, so that error bars do not cover each other
            shift = 0.05 * (k - (len(groups) - 1) / 2) if len(group.runs) > 1 else 0
            line_with_errors(axis, [place + shift for place in places], numbers, label=name, **style)
    ticks_of_tasks(axis, tasks)
    axis.set_ylabel('modality gap')


def axis_limit(groups, task):
    """The largest coordinate of a task's embeddings in 2-D, over the first run of each group."""
    return 1.05 * max(np.abs(xy).max() for g in groups for xy in g.runs[0].load('gap')['clouds'][task].values())


def cloud(axis, run, task, title, limit):
    """Audio and video embeddings of a task's clips in 2-D by the last model (Fig. 5 b, 14), and both centres."""
    points = {name: np.array(xy) for name, xy in run.load('gap')['clouds'][task].items()}
    for (name, xy), colour, marker in zip(points.items(), ('#0072B2', '#E69F00'), 'o^'):
        axis.scatter(*xy.T, s=7, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
    centres = np.stack([xy.mean(0) for xy in points.values()])
    axis.plot(*centres.T, color='black', marker='+', markersize=7, label='centres')
    axis.set(title=title, aspect='equal', xlim=(-limit, limit), ylim=(-limit, limit))


def by_dataset(groups):
    """Comparable groups with a gap: [those of the main dataset], or [those of the main dataset, those of AudioSet]"""
    found = with_evaluation(groups, 'gap')
    audioset = [group for group in found if group.cfg.dataset == 'audioset']
    main = [group for group in found if group.cfg.dataset != 'audioset']
    return [comparable(part, 'method') for part in (main, audioset) if part]


# ------------------------------------------------------------------------------------- the figures

def figure_5(groups):
    """Modality gap: (a) over the stream; (b) embeddings of the second task, by FLAVA and CLS-ER, as in the paper.

    Without these methods, (b) shows the first ones.
    """
    found = by_dataset(groups)[0]
    own = [group for group in found if group.cfg.method == 'flava'] or found[:1]
    others = [group for group in found if group is not own[0] and group.cfg.method != 'multitask']
    pair = sorted(others, key=lambda group: group.cfg.method != 'cls-er')[:1] + own[:1]
    figure, axes = plt.subplots(1, 1 + len(pair), figsize=(7, 3), layout='constrained',
                                width_ratios=[1.9] + [1] * len(pair))
    gap_over_stream(axes[0], found, labels(found), line_styles(found))
    axes[0].set_title('(a) modality gap')
    tasks = pair[0].runs[0].load('gap')['tasks']
    task = min(1, len(tasks) - 1)
    for axis, group in zip(axes[1:], pair):
        cloud(axis, group.runs[0], task, f'(b) {tasks[task]}:\n{group.title}', axis_limit(pair, task))
        axis.tick_params(labelleft=axis is axes[1])
    axes[1].legend(loc='upper left', bbox_to_anchor=(-0.1, -0.14), ncols=3, frameon=False).set_in_layout(False)
    legend_below(figure, axes[0])
    return figure


def figure_13(groups):
    """Modality gap: (a) difference between the end and each task's own end; (b) over the stream of AudioSet."""
    main, audioset = by_dataset(groups)[0], by_dataset(groups)[-1]
    found = with_value(main, gap_difference)
    if not found:
        raise Missing('`python eval.py RUN --eval gap` of a run with a model after each task, without --last')
    panels = 2 if audioset[0].cfg.dataset == 'audioset' else 1
    figure, axes = plt.subplots(1, panels, squeeze=False, layout='constrained',
                                figsize=(3.5 * panels, 1.4 + 0.2 * max(len(found), 5)))
    bars(axes[0, 0], labels(found), [over_seeds(group, gap_difference) for group in found],
         [STYLES[group.cfg.method][0] for group in found], 'modality gap difference', 3)
    axes[0, 0].set_title(f'(a) {DATASET_TITLES.get(found[0].cfg.dataset, found[0].cfg.dataset)}')
    if panels == 2:
        gap_over_stream(axes[0, 1], audioset, labels(audioset), line_styles(audioset))
        axes[0, 1].set_title('(b) AudioSet')
        legend_below(figure, axes[0, 1])
    return figure


def figure_14(groups):
    """Embeddings of the first task by the last model, one panel a method: (a) main dataset, (b) AudioSet."""
    parts = by_dataset(groups)
    columns = min(5, max(map(len, parts)))
    rows = [-(-len(part) // columns) for part in parts]
    figure, axes = plt.subplots(sum(rows), columns, squeeze=False, layout='constrained',
                                figsize=(max(3.5, 1.4 * columns), 1.6 * sum(rows) + 0.7))
    limit = axis_limit([group for part in parts for group in part], 0)
    for letter, part, top in zip('ab', parts, (0, rows[0])):
        for axis, group, name in zip(axes[top:].flat, part, labels(part)):
            cloud(axis, group.runs[0], 0, name, limit)
        dataset, task = part[0].cfg.dataset, part[0].runs[0].load('gap')['tasks'][0]
        axes[top, 0].set_ylabel(f'({letter}) {DATASET_TITLES.get(dataset, dataset)}: {task}')
    for axis in axes.flat:
        axis.label_outer()
        if not axis.has_data():
            axis.axis('off')
    legend_below(figure, axes[0, 0])
    return figure


def figure_15(groups):
    """Modality gap of each part of the selection: (a) over the stream, (b) difference as in Figure 13."""
    selections = comparable([group for group in groups if group.cfg.method == 'flava'], 'selection')
    if len(selections) < 2:
        raise Missing('runs of `python train.py --method flava --selection importance`, forget-robust, and their gaps')
    found = comparable(with_evaluation(selections, 'gap'), 'selection')
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.1), layout='constrained', width_ratios=[1.4, 1])
    names = [SELECTION_TITLES[group.cfg.selection] for group in found]
    gap_over_stream(axes[0], found, names, [line_style(SELECTION_STYLES[group.cfg.selection]) for group in found])
    axes[0].set_title('(a)')
    legend_below(figure, axes[0])
    found = with_value(found, gap_difference)
    bars(axes[1], [SELECTION_TITLES[g.cfg.selection] for g in found], [over_seeds(g, gap_difference) for g in found],
         [SELECTION_STYLES[g.cfg.selection][0] for g in found], 'modality gap difference', 3)
    axes[1].set_title('(b)')
    return figure
