"""The modality gap (Liang et al. 2022) over the stream (§5.2, App. G; Fig. 5, 13, 14, 15).

In:  the models of a run, one after each task, and the evaluation clips of its stream: the whole test split (§5.2).
Out: the distance between the centres of audio and video embeddings, for each task after each task; both clouds in 2-D.

The paper reads a large gap that stays large as alignment that was not forgotten.
"""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from config import autocast
from downstream.pictures import OKABE_ITO, look
from downstream.together import groups, in_one_pass, joined
from patches import normalize_frames

POINTS = 200   # of a cloud, at most


def measure(run, args):
    """Every model on every task's clips → results. Raises UserError.

    results  gap [model][task]
             over_stream   of each model, but one that has learned no task, the mean over those it has (Fig. 5 a)
             difference    mean over tasks i < T of |gap at the end − gap right after i| (Fig. 13 a), or None
             clouds        of each task, by the last model
    """
    models, names = run.models(), run.stream.names
    steps, rows = steps_of(models), []
    for group in groups(run, models):
        found = embeddings(run, group)
        rows += [[modality_gap(*pair) for pair in by_task] for by_task in found]
    return {'tasks': list(names), 'after': [name for _, name, _ in models], 'gap': rows,
            'over_stream': [sum(row[:t]) / t for t, row in zip(steps, rows) if t],
            'difference': difference(rows, steps), 'clouds': [clouds(*pair) for pair in found[-1]]}


def show(run, results):
    """→ Markdown table, figure.  results: those of `measure`"""
    return table(results), picture(results, steps_of(run.models()))


def steps_of(models):
    """How many tasks each model of `Recorded.models` has learned."""
    return [t for t, _, _ in models]


def embeddings(run, models):
    """[model][task]: c_a, c_v (n, D), L2-normalized, on the CPU, of each task's clips by each of the models. Clips that
    cannot be read are left out."""
    def embed(backbone, task, batch):
        with autocast(run.device):
            c_a, c_v = backbone.embed(batch['audio'].to(run.device), normalize_frames(batch['video'].to(run.device)))
        return c_a.float().cpu(), c_v.float().cpu()

    backbones = [run.load(file)[0] for _, _, file in models]
    found, bad = in_one_pass(run, run.stream.evaluate, run.cfg.batch_size, backbones, embed, 'modality gap')
    return joined(found, run.stream.names, bad)


def modality_gap(c_a, c_v):
    """Distance between the two modalities' centres (Liang et al. 2022; Fig. 5 a).

    c_a, c_v (n, D)  embeddings of the same n clips, of any length → float in [0, 2], 0 when both share a centre
    """
    centre_a = F.normalize(c_a, dim=-1).mean(0)   # D; onto the sphere first, because retrieval
    centre_v = F.normalize(c_v, dim=-1).mean(0)   # D; compares directions, and lengths would drown the gap
    return (centre_a - centre_v).norm().item()


def clouds(c_a, c_v):
    """Both clouds of n clips in 2-D (Fig. 5 b, 14).

    c_a, c_v (n, D) → {'audio': [[x, y], …], 'video': …}, at most POINTS each

    The paper does not say how it projects. Here: L2-normalized, both clouds together centred, and their first two
    principal directions by SVD, which is linear, so that a distance in the picture is never more than that between the
    embeddings.
    """
    both = F.normalize(torch.cat([c_a, c_v]), dim=-1).double()
    both = both - both.mean(0)
    directions = torch.linalg.svd(both, full_matrices=False).Vh[:2]           # 2,D
    audio, video = (both @ directions.T).chunk(2)
    turn = torch.where(audio.mean(0) > video.mean(0), -1.0, 1.0)              # an SVD's signs mean nothing: audio left
    some = torch.linspace(0, len(audio) - 1, min(POINTS, len(audio))).long()
    return {'audio': (audio * turn)[some].tolist(), 'video': (video * turn)[some].tolist()}


def difference(rows, steps):
    """Fig. 13 (a): "the modality gap estimated at the completion of the last task and […] of each task", their distance
    |gap_{T,i} − gap_{i,i}|, the mean over i < T; None if a model is missing.

    rows [model][task]; steps: how many tasks each model has learned
    """
    T = steps[-1]
    if T < 2 or not set(range(1, T + 1)) <= set(steps):                       # Multitask has no model after each task
        return None
    return sum(abs(rows[-1][i] - rows[steps.index(i + 1)][i]) for i in range(T - 1)) / (T - 1)


# ------------------------------------------------------------------------------- table and picture

def table(results):
    """Markdown: the gap of each task after each task, and the difference."""
    lines = ['| after | ' + ' | '.join(results['tasks']) + ' |', '| --- ' * (1 + len(results['tasks'])) + '|']
    for name, row in zip(results['after'], results['gap']):
        lines.append(f'| {name} | ' + ' | '.join(f'{value:.3f}' for value in row) + ' |')
    if results['difference'] is not None:
        lines += ['', f'Mean difference between the end and each task\'s own completion: {results["difference"]:.3f}']
    return '\n'.join(lines)


def picture(results, steps):
    """Left Fig. 5 a for one run, each task's gap besides; right Fig. 5 b, the clouds of the first task by the last
    model. steps: how many tasks each model has learned"""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), layout='constrained', width_ratios=[1.35, 1])
    x = range(len(steps))
    for i, task in enumerate(results['tasks']):
        left.plot(x, [row[i] for row in results['gap']], markersize=4, linewidth=1, alpha=0.8, label=task, **look(i))
    left.plot([k for k in x if steps[k]], results['over_stream'], color='black', linewidth=2.5, marker='x',
              label='mean of those learned')
    left.set_xticks(x, results['after'], rotation=20)
    left.set(xlabel='after learning', ylabel='modality gap', ylim=(0, 1.08 * max(map(max, results['gap']))))
    left.grid(alpha=0.25)
    left.legend(title='clips of task', fontsize=8, loc='upper left', bbox_to_anchor=(1.01, 1))
    for (name, points), colour, marker in zip(results['clouds'][0].items(), (OKABE_ITO[4], OKABE_ITO[0]), 'o^'):
        right.scatter(*zip(*points), s=16, color=colour, marker=marker, alpha=0.7, linewidths=0, label=name)
    right.set(xlabel='first principal direction', ylabel='second', aspect='equal',
              title=f'{results["tasks"][0]}, model: {results["after"][-1]}')
    right.legend(fontsize=8)
    figure.suptitle('Distance between the centres of audio and video embeddings')
    return figure
