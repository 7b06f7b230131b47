"""Finished runs, grouped by their options: mean ± standard deviation over seeds.

In:  folders of finished runs: config.json, results.json and, from `eval.py`, eval/*.json. Reads no model and no data.
Out: groups of runs that differ only in their seeds, and their numbers as Markdown; `summary`, a table of any runs.
"""
import dataclasses
import statistics
from pathlib import Path
from typing import NamedTuple

from config import METHODS, PATH_FIELDS, RUNTIME_FIELDS, SELECTIONS, UserError, reads_option
from downstream.finished_run import FinishedRun, ended_early
from utils.markdown import markdown_table

# The paper's names of methods (Table 1), selections (Table 3) and datasets. A method that you add keeps its own name.
METHOD_TITLES = {'finetune': 'Finetune', 'er': 'ER', 'mir': 'MIR', 'der++': 'DER++', 'gmed': 'GMED', 'cls-er': 'CLS-ER',
                 'lump': 'LUMP', 'flava': 'FLAVA', 'flava+': 'FLAVA+', 'multitask': 'Multitask'}
SELECTION_TITLES = {'random': 'Random', 'mats': 'MATS', 'der++': 'DER++', 'importance': 'LAVA', 'forget-robust': 'FRS',
                    'both': 'FLAVA', 'excess': 'excess (ours)', 'rank': 'rank (ours)',
                    'rank-excess': 'rank-excess (ours)'}
METHOD_TITLES |= {name: name for name in METHODS if name not in METHOD_TITLES}
SELECTION_TITLES |= {name: name for name in SELECTIONS if name not in SELECTION_TITLES}
DATASET_TITLES = {'vggsound': 'VGGSound', 'audioset': 'AudioSet'}
DIRECTION_TITLES = {'audio_to_video': 'Audio-to-Video', 'video_to_audio': 'Video-to-Audio'}

SEED_FIELDS = {'seed', 'data_seed'}


class Missing(UserError):
    """A table or figure lacks runs or evaluations; the message names the command that makes them."""


# ---------------------------------------------------------------------------------- groups of runs

class Group(NamedTuple):
    """Runs that differ only in their seeds."""
    options: dict    # {name of a Config field: value}, all that affect the results; None where the run does not read it
    runs: list       # of FinishedRun, one or more

    @property
    def cfg(self):
        return self.runs[0].cfg

    @property
    def title(self):
        """The paper's name. FLAVA with another selection has the selection's name in Table 3."""
        method, selection = METHOD_TITLES[self.cfg.method], SELECTION_TITLES[self.cfg.selection]
        if self.cfg.selection == 'both':
            return method
        return selection if self.cfg.method == 'flava' else f'{method}, {selection}'


def group_runs(paths):
    """Folders of runs → [Group] of the finished ones in the order of Table 1. Of runs with the same options and seeds
    the first counts. Prints what is left out. Raises UserError if no run has finished."""
    groups, seen, found, errors = {}, {}, {}, []
    for path in paths:
        try:
            run = FinishedRun(path, device='cpu')
            run.results                                 # raises if the run has not finished
            found[run.folder.resolve()] = run
        except UserError as error:                      # `runs/*` may hold other files
            errors.append(error)
    if not found:
        raise errors[0]
    for error in errors:
        print(f'left out: {error}')
    for run in found.values():
        # folders may have moved, so files count by their names
        options = {name: value for name, value in dataclasses.asdict(run.cfg).items()
                   if name not in {*RUNTIME_FIELDS, *SEED_FIELDS}}
        options |= {name: Path(options[name]).name for name in ('init', *PATH_FIELDS)}
        options = {name: value if reads_option(run.cfg, name) else None for name, value in options.items()}
        key = tuple(options.items())
        twin = seen.setdefault((key, run.cfg.seed, run.cfg.data_seed), run)
        if twin is run:
            groups.setdefault(key, Group(options, [])).runs.append(run)
        else:
            print(f'{run.folder} has the options and the seed of {twin.folder} and is left out')
    order = list(METHOD_TITLES)
    return sorted(groups.values(), key=lambda group: (order.index(group.cfg.method), group.cfg.selection != 'both'))


def agree(a, b, varied):
    """Whether two groups have the same values of all options that both read, but the varied ones."""
    return all(a.options[name] == b.options[name] for name in a.options
               if name not in varied and None not in (a.options[name], b.options[name]))


def comparable(groups, *varied):
    """The largest set of groups that agree in all options but the varied ones. Of equally large sets, the first.

    The sets grow group by group. None is missed, because a method reads all that a simpler one reads, and more.
    """
    sets = []
    for first in groups:
        found = [first]
        for group in groups:
            if group is not first and all(agree(group, other, varied) for other in found):
                found.append(group)
        sets.append([group for group in groups if group in found])
    return max(sets, key=len, default=[])


def dataset_title(groups):
    """The paper's name of the first group's dataset"""
    return DATASET_TITLES.get(groups[0].cfg.dataset, groups[0].cfg.dataset)


def differing(groups):
    """Names of the options, except the method, in which those of these groups differ that read them."""
    names = groups[0].options if groups else ()
    return [name for name in names if name != 'method'
            and len({group.options[name] for group in groups} - {None}) > 1]


def labels(groups):
    """A name for each group: its title, and the options that tell it from other groups with that title."""
    found = []
    for group in groups:
        same_title = [other for other in groups if other.title == group.title]
        found.append(', '.join([group.title] + [f'{name} {group.options[name]}' for name in differing(same_title)]))
    return found


def with_evaluation(groups, name):
    """The groups with only those runs that have an eval/NAME.json of the whole stream. Raises Missing when there are
    none."""
    found = []
    for group in groups:
        results = [(run, run.load(name)) for run in group.runs]
        found.append(Group(group.options, [run for run, own in results if own is not None and not ended_early(own)]))
    found = [group for group in found if group.runs]
    if not found:
        raise Missing(f'`python eval.py RUN --eval {name}`')
    return found


# ------------------------------------------------------------------------------------- the numbers

def retrieval(direction, recall, which):
    """→ value(run): A or F of "R@1", "R@5", "R@10" or "Avg" in one direction, percent"""
    def value(run):
        return run.results[direction][recall][which]
    return value


def classification(which):
    """→ value(run): A or F of the linear probe (Table 4), percent; None where it was not evaluated"""
    def value(run):
        record = run.load('classification')
        return None if record is None or ended_early(record) else record[which]
    return value


def over_seeds(group, value):
    """value(run) over a group's runs → mean, sample standard deviation; None where there are too few values"""
    return mean_and_deviation(map(value, group.runs))


def mean_and_deviation(values):
    """Values, of which None are missing → mean, sample standard deviation; None where there are too few.

    The paper does not say which deviation its ± is.
    """
    values = [x for x in values if x is not None]
    return (statistics.mean(values) if values else None), (statistics.stdev(values) if len(values) > 1 else None)


def with_value(groups, value):
    """The groups that have this value for at least one run."""
    return [group for group in groups if over_seeds(group, value)[0] is not None]


# ------------------------------------------------------------------------------- as text and Markdown

def number(mean, deviation=None):
    """12.34 ± 0.56, or 12.34, or –"""
    if mean is None:
        return '–'
    return f'{mean:.2f}' if deviation is None else f'{mean:.2f} ± {deviation:.2f}'


def text(ours, paper=None):
    """Our (mean, deviation), and in brackets the paper's number or (number, deviation): "12.34 ± 0.56 (14.16)" """
    paper = paper if isinstance(paper, tuple) else (paper, None)
    return number(*ours) if paper[0] is None else f'{number(*ours)} ({number(*paper)})'


def arrow(which):
    """A ↑ is better when large, F ↓ when small."""
    return f'{which} ↑' if which == 'A' else f'{which} ↓'


def summary(paths):
    """Folders of finished runs → Markdown: retrieval, one row a group, one column for each option that differs.

    Raises UserError as `group_runs` does.
    """
    groups = group_runs(paths)
    options = differing(groups)
    columns = [(direction, recall, which)
               for recall in ('Avg', 'R@10') for direction in DIRECTION_TITLES for which in 'AF']
    short = {'audio_to_video': 'a→v', 'video_to_audio': 'v→a'}
    titles = [f'{short[direction]} {recall} {arrow(which)}' for direction, recall, which in columns]
    header = ['method', *options, 'seeds', 'R@10 by chance', *titles]
    rows = []
    for group in groups:
        numbers = [text(over_seeds(group, retrieval(*column))) for column in columns]
        chance = number(group.runs[0].results.get('chance', {}).get('R@10'))
        values = ['–' if group.options[name] is None else group.options[name] for name in options]
        rows.append([group.title, *values, len(group.runs), chance, *numbers])
    return markdown_table(header, rows)
