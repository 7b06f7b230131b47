"""Classification heads on a trained backbone (§5.2, App. B, E; Tables 4, 6 and 8, Figure 11).

In:  a recorded run.
Out: how well a linear head tells a task's classes apart from what the backbone makes of a clip (`classification`), and the
     event in each second of AVE's videos (`events`): results, a Markdown table and a figure.

A head sees the *joint* embedding, that is after E_f on both modalities together and `norm`; retrieval compares another one,
in which each modality is alone.
"""
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import nn
from torch.utils.data import DataLoader
from torchaudio.transforms import FrequencyMasking, TimeMasking
from tqdm import tqdm

import datasets
import eval as evaluation
from data import AUDIO_MEAN, AUDIO_STD, AVE_SECONDS, normalize_frames, window_of_second
from figures import MARKERS, OKABE_ITO
from lists import AVE_LAYOUT
from model import UserError, all_positions, patchify_a, patchify_v


# ------------------------------------------------------------------------- the schedule of Table 6

class Recipe(NamedTuple):
    lr: float
    epochs: int
    batch_size: int


RECIPES = {'vggsound': Recipe(5e-4, 15, 48), 'shapes': Recipe(5e-4, 15, 48), 'audioset': Recipe(5e-4, 15, 36),
           'ave': Recipe(1e-3, 15, 12)}


def recipe(name, args):
    """Table 6's numbers for a data set, and instead of them what the user gives. Raises UserError."""
    given = {field: getattr(args, field) for field in Recipe._fields if getattr(args, field) is not None}
    if any(value <= 0 for value in given.values()) or (args.clips is not None and args.clips < 1):
        raise UserError('--lr, --epochs, --batch-size and --clips must be above 0')
    return RECIPES[name]._replace(**given)


def options(args):
    """What was not as in Table 6, as words of the command line: "--clips 300 --lr 0.005"; mostly ''"""
    given = {name: getattr(args, name) for name in ('clips', *Recipe._fields) if getattr(args, name) is not None}
    return ' '.join(f'--{name.replace("_", "-")} {value}' for name, value in given.items())


def rate(step, steps, warmup):
    """The share of the learning rate at a step (from 0): linear warm-up, then a half cosine down towards 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def draw_batches(clips, plan, seed, cap=None):
    """All batches of all epochs: a list of lists of (clip, seed of its augmentation), from `cap` of the clips at most.

    A task smaller than a batch trains on the smaller batch; an incomplete last batch of an epoch is dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(clips, generator=generator)[:cap]
    size, batches = min(plan.batch_size, len(chosen)), []
    for _ in range(plan.epochs):
        order = chosen[torch.randperm(len(chosen), generator=generator)].tolist()
        seeds = torch.randint(2 ** 62, (len(chosen),), generator=generator).tolist()
        keys = list(zip(order, seeds))
        batches += [keys[start:start + size] for start in range(0, len(keys) - size + 1, size)]
    return batches


def learn(parameters, loader, plan, loss_of, title):
    """Steps along a loader of all epochs' batches. loss_of(batch) → loss (a scalar), share of right answers in [0, 1].

    AdamW, cosine decay, two warm-up epochs, or a fifth of all where the user asks for fewer than ten. Raises UserError.
    """
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, betas=(0.95, 0.999), weight_decay=5e-6)
    warmup = round(len(loader) / plan.epochs * min(2, plan.epochs / 5))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, len(loader), warmup))
    with tqdm(total=len(loader), desc=title, unit='step', leave=False, disable=None) as bar:
        for batch in loader:
            loss, right = loss_of(batch)
            if not torch.isfinite(loss):
                raise UserError(f'{title}, step {bar.n}: the loss is {loss.item()}; try a smaller --lr')
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f'loss {loss.item():.3f}, {100 * right:.0f} % right', refresh=False)
            bar.update()


def loader_of(run, dataset, batches):
    return DataLoader(dataset, batch_sampler=batches, num_workers=run.workers, pin_memory=run.device.type == 'cuda',
                      generator=torch.Generator())      # its own: workers' seeds must not use up the masks' randomness


def autocast(device):
    bf16 = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


# ------------------------------------------------------------------------------- what a head sees

def joint_tokens(backbone, audio, video):
    """audio (B, t, f), video (B, T, 3, H, W), normalized → õ_a (B, M, D), õ_v (B, N, D) after `norm`; nothing is hidden"""
    p = backbone.sizes.patch_size
    x_a, x_v = patchify_a(audio, p), patchify_v(video, p)
    at_a, at_v = all_positions(x_a), all_positions(x_v)
    joint_a, joint_v = backbone.fuse(*backbone.encode(x_a, x_v, at_a, at_v), at_a, at_v)
    return backbone.norm(joint_a), backbone.norm(joint_v)


def joint_embedding(backbone, audio, video):
    """What classification starts from: (B, 2D) float32, the means of both modalities' joint tokens, audio first."""
    joint_a, joint_v = joint_tokens(backbone, audio, video)
    return torch.cat([joint_a.float().mean(1), joint_v.float().mean(1)], 1)


def masked(audio):
    """Time and frequency masking (Table 6), each clip's own.  audio (B, t, f) → (B, t, f)

    The paper does not say how much: as in CAV-MAE, one run of up to 192 frames and one of up to 48 bins. That is of 1024 × 128;
    of a smaller spectrogram, the same shares. CAV-MAE masks with 0 before it normalizes: so that value, normalized, is set.
    """
    t, f = audio.shape[1:]
    nothing = -AUDIO_MEAN / AUDIO_STD
    audio = FrequencyMasking(min(48, 48 * f // 128), iid_masks=True)(audio.mT, nothing)
    return TimeMasking(min(192, 192 * t // 1024), iid_masks=True)(audio, nothing).mT


# --------------------------------------------------------------------------------- classification

def multi_hot(labels, classes):
    """labels: a tuple of names per clip → (n, C) of 0 and 1. Names that are no class of the task do not count."""
    column = {name: c for c, name in enumerate(classes)}
    target = torch.zeros(len(labels), len(classes))
    for row, names in zip(target, labels):
        row[[column[name] for name in names if name in column]] = 1
    return target


def head_loss(logits, target, several):
    """logits, target (B, C) → cross-entropy; or, where clips have several labels, a binary one for each class"""
    return F.binary_cross_entropy_with_logits(logits, target) if several else F.cross_entropy(logits, target)


def accuracy(logits, target, k=1):
    """Percent of clips whose class is among the k highest.  logits, target (n, C). A tie, or NaN, counts against the model."""
    own = logits.gather(1, target.argmax(1, keepdim=True))                       # n,1
    return 100 * ((~(logits < own)).sum(1) <= k).double().mean().item()


def mean_average_precision(logits, target):
    """mAP in percent: the mean of the average precision over the classes that have a clip.  logits, target (n, C)"""
    there = [c for c in range(target.shape[1]) if target[:, c].any()]
    return 100 * sum(average_precision_score(target[:, c].numpy(), logits[:, c].numpy()) for c in there) / len(there)


def model_and_head(run, file, outputs, args):
    """→ backbone, a random linear head, and the parameters that learn: the head's, and with args.finetune all."""
    torch.manual_seed(args.seed)                               # so the heads of all models start alike
    backbone, _ = run.load(file)                               # anew for each head, since fine-tuning changes it
    backbone.requires_grad_(args.finetune)                     # a frozen one records nothing for a backward pass
    head = nn.Linear(2 * run.cfg.embed_dim, outputs).to(run.device)
    return backbone, head, [*head.parameters(), *(backbone.parameters() if args.finetune else [])]


@torch.no_grad()
def predict(run, dataset, logits_of, size, answer, title):
    """Each clip once → logits (n, ...); batch[answer] of all (n, ...); and what could not be read, as "name: reason", which is
    left out. Raises UserError when that is everything."""
    rows, answers, bad = [], [], []
    in_order = [[(i, 0) for i in range(start, min(start + size, len(dataset)))] for start in range(0, len(dataset), size)]
    for batch in tqdm(loader_of(run, dataset, in_order), desc=title, leave=False, disable=None):
        good = torch.tensor([not reason for reason in batch['bad']])
        bad += [reason for reason in batch['bad'] if reason]
        if good.any():
            batch = {name: value[good] for name, value in batch.items() if torch.is_tensor(value)}
            rows.append(logits_of(batch).cpu())
            answers.append(batch[answer])
    if not rows:
        raise UserError(f'{title}: none of the clips can be read: {bad[:3]}')
    return torch.cat(rows), torch.cat(answers), bad


def probe(run, file, i, plan, several, args, title):
    """Train a head on one model for one task, and evaluate it.

    → metric: accuracy or mAP; top5: None where clips have several labels; chance: of the metric, by guessing; all in percent;
    bad: clips left out. With args.finetune, the backbone learns too.
    """
    stream, classes = run.stream, run.stream.classes[i]
    backbone, head, parameters = model_and_head(run, file, len(classes), args)

    def logits_of(batch, augment=lambda audio: audio):
        audio, video = augment(batch['audio'].to(run.device)), normalize_frames(batch['video'].to(run.device))
        with autocast(run.device):
            x = joint_embedding(backbone, audio, video)
        return head(x)                                         # in float32

    target = multi_hot(stream.train[i].labels, classes)

    def loss_of(batch):
        logits, own = logits_of(batch, masked), target[batch['clip']].to(run.device)
        return head_loss(logits, own, several), own.gather(1, logits.argmax(1, keepdim=True)).mean().item()

    batches = draw_batches(len(stream.train[i]), plan, args.seed, args.clips)
    learn(parameters, loader_of(run, stream.train[i], batches), plan, loss_of, title)
    logits, clips, bad = predict(run, stream.evaluate[i], logits_of, plan.batch_size, 'clip', f'{title}: evaluating')
    truth = multi_hot(stream.evaluate[i].labels, classes)[clips]
    if several:
        return dict(metric=mean_average_precision(logits, truth), top5=None, bad=bad,
                    chance=100 * truth[:, truth.any(0)].mean().item())           # a random order's precision, about
    return dict(metric=accuracy(logits, truth), top5=accuracy(logits, truth, min(5, len(classes))), bad=bad,
                chance=100 / len(classes))


def classification(run, args):
    """Table 4 and Fig. 11: accuracy, or mAP where clips have several labels, of each task learned so far, by the model after
    each task.  → results, table, figure. Raises UserError.

    The paper does not say whether one head is trained for all tasks or one for each; here one for each: an mAP of 64 % on
    AudioSet is what the few classes of one task allow.
    """
    stream, plan = run.stream, recipe(run.cfg.dataset, args)
    models = [model for model in run.models() if model[0] > 0]
    if not models:
        raise UserError(f'{run.folder}: no task has been learned yet')
    several = run.cfg.dataset == 'audioset' or any(len(labels) != 1 for dataset in (*stream.train, *stream.evaluate) for labels in dataset.labels)
    tasks, acc, top5, chance, bad = len(stream.names), [], [], [None] * len(stream.names), set()
    for t, after, file in models:
        acc.append([None] * tasks)
        top5.append([None] * tasks)
        for i in range(min(t, tasks)):
            found = probe(run, file, i, plan, several, args, f'{stream.names[i]} after {after}')
            acc[-1][i], top5[-1][i], chance[i] = found['metric'], found['top5'], found['chance']
            bad.update(found['bad'])
    results = dict(metric='mAP' if several else 'accuracy', tasks=stream.names, after=[name for _, name, _ in models],
                   **over_stream(acc), finetune=args.finetune, options=options(args), chance=chance, left_out=sorted(bad))
    if not several:
        results['top5'] = over_stream(top5)
    return results, classification_table(run.cfg.method, results), classification_figure(run.cfg.method, results)


def over_stream(acc):
    """acc[t][i] → with A and F (§5.1) over the tasks that the last model has learned"""
    learned = sum(value is not None for value in acc[-1])
    square = [row[:learned] for row in acc]
    return dict(acc=acc, A=evaluation.average_accuracy(square), F=evaluation.average_forgetting(square))


def number(x):
    return '–' if x is None else f'{x:.2f}'


def classification_table(method, results):
    """Markdown: a row in the form of Table 4 (with the top-5 accuracy, which Table 4 lacks), and acc[t][i] below."""
    parts = [(results['metric'], results)] + ([('top-5 accuracy', results['top5'])] if 'top5' in results else [])
    how = 'fine-tuned' if results['finetune'] else 'linear head on the frozen backbone'
    lines = [f'{results["metric"]} in percent, {how}', '',
             '| method | ' + ' | '.join(f'{name} A ↑ | {name} F ↓' for name, _ in parts) + ' |',
             '| --- ' * (1 + 2 * len(parts)) + '|',
             f'| {method} | ' + ' | '.join(f'{number(part["A"])} | {number(part["F"])}' for _, part in parts) + ' |', '',
             '| after learning | ' + ' | '.join(results['tasks']) + ' |', '| --- ' * (1 + len(results['tasks'])) + '|']
    lines += [f'| {after} | ' + ' | '.join(map(number, row)) + ' |' for after, row in zip(results['after'], results['acc'])]
    return '\n'.join(lines)


def classification_figure(method, results):
    """Each task from when it is learned on, as Fig. 11 (b) has it: forgetting is a line that falls."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout='constrained')
    for i, name in enumerate(results['tasks']):
        line = [(t, row[i]) for t, row in enumerate(results['acc']) if row[i] is not None]
        if line:
            axis.plot(*zip(*line), color=OKABE_ITO[i % 8], marker=MARKERS[i % 8], label=name)
    chance = [value for value in results['chance'] if value is not None]
    axis.axhline(sum(chance) / len(chance), color='gray', linestyle='--', linewidth=1, label='chance (mean)')
    axis.set_xticks(range(len(results['after'])), results['after'], rotation=20)
    axis.set_ylim(0, None)
    axis.set_xlabel('after learning')
    axis.set_ylabel(f'{results["metric"]} in %')
    axis.grid(alpha=0.25)
    axis.legend(title='task', fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))
    axis.set_title(f'Classification over the stream: {method}' + (', fine-tuned' if results['finetune'] else ''))
    return figure


# ------------------------------------------------------------------ audio-visual event localization

def second_embedding(backbone, audio, video, audio_start):
    """What each of AVE's ten seconds looks and sounds like, as joint tokens: the means over the frame of that second and over
    the audio patches of it (App. E; the paper does not say how a second is represented).

    audio (B, W, t, f), video (B, W, T, 3, H, W), normalized; audio_start (B, W), in seconds of the clip, of each window's sound
    returns (B, 10, 2D) float32, audio first. A patch belongs to the second that its middle is in; where a window's sound has
    none in a second (it ends before), the nearest one stands in.
    """
    s, (B, W) = backbone.sizes, audio.shape[:2]
    joint_a, joint_v = joint_tokens(backbone, audio.flatten(0, 1), video.flatten(0, 1))
    steps = joint_a.float().reshape(B, W, *s.grid_a, -1).mean(3)                  # B,W,⌊t/p⌋,D
    frames = joint_v.float().reshape(B, W, s.num_frames, -1, s.embed_dim).mean(3)   # B,W,T,D
    window, frame = torch.tensor(window_of_second(s), device=audio.device).T      # 10 and 10: where each second is seen

    middle = (torch.arange(s.grid_a[0], device=audio.device) + 0.5) * s.patch_size * s.frame_shift / 1000   # ⌊t/p⌋, seconds
    since = audio_start[:, window, None] + middle - torch.arange(AVE_SECONDS, device=audio.device)[:, None]   # B,10,⌊t/p⌋
    heard = (since >= 0) & (since < 1)
    nearest = F.one_hot((since - 0.5).abs().argmin(-1), s.grid_a[0]).bool()
    share = torch.where(heard.any(-1, keepdim=True), heard, nearest).float()
    share = share / share.sum(-1, keepdim=True)
    return torch.cat([(share[..., None] * steps[:, window]).sum(2), frames[:, window, frame]], -1)


def events(run, args):
    """Table 8: the event in each second of AVE's clips, or none, told by a linear head on the last model.

    → results, table, figure. args.data: AVE's folder. Raises UserError.
    """
    if not args.data:
        raise UserError('AVE is needed: --data DIR. ' + AVE_LAYOUT.format(folder='DIR'))
    sets, names = datasets.ave(args.data, run.cfg, workers=run.workers, max_bad=run.cfg.max_bad,
                               cache=Path(run.cfg.cache) / 'checked-clips.json')
    for split in ('train', 'test'):
        if not sets.get(split):
            raise UserError(f'{args.data}/{split}Set.txt is missing, or has no clips that can be used')
    plan, (_, after, file), classes = recipe('ave', args), run.models()[-1], ['background', *names]
    backbone, head, parameters = model_and_head(run, file, len(classes), args)

    def logits_of(batch):                                      # B,10,29
        video = normalize_frames(batch['video'].to(run.device))
        with autocast(run.device):
            x = second_embedding(backbone, batch['audio'].to(run.device), video, batch['audio_start'].to(run.device))
        return head(x)

    def loss_of(batch):
        logits, target = logits_of(batch).flatten(0, 1), batch['target'].to(run.device).flatten()
        return F.cross_entropy(logits, target), (logits.argmax(1) == target).double().mean().item()

    batches = draw_batches(len(sets['train']), plan, args.seed, args.clips)
    learn(parameters, loader_of(run, sets['train'], batches), plan, loss_of, f'AVE after {after}')
    logits, target, bad = predict(run, sets['test'], logits_of, plan.batch_size, 'target', 'AVE: evaluating')
    guess = logits.argmax(-1)                                                    # n,10
    right, there = (guess == target).double(), target.flatten().bincount(minlength=len(classes))
    results = dict(after=after, accuracy=100 * right.mean().item(), majority=100 * there.max().item() / target.numel(),
                   classes=classes, finetune=args.finetune, options=options(args),
                   left_out=sorted({*bad, *sets['train'].bad, *sets['test'].bad}),
                   per_class=[100 * right[target == c].mean().item() if there[c] else None for c in range(len(classes))])
    how = ', fine-tuned' if args.finetune else ''
    table = (f'| method | Acc |\n| --- | --- |\n| {run.cfg.method}{how} | {results["accuracy"]:.2f} |\n'
             f'| always the commonest class | {results["majority"]:.2f} |')
    return results, table, events_figure(run.cfg.method, results, guess, target)


def events_figure(method, results, guess, target, clips=8):
    """The accuracy of each class; and for some clips in which something begins or ends, second by second, what is and what
    was found.  guess, target (n, 10)"""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.5), layout='constrained')
    bars = sorted((value, name) for name, value in zip(results['classes'], results['per_class']) if value is not None)
    left.barh([name for _, name in bars], [value for value, _ in bars], color=OKABE_ITO[4])
    left.axvline(results['accuracy'], color='black', linestyle='--', label=f'all seconds: {results["accuracy"]:.1f} %')
    left.set_xlabel('seconds told rightly, in %')
    left.tick_params(axis='y', labelsize=8)
    left.legend(loc='lower right')
    shown = (target != target[:, :1]).any(1).nonzero()[:, 0][:clips].tolist() or list(range(min(clips, len(target))))
    for row, n in enumerate(shown):
        own = target[n].max().item()                                             # a clip has one event, besides background
        for second in range(target.shape[1]):
            for y, label in ((row - 0.18, target[n, second].item()), (row + 0.18, guess[n, second].item())):
                colour, hatch = ('#DDDDDD', '') if label == 0 else (OKABE_ITO[4], '') if label == own else (OKABE_ITO[5], '///')
                right.barh(y, 1, 0.34, left=second, color=colour, hatch=hatch, edgecolor='white')
    right.set_yticks(range(len(shown)), [results['classes'][target[n].max()] for n in shown], fontsize=8)
    right.invert_yaxis()
    right.set_xlabel('second; above what is, below what was found')
    right.legend(handles=[plt.Rectangle((0, 0), 1, 1, label=label, **style) for label, style in (
        ('background', dict(color='#DDDDDD')), ('the event', dict(color=OKABE_ITO[4])),
        ('another event', dict(facecolor=OKABE_ITO[5], hatch='///', edgecolor='white')))], loc='lower center',
        bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
    figure.suptitle(f'Events in AVE: {method}, after {results["after"]}')
    return figure
