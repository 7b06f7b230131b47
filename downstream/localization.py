"""Where the model looks for the source of a sound, over the stream (Fig. 2, 12, 17; §3.2, App. E, I).

In:  the models of a run, one after each task, and the retrieval clips of its stream.
Out: four maps a clip (`downstream/maps.py`); and where the source is known (shapes), how well they find it.
"""
import matplotlib.pyplot as plt
import torch

from downstream.maps import MEASURES, SYMBOLS, TITLES, UNKNOWN, Maps, Some, alone, area, maps, mean, means, moved
from downstream.maps import row_of_table, save, saved, scored, sources
from downstream.pictures import look, overlays
from downstream.together import groups, in_one_pass


def measure(run, args):
    """Every model on every task's clips → results. Raises UserError.

    results   {tasks, after, avm: {auc_v, auc_a, share_v, …: [model][task]}, backbone: {…},
              chance: {area_v, area_a: [task]}}, without the last three where no source is known; AUC in 0 … 1, the rest
              in percent
    RUN/eval/localization.pt   two clips a task and their maps by every model
    """
    models, tests, names = run.models(), run.stream.test, run.stream.names
    true = [sources(dataset, run.cfg) for dataset in tests]
    rows, clips = [], {}
    for group in groups(run, models):
        for row, kept in watch(run, group, true):
            rows.append(row)
            for (task, index), (audio, frames, m) in kept.items():
                a, v = (alone(t, index) for t in true[task])
                clip = clips.setdefault((task, index), dict(task=task, clip=index, frames=frames, audio=audio,
                                                            truth_a=a, truth_v=v, maps=[]))
                clip['maps'].append(m)
    results = {'tasks': list(names), 'after': [name for _, name, _ in models]}
    clips = [clip | Maps(*map(torch.stack, zip(*clip.pop('maps'))))._asdict() for clip in clips.values()]
    save(run, 'localization', dict(results, clips=clips))
    if true[0][0] is None:
        return results
    for which in MEASURES:
        results[which] = {name: [[cell[which].get(name) for cell in row] for row in rows] for name in rows[0][0][which]}
    return results | {'chance': {f'area_{x}': [area(task[k]) for task in true] for x, k in (('v', 1), ('a', 0))}}


def show(run, results):
    """→ Markdown table, figure.  results: those of `measure`; without a known source, the maps that it has left are
    drawn instead"""
    if 'avm' not in results:
        return UNKNOWN, pictures(run.cfg, saved(run, 'localization')['clips'], results['tasks'])
    return table(results, [t for t, _, _ in run.models()]), over_stream(results)


def shown(dataset):
    """The clips of a task that are kept with their maps: the first and the last, mostly of different classes."""
    return sorted({0, len(dataset) - 1})


def watch(run, models, true):
    """The models on every task's clips → of each model its row, [task] {'avm': {measure: mean}, 'backbone': {…}}, and
    what is kept of `shown` clips: {(task, index): (audio, frames, Maps of this clip)}.

    true[task]: truth_a (clips, M), truth_v (clips, N); where they are None, not known, only the `shown` clips are read
    """
    tests = run.stream.test
    to_read = [Some(dataset, shown(dataset)) if a is None else dataset for dataset, (a, _) in zip(tests, true)]

    def watch_batch(model, task, batch):
        m = Maps(*(x.float().cpu() for x in maps(run.cfg, *model, moved(batch, run.device))))
        return measured(m, batch['clip'], *true[task]), kept_of(m, batch, shown(tests[task]))

    found, _ = in_one_pass(run, to_read, run.cfg.batch_size, [run.load(file) for _, _, file in models], watch_batch,
                           'localization')
    for by_task in found:
        row = [{which: means([part[which] for part, _ in batches if which in part]) for which in MEASURES}
               for batches in by_task]
        yield row, {(task, index): clip for task, batches in enumerate(by_task)
                    for _, kept in batches for index, clip in kept.items()}


def measured(m, clip, true_a, true_v):
    """Maps m of the clips number `clip` (B,) → {'avm': {measure: (B,)}, 'backbone': …}; {} where no source is known"""
    if true_a is None:
        return {}
    return {'avm': scored('avm', m.I_a, m.I_v, true_a[clip], true_v[clip]),
            'backbone': scored('backbone', m.cosine_a, m.cosine_v, true_a[clip], true_v[clip])}


def kept_of(m, batch, indices):
    """Of a batch and its Maps m the clips that are among the indices: {index: (audio, frames, Maps of this clip)}"""
    return {index: (alone(batch['audio'], row), alone(batch['video'], row), Maps(*(alone(x, row) for x in m)))
            for row, index in enumerate(batch['clip'].tolist()) if index in indices}


# ------------------------------------------------------------------------------- table and picture

def table(results, steps):
    """Markdown: each measure's mean over the tasks learned so far, right after each one's own training and at the end.

    steps: how many tasks each model has learned. "Right after" needs every one of these models; Multitask has none.
    """
    T = steps[-1] or len(results['tasks'])                           # tasks learned; all of them for an untrained model
    complete = set(range(1, T + 1)) <= set(steps)
    chance = {name: mean(values[:T]) for name, values in results['chance'].items()}
    lines = [f'| mean over {T} tasks | right after its own task | at the end | drop | chance |', '| --- ' * 5 + '|']
    for which in MEASURES:
        for name, of in results[which].items():
            own = mean(of[steps.index(i + 1)][i] for i in range(T)) if complete else None
            lines.append(row_of_table(which, name, (own, mean(of[-1][:T])), chance))
    return '\n'.join(lines)


def over_stream(results):
    """Fig. 2 and 17 as lines: AUC and pointing of each map, a line a task, over the stream. With one model, points."""
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.6), sharex=True, sharey='row', layout='constrained')
    after, tasks = results['after'], results['tasks']
    many = len(after) > 1
    for column, (which, modality) in enumerate(SYMBOLS):
        for axis, name in zip(axes[:, column], ('auc', 'pointing')):
            matrix = results[which][f'{name}_{modality}']
            for i, task in enumerate(tasks):
                line = [float('nan') if row[i] is None else row[i] for row in matrix]
                axis.plot(range(len(line)) if many else [i], line, label=task, **look(i))
            chance = 0.5 if name == 'auc' else mean(results['chance'][f'area_{modality}'])
            axis.axhline(float('nan') if chance is None else chance, color='gray', linestyle='--', linewidth=1.2,
                         label='chance')
            axis.grid(alpha=0.25)
        axes[0, column].set_title(SYMBOLS[which, modality])
        ticks = after if many else tasks
        axes[1, column].set_xticks(range(len(ticks)), ticks, rotation=40, ha='right', fontsize=8)
        axes[1, column].set_xlabel('after learning' if many else 'task')
    axes[0, 0].set_ylabel(TITLES['auc'])
    axes[1, 0].set_ylabel(TITLES['pointing'])
    axes[0, -1].legend(title='clips of task', fontsize=8, loc='upper left', bbox_to_anchor=(1.02, 1))
    figure.suptitle('Is the source found?' + ('' if many else f' Model: {after[0]}'))
    return figure


def pictures(cfg, clips, names):
    """Fig. 12: the maps by the last model, AVM and cosine side by side, for one kept clip of each task."""
    one_each = {clip['task']: clip | {name: clip[name][-1] for name in Maps._fields} for clip in clips}
    columns_v, columns_a = ([(SYMBOLS['avm', x], f'I_{x}'), (SYMBOLS['backbone', x], f'cosine_{x}')] for x in 'va')
    return overlays(cfg, [(names[task], clip) for task, clip in one_each.items()], columns_v, columns_a,
                    'Where the AVM looks, and where the backbone\'s cosine is high')
