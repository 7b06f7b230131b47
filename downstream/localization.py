"""Where the model looks for the source of a sound, over the stream (Fig. 2, 12, 17; §3.2, App. E, I).

In:  the models of a run, one after each task, and the retrieval clips of its stream.
Out: four maps per clip (`downstream/maps.py`). With a known source (shapes), also how well they find it.

The paper uses AVE's clips and the model after VGGSound (App. E). Here: the run's own retrieval clips.
"""
import torch

from downstream.maps import METRICS, SYMBOLS, UNKNOWN, Maps, add_maps, compute_maps, make_batch, mean, metric_row
from downstream.maps import read_clips, score_maps, source_area, sources, to_device
from downstream.multi_model import right_after, run_models
from downstream.pictures import plot_maps
from utils.checkpoint import read_checkpoint, save_atomically
from utils.markdown import markdown_table


def evaluate(run, args):
    """All models on all tasks' clips → results. Raises UserError.

    results   {tasks, after, avm: {auc_v, auc_a, share_v, …: [model][task]}, backbone: {…},
              chance: {area_v, area_a: [task]}}. AUC is in [0, 1], all else in percent. Without a known source, only
              tasks and after
    RUN/eval/localization.pt   the first and the last clip of each task, with the maps of all models
    """
    models, tests = run.models(), run.stream.retrieval
    results = {'tasks': list(run.stream.names), 'after': [name for _, name, _ in models]}
    save_atomically(dict(results, clips=clips_with_maps(run)), run.eval_path('localization', 'pt'))
    source = [sources(dataset, run.cfg) for dataset in tests]
    if source[0][0] is None:
        return results

    def maps_of_batch(model, task, batch):
        return compute_maps(run.cfg, *model, to_device(batch, run.device))

    # each metric's mean over each task's clips
    outputs = run_models(run, models, tests, maps_of_batch, 'localization')
    scores = {'avm': [], 'backbone': []}
    for by_task in outputs:
        pairs = [(Maps(*maps), own) for maps, own in zip(by_task, source)]
        scores['avm'].append([score_maps('avm', maps.I_a, maps.I_v, *own) for maps, own in pairs])
        scores['backbone'].append([score_maps('backbone', maps.cosine_a, maps.cosine_v, *own) for maps, own in pairs])
    for which, rows in scores.items():
        results[which] = {name: [[cell[name] for cell in row] for row in rows] for name in rows[0][0]}
    results['chance'] = {'area_v': [source_area(v) for _, v in source], 'area_a': [source_area(a) for a, _ in source]}
    return results


def clips_with_maps(run):
    """The first and the last clip of each task, as `read_clips` returns them, and each map, (models, patches)"""
    tests = run.stream.retrieval
    places = [(task, index) for task, dataset in enumerate(tests) for index in sorted({0, len(dataset) - 1})]
    clips = read_clips(tests, run.cfg, places)
    batch = make_batch(clips, run.device)
    by_model = [compute_maps(run.cfg, *run.load_model(file), batch) for _, _, file in run.models()]
    add_maps(clips, {name: torch.stack(maps, 1) for name, maps in zip(Maps._fields, zip(*by_model))})
    return clips


def report(run, results):
    """results of `evaluate` → Markdown table, figure"""
    metrics = table(results, [t for t, _, _ in run.models()]) if 'avm' in results else UNKNOWN

    # importance and cosine maps of the last model, for the last saved clip of each task (Fig. 12)
    clips = read_checkpoint(run.eval_path('localization', 'pt'))['clips']
    rows = {clip['task']: (results['tasks'][clip['task']], clip | {name: clip[name][-1] for name in Maps._fields})
            for clip in clips}
    columns_v = [(SYMBOLS['avm', 'v'], 'I_v'), (SYMBOLS['backbone', 'v'], 'cosine_v')]
    columns_a = [(SYMBOLS['avm', 'a'], 'I_a'), (SYMBOLS['backbone', 'a'], 'cosine_a')]
    return metrics, plot_maps(run.cfg, list(rows.values()), columns_v, columns_a,
                              'Importance of the AVM and cosine of the backbone')


def table(results, tasks_learned):
    """Markdown: each metric's mean over the tasks learned, right after each task's own training and at the end.

    tasks_learned: the number of tasks that each model has learned
    """
    T = tasks_learned[-1] or len(results['tasks'])             # an untrained model is measured on all tasks
    chance = {name: mean(values[:T]) for name, values in results['chance'].items()}
    rows = [metric_row(which, name, mean(right_after(matrix, tasks_learned) or []), mean(matrix[-1][:T]), chance)
            for which in METRICS for name, matrix in results[which].items()]
    return markdown_table([f'mean over {T} tasks', 'right after its own task', 'at the end', 'drop', 'chance'], rows)
