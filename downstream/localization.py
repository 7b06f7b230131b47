"""Where the model looks for the source of a sound, over the stream (Fig. 2, 12, 17; §3.2, App. E, I).

In:  the models of a run, one after each task, and the retrieval clips of its stream.
Out: four maps per clip (`downstream/maps.py`). With a known source (shapes), also how well they find it.
"""
import matplotlib.pyplot as plt
import torch

from downstream.maps import METRICS, SYMBOLS, TITLES, UNKNOWN, ClipSubset, Maps, compute_maps, copy_row, load_record
from downstream.maps import mean, mean_scores, metric_row, score_maps, source_area, sources, to_device
from downstream.markdown import markdown_table
from downstream.multi_model import group_models, run_models
from downstream.pictures import BESIDE, plot_maps, plot_over_stream


def evaluate(run, args):
    """All models on all tasks' clips → results. Raises UserError.

    results   {tasks, after, avm: {auc_v, auc_a, share_v, …: [model][task]}, backbone: {…},
              chance: {area_v, area_a: [task]}}. AUC is in [0, 1], all else in percent. Without a known source, only
              tasks and after
    RUN/eval/localization.pt   the first and the last clip of each task, with the maps of all models
    """
    models, tests, names = run.models(), run.stream.test, run.stream.names
    source = [sources(dataset, run.cfg) for dataset in tests]
    known = source[0][0] is not None
    saved_indices = [sorted({0, len(dataset) - 1}) for dataset in tests]
    clips = {}                                                 # (task, index) → a saved clip with its maps

    def score_batch(model, task, batch):
        m = Maps(*(x.float().cpu() for x in compute_maps(run.cfg, *model, to_device(batch, run.device))))
        source_a, source_v = source[task]
        # save two clips of the task
        for row, index in enumerate(batch['clip'].tolist()):
            if index in saved_indices[task]:
                clip = clips.setdefault((task, index), dict(
                    task=task, clip=index, frames=copy_row(batch['video'], row), audio=copy_row(batch['audio'], row),
                    truth_a=copy_row(source_a, index), truth_v=copy_row(source_v, index), maps=[]))
                clip['maps'].append([copy_row(x, row) for x in m])
        if not known:
            return {}
        source_a, source_v = source_a[batch['clip']], source_v[batch['clip']]
        return {'avm': score_maps('avm', m.I_a, m.I_v, source_a, source_v),
                'backbone': score_maps('backbone', m.cosine_a, m.cosine_v, source_a, source_v)}

    # without a known source, only the saved clips are read
    datasets = tests if known else [ClipSubset(*pair) for pair in zip(tests, saved_indices)]
    rows = []
    for group in group_models(run, models):
        loaded = [run.load_model(file) for _, _, file in group]
        rows += run_models(run, datasets, run.cfg.batch_size, loaded, score_batch, 'localization')[0]

    # save the clips: each map is (models, patches)
    results = {'tasks': list(names), 'after': [name for _, name, _ in models]}
    for clip in clips.values():
        clip |= Maps(*map(torch.stack, zip(*clip.pop('maps'))))._asdict()
    torch.save(dict(results, clips=list(clips.values())), run.eval_path('localization', 'pt'))
    if not known:
        return results

    # the mean over each task's clips
    for which in METRICS:
        cells = [[mean_scores([batch[which] for batch in batches]) for batches in row] for row in rows]
        results[which] = {name: [[cell.get(name) for cell in row] for row in cells] for name in cells[0][0]}
    results['chance'] = {'area_v': [source_area(v) for _, v in source], 'area_a': [source_area(a) for a, _ in source]}
    return results


def report(run, results):
    """results of `evaluate` → Markdown table, figure. Without a known source, the figure shows the saved maps."""
    if 'avm' not in results:
        return UNKNOWN, plot_saved_maps(run.cfg, load_record(run, 'localization')['clips'], results['tasks'])
    return table(results, [t for t, _, _ in run.models()]), plot_metrics(results)


def table(results, tasks_learned):
    """Markdown: each metric's mean over the tasks learned, right after each task's own training and at the end.

    tasks_learned: the number of tasks that each model has learned. "Right after" needs a model after every task.
    Multitask has none.
    """
    T = tasks_learned[-1] or len(results['tasks'])             # an untrained model is measured on all tasks
    complete = set(range(1, T + 1)) <= set(tasks_learned)
    chance = {name: mean(values[:T]) for name, values in results['chance'].items()}
    rows = []
    for which in METRICS:
        for name, matrix in results[which].items():
            right_after = mean(matrix[tasks_learned.index(i + 1)][i] for i in range(T)) if complete else None
            rows.append(metric_row(which, name, right_after, mean(matrix[-1][:T]), chance))
    return markdown_table([f'mean over {T} tasks', 'right after its own task', 'at the end', 'drop', 'chance'], rows)


def plot_metrics(results):
    """Fig. 2 and 17 as lines: AUC and pointing game of each map over the stream, one line per task"""
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.6), sharex=True, sharey='row', layout='constrained')
    for column, (which, modality) in enumerate(SYMBOLS):
        for axis, metric in zip(axes[:, column], ('auc', 'pointing')):
            plot_over_stream(axis, results[which][f'{metric}_{modality}'], results['tasks'], results['after'])
            chance = 0.5 if metric == 'auc' else mean(results['chance'][f'area_{modality}'])
            if chance is not None:
                axis.axhline(chance, color='gray', linestyle='--', linewidth=1.2, label='chance')
        axes[0, column].set(title=SYMBOLS[which, modality], xlabel='')
    axes[0, 0].set_ylabel(TITLES['auc'])
    axes[1, 0].set_ylabel(TITLES['pointing'])
    axes[0, -1].legend(title='clips of task', **BESIDE)
    figure.suptitle('How well each map finds the source')
    return figure


def plot_saved_maps(cfg, clips, names):
    """Fig. 12: importance and cosine maps of the last model, for the last saved clip of each task."""
    rows = {clip['task']: (names[clip['task']], clip | {name: clip[name][-1] for name in Maps._fields})
            for clip in clips}
    columns_v = [(SYMBOLS['avm', 'v'], 'I_v'), (SYMBOLS['backbone', 'v'], 'cosine_v')]
    columns_a = [(SYMBOLS['avm', 'a'], 'I_a'), (SYMBOLS['backbone', 'a'], 'cosine_a')]
    return plot_maps(cfg, list(rows.values()), columns_v, columns_a, 'Importance of the AVM and cosine of the backbone')
