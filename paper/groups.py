"""Finished runs, grouped by their options: mean ± standard deviation over seeds.

In:  folders of finished runs: config.json, results.json and, from `eval.py`, eval/*.json. Reads no model and no data.
Out: groups of runs that differ only in their seeds, and their numbers as Markdown; `summary`, a table of any runs.
"""
import dataclasses
import json
import statistics
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from config import METHODS, RUNTIME_FIELDS, SELECTIONS, UserError
from eval import FinishedRun
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
DIRECTIONS = {'audio_to_video': 'Audio-to-Video', 'video_to_audio': 'Video-to-Audio'}

SEED_FIELDS = {'seed', 'data_seed'}
OF_ONE_METHOD = ('mir_', 'gmed_', 'cls_er_', 'lump_')   # options that start so do nothing in other methods


class Missing(UserError):
    """A table or figure lacks runs or evaluations; the message names the command that makes them."""


# ---------------------------------------------------------------------------- runs, groups of runs

class Run(FinishedRun):
    """A run with its results.json."""

    @cached_property
    def results(self):
        """Raises UserError where the run has not finished."""
        try:
            return json.loads((self.folder / 'results.json').read_text('utf-8'))
        except (OSError, ValueError):
            raise UserError(f'{self.folder} has no readable results.json: finish it with `python train.py … --resume`')


class Group(NamedTuple):
    """Runs that differ only in their seeds."""
    options: dict    # {name of a Config field: value}, all that affect the results
    runs: list       # of Run, one or more

    @property
    def cfg(self):
        return self.runs[0].cfg

    @property
    def title(self):
        """The paper's name. FLAVA with another selection has the selection's name in Table 3."""
        if self.cfg.method == 'flava' and self.cfg.selection != 'both':
            return SELECTION_TITLES[self.cfg.selection]
        return METHOD_TITLES[self.cfg.method]


def group_runs(paths):
    """Folders of finished runs → [Group] in the order of Table 1. A folder counts once.

    Raises UserError where a folder has no finished run, or two runs have the same options and seeds.
    """
    groups, seen = {}, {}
    for run in {Path(path).resolve(): Run(path, device='cpu') for path in paths}.values():
        run.results                                     # raises where the run has not finished
        # folders may have moved, so files count by their names
        options = {name: value for name, value in dataclasses.asdict(run.cfg).items()
                   if name not in {*RUNTIME_FIELDS, *SEED_FIELDS}}
        options |= {name: Path(options[name]).name for name in ('init', 'data')}
        key = tuple(options.items())
        groups.setdefault(key, Group(options, [])).runs.append(run)
        twin = seen.setdefault((key, run.cfg.seed, run.cfg.data_seed), run)
        if twin is not run:
            raise UserError(f'{twin.folder} and {run.folder} have the same options and the same seed: leave one out')
    order = list(METHOD_TITLES)
    return sorted(groups.values(), key=lambda group: order.index(group.cfg.method))


def comparable(groups, *varied):
    """The largest set of groups that agree in all options but the varied ones. Of equally large sets, the first."""
    sets = {}
    for group in groups:
        same = tuple((name, value) for name, value in group.options.items()
                     if name not in varied and not name.startswith(OF_ONE_METHOD))
        sets.setdefault(same, []).append(group)
    return max(sets.values(), key=len, default=[])


def dataset_title(groups):
    """The paper's name of the first group's dataset"""
    return DATASET_TITLES.get(groups[0].cfg.dataset, groups[0].cfg.dataset)


def differing(groups):
    """Names of the options, except the method, in which these groups differ."""
    names = groups[0].options if groups else ()
    return [name for name in names if name != 'method' and len({group.options[name] for group in groups}) > 1]


def labels(groups):
    """A name for each group: its title, and the options that tell it from other groups with that title."""
    found = []
    for group in groups:
        same_title = [other for other in groups if other.title == group.title]
        found.append(', '.join([group.title] + [f'{name} {group.options[name]}' for name in differing(same_title)]))
    return found


def with_evaluation(groups, name):
    """The groups with only those runs that have eval/NAME.json. Raises Missing when there are none."""
    found = [Group(group.options, [run for run in group.runs if run.load(name) is not None]) for group in groups]
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
        return record and record[which]
    return value


def over_seeds(group, value):
    """value(run) over a group's runs → mean, sample standard deviation; None where there are too few values.

    The paper does not say which deviation its ± is.
    """
    values = [x for x in map(value, group.runs) if x is not None]
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
    columns = [(direction, recall, which) for recall in ('Avg', 'R@10') for direction in DIRECTIONS for which in 'AF']
    short = {'audio_to_video': 'a→v', 'video_to_audio': 'v→a'}
    titles = [f'{short[direction]} {recall} {arrow(which)}' for direction, recall, which in columns]
    header = ['method', *options, 'seeds', 'R@10 by chance', *titles]
    rows = []
    for group in groups:
        numbers = [text(over_seeds(group, retrieval(*column))) for column in columns]
        chance = number(group.runs[0].results.get('chance', {}).get('R@10'))
        rows.append([group.title, *(group.options[name] for name in options), len(group.runs), chance, *numbers])
    return markdown_table(header, rows)
