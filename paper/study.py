"""The study on sounding shapes, where the truth is known: its runs, and what is kept of each (ours).

    make table                         the main table: every method, ten seeds, as many runs at a time as `make -j` says
    make table SEEDS=100               one seed of it
    python -m paper.study lava-100 …   these runs, one after the other; what was begun goes on

In:  names of runs, each of the lists below, with a data seed behind it.
Out: results/runs/NAME-SEED.json each: options, commit, machine, time; retrieval after each task; and, of the models
     after each task on fewer clips, the modality gap, where they look, what is selected; of the last, a linear probe.
     No weights. `evidence.py` makes tables and figures of these records.

The data seed is that of order and masks too. Runs of one number share clips and order: they are pairs. All share the
classes, the order of tasks and the initial model. Seeds from 100 on are reported; on data seed 0 the benchmark was
chosen, and the methods' own numbers.
"""
import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from config import exit_politely, parse
from downstream import classification, gap, heads, localization, selected
from paper.what_if import changed, options
from patches import UserError
from run import Recorded
from weights import write_text

ROOT = Path(__file__).parent.parent
PROBE = dict(clips=60, epochs=10, lr=0.02)      # of few clips, so that it does not saturate: by Finetune's last model
LOOKED_AT = dict(test_clips=60, galleries=1)   # clips a task for all that is asked after training

# Of four settings each on data seed 0 the one with the highest mean A, of equals the first; the rest is as in `--help`.
TUNED = {'der++': '--alpha 0.5', 'flava': '--rho-a 0.5 --rho-v 0.5 --beta 0.4', 'lump': '--lump-beta 0.05',
         'gmed': '--gmed-alpha 0.02 --gmed-beta 0.05', 'mir': '--mir-candidates 3',
         'cls-er': '--cls-er-alpha-p 0.99 --cls-er-alpha-s 0.99 --cls-er-lam 1'}
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


# ------------------------------------------------------------------------------------------- the runs

def tuned(name):
    """The options of a method as they were chosen; FLAVA, its parts, Random and MATS stand on DER++ and take its α."""
    return ' '.join(TUNED[of] for of in (('der++', name) if name == 'flava' else (name,)) if TUNED.get(of))


MAIN = {   # the ten methods, in Table 1's order, then Table 3's selections and ours
    **{name: f'--method {name} {tuned(name)}' for name in
       ('finetune', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump', 'flava')},
    'flava+': f'--method flava+ {tuned("flava")}', 'multitask': '--method multitask',
    'random': f'--selection random {tuned("der++")}', 'mats': f'--selection mats {tuned("der++")}',
    'lava': f'--selection importance {tuned("flava")}', 'frs': f'--selection forget-robust {tuned("flava")}',
    'excess': f'--selection excess {tuned("flava")}'}
SECOND = {f'second-{name}': f'{MAIN[name]} --min-silent 2 --max-silent 2 --order shuffled'
          for name in ('finetune', 'er', 'der++', 'flava', 'lava', 'excess')}
ABLATIONS = {   # Tables 9, 10 and Figures 9, 10, 11
    **{f'{option}-{value}': f'{MAIN["flava"]} --{option} {value}' for option, values in (
        ('rho-a', (0.375, 0.625)), ('rho-v', (0.375, 0.625)), ('beta', (0.1, 0.5)), ('chunk', (4, 8)),
        ('audio-selection', ('frequency', 'none'))) for value in values},
    **{f'{name}-memory-{size}': f'{MAIN[name]} --memory-size {size}' for name in ('der++', 'flava')
       for size in (80, 320)},
    'flava+-memory-80': f'{MAIN["flava+"]} --memory-size 80',      # as many pairs as FLAVA's, but selected once for all
    **{f'{name}-no-mae': f'{MAIN[name]} --mae-weight 0' for name in ('finetune', 'er')}}
WHAT_IFS = {   # `what_if.py`: the true source in I; P of all patches, and then FRS without any I
    **{f'oracle-{name}': f'--of both --odds 16 {MAIN[name]}' for name in ('lava', 'frs', 'flava', 'excess')},
    **{f'oracle-lava-{of}': f'--of {of} --odds 16 {MAIN["lava"]}' for of in ('frames', 'sound')},
    **{f'oracle-lava-odds-{odds}': f'--of both --odds {odds} {MAIN["lava"]}' for odds in (0.25, 1, 4)},
    'flava-p-of-all': f'--prune all {MAIN["flava"]}', 'frs-p-of-all': f'--prune all --of both --odds 1 {MAIN["frs"]}'}
WHY = {   # why more of the source is not more accuracy: frames and sound apart; and the second stream
    **{f'why-{of}': f'--of {of} --odds 16 {MAIN["lava"]}'
       for of in ('frames', 'objects', 'moments', 'seen', 'part', 'top')},
    **{f'why-any-{of}': f'--of {of} --odds 1 {MAIN["lava"]}' for of in ('frames', 'sound')},
    'why-second-frames': f'--of frames --odds 16 {SECOND["second-lava"]}',
    'top-again': f'--of top --odds 16 {MAIN["lava"]}'}          # why-top was ahead: on the main table's other seeds
TUNING = {f'tune-{name}-{number}': f'--method {name} {words}'
          for name, tried in TRIED.items() for number, words in enumerate(tried)}
# Ours, drawing by rank: share and weight on data seeds 200 to 203, which are never reported.
TUNING_RANK = {f'tune-rank-1-{share}-{weight}':
               f'--selection rank --rank-share {1 / share} --rank-weight {weight} {tuned("flava")}'
               for share in (16, 8, 4) for weight in (4, 16, 64)}
RUNS = MAIN | SECOND | ABLATIONS | WHAT_IFS | WHY | TUNING | TUNING_RANK
SEEDS = {name: range(100, 100 + count) for part, count in ((MAIN, 10), (SECOND, 5), (ABLATIONS, 4), (WHAT_IFS, 4))
         for name in part}      # settled before any of them was run
SEEDS |= {name: range(105, 109) for name in WHY}      # the first of the main table's that no what if had seen
SEEDS |= {name: range(200, 204) for name in TUNING_RANK}
SEEDS['why-second-frames'] = SEEDS['second-lava']
SEEDS['top-again'] = [seed for seed in SEEDS['lava'] if seed not in SEEDS['why-top']]


def parsed(run):
    """'lava-100' → its name, its data seed. Raises UserError for what is no run of the study."""
    name, _, seed = run.rpartition('-')
    if name not in RUNS or not seed.isdecimal():
        raise UserError(f'{run} is no run of the study: NAME-SEED, with one of the names {", ".join(RUNS)}')
    return name, int(seed)


def train(name, seed, folder):
    """train.py on one thread, as the records were made; what was begun goes on → seconds. Raises UserError."""
    program = ['-m', 'paper.what_if'] if name in WHAT_IFS | WHY else [str(ROOT / 'train.py')]
    words = f'{RUNS[name]} --seed {seed} --data-seed {seed} --out {folder} --resume'.split()
    start = time.monotonic()
    with open(f'{folder}.log', 'a') as log:
        done = subprocess.run([sys.executable, *program, *words], stdout=log, stderr=log,
                              env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    if done.returncode:
        raise UserError(f'{folder} did not end; {folder}.log says why, and the same command goes on')
    return time.monotonic() - start


# ------------------------------------------------------------------------------ what is kept of a run

def probed():
    """What eval.py would be asked for the probe."""
    return argparse.Namespace(finetune=False, seed=0, batch_size=None, **PROBE)


def asked(folder, name):
    """What is asked of the models of a run → {task: results}. They are kept in RUN/eval too, for `paper.figures`. What
    a run of `what_if.py` selects is what was changed there."""
    run = Recorded(folder, workers=0, device='cpu')
    run.cfg = dataclasses.replace(run.cfg, **LOOKED_AT)
    last = Recorded(folder, workers=0, device='cpu', last=True)
    args = probed()
    found = {task: module.measure(run, args) for task, module in (('gap', gap), ('localization', localization))}
    torch.manual_seed(0)
    with changed(selected, options(RUNS[name].split() if name in WHAT_IFS | WHY else [])[0], run.cfg, run.stream.test):
        found['selection'] = selected.measure(run, args)
    found['classification'] = of_last_model(classification.measure(last, args))
    for task, results in found.items():
        (last if task == 'classification' else run).place(task, 'json').write_text(json.dumps(results))
    return found


def of_last_model(probe):
    """What a probe found, with its A; F takes more than one model."""
    acc = probe['acc'][-1]
    return probe | dict(A=sum(acc) / len(acc), F=None)


def brief(x):
    """Numbers to five digits, so that a record is small; of the gap not the clouds, of the probe not its clips."""
    if isinstance(x, dict):
        return {name: brief(value) for name, value in x.items() if name not in ('clouds', 'left_out', 'options')}
    if isinstance(x, (list, tuple)):
        return [brief(value) for value in x]
    return float(f'{x:.5g}') if isinstance(x, float) else x


def commit():
    """The commit of this code, '+' behind it where files differ from it; '' where there is no git."""
    git = lambda *words: subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    try:
        changed = git('status', '--porcelain', '--untracked-files=no', '--', '*.py')
        return git('rev-parse', '--short', 'HEAD') + '+' * bool(changed)
    except OSError:
        return ''


def machine():
    """The processor, as far as the system says it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(': ')[1] for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.machine()


def record(name, seed, folder, of, seconds):
    """A finished run → what results/runs/NAME-SEED.json holds. of: the commit that it began with"""
    log = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    results = json.loads((folder / 'results.json').read_text())
    speed = sorted(line['samples_per_s'] for line in log)[len(log) // 2]
    looks = {} if name in TUNING_RANK else asked(folder, name)         # they are chosen by A alone
    return dict(name=name, seed=seed, options=RUNS[name], commit=of, machine=machine(), torch=torch.__version__,
                ended=time.strftime('%Y-%m-%d %H:%M'), seconds=round(seconds), samples_per_s=speed,
                memory_gb=max(line['memory_gb'] for line in log),
                retrieval=brief(results), **brief(looks))


def restored(record, folder):
    """The folder of a record's run as `groups.py` reads it, without models, maps and clouds → its path. Not of a what
    if: its options alone would pass for those of a run without."""
    run = folder / f'{record["name"]}-{record["seed"]}'
    cfg, _ = parse(f'{record["options"]} --seed {record["seed"]} --data-seed {record["seed"]} --out {run}'.split())
    (run / 'eval').mkdir(parents=True)
    probe = of_last_model(record['classification']) | dict(options=heads.options(probed()))
    parts = {'config': vars(cfg), 'results': record['retrieval'], 'eval/gap': record['gap'],
             'eval/classification-last': probe}
    for name, content in parts.items():
        (run / f'{name}.json').write_text(json.dumps(content))
    return run


def do(run, records, runs):
    """One run of the study, to its record; nothing where that is there."""
    name, seed = parsed(run)
    file, folder = records / f'{run}.json', runs / run
    if file.exists():
        there = json.loads(file.read_text())['options']
        if there != RUNS[name]:
            raise UserError(f'{file} is of {there}, but {run} is now {RUNS[name]}: move it away')
        return
    runs.mkdir(parents=True, exist_ok=True)
    of = commit()
    seconds = train(name, seed, folder)
    torch.set_num_threads(1)
    content = record(name, seed, folder, of, seconds)
    records.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content) + '\n')
    for weights in [folder / 'last.pt', *(folder / 'models').glob('*.pt')]:
        weights.unlink()
    A = sum(content['retrieval'][d]['R@10']['A'] for d in ('audio_to_video', 'video_to_audio')) / 2
    print(f'{file}: R@10 A {A:.1f}, {seconds:.0f} s', flush=True)


def left(runs, records):
    """How many of these runs are left, and how long they take by what those that are there took → a line"""
    took = {}
    for file in records.glob('*.json'):
        content = json.loads(file.read_text())
        took.setdefault(content['name'], []).append(content['seconds'])
    todo = [run for run in runs if not (records / f'{run}.json').exists()]
    usual = sum(map(sum, took.values())) / max(1, sum(map(len, took.values()))) or 150
    hours = sum(sum(took[name]) / len(took[name]) if name in took else usual for name, _ in map(parsed, todo)) / 3600
    return (f'{len(runs) - len(todo)} of {len(runs)} runs are in {records}; the others take about {hours:.1f} h of one '
            'core; make -j4 does four at a time, and stopped, it goes on')


def main(arguments=None):
    """The command line: runs, one after the other; --left only says how many are not there."""
    parser = argparse.ArgumentParser(prog='python -m paper.study', allow_abbrev=False,
                                     description='Runs of the study on sounding shapes.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('runs', nargs='+', metavar='NAME-SEED', help=f'NAME: {", ".join(RUNS)}')
    parser.add_argument('--records', type=Path, default=Path('results/runs'), help='folder of records to write')
    parser.add_argument('--folders', type=Path, default=Path('runs/study'), help='folder of the runs themselves')
    parser.add_argument('--left', action='store_true', help='only say how many are left, and how long they take')
    args = parser.parse_args(arguments)
    with exit_politely('the same command goes on'):
        for run in args.runs:
            parsed(run)
        if args.left:
            print(left(args.runs, args.records))
            return
        for run in args.runs:
            do(run, args.records, args.folders)


if __name__ == '__main__':
    main()
