"""What a run shows of itself: its training as a picture, and all of it on one page (ours).

In:  a run's folder, finished or not: config.json, log.jsonl, results.json, pictures.
Out: figures/training.png: every term of the loss over the steps, samples/s and memory below; report.md: the options
     that differ from the defaults, the table, all pictures, clips left out, and the commands.
"""
import dataclasses
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt

from config import OF_DATASET, PRESETS, SHIPPED, Config
from downstream.pictures import look
from run import read_config
from weights import write_text

TERMS = {'loss': 'loss, all together', 'mae_a': 'ℓ^r, audio', 'mae_v': 'ℓ^r, video', 'contrastive': 'ℓ^c',
         'avm': 'L^avm', 'penalty': 'ℓ^p'}
BESIDE = {'phase', 'task', 'step', 'global_step', 'samples_per_s', 'waited', 'memory_gb'}      # no terms of the loss
COSTS = {'samples_per_s': 'samples/s', 'memory_gb': 'peak, GB'}


def write(folder):
    """figures/training.png and report.md of a run → both paths. Raises UserError where there is no run."""
    folder = Path(folder)
    cfg, entries = read_config(folder), logged(folder)
    (folder / 'figures').mkdir(exist_ok=True)
    files = folder / 'figures' / 'training.png', folder / 'report.md'
    if entries:
        figure = training(entries)
        figure.savefig(files[0], dpi=130, bbox_inches='tight')
        plt.close(figure)
    write_text(files[1], page(folder, cfg))
    return files if entries else files[1:]


def logged(folder):
    """The lines of log.jsonl that are whole."""
    path = folder / 'log.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]


# -------------------------------------------------------------------------------------- the picture

def training(entries):
    """Lines of log.jsonl → figure"""
    names = [*TERMS, *sorted({name for entry in entries for name in entry} - set(TERMS) - BESIDE)]
    names = [name for name in names if any(name in entry for entry in entries)]
    costs = [name for name in COSTS if any(name in entry for entry in entries)]
    figure, axes = plt.subplots(1 + len(costs), 1, sharex=True, squeeze=False, layout='constrained',
                                figsize=(8, 3.6 + 1.1 * len(costs)), height_ratios=[3.6] + [1.1] * len(costs))
    top, below = axes[0, 0], axes[1:, 0]
    for i, name in enumerate(names):
        where, values = curve(entries, name)
        top.plot(where, values, label=TERMS.get(name, name), markevery=max(1, len(where) // 12), markersize=4,
                 linewidth=1.2, **look((i + 6) % 8))                               # the sum in black
    if min(min(curve(entries, name)[1]) for name in names) > 0:
        top.set_yscale('log')
        top.yaxis.set_major_formatter('{x:g}')
        top.yaxis.set_minor_formatter('{x:g}')
    for axis, name in zip(below, costs):
        axis.plot(*curve(entries, name), color='black', linewidth=1)
        axis.set_ylabel(COSTS[name])
        axis.set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.grid(alpha=0.25)
        for border, _ in borders(entries)[1:]:
            axis.axvline(border, color='black', linestyle='--', linewidth=0.9)
    for border, name in borders(entries):
        top.annotate(name, (border, 1), (3, 3), xycoords=('data', 'axes fraction'), textcoords='offset points',
                     fontsize=8)
    top.set_ylabel('terms of the loss, unweighted')
    top.legend(fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))
    axes[-1, 0].set_xlabel('step')
    return figure


def curve(entries, name):
    """→ steps and values of what has this name, where it was logged"""
    found = [(entry['global_step'], entry[name]) for entry in entries if name in entry]
    return [list(x) for x in zip(*found)]


def borders(entries):
    """[(step, name)]: after which step each phase or task began"""
    found, before, last = [], None, 0
    for entry in entries:
        here = entry['phase'], entry['task']
        if here != before:
            found.append((last, 'initial' if here[0] == 'pretrain' else f'task {here[1] + 1}'))
        before, last = here, entry['global_step']
    return found


# ----------------------------------------------------------------------------------------- the page

def page(folder, cfg):
    """report.md as text"""
    file = folder / 'results.json'
    results = json.loads(file.read_text()) if file.exists() else {}
    own = differing(cfg)
    parts = [f'# {folder.resolve().name}: {cfg.method} on {cfg.dataset}', 'Made by', '    ' + command(cfg, own),
             'The same with `--resume` goes on with it, after an interruption or with more to do:',
             '    ' + command(cfg, own) + ' --resume', '## Options that differ from the defaults', options(own)]
    parts += ['## Retrieval', (folder / 'table.md').read_text().strip() if (folder / 'table.md').exists() else
              'Not finished: the table comes at the end of the run.']
    if results:
        chance = f'{results["candidates"]} candidates, so chance is R@10 {results["chance"]["R@10"]:.1f} %.'
        parts.append('In percent; ' + chance)
    parts += ['## Clips left out', left_out(results)]
    for name, inside in (('Pictures', 'figures'), ('What `eval.py` found', 'eval')):
        found = sorted((folder / inside).glob('*'))
        shown = [shown_in(folder, path) for path in found if path.suffix in ('.png', '.md', '.mp4')]
        parts += [f'## {name}', *shown] if shown else []
    return '\n\n'.join(parts) + '\n'


def differing(cfg):
    """{option: value} of all that is not as it is without being said, for this data set and size."""
    usual = 'small' if cfg.dataset == 'shapes' else 'base'
    plain = Config(**{**OF_DATASET.get(cfg.dataset, {}), **PRESETS.get(cfg.size, {}), 'size': usual})
    found = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(Config)
             if getattr(cfg, field.name) != getattr(plain, field.name)}
    if Path(cfg.init).name == SHIPPED.name and cfg.pretrain_steps == 0 and usual == cfg.size == 'small':
        found = {name: value for name, value in found.items() if name not in ('init', 'pretrain_steps')}
    return found


def command(cfg, own):
    """What train.py was told, in the shortest words."""
    words = {'method': cfg.method} | own
    return 'python train.py ' + ' '.join(f'--{name.replace("_", "-")} {shlex.quote(str(value))}'
                                         for name, value in words.items())


def options(own):
    """A table of them, with what they mean."""
    meaning = {field.name: field.metadata['help'] for field in dataclasses.fields(Config)}
    rows = [f'| `--{name.replace("_", "-")}` | {value} | {meaning[name]} |' for name, value in own.items()]
    return '\n'.join(['| option | here | |', '| --- | --- | --- |', *rows]) if rows else 'None.'


def left_out(results):
    """The clips that could not be used, with reasons."""
    lines = results.get('left_out', [])
    return '\n'.join(f'- {line}' for line in lines) if lines else 'None.' if results else 'Not known yet.'


def shown_in(folder, path):
    """A picture, table or video as the page has it."""
    where = path.relative_to(folder).as_posix()
    if path.suffix == '.md':
        return f'### {path.stem}\n\n{path.read_text().strip()}'
    return f'![{path.stem}]({where})' if path.suffix == '.png' else f'[{path.name}]({where})'
