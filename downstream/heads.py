"""Linear probes of a trained backbone: schedule, training, prediction (§5.2, App. B, E; Table 6).

In:  a finished run, data sets, and options of the command line.
Out: what `classification` and `events` share.

The heads of all models of a run train side by side on the same batches, so each clip is decoded once for all of them.
A head gets the *joint* embedding: the output of E_f on both modalities together, after the last LayerNorm. Retrieval
compares another embedding, where each modality goes through E_f alone.
"""
import math
from typing import Callable, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchaudio.transforms import FrequencyMasking, TimeMasking
from tqdm import tqdm

from config import UserError
from data import AUDIO_MEAN, AUDIO_STD
from downstream.maps import to_device
from downstream.multi_model import run_loaded
from patches import normalize_frames, patchify
from utils.cli import flag_name
from utils.distributed import autocast


# ------------------------------------------------------------------------- the schedule of Table 6

class Schedule(NamedTuple):
    lr: float
    epochs: int
    batch_size: int


SCHEDULES = {'audioset': Schedule(5e-4, 15, 36), 'ave': Schedule(1e-3, 15, 12)}
DEFAULT_SCHEDULE = Schedule(5e-4, 15, 48)          # VGGSound's


def schedule_for(name, args):
    """→ the Schedule of a data set, changed by options of the command line"""
    given = {field: getattr(args, field) for field in Schedule._fields if getattr(args, field) is not None}
    return SCHEDULES.get(name, DEFAULT_SCHEDULE)._replace(**given)


def options_text(args):
    """The options of a probe on the command line, as text: '--clips 300 --lr 0.005'"""
    given = {name: getattr(args, name) for name in ('clips', *Schedule._fields) if getattr(args, name) is not None}
    return ' '.join(f'{flag_name(name)} {value}' for name, value in given.items())


def lr_factor(step, steps, warmup):
    """Factor of the learning rate at a step (from 0): linear warm-up, then cosine decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def probe_batches(clip_counts, schedule, seed, cap=None):
    """The batches of all epochs: a list of lists of (clip, seed of its augmentation).

    clip_counts  the number of clips of each task; clip indices count over all tasks
    cap          use at most so many clips of each task

    If all clips are fewer than a batch, they make one smaller batch. An incomplete last batch of an epoch is dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    # which clips are used
    used, start = [], 0
    for clips in clip_counts:
        used.append(start + torch.randperm(clips, generator=generator)[:cap])
        start += clips
    used = torch.cat(used)

    # shuffle them for each epoch
    size, batches = min(schedule.batch_size, len(used)), []
    for _ in range(schedule.epochs):
        order = used[torch.randperm(len(used), generator=generator)].tolist()
        seeds = torch.randint(2 ** 62, (len(used),), generator=generator).tolist()
        keys = list(zip(order, seeds))
        batches += [keys[first:first + size] for first in range(0, len(keys) - size + 1, size)]
    return batches


def spec_augment(audio):
    """SpecAugment: time and frequency masking (Table 6), different for each clip.  audio (B, t, f) → (B, t, f)

    The paper does not say how much (N38). As in CAV-MAE: one run of at most 192 of 1024 frames, and one of at most 48
    of 128 bins; the same fractions of a smaller spectrogram. CAV-MAE sets 0 before it normalizes: so 0, normalized, is
    set.
    """
    t, f = audio.shape[1:]
    zero = -AUDIO_MEAN / AUDIO_STD
    audio = FrequencyMasking(min(48, 48 * f // 128), iid_masks=True)(audio.mT, zero)
    return TimeMasking(min(192, 192 * t // 1024), iid_masks=True)(audio, zero).mT


# ----------------------------------------------------------------------------------------- probes

def normed_joint_tokens(backbone, audio, video):
    """audio (B, t, f), video (B, T, 3, H, W), normalized → õ_a (B, M, D), õ_v (B, N, D) after the last LayerNorm. No
    patch is masked."""
    x = patchify(dict(audio=audio, video=video), backbone.sizes.patch_size)
    joint_a, joint_v = backbone.fuse(*backbone.encode(*x), x.ids_a, x.ids_v)
    return backbone.norm['joint'](joint_a), backbone.norm['joint'](joint_v)


class Probe(NamedTuple):
    """A linear head on a backbone. The backbone is frozen unless it is fine-tuned."""
    backbone: nn.Module
    head: nn.Linear
    embed: Callable            # embed(backbone, batch) → (B, …, 2D) float32
    precision: str = 'auto'    # of the backbone: the run's --precision

    def logits(self, batch):
        """A batch on any device → (B, …, C) float32. The backbone may run in bf16."""
        batch = to_device(batch, self.head.weight.device)
        with autocast(self.head.weight.device, self.precision):
            x = self.embed(self.backbone, batch | {'video': normalize_frames(batch['video'])})
        return self.head(x)


def new_probe(run, file, outputs, embed, args):
    """A random linear head (2D → outputs) on the model in a file of the run. Raises UserError for a bad file.

    The seed is set for each model, so all heads start alike, and later random numbers do not depend on the number of
    models.
    """
    torch.manual_seed(args.seed)
    backbone, _ = run.load_model(file)
    backbone.requires_grad_(args.finetune)
    return Probe(backbone, nn.Linear(2 * run.cfg.embed_dim, outputs).to(run.device), embed, run.cfg.precision)


def train_probes(probes, batches, steps, schedule, loss_fn):
    """Train all probes on the same batches, of which there are `steps`. loss_fn(logits, batch) → scalar

    AdamW with cosine decay and two warm-up epochs; with fewer than ten epochs, a fifth is warm-up. Raises UserError.
    """
    warmup = round(steps / schedule.epochs * min(2, schedule.epochs / 5))
    optimizers, schedulers = [], []
    for probe in probes:
        trained = [x for module in (probe.head, probe.backbone) for x in module.parameters() if x.requires_grad]
        optimizers.append(torch.optim.AdamW(trained, lr=schedule.lr, betas=(0.95, 0.999), weight_decay=5e-6))
        schedulers.append(LambdaLR(optimizers[-1], lambda step: lr_factor(step, steps, warmup)))
    with tqdm(total=steps, desc='training the head', unit='step', leave=False, disable=None) as bar:
        for batch in batches:
            for probe, optimizer, scheduler in zip(probes, optimizers, schedulers):
                loss = loss_fn(probe.logits(batch), batch)
                if not torch.isfinite(loss):
                    raise UserError(f'step {bar.n}: the loss of the head is {loss.item()}; try a smaller --lr')
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
            bar.set_postfix_str(f'loss {loss.item():.3f}', refresh=False)
            bar.update()


def predict(run, probes, datasets, batch_size, target):
    """The logits of all probes for all clips, in one pass → [probe][task]: logits (n, …), batch[target] (n, …), on the
    CPU; and 'name: reason' of each clip that is left out. Raises UserError if no clip of a task can be read."""
    def logits_and_target(probe, task, batch):
        return probe.logits(batch).cpu(), batch[target]

    return run_loaded(run, probes, datasets, batch_size, logits_and_target, 'evaluating')
