"""Evaluation (§5.1, App. B): zero-shot retrieval, average accuracy A, average forgetting F.

In:  a backbone, and the retrieval clips of each task.
Out: for each direction and R@K the share, in percent, of queries whose own partner is among the K nearest.

    python eval.py RUN --eval NAME     retrieval, classification, ave, localization, selection, gap or spurious
    python eval.py RUN --eval localization --video FILE --out OUT.mp4      where the models look, as a video
    python eval.py RUN RUN ...         one table of several runs, mean ± standard deviation over seeds
"""
import errno
from pathlib import Path

import torch
from tqdm import tqdm

from config import UserError
from patches import normalize_frames
from streams.common import batches_by_task
from utils.checkpoint import check_writable
from utils.cli import Parser, cli_errors, flag_name, number, one_of
from utils.distributed import all_gather_object, autocast
from utils.markdown import format_number, markdown_table

K = (1, 5, 10)
DIRECTIONS = ('audio_to_video', 'video_to_audio')


@torch.no_grad()
def embed_clips(backbones, datasets, device, batch_size, workers, precision='auto'):
    """Embed the clips of all tasks with each backbone, in one pass: decoding takes longest.

    → [(c_a, c_v)] of each backbone, (n, D) each, L2-normalized; task_of (n,): the task of each clip; 'name: reason' of
    each clip that could not be read. Each process embeds its share of the batches, and all return everything.
    """
    mine, skipped = [], []
    with tqdm(total=sum(map(len, datasets)), desc='evaluating', unit='clip', leave=False, disable=None) as bar:
        for task, batch in batches_by_task(datasets, batch_size, workers, skipped):
            audio, video = batch['audio'].to(device), normalize_frames(batch['video'].to(device))
            with autocast(device, precision):
                pairs = [[c.float().cpu() for c in backbone.embed(audio, video)] for backbone in backbones]
            mine.append((task, batch['clip'].tolist(), pairs))
            bar.update(len(audio))

    # merge the batches of all processes, in the order of the clips
    parts, all_skipped = [], []
    for their_parts, their_skipped in all_gather_object((mine, skipped)):
        parts += their_parts
        all_skipped += their_skipped
    parts.sort(key=lambda part: part[:2])
    task_of = torch.tensor([task for task, clips, _ in parts for _ in clips])
    unreadable = sorted(set(range(len(datasets))) - set(task_of.tolist()))
    if unreadable:
        raise UserError(f'none of the retrieval clips of task {unreadable[0] + 1} can be read')
    embeddings = []
    for i in range(len(backbones)):
        c_a, c_v = zip(*(pairs[i] for _, _, pairs in parts))
        embeddings.append((torch.cat(c_a), torch.cat(c_v)))
    return embeddings, task_of, all_skipped


# ------------------------------------------------------------------------------------- retrieval

def ranks(query, candidates, chunk=4096):
    """The rank of each query's own partner, the candidate of the same row: (n,), 1 is best.

    query, candidates (n, D). A tie counts against the model, and so does NaN: a constant embedding must not score.
    chunk: queries at a time, because 100,000 candidates make a row of 0.4 MB
    """
    found = []
    for start in range(0, len(query), chunk):
        similarity = query[start:start + chunk] @ candidates.T         # chunk,n
        partner = similarity.diagonal(start)[:, None]                  # row i is query start + i
        found.append((~(similarity < partner)).sum(1).cpu())           # not below: counts ties and NaN
    return torch.cat(found)


def assign_candidate_sets(task_of, candidate_sets):
    """task_of (n,) → (n,): the candidate set of each clip. Each set gets equally many clips of a task."""
    place = torch.empty_like(task_of)                                  # 0, 1, … among the clips of the same task
    for task in task_of.unique():
        place[task_of == task] = torch.arange(int((task_of == task).sum()))
    return place % candidate_sets


def retrieval(c_a, c_v, task_of, num_tasks, device='cpu', candidate_sets=1):
    """acc_{t,i} of §5.1 for one t → {direction: {'R@K': [percent for each task i], 'median_rank': [for each task i]}}

    The candidates are the clips of all tasks (N37). With several candidate sets, a query is compared with the
    candidates of its own set: more queries make the mean more exact, without making a partner harder to find.
    """
    c_a, c_v = c_a.to(device), c_v.to(device)                          # n,D
    set_of = assign_candidate_sets(task_of, candidate_sets)
    rank = torch.zeros(len(task_of), dtype=torch.long)                 # of each query's partner
    result = {}
    for direction, query, candidates in zip(DIRECTIONS, (c_a, c_v), (c_v, c_a)):
        for index in range(candidate_sets):
            in_set = set_of == index
            rank[in_set] = ranks(query[in_set], candidates[in_set])
        by_task = [rank[task_of == i].double() for i in range(num_tasks)]
        result[direction] = {f'R@{k}': [100 * (r <= k).double().mean().item() for r in by_task] for k in K}
        result[direction]['median_rank'] = [r.quantile(0.5).item() for r in by_task]
    return result


# --------------------------------------------------------------------------------- A and F (§5.1)

def average_accuracy(acc):
    """A = 1/T Σ_i acc_{T,i}.  acc: a row per t, a column per task i"""
    return sum(acc[-1]) / len(acc[-1])


def average_forgetting(acc):
    """F = 1/(T−1) Σ_{i<T} max_{t<T} (acc_{t,i} − acc_{T,i}), over t ≥ i, where task i has been learned (N37).

    None for a single task, and if there is not a row for every t.
    """
    T = len(acc)
    if T < 2 or T != len(acc[-1]):
        return None
    return sum(max(acc[t][i] for t in range(i, T - 1)) - acc[-1][i] for i in range(T - 1)) / (T - 1)


def add_A_and_F(results):
    """Add A and F to each part of the results that has acc[t][i]."""
    if 'acc' in results and 'A' not in results:
        results |= dict(A=average_accuracy(results['acc']), F=average_forgetting(results['acc']))
    for part in results.values():
        if isinstance(part, dict):
            add_A_and_F(part)
    return results


def summarize(rows, names, candidates):
    """`retrieval` after each task, a row per t → the content of results.json. "Avg" is the mean over R@1, 5, 10."""
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


def results_table(method, results):
    """Markdown in the form of Table 1: A and F in both directions, and the median rank at the end"""
    columns = [f'R@{k}' for k in K] + ['Avg']
    header = [method, *(f'{column} {name}' for column in columns for name in ('A ↑', 'F ↓')), 'median rank ↓']
    rows = []
    for direction in DIRECTIONS:
        values = [results[direction][column][name] for column in columns for name in 'AF']
        rows.append([direction.replace('_', ' '), *(format_number(value, 2) for value in values),
                     f'{results[direction]["median_rank"]["A"]:.1f}'])
    chance = [results['chance'][f'R@{k}'] for k in K]
    cells = [cell for value in (*chance, sum(chance) / len(K)) for cell in (f'{value:.2f}', '–')]
    return markdown_table(header, [*rows, ['chance', *cells, f'{(results["candidates"] + 1) / 2:.1f}']])


# --------------------------------------------------------------------------------- the command line

def evaluate(run, args):
    """Zero-shot retrieval with each model of a FinishedRun (`downstream/finished_run.py`; Table 1) → results.
    run.models(): [(t, name of the task just learned, file)]"""
    from downstream.multi_model import group_models
    models = run.models()
    models = [model for model in models if model[0] > 0] or models     # acc starts after the first task
    rows = []
    for group in group_models(run, models):
        backbones = [run.load_model(file)[0] for _, _, file in group]
        embeddings, task_of, skipped = embed_clips(backbones, run.stream.retrieval, run.device, run.cfg.batch_size,
                                                   run.workers, run.cfg.precision)
        rows += [retrieval(c_a, c_v, task_of, len(run.stream.names), run.device, run.cfg.candidate_sets)
                 for c_a, c_v in embeddings]
    results = summarize(rows, run.stream.names, len(task_of) // run.cfg.candidate_sets)
    return dict(results, after=[name for _, name, _ in models], clips_left_out=len(skipped))


def report(run, results):
    """→ Markdown table, figure"""
    from downstream.pictures import recalls
    table, learned = results_table(run.cfg.method, results), run.models()[-1][0]
    if learned < len(results['tasks']):
        table += f'\n\nA is the mean of all {len(results["tasks"])} tasks; the model has learned {learned} of them.'
    return table, recalls(results)


def evaluations():
    """{name of --eval: (evaluate(run, args) → results, report(run, results) → table, figure)}"""
    from downstream import classification, events, gap, localization, selection_stats, spurious
    modules = dict(classification=classification, ave=events, localization=localization, selection=selection_stats,
                   gap=gap, spurious=spurious)
    return {'retrieval': (evaluate, report)} | {name: (module.evaluate, module.report)
                                                for name, module in modules.items()}


def run_evaluation(run, name, args):
    """→ results with A and F, Markdown table, figure"""
    evaluate_fn, report_fn = evaluations()[name]
    results = add_A_and_F(evaluate_fn(run, args))
    return results, *report_fn(run, results)


def write_video(run, args):
    """--eval localization --video FILE → the file written. Raises UserError."""
    from downstream.video import make_video
    if args.out and len(args.runs) > 1:
        raise UserError(f'--out {args.out} is one file, but there are {len(args.runs)} runs: give one RUN')
    out = args.out or run.eval_path(f'localization-{args.video.stem}', 'mp4')
    make_video(run, args.video, out)
    return out


def make_parser():
    """The options of eval.py"""
    parser = Parser(prog='eval.py', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('runs', type=Path, nargs='+', metavar='RUN', help='a run\'s folder, or one of its models')
    add('--eval', '--task', type=one_of(list(evaluations())), metavar='NAME',
        help=f'one of {", ".join(evaluations())}; default: a table of the runs\' results')
    add('--last', action='store_true', help='only the model after the last task')
    add('--data', default='', help='ave: AVE\'s folder (Annotations.txt, trainSet.txt, …, AVE/*.mp4); otherwise where '
        'the clips of the run lie, if they have moved')
    add('--video', type=Path, metavar='FILE',
        help='localization: a video to read, of at most ten minutes; it is written into RUN/eval with the attention of '
             'each model')
    add('--out', type=Path, help='the video to write; default RUN/eval/localization-FILE.mp4')
    add('--finetune', action='store_true', help='classification, ave: train the backbone too')
    add('--clips', type=number(int, min=1), help='classification, ave: maximum number of training clips per task')
    add('--epochs', type=number(int, min=1), help='classification, ave: default 15 (Table 6)')
    add('--batch-size', type=number(int, min=1), help='classification, ave: default 48, AudioSet 36, AVE 12 (Table 6)')
    add('--lr', type=number(float, over=0), help='classification, ave: default 5e-4, AVE 1e-3 (Table 6)')
    add('--seed', type=number(int, min=0, max=2 ** 32 - 1), default=0, help='seed of the heads')
    add('--workers', type=number(int, min=-1, max=1000), default=-1,
        help='data loader processes; -1: one per available core but one, none for shapes')
    add('--device', default='', help='cuda or cpu; default: cuda if available')
    return parser


def unused_options(args):
    """A sentence for each option that has no effect here"""
    head_options = ['finetune', 'clips', 'epochs', 'batch_size', 'lr', 'seed']
    unused = [] if args.eval in ('classification', 'ave') else head_options
    unused += [] if args.video else ['out']
    what = f'--eval {args.eval}' if args.eval else 'the table of runs'
    return [f'{flag_name(name)} has no effect on {what}' for name in unused if getattr(args, name)]


def print_runs(paths):
    """A table of the finished runs among these folders. Writes the report of each run."""
    from downstream.finished_run import FinishedRun
    from downstream.report import write_report
    from paper.groups import summary
    print(summary(paths))                              # names what is left out
    for path in paths:
        try:
            print(*write_report(FinishedRun(path, device='cpu').folder), sep='\n')
        except UserError:                              # `runs/*` may hold other files
            continue
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):        # the run of another user
                raise
            print(f'{path}: its report cannot be written ({error.strerror})')


def main(arguments=None):
    """With --eval: RUN/eval/NAME.json, .md and .png. Without: a table of runs, mean ± standard deviation over seeds."""
    with cli_errors():
        import matplotlib.pyplot as plt                # not above: training evaluates too, and needs no pictures
        from downstream.finished_run import FinishedRun
        from downstream.report import write_report
        args = make_parser().parse_args(arguments)
        if args.video and args.eval != 'localization':
            raise UserError('--video needs --eval localization')
        for line in unused_options(args):
            print(line)
        if not args.eval:
            print_runs(args.runs)
            return
        for path in args.runs:
            moved = Path(args.data) if args.data and args.eval != 'ave' else None
            run = FinishedRun(path, args.workers, args.device, args.last, moved)
            check_writable(run.folder / 'eval')
            if args.video:
                print(write_video(run, args), *write_report(run.folder), sep='\n')
                continue
            results, table, figure = run_evaluation(run, args.eval, args)
            suffix = '-finetuned' if results.get('finetune') else ''
            print(table, *run.write(args.eval + suffix, results, table, figure), sep='\n')
            plt.close(figure)
            print(*write_report(run.folder), sep='\n')


if __name__ == '__main__':
    main()
