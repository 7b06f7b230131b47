"""How figures of numbers look: colours, lines, hatches, sizes for print; and the lines and bars that they share.

In:  groups of runs (`groups.py`), and numbers [(mean, deviation)].
Out: lines and bars on matplotlib's axes.

Colours are told apart in print and by the colour-blind (Okabe & Ito's palette), each with a marker, a line style or a
hatch.
"""
import numpy as np
from matplotlib.ticker import MaxNLocator

from baselines import METHODS
from selection import SELECTIONS

HATCHES = ('', '///', '...', 'xx', '\\\\\\', '++', 'oo', '--')

# Colour, line, marker. FLAVA and FLAVA+ share a colour, and so do the two bounds, Finetune below and Multitask above.
STYLES = {'finetune': ('#000000', ':', 'x'), 'er': ('#E69F00', '-', 's'), 'mir': ('#56B4E9', '-', 'D'),
          'der++': ('#009E73', '-', '^'), 'gmed': ('#CC79A7', '-', 'v'), 'cls-er': ('#0072B2', '-', 'P'),
          'lump': ('#999999', '-.', 'X'), 'flava': ('#D55E00', '-', 'o'), 'flava+': ('#D55E00', '--', '*'),
          'multitask': ('#000000', '--', '')}
SELECTION_STYLES = {'both': ('#D55E00', '-', 'o'), 'importance': ('#0072B2', '--', 's'),
                    'forget-robust': ('#009E73', '-.', '^'), 'random': ('#E69F00', ':', 'D'),
                    'mats': ('#CC79A7', '-', 'v')}
OF_A_FORK = '#56B4E9', (0, (5, 1)), 'h'                   # a method or a selection that the paper has not
STYLES |= {name: OF_A_FORK for name in METHODS if name not in STYLES}
SELECTION_STYLES |= {name: OF_A_FORK for name in SELECTIONS if name not in SELECTION_STYLES}
PRINT = {   # sizes for a page 7 inches wide
    'font.size': 8, 'axes.titlesize': 9, 'figure.titlesize': 9, 'axes.labelsize': 8, 'legend.fontsize': 8,
    'xtick.labelsize': 8, 'ytick.labelsize': 8, 'hatch.linewidth': 0.6, 'lines.linewidth': 1.3, 'lines.markersize': 4.5}


def look(style):
    """(colour, line, marker) → what matplotlib's `plot` takes"""
    return dict(zip(('color', 'linestyle', 'marker'), style))


def looks(groups):
    """A look for the line of each group: its method's; of several of one method, the second and later are hollow."""
    seen, found = [], []
    for group in groups:
        colour, line, marker = STYLES[group.cfg.method]
        again = seen.count(group.cfg.method)
        hollow = dict(linestyle=(0, (1, 1 + again)), marker=marker or '|', markerfacecolor='white') if again else {}
        found.append(look((colour, line, marker)) | hollow)
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
        axis.annotate(f'{mean:.{digits}f}', (max(mean, 0) + (deviation or 0), k), (3, 0), textcoords='offset points',
                      va='center')


def legend_below(figure, axis, columns=5):
    """One legend for all panels: what is drawn in this one."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc='outside lower center', ncols=min(columns, len(names)), frameon=False)
