"""The training curves of a run, and a page with all its results (ours).

In:  a run's folder, finished or not: config.json, log.jsonl, results.json, figures.
Out: figures/training.png: each term of the loss over the steps, with samples/s and memory; report.md: the command, the
     options that differ from the defaults, the table, all figures, and the skipped clips.
"""
import dataclasses
import json
import math
import shlex
from pathlib import Path
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from config import PRETRAINED, Config, preset
from downstream.finished_run import ended_early, last_task, read_config
from downstream.pictures import BESIDE, save_figure, task_style
from utils.checkpoint import write_text
from utils.cli import flag_name
from utils.markdown import markdown_table

TERMS = {'loss': 'total loss', 'mae_a': 'ℓ^r, audio', 'mae_v': 'ℓ^r, video', 'contrastive': 'ℓ^c', 'avm': 'L^avm',
         'penalty': 'ℓ^p', 'student': 'student'}
COSTS = {'samples_per_s': 'samples/s', 'memory_gb': 'peak, GB'}
NO_TERMS = {'time', 'phase', 'task', 'task_name', 'step', 'global_step', 'epoch', 'lr', 'mean_loss', 'waited', *COSTS}
A_AND_F = ('A is the average accuracy: the mean of all tasks after the last one. F is the average forgetting: how far '
           'each earlier task has fallen from its best value, on average; negative: it has risen (§5.1). A high A and '
           'a low F are good. ')
CAPTIONS = {   # by the first word of a picture's name
    'stream': 'R@10 of each task after each task; "initial" is before the first. The large marker is where the task was '
              'learned, and the line before it is dotted. A line that falls after it is forgetting.',
    'attention': 'The last model. A row is a test clip of one of at most four tasks: frames, and the importance I_v of '
                 'their patches; sound, and its I_a. Bright patches are important. A white line is around the true '
                 'source, where it is known.',
    'training': 'The loss and its unweighted terms, every few steps. Below: clips per second, and peak memory.',
    'retrieval': 'R@10 of each task after each task. A line that falls is forgetting.',
    'classification': 'Accuracy of a classifier on the model after each task. The dashed line is chance.',
    'ave': 'Accuracy on each kind of event.',
    'localization': 'Where the model looks: maps of one clip of each task.',
    'selection': 'How much of the source each selection keeps after each task or, where the source is not known, what '
                 'is selected. P is the probability that a patch is pruned (Eq. 5).',
    'gap': 'Distance between the centres of audio and video embeddings of each task, over the stream.',
    'spurious': 'Where the model looks with the sound or the frames of the clip itself, and of another task.',
}


def write_report(folder):
    """Write figures/training.png and report.md of a run → their paths. Raises UserError if there is no run."""
    folder, written = Path(folder), []
    cfg, log = read_config(folder), folder / 'log.jsonl'
    lines = log.read_text('utf-8').splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith('}')]       # a killed run may leave half a line
    if entries:
        (folder / 'figures').mkdir(exist_ok=True)
        written.append(save_figure(plot_training(entries), folder / 'figures' / 'training.png'))
    write_text(folder / 'report.md', page_text(folder, cfg))
    return [*written, folder / 'report.md']


# ----------------------------------------------------------------------------------- training.png

def plot_training(entries):
    """Entries of log.jsonl → figure"""
    # the total as a mean over the steps since the last line, like its terms
    entries = [entry | dict(loss=entry.get('mean_loss', entry.get('loss'))) for entry in entries]
    logged = {name for entry in entries for name in entry}
    terms = [name for name in TERMS if name in logged] + sorted(logged - set(TERMS) - NO_TERMS)
    steps = [entry['global_step'] for entry in entries]
    curves = {name: np.array([entry.get(name) for entry in entries], float) for name in [*terms, *COSTS]}
    figure, axes = plt.subplots(3, 1, sharex=True, layout='constrained', figsize=(8, 5.8), height_ratios=[3.3, 1, 1])

    # terms of the loss
    for i, name in enumerate(terms):
        axes[0].plot(steps, curves[name], label=TERMS.get(name, name), markevery=max(1, len(steps) // 12),
                     markersize=4, linewidth=1.2, **task_style(i + 6))                  # the total is black
    if min(np.nanmin(curves[name]) for name in terms) > 0:
        axes[0].set_yscale('log')
        axes[0].yaxis.set_major_formatter('{x:g}')
        axes[0].yaxis.set_minor_formatter('{x:g}')
        axes[0].yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7)))             # their labels do not overlap
    axes[0].set_ylabel('terms of the loss, unweighted')
    axes[0].legend(**BESIDE)

    # samples/s and memory
    for axis, name in zip(axes[1:], COSTS):
        axis.plot(steps, curves[name], color='black', linewidth=1)
        axis.set(ylabel=COSTS[name], ylim=(0, 1.2 * np.nanmax(curves[name])))

    # a line where each phase or task starts: at the last step before it
    starts, last = {}, 0
    for entry in entries:
        starts.setdefault('initial' if entry['phase'] == 'pretrain' else f'task {entry["task"] + 1}', last)
        last = entry['global_step']
    for number, (name, start) in enumerate(starts.items()):
        if number % math.ceil(len(starts) / 10) == 0:          # more names would overlap
            axes[0].annotate(name, (start, 1), (3, 3), xycoords=('data', 'axes fraction'), textcoords='offset points',
                             fontsize=8)
        for axis in axes:
            axis.axvline(start, color='black', linestyle='--', linewidth=0.9)
    for axis in axes:
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel('step')
    return figure


# -------------------------------------------------------------------------------------- report.md

def page_text(folder, cfg):
    """→ report.md"""
    changed, command = changed_options(cfg), train_command(cfg)
    rows = [[f'`{flag_name(field.name)}`', str(changed[field.name]), field.metadata['help']]
            for field in dataclasses.fields(Config) if field.name in changed]
    parts = [f'# {folder.resolve().name}: {cfg.method} on {cfg.dataset}', f'Command:\n\n    {command}',
             f'Resume an interrupted run:\n\n    {command} --resume', '## Options that differ from the defaults',
             markdown_table(['option', 'value', 'meaning'], rows), '## Retrieval']

    # the table and the skipped clips
    if (folder / 'results.json').exists():
        results = json.loads((folder / 'results.json').read_text('utf-8'))
        named, number = results.get('left_out', []), results.get('clips_left_out', 0)
        skipped = [f'- {line}' for line in named]
        if number > len(named):
            skipped.append(f'- and {number - len(named)} more, in skipped.txt')
        chance = f'{results["candidates"]} candidates, so chance is R@10 {results["chance"]["R@10"]:.1f} %.'
        parts += [(folder / 'table.md').read_text('utf-8').strip(), A_AND_F + 'In percent. ' + chance,
                  '## Skipped clips', '\n'.join(skipped) or 'None.']
    else:
        parts.append('The run is not finished. It writes its table at the end.')

    # figures, and the results of eval.py
    for title, name in (('## Figures', 'figures'), ('## Evaluations', 'eval')):
        files = sorted((folder / name).glob('*'))
        parts += [title] if files else []
        for file in files:
            link = quote(file.name, errors='surrogateescape')
            if file.suffix == '.md':
                parts += [f'### {file.stem}', unfinished(file), file.read_text('utf-8').strip()]
            if file.suffix == '.mp4':
                parts += [f'[{file.name}]({name}/{link}): a video with I_v over its frames, and with sound']
            if file.suffix == '.png':
                parts += [f'![{file.stem}]({name}/{link})', CAPTIONS.get(file.stem.split('-')[0], '')]
    return '\n\n'.join(filter(None, parts)) + '\n'


def unfinished(file):
    """eval/NAME.md → a sentence if the evaluation ends before the last task; else ''"""
    path = file.with_suffix('.json')
    results = json.loads(path.read_text('utf-8')) if path.exists() else {}
    return f'This evaluation ends after {last_task(results)}, before the last task.' if ended_early(results) else ''


def changed_options(cfg):
    """→ {option: value} of all options that differ from the defaults for this data set, size, method and seed"""
    default = Config(**preset(cfg.dataset, cfg.size) | dict(method=cfg.method, seed=cfg.seed))
    changed = {name: value for name, value in vars(cfg).items() if value != getattr(default, name)}
    if Path(cfg.init).name == PRETRAINED.name and cfg.pretrain_steps == 0:      # train.py sets these two by itself
        changed = {name: value for name, value in changed.items() if name not in ('init', 'pretrain_steps')}
    return changed


def train_command(cfg):
    """→ the shortest command that starts this run"""
    options = {name: getattr(cfg, name) for name in ('dataset', 'size', 'method', 'seed')} | changed_options(cfg)
    words = [word for name, value in options.items() for word in (flag_name(name), str(value))]
    return shlex.join(['python', 'train.py', *words])
