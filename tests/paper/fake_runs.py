"""Folders of finished runs as train.py and eval.py leave them, with made-up numbers; and what reads them back."""
import dataclasses
import functools
import json

import numpy as np
import torch

from config import parse
from paper import groups
from patches import SIZES, Sizes
from streams.scenes import kinds, truth
from streams.shapes import Shapes

TASKS = ['sports', 'music', 'vehicle']


def accuracies(rng, T):
    """A made-up acc[t][i], with A and F as eval.py computes them."""
    acc = rng.uniform(5, 40, (T, T)).round(2).tolist()
    forgotten = [max(acc[t][i] for t in range(i, T - 1)) - acc[-1][i] for i in range(T - 1)]
    return {'acc': acc, 'A': sum(acc[-1]) / T, 'F': sum(forgotten) / (T - 1)}


def fake_run(folder, number=0, tasks=TASKS, evaluated=('classification', 'ave', 'gap'), candidates=360, **options):
    """A finished run's folder as train.py and eval.py leave it, with made-up numbers that depend on `number`."""
    rng, T = np.random.default_rng(number), len(tasks)
    multitask = options.get('method') == 'multitask'
    (folder / 'eval').mkdir(parents=True)
    options = dict(size='small', seed=number, out=folder) | options
    cfg, _ = parse([str(word) for name, value in options.items() for word in ('--' + name.replace('_', '-'), value)])
    (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    results = {'tasks': tasks, 'candidates': candidates, 'method': cfg.method}
    for direction in groups.DIRECTIONS:
        found = results[direction] = {f'R@{k}': accuracies(rng, T) for k in (1, 5, 10)}
        found['Avg'] = {which: sum(found[f'R@{k}'][which] for k in (1, 5, 10)) / 3 for which in 'AF'}
        for recall in found.values() if multitask else ():
            recall['F'] = None
    (folder / 'results.json').write_text(json.dumps(results))
    after = ['all tasks'] if multitask else tasks
    made = accuracies(rng, T)
    gap = 0.6 - 0.3 * rng.random((1 + len(after), T))
    blob = lambda x: (rng.normal(0, 0.2, (30, 2)) + [x, 0]).tolist()
    steps = [T] if multitask else range(1, T + 1)
    moved = None if multitask else float(np.mean([abs(gap[-1, i] - gap[1 + i, i]) for i in range(T - 1)]))
    records = {
        'classification': {'metric': 'accuracy', 'tasks': tasks, 'after': after, 'A': made['A'],
                           'F': None if multitask else made['F'],
                           'acc': [made['acc'][t - 1] for t in steps],
                           'finetune': False, 'options': ''},
        'ave': {'after': after, 'accuracy': rng.uniform(40, 60), 'majority': 30.0, 'classes': [], 'options': ''},
        'gap': {'tasks': tasks, 'after': ['initial', *after], 'gap': gap.tolist(),
                'over_stream': [gap[1 + k, :t].mean() for k, t in enumerate(steps)], 'difference': moved,
                'clouds': [{'audio': blob(-0.5), 'video': blob(0.5)} for _ in tasks]}}
    for name in evaluated:
        (folder / 'eval' / f'{name}.json').write_text(json.dumps(records[name]))
    return folder


@functools.cache
def clip_of_shapes(task, index, seed):
    """A real clip: audio, frames and where its source is. Slow to make, so made once."""
    sizes = Sizes(**SIZES['small'])
    dataset = Shapes(kinds()[3 * task:3 * task + 3], 2, sizes, (0, 1), 10 * seed + task)
    return dataset[index, 0], truth(dataset.scene(index), sizes)


def looked(folder, tasks=TASKS, clips_seed=0, number=0, known=True):
    """Leave eval/localization and eval/spurious beside a fake run: real clips of shapes, made-up maps."""
    sizes, rng = Sizes(**SIZES['small']), torch.Generator().manual_seed(number)
    T, M, N = len(tasks), sizes.num_patches_a, sizes.num_patches_v
    clips, swaps = [], []
    for task in range(T):
        for index in range(2):
            item, (a, v) = clip_of_shapes(task, index, clips_seed)
            map_of = lambda n, t: (torch.rand(T + 1, n, generator=rng) + 2 * t).softmax(-1)
            clips.append(dict(task=task, clip=index, frames=item['video'], audio=item['audio'],
                              truth_a=a if known else None, truth_v=v if known else None, I_a=map_of(M, a),
                              I_v=map_of(N, v), cosine_a=map_of(M, a) - 0.1, cosine_v=map_of(N, v)))
        other, own = clip_of_shapes((task + 1) % T, 0, clips_seed)[0], clips[-2]
        swaps.append({name: own[name] for name in ('task', 'frames', 'audio', 'truth_a', 'truth_v')}
                     | dict(other_task=(task + 1) % T, other_frames=other['video'], other_audio=other['audio'],
                            I_a=own['I_a'][-1], I_v=own['I_v'][-1], I_a_other=own['I_a'][0], I_v_other=own['I_v'][0]))
    record = {'tasks': tasks, 'after': ['initial', *tasks]}
    torch.save(record | {'clips': clips}, folder / 'eval' / 'localization.pt')
    torch.save({'tasks': tasks, 'after': tasks[-1], 'clips': swaps}, folder / 'eval' / 'spurious.pt')
    for name in ('localization', 'spurious'):
        (folder / 'eval' / f'{name}.json').write_text(json.dumps(record))
    return folder


def paper_run(folder, number=0, dataset='vggsound', **options):
    """One with the setting of the paper's main tables."""
    given = dict(init='mae_pretrain_vit_base_full.pth', pretrain_data='other', retrieval_list='list.json', size='base',
                 candidates={'vggsound': 1353, 'audioset': 802}[dataset])
    return fake_run(folder, number, **{**given, 'dataset': dataset, **options})


def results_of(folder, name='results'):
    """What lies in a run's folder: results.json, or eval/classification.json and the like by 'eval/classification'"""
    return json.loads((folder / f'{name}.json').read_text())


def cells_of(markdown, start):
    """Cells of the row that begins so."""
    row = next(row for row in markdown.splitlines() if row.startswith(f'| {start} |'))
    return [cell.strip() for cell in row.split('|')[1:-1]]
