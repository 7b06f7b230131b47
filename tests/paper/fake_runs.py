"""Folders of finished runs with made-up numbers, as train.py and eval.py write them."""
import dataclasses
import functools
import json

import numpy as np
import torch

from config import SIZES, Config, Sizes, preset
from downstream.maps import source_of_clip
from paper.groups import DIRECTIONS
from streams.scenes import kinds
from streams.shapes import Shapes

TASKS = ['sports', 'music', 'vehicle']


def accuracies(rng, T):
    """A random acc[t][i], with A and F as eval.py computes them."""
    acc = rng.uniform(5, 40, (T, T)).round(2).tolist()
    forgotten = [max(acc[t][i] for t in range(i, T - 1)) - acc[-1][i] for i in range(T - 1)]
    return {'acc': acc, 'A': sum(acc[-1]) / T, 'F': sum(forgotten) / (T - 1)}


def fake_run(folder, number=0, tasks=TASKS, evaluated=('classification', 'ave', 'gap'), candidates=360, **options):
    """Write a finished run; its numbers depend on `number` → its folder"""
    rng, T = np.random.default_rng(number), len(tasks)
    options = dict(dataset='shapes', size='small', seed=number, out=str(folder)) | options
    cfg = Config(**{**preset(options['dataset'], options['size']), **options})
    multitask = cfg.method == 'multitask'
    after, steps = (['all tasks'], [T]) if multitask else (tasks, range(1, T + 1))

    results = {'tasks': tasks, 'candidates': candidates, 'method': cfg.method}
    for direction in DIRECTIONS:
        found = results[direction] = {f'R@{k}': accuracies(rng, T) for k in (1, 5, 10)}
        found['Avg'] = {which: sum(found[f'R@{k}'][which] for k in (1, 5, 10)) / 3 for which in 'AF'}
        for recall in found.values() if multitask else ():
            recall['F'] = None

    made, gap = accuracies(rng, T), 0.6 - 0.3 * rng.random((1 + len(after), T))
    difference = None if multitask else float(np.mean([abs(gap[-1, i] - gap[1 + i, i]) for i in range(T - 1)]))
    clouds = [{name: (rng.normal(0, 0.2, (30, 2)) + [x, 0]).tolist() for name, x in (('audio', -0.5), ('video', 0.5))}
              for _ in tasks]
    records = {
        'classification': {'metric': 'accuracy', 'tasks': tasks, 'after': after, 'A': made['A'],
                           'F': None if multitask else made['F'], 'acc': [made['acc'][t - 1] for t in steps],
                           'finetune': False, 'options': ''},
        'ave': {'after': after, 'accuracy': rng.uniform(40, 60), 'majority': 30.0, 'classes': [], 'options': ''},
        'gap': {'tasks': tasks, 'after': ['initial', *after], 'gap': gap.tolist(), 'difference': difference,
                'over_stream': [gap[1 + k, :t].mean() for k, t in enumerate(steps)], 'clouds': clouds}}

    (folder / 'eval').mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    (folder / 'results.json').write_text(json.dumps(results))
    for name in evaluated:
        (folder / 'eval' / f'{name}.json').write_text(json.dumps(records[name]))
    return folder


def paper_run(folder, number=0, dataset='vggsound', **options):
    """A run with the paper's setting."""
    given = dict(init='mae_pretrain_vit_base_full.pth', pretrain_data='other', retrieval_list='list.json', size='base',
                 candidates={'vggsound': 1353, 'audioset': 802}[dataset])
    return fake_run(folder, number, **{**given, 'dataset': dataset, **options})


@functools.cache
def clip_of_shapes(task, index, seed):
    """A clip of shapes → {audio, video}, (source_a, source_v)"""
    dataset = Shapes(kinds()[3 * task:3 * task + 3], 2, Sizes(**SIZES['small']), (0, 1), 10 * seed + task)
    return dataset[index, 0], source_of_clip(dataset, dataset.sizes, index)


def add_attention(folder, tasks=TASKS, clips_seed=0, number=0, known=True):
    """Write eval/localization and eval/spurious of a fake run: real clips of shapes, random maps → folder"""
    sizes, rng = Sizes(**SIZES['small']), torch.Generator().manual_seed(number)
    T, M, N = len(tasks), sizes.num_patches_a, sizes.num_patches_v

    def maps(n, source):
        return (torch.rand(T + 1, n, generator=rng) + 2 * source).softmax(-1)

    clips, swaps = [], []
    for task in range(T):
        for index in range(2):
            item, (a, v) = clip_of_shapes(task, index, clips_seed)
            clips.append(dict(task=task, clip=index, frames=item['video'], audio=item['audio'],
                              truth_a=a if known else None, truth_v=v if known else None, I_a=maps(M, a),
                              I_v=maps(N, v), cosine_a=maps(M, a) - 0.1, cosine_v=maps(N, v)))
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


def results_of(folder, name='results'):
    """results.json of a run, or eval/NAME.json"""
    return json.loads((folder / f'{name}.json').read_text())


def cells_of(markdown, start):
    """Cells of the first row that begins with `start`"""
    row = next(row for row in markdown.splitlines() if row.startswith(f'| {start} |'))
    return [cell.strip() for cell in row.split('|')[1:-1]]
