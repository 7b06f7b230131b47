"""How figures look in print: colours, lines, hatches and font sizes; bars and lines with error bars.

In:  groups of runs (`groups.py`) and numbers [(mean, deviation)].
Out: styles for matplotlib, and lines and bars on its axes.

Colours are Okabe & Ito's, which colour-blind readers can tell apart. Each comes with a marker, a line or a hatch.
"""
import numpy as np
from matplotlib.ticker import MaxNLocator

from config import METHODS, SELECTIONS
from downstream.pictures import display_name

HATCHES = ('', '///', '...', 'xx', '\\\\\\', '++', 'oo', '--')

# colour, line, marker; FLAVA and FLAVA+ share a colour, and so do the two bounds, Finetune and Multitask
STYLES = {'finetune': ('#000000', ':', 'x'), 'er': ('#E69F00', '-', 's'), 'mir': ('#56B4E9', '-', 'D'),
          'der++': ('#009E73', '-', '^'), 'gmed': ('#CC79A7', '-', 'v'), 'cls-er': ('#0072B2', '-', 'P'),
          'lump': ('#999999', '-.', 'X'), 'flava': ('#D55E00', '-', 'o'), 'flava+': ('#D55E00', '--', '*'),
          'multitask': ('#000000', '--', '')}
SELECTION_STYLES = {'both': ('#D55E00', '-', 'o'), 'importance': ('#0072B2', '--', 's'),
                    'forget-robust': ('#009E73', '-.', '^'), 'random': ('#E69F00', ':', 'D'),
                    'mats': ('#CC79A7', '-', 'v'), 'excess': ('#56B4E9', (0, (5, 1)), 'h'),
                    'rank': ('#000000', '-', 'P'), 'rank-excess': ('#999999', '-.', '*')}
OTHER_STYLE = '#56B4E9', (0, (5, 1)), 'h'               # a method or selection that you add
STYLES |= {name: OTHER_STYLE for name in METHODS if name not in STYLES}
SELECTION_STYLES |= {name: OTHER_STYLE for name in SELECTIONS if name not in SELECTION_STYLES}

PRINT = {   # matplotlib's rcParams for a page 7 inches wide
    'font.size': 8, 'axes.titlesize': 9, 'figure.titlesize': 9, 'axes.labelsize': 8, 'legend.fontsize': 8,
    'xtick.labelsize': 8, 'ytick.labelsize': 8, 'hatch.linewidth': 0.6, 'lines.linewidth': 1.3, 'lines.markersize': 4.5}


def line_style(style):
    """(colour, line, marker) → keyword arguments of matplotlib's `plot`"""
    return dict(zip(('color', 'linestyle', 'marker'), style))


def ticks_of_tasks(axis, tasks):
    """One tick a task, slanted so that long names fit."""
    axis.set_xticks(range(len(tasks)), map(display_name, tasks), rotation=35, ha='right', rotation_mode='anchor')
    axis.set_xlabel('after learning')
    axis.grid(alpha=0.25)


def error_bars(numbers):
    """[(mean, deviation)] → lengths of the error bars, NaN where there is one seed; None if that is so everywhere"""
    lengths = [np.nan if deviation is None else deviation for _, deviation in numbers]
    return None if np.isnan(lengths).all() else lengths


def lines(axis, series):
    """series [(name, style, {x: (mean, deviation)})]: a line each, with error bars. x None: the same at every x"""
    for k, (name, style, numbers) in enumerate(series):
        if None in numbers:
            axis.axhline(numbers[None][0], label=name, **(style | dict(marker='')))
            continue
        errors = error_bars(numbers.values())
        # shift the lines a little, so that error bars do not cover each other
        shift = 0.05 * (k - (len(series) - 1) / 2) if errors else 0
        axis.errorbar([x + shift for x in numbers], [mean for mean, _ in numbers.values()], errors, capsize=1.5,
                      elinewidth=0.7, label=name, **style)
    axis.grid(alpha=0.25)


def bars(axis, names, numbers, colours, xlabel, digits):
    """Horizontal bars of numbers [(mean, deviation)], the first on top, each with its own hatch and its value."""
    places = range(len(names))
    drawn = axis.barh(places, [mean for mean, _ in numbers], xerr=error_bars(numbers), linewidth=0.7, capsize=2,
                      color=[(colour, 0.55) for colour in colours], edgecolor='black')
    for k, bar in enumerate(drawn):
        bar.set_hatch(HATCHES[k % len(HATCHES)])
    for k, (mean, deviation) in enumerate(numbers):
        axis.annotate(f'{mean:.{digits}f}', (max(mean, 0) + (deviation or 0), k), (3, 0), textcoords='offset points',
                      va='center')
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.margins(x=0.22)                                # room for the values
    axis.xaxis.set_major_locator(MaxNLocator(4))


def legend_below(figure, axis, columns=5):
    """One legend for all panels: the entries of this axis."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc='outside lower center', ncols=min(columns, len(names)), frameon=False)
