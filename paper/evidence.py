"""Which of the paper's claims hold on sounding shapes: tables, intervals and figures of the study's records (ours).

    python -m paper.evidence [--records results/runs]

In:  results/runs/NAME-SEED.json, as `study.py` leaves them.
Out: beside them evidence.md: the main table; for each claim of `claims.py` the paired differences with their intervals,
     and the verdict; what is selected and seen of the source. forgetting.png, differences.png, selected.png. log.md:
     what was run when. figures/: the paper's tables, and those of its figures that are of numbers.
"""
import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from config import exit_politely
from downstream.maps import mean
from paper import claims, figures
from paper.claims import A, F, chosen, gap, one_way, over_seeds, probe, seen, title
from paper.groups import DIRECTIONS, groups, markdown, text
from paper.looks import PRINT, SELECTION_STYLES, STYLES, legend_below, look, ticks_of_tasks
from paper.study import ABLATIONS, MAIN, ROOT, SECOND, WHAT_IFS, WHY, restored
from weights import check_writable, write_text

SELECTION = {'random': 'random', 'mats': 'mats', 'lava': 'importance', 'frs': 'forget-robust', 'excess': 'excess'}
GOES_BY = {name: SELECTION[name] for name in ('lava', 'frs', 'excess')} | {'flava': 'both'}
TRAIN_AN_AVM = ('flava', 'flava+', 'lava', 'excess')         # and select by its I
TWO_OF_P = [('on_v', 'beside_v'), ('on_a', 'beside_a'), ('same class', 'other task'), ('same task', 'other task')]


# --------------------------------------------------------------------------------------- the tables

def main_table(found, names):
    """A and F at R@1, 5, 10, a part a direction; then what else is asked. Markdown."""
    there, parts = [name for name in names if name in found], []
    for direction, words in DIRECTIONS.items():
        columns = [one_way(direction, k, which) for k in ('R@1', 'R@5', 'R@10') for which in 'AF']
        columns.append(lambda record, d=direction: record['retrieval'][d]['median_rank']['A'])
        header = [words, 'seeds', *(f'{k} {which}' for k in ('R@1', 'R@5', 'R@10') for which in ('A ↑', 'F ↓')),
                  'median rank ↓']
        rows = [[title(name), len(found[name]), *(text(over_seeds(found[name], c)) for c in columns)] for name in there]
        parts.append(markdown(header, rows))
    columns = {'R@10 A ↑, both': A, 'F ↓, both': F, 'gap': gap, 'probe ↑': probe,
               'samples/s': lambda record: record['samples_per_s'], 'peak, GB': lambda record: record['memory_gb']}
    rows = [[title(name), *(text(over_seeds(found[name], c)) for c in columns.values())] for name in there]
    return '\n\n'.join(parts + [markdown(['', *columns], rows)])


def claims_table(which, found):
    """Of each claim of which there are runs its differences and its verdict. Markdown."""
    rows = []
    for claim in which:
        answered = claims.answers(claim, found)
        if answered:
            rows.append([claim.words, '; '.join(f'{title(a)} − {title(b)} {d}' if not claim.less else
                                                f'{title(b)} − {title(a)} {d}' for a, b, d in answered),
                         f'**{claims.verdict(claim, answered)}**'])
    return markdown(['claim', 'differences [95 % interval], seeds of that sign', ''], rows)


def sources_table(found):
    """Of the source: what the last AVM sees and what each selection would take of 60 clips a task; P. Markdown."""
    columns = {'I_v AUC': seen('auc_v'), 'I_a AUC': seen('auc_a'), 'cosine AUC, frames': seen('auc_v', 'backbone'),
               **{f'{words}, {which}': chosen(selection, x) for x, words in (('v', 'frames'), ('a', 'sound'))
                  for selection, which in (('importance', 'LAVA'), ('forget-robust', 'FRS'), ('both', 'FLAVA'),
                                           ('excess', 'excess'))}}
    rows = [[title(name), *(text(over_seeds(found[name], c)) for c in columns.values())]
            for name in MAIN if name in found]
    P = {name: lambda record, name=name: 100 * mean(record['selection']['P'][name][-1])
         for name in ('on_v', 'beside_v', 'on_a', 'beside_a', 'same class', 'same task', 'other task')}
    own = [name for name in TRAIN_AN_AVM if name in found]
    of_P = [[title(name), *(text(over_seeds(found[name], c)) for c in P.values())] for name in own]
    return '\n\n'.join([markdown(['source patches selected, %, by the models of', *columns], rows),
                        markdown(['P of Eq. 5, %', *P], of_P)])


def pruning_table(found):
    """P of the last models, in percent: on the source less beside it, before one past pair less before another; with
    intervals over seeds. Markdown."""
    rows = []
    for name in TRAIN_AN_AVM:
        P = {seed: {kind: 100 * mean(of[-1]) for kind, of in record['selection']['P'].items()}
             for seed, record in found.get(name, {}).items()}
        if len(P) > 1:
            part = lambda kind: {seed: of[kind] for seed, of in P.items()}
            rows.append([title(name), *(claims.difference(part(a), part(b), float) for a, b in TWO_OF_P)])
    return markdown(['P, %, [95 % interval]', *(f'{a} − {b}' for a, b in TWO_OF_P)], rows)


def selections_table(found):
    """Of each selection of Table 3: A, F, the share of the source that it takes; A with the source in I. Markdown."""
    rows = []
    for name, by in GOES_BY.items():
        if name in found:
            taken = [text(over_seeds(found[name], chosen(by, x))) for x in 'va']
            oracle = text(over_seeds(found.get(f'oracle-{name}', {}), A))
            rows.append([title(name), *(text(over_seeds(found[name], value)) for value in (A, F)), *taken, oracle])
    return markdown(['', 'R@10 A ↑', 'F ↓', 'source selected, frames, %', 'sound, %', 'A with the source in I'], rows)


def what_ifs_table(found, names):
    """Of these runs A beside the share of source patches that each selects. Markdown."""
    by = lambda name: GOES_BY[next((part for part in name.split('-') if part in GOES_BY), 'lava')]
    rows = [[name, f'`{first({name: runs})["options"]}`', len(runs), *(text(over_seeds(runs, value)) for value in (
        A, chosen(by(name), 'v'), chosen(by(name), 'a')))] for name, runs in found.items() if name in names]
    return markdown(['', 'options', 'seeds', 'R@10 A ↑', 'source selected, frames, %', 'sound, %'], rows)


# -------------------------------------------------------------------------------------- the figures

def style(name):
    return look(SELECTION_STYLES[SELECTION[name]] if name in SELECTION else STYLES[name])


def over_stream(record):
    """R@10 after each task, the mean over the tasks learned so far and both directions: how it is forgotten"""
    acc = np.mean([record['retrieval'][direction]['R@10']['acc'] for direction in DIRECTIONS], 0)
    return [acc[t, :t + 1].mean() for t in range(len(acc))]


def with_band(axis, runs, value, **looks):
    """A line over the stream, the mean over seeds, in a band of the 95 % interval of that mean."""
    lines = np.array([value(record) for record in runs.values()])
    x, mean = range(lines.shape[1]), lines.mean(0)
    axis.plot(x, mean, **looks)
    if len(lines) > 2:
        half = stats.t.ppf(0.975, len(lines) - 1) * stats.sem(lines)
        axis.fill_between(x, mean - half, mean + half, color=looks['color'], alpha=0.12, linewidth=0)


def forgetting(found):
    """Forgetting curves: left the ten methods, right the selections."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 4.6), sharey=True, layout='constrained')
    panels = [name for name in MAIN if name in STYLES], ['der++', 'random', 'mats', 'lava', 'frs', 'flava', 'excess']
    for axis, names, words in zip(axes, panels, ('methods', 'selections')):
        for name in (name for name in names if name in found and name != 'multitask'):
            with_band(axis, found[name], over_stream, label=title(name), **style(name))
        if 'multitask' in found:
            axis.axhline(over_seeds(found['multitask'], A)[0], color='black', linestyle='--', linewidth=1,
                         label='Multitask')
        ticks_of_tasks(axis, first(found)['retrieval']['tasks'])
        axis.set_title(words)
        axis.legend(ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.25))
    axes[0].set_ylabel('R@10 of the tasks so far, %')
    return figure


def first(found):
    return next(iter(next(iter(found.values())).values()))


def differences(found):
    """Every paired difference of a claim in A, with its interval: of the main table, the second stream, and why."""
    rows = [(f'{title(a)} − {title(b)}', d) for claim in claims.CLAIMS + claims.OF_SECOND + claims.OF_WHY
            if claim.value is A for a, b, d in claims.answers(claim, found)]
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.19 * len(rows)), layout='constrained')
    for place, (_, d) in enumerate(rows):
        colour = {'holds': '#009E73', 'does not': '#D55E00'}.get(d.verdict, '#666666')
        axis.errorbar(d.mean, place, xerr=[[d.mean - d.low], [d.high - d.mean]], fmt='o', color=colour, capsize=2)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set_yticks(range(len(rows)), [words for words, _ in rows])
    axis.margins(y=0.02)
    axis.invert_yaxis()
    axis.grid(alpha=0.25, axis='x')
    axis.set_xlabel('difference in A, points of R@10, with its 95 % interval')
    return figure


def selected(found):
    """Source patches over the stream: what each selection takes of all tasks' clips, by the models of FLAVA."""
    record = first({'flava': found['flava']})
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout='constrained')
    for axis, (x, words) in zip(axes, (('v', 'frames'), ('a', 'sound'))):
        for selection in record['selection'][f'selected_{x}']:
            value = lambda one: np.mean(one['selection'][f'selected_{x}'][selection], 1)
            with_band(axis, found['flava'], value, label=selection, **look(SELECTION_STYLES[selection]))
        axis.axhline(record['selection']['chance'][f'selected_{x}'], color='gray', linestyle=':', label='chance')
        ticks_of_tasks(axis, record['selection']['after'])
        axis.set_title(words)
    axes[0].set_ylabel('source patches selected, %')
    legend_below(figure, axes[0])
    return figure


def log(found):
    """Every run in the order in which they ended, as Markdown."""
    records = sorted((record for runs in found.values() for record in runs.values()), key=lambda one: one['ended'])
    rows = [[record['ended'], f'{record["name"]}-{record["seed"]}', f'`{record["options"]}`', record['commit'],
             record['machine'], record['seconds'], text((A(record), None))] for record in records]
    return markdown(['ended', 'run', 'options', 'commit', 'machine', 'seconds', 'R@10 A'], rows) + '\n'


FIGURES = {'forgetting': forgetting, 'differences': differences, 'selected': selected}
OF_NUMBERS = {number: figures.FIGURES[number] for number in (9, 10, 11, 13, 15)}


def as_in_the_paper(found, out):
    """The paper's tables and figures of numbers, as `figures.py` makes them of runs → lines that say where each is."""
    records = [one for name in MAIN | SECOND | ABLATIONS for one in found.get(name, {}).values()]
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lines = figures.write(groups([restored(one, Path(folder)) for one in records]), out, OF_NUMBERS)
    return [line for line in lines if ': needs ' not in line]


# ---------------------------------------------------------------------------------- the command line

def page(found):
    """All of it as Markdown."""
    records = [record for runs in found.values() for record in runs.values()]
    hours = sum(record['seconds'] for record in records) / 3600
    commits, machines = ({record[name] for record in records} for name in ('commit', 'machine'))
    parts = [
        '# The evidence, as `python -m paper.evidence` writes it',
        f'{len(records)} runs, {hours:.1f} hours of one core for training; commits {", ".join(sorted(commits))}; '
        f'{", ".join(sorted(machines))}. Mean ± standard deviation over seeds. Samples/s and peak are of runs that '
        'shared the machine with others, and are no measure of cost (that is `paper/bench.py`\'s).',
        claims.__doc__.split('\n\n')[-1].strip(), '## Main table', main_table(found, MAIN),
        '## Claims', claims_table(claims.CLAIMS, found), '## Table 3, and the source', selections_table(found)]
    for words, which, names in (('Second stream', claims.OF_SECOND, SECOND),
                                ('Ablations', claims.OF_ABLATIONS, ABLATIONS),
                                ('What if', claims.OF_WHAT_IFS, WHAT_IFS),
                                ('Why', claims.OF_WHY, WHY)):
        if set(names) & set(found):
            parts += [f'## {words}', main_table(found, names), claims_table(which, found)]
            parts += [what_ifs_table(found, names)] if names in (WHAT_IFS, WHY) else []
    parts += ['## Where they look, what is selected, what P is', sources_table(found), pruning_table(found)]
    return '\n\n'.join(parts) + '\n'


def main(arguments=None):
    """The command line: records → evidence.md and its figures."""
    parser = argparse.ArgumentParser(prog='python -m paper.evidence', allow_abbrev=False,
                                     description='Tables, intervals and figures of the study\'s records.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--records', type=Path, default=ROOT / 'results' / 'runs', help='folder to read and write')
    args = parser.parse_args(arguments)
    with exit_politely():
        found = claims.read(args.records)
        check_writable(args.records, '--records ')
        write_text(args.records / 'evidence.md', page(found))
        write_text(args.records / 'log.md', log(found))
        print(args.records / 'evidence.md')
        for name, draw in FIGURES.items():
            if name == 'selected' and 'flava' not in found:
                continue
            with plt.rc_context(PRINT):
                figure = draw(found)
            figure.savefig(args.records / f'{name}.png', dpi=160, bbox_inches='tight')
            plt.close(figure)
            print(args.records / f'{name}.png')
        print('\n'.join(as_in_the_paper(found, args.records / 'figures')))


if __name__ == '__main__':
    main()
