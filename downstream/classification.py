"""Classification (§5.2, App. B; Table 4, Fig. 11): a linear probe over the classes of all tasks, after each task.

In:  the models of a run, one after each task; all tasks' training clips, and each task's whole test split.
Out: acc[t][i] in percent: accuracy, or mAP for clips with several labels, on task i by the model after t tasks.
"""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from config import UserError
from downstream.heads import given_options, joint_embedding, new_probe, predict, probe_batches, schedule_for
from downstream.heads import spec_augment, train_probes
from downstream.markdown import markdown_table, number
from downstream.multi_model import group_models
from downstream.pictures import BESIDE, plot_over_stream
from patches import normalize_frames
from streams.common import ConcatClips
from streams.loading import Loader
from utils.distributed import autocast


def evaluate(run, args):
    """A linear probe of the model after each task → results. Raises UserError.

    results  metric ('accuracy' or 'mAP'), tasks, after; acc[t][i] in percent; chance of each task; top5 {acc}, unless
             clips have several labels; finetune, options; left_out: clips that cannot be read

    One head covers the classes of all tasks, because the evaluation uses no task boundaries (§5.1, App. B). It trains
    on all tasks' clips, so tasks that the backbone has not learned yet are measured too.
    """
    stream, schedule = run.stream, schedule_for(run.cfg.dataset, args)
    models = [model for model in run.models() if model[0] > 0]
    if not models:
        raise UserError(f'{run.folder}: no task has been learned yet')
    labels = [names for dataset in (*stream.train, *stream.evaluate) for names in dataset.labels]
    multi_label = run.cfg.dataset == 'audioset' or any(len(names) != 1 for names in labels)

    # Frozen backbones share each decoded clip. A fine-tuned one needs the memory for itself.
    groups = [[model] for model in models] if args.finetune else group_models(run, models)
    scores, left_out = [], set()
    for group in groups:
        rows, bad = probe_models(run, group, schedule, multi_label, args)
        scores += rows
        left_out.update(bad)

    results = dict(metric='mAP' if multi_label else 'accuracy', tasks=stream.names,
                   after=[name for _, name, _ in models],
                   acc=[[task['metric'] for task in row] for row in scores], finetune=args.finetune,
                   options=given_options(args), chance=[task['chance'] for task in scores[-1]],
                   left_out=sorted(left_out))
    if not multi_label:
        results['top5'] = {'acc': [[task['top5'] for task in row] for row in scores]}
    return results


def report(run, results):
    """results of `evaluate`, with A and F (§5.1) of each acc → Markdown table, figure"""
    return table(run.cfg.method, results), plot(run.cfg.method, results)


# ---------------------------------------------------------------------------- one head and its score

def probe_models(run, models, schedule, multi_label, args):
    """Train a head for each model on the same batches, and test it on each task.

    → [model][task] {metric: accuracy or mAP; top5, unless clips have several labels; chance level of the metric}, in
    percent; clips left out. With args.finetune the backbones train too. Raises UserError.
    """
    stream, clips = run.stream, ConcatClips(run.stream.train)
    classes = [name for names in stream.classes for name in names]                             # C of them
    target = multi_hot(clips.labels, classes)                                                  # clips,C
    probes = [new_probe(run, model, len(classes), args) for model in models]

    def logits_fn(probe, batch):                               # B,C
        audio, video = batch['audio'].to(run.device), normalize_frames(batch['video'].to(run.device))
        with autocast(run.device):
            x = joint_embedding(probe.backbone, audio, video)
        return probe.head(x)                                   # in float32

    def prepare(batch):
        return dict(audio=spec_augment(batch['audio'].to(run.device)), video=batch['video'].to(run.device),
                    target=target[batch['clip']].to(run.device))

    def loss_fn(probe, batch):
        logits, own = logits_fn(probe, batch), batch['target']
        return probe_loss(logits, own, multi_label), own.gather(1, logits.argmax(1, keepdim=True)).mean().item()

    # train
    batches = probe_batches([len(dataset) for dataset in stream.train], schedule, args.seed, args.clips)
    loader = Loader(clips, batches, run.workers, pin=run.device.type == 'cuda')
    train_probes(probes, loader, schedule, prepare, loss_fn, f'{len(probes)} × {probes[-1].title}')

    # test
    outputs, bad = predict(run, probes, stream.evaluate, stream.names, logits_fn, schedule.batch_size, 'clip')
    targets = [multi_hot(dataset.labels, classes) for dataset in stream.evaluate]
    scores = [[task_scores(logits, own[clip], multi_label) for (logits, clip), own in zip(row, targets)]
              for row in outputs]
    return scores, bad


def task_scores(logits, target, multi_label):
    """Scores on one task's clips, in percent.  logits, target (n, C) → {metric, top5, chance}"""
    if multi_label:
        present = target[:, target.any(0)]
        return dict(metric=mean_average_precision(logits, target), chance=100 * present.mean().item())   # about
    return dict(metric=accuracy(logits, target), top5=accuracy(logits, target, min(5, target.shape[1])),
                chance=100 / target.shape[1])


def multi_hot(labels, classes):
    """labels: a tuple of names per clip → (n, C) of 0 and 1. Names that are not among the classes are ignored."""
    column = {name: c for c, name in enumerate(classes)}
    target = torch.zeros(len(labels), len(classes))
    for row, names in zip(target, labels):
        row[[column[name] for name in names if name in column]] = 1
    return target


def probe_loss(logits, target, multi_label):
    """logits, target (B, C) → cross-entropy; for clips with several labels, binary cross-entropy per class"""
    return F.binary_cross_entropy_with_logits(logits, target) if multi_label else F.cross_entropy(logits, target)


def accuracy(logits, target, k=1):
    """Top-k accuracy in percent.  logits, target (n, C). Ties and NaN count as wrong (scikit-learn counts ties as
    right)."""
    own = logits.gather(1, target.argmax(1, keepdim=True))                       # n,1
    return 100 * ((~(logits < own)).sum(1) <= k).double().mean().item()


def mean_average_precision(logits, target):
    """mAP in percent: the mean of the average precision over the classes that have a clip.  logits, target (n, C)"""
    present = target.any(0)
    return 100 * float(average_precision_score(target[:, present].numpy(), logits[:, present].numpy()))


# ------------------------------------------------------------------------------- table and figure

def table(method, results):
    """Markdown: a row in the form of Table 4 (with top-5 accuracy, which Table 4 lacks), and acc[t][i] below"""
    parts = {results['metric']: results}
    if 'top5' in results:
        parts['top-5 accuracy'] = results['top5']
    kind = 'fine-tuned' if results['finetune'] else 'linear head on the frozen backbone'
    header = ['method', *(f'{name} {cell}' for name in parts for cell in ('A ↑', 'F ↓'))]
    summary = [method, *(number(part[key], 2) for part in parts.values() for key in 'AF')]
    rows = [[after, *(number(value, 2) for value in row)] for after, row in zip(results['after'], results['acc'])]
    return '\n\n'.join([f'{results["metric"]} in percent, {kind}, one for all tasks', markdown_table(header, [summary]),
                        markdown_table(['after learning', *results['tasks']], rows)])


def plot(method, results):
    """Each task over the stream, as in Fig. 11 (b)"""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout='constrained')
    plot_over_stream(axis, results['acc'], results['tasks'], results['after'])
    chance = results['chance']
    axis.axhline(sum(chance) / len(chance), color='gray', linestyle='--', linewidth=1, label='chance (mean)')
    axis.set(ylim=(0, None), ylabel=f'{results["metric"]} in %')
    axis.legend(title='task', **BESIDE)
    axis.set_title(f'Classification over the stream: {method}' + (', fine-tuned' if results['finetune'] else ''))
    return figure
