"""The paper's claims as paired differences between runs of the study, with their intervals and verdicts (ours).

In:  records, as `study.py` leaves them.
Out: of each claim its differences, and its verdict; `evidence.py` makes the page of them.

Retrieval is R@10 in percent, the mean of both directions, where nothing else is said. A difference is between two runs
of one seed, which share their clips; its interval is Student's at 95 % over seeds. A claim of several differences holds
where the interval of each is above 0, does not where one is below, and elsewhere cannot be told here; nothing is said
before all its seeds are there. Intervals are of each difference alone: of forty without an effect, one would be above 0
by chance and one below. The rule and the claims were written down before the first run of this benchmark; those with a
† during the first seed of the main table; those of ablations and of what if before any of their runs; those with a ‡,
of Table 1 and App. G, after the main table was whole and seen. Those of "Why" came of what the first what ifs showed,
and were written down before any of its runs, which are on other data seeds; two of them after a dozen of the others,
the last after all of the others, of the six seeds of the main table that none of these had seen. "Ours" are not in the
paper.
"""
import json
from typing import NamedTuple

import numpy as np
from scipy import stats

from downstream.maps import mean
from paper.groups import DIRECTIONS, NAMES
from paper.study import ABLATIONS, MAIN, SECOND, SEEDS, WHAT_IFS, WHY
from patches import UserError

TITLES = {name: NAMES[name].removesuffix(' (Ours)') for name in NAMES} | {
    'random': 'Random', 'mats': 'MATS', 'lava': 'LAVA', 'frs': 'FRS', 'excess': 'excess (ours)'}
TITLES |= {name: f'{TITLES[name.removeprefix("second-")]}, second stream' for name in SECOND} | {
    'why-frames': 'LAVA, source in I_v', 'why-objects': 'LAVA, objects in I_v', 'why-moments': 'LAVA, moments in I_a',
    'why-part': 'LAVA, part of the source in I_v', 'why-top': 'LAVA, an eighth by the AVM\'s I_v',
    'top-again': 'LAVA, an eighth by the AVM\'s I_v, other seeds',
    'why-seen': 'LAVA, source in I_v, moments in I_a', 'why-any-frames': 'LAVA, I_v the same everywhere',
    'why-any-sound': 'LAVA, I_a the same everywhere', 'why-second-frames': 'LAVA, source in I_v, second stream'}
OTHERS = ('finetune', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump')


def title(name):
    return TITLES.get(name, name)


# ------------------------------------------------------------------------------ records, and their numbers

def read(folder):
    """Records → {name: {seed: record}}, names in the study's order; of what is reported, the seeds that it is asked
    with. Raises UserError where there is none."""
    found = {}
    for file in sorted(folder.glob('*.json')):
        record = json.loads(file.read_text())
        if record['seed'] in SEEDS.get(record['name'], [record['seed']]):
            found.setdefault(record['name'], {})[record['seed']] = record
    if not found:
        raise UserError(f'{folder} holds no records: `make table` makes them')
    order = [*MAIN, *SECOND, *ABLATIONS, *WHAT_IFS, *WHY]
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
    """The modality gap, the mean over the models after each task"""
    return float(np.mean(record['gap']['over_stream']))


def moved(record):
    """How far the gap is at the end from where it was right after each task, the mean over tasks but the last"""
    return record['gap']['difference']


def seen(name, which='avm'):
    """→ value(record): where the last model looks, the mean over tasks"""
    return lambda record: mean(record['localization'][which][name][-1])


def fallen(record):
    """AUC of I_v right after each task's own training less at the end, the mean over tasks but the last. The first row
    is of the initial model."""
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


# ------------------------------------------------------------------------------------ differences

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
    """One claim, as differences that it says are above 0."""
    words: str
    pairs: list         # of (name, name)
    value: object       # of a record
    less: bool = False  # the claim is of the lower value: the difference is turned round


A, F = recall('A'), recall('F')
CLAIMS = [
    Claim('FLAVA is ahead of all in A', [('flava', other) for other in OTHERS], A),
    Claim('FLAVA+ is ahead of all in A', [('flava+', other) for other in OTHERS], A),
    Claim('‡ FLAVA+ is ahead of FLAVA in A', [('flava+', 'flava')], A),
    Claim('FLAVA forgets less (F)', [('flava', other) for other in OTHERS], F, less=True),
    Claim('FLAVA+ forgets less (F)', [('flava+', other) for other in OTHERS], F, less=True),
    Claim('LAVA helps: ahead of DER++ and of Random in A', [('lava', 'der++'), ('lava', 'random')], A),
    Claim('FRS helps: ahead of DER++ and of Random in A', [('frs', 'der++'), ('frs', 'random')], A),
    Claim('together more: FLAVA ahead of LAVA and of FRS in A', [('flava', 'lava'), ('flava', 'frs')], A),
    Claim('† LAVA ahead of FRS in A', [('lava', 'frs')], A),
    Claim('† FRS forgets less than LAVA (F)', [('frs', 'lava')], F, less=True),
    Claim('Random is no better than DER++ (the paper: similar); holds where it is behind', [('der++', 'random')], A),
    Claim('MATS is behind FLAVA in A', [('flava', 'mats')], A),
    Claim('† MATS forgets more than LAVA (F)', [('lava', 'mats')], F, less=True),
    Claim('† FLAVA is ahead of all in classification (probe)', [('flava', other) for other in OTHERS], probe),
    Claim('the AVM of FLAVA finds more of the source at the end (AUC of I_v, %) than that of the initial pre-training, '
          'which DER++ does not train', [('flava', 'der++')], lambda record: 100 * seen('auc_v')(record)),
    Claim('† and falls less after each task (AUC of I_v, %)', [('flava', 'der++')],
          lambda record: 100 * fallen(record), less=True),
    Claim('the gap stays larger under FLAVA', [('flava', other) for other in OTHERS], gap),
    Claim('‡ and moves less after each task', [('flava', other) for other in OTHERS], moved, less=True),
    Claim('‡ LAVA has a larger gap than the other selections', [
        ('lava', other) for other in ('random', 'mats', 'frs', 'flava')], gap),
    Claim('‡ FRS\'s gap moves less than those of LAVA and Random', [('frs', 'lava'), ('frs', 'random')], moved,
          less=True),
    Claim('ours: "excess" is ahead of the paper\'s selection in A', [('excess', 'flava')], A),
    Claim('ours: "excess" is ahead of LAVA in A', [('excess', 'lava')], A),
]
OF_SECOND = [Claim(f'{title(name)} is ahead of DER++ in A', [(f'second-{name}', 'second-der++')], A)
             for name in ('er', 'flava', 'lava', 'excess')]
OF_ABLATIONS = [
    Claim('a larger memory gives more A', [('flava-memory-320', 'flava'), ('flava', 'flava-memory-80')], A),
    Claim('audio in chunks of time is ahead of bands and of none in A', [
        ('flava', 'audio-selection-frequency'), ('flava', 'audio-selection-none')], A),
    Claim('the MAE loss guards classification: without it the probe is lower', [
        ('finetune', 'finetune-no-mae'), ('er', 'er-no-mae')], probe),
    Claim('ours: of as many pairs, a new selection at each replay has more A than one for all', [
        ('flava', 'flava+-memory-80')], A),
]
OF_WHAT_IFS = [
    *(Claim(f'ours: with the source in I, {title(name)} has more A', [(f'oracle-{name}', name)], A)
      for name in ('lava', 'excess', 'flava', 'frs')),
    *(Claim(f'ours: with the source of {of} in I, LAVA has more A', [(f'oracle-lava-{of}', 'lava')], A)
      for of in ('frames', 'sound')),
    *(Claim(f'ours: LAVA with odds of {odds} on the source has more A than with odds of 1',
            [(f'oracle-lava{of}', 'oracle-lava-odds-1')], A) for odds, of in ((4, '-odds-4'), (16, ''))),
    Claim('ours: LAVA with odds of 1/4 on the source has less A than with odds of 1',
          [('oracle-lava-odds-0.25', 'oracle-lava-odds-1')], A, less=True),
    Claim('ours: FLAVA with P of all patches has more A', [('flava-p-of-all', 'flava')], A),
    Claim('ours: FRS without any I, P of all patches, is ahead of Random in A', [('frs-p-of-all', 'random')], A),
]

OF_WHY = [
    Claim('ours: with the source of frames in I, LAVA has more A than with the AVM\'s I, and is ahead of DER++',
          [('why-frames', 'lava'), ('why-frames', 'der++')], A),
    Claim('ours: so too on the second stream', [
        ('why-second-frames', 'second-lava'), ('why-second-frames', 'second-der++')], A),
    Claim('ours: the AVM\'s I_v is worth less than none: with any frame patch as likely, LAVA has more A',
          [('why-any-frames', 'lava')], A),
    Claim('ours: the source among the objects matters: all objects in I_v give less A',
          [('why-frames', 'why-objects')], A),
    Claim('ours: the AVM\'s I_a is worth something: with any chunk of sound as likely, LAVA has less A',
          [('lava', 'why-any-sound')], A),
    Claim('ours: it is worth it by the moments of the frames: with these in I_a LAVA has more A than with any',
          [('why-moments', 'why-any-sound')], A),
    Claim('ours: with the source in frames and the moments in sound, LAVA is ahead of the source in frames alone',
          [('why-seen', 'why-frames')], A),
    Claim('ours: the source must be whole: with as much of it as the AVM\'s I_v takes, a part that is always the same, '
          'LAVA has less A', [('why-frames', 'why-part')], A),
    Claim('ours: it is not how sharply the AVM\'s I_v prefers: with its top eighth at equal odds, LAVA is no better '
          '(holds where the true source is ahead of that)', [('why-frames', 'why-top')], A),
    Claim('ours: with its top eighth at equal odds LAVA is ahead of LAVA, of DER++ and of Random',
          [('top-again', 'lava'), ('top-again', 'der++'), ('top-again', 'random')], A),
]


def answers(claim, found):
    """A claim → [(name, other, Difference)] of the pairs that there are"""
    pairs = [(a, b, difference(found.get(a, {}), found.get(b, {}), claim.value)) for a, b in claim.pairs]
    turned = lambda d: Difference(-d.mean, -d.high, -d.low, d.alike, d.seeds)
    return [(a, b, turned(d) if claim.less else d) for a, b, d in pairs if d]


def verdict(claim, answered):
    """Of a claim of several differences: each must hold; one that does not decides."""
    wanted = {(a, b): len(set(SEEDS.get(a, ())) & set(SEEDS.get(b, ()))) for a, b in claim.pairs}
    there = {(a, b): d.seeds for a, b, d in answered}
    if any(there.get(pair, -1) < seeds for pair, seeds in wanted.items()):
        return 'not all seeds are there'
    each = {d.verdict for _, _, d in answered}
    return next(word for word in ('does not', 'cannot be told here', 'holds') if word in each)
