"""Evaluation (§5.1, App. B): zero-shot retrieval, average accuracy A and average forgetting F.

In:  a backbone and each task's retrieval clips.
Out: for each direction and R@K the share, in percent, of queries whose own partner is among the K nearest.

    python eval.py RUN --task TASK     retrieval, classification, ave, localization, gap or spurious, of a run's models
    python eval.py RUN RUN ...         one table of what several runs recorded, mean ± deviation over seeds
"""
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import exit_politely
from data import normalize_frames
from recorded import Recorded

K = (1, 5, 10)
DIRECTIONS = ('audio_to_video', 'video_to_audio')


@torch.no_grad()
def embed_clips(backbone, datasets, device, batch_size, workers):
    """Embeddings of all tasks' clips: c_a, c_v (n, D), L2-normalized; task_of (n,), the task of each clip; and what could
    not be read after all, as "name: reason", which is left out of the candidates.
    """
    rows_a, rows_v, task_of, bad = [], [], [], []
    with tqdm(total=sum(map(len, datasets)), desc='evaluating', unit='clip', leave=False, disable=None) as bar:
        for task, dataset in enumerate(datasets):
            keys = [(i, 0) for i in range(len(dataset))]
            loader = DataLoader(dataset, batch_size, sampler=keys, num_workers=workers, generator=torch.Generator())
            for batch in loader:
                good = torch.tensor([not reason for reason in batch['bad']])
                bad += [reason for reason in batch['bad'] if reason]
                c_a, c_v = backbone.embed(batch['audio'][good].to(device), normalize_frames(batch['video'][good].to(device)))
                rows_a.append(c_a.cpu())
                rows_v.append(c_v.cpu())
                task_of += [task] * len(c_a)
                bar.update(len(good))
    return torch.cat(rows_a), torch.cat(rows_v), torch.tensor(task_of), bad


def ranks(query, candidates):
    """At which place each query's own partner (the candidate of the same row) comes: (n,), the best being 1.

    query, candidates (n, D). A tie counts against the model, and so does NaN: a constant
    or broken embedding must not score.
    """
    similarity = query @ candidates.T                       # n,n
    return (~(similarity < similarity.diagonal()[:, None])).sum(1)


def retrieval(c_a, c_v, task_of, num_tasks):
    """acc_{t,i} of §5.1 for one t: {direction: {'R@K': [percent for each task i], 'median_rank': [for each task i]}}

    The candidates are the clips of all tasks; the queries of task i are averaged.
    """
    result = {}
    for direction, query, candidates in zip(DIRECTIONS, (c_a, c_v), (c_v, c_a)):
        rank = ranks(query, candidates)
        result[direction] = {f'R@{k}': [100 * (rank[task_of == i] <= k).double().mean().item() for i in range(num_tasks)]
                             for k in K}
        result[direction]['median_rank'] = [rank[task_of == i].double().quantile(0.5).item() for i in range(num_tasks)]
    return result


def average_accuracy(acc):
    """A = 1/T Σ_i acc_{T,i}.  acc: a row per t, a column per task i"""
    return sum(acc[-1]) / len(acc[-1])


def average_forgetting(acc):
    """F = 1/(T−1) Σ_{i<T} max_{t<T} (acc_{t,i} − acc_{T,i}), over t ≥ i, where task i had been learned.

    None for a single task, which had no time to forget, and where there is not a row for every t.
    """
    T = len(acc)
    if T < 2 or T != len(acc[-1]):
        return None
    return sum(max(acc[t][i] for t in range(i, T - 1)) - acc[-1][i] for i in range(T - 1)) / (T - 1)


def summarize(rows, names, candidates):
    """Retrieval after each task → what `results.json` holds.

    rows: results of `retrieval`, one per t. "Avg" is the mean over R@1, 5, 10 of A and of F.
    """
    results = {'tasks': names, 'candidates': candidates, 'chance': {f'R@{k}': 100 * min(1, k / candidates) for k in K}}
    for direction in DIRECTIONS:
        results[direction] = {}
        for k in K:
            acc = [row[direction][f'R@{k}'] for row in rows]
            results[direction][f'R@{k}'] = {'acc': acc, 'A': average_accuracy(acc), 'F': average_forgetting(acc)}
        columns = [results[direction][f'R@{k}'] for k in K]
        results[direction]['Avg'] = {
            'A': sum(c['A'] for c in columns) / len(K),
            'F': None if columns[0]['F'] is None else sum(c['F'] for c in columns) / len(K)}
        ranks_ = [row[direction]['median_rank'] for row in rows]
        results[direction]['median_rank'] = {'acc': ranks_, 'A': average_accuracy(ranks_)}
    return results


def table(method, results):
    """Markdown in the form of Table 1: A and F, both directions; and the median rank, its mean over tasks at the end."""
    columns = [f'R@{k}' for k in K] + ['Avg']
    lines = [f'| {method} | ' + ' | '.join(f'{c} A ↑ | {c} F ↓' for c in columns) + ' | median rank ↓ |',
             '| --- ' * (2 + 2 * len(columns)) + '|']
    number = lambda x: '–' if x is None else f'{x:.2f}'
    for direction in DIRECTIONS:
        cells = [number(results[direction][c][key]) for c in columns for key in 'AF']
        cells.append(f'{results[direction]["median_rank"]["A"]:.1f}')
        lines.append(f'| {direction.replace("_", " ")} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


# ------------------------------------------------------------------------------------ of a finished run

def retrieve(run, args):
    """Zero-shot retrieval by the models that a run has left (Table 1) → results, table, figure"""
    models = run.models()
    models = [model for model in models if model[0] > 0] or models          # the initial one is before the first row of acc
    rows = []
    for _, name, file in tqdm(models, desc='models', unit='model', leave=False, disable=None):
        backbone, _ = run.load(file)
        c_a, c_v, task_of, bad = embed_clips(backbone, run.stream.test, run.device, run.cfg.batch_size, run.workers)
        rows.append(retrieval(c_a, c_v, task_of, len(run.stream.names)))
    results = dict(summarize(rows, run.stream.names, len(c_a)), after=[name for _, name, _ in models], clips_left_out=len(bad))
    return results, table(run.cfg.method, results), recalls(results)


def recalls(results):
    """Bars of R@1, 5, 10 of each task by the last model, with chance drawn in"""
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True, layout='constrained')
    for axis, direction in zip(axes, DIRECTIONS):
        for j, (k, colour, hatch) in enumerate(zip(K, ('#E69F00', '#56B4E9', '#009E73'), ('', '//', '..'))):
            places = [i + (j - 1) * 0.27 for i in range(len(results['tasks']))]
            axis.bar(places, results[direction][f'R@{k}']['acc'][-1], 0.27, label=f'R@{k}', color=colour, hatch=hatch, edgecolor='white')
            for x in places:
                axis.hlines(results['chance'][f'R@{k}'], x - 0.135, x + 0.135, color='black', linewidth=1.5)
        axis.set_xticks(range(len(results['tasks'])), results['tasks'], rotation=20)
        axis.set_title(direction.replace('_', ' '))
    axes[0].set_ylabel(f'% of {results["candidates"]} candidates; black: chance')
    axes[1].legend()
    figure.suptitle(f'Retrieval after {results["after"][-1]}')
    return figure


def downstream():
    """--task NAME → the function that does it: (Recorded, options) → results, Markdown table, figure"""
    import classify
    import gap
    import localize
    return {'retrieval': retrieve, 'classification': classify.classification, 'ave': classify.events,
            'localization': localize.localization, 'gap': gap.gap, 'spurious': localize.spurious}


def main(arguments=None):
    """The command line. One run and a task: does it, and writes RUN/eval/TASK.json, .md and .png. Without a task: a table of
    runs, in mean ± standard deviation over those that differ in nothing but their seed."""
    tasks = downstream()
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='a run\'s folder, or one of its models')
    parser.add_argument('--task', choices=list(tasks), help='what to evaluate; without it, a table of what the runs recorded')
    parser.add_argument('--last', action='store_true', help='only the model after the last task')
    parser.add_argument('--data', default='', help='ave: folder of AVE (Annotations.txt, trainSet.txt, …, AVE/*.mp4)')
    parser.add_argument('--finetune', action='store_true', help='classification, ave: train the backbone too')
    parser.add_argument('--clips', type=int, help='classification, ave: at most so many training clips a task')
    parser.add_argument('--epochs', type=int, help='classification, ave: default 15 (Table 6)')
    parser.add_argument('--batch-size', type=int, help='classification, ave: default 48, AudioSet 36, AVE 12 (Table 6)')
    parser.add_argument('--lr', type=float, help='classification, ave: default 5e-4, AVE 1e-3 (Table 6)')
    parser.add_argument('--seed', type=int, default=0, help='of the heads')
    parser.add_argument('--workers', type=int, default=-1, help='processes that load clips; default: one per core, none for shapes')
    parser.add_argument('--device', default='', help='cuda or cpu; without it, cuda where there is one')
    args = parser.parse_args(arguments)
    with exit_politely():
        if not args.task:
            from tables import summary
            print(summary(args.runs))
            return
        for path in args.runs:
            run = Recorded(path, args.workers, args.device, args.last)
            results, markdown, figure = tasks[args.task](run, args)
            print(markdown)
            name = args.task + ('-finetuned' if results.get('finetune') else '')     # beside what a frozen backbone gives
            for file in run.write(name, results, markdown, figure):
                print(file)
            plt.close(figure)


if __name__ == '__main__':
    main()
