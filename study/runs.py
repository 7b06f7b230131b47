"""The study on sounding shapes: its runs, how a run is made, and what its record holds (ours).

    python -m study.runs main                 all runs of a group that have no record (`make table`)
    python -m study.runs lava-100 flava-101   these runs;  main --seeds 100: one seed of a group
    python -m study.runs fresh --left         print the runs without a record, and how long they take

In:  names of runs: NAME-SEED, or the name of a group below.
Out: results/records.jsonl, one line a run: options, commit, machine, time; retrieval after each task; evaluations of
     the models: modality gap, localization and selection after each task, a linear probe at the end. No weights.
     `report.py` makes all tables and figures from this file.

The seed sets clips, order within a task, masks and selection. Runs with one seed share clips and order: they are pairs.
All runs share classes and initial model. Each trains in a process with one thread.

Seed 0 chose the benchmark and the options of the methods: four settings each, one run a setting. Seeds 200-203 chose the
options of `rank` (13 settings) and of its cheap scorer (5). No claim uses these seeds. Seeds 100-109 are the main runs,
seeds 300-319 the pre-registered ones, which also record coverage (`oracle.py`).
"""
import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import UserError
from downstream import classification, gap, localization, selection_stats
from downstream.finished_run import FinishedRun
from eval import DIRECTIONS
from study import oracle, pool
from study.agreement import scorer_agreement
from utils.checkpoint import write_text
from utils.cli import Parser, cli_errors

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / 'results' / 'records.jsonl'
FIRST_WITH_COVERAGE = 300                                          # seeds from here on record coverage
PROBE = dict(clips=60, epochs=10, lr=0.02)                         # few clips, so that the probe does not saturate
EVALUATED_CLIPS = dict(test_clips=60, candidate_sets=1)            # per task: for gap, localization and selection

# Options tried on seed 0, four settings a method. TUNED is the one with the highest A; of equals, the first.
TRIED = {
    'der++': ['--alpha 0.1', '--alpha 0.5', '--alpha 1', '--alpha 2'],
    'flava': ['--rho-a 0.5 --rho-v 0.5 --beta 0.4', '--rho-a 0.5 --rho-v 0.5 --beta 0.1',
              '--rho-a 0.375 --rho-v 0.375 --beta 0.4', '--rho-a 0.625 --rho-v 0.625 --beta 0.4'],
    'gmed': ['--gmed-alpha 0.1 --gmed-beta 0.05', '--gmed-alpha 0.5 --gmed-beta 0.05',
             '--gmed-alpha 0.1 --gmed-beta 0.5', '--gmed-alpha 0.02 --gmed-beta 0.05'],
    'cls-er': ['--cls-er-alpha-p 0.999 --cls-er-alpha-s 0.999 --cls-er-lam 0.1',
               '--cls-er-alpha-p 0.99 --cls-er-alpha-s 0.99 --cls-er-lam 0.1',
               '--cls-er-alpha-p 0.95 --cls-er-alpha-s 0.99 --cls-er-lam 0.1',
               '--cls-er-alpha-p 0.99 --cls-er-alpha-s 0.99 --cls-er-lam 1'],
    'lump': ['--lump-beta 0.05', '--lump-beta 0.2', '--lump-beta 0.5', '--lump-beta 1'],
    'mir': ['--mir-candidates 2', '--mir-candidates 3', '--mir-candidates 5', '--mir-candidates 8'],
}
CHOSEN = {'der++': 1, 'flava': 0, 'gmed': 3, 'cls-er': 3, 'lump': 0, 'mir': 1}       # number of the setting in TRIED
TUNED = {name: TRIED[name][number] for name, number in CHOSEN.items()}
# FLAVA, its parts, Random and MATS build on DER++ and take its α.
TUNED['flava'] = f'{TUNED["der++"]} {TUNED["flava"]}'


# The options of rank and of its cheap scorer, chosen on seeds 200-203 (results/details-rank.md, details-scorer.md)
RANK_SHARE, RANK_WEIGHT, RANK_SOUND, RANK_PRUNING = 0.125, 16, 'importance', 'none'
SCORER = '--scorer student --scorer-every 4'


def by_rank(sound=RANK_SOUND, pruning=RANK_PRUNING, area=1, more=''):
    """Options of a run that draws video patches by rank.

    sound: weights of audio: importance, rank or even; pruning: P: none, excess or printed
    area: factor on the share; more: options in front
    """
    options = f'--rank-share {RANK_SHARE * area:g} --rank-weight {RANK_WEIGHT} {TUNED["flava"]}'
    if sound == 'importance' and pruning != 'printed':
        selection = {'none': 'rank', 'excess': 'rank-excess'}[pruning]
        return f'{more} --selection {selection} {options}'.strip()
    return f'--draw-a {sound} --draw-v rank --pruning {pruning} {more} --selection importance {options}'


# ------------------------------------------------------------------------------------------ the runs

class Group(NamedTuple):
    title: str
    seeds: tuple
    runs: dict        # {name: options}


MAIN = {   # the order of Table 1, then the selections of Table 3 and ours
    **{name: f'--method {name} {TUNED.get(name, "")}'
       for name in ('finetune', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump', 'flava')},
    'flava+': f'--method flava+ {TUNED["flava"]}', 'multitask': '--method multitask',
    'random': f'--selection random {TUNED["der++"]}', 'mats': f'--selection mats {TUNED["der++"]}',
    'lava': f'--selection importance {TUNED["flava"]}', 'frs': f'--selection forget-robust {TUNED["flava"]}',
    'excess': f'--selection excess {TUNED["flava"]}'}
SECOND_STREAM = '--min-silent 2 --max-silent 2 --order shuffled'
SECOND = {f'second-{name}': f'{MAIN[name]} {SECOND_STREAM}'
          for name in ('finetune', 'er', 'der++', 'flava', 'lava', 'excess')}

ABLATIONS = {}     # Tables 9, 10 and Figures 9, 10, 11
for _option, _values in (('rho-a', (0.375, 0.625)), ('rho-v', (0.375, 0.625)), ('beta', (0.1, 0.5)), ('chunk', (4, 8)),
                         ('audio-selection', ('frequency', 'none'))):
    ABLATIONS |= {f'{_option}-{value}': f'{MAIN["flava"]} --{_option} {value}' for value in _values}
for _name, _sizes in (('der++', (80, 320)), ('flava', (80, 320)), ('flava+', (80,))):   # FLAVA+ 80: FLAVA's 160 pairs
    ABLATIONS |= {f'{_name}-memory-{size}': f'{MAIN[_name]} --memory-size {size}' for size in _sizes}
ABLATIONS |= {f'{name}-no-mae': f'{MAIN[name]} --mae-weight 0' for name in ('finetune', 'er')}

ORACLES = {   # the true source in I; P of all patches
    **{f'oracle-{name}': f'--of both --odds 16 {MAIN[name]}' for name in ('lava', 'frs', 'flava', 'excess')},
    **{f'oracle-lava-{of}': f'--of {of} --odds 16 {MAIN["lava"]}' for of in ('frames', 'sound')},
    **{f'oracle-lava-odds-{odds}': f'--of both --odds {odds} {MAIN["lava"]}' for odds in (0.25, 1, 4)},
    'flava-p-of-all': f'--prune all {MAIN["flava"]}', 'frs-p-of-all': f'--prune all --of both --odds 1 {MAIN["frs"]}'}
WHY = {   # frames and sound apart
    **{f'why-{of}': f'--of {of} --odds 16 {MAIN["lava"]}'
       for of in ('frames', 'objects', 'moments', 'seen', 'part', 'top')},
    **{f'why-any-{of}': f'--of {of} --odds 1 {MAIN["lava"]}' for of in ('frames', 'sound')}}

# Pre-registered: no run of these existed when the claims about them were written (`claims.py`).
FRESH = {
    'fresh-rank': by_rank(), 'fresh-rank-excess': by_rank(pruning='excess'),
    'fresh-rank+': by_rank(more='--method flava+'),
    **{f'fresh-{name}': MAIN[name] for name in ('flava', 'flava+', 'lava', 'der++', 'mats', 'random', 'cls-er')}}
FRESH_SECOND = {
    'fresh-second-rank': by_rank(more=SECOND_STREAM),
    **{f'fresh-second-{name}': f'{MAIN[name]} {SECOND_STREAM}' for name in ('flava', 'lava', 'der++', 'mats')}}
THIRD = {}         # objects of twice and of half the area
for _word, _area in (('large', 2), ('small', 0.5)):
    _stream = f'--object-area {_area}'
    THIRD |= {f'{_word}-rank': by_rank(more=_stream), f'{_word}-rank-matching': by_rank(area=_area, more=_stream),
              **{f'{_word}-{name}': f'{MAIN[name]} {_stream}' for name in ('lava', 'der++')}}
# numpy.random.default_rng(0).permutation of the six tasks, drawn twice
TASK_ORDERS = {'order-1': 'elm,cedar,oak,fir,ash,birch', 'order-2': 'fir,oak,birch,cedar,ash,elm'}
ORDERS = {}
for _word, _order in TASK_ORDERS.items():
    ORDERS |= {f'{_word}-rank': by_rank(more=f'--order {_order}'),
               **{f'{_word}-{name}': f'{MAIN[name]} --order {_order}' for name in ('flava', 'der++')}}
MIXTURE = {f'mixture-{m}': f'--draw-v mixture --mixture {m} --pruning none {MAIN["lava"]}'
           for m in (0, 0.25, 0.5, 0.75, 1)}

# Cheap scoring: is it as good as scoring all patches, and ahead of DER++?
SCORERS = {'scorer-full': by_rank(), 'scorer-cheap': by_rank(more=SCORER),
           'scorer-der++': MAIN['der++']}

TUNING = {f'tune-{name}-{number}': f'--method {name} {options}'
          for name, tried in TRIED.items() for number, options in enumerate(tried)}
TUNING_RANK = {   # first share and weight, then sound, then P
    **{f'tune-rank-1-{share}-{weight}': f'--selection rank --rank-share {1 / share} --rank-weight {weight} '
                                        f'{TUNED["flava"]}' for share in (16, 8, 4) for weight in (4, 16, 64)},
    **{f'tune-sound-{sound}': by_rank(sound=sound, pruning='none') for sound in ('rank', 'even')},
    **{f'tune-pruning-{pruning}': by_rank(pruning=pruning) for pruning in ('excess', 'printed')}}
TUNING_SCORER = {
    **{f'tune-grid-{stride}': by_rank(more=f'--scorer grid --scorer-stride {stride}') for stride in (2, 3)},
    **{f'tune-student-{every}': by_rank(more=f'--scorer student --scorer-every {every}') for every in (4, 8, 16)}}

GROUPS = {
    'main': Group('Main stream', tuple(range(100, 110)), MAIN),
    'second': Group('Second stream: two silent objects, shuffled tasks', tuple(range(100, 105)), SECOND),
    'ablations': Group('Ablations', tuple(range(100, 104)), ABLATIONS),
    'oracles': Group('The true source in place of I', tuple(range(100, 104)), ORACLES),
    'why': Group('Why: frames and sound apart', tuple(range(105, 109)), WHY),      # seeds that ORACLES did not use
    'why-second': Group('Why: second stream', tuple(range(100, 105)),
                        {'why-second-frames': f'--of frames --odds 16 {SECOND["second-lava"]}'}),
    # why-top was ahead; the same on the main seeds that had not shown it
    'why-again': Group('Why: top eighth, replicated on new seeds', (100, 101, 102, 103, 104, 109),
                       {'top-again': WHY['why-top']}),
    'fresh': Group('Pre-registered: main stream', tuple(range(300, 310)), FRESH),
    'fresh-second': Group('Pre-registered: second stream', tuple(range(300, 310)), FRESH_SECOND),
    'third': Group('Pre-registered: objects of twice and of half the area', tuple(range(300, 305)), THIRD),
    'orders': Group('Pre-registered: two random task orders', tuple(range(300, 305)), ORDERS),
    'mixture': Group('Pre-registered: mixture weights (1 − m)·I_v + m/N', tuple(range(300, 304)), MIXTURE),
    'scorer': Group('Pre-registered: cheap scoring', tuple(range(310, 320)), SCORERS),
    'precision': Group('FLAVA in bf16 on a CPU', (300, 301, 302), {'flava-bf16': f'{MAIN["flava"]} --precision bf16'}),
    'tuning': Group('Tuning of the methods', (0,), TUNING),
    'tuning-rank': Group('Tuning of rank', tuple(range(200, 204)), TUNING_RANK),
    'tuning-scorer': Group('Tuning of the cheap scorer', tuple(range(200, 204)), TUNING_SCORER)}
RUNS = {name: ' '.join(options.split()) for group in GROUPS.values() for name, options in group.runs.items()}
SEEDS = {name: group.seeds for group in GROUPS.values() for name in group.runs}


def parse_run(run):
    """'lava-100' → ('lava', 100). Raises UserError."""
    name, _, seed = run.rpartition('-')
    if name not in RUNS or not seed.isdecimal():
        raise UserError(f'{run} is no run of the study. Use a group ({", ".join(GROUPS)}), or NAME-SEED; '
                        '`GROUP --left` prints names')
    return name, int(seed)


def expand(words, seeds=None):
    """Groups and NAME-SEED → [NAME-SEED]. seeds: of the groups, in place of all. Raises UserError."""
    runs = []
    for word in words:
        if word in GROUPS:
            runs += [f'{name}-{seed}' for seed in seeds or GROUPS[word].seeds for name in GROUPS[word].runs]
        else:
            parse_run(word)
            runs.append(word)
    return runs


# --------------------------------------------------------------------------------------- the records

def read_records(path=RECORDS):
    """records.jsonl → {(name, seed): record}, in the order of the file"""
    records = [json.loads(line) for line in path.read_text('utf-8').splitlines()] if path.exists() else []
    return {(record['name'], record['seed']): record for record in records}


def append_record(record, path=RECORDS):
    """Append a record to the file. Processes take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        lines = path.read_text('utf-8') if path.exists() else ''
        write_text(path, lines + json.dumps(record) + '\n')


def check_options(record):
    """Raises UserError where a record's options are not the options of its name."""
    name, seed = parse_run(f'{record["name"]}-{record["seed"]}')
    if ' '.join(record['options'].split()) != RUNS[name]:
        raise UserError(f'the record of {name}-{seed} has the options {record["options"]}, but the run now has '
                        f'{RUNS[name]}: remove the record')


def retrieval_A(record):
    """R@10 A, the mean of both directions, percent"""
    return float(np.mean([record['retrieval'][direction]['R@10']['A'] for direction in DIRECTIONS]))


# ------------------------------------------------------------------------------------------- one run

def train(name, seed, folder):
    """Train a run in a process with one thread → seconds of this call. Raises UserError where it fails.

    Resumes an interrupted run, unless it records coverage, which counts from the first step.
    """
    words = f'{RUNS[name]} --seed {seed} --data-seed {seed} --out {folder} --device cpu'.split()
    if seed >= FIRST_WITH_COVERAGE:
        shutil.rmtree(folder, ignore_errors=True)
        words += ['--coverage']
    else:
        words += ['--resume']
    start = time.monotonic()
    with open(f'{folder}.log', 'a') as log:
        process = subprocess.run([sys.executable, '-m', 'study.oracle', *words], stdout=log, stderr=log,
                                 env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    if process.returncode:
        raise UserError(f'{folder} stopped early, see {folder}.log; the same command continues')
    return time.monotonic() - start


def evaluate_run(folder, name):
    """Evaluate the models of a finished run → {evaluation: results}; also written to RUN/eval for `paper.figures`."""
    run, last = (FinishedRun(folder, workers=0, device='cpu', last=last) for last in (False, True))
    run.cfg = dataclasses.replace(run.cfg, **EVALUATED_CLIPS)
    args = argparse.Namespace(finetune=False, seed=0, batch_size=None, **PROBE)
    results = dict(gap=gap.evaluate(run, args), localization=localization.evaluate(run, args))
    # a variant selects as it was trained
    variant, _ = oracle.parse_options(RUNS[name].split())
    torch.manual_seed(0)
    with oracle.patched(selection_stats, variant, run.cfg, run.stream.retrieval):
        results['selection'] = selection_stats.evaluate(run, args)
    results['classification'] = add_probe_A(classification.evaluate(last, args))
    for kind, found in results.items():
        (last if kind == 'classification' else run).eval_path(kind, 'json').write_text(json.dumps(found))
    return results


def add_probe_A(probe):
    """A linear probe of one model → the same with A. F needs more models."""
    return probe | dict(A=float(np.mean(probe['acc'][-1])), F=None)


def shorten(x):
    """Numbers to five digits, without the points of the gap and the options of the probe, so that a record is small."""
    if isinstance(x, dict):
        return {name: shorten(value) for name, value in x.items() if name not in ('clouds', 'left_out', 'options')}
    if isinstance(x, (list, tuple)):
        return [shorten(value) for value in x]
    return float(f'{x:.5g}') if isinstance(x, float) else x


def commit():
    """The commit of this code, with '+' where a program differs from it; '' without git."""
    def git(*words):
        return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    try:
        modified = git('status', '--porcelain', '--untracked-files=no', '--', '*.py')
        return git('rev-parse', '--short', 'HEAD') + ('+' if modified else '')
    except OSError:
        return ''


def processor():
    """The model of the processor, where Linux tells it."""
    try:
        return Path('/proc/cpuinfo').read_text('utf-8').split('model name\t: ')[1].splitlines()[0]
    except (OSError, IndexError):
        return platform.machine()


def make_record(name, seed, folder, commit, seconds):
    """A finished run → its record."""
    log = [json.loads(line) for line in (folder / 'log.jsonl').read_text('utf-8').splitlines()]
    record = dict(name=name, seed=seed, options=RUNS[name], commit=commit, machine=processor(),
                  torch=torch.__version__, ended=time.strftime('%Y-%m-%d %H:%M'), seconds=round(seconds),
                  samples_per_s=sorted(line['samples_per_s'] for line in log)[len(log) // 2],
                  memory_gb=max(line['memory_gb'] for line in log),
                  retrieval=shorten(json.loads((folder / 'results.json').read_text('utf-8'))))
    if name in TUNING_RANK | TUNING_SCORER:
        return record                                                      # chosen by A alone
    record |= shorten(evaluate_run(folder, name))
    if seed >= FIRST_WITH_COVERAGE:
        record['coverage'] = shorten(json.loads((folder / 'coverage.json').read_text('utf-8')))
        if name.endswith(('-lava', '-rank')):
            last = FinishedRun(folder, workers=0, device='cpu', last=True)
            record['mismatch'] = shorten(pool.retrieval_by_share(last))
    if name in ('scorer-full', 'scorer-cheap'):
        last = FinishedRun(folder, workers=0, device='cpu', last=True)
        scorer = 'grid' if name == 'scorer-full' else last.cfg.scorer         # a grid needs no weights of its own
        record['agreement'] = shorten({scorer: scorer_agreement(last, scorer)})
    return record


def make_run(run, records, folders):
    """Train and evaluate a run, and append its record. Does nothing where it has one, or while another process makes
    it. Raises UserError where the record has other options."""
    name, seed = parse_run(run)
    folders.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folders / f'{run}.lock', timeout=0):
            known = read_records(records).get((name, seed))
            if known:
                check_options(known)
            else:
                train_and_record(name, seed, folders / run, records)
    except Timeout:
        print(f'{run}: another process makes it')


def train_and_record(name, seed, folder, records):
    """Train and evaluate a run in a folder, append its record, and delete its weights."""
    started_at = commit()                              # like the seconds: of a resumed run, those of its last call
    seconds = train(name, seed, folder)
    torch.set_num_threads(1)
    record = make_record(name, seed, folder, started_at, seconds)
    append_record(record, records)
    for weights in [folder / 'last.pt', *(folder / 'models').glob('*.pt')]:
        weights.unlink()
    print(f'{folder.name}: R@10 A {retrieval_A(record):.1f}, {seconds:.0f} s', flush=True)


def print_left(runs, records):
    """Print the runs without a record, one a line, and on stderr how long they take."""
    left = [run for run in runs if parse_run(run) not in records]
    seconds = np.mean([record['seconds'] for record in records.values()] or [150])
    print(f'{len(runs) - len(left)} of {len(runs)} runs have a record; the others take about '
          f'{len(left) * seconds / 3600:.1f} hours of one core', file=sys.stderr)
    print('\n'.join(left))


def main(arguments=None):
    """The command line."""
    parser = Parser(prog='python -m study.runs', description='Runs of the study on sounding shapes.')
    parser.add_argument('runs', nargs='*', metavar='RUN', help=f'NAME-SEED, or a group: {", ".join(GROUPS)}')
    parser.add_argument('--seeds', type=int, nargs='+', help='seeds of groups, in place of all')
    parser.add_argument('--records', type=Path, default=RECORDS, help='file of records')
    parser.add_argument('--folders', type=Path, default=Path('runs/study'), help='folder of the runs themselves')
    parser.add_argument('--left', action='store_true', help='only print the runs without a record')
    args = parser.parse_args(arguments)
    with cli_errors('the same command continues'):
        runs = expand(args.runs, args.seeds)
        if args.left:
            print_left(runs, read_records(args.records))
        else:
            for run in runs:
                make_run(run, args.records, args.folders)


if __name__ == '__main__':
    main()
