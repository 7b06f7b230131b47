"""Where the model looks for the source of a sound (Fig. 2, 3, 12, 16, 17; §3.2, App. E, I, J).

In:  the models of a run, one after each task, and the retrieval clips of its stream.
Out: four maps a clip, of one number a patch; and where the source is known (shapes), how well they find it.

    I_a, I_v             Eq. 2, 3: what the AVM attends to              Fig. 2, 3, 12 (e), 16, 17
    cosine_a, cosine_v   patches of one modality · mean of the other    Fig. 12 (b)-(d)

`localization` follows these maps over the stream, `spurious` swaps one modality for that of another task's clip. The paper
shows such maps for chosen clips; with the source known they can be measured over all.
"""
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from figures import MARKERS, OKABE_ITO
from maps import show_frames, show_sound
from model import UserError, take
from shapes import truth
from steps import score, whole


# ---------------------------------------------------------------------------------------- maps

class Maps(NamedTuple):
    """One number a patch: the higher, the more the source is held to be there."""
    I_a: torch.Tensor        # B,M   sums to 1
    I_v: torch.Tensor        # B,N   sums to 1
    cosine_a: torch.Tensor   # B,M   in [-1, 1]
    cosine_v: torch.Tensor   # B,N


def tokens(backbone, o_a, o_v, at_a, at_v):
    """The tokens whose means are c_a and c_v of Eq. 9: `AudioVideoMAE.pool` up to the mean.
    o_a (B, M, D), o_v (B, N, D) at positions at_a (B, M), at_v (B, N) → (B, M, D), (B, N, D)"""
    a, v = o_a + take(backbone.fusion_pos_a, at_a), o_v + take(backbone.fusion_pos_v, at_v)
    for block in backbone.fusion:
        a, v = block.forward_a(a), block.forward_v(v)
    return backbone.norm_a(a), backbone.norm_v(v)


@torch.no_grad()
def maps(cfg, backbone, avm, batch):
    """batch: audio (B, t, f), video (B, T, 3, H, W) uint8 → Maps

    The cosine maps are App. E's, after CAV-MAE: "cosine similarity between each video patch and averaged audio embedding",
    and the same the other way.
    """
    patches = whole(batch, cfg.patch_size)
    s = score(cfg, backbone, avm, patches)
    a, v = tokens(backbone, s.o_a, s.o_v, patches.kept_a, patches.kept_v)
    c_a, c_v = a.mean(1, keepdim=True), v.mean(1, keepdim=True)              # B,1,D
    return Maps(s.importance_a, s.importance_v, F.cosine_similarity(a, c_v, dim=-1), F.cosine_similarity(v, c_a, dim=-1))


# ------------------------------------------------------------------------------------ measures
# Of a map (B, n) and its truth (B, n) bool, neither empty nor full in any row → (B,). For video, n counts the patches of
# all frames together, as Eq. 3 does.

def auc(m, truth):
    """ROC-AUC: of all pairs of a true and a false patch, the share in which the true one has more; a tie is half a pair."""
    pairs = truth[:, :, None] & ~truth[:, None, :]                           # B,n,n
    wins, ties = ((compare(m[:, :, None], m[:, None, :]) & pairs).sum((1, 2)) for compare in (torch.gt, torch.eq))
    return (wins + ties / 2) / pairs.sum((1, 2))


def share(I, truth):
    """Σ of I over the true patches, in percent: how much of the attention is on the source."""
    return 100 * (I * truth).sum(1) / I.sum(1)


def pointing(m, truth):
    """100 where the top patch is on the source, else 0. A tie counts against the model: a constant map must not score."""
    best = lambda where: m.masked_fill(~where, -torch.inf).amax(1)
    return 100 * (best(truth) > best(~truth)).double()


MEASURES = {'avm': (auc, share, pointing), 'backbone': (auc, pointing)}      # cosines do not add up to 1, so have no share


def measure(which, map_a, map_v, truth_a, truth_v):
    """{'auc_v': (clips,), …} by MEASURES[which]. A modality without a source, or with nothing else, is left out of its own."""
    measured = {}
    for modality, m, true in (('v', map_v, truth_v), ('a', map_a, truth_a)):
        scored = true.any(1) & ~true.all(1)
        for function in MEASURES[which]:
            measured[f'{function.__name__}_{modality}'] = function(m[scored], true[scored])
    return measured


def means(parts):
    """Per-clip measures of several batches [{'auc_v': (clips,), …}] → {'auc_v': mean over all their clips, or None of none}"""
    whole_task = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]} if parts else {}
    return {name: values.mean().item() if len(values) else None for name, values in whole_task.items()}


# --------------------------------------------------------------------------------------- clips

def sources(dataset, cfg):
    """truth_a (clips, M), truth_v (clips, N) of a data set that knows its scenes, else None, None"""
    if not hasattr(dataset, 'scene'):
        return None, None
    true = [truth(dataset.scene(index), cfg) for index in range(len(dataset))]
    return torch.stack([a for a, _ in true]), torch.stack([v for _, v in true])


def area(true):
    """Percent of the patches that are the source's, over the clips that are measured: what share and pointing are by chance."""
    scored = true.any(1) & ~true.all(1)
    return 100 * true[scored].double().mean().item() if scored.any() else None


def batches(run, dataset, indices):
    """Batches of these clips without those that could not be read, on the run's device."""
    keys = [(index, 0) for index in indices]
    for batch in DataLoader(dataset, run.cfg.batch_size, sampler=keys, num_workers=run.workers, generator=torch.Generator()):
        good = torch.tensor([not reason for reason in batch.pop('bad')])
        if good.any():
            yield {name: value[good].to(run.device) for name, value in batch.items() if torch.is_tensor(value)}


def alone(x, row):
    """A row of a batch, on the CPU. A copy: a view would be written to disk with the whole batch behind it."""
    return None if x is None else x[row].cpu().clone()


def shown(dataset):
    """The clips of a task that are kept with their maps: the first and the last, mostly of different classes."""
    return sorted({0, len(dataset) - 1})


# ------------------------------------------------------------------- over the stream: Fig. 2, 12, 17

def look(run, backbone, avm, dataset, true_a, true_v):
    """One model on one task's clips → {'avm': {measure: mean}, 'backbone': {…}}, and what is kept of `shown` clips:
    {index: (audio, frames, Maps of this clip)}. Where the truth is not known, only those are looked at."""
    parts, kept = {which: [] for which in MEASURES}, {}
    for batch in batches(run, dataset, shown(dataset) if true_a is None else range(len(dataset))):
        m = Maps(*(x.float().cpu() for x in maps(run.cfg, backbone, avm, batch)))
        clip = batch['clip'].cpu()
        if true_a is not None:
            parts['avm'].append(measure('avm', m.I_a, m.I_v, true_a[clip], true_v[clip]))
            parts['backbone'].append(measure('backbone', m.cosine_a, m.cosine_v, true_a[clip], true_v[clip]))
        for row, index in enumerate(clip.tolist()):
            if index in shown(dataset):
                kept[index] = alone(batch['audio'], row), alone(batch['video'], row), Maps(*(alone(x, row) for x in m))
    return {which: means(part) for which, part in parts.items()}, kept


def localization(run, args):
    """Every model on every task's clips. → results, table, figure

    results      {tasks, after, avm: {auc_v, auc_a, share_v, …: [model][task]}, backbone: {…}, chance: {area_v, area_a: [task]}},
                 without the last three where no source is known; AUC in 0 … 1, the rest in percent
    RUN/eval/localization.pt   two clips a task and their maps by every model
    """
    models = run.models()
    tests, names = run.stream.test, run.stream.names
    true = [sources(dataset, run.cfg) for dataset in tests]
    results = {'tasks': list(names), 'after': [name for _, name, _ in models]}
    rows, clips = [], {}
    with tqdm(total=len(models) * len(tests), desc='localization', unit='task', leave=False, disable=None) as bar:
        for _, _, file in models:
            backbone, avm = run.load(file)
            rows.append([])
            for task, dataset in enumerate(tests):
                means_of_task, kept = look(run, backbone, avm, dataset, *true[task])
                rows[-1].append(means_of_task)
                for index, (audio, frames, m) in kept.items():
                    a, v = (alone(t, index) for t in true[task])
                    clip = clips.setdefault((task, index), dict(task=task, clip=index, frames=frames, audio=audio,
                                                                truth_a=a, truth_v=v, maps=[]))
                    clip['maps'].append(m)
                bar.update()
    clips = [clip | Maps(*map(torch.stack, zip(*clip.pop('maps'))))._asdict() for clip in clips.values()]
    save(run, 'localization', dict(results, clips=clips))
    if true[0][0] is None:
        return results, UNKNOWN, pictures(run.cfg, clips, names)

    for which in MEASURES:
        results[which] = {name: [[cell[which].get(name) for cell in row] for row in rows] for name in rows[0][0][which]}
    results['chance'] = {f'area_{x}': [area(task[k]) for task in true] for x, k in (('v', 1), ('a', 0))}
    return results, table(results, [t for t, _, _ in models]), over_stream(results)


def save(run, name, record):
    """RUN/eval/name.pt: tensors and plain values"""
    torch.save(record, run.place(name, 'pt'))


UNKNOWN = 'The sources in these clips are not known, so nothing is measured: see the picture beside this file.'
SYMBOLS = {('avm', 'v'): '$I_v$', ('avm', 'a'): '$I_a$',
           ('backbone', 'v'): 'cosine of frames', ('backbone', 'a'): 'cosine of sound'}
TITLES = {'auc': 'ROC-AUC', 'share': 'attention on the source, %', 'pointing': 'top patch on the source, %'}


def mean(values):
    """The mean of what is there; None of nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def number(value, digits):
    return '–' if value is None else f'{value:.{digits}f}'


def row_of_table(which, measured, values, chance):
    """A line of Markdown: what was measured with which map, the values, their drop, and chance."""
    name, modality = measured.split('_')
    digits = 3 if name == 'auc' else 1
    first, last = values
    drop = None if None in values else first - last
    cells = [number(value, digits) for value in (first, last, drop, 0.5 if name == 'auc' else chance[f'area_{modality}'])]
    return f'| {SYMBOLS[which, modality].replace("$", "")}: {TITLES[name]} | ' + ' | '.join(cells) + ' |'


def table(results, steps):
    """Markdown: each measure's mean over the tasks learned so far, right after each one's own training and at the end.

    steps: how many tasks each model has learned. "Right after" needs every one of these models; Multitask has none.
    """
    T = steps[-1] or len(results['tasks'])                                   # tasks learned; all of them for an untrained model
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
                axis.plot(range(len(line)) if many else [i], line, label=task, color=OKABE_ITO[i % 8], marker=MARKERS[i % 8])
            chance = 0.5 if name == 'auc' else mean(results['chance'][f'area_{modality}'])
            axis.axhline(float('nan') if chance is None else chance, color='gray', linestyle='--', linewidth=1.2, label='chance')
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
    return overlays(cfg, [(names[task], clip) for task, clip in one_each.items()],
                    [('$I_v$', 'I_v'), ('cosine of frames', 'cosine_v')], [('$I_a$', 'I_a'), ('cosine of sound', 'cosine_a')],
                    'Where the AVM looks, and where the backbone\'s cosine is high')


def overlays(cfg, rows, columns_v, columns_a, title):
    """A picture with a row a clip: frames, maps over frames, spectrogram, maps of the spectrogram's patches.

    rows     [(label, clip)], clip: frames (T, 3, H, W), audio (t, f), truth_a, truth_v or None, and maps (M,), (N,)
    columns  [(title, name of the map in clip)]
    """
    widths = [cfg.num_frames] * (1 + len(columns_v)) + [1.8] * (1 + len(columns_a))
    figure, axes = plt.subplots(len(rows), len(widths), squeeze=False, layout='constrained', width_ratios=widths,
                                figsize=(1.4 * sum(widths) + 1, 1.55 * len(rows) + 0.8))
    for row, (label, clip) in zip(axes, rows):
        seen, heard = row[:1 + len(columns_v)], row[1 + len(columns_v):]
        show_frames(seen[0], cfg, clip['frames'])
        show_sound(heard[0], cfg, clip['audio'])
        for axis, (_, name) in zip(seen[1:], columns_v):
            show_frames(axis, cfg, clip['frames'], clip[name], clip['truth_v'])
        for axis, (_, name) in zip(heard[1:], columns_a):
            show_sound(axis, cfg, clip['audio'], clip[name], clip['truth_a'])
        seen[0].set_ylabel(label, fontsize=9)
    above = ['frames', *(name for name, _ in columns_v), 'sound: time →, frequency ↑', *(name for name, _ in columns_a)]
    for axis, name in zip(axes[0], above):
        axis.set_title(name, fontsize=9)
    known = any(clip['truth_v'] is not None for _, clip in rows)
    figure.suptitle(f'{title}. Each map from its least (dark) to its greatest (bright)'
                    + ('; white: the true source' if known else ''), fontsize=10)
    return figure


# ---------------------------------------------------------------------- spurious: Fig. 3, 16

class Pairs(Dataset):
    """The clips of one task, beside each a clip of another task, whose audio or video is to take its own's place.

    The paper pairs with past data, and does not say with which; here clip j meets clip j of each of the other tasks in turn,
    the first that of the task before (the first task's, that of the last).
    """

    def __init__(self, tests, task):
        self.tests, self.task = tests, task

    def __len__(self):
        return len(self.tests[self.task])

    def partner(self, index):
        """→ (other task, clip of it)"""
        other = (self.task - 1 - index % (len(self.tests) - 1)) % len(self.tests)
        return other, index % len(self.tests[other])

    def __getitem__(self, key):
        index, seed = key
        other_task, other_clip = self.partner(index)
        own, other = self.tests[self.task][index, seed], self.tests[other_task][other_clip, seed]
        return dict(audio=own['audio'], video=own['video'], clip=own['clip'], other_audio=other['audio'],
                    other_video=other['video'], other_task=other_task, bad=own['bad'] or other['bad'])


def swapped(cfg, backbone, avm, batch):
    """I_a (B, M), I_v (B, N) of a batch of `Pairs` as they belong together, then I_a under the other's video and I_v under the
    other's audio."""
    with_own = score(cfg, backbone, avm, whole(batch, cfg.patch_size))
    other_audio = score(cfg, backbone, avm, whole(batch | {'audio': batch['other_audio']}, cfg.patch_size))
    other_video = score(cfg, backbone, avm, whole(batch | {'video': batch['other_video']}, cfg.patch_size))
    return tuple(x.float().cpu() for x in (with_own.importance_a, with_own.importance_v,
                                           other_video.importance_a, other_audio.importance_v))


def spurious(run, args):
    """How the last model's attention moves when one modality is another task's (§3.2, App. J). → results, table, figure

    results            {tasks, after, avm: {auc_v: {own, other}, …}, chance: {area_v, area_a}}, the last two on shapes only
    RUN/eval/spurious.pt   one clip a task with its maps under its own and under the other
    Raises UserError for a stream of one task.
    """
    tests, names = run.stream.test, run.stream.names
    if len(tests) < 2:
        raise UserError('spurious attention compares clips of two tasks, and this stream has one')
    _, after, file = run.models()[-1]
    backbone, avm = run.load(file)
    true = [sources(dataset, run.cfg) for dataset in tests]
    own, other, clips = [], [], []
    for task in tqdm(range(len(tests)), desc='spurious attention', unit='task', leave=False, disable=None):
        pairs = Pairs(tests, task)
        for part, batch in enumerate(batches(run, pairs, [0] if true[task][0] is None else range(len(pairs)))):
            I_a, I_v, I_a_other, I_v_other = swapped(run.cfg, backbone, avm, batch)
            a, v = (None if t is None else t[batch['clip'].cpu()] for t in true[task])
            if a is not None:
                own.append(measure('avm', I_a, I_v, a, v))
                other.append(measure('avm', I_a_other, I_v_other, a, v))
            if part == 0:
                first = dict(frames=batch['video'], audio=batch['audio'], other_frames=batch['other_video'],
                             other_audio=batch['other_audio'], truth_a=a, truth_v=v, I_a=I_a, I_v=I_v,
                             I_a_other=I_a_other, I_v_other=I_v_other)
                clips.append(dict(task=task, other_task=batch['other_task'][0].item(),
                                  **{name: alone(x, 0) for name, x in first.items()}))
    results = {'tasks': list(names), 'after': after}
    save(run, 'spurious', dict(results, clips=clips))
    labels = [f'{names[clip["task"]]}\nwith {names[clip["other_task"]]}' for clip in clips]
    figure = overlays(run.cfg, list(zip(labels, clips)),
                      [('$I_v$, own sound', 'I_v'), ('$I_v$, the other\'s sound', 'I_v_other')],
                      [('$I_a$, own frames', 'I_a'), ('$I_a$, the other\'s frames', 'I_a_other')],
                      f'Attention within a pair and across tasks (model: {after})')
    if not own:
        return results, UNKNOWN, figure

    with_own, with_other = means(own), means(other)
    results['avm'] = {name: {'own': with_own[name], 'other': with_other[name]} for name in with_own}
    results['chance'] = {f'area_{x}': area(torch.cat([task[k] for task in true])) for x, k in (('v', 1), ('a', 0))}
    lines = [f'| all tasks; model: {after} | with its own | with another task\'s | drop | chance |', '| --- ' * 5 + '|']
    lines += [row_of_table('avm', name, tuple(of.values()), results['chance']) for name, of in results['avm'].items()]
    return results, '\n'.join(lines), figure
