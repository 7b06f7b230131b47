"""Classification (§5.2, App. B; Table 4, Fig. 11): does a linear head tell all tasks' classes apart, and how long?

In:  the models of a run, one after each task; all tasks' training clips, and the whole of each one's test split.
Out: acc[t][i] in percent: accuracy, or mAP where clips have several labels, of task i by the model after t tasks.
"""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from config import autocast
from downstream.heads import draw_batches, joint_embedding, learn, loader_of, masked, new_probe
from downstream.heads import options, predict, recipe
from downstream.pictures import look
from downstream.together import groups
from patches import UserError, normalize_frames
from streams.common import Union


def measure(run, args):
    """All tasks, by one head on the model after each task → results. Raises UserError.

    results  metric ('accuracy' or 'mAP'), tasks, after; acc[t][i] in percent; chance of each task; top5 {acc}, unless
             clips have several labels; finetune, options; left_out: clips that could not be read

    One head over the classes of all tasks, trained on all tasks' clips, and asked task by task: no task border is used
    in estimating performance (§5.1), and App. B speaks of one head. So tasks that are not learned yet are asked too.
    """
    stream, plan = run.stream, recipe(run.cfg.dataset, args)
    models = [model for model in run.models() if model[0] > 0]
    if not models:
        raise UserError(f'{run.folder}: no task has been learned yet')
    several = run.cfg.dataset == 'audioset' or any(
        len(labels) != 1 for dataset in (*stream.train, *stream.evaluate) for labels in dataset.labels)
    # Frozen backbones share each clip; one that learns has gradients and moments too, and so the memory for itself.
    found, left_out = [], set()
    for group in [[model] for model in models] if args.finetune else groups(run, models):
        rows, bad = probe(run, group, plan, several, args)
        found += rows
        left_out.update(bad)
    results = dict(metric='mAP' if several else 'accuracy', tasks=stream.names, after=[name for _, name, _ in models],
                   acc=[[task['metric'] for task in row] for row in found], finetune=args.finetune,
                   options=options(args), chance=[task['chance'] for task in found[-1]],
                   left_out=sorted(left_out))
    return results if several else results | {'top5': {'acc': [[task['top5'] for task in row] for row in found]}}


def show(run, results):
    """→ Markdown table, figure.  results: those of `measure`, with A and F (§5.1) beside each acc"""
    return table(run.cfg.method, results), picture(run.cfg.method, results)


# ---------------------------------------------------------------------------- a head, and its score

def probe(run, models, plan, several, args):
    """Train a head on each of the models, for all tasks' classes and from the same clips, and ask it task by task.

    → [model][task] {metric: accuracy or mAP; top5, but not where clips have several labels; chance: of the metric, by
    guessing; all in percent}; clips left out. With args.finetune, the backbones learn too. Raises UserError.
    """
    stream, clips = run.stream, Union(run.stream.train)
    classes = [name for names in stream.classes for name in names]                 # C of them
    target = multi_hot(clips.labels, classes)                                      # clips,C
    probes = [new_probe(run, model, len(classes), args) for model in models]

    def logits_of(probe, batch):                               # B,C
        audio, video = batch['audio'].to(run.device), normalize_frames(batch['video'].to(run.device))
        with autocast(run.device):
            x = joint_embedding(probe.backbone, audio, video)
        return probe.head(x)                                   # in float32

    def prepared(batch):
        return dict(audio=masked(batch['audio'].to(run.device)), video=batch['video'].to(run.device),
                    target=target[batch['clip']].to(run.device))

    def loss_of(probe, batch):
        logits, own = logits_of(probe, batch), batch['target']
        return head_loss(logits, own, several), own.gather(1, logits.argmax(1, keepdim=True)).mean().item()

    batches = draw_batches([len(dataset) for dataset in stream.train], plan, args.seed, args.clips)
    learn(probes, loader_of(run, clips, batches), plan, prepared, loss_of, f'{len(probes)} × {probes[-1].title}')
    found, bad = predict(run, probes, stream.evaluate, stream.names, logits_of, plan.batch_size, 'clip')
    truth = [multi_hot(dataset.labels, classes) for dataset in stream.evaluate]
    return [[score(logits, own[shown], several) for (logits, shown), own in zip(row, truth)] for row in found], bad


def score(logits, truth, several):
    """What a task's clips say of a head, in percent.  logits, truth (n, C) → {metric, top5, chance}"""
    if several:
        there = truth[:, truth.any(0)]
        return dict(metric=mean_average_precision(logits, truth), chance=100 * there.mean().item())   # about
    return dict(metric=accuracy(logits, truth), top5=accuracy(logits, truth, min(5, truth.shape[1])),
                chance=100 / truth.shape[1])


def multi_hot(labels, classes):
    """labels: a tuple of names per clip → (n, C) of 0 and 1. Names that are not among the classes do not count."""
    column = {name: c for c, name in enumerate(classes)}
    target = torch.zeros(len(labels), len(classes))
    for row, names in zip(target, labels):
        row[[column[name] for name in names if name in column]] = 1
    return target


def head_loss(logits, target, several):
    """logits, target (B, C) → cross-entropy; or, where clips have several labels, a binary one for each class"""
    return F.binary_cross_entropy_with_logits(logits, target) if several else F.cross_entropy(logits, target)


def accuracy(logits, target, k=1):
    """Percent of clips whose class is among the k highest.  logits, target (n, C). A tie, or NaN, counts against the
    model."""
    own = logits.gather(1, target.argmax(1, keepdim=True))                       # n,1
    return 100 * ((~(logits < own)).sum(1) <= k).double().mean().item()


def mean_average_precision(logits, target):
    """mAP in percent: the mean of the average precision over the classes that have a clip.  logits, target (n, C)"""
    there = [c for c in range(target.shape[1]) if target[:, c].any()]
    return 100 * sum(average_precision_score(target[:, c].numpy(), logits[:, c].numpy()) for c in there) / len(there)


# ------------------------------------------------------------------------------- table and picture

def table(method, results):
    """Markdown: a row in the form of Table 4 (with the top-5 accuracy, which Table 4 lacks), and acc[t][i] below."""
    parts = [(results['metric'], results)] + ([('top-5 accuracy', results['top5'])] if 'top5' in results else [])
    how = 'fine-tuned' if results['finetune'] else 'linear head on the frozen backbone'
    number = lambda x: '–' if x is None else f'{x:.2f}'
    cells = [number(part[which]) for _, part in parts for which in 'AF']
    lines = [f'{results["metric"]} in percent, {how}, one for all tasks', '',
             '| method | ' + ' | '.join(f'{name} A ↑ | {name} F ↓' for name, _ in parts) + ' |',
             '| --- ' * (1 + 2 * len(parts)) + '|',
             f'| {method} | ' + ' | '.join(cells) + ' |', '',
             '| after learning | ' + ' | '.join(results['tasks']) + ' |', '| --- ' * (1 + len(results['tasks'])) + '|']
    lines += [f'| {after} | ' + ' | '.join(map(number, row)) + ' |'
              for after, row in zip(results['after'], results['acc'])]
    return '\n'.join(lines)


def picture(method, results):
    """Each task over the stream, as Fig. 11 (b) has it, with a large marker where it is learned: forgetting falls."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout='constrained')
    for i, name in enumerate(results['tasks']):
        line = [row[i] for row in results['acc']]
        axis.plot(line, label=name, **look(i))
        if name in results['after']:
            learned = results['after'].index(name)
            axis.plot(learned, line[learned], markersize=10, **look(i))
    chance = results['chance']
    axis.axhline(sum(chance) / len(chance), color='gray', linestyle='--', linewidth=1, label='chance (mean)')
    axis.set_xticks(range(len(results['after'])), results['after'], rotation=20)
    axis.set_ylim(0, None)
    axis.set_xlabel('after learning')
    axis.set_ylabel(f'{results["metric"]} in %')
    axis.grid(alpha=0.25)
    axis.legend(title='task', fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))
    axis.set_title(f'Classification over the stream: {method}' + (', fine-tuned' if results['finetune'] else ''))
    return figure
