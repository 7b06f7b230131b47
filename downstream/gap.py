"""The modality gap (Liang et al. 2022) over the stream (§5.2, App. G; Fig. 5, 13, 14, 15).

In:  the models of a run, one after each task, and the evaluation clips of its stream: the whole test split (§5.2).
Out: the distance between the centres of audio and video embeddings, for each task after each task; both clouds in 2-D.

The paper reads a large gap that stays large as alignment that is not forgotten.
"""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from downstream.multi_model import right_after, run_models
from downstream.pictures import BESIDE, plot_over_stream
from patches import normalize_frames
from utils.distributed import autocast
from utils.markdown import table_over_stream

POINTS = 200   # per cloud, at most


def evaluate(run, args):
    """All models on all tasks' clips → results. Clips that cannot be read are left out. Raises UserError.

    results  gap [model][task]
             over_stream   for each model that has learned a task, the mean over its learned tasks (Fig. 5 a)
             difference    mean over tasks i < T of |gap at the end − gap right after task i| (Fig. 13 a), or None
             clouds        of each task, by the last model
    """
    def embed(model, task, batch):
        with autocast(run.device, run.cfg.precision):
            c = model[0].embed(batch['audio'].to(run.device), normalize_frames(batch['video'].to(run.device)))
        return tuple(x.float().cpu() for x in c)

    models = run.models()
    embeddings = run_models(run, models, run.stream.test, embed, 'modality gap')
    tasks_learned = [t for t, _, _ in models]
    rows = [[modality_gap(c_a, c_v) for c_a, c_v in by_task] for by_task in embeddings]
    return {'tasks': list(run.stream.names), 'after': [name for _, name, _ in models], 'gap': rows,
            'over_stream': [sum(row[:t]) / t for t, row in zip(tasks_learned, rows) if t],
            'difference': mean_difference(rows, tasks_learned),
            'clouds': [pca_clouds(c_a, c_v) for c_a, c_v in embeddings[-1]]}


def report(run, results):
    """results of `evaluate` → Markdown table, figure"""
    table = table_over_stream(results['gap'], results, 3)
    if results['difference'] is not None:
        table += f'\n\nMean difference between the end and right after each task: {results["difference"]:.3f}'

    # the gap of each task and their mean (Fig. 5 a); `paper.figures` draws the clouds (Fig. 5 b)
    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout='constrained')
    plot_over_stream(axis, results['gap'], results['tasks'], results['after'])
    learned = [k for k, (t, _, _) in enumerate(run.models()) if t]
    axis.plot(learned, results['over_stream'], color='black', linewidth=2.5, marker='x', label='mean of learned tasks')
    axis.set(ylabel='modality gap', ylim=(0, None),
             title='Distance between the centres of audio and video embeddings')
    axis.legend(title='clips of task', **BESIDE)
    return table, figure


def modality_gap(c_a, c_v):
    """Distance between the centres of the two modalities (Liang et al. 2022; Fig. 5 a, N40).

    c_a, c_v (n, D)  embeddings of the same n clips, of any length → float in [0, 2]; 0 for the same centre
    """
    centre_a = F.normalize(c_a, dim=-1).mean(0)   # D   retrieval compares directions, so lengths must not count
    centre_v = F.normalize(c_v, dim=-1).mean(0)   # D
    return (centre_a - centre_v).norm().item()


def pca_clouds(c_a, c_v):
    """Both clouds of n clips in 2-D (Fig. 5 b, 14).

    c_a, c_v (n, D) → {'audio': [[x, y], …], 'video': …}, at most POINTS each

    The paper does not name its projection. Here: the first two principal components of both clouds together. PCA is
    linear, so it never makes a distance larger.
    """
    both = F.normalize(torch.cat([c_a, c_v]), dim=-1).double()
    audio, video = torch.from_numpy(PCA(2, svd_solver='full').fit_transform(both.numpy())).chunk(2)
    sign = torch.where(audio.mean(0) > video.mean(0), -1.0, 1.0)         # PCA has no sign: put audio left and below
    rows = torch.linspace(0, len(audio) - 1, min(POINTS, len(audio))).long()
    return {'audio': (audio * sign)[rows].tolist(), 'video': (video * sign)[rows].tolist()}


def mean_difference(rows, tasks_learned):
    """Fig. 13 (a): the mean over i < T of |gap_{T,i} − gap_{i,i}|, "the modality gap estimated at the completion of the
    last task and […] of each task". None for T < 2, or if a model is missing.  rows [model][task]"""
    own = right_after(rows, tasks_learned)
    if own is None or len(own) < 2:
        return None
    return sum(abs(end - value) for end, value in zip(rows[-1], own[:-1])) / (len(own) - 1)
