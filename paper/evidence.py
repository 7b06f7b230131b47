"""Which of the paper's claims hold on sounding shapes: tables, intervals and figures of the study's records (ours).

    python -m paper.evidence [--records results/runs]

In:  results/runs/NAME-SEED.json, as `study.py` leaves them.
Out: beside them evidence.md: the main table; for each claim the paired differences with their intervals, and the
     verdict; what is selected and seen of the source. forgetting.png, differences.png, selected.png. log.md: what was
     run when.

Retrieval is R@10 in percent, the mean of both directions, where nothing else is said. A difference is between two runs
of one seed, which share their clips; its interval is Student's at 95 % over seeds. The rule, made before any run was:
a claim holds where the interval is above 0, does not where it is below, and elsewhere cannot be told here.
"""
import argparse
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from config import exit_politely
from downstream.maps import mean
from paper.groups import DIRECTIONS, NAMES, markdown, text
from paper.looks import PRINT, SELECTION_STYLES, STYLES, legend_below, look, ticks_of_tasks
from paper.study import ABLATIONS, MAIN, ORACLES, ROOT, SECOND
from patches import UserError
from weights import check_writable, write_text

TITLES = {name: NAMES[name].removesuffix(' (Ours)') for name in NAMES} | {
    'random': 'Random', 'mats': 'MATS', 'lava': 'LAVA', 'frs': 'FRS', 'excess': 'excess (ours)'}
SELECTION = {'random': 'random', 'mats': 'mats', 'lava': 'importance', 'frs': 'forget-robust', 'excess': 'excess'}
OTHERS = ('finetune', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump')


# ------------------------------------------------------------------------------ records, and their numbers

def read(folder):
    """Records → {name: {seed: record}}, names in the study's order. Raises UserError where there is none."""
    found = {}
    for file in sorted(folder.glob('*.json')):
        record = json.loads(file.read_text())
        found.setdefault(record['name'], {})[record['seed']] = record
    if not found:
        raise UserError(f'{folder} holds no records: `make table` makes them')
    order = [*MAIN, *SECOND, *ABLATIONS, *ORACLES]
    return {name: found[name] for name in sorted(found, key=lambda name: order.index(name) if name in order else 99)}


def recall(which, k='R@10'):
    """→ value(record): A or F of retrieval, the mean of both directions, percent; None where there is none"""
    def value(record):
        found = [record['retrieval'][direction][k][which] for direction in DIRECTIONS]
        return None if None in found else float(np.mean(found))
    return value


def one_way(direction, k, which):
    return lambda record: record['retrieval'][direction][k][which]


def probe(record):
    """Accuracy of a linear head on the last model, percent, the mean over tasks"""
    return float(np.mean(record['classification']['acc'][-1]))


def gap(record):
    """The modality gap at the end, the mean over tasks"""
    return record['gap']['over_stream'][-1]


def seen(name, which='avm'):
    """→ value(record): where the last model looks, the mean over tasks"""
    return lambda record: mean(record['localization'][which][name][-1])


def fallen(record):
    """AUC of I_v: right after each task's own training less at the end, the mean over tasks but the last"""
    of = record['localization']['avm']['auc_v']
    return mean([of[task + 1][task] - of[-1][task] for task in range(len(of) - 2)])


def chosen(selection, x='v'):
    """→ value(record): source patches selected by the last model, percent, the mean over tasks"""
    return lambda record: mean(record['selection'][f'selected_{x}'][selection][-1])


def over_seeds(runs, value):
    """{seed: record} → mean, standard deviation over seeds"""
    found = [value(record) for record in runs.values()]
    if not found or None in found:
        return None, None
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else None


class Difference(NamedTuple):
    """Of pairs of runs of one seed: first − second."""
    mean: float
    low: float          # the 95 % interval
    high: float
    alike: int          # seeds in which it has the mean's sign
    seeds: int

    @property
    def verdict(self):
        return 'holds' if self.low > 0 else 'does not' if self.high < 0 else 'cannot be told here'

    def __str__(self):
        return f'{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], {self.alike} of {self.seeds}'


def difference(first, second, value):
    """{seed: record} twice → Difference over the seeds that both have; None of fewer than two"""
    shared = sorted(set(first) & set(second))
    if len(shared) < 2:
        return None
    found = np.array([value(first[seed]) - value(second[seed]) for seed in shared])
    low, high = stats.ttest_1samp(found, 0).confidence_interval(0.95)
    return Difference(found.mean(), low, high, int((np.sign(found) == np.sign(found.mean())).sum()), len(found))


# --------------------------------------------------------------------------------------- the claims

class Claim(NamedTuple):
    """One claim of the paper, or ours, as differences that it says are above 0."""
    words: str
    pairs: list         # of (name, name)
    value: object       # of a record
    less: bool = False  # the claim is of the lower value: the difference is turned round


CLAIMS = [
    Claim('FLAVA is ahead of all in A', [('flava', other) for other in OTHERS], recall('A')),
    Claim('FLAVA+ is ahead of all in A', [('flava+', other) for other in OTHERS], recall('A')),
    Claim('FLAVA forgets less (F)', [('flava', other) for other in OTHERS], recall('F'), less=True),
    Claim('FLAVA+ forgets less (F)', [('flava+', other) for other in OTHERS], recall('F'), less=True),
    Claim('LAVA helps: ahead of DER++ and of Random in A', [('lava', 'der++'), ('lava', 'random')], recall('A')),
    Claim('FRS helps: ahead of DER++ and of Random in A', [('frs', 'der++'), ('frs', 'random')], recall('A')),
    Claim('together more: FLAVA ahead of LAVA and of FRS in A', [('flava', 'lava'), ('flava', 'frs')], recall('A')),
    Claim('Random is behind DER++ in A', [('der++', 'random')], recall('A')),
    Claim('MATS is behind FLAVA in A', [('flava', 'mats')], recall('A')),
    Claim('the AVM of FLAVA finds more of the source than that of DER++, at the end (AUC of I_v)', [('flava', 'der++')],
          seen('auc_v')),
    Claim('and keeps finding it: its AUC falls less after each task', [('flava', 'der++')], fallen,
          less=True),
    Claim('the gap stays larger under FLAVA', [('flava', other) for other in OTHERS], gap),
    Claim('ours: "excess" is ahead of the paper\'s selection in A', [('excess', 'flava')], recall('A')),
    Claim('ours: "excess" is ahead of LAVA in A', [('excess', 'lava')], recall('A')),
]
OF_ABLATIONS = [
    Claim('a larger memory gives more A', [('flava-memory-320', 'flava'), ('flava', 'flava-memory-80')], recall('A')),
    Claim('audio in chunks of time is ahead of bands and of none in A', [
        ('flava', 'audio-selection-frequency'), ('flava', 'audio-selection-none')], recall('A')),
    Claim('the MAE loss guards classification: without it the probe is lower', [
        ('finetune', 'finetune-no-mae'), ('er', 'er-no-mae')], probe),
]
OF_ORACLES = [
    *(Claim(f'ours: with the source known, {TITLES[name]} has more A', [(f'oracle-{name}', name)], recall('A'))
      for name in ('lava', 'frs', 'flava', 'excess')),
    *(Claim(f'ours: with the source of {of} known, LAVA has more A', [(f'oracle-lava-{of}', 'lava')], recall('A'))
      for of in ('frames', 'sound')),
    *(Claim(f'ours: odds of {odds} on the source give more A than odds of 1',
            [(f'oracle-lava{of}', 'oracle-lava-odds-1')], recall('A'))
      for odds, of in ((0.25, '-odds-0.25'), (4, '-odds-4'), (16, ''))),
    Claim('ours: of as many pairs, a new selection at each replay has more A than one for all', [
        ('flava', 'flava+-memory-80')], recall('A'))]
OF_SECOND = [Claim(f'second stream: {TITLES[name]} is ahead of DER++ in A', [(f'second-{name}', 'second-der++')],
                   recall('A')) for name in ('er', 'flava', 'lava', 'excess')]


def answers(claim, found):
    """A claim → [(name, other, Difference)] of the pairs that there are"""
    pairs = [(a, b, difference(found.get(a, {}), found.get(b, {}), claim.value)) for a, b in claim.pairs]
    turned = lambda d: Difference(-d.mean, -d.high, -d.low, d.alike, d.seeds)
    return [(a, b, turned(d) if claim.less else d) for a, b, d in pairs if d]


def verdict(claim, answered):
    """Of a claim of several differences: each must hold; one that does not decides."""
    if len(answered) < len(claim.pairs):
        return 'not all runs are there'
    each = {d.verdict for _, _, d in answered}
    return next(word for word in ('does not', 'cannot be told here', 'holds') if word in each)


# --------------------------------------------------------------------------------------- the tables

def title(name):
    return TITLES.get(name, name)


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
    columns = {'R@10 A ↑, both': recall('A'), 'F ↓, both': recall('F'), 'gap, at the end': gap, 'probe ↑': probe,
               'samples/s': lambda record: record['samples_per_s'], 'peak, GB': lambda record: record['memory_gb']}
    rows = [[title(name), *(text(over_seeds(found[name], c)) for c in columns.values())] for name in there]
    return '\n\n'.join(parts + [markdown(['', *columns], rows)])


def claims_table(claims, found):
    """Of each claim of which there are runs its differences and its verdict. Markdown."""
    rows = []
    for claim in claims:
        answered = answers(claim, found)
        if answered:
            rows.append([claim.words, '; '.join(f'{title(a)} − {title(b)} {d}' if not claim.less else
                                                f'{title(b)} − {title(a)} {d}' for a, b, d in answered),
                         f'**{verdict(claim, answered)}**'])
    return markdown(['claim', 'differences [95 % interval], seeds of that sign', ''], rows)


def sources_table(found):
    """Of the source: what the AVM sees and what each selection takes, by the last model; by whose P. Markdown."""
    columns = {'I_v AUC': seen('auc_v'), 'I_a AUC': seen('auc_a'), 'cosine AUC, frames': seen('auc_v', 'backbone'),
               **{f'{words}, {which}': chosen(selection, x) for x, words in (('v', 'frames'), ('a', 'sound'))
                  for selection, which in (('importance', 'LAVA'), ('forget-robust', 'FRS'), ('both', 'FLAVA'),
                                           ('excess', 'excess'))}}
    rows = [[title(name), *(text(over_seeds(found[name], c)) for c in columns.values())]
            for name in MAIN if name in found]
    P = {name: lambda record, name=name: mean(record['selection']['P'][name][-1])
         for name in ('on_v', 'beside_v', 'on_a', 'beside_a', 'same class', 'same task', 'other task')}
    own = [name for name in ('flava', 'flava+', 'lava', 'excess') if name in found]
    return '\n\n'.join([markdown(['source patches selected, %', *columns], rows), markdown(
        ['P of Eq. 5', *P], [[title(name), *(text3(over_seeds(found[name], c)) for c in P.values())] for name in own])])


def oracles_table(found):
    """A beside the share of source patches that each oracle selects. Markdown."""
    goes_by = lambda name: SELECTION.get(name.split('-')[1], 'both')
    rows = [[name, len(runs), *(text(over_seeds(runs, value)) for value in (
        recall('A'), chosen(goes_by(name), 'v'), chosen(goes_by(name), 'a')))]
            for name, runs in found.items() if name in ORACLES]
    return markdown(['with the source known', 'seeds', 'R@10 A ↑', 'source selected, frames, %', 'sound, %'], rows)


def text3(number):
    mean, deviation = number
    return f'{mean:.3f}' + ('' if deviation is None else f' ± {deviation:.3f}')


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
    if len(lines) > 1:
        half = stats.t.ppf(0.975, len(lines) - 1) * stats.sem(lines)
        axis.fill_between(x, mean - half, mean + half, color=looks['color'], alpha=0.12, linewidth=0)


def forgetting(found):
    """Forgetting curves: left the ten methods, right the selections."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True, layout='constrained')
    panels = [name for name in MAIN if name in STYLES], ['der++', 'random', 'mats', 'lava', 'frs', 'flava', 'excess']
    for axis, names, words in zip(axes, panels, ('methods', 'selections')):
        for name in (name for name in names if name in found and name != 'multitask'):
            with_band(axis, found[name], over_stream, label=title(name), **style(name))
        if 'multitask' in found:
            axis.axhline(over_seeds(found['multitask'], recall('A'))[0], color='black', linestyle='--', linewidth=1)
        ticks_of_tasks(axis, first(found)['retrieval']['tasks'])
        axis.set_title(words)
        axis.legend(ncols=2)
    axes[0].set_ylabel('R@10 of the tasks so far, %')
    return figure


def first(found):
    return next(iter(next(iter(found.values())).values()))


def differences(found):
    """Every paired difference of a claim in A, with its interval."""
    rows = [(f'{title(a)} − {title(b)}', d) for claim in CLAIMS if claim.words.endswith(' in A')
            for a, b, d in answers(claim, found)]
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.19 * len(rows)), layout='constrained')
    for place, (_, d) in enumerate(rows):
        colour = {'holds': '#009E73', 'does not': '#D55E00'}.get(d.verdict, '#666666')
        axis.errorbar(d.mean, place, xerr=[[d.mean - d.low], [d.high - d.mean]], fmt='o', color=colour, capsize=2)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set_yticks(range(len(rows)), [words for words, _ in rows])
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
    A = lambda record: text((recall('A')(record), None))
    rows = [[record['ended'], f'{record["name"]}-{record["seed"]}', f'`{record["options"]}`', record['commit'],
             record['seconds'], A(record)] for record in records]
    return markdown(['ended', 'run', 'options', 'commit', 'seconds', 'R@10 A'], rows) + '\n'


FIGURES = {'forgetting': forgetting, 'differences': differences, 'selected': selected}


# ---------------------------------------------------------------------------------- the command line

def page(found):
    """All of it as Markdown."""
    records = [record for runs in found.values() for record in runs.values()]
    hours = sum(record['seconds'] for record in records) / 3600
    commits, machines = ({record[name] for record in records} for name in ('commit', 'machine'))
    parts = [
        '# The evidence, as `python -m paper.evidence` writes it',
        f'{len(records)} runs, {hours:.1f} hours of one core; commits {", ".join(sorted(commits))}; '
        f'{", ".join(sorted(machines))}. Mean ± standard deviation over seeds. ' + __doc__.split('\n\n')[-1].strip(),
        '## Main table', main_table(found, MAIN), '## Claims', claims_table(CLAIMS, found)]
    for words, claims, names in (('Second stream', OF_SECOND, SECOND), ('Ablations', OF_ABLATIONS, ABLATIONS),
                                 ('The source known', OF_ORACLES, ORACLES)):
        if set(names) & set(found):
            parts += [f'## {words}', main_table(found, names), claims_table(claims, found)]
    if set(ORACLES) & set(found):
        parts.append(oracles_table(found))
    return '\n\n'.join(parts + ['## The source', sources_table(found)]) + '\n'


def main(arguments=None):
    """The command line: records → evidence.md and its figures."""
    parser = argparse.ArgumentParser(prog='python -m paper.evidence', allow_abbrev=False,
                                     description='Tables, intervals and figures of the study\'s records.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--records', type=Path, default=ROOT / 'results' / 'runs', help='folder to read and write')
    args = parser.parse_args(arguments)
    with exit_politely():
        found = read(args.records)
        check_writable(args.records, '--records ')
        write_text(args.records / 'evidence.md', page(found))
        write_text(args.records / 'log.md', log(found))
        print(args.records / 'evidence.md')
        for name, draw in FIGURES.items():
            if name == 'selected' and 'flava' not in found:
                continue
            with plt.rc_context(PRINT):
                figure = draw(found)
            figure.savefig(args.records / f'{name}.png', dpi=160)
            plt.close(figure)
            print(args.records / f'{name}.png')


if __name__ == '__main__':
    main()
