"""Linear heads on a trained backbone: their schedule, how they learn, how they are asked (§5.2, App. B, E; Table 6).

In:  a recorded run, a data set and options of the command line.
Out: what `classification` and `events` are made of. A head and what it sees are float32; the backbone may run in bf16.

The heads of a run's models learn side by side from the same batches, so that a clip is decoded once for all of them.

A head sees the *joint* embedding, that is after E_f on both modalities together and `norm`; retrieval compares another
one, in which each modality is alone.
"""
import math
from typing import NamedTuple

import torch
from torch import nn
from torchaudio.transforms import FrequencyMasking, TimeMasking
from tqdm import tqdm

from data import AUDIO_MEAN, AUDIO_STD
from downstream.together import in_one_pass, joined
from patches import UserError, all_positions, patchify_a, patchify_v
from streams.workers import Loader


# ------------------------------------------------------------------------- the schedule of Table 6

class Recipe(NamedTuple):
    lr: float
    epochs: int
    batch_size: int


RECIPES = {'vggsound': Recipe(5e-4, 15, 48), 'shapes': Recipe(5e-4, 15, 48), 'audioset': Recipe(5e-4, 15, 36),
           'ave': Recipe(1e-3, 15, 12)}


def recipe(name, args):
    """Table 6's numbers for a data set, and instead of them what the user gives."""
    given = {field: getattr(args, field) for field in Recipe._fields if getattr(args, field) is not None}
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


def draw_batches(tasks, plan, seed, cap=None):
    """All batches of all epochs: a list of lists of (clip, seed of its augmentation).

    tasks: how many clips each task has; they are counted through, and `cap` of each at most are used. Fewer clips than
    a batch make a smaller batch; an incomplete last batch of an epoch is dropped.
    """
    generator, first = torch.Generator().manual_seed(seed), [sum(tasks[:i]) for i in range(len(tasks))]
    chosen = torch.cat([start + torch.randperm(clips, generator=generator)[:cap] for start, clips in zip(first, tasks)])
    size, batches = min(plan.batch_size, len(chosen)), []
    for _ in range(plan.epochs):
        order = chosen[torch.randperm(len(chosen), generator=generator)].tolist()
        seeds = torch.randint(2 ** 62, (len(chosen),), generator=generator).tolist()
        keys = list(zip(order, seeds))
        batches += [keys[start:start + size] for start in range(0, len(keys) - size + 1, size)]
    return batches


def learn(probes, loader, plan, prepared, loss_of, title):
    """Every probe's steps along a loader of all epochs' batches, all of them at one batch before any sees the next.

    prepared(batch)       → the batch that all of them see: what is random about it is drawn once
    loss_of(probe, batch) → loss (a scalar), share of right answers in [0, 1]

    AdamW, cosine decay, two warm-up epochs, or a fifth of all where the user asks for fewer than ten. Raises UserError.
    """
    warmup = round(len(loader) / plan.epochs * min(2, plan.epochs / 5))
    optimizers = [torch.optim.AdamW(probe.learning(), lr=plan.lr, betas=(0.95, 0.999), weight_decay=5e-6)
                  for probe in probes]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, len(loader), warmup))
                 for optimizer in optimizers]
    with tqdm(total=len(loader), desc=title, unit='step', leave=False, disable=None) as bar:
        for batch in map(prepared, loader):
            for probe, optimizer, schedule in zip(probes, optimizers, schedules):
                loss, right = loss_of(probe, batch)
                if not torch.isfinite(loss):
                    raise UserError(f'{probe.title}, step {bar.n}: the loss is {loss.item()}; try a smaller --lr')
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
            bar.set_postfix_str(f'loss {loss.item():.3f}, {100 * right:.0f} % right', refresh=False)   # of the last
            bar.update()


def loader_of(run, dataset, batches):
    """batches: lists of the data set's keys (clip, seed) → a loader of these batches, in this order"""
    return Loader(dataset, batches, run.workers, pin=run.device.type == 'cuda')


def masked(audio):
    """Time and frequency masking (Table 6), each clip's own.  audio (B, t, f) → (B, t, f)

    The paper does not say how much: as in CAV-MAE, one run of up to 192 frames and one of up to 48 bins. That is of
    1024 × 128; of a smaller spectrogram, the same shares. CAV-MAE masks with 0 before it normalizes: so that value,
    normalized, is set.
    """
    t, f = audio.shape[1:]
    nothing = -AUDIO_MEAN / AUDIO_STD
    audio = FrequencyMasking(min(48, 48 * f // 128), iid_masks=True)(audio.mT, nothing)
    return TimeMasking(min(192, 192 * t // 1024), iid_masks=True)(audio, nothing).mT


# ------------------------------------------------------------------------------- what a head sees

def joint_tokens(backbone, audio, video):
    """audio (B, t, f), video (B, T, 3, H, W), normalized → õ_a (B, M, D), õ_v (B, N, D) after `norm`; nothing hidden"""
    p = backbone.sizes.patch_size
    x_a, x_v = patchify_a(audio, p), patchify_v(video, p)
    at_a, at_v = all_positions(x_a), all_positions(x_v)
    joint_a, joint_v = backbone.fuse(*backbone.encode(x_a, x_v, at_a, at_v), at_a, at_v)
    return backbone.norm(joint_a), backbone.norm(joint_v)


def joint_embedding(backbone, audio, video):
    """What classification starts from: the means of both modalities' joint tokens, audio first.

    audio (B, t, f), video (B, T, 3, H, W), normalized → (B, 2D) float32
    """
    joint_a, joint_v = joint_tokens(backbone, audio, video)
    return torch.cat([joint_a.float().mean(1), joint_v.float().mean(1)], 1)


# ---------------------------------------------------------------------------- a head, on a model

class Probe(NamedTuple):
    """A linear head and the backbone that it asks, which is frozen unless it is fine-tuned."""
    title: str
    backbone: nn.Module
    head: nn.Module

    def learning(self):
        """The parameters that learn: the head's, and all where the backbone is fine-tuned."""
        return [x for module in (self.head, self.backbone) for x in module.parameters() if x.requires_grad]


def new_probe(run, model, outputs, args):
    """A random linear head (2D → outputs) on a model (t, name, file) of the run. Raises UserError where the file holds
    no such model.

    What is drawn afterwards follows from args.seed alone, whichever model was the last: masks are the same for all.
    """
    _, after, file = model
    torch.manual_seed(args.seed)                               # so the heads of all models start alike
    backbone, _ = run.load(file)
    backbone.requires_grad_(args.finetune)                     # a frozen one records nothing for a backward pass
    return Probe(f'head after {after}', backbone, nn.Linear(2 * run.cfg.embed_dim, outputs).to(run.device))


def predict(run, probes, datasets, names, logits_of, size, answer):
    """Each clip once for all probes, in batches of `size` → [probe][task]: logits (n, …), and batch[answer] of all
    (n, …), on the CPU; and what could not be read, as "name: reason", which is left out. Raises UserError where that is
    all of a task.

    logits_of(probe, batch): of a batch on the CPU
    """
    watch = lambda probe, task, batch: (logits_of(probe, batch).cpu(), batch[answer])
    found, bad = in_one_pass(run, datasets, size, probes, watch, 'evaluating')
    return joined(found, names, bad), bad
