"""Figures of the modality gap (5, 13, 14, 15): over the stream, at its end, and the embeddings in 2-D.

In:  groups of finished runs with eval/gap.json, written by `downstream/gap.py`.
Out: matplotlib figures.
"""
import matplotlib.pyplot as plt
import numpy as np

from downstream.pictures import display_name
from paper.groups import SELECTION_TITLES, Missing, comparable, labels, over_seeds, with_evaluation, with_value
from paper.plot_style import SELECTION_STYLES, STYLES, bars, legend_below, line_style, lines, ticks_of_tasks


# ------------------------------------------------------------------------------- what figures share

def gap_by_task(run):
    """→ {place of the last learned task: mean gap of the tasks learned so far}. Multitask has one value, at the end."""
    record = run.load('gap')
    tasks, after = record['tasks'], [name for name in record['after'] if name != 'initial']
    places = [tasks.index(name) if name in tasks else len(tasks) - 1 for name in after]
    return dict(zip(places, record['over_stream']))


def gap_over_stream(axis, groups, names, styles):
    """Fig. 5 a, 13 b, 15 a: one line a group. A group with one value gets a horizontal line."""
    tasks, series = groups[0].runs[0].load('gap')['tasks'], []
    for group, name, style in zip(groups, names, styles):
        places = sorted({place for run in group.runs for place in gap_by_task(run)})
        numbers = {place: over_seeds(group, lambda run: gap_by_task(run).get(place)) for place in places}
        if len(places) == 1 < len(tasks):
            numbers = {None: numbers[places[0]]}
        series.append((name, style, numbers))
    lines(axis, series)
    ticks_of_tasks(axis, tasks)
    axis.set_ylabel('modality gap')


def gap_difference(run):
    """|gap at the end − gap right after each task|, the mean over tasks (Fig. 13 a); None without all models."""
    return run.load('gap')['difference']


def difference_bars(axis, groups, names, colours):
    """Fig. 13 a, 15 b: gap_difference, one bar a group."""
    bars(axis, names, [over_seeds(group, gap_difference) for group in groups], colours, 'modality gap difference', 3)


def axis_limit(groups, task):
    """The largest coordinate of a task's embeddings in 2-D, over the first run of each group."""
    return 1.05 * max(np.abs(xy).max() for g in groups for xy in g.runs[0].load('gap')['clouds'][task].values())


def cloud(axis, run, task, title, limit):
    """Fig. 5 b, 14: audio and video embeddings of a task's clips in 2-D by the last model, and both centres."""
    points = {name: np.array(xy) for name, xy in run.load('gap')['clouds'][task].items()}
    for (name, xy), colour, marker in zip(points.items(), ('#0072B2', '#E69F00'), 'o^'):
        axis.scatter(*xy.T, s=7, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
    centres = np.stack([xy.mean(0) for xy in points.values()])
    axis.plot(*centres.T, color='black', marker='+', markersize=7, label='centres')
    axis.set(title=title, aspect='equal', xlim=(-limit, limit), ylim=(-limit, limit))


# ------------------------------------------------------------------------------------- the figures

def figure_5(groups):
    """Modality gap: (a) over the stream; (b) embeddings of the second task, by CLS-ER and FLAVA as in the paper, or by
    the first two groups."""
    found = comparable(with_evaluation(groups, 'gap'), 'method')
    pair = [group for group in found if group.cfg.method in ('cls-er', 'flava')] or found[:2]
    figure, axes = plt.subplots(1, 1 + len(pair), figsize=(7, 3), layout='constrained',
                                width_ratios=[1.9] + [1] * len(pair))
    gap_over_stream(axes[0], found, labels(found), [line_style(STYLES[group.cfg.method]) for group in found])
    axes[0].set_title('(a) modality gap')
    tasks = pair[0].runs[0].load('gap')['tasks']
    task = min(1, len(tasks) - 1)
    for axis, group in zip(axes[1:], pair):
        cloud(axis, group.runs[0], task, f'(b) {tasks[task]}:\n{group.title}', axis_limit(pair, task))
        axis.tick_params(labelleft=axis is axes[1])
    columns = 3 if len(pair) > 1 else 1                        # as wide as the panels above
    axes[-1].legend(loc='upper right', bbox_to_anchor=(1, -0.14), ncols=columns, columnspacing=1,
                    frameon=False).set_in_layout(False)
    legend_below(figure, axes[0])
    return figure


def figure_13(groups):
    """Modality gap: difference between the end and each task's own end. Panel (b) is Figure 5 of AudioSet's runs."""
    found = with_value(comparable(with_evaluation(groups, 'gap'), 'method'), gap_difference)
    if not found:
        raise Missing('`python eval.py RUN --eval gap` of a run with a model after each task, without --last')
    figure, axis = plt.subplots(figsize=(3.5, 1.4 + 0.2 * max(len(found), 5)), layout='constrained')
    difference_bars(axis, found, labels(found), [STYLES[group.cfg.method][0] for group in found])
    return figure


def figure_14(groups):
    """Embeddings of the first task by the last model, one panel a method."""
    found = comparable(with_evaluation(groups, 'gap'), 'method')
    columns = min(5, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout='constrained',
                                figsize=(max(3.5, 1.4 * columns), 1.6 * rows + 0.7))
    for axis in axes.flat[len(found):]:
        axis.axis('off')
    limit = axis_limit(found, 0)
    for axis, group, name in zip(axes.flat, found, labels(found)):
        cloud(axis, group.runs[0], 0, name, limit)
        axis.label_outer()
    axes[0, 0].set_ylabel(display_name(found[0].runs[0].load('gap')['tasks'][0]))
    legend_below(figure, axes[0, 0])
    return figure


def figure_15(groups):
    """Modality gap of each part of the selection: (a) over the stream, (b) difference as in Figure 13."""
    selections = comparable([group for group in groups if group.cfg.method == 'flava'], 'selection')
    if len(selections) < 2:
        raise Missing('runs of `python train.py --method flava --selection importance`, forget-robust, and their gaps')
    found = comparable(with_evaluation(selections, 'gap'), 'selection')
    names = [SELECTION_TITLES[group.cfg.selection] for group in found]
    styles = [line_style(SELECTION_STYLES[group.cfg.selection]) for group in found]
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.1), layout='constrained', width_ratios=[1.4, 1])
    gap_over_stream(axes[0], found, names, styles)
    axes[0].set_title('(a)')
    legend_below(figure, axes[0])
    found = with_value(found, gap_difference)
    difference_bars(axes[1], found, [SELECTION_TITLES[group.cfg.selection] for group in found],
                    [SELECTION_STYLES[group.cfg.selection][0] for group in found])
    axes[1].set_title('(b)')
    return figure
