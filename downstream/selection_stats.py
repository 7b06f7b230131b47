"""How much of the source does each selection keep? Is P higher for past pairs of the same class? (ours)

In:  the models of a run, one after each task, and the retrieval clips of its stream, whose sources are known (shapes).
Out: for each selection, the percentage of source patches that it keeps; ρ is chance. P of Eq. 5 on and off the source,
     and by the past pair's class: the same class, the same task, or another task.

The past pair of a clip is a random clip of the tasks learned so far, as if from a full memory. Without a known source
there are only pictures: I, P and the selected patches of one clip per task.
"""
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch

from avm import attend
from config import SELECTIONS, UserError
from downstream.maps import UNKNOWN, add_maps, make_batch, mean, mean_or_none, measurable, read_clips, source_area
from downstream.maps import sources, to_device
from downstream.multi_model import run_models
from downstream.pictures import BESIDE, display_name, plot_maps, task_style
from patches import patchify
from selection import discriminative_query, prune_probability, select_patches
from utils.checkpoint import read_checkpoint, save_atomically
from utils.markdown import format_number, markdown_table

ATTENTION_SELECTIONS = [name for name in SELECTIONS if name not in ('random', 'mats')]
MODALITIES = {'v': 'frames', 'a': 'sound'}
PARTNERS = ('same class', 'same task', 'other task')           # of the past pair; each without the ones before it


def evaluate(run, args):
    """What each selection keeps of each task's clips, for every model → results. Without a known source, only tasks and
    after.

    results   {tasks, after, chance: {selected_v, selected_a, area_v, area_a}, selected_v, selected_a: {selection:
              [model][task]}, P: {on_v, beside_v, on_a, beside_a, and each of PARTNERS: [model][task]}}. Percent; P is
              in [0, 1]. A model that has learned no task has no past and is left out
    """
    cfg, tests = run.cfg, run.stream.retrieval
    source = [sources(dataset, cfg) for dataset in tests]
    if source[0][0] is None:
        model = run.models()[-1]
        results = {'tasks': list(run.stream.names), 'after': [model[1]]}
        save_atomically(dict(results, clips=clips_with_selection(run, model)), run.eval_path('selection', 'pt'))
        return results

    def attend_clips(model, task, batch):
        return attend_batch(cfg, model, to_device(batch, run.device))

    models = [model for model in run.models() if model[0] > 0]
    if not models:
        raise UserError(f'{run.folder}: no task has been learned yet')
    outputs = run_models(run, models, tests, attend_clips, 'selection')
    classes = [[labels[0] for labels in dataset.labels] for dataset in tests]
    rows = [[task_statistics(cfg, attention, source[task], classes, task, learned) for task in range(len(tests))]
            for attention, (learned, _, _) in zip(outputs, models)]

    results = dict(tasks=list(run.stream.names), after=[name for _, name, _ in models])
    for part in ('P', 'selected_v', 'selected_a'):
        results[part] = {name: [[cell[part][name] for cell in row] for row in rows] for name in rows[0][0][part]}
    results['chance'] = {
        'selected_v': 100 * cfg.rho_v, 'selected_a': 100 * cfg.rho_a,
        'area_v': mean([source_area(v) for _, v in source]), 'area_a': mean([source_area(a) for a, _ in source])}
    return results


def with_selection(cfg, name):
    """The options with another selection, and with audio in chunks of time. A copy, because `replace` refuses a
    selection that the run's method lacks."""
    cfg = copy.copy(cfg)
    cfg.selection, cfg.audio_selection = name, 'time'
    return cfg


def attend_batch(cfg, model, batch):
    """→ I_a (B, M), I_v (B, N), k_a (B, H, M, d), k_v, and q̂_a, q̂_v (B, H, d) of Eq. 4, on the CPU"""
    out = attend(cfg, *model, patchify(batch, cfg.patch_size))
    query_a = discriminative_query(out.I_a, out.q_a, cfg.kappa_a)
    query_v = discriminative_query(out.I_v, out.q_v, cfg.kappa_v)
    tensors = out.I_a, out.I_v, out.k_a, out.k_v, query_a, query_v
    return tuple(x.float().cpu() for x in tensors)


def clips_with_selection(run, model):
    """The first clip of each task, as `read_clips` returns them, with I, P and FLAVA's selection. Its past pair is the
    first clip of the task before; or of the last task."""
    cfg = with_selection(run.cfg, 'both')
    clips = read_clips(run.stream.retrieval, cfg, [(task, 0) for task in range(len(run.stream.retrieval))])
    I_a, I_v, k_a, k_v, query_a, query_v = attend_batch(cfg, run.load_model(model[2]), make_batch(clips, run.device))
    P_a = prune_probability(I_a, k_a, query_v, query_v.roll(1, 0), cfg.kappa_a)
    P_v = prune_probability(I_v, k_v, query_a, query_a.roll(1, 0), cfg.kappa_v)
    torch.manual_seed(0)
    ids_a, ids_v = select_patches(cfg, I_a, I_v, P_a, P_v)
    add_maps(clips, dict(I_a=I_a, P_a=P_a, selected_a=torch.zeros_like(I_a).scatter(1, ids_a, 1),
                         I_v=I_v, P_v=P_v, selected_v=torch.zeros_like(I_v).scatter(1, ids_v, 1)))
    return clips


def task_statistics(cfg, attention, source, classes, task, learned):
    """One model, which has learned so many tasks, on one task's clips → {selected_v, selected_a: {selection: percent},
    P: {…: mean}}.  attention[task]: of `attend_batch`; source: of this task; classes[task]: of each clip"""
    I_a, I_v, k_a, k_v, query_a, query_v = attention[task]
    source_a, source_v = source
    result = {'P': {}, 'selected_a': {}, 'selected_v': {}}

    # draw a past pair for each clip, with replacement; the same ones for every run
    torch.manual_seed(task)
    past = [(i, label) for i in range(learned) for label in classes[i]]
    drawn = torch.randint(len(past), (len(I_a),))
    past_a, past_v = (torch.cat([own[k] for own in attention[:learned]])[drawn] for k in (4, 5))       # q̂ᵖ: n,H,d
    P_a = prune_probability(I_a, k_a, query_v, past_v, cfg.kappa_a)
    P_v = prune_probability(I_v, k_v, query_a, past_a, cfg.kappa_v)

    # the share of the source that each selection keeps
    for name in ATTENTION_SELECTIONS:
        ids_a, ids_v = select_patches(with_selection(cfg, name), I_a, I_v, P_a, P_v)
        result['selected_a'][name] = coverage(ids_a, source_a)
        result['selected_v'][name] = coverage(ids_v, source_v)

    # P on and off the source, and by the past pair
    for x, I, P, own, kappa in (('a', I_a, P_a, source_a, cfg.kappa_a), ('v', I_v, P_v, source_v, cfg.kappa_v)):
        result['P'][f'on_{x}'], result['P'][f'beside_{x}'] = mean_on_and_off(I, P, own, kappa)
    P = (P_a.sum(1) / (P_a > 0).sum(1) + P_v.sum(1) / (P_v > 0).sum(1)) / 2      # over the patches that have a P
    for kind, rows in partner_kinds(classes[task], task, [past[row] for row in drawn]).items():
        result['P'][kind] = mean_or_none(P[rows])
    return result


def coverage(ids, source):
    """Percent of the source's patches that are selected, the mean over measurable clips.  ids (n, κ), source (n, M)"""
    selected, rows = torch.zeros_like(source).scatter(1, ids, True), measurable(source)
    share = (selected & source).sum(1) / source.sum(1)
    return 100 * share[rows].double().mean().item() if rows.any() else None


def mean_on_and_off(I, P, source, kappa):
    """→ the mean P on the source and off it, over the κ most important patches. Eq. 5 sets P = 0 elsewhere."""
    top = torch.zeros_like(source).scatter(1, I.topk(kappa, dim=1).indices, True)
    return mean_or_none(P[top & source]), mean_or_none(P[top & ~source])


def partner_kinds(classes, task, partners):
    """→ {each of PARTNERS: (n,) bool, the clips with such a past pair}

    classes: of the n clips of a task; partners: [(task, class)] of their past pairs
    """
    same_class = torch.tensor([other == own for own, (_, other) in zip(classes, partners)])
    same_task = torch.tensor([other_task == task for other_task, _ in partners])
    return dict(zip(PARTNERS, (same_class, same_task & ~same_class, ~same_task & ~same_class)))


# ------------------------------------------------------------------------------- table and figure

def report(run, results):
    """results of `evaluate` → Markdown table of the last model, figure"""
    if 'P' not in results:                                     # no known source
        clips = read_checkpoint(run.eval_path('selection', 'pt'))['clips']
        rows = [(results['tasks'][clip['task']], clip) for clip in clips]
        columns_v, columns_a = ([(f'$I_{x}$', f'I_{x}'), (f'$P_{x}$', f'P_{x}'), ('selected', f'selected_{x}')]
                                for x in MODALITIES)
        return UNKNOWN, plot_maps(run.cfg, rows, columns_v, columns_a,
                                  f'Importance, pruning probability, selected patches (model: {results["after"][-1]})')
    chance, P = results['chance'], {name: format_number(mean(matrix[-1]), 3) for name, matrix in results['P'].items()}
    rows = [[name, *(format_number(mean(results[f'selected_{x}'][name][-1]), 1) for x in MODALITIES)]
            for name in results['selected_v']]
    rows.append(['chance', *(format_number(chance[f'selected_{x}'], 1) for x in MODALITIES)])
    table = markdown_table([f'source patches selected, %; model: {results["after"][-1]}', *MODALITIES.values()], rows)
    table += (f'\n\nP on and off the source: frames {P["on_v"]}, {P["beside_v"]}; sound {P["on_a"]}, {P["beside_a"]}. '
              'By the past pair: ' + ', '.join(f'{kind} {P[kind]}' for kind in PARTNERS) + '.')

    # the share of the source that each selection keeps over the stream, mean over all tasks' clips
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    for axis, (x, title) in zip(axes, MODALITIES.items()):
        for i, (name, matrix) in enumerate(results[f'selected_{x}'].items()):
            axis.plot(np.array([mean(row) for row in matrix], float), label=name, **task_style(i))
        axis.axhline(chance[f'selected_{x}'], color='gray', linestyle='--', linewidth=1, label='chance')
        axis.set_xticks(range(len(results['after'])), map(display_name, results['after']), rotation=30)
        axis.set(title=title, xlabel='after learning')
        axis.grid(alpha=0.25)
    axes[0].set_ylabel('source patches selected, %')
    axes[1].legend(title='selection', **BESIDE)
    return table, figure
