"""Loading beside training: how many samples/s the clips of a folder give, and how long the steps wait for them (ours).

In:  training clips, loaded as `train.py` loads them; methods that are ready to step.
Out: samples/s of loading alone, of each method on a batch that is there already, and of it on what is loaded beside it,
     with the share of its time that it waited; as a Markdown table, and a sentence a method that says what limits.

All are timed in turn, round after round, each on clips of its own: those read before would come from memory, not from
the disk. Where the clips are few, they come round again.
"""
import itertools
import math
import statistics
import time

import torch
from tqdm import tqdm

from config import PRESETS, Config
from streams.catalogue import open_stream
from streams.common import Union
from streams.prepare import advice
from streams.workers import Loader, waiting

AHEAD = 3          # batches a process: one is loaded before the clock starts, and two are under way when it stops
MATTERS = 0.1      # share of waiting from which on it is loading that limits


def clips_of(args):
    """The folder's training clips, of all tasks, listed and tested as for training. What there is to say of them is
    said. Raises UserError."""
    cfg = Config(**{**PRESETS[args.size], 'size': args.size, 'dataset': args.dataset, 'data': args.data,
                    'tasks': args.tasks or '', 'batch_size': args.batch, 'pretrain_steps': 0})
    stream = open_stream(cfg, args.workers)
    clips = Union(stream.train)
    for note in [*stream.notes, *advice(stream.train, cfg), f'{len(clips)} training clips\n']:
        print(note)
    return clips


# -------------------------------------------------------------------------------- time and waiting

def keys(clips):
    """(clip, seed of its augmentation), without end: each clip once, in a random order, before any comes again."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for index in torch.randperm(clips, generator=generator).tolist():
            yield index, torch.randint(2 ** 62, (), generator=generator).item()


def rate(batches, warm, steps, batch_size, take=lambda batch: None):
    """Each batch, once it is there, is given to `take` → samples/s, and the share of the time that was waited for them.

    Timed in the middle of a run: after `warm` batches, one of each process, for these come all at once."""
    waits = []
    for number, batch in enumerate(waiting(batches, waits), 1):
        take(batch)
        now = time.perf_counter()
        if number == warm:
            start, waits[:] = now, []
        if number == warm + steps:
            return steps * batch_size / (now - start), sum(waits) / (now - start)


def measure(clips, batch_size, workers, names, ready, rounds, steps, pin=False):
    """→ {workers, samples_per_s: [of loading alone, per round], methods: {name: {alone: [samples/s], beside:
    [samples/s], waited: [share]}}}

    clips    a Dataset
    ready    name → a method, of which `learn(batch)` takes a step, to its end, and `batch` is one (`bench.Training`)
    steps    at least; as many more as give each process the same number of batches to load
    """
    processes, endless = max(workers, 1), keys(len(clips))
    steps = math.ceil(steps / processes) * processes
    draw = lambda: [list(itertools.islice(endless, batch_size)) for _ in range(steps + AHEAD * processes)]
    loaded = lambda: Loader(clips, draw(), workers, pin)
    methods = {name: dict(alone=[], beside=[], waited=[]) for name in names}
    found = dict(workers=workers, samples_per_s=[], methods=methods)
    with tqdm(total=rounds * (1 + len(names)), unit='turn', leave=False, disable=None) as bar:
        for number in range(1, rounds + 1):
            bar.set_description(f'round {number}/{rounds}: loading')
            found['samples_per_s'].append(rate(loaded(), processes, steps, batch_size)[0])
            bar.update()
            for name in names:
                bar.set_description(f'round {number}/{rounds}: {name}')
                method, of = ready(name), methods[name]
                of['alone'].append(rate(itertools.repeat(method.batch), 1, steps, batch_size, method.learn)[0])
                beside, waited = rate(loaded(), processes, steps, batch_size, method.learn)
                of['beside'].append(beside)
                of['waited'].append(waited)
                del method
                bar.update()
    return found


# ------------------------------------------------------------------------------ table and sentences

def spread(values):
    """9.20 (8.95 … 9.41)"""
    return f'{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})'


def table(found):
    """Markdown: medians over rounds (lowest … highest)"""
    processes = f'{found["workers"]} worker{"s" * (found["workers"] > 1)}' if found['workers'] else 'no workers'
    lines = ['| | samples/s | steps waited |', '| --- | --- | --- |',
             f'| loading alone, {processes} | {spread(found["samples_per_s"])} | – |']
    for name, of in found['methods'].items():
        share = [100 * waited for waited in of['waited']]
        lines += [f'| {name}, its batch there already | {spread(of["alone"])} | – |',
                  f'| {name}, loading beside it | {spread(of["beside"])} | {statistics.median(share):.0f} % '
                  f'({min(share):.0f} … {max(share):.0f}) |']
    return '\n'.join(lines)


def limits(found):
    """A sentence a method: whether training waits for loading, and how many processes would do."""
    loading, each = statistics.median(found['samples_per_s']), max(found['workers'], 1)
    gives = f'loading gives {loading:.1f} samples/s' + (f', {loading / each:.1f} a worker' if each > 1 else '')
    sentences = []
    for name, of in found['methods'].items():
        alone, waited = statistics.median(of['alone']), statistics.median(of['waited'])
        enough = math.ceil(alone * each / loading)
        verdict = 'training limits' if waited < MATTERS else 'loading limits' + (
            f'; about {enough} such workers would keep up' if enough > found['workers'] else '')
        sentences.append(f'{name}: {gives}; training alone takes {alone:.1f}; the steps waited {100 * waited:.0f} % of '
                         f'the time: {verdict}.')
    return '\n'.join(sentences)
