"""The training curves of a run, and a page with all its results (ours).

In:  a run's folder, finished or not: config.json, log.jsonl, results.json, figures.
Out: figures/training.png: each term of the loss over the steps, with samples/s and memory; report.md: the command, the
     options that differ from the defaults, the table, all figures, and the skipped clips.
"""
import dataclasses
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt

from config import PRETRAINED, Config, preset
from downstream.markdown import markdown_table
from downstream.pictures import BESIDE, task_style
from eval import read_config
from utils.checkpoint import write_text
from utils.cli import flag_name

TERMS = {'loss': 'total loss', 'mae_a': 'ℓ^r, audio', 'mae_v': 'ℓ^r, video', 'contrastive': 'ℓ^c', 'avm': 'L^avm',
         'penalty': 'ℓ^p'}
COSTS = {'samples_per_s': 'samples/s', 'memory_gb': 'peak, GB'}
NO_TERMS = {'phase', 'task', 'step', 'global_step', 'waited', *COSTS}


def write(folder):
    """Write figures/training.png and report.md of a run → their paths. Raises UserError if there is no run."""
    folder = Path(folder)
    cfg, entries = read_config(folder), read_log(folder / 'log.jsonl')
    (folder / 'figures').mkdir(exist_ok=True)
    picture, page = folder / 'figures' / 'training.png', folder / 'report.md'
    if entries:
        figure = plot_training(entries)
        figure.savefig(picture, dpi=130, bbox_inches='tight')
        plt.close(figure)
    write_text(page, page_text(folder, cfg))
    return [picture, page] if entries else [page]


def read_log(path):
    """The complete lines of log.jsonl. A killed run may leave half a line."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]


# ----------------------------------------------------------------------------------- training.png

def plot_training(entries):
    """Entries of log.jsonl → figure"""
    logged = {name for entry in entries for name in entry}
    terms = [name for name in TERMS if name in logged] + sorted(logged - set(TERMS) - NO_TERMS)
    costs = [name for name in COSTS if name in logged]
    figure, axes = plt.subplots(1 + len(costs), 1, sharex=True, squeeze=False, layout='constrained',
                                figsize=(8, 3.6 + 1.1 * len(costs)), height_ratios=[3.6] + [1.1] * len(costs))
    top, *below = axes[:, 0]

    # terms of the loss
    for i, name in enumerate(terms):
        steps, values = curve(entries, name)
        top.plot(steps, values, label=TERMS.get(name, name), markevery=max(1, len(steps) // 12), markersize=4,
                 linewidth=1.2, **task_style(i + 6))                       # the total is black
    if min(min(curve(entries, name)[1]) for name in terms) > 0:
        top.set_yscale('log')
        top.yaxis.set_major_formatter('{x:g}')
        top.yaxis.set_minor_formatter('{x:g}')
    top.set_ylabel('terms of the loss, unweighted')
    top.legend(**BESIDE)

    # samples/s and memory
    for axis, name in zip(below, costs):
        axis.plot(*curve(entries, name), color='black', linewidth=1)
        axis.set_ylabel(COSTS[name])
        axis.set_ylim(bottom=0)

    # where each phase or task starts
    for start, name in phase_starts(entries):
        top.annotate(name, (start, 1), (3, 3), xycoords=('data', 'axes fraction'), textcoords='offset points',
                     fontsize=8)
        for axis in axes[:, 0]:
            axis.axvline(start, color='black', linestyle='--', linewidth=0.9)
    for axis in axes[:, 0]:
        axis.grid(alpha=0.25)
    axes[-1, 0].set_xlabel('step')
    return figure


def curve(entries, name):
    """→ steps and values of all entries with this name"""
    found = [entry for entry in entries if name in entry]
    return [entry['global_step'] for entry in found], [entry[name] for entry in found]


def phase_starts(entries):
    """→ [(step, name)]: the last step before each phase or task"""
    starts, current, last = [], None, 0
    for entry in entries:
        phase = 'initial' if entry['phase'] == 'pretrain' else f'task {entry["task"] + 1}'
        if phase != current:
            starts.append((last, phase))
        current, last = phase, entry['global_step']
    return starts


# -------------------------------------------------------------------------------------- report.md

def page_text(folder, cfg):
    """→ report.md"""
    changed, command = changed_options(cfg), train_command(cfg)
    meaning = {field.name: field.metadata['help'] for field in dataclasses.fields(Config)}
    rows = [[f'`{flag_name(name)}`', str(value), meaning[name]] for name, value in changed.items()]
    parts = [f'# {folder.resolve().name}: {cfg.method} on {cfg.dataset}', 'Command:', f'    {command}',
             'Resume an interrupted run:', f'    {command} --resume', '## Options that differ from the defaults',
             markdown_table(['option', 'value', 'meaning'], rows) if rows else 'None.', '## Retrieval']

    # the table and the skipped clips
    if (folder / 'results.json').exists():
        results = json.loads((folder / 'results.json').read_text())
        skipped = '\n'.join(f'- {line}' for line in results.get('left_out', []))
        chance = f'{results["candidates"]} candidates, so chance is R@10 {results["chance"]["R@10"]:.1f} %.'
        parts += [(folder / 'table.md').read_text().strip(), 'In percent. ' + chance, '## Skipped clips',
                  skipped or 'None.']
    else:
        parts.append('The run is not finished. It writes its table at the end.')

    # figures, and the results of eval.py
    for title, name in (('Figures', 'figures'), ('Evaluations', 'eval')):
        files = [file for file in sorted((folder / name).glob('*')) if file.suffix in ('.png', '.md', '.mp4')]
        parts += [f'## {title}'] if files else []
        for file in files:
            path = file.relative_to(folder).as_posix()
            if file.suffix == '.md':
                parts.append(f'### {file.stem}\n\n{file.read_text().strip()}')
            else:
                parts.append(f'![{file.stem}]({path})' if file.suffix == '.png' else f'[{file.name}]({path})')
    return '\n\n'.join(parts) + '\n'


def main_options(cfg):
    """The words of the command line for data set, size, method and seed"""
    options = {'dataset': cfg.dataset, 'size': cfg.size, 'method': cfg.method, 'seed': cfg.seed}
    return [word for name, value in options.items() if value != '' for word in (flag_name(name), str(value))]


def changed_options(cfg):
    """→ {option: value} of all options that differ from the defaults for this data set, size, method and seed"""
    default = Config(**preset(cfg.dataset, cfg.size) | dict(method=cfg.method, seed=cfg.seed))
    changed = {name: value for name, value in vars(cfg).items() if value != getattr(default, name)}
    if Path(cfg.init).name == PRETRAINED.name and cfg.pretrain_steps == 0:      # train.py sets these two by itself
        changed = {name: value for name, value in changed.items() if name not in ('init', 'pretrain_steps')}
    return changed


def train_command(cfg):
    """→ the shortest command that starts this run"""
    words = main_options(cfg)
    for name, value in changed_options(cfg).items():
        words += [flag_name(name), str(value)]
    return shlex.join(['python', 'train.py', *words])
