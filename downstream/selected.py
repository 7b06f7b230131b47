"""How much of the source does each selection take, and does the pruning probability P know the past? Ours.

In:  the models of a run, one after each task, and the retrieval clips of its stream, whose sources are known (shapes).
Out: for each selection of Table 3 the share of the source's patches that it takes, ρ being chance; and what P of Eq. 5
     is on the source and beside it, and before a past pair of the same class, the same task or another.

The past pair of a clip is a clip of a task learned so far, drawn at random, as from a memory that is full.
"""
import dataclasses

import matplotlib.pyplot as plt
import torch

from avm import score
from downstream.maps import UNKNOWN, area, countable, mean, moved, sources
from downstream.pictures import look
from downstream.together import groups, in_one_pass, joined
from patches import UserError, whole
from selection import SELECTIONS, discriminative_query, prune_probability, select

SYMBOLS = {'v': 'frames', 'a': 'sound'}
PARTNERS = ('same class', 'same task', 'other task')           # of the past pair; each without those before it


# ------------------------------------------------------------------- of one model, of one task's clips

def measure(run, args):
    """What is selected by every model of every task's clips → results. Raises UserError where no source is known.

    results   {tasks, after, chance: {selected_v, selected_a, area_v, area_a}, selected_v, selected_a: {selection:
              [model][task]}, P: {on_v, beside_v, on_a, beside_a, and one of each of PARTNERS: [model][task]}}, shares
              in percent, P in 0 … 1; a model that has learned no task has no past, and is left out
    """
    cfg, tests, names = run.cfg, run.stream.test, run.stream.names
    true = [sources(dataset, cfg) for dataset in tests]
    if true[0][0] is None:
        raise UserError(UNKNOWN.split(':')[0] + '; --task selection needs them')
    models, rows = [model for model in run.models() if model[0] > 0], []
    for group in groups(run, models):
        for (t, _, _), by_task in zip(group, attended(run, group)):
            past = Past(by_task[:t], [class_of(dataset) for dataset in tests[:t]])
            rows.append([of_task(cfg, found, true[i], class_of(tests[i]), i, past) for i, found in enumerate(by_task)])
    of = lambda part: {name: [[cell[part].get(name) for cell in row] for row in rows] for name in rows[0][0][part]}
    return dict(tasks=list(names), after=[name for _, name, _ in models], P=of('P'),
                chance={'selected_v': 100 * cfg.rho_v, 'selected_a': 100 * cfg.rho_a,
                        'area_v': mean([area(v) for _, v in true]), 'area_a': mean([area(a) for a, _ in true])},
                **{f'selected_{x}': of(f'selected_{x}') for x in SYMBOLS})


def attended(run, models):
    """[model][task]: of all clips I_a (n, M), I_v (n, N), k_a (n, H, M, d), k_v, and q̂_a, q̂_v (n, H, d) of Eq. 4"""
    def attend(model, task, batch):
        s = score(run.cfg, *model, whole(moved(batch, run.device), run.cfg.patch_size))
        return tuple(x.float().cpu() for x in (
            s.importance_a, s.importance_v, s.k_a, s.k_v,
            discriminative_query(s.importance_a, s.q_a, run.cfg.kappa_a),
            discriminative_query(s.importance_v, s.q_v, run.cfg.kappa_v)))

    loaded = [run.load(file) for _, _, file in models]
    found, bad = in_one_pass(run, run.stream.test, run.cfg.batch_size, loaded, attend, 'selection')
    return joined(found, run.stream.names, bad)


def class_of(dataset):
    return [labels[0] for labels in dataset.labels]


class Past:
    """The clips of the tasks learned so far, of which each clip meets one: q̂ᵖ, its task and its class."""

    def __init__(self, found, classes):
        self.query_a, self.query_v = (torch.cat([of_task[k] for of_task in found]) for k in (4, 5))       # n,H,d
        self.of = [(task, label) for task, labels in enumerate(classes) for label in labels]

    def draw(self, n):
        """n of them, with replacement → q̂ᵖ_a, q̂ᵖ_v (n, H, d), [(task, class)]"""
        drawn = torch.randint(len(self.of), (n,))
        return self.query_a[drawn], self.query_v[drawn], [self.of[index] for index in drawn]


def of_task(cfg, found, true, classes, task, past):
    """One model on one task's clips → {selected_v, selected_a: {selection: percent}, P: {…: mean}}"""
    I_a, I_v, k_a, k_v, query_a, query_v = found
    with torch.random.fork_rng([]):
        torch.manual_seed(task)                                              # the same past and coins for every run
        past_a, past_v, of = past.draw(len(I_a))
        P = {'a': prune_probability(I_a, k_a, query_v, past_v, cfg.kappa_a),
             'v': prune_probability(I_v, k_v, query_a, past_a, cfg.kappa_v)}
        result = {'P': {}, 'selected_a': {}, 'selected_v': {}}
        for name in SELECTIONS:
            own = dataclasses.replace(cfg, method='flava', selection=name, audio_selection='time')
            kept_a, kept_v = select(own, I_a, I_v, P['a'], P['v'])
            result['selected_a'][name], result['selected_v'][name] = covered(kept_a, true[0]), covered(kept_v, true[1])
        for x, I, source, kappa in (('a', I_a, true[0], cfg.kappa_a), ('v', I_v, true[1], cfg.kappa_v)):
            result['P'] |= {f'{where}_{x}': value for where, value in on_and_beside(I, P[x], source, kappa).items()}
    most = [P[x].sum(1) / kappa for x, kappa in (('a', cfg.kappa_a), ('v', cfg.kappa_v))]    # P is 0 but for κ patches
    return result | {'P': result['P'] | by_partner((most[0] + most[1]) / 2, classes, task, of)}


def covered(kept, source):
    """Of the source's patches the share that is kept, percent, the mean over clips that have any.  kept (n, κ), source
    (n, patches) bool"""
    taken = torch.zeros_like(source).scatter(1, kept, True)
    counted = countable(source)
    return 100 * ((taken & source).sum(1) / source.sum(1))[counted].double().mean().item() if counted.any() else None


def on_and_beside(I, P, source, kappa):
    """P of the κ most important patches, Eq. 5 leaving the others at 0: its mean on the source and beside it."""
    asked = torch.zeros_like(source).scatter(1, I.topk(kappa, dim=1).indices, True)
    found = {'on': P[asked & source], 'beside': P[asked & ~source]}
    return {where: values.double().mean().item() if len(values) else None for where, values in found.items()}


def by_partner(P, classes, task, of):
    """The mean of each clip's P (n,) by whose pair it met.  classes: of the clips; of: [(task, class)] of their past"""
    kinds = [PARTNERS[0] if theirs == own else PARTNERS[1] if other == task else PARTNERS[2]
             for own, (other, theirs) in zip(classes, of)]
    where = {kind: torch.tensor([one == kind for one in kinds]) for kind in PARTNERS}
    return {kind: P[rows].double().mean().item() if rows.any() else None for kind, rows in where.items()}


# ------------------------------------------------------------------------------- table and picture

def at_the_end(results, name):
    """The last model's row of one line of results, its mean over tasks; None of nothing"""
    return mean(results[name][-1])


def show(run, results):
    """→ Markdown table, figure.  results: those of `measure`"""
    chance = results['chance']
    lines = [f'| source patches selected, %; model: {results["after"][-1]} | frames | sound |', '| --- ' * 3 + '|']
    text = lambda value, digits=1: '–' if value is None else f'{value:.{digits}f}'
    lines += [f'| {name} | ' + ' | '.join(text(at_the_end(results[f'selected_{x}'], name)) for x in SYMBOLS) + ' |'
              for name in SELECTIONS]
    lines += [f'| chance | {chance["selected_v"]:.1f} | {chance["selected_a"]:.1f} |', '']
    P = {name: text(at_the_end(results['P'], name), 3) for name in results['P']}
    lines.append(f'P on the source and beside it: frames {P["on_v"]}, {P["beside_v"]}; sound {P["on_a"]}, '
                 f'{P["beside_a"]}. By the past pair: ' + ', '.join(f'{kind} {P[kind]}' for kind in PARTNERS) + '.')
    return '\n'.join(lines), picture(results)


def picture(results):
    """The share of the source that each selection takes over the stream, mean over all tasks' clips."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    for axis, (x, title) in zip(axes, SYMBOLS.items()):
        for number, (name, rows) in enumerate(results[f'selected_{x}'].items()):
            axis.plot([float('nan') if mean(row) is None else mean(row) for row in rows], label=name, **look(number))
        axis.axhline(results['chance'][f'selected_{x}'], color='gray', linestyle='--', linewidth=1.2, label='chance')
        axis.set_xticks(range(len(results['after'])), results['after'], rotation=30)
        axis.set(title=title, xlabel='after learning')
        axis.grid(alpha=0.25)
    axes[0].set_ylabel('source patches selected, %')
    axes[1].legend(title='selection', fontsize=8, loc='upper left', bbox_to_anchor=(1.02, 1))
    return figure
