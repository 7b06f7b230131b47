"""Claims of the paper and ours, as paired differences between runs, with their intervals and verdicts.

In:  records of the study (`runs.py`).
Out: for each claim its differences and a verdict; `report.py` prints them.
"""
import functools
import operator
from typing import NamedTuple

import numpy as np
from scipy import stats

from config import UserError
from downstream.maps import mean
from eval import DIRECTIONS
from paper.groups import METHOD_TITLES, mean_and_deviation
from study.runs import GROUPS, RUNS, SEEDS, read_records

RULE = """
The rule. A claim says that differences are above 0 (with a margin: above −margin). A difference is between two runs of
one seed; retrieval is R@10 in percent, the mean of both directions. Its interval is Student's 95 % interval over seeds
(`scipy.stats.ttest_1samp`). A claim is supported if the interval of each of its differences is above 0, contradicted if
one interval is below 0, else inconclusive. It gets no verdict before all its seeds are recorded. An inconclusive
difference has a detectable effect: half the width of its interval, t(0.975, n − 1) · s / √n. A true difference smaller
than that is missed more often than not. Intervals are not corrected for the number of claims: of forty differences that
are 0, one interval is above 0 by chance, and one below. A verdict does not name a cause: the claim about the mismatch is
supported, but not because of a mismatch (details-why.md).

When claims were written. Unmarked ones of the main stream, the second stream and the rule: before the first run of the
benchmark. †: while the first seed of the main stream ran. ‡: after its results were known, so they are observations,
not tests. Ablations and "true source": before their runs. "Why": after the runs with the true source, before its own
runs, on other seeds; two of its claims after a dozen of these runs. "Top eighth": after all of them, on seeds that had
not shown it. "Pre-registered": before the tuning of `rank` was finished and before the first run on seeds 300-309; about
cheap scoring, before its tuning and before the first run on seeds 310-319.
"""

OTHERS = ('finetune', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump')
TITLES = METHOD_TITLES | {
    'random': 'Random', 'mats': 'MATS', 'lava': 'LAVA', 'frs': 'FRS', 'excess': 'excess (ours)', 'rank': 'rank (ours)',
    'rank-excess': 'rank-excess (ours)', 'rank+': 'FLAVA+ with rank (ours)', 'rank-matching': 'rank, matching share',
    'why-frames': 'LAVA, source in I_v', 'why-objects': 'LAVA, objects in I_v', 'why-moments': 'LAVA, moments in I_a',
    'why-part': 'LAVA, part of the source in I_v', 'why-top': 'LAVA, top eighth of I_v',
    'top-again': 'LAVA, top eighth of I_v, new seeds', 'why-seen': 'LAVA, source in I_v, moments in I_a',
    'why-any-frames': 'LAVA, uniform I_v', 'why-any-sound': 'LAVA, uniform I_a',
    'why-second-frames': 'LAVA, source in I_v, second stream', 'scorer-full': 'rank, full scorer',
    'scorer-cheap': 'rank, cheap scorer', 'scorer-der++': 'DER++, seeds of the scorer',
    **{f'mixture-{m}': f'LAVA, mixture with m = {m}' for m in (0, 0.25, 0.5, 0.75, 1)}}
PREFIXES = {'second-': ', second stream', 'fresh-second-': ', second stream', 'fresh-': '', 'large-': ', large objects',
            'small-': ', small objects', 'order-1-': ', order 1', 'order-2-': ', order 2'}


def title(name):
    """A run's name in words; the name itself where there are none."""
    for prefix, words in PREFIXES.items():
        if name.startswith(prefix) and name.removeprefix(prefix) in TITLES:
            return TITLES[name.removeprefix(prefix)] + words
    return TITLES.get(name, name)


# ------------------------------------------------------------------------------- values of a record

def load(path):
    """records.jsonl → {name: {seed: record}}, in the order of GROUPS, with the seeds of each group only. Raises
    UserError where there is none."""
    runs = {name: {} for name in RUNS}
    for (name, seed), record in read_records(path).items():
        if seed in SEEDS.get(name, ()):
            runs[name][seed] = record
    runs = {name: by_seed for name, by_seed in runs.items() if by_seed}
    if not runs:
        raise UserError(f'{path} has no records: `make table` makes them')
    return runs


def retrieval(which):
    """→ value(record): A or F of R@10 in percent, the mean of both directions; None where there is none"""
    def value(record):
        values = [record['retrieval'][direction]['R@10'][which] for direction in DIRECTIONS]
        return None if None in values else float(np.mean(values))
    return value


def field(*path):
    """→ value(record): what it has at a path"""
    def value(record):
        return functools.reduce(operator.getitem, path, record)
    return value


def at_end(*path, scale=1):
    """→ value(record): of the matrix [model][task] at a path, the last model's mean over tasks"""
    def value(record):
        return scale * mean(field(*path)(record)[-1])
    return value


def source_selected(selection, modality):
    """→ value(record): percent of the source's patches that a selection takes by the last model"""
    return at_end('selection', f'selected_{modality}', selection)


def gap(record):
    """Modality gap, the mean over the models after each task; None for Multitask, which has one model"""
    over_stream = record['gap']['over_stream']
    return mean(over_stream) if len(over_stream) > 1 else None


def auc_v_lost(record):
    """AUC of I_v right after each task minus at the end, percent, the mean over all tasks but the last. Row 0 is the
    initial model."""
    rows = record['localization']['avm']['auc_v']
    return 100 * mean([rows[task + 1][task] - rows[-1][task] for task in range(len(rows) - 2)])


def pool_gain(record):
    """A of the last model without the half of the patches of lowest I in the pool, minus with all"""
    return record['mismatch']['0.5'] - record['mismatch']['0']


def over_seeds(runs, value):
    """{seed: record} → mean, sample standard deviation; None where there are too few values"""
    return mean_and_deviation(map(value, runs.values()))


# -------------------------------------------------------------------------------------- differences

class Difference(NamedTuple):
    """First minus second, over pairs of runs with one seed."""
    mean: float
    low: float          # the 95 % interval
    high: float
    same_sign: int      # seeds with the sign of the mean
    seeds: int

    def __str__(self):
        return f'{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], {self.same_sign} of {self.seeds}'

    @property
    def detectable(self):
        """Half the width of the interval"""
        return (self.high - self.low) / 2

    def verdict(self, margin=0):
        if self.low > -margin:
            return 'supported'
        return 'contradicted' if self.high < -margin else 'inconclusive'


def difference(first, second, value):
    """{seed: record} twice → Difference over the seeds that both have; None for fewer than two"""
    seeds = sorted(set(first) & set(second))
    if len(seeds) < 2:
        return None
    differences = np.array([value(first[seed]) - value(second[seed]) for seed in seeds])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    same_sign = int((np.sign(differences) == np.sign(differences.mean())).sum())
    return Difference(differences.mean(), low, high, same_sign, len(seeds))


# ---------------------------------------------------------------------------------------- the claims

A, F = retrieval('A'), retrieval('F')
probe = at_end('classification', 'acc')                            # accuracy of a linear head, percent
auc_v = at_end('localization', 'avm', 'auc_v', scale=100)          # ROC-AUC of I_v, percent
gap_moved = field('gap', 'difference')      # the gap at the end and right after each task: the mean distance
never_visible = field('coverage', 'never_visible_v')               # percent of a clip's video patches


class Claim(NamedTuple):
    """Words, and the differences that they say are above 0."""
    words: str
    pairs: list            # of (name, name): first minus second
    value: object = A      # of a record
    margin: float = 0      # above −margin instead

    def differences(self, runs):
        """→ [(first, second, Difference)] of the pairs with records"""
        found = [(a, b, difference(runs.get(a, {}), runs.get(b, {}), self.value)) for a, b in self.pairs]
        return [(a, b, d) for a, b, d in found if d]

    def verdict(self, runs):
        """The worst verdict of the differences; 'seeds missing' before all are recorded"""
        for pair in self.pairs:
            for seed in set(SEEDS[pair[0]]) & set(SEEDS[pair[1]]):
                if any(seed not in runs.get(name, {}) for name in pair):
                    return 'seeds missing'
        verdicts = {d.verdict(self.margin) for _, _, d in self.differences(runs)}
        return next(word for word in ('contradicted', 'inconclusive', 'supported') if word in verdicts)


def against(name, others):
    """Pairs of one run with several"""
    return [(name, other) for other in others]


def below(name, others):
    """Pairs for a value that is better when lower: the others minus this one"""
    return [(other, name) for other in others]


CLAIMS = {   # {group of runs: claims}
    'main': [
        Claim('FLAVA has a higher A than every other method', against('flava', OTHERS)),
        Claim('FLAVA+ has a higher A than every other method', against('flava+', OTHERS)),
        Claim('‡ FLAVA+ has a higher A than FLAVA', [('flava+', 'flava')]),
        Claim('FLAVA forgets less (F)', below('flava', OTHERS), F),
        Claim('FLAVA+ forgets less (F)', below('flava+', OTHERS), F),
        Claim('LAVA helps: higher A than DER++ and Random', against('lava', ('der++', 'random'))),
        Claim('FRS helps: higher A than DER++ and Random', against('frs', ('der++', 'random'))),
        Claim('both together help more: FLAVA has a higher A than LAVA and FRS', against('flava', ('lava', 'frs'))),
        Claim('† LAVA has a higher A than FRS', [('lava', 'frs')]),
        Claim('† FRS forgets less than LAVA (F)', below('frs', ('lava',)), F),
        Claim('Random is behind DER++ in A (the paper: similar)', [('der++', 'random')]),
        Claim('MATS is behind FLAVA in A', [('flava', 'mats')]),
        Claim('† MATS forgets more than LAVA (F)', below('lava', ('mats',)), F),
        Claim('† FLAVA has a better probe than every other method', against('flava', OTHERS), probe),
        Claim('FLAVA\'s AVM finds more of the source at the end (AUC of I_v, %) than the AVM of the initial '
              'pre-training, which DER++ does not train', [('flava', 'der++')], auc_v),
        Claim('† and loses less of it after each task (AUC of I_v, %)', below('flava', ('der++',)), auc_v_lost),
        Claim('the modality gap stays larger with FLAVA', against('flava', OTHERS), gap),
        Claim('‡ and moves less after each task', below('flava', OTHERS), gap_moved),
        Claim('‡ LAVA has a larger gap than the other selections', against('lava', ('random', 'mats', 'frs', 'flava')),
              gap),
        Claim('‡ FRS\'s gap moves less than LAVA\'s and Random\'s', below('frs', ('lava', 'random')), gap_moved),
        Claim('ours: excess has a higher A than the paper\'s selection', [('excess', 'flava')]),
        Claim('ours: excess has a higher A than LAVA', [('excess', 'lava')])],
    'second': [Claim(f'{TITLES[name]} has a higher A than DER++', [(f'second-{name}', 'second-der++')])
               for name in ('er', 'flava', 'lava', 'excess')],
    'ablations': [
        Claim('a larger memory gives a higher A', [('flava-memory-320', 'flava'), ('flava', 'flava-memory-80')]),
        Claim('audio in chunks of time is better than in bands and than without chunks (A)',
              against('flava', ('audio-selection-frequency', 'audio-selection-none'))),
        Claim('the MAE loss protects classification: without it the probe is worse',
              [('finetune', 'finetune-no-mae'), ('er', 'er-no-mae')], probe),
        Claim('ours: with as many pairs, selecting anew at each replay has a higher A than selecting once',
              [('flava', 'flava+-memory-80')])],
    'oracles': [
        *(Claim(f'ours: with the source in I, {TITLES[name]} has a higher A', [(f'oracle-{name}', name)])
          for name in ('lava', 'excess', 'flava', 'frs')),
        *(Claim(f'ours: with the source of {of} in I, LAVA has a higher A', [(f'oracle-lava-{of}', 'lava')])
          for of in ('frames', 'sound')),
        Claim('ours: LAVA with odds of 4 on the source has a higher A than with odds of 1',
              [('oracle-lava-odds-4', 'oracle-lava-odds-1')]),
        Claim('ours: LAVA with odds of 16 on the source has a higher A than with odds of 1',
              [('oracle-lava', 'oracle-lava-odds-1')]),
        Claim('ours: LAVA with odds of 1/4 on the source has a lower A than with odds of 1',
              [('oracle-lava-odds-1', 'oracle-lava-odds-0.25')]),
        Claim('ours: FLAVA with P of all patches has a higher A', [('flava-p-of-all', 'flava')]),
        Claim('ours: FRS with uniform I and P of all patches has a higher A than Random',
              [('frs-p-of-all', 'random')])],
    'why': [
        Claim('ours: with the source of frames in I, LAVA has a higher A than with the AVM\'s I, and than DER++',
              against('why-frames', ('lava', 'der++'))),
        Claim('ours: the AVM\'s I_v is worse than none: with a uniform I_v LAVA has a higher A',
              [('why-any-frames', 'lava')]),
        Claim('ours: telling the source from silent objects matters: with all objects in I_v, A is lower',
              [('why-frames', 'why-objects')]),
        Claim('ours: the AVM\'s I_a helps: with a uniform I_a LAVA has a lower A', [('lava', 'why-any-sound')]),
        Claim('ours: the moments of the frames in I_a give a higher A than a uniform I_a',
              [('why-moments', 'why-any-sound')]),
        Claim('ours: source in frames and moments in sound give a higher A than the source in frames alone',
              [('why-seen', 'why-frames')]),
        Claim('ours: the source must be whole: with a fixed 64 % of it, LAVA has a lower A',
              [('why-frames', 'why-part')]),
        Claim('ours: knowing the source beats a sharper I_v: the source has a higher A than the AVM\'s top eighth at '
              'equal odds', [('why-frames', 'why-top')])],
    'why-second': [Claim('ours: with the source of frames in I, LAVA has a higher A than with the AVM\'s I, and than '
                         'DER++', against('why-second-frames', ('second-lava', 'second-der++')))],
    'why-again': [Claim('ours: LAVA with the AVM\'s top eighth at equal odds has a higher A than LAVA, DER++, Random',
                        against('top-again', ('lava', 'der++', 'random')))],
    'fresh': [
        *(Claim(f'rank has a higher A than {TITLES[name]}', [('fresh-rank', f'fresh-{name}')])
          for name in ('der++', 'mats', 'random', 'flava', 'lava')),
        Claim('FLAVA+ with rank has a higher A than FLAVA+', [('fresh-rank+', 'fresh-flava+')]),
        Claim('rank forgets no more than DER++: F is at most 2 points higher', [('fresh-der++', 'fresh-rank')], F, 2),
        Claim('rank\'s probe is at most 2 points worse than DER++\'s', [('fresh-rank', 'fresh-der++')], probe, 2),
        Claim('coverage: rank leaves fewer video patches never visible than LAVA (%)', [('fresh-lava', 'fresh-rank')],
              never_visible),
        Claim('mismatch: without the half of lowest I in the pool, LAVA gains more A than rank',
              [('fresh-lava', 'fresh-rank')], pool_gain)],
    'fresh-second': [Claim(f'rank has a higher A than {TITLES[name]}', [('fresh-second-rank', f'fresh-second-{name}')])
                     for name in ('der++', 'mats', 'flava', 'lava')],
    'third': [claim for size in ('large', 'small') for claim in (
        *(Claim(f'{size} objects: rank has a higher A than {TITLES[name]}', [(f'{size}-rank', f'{size}-{name}')])
          for name in ('der++', 'lava')),
        Claim(f'{size} objects: the matching share has a higher A than the share of the benchmark',
              [(f'{size}-rank-matching', f'{size}-rank')]))],
    'orders': [Claim(f'{order}: rank has a higher A than {TITLES[name]}', [(f'{order}-rank', f'{order}-{name}')])
               for order in ('order-1', 'order-2') for name in ('der++', 'flava')],
    'mixture': [Claim(f'a mixture with m = {m} has a higher A than LAVA (m = 0)', [(f'mixture-{m}', 'mixture-0')])
                for m in (0.25, 0.5, 0.75, 1)],
    'scorer': [
        Claim('with a cheap scorer, rank\'s A is at most 1 point lower', [('scorer-cheap', 'scorer-full')], A, 1),
        Claim('with a cheap scorer, rank has a higher A than DER++', [('scorer-cheap', 'scorer-der++')])]}
assert set(CLAIMS) <= set(GROUPS)
