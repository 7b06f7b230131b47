"""Tables 1, 3, 4, 7, 8, 9 and 10 as Markdown, from what finished runs recorded; and the table of any runs, over seeds.

In:  folders of finished runs: config.json, results.json and, from `eval.py`, eval/*.json. No model and no data is read.
Out: Markdown. Runs that differ only in their seed are one group: mean ± standard deviation. Where the data set is the paper's,
     its values stand in brackets beside ours.
"""
import json
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from config import FREE_TO_CHANGE, Config, parse
from model import UserError
from recorded import Recorded

NAMES = {'finetune': 'Finetune', 'er': 'ER', 'mir': 'MIR', 'der++': 'DER++', 'gmed': 'GMED', 'cls-er': 'CLS-ER', 'lump': 'LUMP',
         'flava': 'FLAVA (Ours)', 'flava+': 'FLAVA+ (Ours)', 'multitask': 'Multitask'}                 # in the order of Table 1
SELECTIONS = {'random': 'Random', 'mats': 'MATS', 'der++': 'DER++', 'importance': 'LAVA', 'forget-robust': 'FRS',
              'both': 'FLAVA (Ours)'}                                                                  # in the order of Table 3
DATASETS = {'vggsound': 'VGGSound', 'audioset': 'AudioSet'}                                            # the paper's
DIRECTIONS = {'audio_to_video': 'Audio-to-Video', 'video_to_audio': 'Video-to-Audio'}
CANDIDATES = {'vggsound': 1353, 'audioset': 802}                                                       # Figure 6 (c)


# ------------------------------------------------------------------------------ the paper's values

def values(text):
    """Rows "name number number …" → {name: (float or None for "–", …)}"""
    return {name: tuple(None if cell == '–' else float(cell) for cell in cells)
            for name, *cells in (line.split() for line in text.strip().splitlines())}


TABLE_1 = {   # per row VGGSound's A and F of R@1, R@5, R@10 and their mean, then AudioSet's
    'audio_to_video': values('''
    finetune   0.98  4.16   3.75 11.98   6.17 15.35   3.63 10.50     1.48  2.90   3.84 11.34   5.41 17.83   3.58 10.69
    er         4.09  3.66  11.66  9.17  17.78 10.20  11.18  7.68     4.94  2.97  12.33  7.46  17.60 11.17  11.62  7.20
    mir        4.59  3.14  12.26  8.34  17.51 11.17  11.45  7.55     5.21  2.93  13.16  7.10  18.04  9.14  12.14  6.39
    der++      4.03  3.62  13.74  6.31  19.79  7.11  12.52  5.68     4.51  3.75  12.15  8.42  16.85 11.86  11.17  8.01
    gmed       4.17  2.73  12.01  6.84  18.95  6.33  11.71  5.30     4.71  2.27  12.83  7.45  18.44  9.18  11.99  6.30
    cls-er     4.61  3.20  14.07  6.77  19.54  8.92  12.74  6.30     4.17  4.50  11.28 11.06  16.85 12.55  10.77  9.37
    lump       3.56  2.79  11.68  7.65  17.40  8.52  10.88  6.32     3.73  3.03  13.74  5.29  19.50  8.17  12.32  5.50
    flava      5.34  2.04  15.04  5.20  22.10  5.90  14.16  4.38     5.22  2.26  13.09  7.95  18.75 10.65  12.35  6.95
    flava+     5.39  2.71  16.76  5.15  24.18  5.99  15.44  4.62     5.36  4.24  16.76  5.54  23.65  7.44  15.26  5.74
    multitask  6.45     –  20.19     –  29.01     –  18.55     –     8.28     –  24.14     –  33.74     –  22.05     –
    '''),
    'video_to_audio': values('''
    finetune   1.22  4.47   4.17 11.23   6.95 14.67   4.11 10.12     1.50  3.23   4.08 10.04   6.33 14.43   3.97  9.23
    er         3.28  3.94  11.30  8.86  16.40 11.37  10.33  8.06     3.70  4.36  10.76 10.34  15.68 15.06  10.05  9.92
    mir        3.54  3.47  11.82  9.11  16.69 12.90  10.68  8.49     4.26  4.59  11.29  9.87  15.97 13.73  10.51  9.40
    der++      3.49  3.86  13.22  7.09  19.03  9.04  11.91  6.66     4.23  4.50  11.66 10.10  16.24 13.97  10.71  9.52
    gmed       3.71  2.61  11.87  6.46  17.20  9.57  10.93  6.21     3.99  4.42  10.65 10.39  15.41 14.78  10.02  9.86
    cls-er     4.09  3.11  13.30  6.96  19.43  9.68  12.27  6.58     4.25  4.58   9.78 11.65  13.45 17.65   9.16 11.29
    lump       3.24  3.30  11.02  7.55  16.91  9.13  10.39  6.66     3.13  3.91  10.60  8.63  16.02 12.26   9.92  8.27
    flava      5.30  2.40  15.43  4.84  21.47  6.70  14.07  4.65     4.49  3.39  12.08  9.00  17.31 12.75  11.29  8.38
    flava+     5.86  1.56  17.21  4.09  23.53  6.02  15.53  3.89     5.48  4.06  15.65  7.13  22.29  8.92  14.47  6.70
    multitask  6.85     –  21.93     –  30.63     –  19.80     –     8.05     –  25.81     –  35.60     –  23.15     –
    ''')}
TABLE_7 = {   # per row VGGSound's A and F of R@1, R@5, R@10 and their mean, then AudioSet's
    'audio_to_video': values('''
    finetune   0.80  4.15   2.96 12.23   5.05 16.91   2.94 11.10     1.50  4.72   5.49 10.41   9.80 11.91   5.60  9.01
    er         3.89  3.06  12.10  6.55  18.30  7.74  11.43  5.78     4.52  3.16  12.72  6.93  18.83  8.00  12.02  6.03
    mir        4.02  2.97  12.54  6.16  17.99  8.09  11.52  5.74     4.69  2.95  13.22  6.50  18.98  8.81  12.30  6.09
    der++      4.23  3.35  12.92  7.31  18.62  9.45  11.92  6.70     4.32  4.27  12.29  8.46  18.74 10.18  11.78  7.64
    gmed       3.90  2.94  11.51  7.41  17.65  8.87  11.02  6.41     4.70  2.48  12.56  4.55  18.62  5.05  11.96  4.03
    cls-er     3.94  3.35  12.96  7.19  18.09 10.66  11.66  7.07     5.16  2.97  14.33  6.88  20.24  8.74  13.24  6.20
    lump       4.06  2.18  13.21  4.66  19.34  5.58  12.20  4.14     4.45  3.40  13.05  6.25  19.45  7.28  12.32  5.64
    flava      4.72  2.89  14.17  5.74  19.94  5.74  12.94  4.79     4.97  3.47  13.91  5.59  20.30  6.70  13.06  5.25
    flava+     4.90  3.19  16.42  4.72  23.49  5.89  14.94  4.60     5.77  3.90  17.51  4.49  23.72  7.07  15.67  5.15
    multitask  6.45     –  20.19     –  29.01     –  18.55     –     8.28     –  24.14     –  33.74     –  22.05     –
    '''),
    'video_to_audio': values('''
    finetune   0.78  3.77   3.00 11.68   5.21 15.86   3.00 10.44     1.42  5.11   6.54 10.30  10.43 13.48   6.13  9.63
    er         3.57  2.76  11.66  7.67  16.75 10.76  10.66  7.06     4.01  4.31  12.47  7.27  19.32  9.26  11.93  6.95
    mir        3.35  3.15  11.37  7.74  16.62 10.11  10.45  7.00     4.25  3.43  12.92  6.93  19.43  9.78  12.20  6.71
    der++      4.08  3.10  12.78  9.02  18.77 11.30  11.88  7.81     4.31  4.35  12.60  9.59  18.93 12.27  11.95  8.74
    gmed       3.42  3.80  11.45  7.76  17.06  9.94  10.64  7.17     4.20  1.87  12.97  6.04  19.98  8.11  12.38  5.34
    cls-er     3.49  3.85  12.28  8.05  17.75 11.31  11.17  7.74     4.85  5.48  13.37  9.17  19.69 11.36  12.64  8.67
    lump       3.98  1.67  12.44  5.17  18.11  7.27  11.51  4.70     4.23  4.06  13.53  6.09  19.27  9.53  12.34  6.56
    flava      4.18  2.54  13.81  6.56  19.90  8.88  12.63  5.99     4.86  2.92  14.20  6.41  20.00  9.82  13.02  6.38
    flava+     5.28  1.81  15.35  6.33  21.97  8.01  14.20  5.38     5.57  3.80  16.67  6.96  23.91  9.28  15.38  6.68
    multitask  6.85     –  21.93     –  30.63     –  19.80     –     8.05     –  25.81     –  35.60     –  23.15     –
    ''')}
TABLE_2 = {   # GPU memory in GB and samples/s, batch of 9 on a V100; A and F in it are the Avg of Table 1
    'finetune': (18.34, 31.84), 'er': (30.95, 18.10), 'mir': (31.17, 5.75), 'der++': (30.95, 17.01), 'gmed': (32.03, 5.65),
    'cls-er': (32.50, 16.20), 'lump': (18.36, 23.44), 'flava': (17.45, 17.43)}
TABLE_3 = values('''
    random         12.64 6.46  12.55 6.58  16.63 27.98
    mats           12.91 6.55  12.70 6.80  21.30 21.42
    der++          12.52 5.68  11.91 6.66  30.95 14.13
    importance     13.44 5.50  13.27 5.94  17.48 17.45
    forget-robust  13.40 5.30  12.94 5.44  17.48 17.08
    both           14.16 4.38  14.07 4.65  17.45 17.43
''')          # A and F of Avg, audio to video and video to audio; GPU memory in GB, samples/s
TABLE_4 = values('''
    finetune   57.01 0.31  2.15 0.51   63.98 0.18  2.12 0.15
    er         58.30 0.13  1.28 0.07   65.10 0.32  1.11 0.25
    mir        58.07 0.30  1.49 0.19   65.17 0.20  0.86 0.06
    der++      58.30 0.19  1.27 0.51   65.17 0.44  1.39 0.45
    gmed       58.21 0.18  1.16 0.38   65.24 0.07  0.82 0.17
    cls-er     58.34 0.14  1.22 0.04   65.21 0.08  1.17 0.28
    lump       58.03 0.24  1.17 0.14   65.38 0.23  1.24 0.23
    flava      58.65 0.28  0.64 0.27   65.66 0.16  0.89 0.23
    flava+     59.07 0.14  0.80 0.34   66.05 0.28  0.78 0.27
    multitask  59.90 0.35     –    –   67.81 0.12     –    –
''')          # VGGSound's A ± and F ± (accuracy), AudioSet's (mAP)
TABLE_8 = {'finetune': 52.56, 'er': 54.98, 'der++': 55.81, 'gmed': 55.98, 'lump': 55.06, 'flava': 56.68, 'flava+': 56.68,
           'multitask': 57.73}
TABLE_9 = {   # by ρ: A and F of Avg, audio to video and video to audio
    'rho_a': {0.375: (13.76, 4.77, 13.52, 5.53), 0.5: (14.16, 4.38, 14.07, 4.65), 0.625: (13.77, 5.04, 13.46, 5.06)},
    'rho_v': {0.375: (13.35, 5.57, 13.39, 5.93), 0.5: (14.16, 4.38, 14.07, 4.65), 0.625: (13.82, 4.50, 13.53, 5.27)}}
TABLE_10 = {0.1: (13.91, 5.42, 14.23, 4.97), 0.4: (14.16, 4.38, 14.07, 4.65), 0.5: (13.37, 5.27, 13.50, 5.84)}     # by β


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

    def tensors(self, name):
        """RUN/eval/name.pt, or None"""
        file = self.found(name, 'pt')
        return file and torch.load(file, weights_only=True)


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


ONE_GROUP = FREE_TO_CHANGE | {'seed'}                     # may differ within a group: where it was written, and what is random
OF_ONE_METHOD = ('mir_', 'gmed_', 'cls_er_', 'lump_')     # options that begin so mean nothing to other methods


def groups(paths):
    """Folders of finished runs → [Group], in the order of Table 1. Raises UserError that names the unfinished, and
    runs that are the same in their seed too."""
    nowhere = [str(path) for path in paths if not Path(path).exists()]
    if nowhere:
        raise UserError(f'no such run: {", ".join(nowhere)}')
    runs = {run.folder.resolve(): run for run in map(Finished, paths)}.values()
    unfinished = [str(run.folder) for run in runs if run.results is None]
    if unfinished:
        raise UserError(f'no results.json in {", ".join(unfinished)}: finish with `python train.py … --resume`, or leave out')
    found = {}
    for run in runs:
        options = {name: value for name, value in vars(run.cfg).items() if name not in ONE_GROUP}
        options |= {name: Path(options[name]).name for name in ('init', 'data')}          # folders may have moved
        group = found.setdefault(tuple(options.items()), Group(options, []))
        twin = [str(r.folder) for r in group.runs if r.cfg.seed == run.cfg.seed]
        if twin:
            raise UserError(f'{twin[0]} and {run.folder} have the same options and the same seed: as two they would count as '
                            'two seeds; leave one out')
        group.runs.append(run)
    order = list(NAMES)
    return sorted(found.values(), key=lambda group: order.index(group.cfg.method) if group.cfg.method in order else len(order))


def compared(groups, *varied):
    """What may stand side by side: the largest set of groups that agree in all options but the varied ones and those of single
    methods. Of equally large sets the one given first."""
    sets = {}
    for group in groups:
        same = tuple(item for item in group.options.items() if item[0] not in varied and not item[0].startswith(OF_ONE_METHOD))
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


def over_seeds(group, value):
    """value(run) over a group's runs → mean, sample standard deviation. Runs where it is None do not count; of a single value
    there is no deviation, of none there is neither. The paper does not say which deviation its ± is."""
    found = [v for v in map(value, group.runs) if v is not None]
    return (statistics.mean(found) if found else None), (statistics.stdev(found) if len(found) > 1 else None)


def unusual(cfg):
    """{option: value} where a run differs from the defaults of its data set and size, apart from what may differ in a group"""
    usual, _ = parse([word for name in ('dataset', 'size', 'method') for word in (f'--{name}', getattr(cfg, name))])
    named = lambda options, name: Path(options[name]).name if name in ('init', 'data') else options[name]
    return {name: value for name, value in vars(cfg).items()
            if name not in ONE_GROUP and named(vars(cfg), name) != named(vars(usual), name)}


def note_on_options(groups):
    """A line that names the options in which these groups are not what the defaults, the paper's numbers, would be."""
    said = {label: dict({} if g.cfg.size == 'base' else {'size': g.cfg.size},
                        **{name: value for name, value in unusual(g.cfg).items() if name not in ('data', 'init', 'order')})
            for label, g in zip(labels(groups), groups)}
    words = [f'{label}: ' + ', '.join(f'{name} {value}' for name, value in options.items()) for label, options in said.items() if options]
    return 'Not with the paper\'s options: ' + '; '.join(words) + '.\n' if words else ''


def note_on_heads(groups, task):
    """A line that names the runs whose heads were not trained as Table 6 has it."""
    other = {str(run.folder): run.read(task)['options'] for g in groups for run in g.runs}
    words = [f'{folder}: {options}' for folder, options in other.items() if options]
    return 'Heads not trained as in Table 6: ' + '; '.join(words) + '.\n' if words else ''


def command(group, **options):
    """The command line for a run like a group's but for these options; without a group, for one on the built-in data."""
    cfg = group.cfg if group else Config(dataset='shapes', size='small')
    kind = {'dataset': cfg.dataset, 'size': cfg.size, 'method': options.get('method', cfg.method)}
    if cfg.size == ('small' if cfg.dataset == 'shapes' else 'base'):
        kind.pop('size')
    option = lambda name: name.replace('_', '-')
    out = '-'.join([f'runs/{cfg.dataset}', kind['method']] + [f'{option(n)}-{v}' for n, v in options.items() if n != 'method' and v != ''])
    other = {name: value for name, value in unusual(cfg).items() if group and name != 'selection'} | options | {'out': out}
    words = kind | {name: value for name, value in other.items() if value != ''}
    return '`python train.py ' + ' '.join(f'--{option(name)} {shlex.quote(str(value))}' for name, value in words.items()) + '`'


def evaluated(groups, task):
    """The groups of which a run has eval/TASK.json, with only such runs. Raises Missing when there is none."""
    found = [Group(g.options, [run for run in g.runs if run.read(task) is not None]) for g in groups]
    found = [g for g in found if g.runs]
    if not found:
        folder, data = groups[0].runs[0].folder if groups else 'RUN', ' --data AVE' if task == 'ave' else ''
        raise Missing(f'`python eval.py {folder} --task {task}{data}` of a finished run')
    return found


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


AVERAGES = [retrieval(direction, 'Avg', which) for direction in DIRECTIONS for which in 'AF']     # columns of Tables 3, 9, 10
AVERAGES_HEADER = ['seeds', 'A→V A ↑', 'A→V F ↓', 'V→A A ↑', 'V→A F ↓']


def text(ours, paper=None):
    """(mean, deviation) and the paper's number, or its (number, deviation) → "12.34 ± 0.56 (14.16)" """
    number = lambda mean, deviation: '–' if mean is None else f'{mean:.2f}' + ('' if deviation is None else f' ± {deviation:.2f}')
    paper = paper if isinstance(paper, tuple) else (paper, None)
    return number(*ours) + ('' if paper[0] is None else f' ({number(*paper)})')


def markdown(header, rows):
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in (header, ['---'] * len(header), *rows))


def dataset_name(dataset):
    return DATASETS.get(dataset, dataset)


def heading(number, title, dataset, datasets):
    """The title, and whether the paper's values can be compared: only those of the same data set are."""
    of = ' and '.join(DATASETS[name] for name in datasets)
    if dataset in datasets:
        return f'**Table {number}.** {title}; stream of {DATASETS[dataset]}; in percent; in brackets the paper\'s.\n'
    return (f'**Table {number}.** {title}; stream of {dataset_name(dataset)}; in percent. The paper\'s values are of another '
            f'data set ({of}), so only ours are shown.\n')


def by_method(groups, paper):
    """Rows of a table: [(label, group or None, the paper's row or ())], in the order of Table 1, the paper's rows that we have
    not run included. paper: {method: row}, empty where the data set is another."""
    rows = []
    for method, name in NAMES.items():
        own = [(label, g) for label, g in zip(labels(groups), groups) if g.cfg.method == method]
        rows += [(label, g, paper.get(method, ()) if g.name == name else ()) for label, g in own]
        if method in paper and not any(g.name == name for _, g in own):
            rows.append((name, None, paper[method]))
    return rows


def cells(group, columns, row):
    """Number of seeds, then ours and the paper's for each column. columns: [value(run)]; group may be None, row ()"""
    theirs = lambda k: row[k] if k < len(row) else None
    return [sum(columns[0](run) is not None for run in group.runs) if group else 0] + [text(over_seeds(group, value) if group else (None, None), theirs(k))
                                                for k, value in enumerate(columns)]


def arrow(which):
    return f'{which} ↑' if which == 'A' else f'{which} ↓'


# -------------------------------------------------------------------------------------- the tables

def retrieval_table(number, title, groups, paper):
    """The form of Tables 1 and 7: a part for each data set, and in it one for each direction."""
    parts = []
    for dataset in dict.fromkeys(g.cfg.dataset for g in groups):
        chosen = compared([g for g in groups if g.cfg.dataset == dataset], 'method')
        first = 8 * list(DATASETS).index(dataset) if dataset in DATASETS else None     # column of the paper's row
        parts.append(heading(number, title, dataset, DATASETS))
        for direction, name in DIRECTIONS.items():
            columns = [(recall, which) for recall in ('R@1', 'R@5', 'R@10', 'Avg') for which in 'AF']
            theirs = {} if first is None else {m: row[first:first + 8] for m, row in paper[direction].items()}
            rows = [[label, *cells(g, [retrieval(direction, *column) for column in columns], row)]
                    for label, g, row in by_method(chosen, theirs)]
            parts.append(markdown([name, 'seeds'] + [f'{recall} {arrow(which)}' for recall, which in columns], rows) + '\n')
        candidates = sorted({run.results['candidates'] for g in chosen for run in g.runs})
        parts.append(f'Candidates: {", ".join(map(str, candidates))}'
                     + (f'; the paper\'s: {CANDIDATES[dataset]}.' if dataset in CANDIDATES else '.') + '\n'
                     + (note_on_options(chosen) if dataset in DATASETS else ''))
    return '\n'.join(parts)


def table_1(groups):
    """Zero-shot retrieval, the tasks in the paper's order."""
    chosen = [g for g in groups if not g.cfg.order]
    if not chosen:
        raise Missing(command(groups[0] if groups else None, order=''))
    return retrieval_table(1, 'Audiovisual zero-shot retrieval', chosen, TABLE_1)


def table_3(groups):
    """Sampling methods: Random, MATS, DER++ (which learns from all patches), LAVA, FRS, and both. GPU memory and samples/s are
    not a run's but `bench.py`'s."""
    chosen = compared([g for g in groups if g.cfg.method in ('flava', 'der++')], 'method', 'selection')
    kind = lambda g: 'der++' if g.cfg.method == 'der++' else g.cfg.selection
    if {kind(g) for g in chosen} <= {'both', 'der++'}:
        raise Missing(command(chosen[0] if chosen else None, method='flava', selection='importance')
                      + ', likewise forget-robust, random and mats')
    dataset = chosen[0].cfg.dataset
    paper = TABLE_3 if dataset == 'vggsound' else {}
    rows = []
    for key, name in SELECTIONS.items():
        own = [g for g in chosen if kind(g) == key]
        for g in own or [None] * (key in paper):
            row = paper.get(key, ())
            rows.append([name, *cells(g, AVERAGES, row), *(f'– ({number:.2f})' for number in row[4:])])
    header = ['Method', *AVERAGES_HEADER] + (['GPU M. ↓', 'T.P. ↑'] if paper else [])
    note = '\nGPU memory (GB) and throughput (samples/s): ours are measured by `python bench.py`.\n' if paper else ''
    return heading(3, 'Sampling methods, mean over R@1, 5, 10', dataset, ['vggsound']) + '\n' + markdown(header, rows) + '\n' + note


def table_4(groups):
    """Classification by a linear head on the frozen backbone."""
    parts, found = [], [g for g in evaluated(groups, 'classification') if over_seeds(g, classified('A'))[0] is not None]
    if not found:
        raise Missing(f'`python eval.py {groups[0].runs[0].folder} --task classification` without --finetune')
    for dataset in dict.fromkeys(g.cfg.dataset for g in found):
        chosen = compared([g for g in found if g.cfg.dataset == dataset], 'method')
        first = 4 * list(DATASETS).index(dataset) if dataset in DATASETS else None
        paper = {} if first is None else {m: (row[first:first + 2], row[first + 2:first + 4]) for m, row in TABLE_4.items()}
        metric = chosen[0].runs[0].read('classification')['metric']
        rows = [[label, *cells(g, [classified('A'), classified('F')], row)] for label, g, row in by_method(chosen, paper)]
        parts += [heading(4, f'Audiovisual classification ({metric})', dataset, DATASETS),
                  markdown(['Method', 'seeds', 'A ↑', 'F ↓'], rows) + '\n', note_on_heads(chosen, 'classification'),
                  note_on_options(chosen) if dataset in DATASETS else '']
    return '\n'.join(parts)


def table_7(groups):
    """Zero-shot retrieval, the tasks in shuffled order."""
    chosen = [g for g in groups if g.cfg.order == 'shuffled']
    if not chosen:
        size = {'batch_size': 36} if groups and groups[0].cfg.dataset == 'vggsound' else {}        # App. E
        raise Missing(command(groups[0] if groups else None, order='shuffled', **size))
    return retrieval_table(7, 'Audiovisual zero-shot retrieval, shuffled tasks', chosen, TABLE_7)


def table_8(groups):
    """AVE event localization by the last model."""
    chosen = compared(evaluated(groups, 'ave'), 'method')
    dataset = chosen[0].cfg.dataset
    paper = {m: (value,) for m, value in TABLE_8.items()} if dataset == 'vggsound' else {}

    rows = [[label, *cells(g, [lambda run: run.read('ave')['accuracy']], row)] for label, g, row in by_method(chosen, paper)]
    title = heading(8, 'Event localization on AVE', dataset, ['vggsound'])
    return title + '\n' + markdown(['Method', 'seeds', 'Acc ↑'], rows) + '\n' + note_on_heads(chosen, 'ave')


def swept(groups, option, paper):
    """Rows of Tables 9 and 10: FLAVA by the values of an option, the paper's among them where the data set is its own."""
    chosen = compared([g for g in groups if g.cfg.method == 'flava'], option)
    paper = paper if chosen and chosen[0].cfg.dataset == 'vggsound' else {}
    own = {g.options[option]: g for g in chosen}
    rows = [[f'{value:g}', *cells(own.get(value), AVERAGES, paper.get(value, ()))] for value in sorted({*own, *paper})]
    return chosen, rows


def table_9(groups):
    """Sampling ratios: ρ_a at the usual ρ_v, and ρ_v at the usual ρ_a."""
    parts = []
    for option, symbol in (('rho_a', 'ρ_a'), ('rho_v', 'ρ_v')):
        chosen, rows = swept(groups, option, TABLE_9[option])
        if len(chosen) > 1:
            parts += [heading(9, f'Sampling ratio {symbol}, mean over R@1, 5, 10', chosen[0].cfg.dataset, ['vggsound']),
                      markdown([symbol, *AVERAGES_HEADER], rows) + '\n']
    if not parts:
        raise Missing(command((chosen or [None])[0], method='flava', rho_a=0.375) + ', likewise 0.625, and --rho-v')
    return '\n'.join(parts)


def table_10(groups):
    """The temperature β of Eq. 2."""
    chosen, rows = swept(groups, 'beta', TABLE_10)
    if len(chosen) < 2:
        raise Missing(command((chosen or [None])[0], method='flava', beta=0.1) + ', likewise 0.5')
    return (heading(10, 'Temperature, mean over R@1, 5, 10', chosen[0].cfg.dataset, ['vggsound']) + '\n'
            + markdown(['β', *AVERAGES_HEADER], rows) + '\n')


TABLES = {1: table_1, 3: table_3, 4: table_4, 7: table_7, 8: table_8, 9: table_9, 10: table_10}


def summary(paths):
    """Retrieval of any finished runs, over seeds: a row a group, a column for each option in which they differ.

    paths: folders of runs → Markdown. Raises UserError that names what is no run, or unfinished.
    """
    found = groups(paths)
    options = differing(found)
    columns = [(direction, recall, which) for recall in ('Avg', 'R@10') for direction in DIRECTIONS for which in 'AF']
    short = {'audio_to_video': 'a→v', 'video_to_audio': 'v→a'}
    header = ['method', *options, 'seeds'] + [f'{short[direction]} {recall} {arrow(which)}' for direction, recall, which in columns]
    return markdown(header, [[g.name, *(g.options[name] for name in options), len(g.runs)]
                             + [text(over_seeds(g, retrieval(*column))) for column in columns] for g in found])
