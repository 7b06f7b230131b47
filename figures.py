"""Figures of numbers (5, 9, 10, 11, 13, 14, 15), and the command that draws every figure and writes every table of the paper.

    python figures.py RUN… [--out figures]     every figure and table that what these runs recorded allows

In:  folders of finished runs: results.json and, from `eval.py`, eval/*.json and *.pt. No model and no data is read.
Out: figures/figure_05.png … and table_01.md …; for each that is not there, a line that says what it needs. Runs that differ only
     in their seed are one line or bar: mean ± standard deviation. Figures of attention are in `maps.py`, tables in `tables.py`.

Colours are told apart in print and by the colour-blind (Okabe & Ito's palette), each with a marker, a line style or a hatch.
"""
import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

import maps
from config import exit_politely
from maps import attention
from tables import NAMES, SELECTIONS, TABLES, Missing, classified, command, compared, dataset_name, evaluated, groups, labels
from tables import over_seeds, retrieval

OKABE_ITO = ('#E69F00', '#56B4E9', '#009E73', '#CC79A7', '#0072B2', '#D55E00', '#000000', '#999999')   # gray for its yellow
MARKERS = 'osD^vPX*'
HATCHES = ('', '///', '...', 'xx', '\\\\\\', '++', 'oo', '--')

# Colour, line, marker. FLAVA and FLAVA+ share a colour, and so do the two bounds, Finetune below and Multitask above.
STYLES = {'finetune': ('#000000', ':', 'x'), 'er': ('#E69F00', '-', 's'), 'mir': ('#56B4E9', '-', 'D'),
          'der++': ('#009E73', '-', '^'), 'gmed': ('#CC79A7', '-', 'v'), 'cls-er': ('#0072B2', '-', 'P'),
          'lump': ('#999999', '-.', 'X'), 'flava': ('#D55E00', '-', 'o'), 'flava+': ('#D55E00', '--', '*'),
          'multitask': ('#000000', '--', '')}
SELECTION_STYLES = {'both': ('#D55E00', '-', 'o'), 'importance': ('#0072B2', '--', 's'), 'forget-robust': ('#009E73', '-.', '^'),
                    'random': ('#E69F00', ':', 'D'), 'mats': ('#CC79A7', '-', 'v')}
PRINT = {   # sizes for a page 7 inches wide
    'font.size': 8, 'axes.titlesize': 9, 'figure.titlesize': 9, 'axes.labelsize': 8, 'legend.fontsize': 8, 'xtick.labelsize': 8,
    'ytick.labelsize': 8, 'hatch.linewidth': 0.6, 'lines.linewidth': 1.3, 'lines.markersize': 4.5}


# ----------------------------------------------------------------------------- after a run: RUN/figures

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


# ------------------------------------------------------------------------------- what figures share

def looks(groups):
    """A look for the line of each group: that of its method; of several of one method, the second and later are hollow."""
    seen, found = [], []
    for group in groups:
        colour, line, marker = STYLES[group.cfg.method]
        again = seen.count(group.cfg.method)
        hollow = dict(linestyle=(0, (1, 1 + again)), marker=marker or '|', markerfacecolor='white') if again else {}
        found.append(dict(color=colour, linestyle=line, marker=marker) | hollow)
        seen.append(group.cfg.method)
    return found


def ticks_of_tasks(axis, tasks):
    """One tick a task, as long names allow."""
    axis.set_xticks(range(len(tasks)), tasks, rotation=35, ha='right', rotation_mode='anchor')
    axis.set_xlabel('after learning')
    axis.grid(alpha=0.25)


def spans(numbers):
    """Lengths of error bars for [(mean, deviation)]: none where there is one seed; None where that is so of all."""
    lengths = [np.nan if deviation is None else deviation for _, deviation in numbers]
    return None if np.isnan(lengths).all() else lengths


def bars(axis, names, numbers, colours, xlabel, digits):
    """Lying bars of numbers [(mean, deviation)], the first on top, each with its hatch and its value."""
    place = range(len(names))
    drawn = axis.barh(place, [mean for mean, _ in numbers], xerr=spans(numbers),
                      color=[(colour, 0.55) for colour in colours], edgecolor='black', linewidth=0.7, capsize=2)
    for k, bar in enumerate(drawn):
        bar.set_hatch(HATCHES[k % len(HATCHES)])
    axis.set_yticks(place, names)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.margins(x=0.22)                                   # room for the values
    axis.xaxis.set_major_locator(MaxNLocator(4))
    for k, (mean, deviation) in enumerate(numbers):
        axis.annotate(f'{mean:.{digits}f}', (max(mean, 0) + (deviation or 0), k), (3, 0), textcoords='offset points', va='center')


def legend_below(figure, axis, columns=5):
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc='outside lower center', ncols=min(columns, len(names)), frameon=False)


# ------------------------------------------------------------------ modality gap: Figures 5, 13, 14, 15

def gap_line(run):
    """→ {place of the task just learned: mean gap of the tasks learned so far}; a Multitask's is at the end"""
    record = run.read('gap')
    after = [name for name in record['after'] if name != 'initial']
    places = [record['tasks'].index(name) if name in record['tasks'] else len(record['tasks']) - 1 for name in after]
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
    """Both clouds of a task's clips by the last model (Fig. 5 b, 14), and a line from one centre to the other; all that is compared
    goes as far."""
    points = {name: np.array(xy) for name, xy in run.read('gap')['clouds'][task].items()}
    for (name, xy), colour, marker in zip(points.items(), ('#0072B2', '#E69F00'), 'o^'):
        axis.scatter(*xy.T, s=7, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
    axis.plot(*np.stack([xy.mean(0) for xy in points.values()]).T, color='black', marker='+', markersize=7, label='centres')
    axis.set(title=title, aspect='equal', xlim=(-far, far), ylim=(-far, far))


def main_gaps(all_groups):
    """The methods' groups whose gaps may stand side by side; AudioSet's, which have panels of their own, only when alone."""
    found = evaluated(all_groups, 'gap')
    return compared([g for g in found if g.cfg.dataset != 'audioset'] or found, 'method')


def figure_5(groups):
    """Modality gap: a) over the stream, b) both clouds of the second task, for FLAVA and the method given beside it: CLS-ER where
    it is among the runs, as in the paper."""
    found = main_gaps(groups)
    own = [g for g in found if g.cfg.method == 'flava'] or found[:1]
    others = sorted((g for g in found if g is not own[0] and g.cfg.method != 'multitask'), key=lambda g: g.cfg.method != 'cls-er')
    pair = others[:1] + own[:1]
    figure, axes = plt.subplots(1, 1 + len(pair), figsize=(7, 3), layout='constrained', width_ratios=[1.9] + [1] * len(pair))
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
    found = [g for g in main_gaps(groups) if over_seeds(g, gap_difference)[0] is not None]
    audioset = compared([g for g in evaluated(groups, 'gap') if g.cfg.dataset == 'audioset'], 'method')
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
        legend_below(figure, axes[0, 1], 5)
    return figure


def figure_14(groups):
    """Both clouds of the first task by the last model, a panel a method: a) of the main data set, b) of AudioSet."""
    main = main_gaps(groups)
    audioset = compared([g for g in evaluated(groups, 'gap') if g.cfg.dataset == 'audioset'], 'method')
    parts = [main] + ([audioset] if audioset and main[0].cfg.dataset != 'audioset' else [])
    columns = min(5, max(map(len, parts)))
    rows = [-(-len(part) // columns) for part in parts]
    figure, axes = plt.subplots(sum(rows), columns, squeeze=False, layout='constrained',
                                figsize=(max(3.5, 1.4 * columns), 1.6 * sum(rows) + 0.7))
    for letter, part, top in zip('ab', parts, (0, rows[0])):
        for axis, group, name in zip(axes[top:].flat, part, labels(part)):
            cloud(axis, group.runs[0], 0, name, reach(sum(parts, []), 0))
        axes[top, 0].set_ylabel(f'({letter}) {dataset_name(part[0].cfg.dataset)}: {part[0].runs[0].read("gap")["tasks"][0]}')
    for axis in axes.flat:
        axis.label_outer()
        if not axis.has_data():
            axis.axis('off')
    legend_below(figure, axes[0, 0])
    return figure


def figure_15(groups):
    """Modality gap of each component of the selection: a) over the stream, b) difference as in Figure 13."""
    flava = [g for g in groups if g.cfg.method == 'flava']
    if len(compared(flava, 'selection')) < 2:
        raise Missing(command((flava or [None])[0], method='flava', selection='importance')
                      + ', likewise forget-robust, and their gaps')
    found = compared(evaluated(compared(flava, 'selection'), 'gap'), 'selection')
    names = [SELECTIONS[g.cfg.selection] for g in found]
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.1), layout='constrained', width_ratios=[1.4, 1])
    styles = [dict(zip(('color', 'linestyle', 'marker'), SELECTION_STYLES[g.cfg.selection])) for g in found]
    gap_over_stream(axes[0], found, names, styles)
    axes[0].set_title('(a)')
    legend_below(figure, axes[0])
    numbers = [over_seeds(g, gap_difference) for g in found]
    there = [k for k, (mean, _) in enumerate(numbers) if mean is not None]
    bars(axes[1], [names[k] for k in there], [numbers[k] for k in there], [styles[k]['color'] for k in there],
         'modality gap difference', 3)
    axes[1].set_title('(b)')
    return figure


# ---------------------------------------------------------------------- ablations: Figures 9, 10, 11

def figure_9(groups):
    """Downstream performance by memory size, a line a method; Finetune and Multitask, which have no memory, are lines across."""
    found = compared(groups, 'method', 'memory_size')
    methods = {m: sorted((g for g in found if g.cfg.method == m), key=lambda g: g.cfg.memory_size) for m in NAMES}
    if max(map(len, methods.values())) < 2:
        own = next((g for g in groups if g.cfg.method not in ('finetune', 'multitask')), None)          # they have no memory
        size = (own or groups[0]).cfg.memory_size // 2
        raise Missing(command(own, memory_size=size) + ', and other sizes')
    panels = {'audio to video: Avg A, %': retrieval('audio_to_video', 'Avg', 'A'),
              'video to audio: Avg A, %': retrieval('video_to_audio', 'Avg', 'A'), 'classification: A, %': classified('A')}
    if all(over_seeds(g, classified('A'))[0] is None for g in found):
        panels.pop('classification: A, %')
    figure, axes = plt.subplots(1, len(panels), figsize=(7, 2.9), layout='constrained')
    for axis, (title, value) in zip(axes, panels.items()):
        for k, (method, own) in enumerate(methods.items()):
            points = [(g.cfg.memory_size, *over_seeds(g, value)) for g in own if over_seeds(g, value)[0] is not None]
            style = dict(zip(('color', 'linestyle', 'marker'), STYLES[method]), label=NAMES[method])
            if points and method in ('finetune', 'multitask'):
                axis.axhline(points[0][1], **(style | dict(marker='')))
            elif points:
                beside = 2 ** (0.03 * (k - 4.5))           # so that error bars do not cover each other
                axis.errorbar([size * beside for size, _, _ in points], [mean for _, mean, _ in points],
                              spans([point[1:] for point in points]), capsize=1.5, elinewidth=0.7, **style)
        sizes = sorted({g.cfg.memory_size for g in found})
        axis.set_xscale('log', base=2)
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
        axis.set_xlabel('pairs in the memory')
        axis.set_title(title)
        axis.grid(alpha=0.25)
    legend_below(figure, axes[0])
    return figure


def figure_10(groups):
    """Audio patch selection of FLAVA, mean over R@1, 5, 10 in both directions: a) sizes of the time chunk, b) by time, by frequency
    or without constraint."""
    flava = [g for g in groups if g.cfg.method == 'flava']
    options = {'(a) time chunk, patches': 'chunk', '(b) audio selection': 'audio_selection'}
    sets = {title: (option, compared(flava, option)) for title, option in options.items() if len(compared(flava, option)) > 1}
    if not sets:
        raise Missing(f'{command((flava or [None])[0], method="flava", chunk=8)}, or with --audio-selection frequency')
    figure, axes = plt.subplots(1, len(sets), squeeze=False, figsize=(3.5 * len(sets), 2.7), layout='constrained', sharey=True)
    for axis, (title, (option, found)) in zip(axes[0], sets.items()):
        order = ['time', 'frequency', 'none']
        found = sorted(found, key=lambda g: order.index(g.options[option]) if option == 'audio_selection' else g.options[option])
        for k, (direction, colour) in enumerate((('audio_to_video', '#0072B2'), ('video_to_audio', '#E69F00'))):
            numbers = [over_seeds(g, retrieval(direction, 'Avg', 'A')) for g in found]
            drawn = axis.bar([x + 0.38 * (k - 0.5) for x in range(len(found))], [mean for mean, _ in numbers], 0.36,
                             label=direction.replace('_', ' '), yerr=spans(numbers), capsize=2, color=(colour, 0.55),
                             edgecolor='black', linewidth=0.7, hatch=HATCHES[k])
            axis.bar_label(drawn, fmt='%.1f', padding=1)
        axis.set_xticks(range(len(found)), ['no constraint' if g.options[option] == 'none' else g.options[option] for g in found])
        axis.set_title(title)
        axis.margins(y=0.12)
    axes[0, 0].set_ylabel('Avg A, %')
    legend_below(figure, axes[0, 0])
    return figure


def figure_11(groups):
    """Classification without the reconstruction loss: a) A and F beside those of the same methods with it, b) accuracy of each
    task over the stream without it, a panel a method."""
    found = compared(groups, 'method', 'mae_weight')
    without = {g.cfg.method for g in found if not g.cfg.mae_weight}
    if not without:
        raise Missing(command(found[0], method='finetune', mae_weight=0) + ', likewise er, and their classification')
    found = evaluated([g for g in found if g.cfg.method in without], 'classification')
    found = [g for g in found if over_seeds(g, classified('A'))[0] is not None]
    bare = [g for g in found if not g.cfg.mae_weight]
    if not bare:
        raise Missing('`python eval.py RUN --task classification` of runs with --mae-weight 0')
    panels = bare[:2]
    figure = plt.figure(figsize=(7, 2.6 + 0.22 * len(found)), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=[0.9 + 0.22 * len(found), 2.5])
    names = [g.name + ('' if g.cfg.mae_weight else ', no MAE') for g in found]
    for axis, which in zip(above.subplots(1, 2), 'AF'):
        own = [(name, g, over_seeds(g, classified(which))) for name, g in zip(names, found)]
        own = [entry for entry in own if entry[2][0] is not None]
        bars(axis, [name for name, _, _ in own], [number for _, _, number in own], [STYLES[g.cfg.method][0] for _, g, _ in own],
             f'{which} of the classification, %', 1)
        axis.set_title('(a)')
    axes = below.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, group in zip(axes, panels):
        record = next(run.read('classification') for run in group.runs if classified('A')(run) is not None)
        for i, task in enumerate(record['tasks']):
            line = [(t, row[i]) for t, row in enumerate(record['acc']) if row[i] is not None]
            axis.plot(*zip(*line), color=OKABE_ITO[i % 8], marker=MARKERS[i % 8], label=task)
        ticks_of_tasks(axis, record['after'])
        axis.set_title(f'(b) {group.name}, no MAE: each task')
    axes[0].set_ylabel(f'{record["metric"]}, %')
    below.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)
    return figure


FIGURES = {2: maps.figure_2, 3: maps.figure_3, 5: figure_5, 9: figure_9, 10: figure_10, 11: figure_11, 12: maps.figure_12,
           13: figure_13, 14: figure_14, 15: figure_15, 16: maps.figure_16, 17: maps.figure_17}


# ---------------------------------------------------------------------------------- the command line

def write(found, out):
    """Every figure and table that these groups allow → lines that say where each is, or what it needs."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(kind, number, make) for kind, made in (('figure', FIGURES), ('table', TABLES)) for number, make in made.items()]
    lines = []
    for kind, number, make in tqdm(jobs, desc='drawing', leave=False, disable=None):
        file = out / (f'{kind}_{number:02d}' + ('.png' if kind == 'figure' else '.md'))
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
    parser = argparse.ArgumentParser(description='Draw the paper\'s figures and tables from finished runs.', allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='folders of finished runs: methods, seeds, options')
    parser.add_argument('--out', type=Path, default=Path('figures'), help='folder to write (default figures)')
    args = parser.parse_args(arguments)
    with exit_politely():
        found = groups(args.runs)
        print('\n'.join(write(found, args.out) + incomplete(found)))


if __name__ == '__main__':
    main()
