"""Every figure and table of the paper that finished runs allow; and, of the figures, those of ablations (9, 10, 11).

    python -m paper.figures RUN… [--out figures]

In:  folders of finished runs: results.json and, from `eval.py`, eval/*.json and *.pt. No model and no data is read.
Out: figures/figure_05.png … and table_01.md …; for each that is not there, a line that says what it needs. Runs that
     differ only in their seed are one line or bar: mean ± standard deviation.

Figures of the modality gap are in `gaps.py`, those of attention in `attention.py`, tables in `tables.py`.
"""
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from tqdm import tqdm

from config import exit_politely
from downstream import pictures
from paper import attention, gaps
from paper.groups import (NAMES, Missing, classified, command, compared, evaluated, groups, over_seeds, retrieval,
                          with_value)
from paper.looks import HATCHES, PRINT, STYLES, bars, legend_below, look, spans, ticks_of_tasks
from paper.tables import TABLES
from weights import check_writable


# ----------------------------------------------------------------------------- memory size: Figure 9

def by_memory_size(axis, methods, value):
    """A line a method over the sizes; across, where there is no memory. methods: {name: its groups, by size}"""
    for k, (method, own) in enumerate(methods.items()):
        points = [(g.cfg.memory_size, over_seeds(g, value)) for g in with_value(own, value)]
        numbers = [number for _, number in points]
        style = dict(look(STYLES[method]), label=NAMES[method])
        if points and method in ('finetune', 'multitask'):
            axis.axhline(numbers[0][0], **(style | dict(marker='')))
        elif points:
            beside = 2 ** (0.03 * (k - 4.5))           # so that error bars do not cover each other
            axis.errorbar([size * beside for size, _ in points], [mean for mean, _ in numbers], spans(numbers),
                          capsize=1.5, elinewidth=0.7, **style)
    sizes = sorted({g.cfg.memory_size for own in methods.values() for g in own})
    axis.set_xscale('log', base=2)
    axis.set_xticks(sizes, sizes)
    axis.minorticks_off()
    axis.set_xlabel('pairs in the memory')
    axis.grid(alpha=0.25)


def figure_9(groups):
    """Downstream performance by memory size, a line a method; Finetune and Multitask, which have no memory, are lines
    across."""
    found = compared(groups, 'method', 'memory_size')
    methods = {name: sorted((g for g in found if g.cfg.method == name), key=lambda g: g.cfg.memory_size)
               for name in NAMES}
    if max(map(len, methods.values())) < 2:
        own = next((g for g in groups if g.cfg.method not in ('finetune', 'multitask')), None)   # they have no memory
        size = (own or groups[0]).cfg.memory_size // 2
        raise Missing(command(own, memory_size=size) + ', and other sizes')
    panels = {'audio to video: Avg A, %': retrieval('audio_to_video', 'Avg', 'A'),
              'video to audio: Avg A, %': retrieval('video_to_audio', 'Avg', 'A')}
    if with_value(found, classified('A')):
        panels['classification: A, %'] = classified('A')
    figure, axes = plt.subplots(1, len(panels), figsize=(7, 2.9), layout='constrained')
    for axis, (title, value) in zip(axes, panels.items()):
        by_memory_size(axis, methods, value)
        axis.set_title(title)
    legend_below(figure, axes[0])
    return figure


# ------------------------------------------------------------------------ audio selection: Figure 10

def both_directions(axis, groups, names):
    """A pair of bars a group: Avg A of retrieval in either direction."""
    for k, (direction, colour) in enumerate((('audio_to_video', '#0072B2'), ('video_to_audio', '#E69F00'))):
        numbers = [over_seeds(g, retrieval(direction, 'Avg', 'A')) for g in groups]
        places = [x + 0.38 * (k - 0.5) for x in range(len(groups))]
        drawn = axis.bar(places, [mean for mean, _ in numbers], 0.36, label=direction.replace('_', ' '),
                         yerr=spans(numbers), capsize=2, color=(colour, 0.55), edgecolor='black', linewidth=0.7,
                         hatch=HATCHES[k])
        axis.bar_label(drawn, fmt='%.1f', padding=1)
    axis.set_xticks(range(len(groups)), names)
    axis.margins(y=0.12)


def figure_10(groups):
    """Audio patch selection of FLAVA, mean over R@1, 5, 10 in both directions: a) sizes of the time chunk, b) by time,
    by frequency or without constraint."""
    flava = [g for g in groups if g.cfg.method == 'flava']
    options = {'(a) time chunk, patches': 'chunk', '(b) audio selection': 'audio_selection'}
    sets = {title: (option, compared(flava, option)) for title, option in options.items()}
    sets = {title: (option, found) for title, (option, found) in sets.items() if len(found) > 1}
    if not sets:
        raise Missing(f'{command((flava or [None])[0], method="flava", chunk=8)}, or with --audio-selection frequency')
    figure, axes = plt.subplots(1, len(sets), squeeze=False, figsize=(3.5 * len(sets), 2.7), layout='constrained',
                                sharey=True)
    order = ['time', 'frequency', 'none']
    for axis, (title, (option, found)) in zip(axes[0], sets.items()):
        value = lambda g: g.options[option]
        found = sorted(found, key=value if option == 'chunk' else lambda g: order.index(value(g)))
        both_directions(axis, found, ['no constraint' if value(g) == 'none' else value(g) for g in found])
        axis.set_title(title)
    axes[0, 0].set_ylabel('Avg A, %')
    legend_below(figure, axes[0, 0])
    return figure


# ----------------------------------------------------------------- without reconstruction: Figure 11

def with_and_without(all_groups):
    """Groups with a classification, of the methods that were run without the reconstruction loss as well."""
    found = compared(all_groups, 'method', 'mae_weight')
    without = {g.cfg.method for g in found if not g.cfg.mae_weight}
    if not without:
        raise Missing(command(found[0], method='finetune', mae_weight=0) + ', likewise er, and their classification')
    found = with_value(evaluated([g for g in found if g.cfg.method in without], 'classification'), classified('A'))
    if all(g.cfg.mae_weight for g in found):
        raise Missing('`python eval.py RUN --task classification` of runs with --mae-weight 0')
    return found


def each_task(axis, record):
    """Accuracy of each task over the stream, before it is learned too."""
    for i, task in enumerate(record['tasks']):
        axis.plot([row[i] for row in record['acc']], label=task, **pictures.look(i))
    ticks_of_tasks(axis, record['after'])


def figure_11(groups):
    """Classification without the reconstruction loss: a) A and F beside those of the same methods with it, b) accuracy
    of each task over the stream without it, a panel a method. Of last models alone there is but A."""
    found = with_and_without(groups)
    asked = [which for which in 'AF' if with_value(found, classified(which))]
    over_stream = 'F' in asked
    heights = [0.9 + 0.22 * len(found)] + [2.5] * over_stream
    figure = plt.figure(figsize=(3.5 * len(asked), sum(heights)), layout='constrained')
    above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    for axis, which in zip(above.subplots(1, len(asked), squeeze=False)[0], asked):
        own = with_value(found, classified(which))
        bars(axis, [g.name + ('' if g.cfg.mae_weight else ', no MAE') for g in own],
             [over_seeds(g, classified(which)) for g in own], [STYLES[g.cfg.method][0] for g in own],
             f'{which} of the classification, %', 1)
        axis.set_title('(a)')
    if over_stream:
        each_task_without(below[0], [g for g in found if not g.cfg.mae_weight][:2])
    return figure


def each_task_without(below, panels):
    """Figure 11 b: a panel a group, of its first run with a classification."""
    axes = below.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, group in zip(axes, panels):
        record = next(run.read('classification') for run in group.runs if classified('A')(run) is not None)
        each_task(axis, record)
        axis.set_title(f'(b) {group.name}, no MAE: each task')
    axes[0].set_ylabel(f'{record["metric"]}, %')
    below.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)


FIGURES = {2: attention.figure_2, 3: attention.figure_3, 5: gaps.figure_5, 9: figure_9, 10: figure_10, 11: figure_11,
           12: attention.figure_12, 13: gaps.figure_13, 14: gaps.figure_14, 15: gaps.figure_15,
           16: attention.figure_16, 17: attention.figure_17}


# ---------------------------------------------------------------------------------- the command line

def write(found, out, wanted=FIGURES):
    """Every table and wanted figure that these groups allow → lines that say where each is, or what it needs."""
    jobs = [('figure', 'png', *job) for job in wanted.items()] + [('table', 'md', *job) for job in TABLES.items()]
    lines = []
    for kind, ending, number, make in tqdm(jobs, desc='drawing', leave=False, disable=None):
        file = out / f'{kind}_{number:02d}.{ending}'
        try:
            with plt.rc_context(PRINT):
                made = make(found)
                if kind == 'figure':
                    made.savefig(file, dpi=200)
                    plt.close(made)
                else:
                    file.write_text(made)
            lines.append(f'{kind} {number}: {file}')
        except Missing as error:
            lines.append(f'{kind} {number}: needs {error}')
    return lines


def incomplete(found):
    """Lines that name the runs without what others have: figures leave them out."""
    lines = []
    for task in ('classification', 'ave', 'localization', 'gap', 'spurious'):
        without = [str(run.folder) for group in found for run in group.runs if run.read(task) is None]
        if 0 < len(without) < sum(len(group.runs) for group in found):
            more = f' and {len(without) - 3} more' if len(without) > 3 else ''
            lines.append(f'without {task}, and so left out where it is drawn: {", ".join(without[:3])}{more}')
    return lines


def main(arguments=None):
    """The command line: runs → figures and tables, a line for each."""
    parser = argparse.ArgumentParser(prog='python -m paper.figures', allow_abbrev=False,
                                     description='Draw the paper\'s figures and tables from finished runs.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN',
                        help='folders of finished runs: methods, seeds, options')
    parser.add_argument('--out', type=Path, default=Path('figures'), help='folder to write (default figures)')
    args = parser.parse_args(arguments)
    with exit_politely():
        check_writable(args.out, '--out ')
        found = groups(args.runs)
        print('\n'.join(write(found, args.out) + incomplete(found)))


if __name__ == '__main__':
    main()
