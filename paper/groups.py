"""Finished runs and groups of them: which may stand side by side, what they are called, mean ± deviation over seeds.

In:  folders of finished runs: config.json, results.json and, from `eval.py`, eval/*.json. No model and no data is read.
Out: groups of runs that differ only in their seed; their numbers as text and Markdown; `summary`, a table of any runs.
"""
import json
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

import selection
from baselines import METHODS
from config import FREE_TO_CHANGE, Config, parse
from patches import UserError
from run import Recorded

# The paper's names, in the order of Table 1, which is that of METHODS, and of Table 3; of a fork's own, the option's.
NAMES = {name: name for name in METHODS} | {
    'finetune': 'Finetune', 'er': 'ER', 'mir': 'MIR', 'der++': 'DER++', 'gmed': 'GMED', 'cls-er': 'CLS-ER',
    'lump': 'LUMP', 'flava': 'FLAVA (Ours)', 'flava+': 'FLAVA+ (Ours)', 'multitask': 'Multitask'}
SELECTIONS = {'random': 'Random', 'mats': 'MATS', 'der++': 'DER++', 'importance': 'LAVA', 'forget-robust': 'FRS',
              'both': 'FLAVA (Ours)'}
SELECTIONS |= {name: name for name in selection.SELECTIONS if name not in SELECTIONS}
DATASETS = {'vggsound': 'VGGSound', 'audioset': 'AudioSet'}                                  # the paper's
DIRECTIONS = {'audio_to_video': 'Audio-to-Video', 'video_to_audio': 'Video-to-Audio'}
ONE_GROUP = FREE_TO_CHANGE | {'seed', 'data_seed'}        # may differ in a group: where it was written, what is random
OF_ONE_METHOD = ('mir_', 'gmed_', 'cls_er_', 'lump_')     # options that begin so mean nothing to other methods


# ---------------------------------------------------------------------------- runs, groups of runs

class Missing(UserError):
    """What a table or figure needs and was not given; the message says by which command it comes about."""


class Finished(Recorded):
    """A run with results. Raises UserError where there is no run; `results` is None where it has not finished."""

    def __init__(self, path):
        super().__init__(path, device='cpu')
        file = self.folder / 'results.json'
        try:
            self.results = json.loads(file.read_text()) if file.exists() else None
        except ValueError:
            raise UserError(f'{file} cannot be read')


class Group(NamedTuple):
    """Runs that differ only in their seed."""
    options: dict    # every option that matters, by its name in Config
    runs: list       # of Finished, one or more

    @property
    def cfg(self):
        return self.runs[0].cfg

    @property
    def name(self):
        """The paper's; FLAVA with another selection goes by Table 3's name of that."""
        if self.cfg.method == 'flava' and self.cfg.selection != 'both':
            return SELECTIONS[self.cfg.selection]
        return NAMES.get(self.cfg.method, self.cfg.method)


def finished(paths):
    """Folders → [Finished], each folder once. Raises UserError that names what is no run, or unfinished."""
    nowhere = [str(path) for path in paths if not Path(path).exists()]
    if nowhere:
        raise UserError(f'no such run: {", ".join(nowhere)}')
    runs = {run.folder.resolve(): run for run in map(Finished, paths)}.values()
    unfinished = [str(run.folder) for run in runs if run.results is None]
    if unfinished:
        raise UserError(f'no results.json in {", ".join(unfinished)}: finish with `python train.py … --resume`, '
                        'or leave out')
    return list(runs)


def groups(paths):
    """Folders of finished runs → [Group], in the order of Table 1. Raises UserError that names the unfinished, and
    runs that are the same in their seed too."""
    found = {}
    for run in finished(paths):
        options = {name: value for name, value in vars(run.cfg).items() if name not in ONE_GROUP}
        options |= {name: Path(options[name]).name for name in ('init', 'data')}          # folders may have moved
        group = found.setdefault(tuple(options.items()), Group(options, []))
        twin = [str(r.folder) for r in group.runs if (r.cfg.seed, r.cfg.data_seed) == (run.cfg.seed, run.cfg.data_seed)]
        if twin:
            raise UserError(f'{twin[0]} and {run.folder} have the same options and the same seed: as two they would '
                            'count as two seeds; leave one out')
        group.runs.append(run)
    order = list(NAMES)
    return sorted(found.values(),
                  key=lambda group: order.index(group.cfg.method) if group.cfg.method in order else len(order))


def compared(groups, *varied):
    """What may stand side by side: the largest set of groups that agree in all options but the varied ones and those of
    single methods. Of equally large sets the one given first."""
    sets = {}
    for group in groups:
        same = tuple((name, value) for name, value in group.options.items()
                     if name not in varied and not name.startswith(OF_ONE_METHOD))
        sets.setdefault(same, []).append(group)
    return max(sets.values(), key=len, default=[])


def differing(groups):
    """Names of the options, method aside, in which these groups differ."""
    names = groups[0].options if groups else ()
    return [name for name in names if name != 'method' and len({g.options[name] for g in groups}) > 1]


def labels(groups):
    """A name for each group: its method's, and what tells it from other groups of that method."""
    alike = lambda group: [g for g in groups if g.name == group.name]
    return [', '.join([g.name] + [f'{name} {g.options[name]}' for name in differing(alike(g))]) for g in groups]


def evaluated(groups, task):
    """The groups of which a run has eval/TASK.json, with only such runs. Raises Missing when there is none."""
    found = [Group(g.options, [run for run in g.runs if run.read(task) is not None]) for g in groups]
    found = [g for g in found if g.runs]
    if not found:
        folder, data = groups[0].runs[0].folder if groups else 'RUN', ' --data AVE' if task == 'ave' else ''
        raise Missing(f'`python eval.py {folder} --task {task}{data}` of a finished run')
    return found


# ----------------------------------------------------------------------- in what runs are not the paper's

def unusual(cfg):
    """{option: value} where a run is not as its data set, size and method are by default, save what may differ in a
    group."""
    usual, _ = parse([word for name in ('dataset', 'size', 'method') for word in (f'--{name}', getattr(cfg, name))])
    named = lambda options, name: Path(options[name]).name if name in ('init', 'data') else options[name]
    return {name: value for name, value in vars(cfg).items()
            if name not in ONE_GROUP and named(vars(cfg), name) != named(vars(usual), name)}


def command(group, **options):
    """The command line for a run like a group's but for these options; without a group, for one on the built-in data.
    An option of '' goes back to its default."""
    cfg = group.cfg if group else Config(dataset='shapes', size='small')
    kind = {'dataset': cfg.dataset, 'size': cfg.size, 'method': options.get('method', cfg.method)}
    if cfg.size == ('small' if cfg.dataset == 'shapes' else 'base'):
        kind.pop('size')
    option = lambda name: name.replace('_', '-')
    out = '-'.join([f'runs/{cfg.dataset}', kind['method']]
                   + [f'{option(name)}-{value}' for name, value in options.items() if name != 'method' and value != ''])
    like = {name: value for name, value in unusual(cfg).items() if group and name != 'selection'}
    words = kind | {name: value for name, value in (like | options | {'out': out}).items() if value != ''}
    words = [f'--{option(name)} {shlex.quote(str(value))}' for name, value in words.items()]
    return f'`python train.py {" ".join(words)}`'


# ------------------------------------------------------------------------------------- the numbers

def retrieval(direction, recall, which):
    """→ value(run): A or F of "R@1", "R@5", "R@10" or "Avg" in a direction, percent"""
    return lambda run: run.results[direction][recall][which]


def classified(which):
    """→ value(run): A or F of the linear probe (Table 4), percent"""
    def value(run):
        found = run.read('classification')
        return found and found[which]
    return value


def over_seeds(group, value):
    """value(run) over a group's runs → mean, sample standard deviation. Runs where it is None do not count; of a single
    value there is no deviation, of none there is neither. The paper does not say which deviation its ± is."""
    found = [v for v in map(value, group.runs) if v is not None]
    return (statistics.mean(found) if found else None), (statistics.stdev(found) if len(found) > 1 else None)


def with_value(groups, value):
    """The groups of which a run has this value."""
    return [g for g in groups if over_seeds(g, value)[0] is not None]


# ------------------------------------------------------------------------------- as text and Markdown

def number(mean, deviation):
    return '–' if mean is None else f'{mean:.2f}' + ('' if deviation is None else f' ± {deviation:.2f}')


def text(ours, paper=None):
    """(mean, deviation) and the paper's number, or its (number, deviation) → "12.34 ± 0.56 (14.16)" """
    paper = paper if isinstance(paper, tuple) else (paper, None)
    return number(*ours) + ('' if paper[0] is None else f' ({number(*paper)})')


def arrow(which):
    return f'{which} ↑' if which == 'A' else f'{which} ↓'


def dataset_name(dataset):
    return DATASETS.get(dataset, dataset)


def markdown(header, rows):
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in (header, ['---'] * len(header), *rows))


def summary(paths):
    """Retrieval of any finished runs, over seeds: a row a group, a column for each option in which they differ.

    paths: folders of runs → Markdown. Raises UserError that names what is no run, or unfinished.
    """
    found = groups(paths)
    options = differing(found)
    columns = [(direction, recall, which) for recall in ('Avg', 'R@10') for direction in DIRECTIONS for which in 'AF']
    short = {'audio_to_video': 'a→v', 'video_to_audio': 'v→a'}
    header = ['method', *options, 'seeds', *(f'{short[d]} {recall} {arrow(which)}' for d, recall, which in columns)]
    rows = [[g.name, *(g.options[name] for name in options), len(g.runs)]
            + [text(over_seeds(g, retrieval(*column))) for column in columns] for g in found]
    return markdown(header, rows)
