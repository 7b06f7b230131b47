"""Evaluation (§5.1, App. B): zero-shot retrieval, average accuracy A and average forgetting F.

In:  a backbone and each task's retrieval clips.
Out: for each direction and R@K the share, in percent, of queries whose own partner is among the K nearest.

    python eval.py RUN --task TASK     retrieval, classification, ave, localization, selection, gap or spurious
    python eval.py RUN --task localization --video FILE --out OUT.mp4      where they look, as a video (`downstream/`)
    python eval.py RUN RUN ...         one table of what several runs recorded, mean ± deviation over seeds
"""
import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from config import autocast, exit_politely
from patches import COUNT, POSITIVE, SEED, WORKERS, UserError, gathered, normalize_frames
from run import Recorded
from streams.common import tasks_in_order
from weights import check_writable

K = (1, 5, 10)
DIRECTIONS = ('audio_to_video', 'video_to_audio')


@torch.no_grad()
def embed_clips(backbones, datasets, device, batch_size, workers):
    """Embeddings of all tasks' clips by each backbone, in one pass over the clips, for decoding them takes longest.

    → of each backbone c_a, c_v (n, D), L2-normalized; task_of (n,), the task of each clip; and what could not be read
    after all, as "name: reason", which is left out of the candidates. Of several processes each embeds its share of the
    batches, and all have the whole.
    """
    mine, bad = [], []
    with tqdm(total=sum(map(len, datasets)), desc='evaluating', unit='clip', leave=False, disable=None) as bar:
        for task, batch in tasks_in_order(datasets, batch_size, workers, bad):
            audio, video = batch['audio'].to(device), normalize_frames(batch['video'].to(device))
            with autocast(device):
                pairs = [[c.float().cpu() for c in backbone.embed(audio, video)] for backbone in backbones]
            mine.append((task, batch['clip'].tolist(), pairs))
            bar.update(len(audio))
    found, bad = (sum(parts, []) for parts in zip(*gathered((mine, bad))))
    found.sort(key=lambda part: part[:2])                          # in the order of the clips, as one process sees them
    task_of = [task for task, clips, _ in found for _ in clips]
    rows = [[pairs[number] for _, _, pairs in found] for number in range(len(backbones))]
    return [tuple(map(torch.cat, zip(*own))) for own in rows], torch.tensor(task_of), bad


# ------------------------------------------------------------------------------------- retrieval

def ranks(query, candidates, chunk=4096):
    """At which place each query's own partner (the candidate of the same row) comes: (n,), the best being 1.

    query, candidates (n, D). A tie counts against the model, and so does NaN: a constant
    or broken embedding must not score. chunk: queries at a time, for 100,000 candidates make a row of 0.4 MB
    """
    found = []
    for start in range(0, len(query), chunk):
        similarity = query[start:start + chunk] @ candidates.T          # chunk,n
        own = similarity.diagonal(start)[:, None]
        found.append((~(similarity < own)).sum(1).cpu())
    return torch.cat(found)


def dealt(task_of, galleries):
    """The clips of each task, dealt out one by one: task_of (n,) → (n,), the gallery of each clip"""
    place = torch.empty_like(task_of)                                           # of a clip among those of its task
    for task in task_of.unique():
        place[task_of == task] = torch.arange(int((task_of == task).sum()))
    return place % galleries


def retrieval(c_a, c_v, task_of, num_tasks, device='cpu', galleries=1):
    """acc_{t,i} of §5.1 for one t: {direction: {'R@K': [percent for each task i], 'median_rank': [for each task i]}}

    The candidates are the clips of all tasks; the queries of task i are averaged. device: where it is computed.
    galleries: with more than one, a query searches among the clips of its own gallery: more queries make the mean more
    exact, and finding a partner no harder
    """
    result, c_a, c_v = {}, c_a.to(device), c_v.to(device)
    gallery, rank = dealt(task_of, galleries), torch.zeros(len(task_of), dtype=torch.long)
    for direction, query, candidates in zip(DIRECTIONS, (c_a, c_v), (c_v, c_a)):
        for own in (gallery == number for number in range(galleries)):
            rank[own] = ranks(query[own], candidates[own])
        share = lambda i, k: 100 * (rank[task_of == i] <= k).double().mean().item()
        result[direction] = {f'R@{k}': [share(i, k) for i in range(num_tasks)] for k in K}
        result[direction]['median_rank'] = [rank[task_of == i].double().quantile(0.5).item() for i in range(num_tasks)]
    return result


# --------------------------------------------------------------------------------- A and F (§5.1)

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


def add_A_and_F(results):
    """To each part of what a task found that has acc[t][i], whatever it counts: A and F."""
    if 'acc' in results and 'A' not in results:
        results |= dict(A=average_accuracy(results['acc']), F=average_forgetting(results['acc']))
    for part in results.values():
        if isinstance(part, dict):
            add_A_and_F(part)
    return results


def summarize(rows, names, candidates):
    """Retrieval after each task → what `results.json` holds.

    rows: results of `retrieval`, one per t. "Avg" is the mean over R@1, 5, 10 of A and of F.
    """
    results = {'tasks': names, 'candidates': candidates, 'chance': {f'R@{k}': 100 * min(1, k / candidates) for k in K}}
    for direction in DIRECTIONS:
        results[direction] = {f'R@{k}': {'acc': [row[direction][f'R@{k}'] for row in rows]} for k in K}
        columns = [add_A_and_F(results[direction][f'R@{k}']) for k in K]
        results[direction]['Avg'] = {
            'A': sum(c['A'] for c in columns) / len(K),
            'F': None if columns[0]['F'] is None else sum(c['F'] for c in columns) / len(K)}
        medians = [row[direction]['median_rank'] for row in rows]
        results[direction]['median_rank'] = {'acc': medians, 'A': average_accuracy(medians)}
    return results


def table(method, results):
    """Markdown in the form of Table 1: A and F, both directions; and the median rank, its mean over tasks at the
    end."""
    columns = [f'R@{k}' for k in K] + ['Avg']
    lines = [f'| {method} | ' + ' | '.join(f'{c} A ↑ | {c} F ↓' for c in columns) + ' | median rank ↓ |',
             '| --- ' * (2 + 2 * len(columns)) + '|']
    number = lambda x: '–' if x is None else f'{x:.2f}'
    for direction in DIRECTIONS:
        cells = [number(results[direction][c][key]) for c in columns for key in 'AF']
        cells.append(f'{results[direction]["median_rank"]["A"]:.1f}')
        lines.append(f'| {direction.replace("_", " ")} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


# ------------------------------------------------------------------------------ of a finished run

def measure(run, args):
    """Zero-shot retrieval by the models that a run has left (Table 1) → results"""
    from downstream.together import groups
    models = run.models()
    models = [model for model in models if model[0] > 0] or models          # acc begins after the first task
    rows = []
    for group in groups(run, models):
        found, task_of, bad = embed_clips([run.load(file)[0] for _, _, file in group], run.stream.test, run.device,
                                          run.cfg.batch_size, run.workers)
        rows += [retrieval(c_a, c_v, task_of, len(run.stream.names), run.device, run.cfg.galleries)
                 for c_a, c_v in found]
    results = summarize(rows, run.stream.names, len(task_of) // run.cfg.galleries)
    return dict(results, after=[name for _, name, _ in models], clips_left_out=len(bad))


def show(run, results):
    """→ Markdown table, figure"""
    from downstream.pictures import recalls
    return table(run.cfg.method, results), recalls(results)


def downstream():
    """--task NAME → its two functions: measure(Recorded, options) → results; show(Recorded, results) → table, figure"""
    from downstream import classification, events, gap, localization, selected, spurious
    modules = {
        'classification': classification, 'ave': events, 'localization': localization, 'selection': selected,
        'gap': gap, 'spurious': spurious}
    return {'retrieval': (measure, show)} | {name: (module.measure, module.show) for name, module in modules.items()}


def answer(run, task, args):
    """What a task finds of a run: results with A and F, Markdown table, figure"""
    measure, show = downstream()[task]
    results = add_A_and_F(measure(run, args))
    return results, *show(run, results)


def draw_video(run, args):
    """--task localization --video FILE --out OUT.mp4 → the file written. Raises UserError."""
    from downstream.video import make
    if args.task != 'localization':
        raise UserError(f'--video is for --task localization, not {args.task}')
    if args.out and len(args.runs) > 1:
        raise UserError(f'--out {args.out} is one file, and {len(args.runs)} runs would write it: give one RUN')
    out = args.out or run.place(f'localization-{args.video.stem}', 'mp4')
    make(run, args.video, out)
    return out


def read_options(arguments):
    """The command line's words → its options"""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    option = parser.add_argument
    option('runs', type=Path, nargs='+', metavar='RUN', help='a run\'s folder, or one of its models')
    option('--task', choices=list(downstream()), help='what to evaluate; without it, a table of what the runs recorded')
    option('--last', action='store_true', help='only the model after the last task')
    option('--data', default='', help='ave: folder of AVE (Annotations.txt, trainSet.txt, …, AVE/*.mp4)')
    option('--video', type=Path, metavar='FILE', help='localization: a video of where the models look in this one')
    option('--out', type=Path, help='the video to write; default RUN/eval/NAME.mp4')
    option('--finetune', action='store_true', help='classification, ave: train the backbone too')
    option('--clips', **COUNT.asked('classification, ave: at most so many training clips a task'))
    option('--epochs', **COUNT.asked('classification, ave: default 15 (Table 6)'))
    option('--batch-size', **COUNT.asked('classification, ave: default 48, AudioSet 36, AVE 12 (Table 6)'))
    option('--lr', **POSITIVE.asked('classification, ave: default 5e-4, AVE 1e-3 (Table 6)'))
    option('--seed', default=0, **SEED.asked('of the heads'))
    option('--workers', default=-1, **WORKERS.asked('processes that load clips; default: by the cores to be used'))
    option('--device', default='', help='cuda or cpu; without it, cuda where there is one')
    return parser.parse_args(arguments)


def main(arguments=None):
    """The command line. Runs and a task: does it, and writes RUN/eval/TASK.json, .md and .png. Without a task: a table
    of runs, in mean ± standard deviation over those that differ in nothing but their seed."""
    import matplotlib.pyplot as plt            # not above: training evaluates too, and needs no pictures
    from downstream import report
    args = read_options(arguments)
    with exit_politely():
        if not args.task:
            from paper.groups import summary
            written = [file for path in args.runs for file in report.write(Recorded(path, device='cpu').folder)]
            print(summary(args.runs), *written, sep='\n')
            return
        for path in args.runs:
            run = Recorded(path, args.workers, args.device, args.last)
            check_writable(run.folder / 'eval')
            if args.video:
                print(draw_video(run, args), *report.write(run.folder), sep='\n')
                continue
            results, markdown, figure = answer(run, args.task, args)
            print(markdown)
            name = args.task + ('-finetuned' if results.get('finetune') else '')     # beside that of a frozen backbone
            for file in run.write(name, results, markdown, figure):
                print(file)
            plt.close(figure)
            print(*report.write(run.folder), sep='\n')


if __name__ == '__main__':
    main()
