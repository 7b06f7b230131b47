"""Folders of finished runs with made-up numbers, as train.py and eval.py write them."""
import dataclasses
import json

import numpy as np
import torch

from config import SIZES, Config, Sizes, preset
from paper.groups import DIRECTION_TITLES

TASKS = ['sports', 'music', 'vehicle']


def accuracies(rng, T):
    """A random acc[t][i], with A and F as eval.py computes them."""
    acc = rng.uniform(5, 40, (T, T)).round(2).tolist()
    forgotten = [max(acc[t][i] for t in range(i, T - 1)) - acc[-1][i] for i in range(T - 1)]
    return {'acc': acc, 'A': sum(acc[-1]) / T, 'F': sum(forgotten) / (T - 1)}


def fake_run(folder, number=0, evaluated=('classification', 'ave', 'gap'), candidates=360, **options):
    """Write a finished run; its numbers depend on `number` → its folder"""
    rng, T = np.random.default_rng(number), len(TASKS)
    options = dict(dataset='shapes', size='small', seed=number, out=str(folder)) | options
    cfg = Config(**{**preset(options['dataset'], options['size']), **options})
    multitask = cfg.method == 'multitask'
    after, steps = (['all tasks'], [T]) if multitask else (TASKS, range(1, T + 1))

    results = {'tasks': TASKS, 'candidates': candidates, 'method': cfg.method}
    for direction in DIRECTION_TITLES:
        found = results[direction] = {f'R@{k}': accuracies(rng, T) for k in (1, 5, 10)}
        found['Avg'] = {which: sum(found[f'R@{k}'][which] for k in (1, 5, 10)) / 3 for which in 'AF'}
        for recall in found.values() if multitask else ():
            recall['F'] = None

    made, gap = accuracies(rng, T), 0.6 - 0.3 * rng.random((1 + len(after), T))
    difference = None if multitask else float(np.mean([abs(gap[-1, i] - gap[1 + i, i]) for i in range(T - 1)]))
    clouds = [{name: (rng.normal(0, 0.2, (30, 2)) + [x, 0]).tolist() for name, x in (('audio', -0.5), ('video', 0.5))}
              for _ in TASKS]
    records = {
        'classification': {'metric': 'accuracy', 'tasks': TASKS, 'after': after, 'A': made['A'],
                           'F': None if multitask else made['F'], 'acc': [made['acc'][t - 1] for t in steps],
                           'finetune': False, 'options': ''},
        'ave': {'after': after, 'accuracy': rng.uniform(40, 60), 'majority': 30.0, 'classes': [], 'options': ''},
        'gap': {'tasks': TASKS, 'after': ['initial', *after], 'gap': gap.tolist(), 'difference': difference,
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


def add_attention(folder, clips_seed=0, number=0, known=True):
    """Write eval/localization and eval/spurious of a fake run, with random clips, sources and maps → folder"""
    sizes, T = Sizes(**SIZES['small']), len(TASKS)
    draw, rng = (torch.Generator().manual_seed(seed) for seed in (clips_seed, number))
    lengths = dict(I_a=sizes.num_patches_a, I_v=sizes.num_patches_v)
    lengths |= dict(cosine_a=lengths['I_a'], cosine_v=lengths['I_v'])
    video, audio = (sizes.num_frames, 3, sizes.image_size, sizes.image_size), (sizes.audio_frames, sizes.mel_bins)
    clips = []
    for task in (0, 0, 1, 1, 2, 2):
        clip = dict(task=task, frames=torch.randint(256, video, dtype=torch.uint8, generator=draw),
                    audio=torch.randn(audio, generator=draw))
        for x in 'av':
            clip[f'truth_{x}'] = torch.rand(lengths[f'I_{x}'], generator=draw) < 0.2 if known else None
        clips.append(clip | {name: torch.rand(T + 1, n, generator=rng) for name, n in lengths.items()})
    swaps = [clip | dict(other_task=(clip['task'] + 1) % T, I_a=clip['I_a'][-1], I_v=clip['I_v'][-1],
                         I_a_other=clip['I_a'][0], I_v_other=clip['I_v'][0]) for clip in clips[::2]]
    record = {'tasks': TASKS, 'after': ['initial', *TASKS]}
    torch.save(record | {'clips': clips}, folder / 'eval' / 'localization.pt')
    torch.save({'tasks': TASKS, 'after': TASKS[-1], 'clips': swaps}, folder / 'eval' / 'spurious.pt')
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
