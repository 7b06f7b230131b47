"""Evaluation (§5.1, App. B): zero-shot retrieval, average accuracy A and average forgetting F.

In:  a backbone and each task's retrieval clips.
Out: for each direction and R@K the share, in percent, of queries whose own partner is among the K nearest.

    python eval.py RUN     evaluates the last checkpoint of a run's folder
"""
import argparse
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from avm import AVM
from data import normalize_frames, open_stream
from model import AudioVideoMAE, Sizes, UserError
from weights import load_weights, read_checkpoint

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
    """acc_{t,i} of §5.1 for one t: {direction: {'R@K': [percent for each task i]}}

    The candidates are the clips of all tasks; the queries of task i are averaged.
    """
    result = {}
    for direction, query, candidates in zip(DIRECTIONS, (c_a, c_v), (c_v, c_a)):
        rank = ranks(query, candidates)
        result[direction] = {f'R@{k}': [100 * (rank[task_of == i] <= k).double().mean().item() for i in range(num_tasks)]
                             for k in K}
    return result


def average_accuracy(acc):
    """A = 1/T Σ_i acc_{T,i}.  acc: a row per t, a column per task i"""
    return sum(acc[-1]) / len(acc[-1])


def average_forgetting(acc):
    """F = 1/(T−1) Σ_{i<T} max_{t<T} (acc_{t,i} − acc_{T,i}), over t ≥ i, where task i had been learned.

    None for fewer than two rows: there was no time to forget.
    """
    T = len(acc)
    if T < 2:
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
        columns = list(results[direction].values())
        results[direction]['Avg'] = {
            'A': sum(c['A'] for c in columns) / len(K),
            'F': None if columns[0]['F'] is None else sum(c['F'] for c in columns) / len(K)}
    return results


def table(method, results):
    """Markdown in the form of Table 1: A and F, both directions."""
    columns = [f'R@{k}' for k in K] + ['Avg']
    lines = [f'| {method} | ' + ' | '.join(f'{c} A ↑ | {c} F ↓' for c in columns) + ' |', '| --- ' * (1 + 2 * len(columns)) + '|']
    number = lambda x: '–' if x is None else f'{x:.2f}'
    for direction in DIRECTIONS:
        cells = [number(results[direction][c][key]) for c in columns for key in 'AF']
        lines.append(f'| {direction.replace("_", " ")} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def evaluate_run(path, workers=0):
    """Retrieval by the model of a run's folder, or of its last.pt, as it is now. Returns the summary. Raises UserError."""
    file = path / 'last.pt' if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    if not {'config', 'weights'} <= set(checkpoint):
        raise UserError(f'{file}: weights only; name a run, which knows its data')
    config = SimpleNamespace(**checkpoint['config'])
    sizes = Sizes(**{f.name: checkpoint['config'][f.name] for f in fields(Sizes)})
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    backbone, avm = AudioVideoMAE(sizes).to(device), AVM(sizes.embed_dim, sizes.avm_heads)
    load_weights(file, backbone, avm)
    stream = open_stream(config, sizes, workers)
    c_a, c_v, task_of, _ = embed_clips(backbone, stream.test, device, config.batch_size, workers)
    return summarize([retrieval(c_a, c_v, task_of, len(stream.names))], stream.names, len(c_a))


def main():
    """The command line: a run → its table, and R@10 of each task."""
    parser = argparse.ArgumentParser(description='Evaluate the last checkpoint of a run.', allow_abbrev=False)
    parser.add_argument('run', type=Path, metavar='RUN', help='a run\'s folder or its last.pt')
    parser.add_argument('--task', choices=['retrieval'], default='retrieval', help='what to evaluate (default retrieval)')
    parser.add_argument('--workers', type=int, default=0, help='processes that load clips (default 0: this one)')
    args = parser.parse_args()
    try:
        results = evaluate_run(args.run, args.workers)
    except UserError as error:
        sys.exit(f'error: {error}')
    print(table(str(args.run), results))
    for direction in DIRECTIONS:
        print(f'R@10 {direction.replace("_", " ")}: ' + ', '.join(
            f'{name} {value:.1f}' for name, value in zip(results['tasks'], results[direction]['R@10']['acc'][-1])))


if __name__ == '__main__':
    main()
