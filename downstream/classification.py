"""Classification (§5.2, App. B; Table 4, Fig. 11): a linear probe over the classes of all tasks, after each task.

In:  the models of a run, one after each task; all tasks' training clips, and each task's whole test split.
Out: acc[t][i] in percent: accuracy, or mAP for clips with several labels, on task i by the model after t tasks.
"""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from config import UserError
from downstream.heads import (new_probe, normed_joint_tokens, options_text, predict, probe_batches, schedule_for,
                              spec_augment, train_probes)
from downstream.maps import mean, to_device
from downstream.multi_model import group_models
from downstream.pictures import BESIDE, plot_over_stream
from streams.common import ConcatClips
from streams.loading import Loader
from utils.markdown import format_number, markdown_table, table_over_stream


def evaluate(run, args):
    """A linear probe of the model after each task → results. Raises UserError.

    results  metric ('accuracy' or 'mAP'), tasks, after; acc[t][i] in percent; chance of each task; finetune, options;
             left_out: clips that cannot be read

    One head covers the classes of all tasks, because the evaluation uses no task boundaries (§5.1, App. B, N38). It
    trains on all tasks' clips, so tasks that the backbone has not learned yet are measured too.
    """
    stream, models = run.stream, [model for model in run.models() if model[0] > 0]
    if not models:
        raise UserError(f'{run.folder}: no task has been learned yet')
    labels = [names for dataset in (*stream.train, *stream.test) for names in dataset.labels]
    multi_label = run.cfg.dataset == 'audioset' or any(len(names) != 1 for names in labels)

    # Frozen backbones share each decoded clip. A fine-tuned one needs the memory for itself.
    groups = [[model] for model in models] if args.finetune else group_models(run, models)
    scores, left_out = [], set()
    for group in groups:
        rows, bad = probe_models(run, group, multi_label, args)
        scores += rows
        left_out.update(bad)

    return dict(metric='mAP' if multi_label else 'accuracy', tasks=stream.names, after=[name for _, name, _ in models],
                acc=[[task['metric'] for task in row] for row in scores], finetune=args.finetune,
                options=options_text(args), chance=[task['chance'] for task in scores[-1]],
                left_out=sorted(left_out))


def report(run, results):
    """results of `evaluate`, with A and F (§5.1) → Markdown table in the form of Table 4, figure"""
    kind = 'fine-tuned' if results['finetune'] else 'linear head on the frozen backbone'
    summary = [[run.cfg.method, format_number(results['A'], 2), format_number(results['F'], 2)],
               ['chance', format_number(mean(results['chance']), 2), '–']]
    tables = [f'{results["metric"]} in percent, {kind}, one for all tasks',
              markdown_table(['method', f'{results["metric"]} A ↑', f'{results["metric"]} F ↓'], summary),
              table_over_stream(results['acc'], results, 2)]

    # each task over the stream, as in Fig. 11 (b)
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout='constrained')
    plot_over_stream(axis, results['acc'], results['tasks'], results['after'], mean(results['chance']))
    axis.set(ylim=(0, None), ylabel=f'{results["metric"]} in %', title=f'Classification: {run.cfg.method}, {kind}')
    axis.legend(title='task', **BESIDE)
    return '\n\n'.join(tables), figure


# ------------------------------------------------------------------------------ heads and scores

def probe_models(run, models, multi_label, args):
    """Train a head for each model on the same batches, and test it on each task → [model][task]: what `task_scores`
    returns; clips left out. With args.finetune the backbones train too. Raises UserError.

    The loss is cross-entropy; for clips with several labels, binary cross-entropy per class.
    """
    stream, clips, schedule = run.stream, ConcatClips(run.stream.train), schedule_for(run.cfg.dataset, args)
    classes = [name for names in stream.classes for name in names]                             # C of them
    target = multi_hot(clips.labels, classes)                                                  # clips,C
    probes = [new_probe(run, file, len(classes), joint_embedding, args) for _, _, file in models]

    def prepare(batch):                                        # SpecAugment is drawn once for all probes
        moved = to_device(batch, run.device)
        return dict(audio=spec_augment(moved['audio']), video=moved['video'],
                    target=target[batch['clip']].to(run.device))

    def loss_fn(logits, batch):
        loss = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
        return loss(logits, batch['target'])

    # train
    keys = probe_batches([len(dataset) for dataset in stream.train], schedule, args.seed, args.clips)
    loader = Loader(clips, keys, run.workers, pin=run.device.type == 'cuda')
    train_probes(probes, map(prepare, loader), len(keys), schedule, loss_fn)

    # test
    outputs, bad = predict(run, probes, stream.test, schedule.batch_size, 'clip')
    targets = [multi_hot(dataset.labels, classes) for dataset in stream.test]
    return [[task_scores(logits, own[clip], multi_label) for (logits, clip), own in zip(row, targets)]
            for row in outputs], bad


def joint_embedding(backbone, batch):
    """The means of both modalities' joint tokens, audio first.  audio (B, t, f), video (B, T, 3, H, W) → (B, 2D)"""
    joint_a, joint_v = normed_joint_tokens(backbone, batch['audio'], batch['video'])
    return torch.cat([joint_a.float().mean(1), joint_v.float().mean(1)], 1)


def multi_hot(labels, classes):
    """labels: a tuple of names per clip → (n, C) of 0 and 1. Names that are not among the classes are ignored."""
    column = {name: c for c, name in enumerate(classes)}
    target = torch.zeros(len(labels), len(classes))
    for row, names in zip(target, labels):
        row[[column[name] for name in names if name in column]] = 1
    return target


def task_scores(logits, target, multi_label):
    """Scores on one task's clips, in percent.  logits, target (n, C) → {metric; chance}

    mAP is the mean of the average precision over the classes that have a clip.
    """
    if multi_label:
        present = target.any(0)
        logits, target = logits[:, present], target[:, present]
        precision = average_precision_score(target.numpy(), logits.numpy())
        return dict(metric=100 * float(precision), chance=100 * target.mean().item())
    right = (logits.argmax(1) == target.argmax(1)) & logits.isfinite().all(1)
    return dict(metric=100 * right.double().mean().item(), chance=100 / target.shape[1])
