"""All figures and tables of the paper that finished runs allow; and Figures 9, 10 and 11, of ablations.

    python -m paper.figures RUN… [--out figures]

In:  folders of finished runs: results.json and, from `eval.py`, eval/*.json and *.pt. Reads no model and no data.
Out: figures/figure_05.png … and table_01.md …; and a line for each one that is missing, with what it needs. Runs that
     differ only in their seeds are one line or bar: mean ± standard deviation.

Figures of the modality gap are in `gap_figures.py`, figures of attention in `attention_figures.py`.
"""
import math
from pathlib import Path

import matplotlib.pyplot as plt

from config import UserError
from downstream.pictures import plot_over_stream
from paper import attention_figures, gap_figures
from paper.groups import (METHOD_TITLES, Missing, classification, comparable, differing, group_runs, over_seeds,
                          retrieval, with_evaluation, with_value)
from paper.plot_style import HATCHES, PRINT, STYLES, bars, error_bars, legend_below, line_style, lines
from paper.tables import TABLES
from utils.checkpoint import check_writable, write_text
from utils.cli import cli_errors, Parser


# ----------------------------------------------------------------------------- memory size: Figure 9

def figure_9(groups):
    """Downstream performance by memory size, one line a method. Methods without a memory get a horizontal line."""
    groups = [group for group in groups if group.title == METHOD_TITLES[group.cfg.method]]     # the paper's selections
    found = comparable(groups, 'method', 'memory_size')
    sizes = sorted({group.cfg.memory_size for group in found if group.options['memory_size'] is not None})
    methods = {name: sorted((group for group in found if group.cfg.method == name), key=lambda g: g.cfg.memory_size)
               for name in METHOD_TITLES}
    if max(map(len, methods.values())) < 2:
        raise Missing('runs of `python train.py --memory-size N` with other sizes N')
    panels = {'audio to video: Avg A, %': retrieval('audio_to_video', 'Avg', 'A'),
              'video to audio: Avg A, %': retrieval('video_to_audio', 'Avg', 'A')}
    if with_value(found, classification('A')):
        panels['classification: A, %'] = classification('A')
    figure, axes = plt.subplots(1, len(panels), figsize=(7, 2.9), layout='constrained')
    for axis, (title, value) in zip(axes, panels.items()):
        series = []
        for method, own in methods.items():
            own = with_value(own, value)
            if method in ('finetune', 'multitask'):
                numbers = {None: over_seeds(group, value) for group in own[:1]}
            else:
                numbers = {math.log2(group.cfg.memory_size): over_seeds(group, value) for group in own}
            if numbers:
                series.append((METHOD_TITLES[method], line_style(STYLES[method]), numbers))
        lines(axis, series)
        axis.set_xticks([math.log2(size) for size in sizes], sizes)
        axis.set(title=title, xlabel='memory size, pairs of whole clips')
    legend_below(figure, axes[0])
    return figure


# ------------------------------------------------------------------------ audio selection: Figure 10

def plot_both_directions(axis, groups, names):
    """A pair of bars a group: Avg A of retrieval in both directions."""
    for k, (direction, colour) in enumerate((('audio_to_video', '#0072B2'), ('video_to_audio', '#E69F00'))):
        numbers = [over_seeds(group, retrieval(direction, 'Avg', 'A')) for group in groups]
        places = [x + 0.38 * (k - 0.5) for x in range(len(groups))]
        drawn = axis.bar(places, [mean for mean, _ in numbers], 0.36, label=direction.replace('_', ' '),
                         yerr=error_bars(numbers), capsize=2, color=(colour, 0.55), edgecolor='black', linewidth=0.7,
                         hatch=HATCHES[k])
        axis.bar_label(drawn, fmt='%.1f', padding=1)
    axis.set_xticks(range(len(groups)), names)
    axis.margins(y=0.12)


def figure_10(groups):
    """Audio patch selection of FLAVA, mean over R@1, 5, 10: (a) sizes of the time chunk, (b) kinds of chunks."""
    flava = [group for group in groups if group.title == METHOD_TITLES['flava']]
    panels = {}
    for title, option in (('(a) time chunk, patches', 'chunk'), ('(b) audio selection', 'audio_selection')):
        by_value = {group.options[option]: group for group in comparable(flava, option)}
        if len(by_value) > 1:
            panels[title] = by_value
    if not panels:
        raise Missing('runs of `python train.py --method flava --chunk 8`, or --audio-selection frequency or none')
    figure, axes = plt.subplots(1, len(panels), squeeze=False, sharey=True, figsize=(3.5 * len(panels), 2.7),
                                layout='constrained')
    for axis, (title, by_value) in zip(axes[0], panels.items()):
        values = [value for value in ('time', 'frequency', 'none') if value in by_value] or sorted(by_value)
        names = ['no chunks' if value == 'none' else value for value in values]
        plot_both_directions(axis, [by_value[value] for value in values], names)
        axis.set_title(title)
    axes[0, 0].set_ylabel('Avg A, %')
    legend_below(figure, axes[0, 0])
    return figure


# ----------------------------------------------------------------- without reconstruction: Figure 11

def figure_11(groups):
    """Classification without the reconstruction loss: (a) A and F, with and without it; (b) each task's accuracy."""
    found = comparable(groups, 'method', 'mae_weight')
    without = {group.cfg.method for group in found if not group.cfg.mae_weight}
    if not without:
        raise Missing('runs of `python train.py --method finetune --mae-weight 0`, likewise er')
    found = with_value(with_evaluation([g for g in found if g.cfg.method in without], 'classification'),
                       classification('A'))
    no_mae = [group for group in found if not group.cfg.mae_weight][:2]
    if not no_mae:
        raise Missing('`python eval.py RUN --eval classification` of runs with --mae-weight 0')

    # panel (b) needs a model after each task, and so does F
    metrics = [which for which in 'AF' if with_value(found, classification(which))]
    heights = [0.9 + 0.22 * len(found)] + ([2.5] if 'F' in metrics else [])
    figure = plt.figure(figsize=(3.5 * len(metrics), sum(heights)), layout='constrained')
    above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    for axis, which in zip(above.subplots(1, len(metrics), squeeze=False)[0], metrics):
        own = with_value(found, classification(which))
        bars(axis, [group.title + ('' if group.cfg.mae_weight else ', no MAE') for group in own],
             [over_seeds(group, classification(which)) for group in own],
             [STYLES[group.cfg.method][0] for group in own], f'{which} of the classification, %', 1)
        axis.set_title('(a)')
    if below:
        plot_tasks(below[0], no_mae)
    return figure


def plot_tasks(subfigure, groups):
    """Figure 11 b: each task's accuracy over the stream, one panel a group, of its first run."""
    axes = subfigure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axis, group in zip(axes, groups):
        record = group.runs[0].load('classification')
        plot_over_stream(axis, record['acc'], record['tasks'], record['after'])
        axis.set_title(f'(b) {group.title}, no MAE: each task')
    axes[0].set_ylabel(f'{record["metric"]}, %')
    subfigure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)


FIGURES = {2: attention_figures.figure_2, 3: attention_figures.figure_3, 5: gap_figures.figure_5, 9: figure_9,
           10: figure_10, 11: figure_11, 12: attention_figures.figure_12, 13: gap_figures.figure_13,
           14: gap_figures.figure_14, 15: gap_figures.figure_15, 16: attention_figures.figure_16,
           17: attention_figures.figure_17}


# ---------------------------------------------------------------------------------- the command line

def write(groups, out, figures=FIGURES, tables=TABLES):
    """Write these figures and tables, as the groups allow → one line each: its file, or what it needs."""
    jobs = [('figure', *job) for job in figures.items()] + [('table', *job) for job in tables.items()]
    lines = []
    for kind, number, make in jobs:
        try:
            with plt.rc_context(PRINT):
                made = make(groups)
                if kind == 'table':
                    file = out / f'table_{number:02d}.md'
                    write_text(file, made)
                else:
                    file = out / f'figure_{number:02d}.png'
                    made.savefig(file, dpi=min(200, 1800 / made.get_figwidth()))       # wide ones have many pictures
                    plt.close(made)
            lines.append(f'{kind} {number}: {file}')
        except Missing as error:
            lines.append(f'{kind} {number}: needs {error}')
    return lines


def main(arguments=None):
    """The command line: runs → figures and tables, one line each."""
    parser = Parser(prog='python -m paper.figures', description='Draw the paper\'s figures and tables.')
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='folders of finished runs')
    parser.add_argument('--out', type=Path, default=Path('figures'), help='folder to write to (default figures)')
    args = parser.parse_args(arguments)
    with cli_errors():
        check_writable(args.out, '--out')
        groups = group_runs(args.runs)
        datasets = {group.cfg.dataset for group in groups}
        if len(datasets) > 1:
            raise UserError(f'runs of {" and ".join(sorted(datasets))}: name those of one dataset at a time')
        print('\n'.join(write(groups, args.out)))
        options = differing(groups)
        if options:
            print(f'These runs also differ in {", ".join(options)}. Each figure and table shows the largest set of runs '
                  'that agree in all options but those that it compares; the others are left out.')


if __name__ == '__main__':
    main()
