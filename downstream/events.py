"""Audio-visual event localization (App. E; Table 8): which event, or none, happens in each second of AVE's clips?

In:  the last model of a run, and AVE's folder: clips of ten seconds, with one label per second.
Out: the accuracy over seconds, in percent, of a linear probe.
"""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from config import UserError
from downstream.heads import (new_probe, normed_joint_tokens, options_text, predict, probe_batches,
                              schedule_for, train_probes)
from downstream.pictures import OKABE_ITO
from streams.ave import AVE_LAYOUT, AVE_SECONDS, ave, window_of_second
from streams.loading import Loader
from utils.markdown import format_number, markdown_table


def evaluate(run, args):
    """A linear probe of the last model → results. args.data: AVE's folder. Raises UserError.

    results  tasks, after; accuracy, majority (always the most frequent class), per_class in percent; classes, background
             first; finetune, options; left_out: clips that are not used
    """
    if not args.data:
        raise UserError('AVE is needed: --data DIR. ' + AVE_LAYOUT.format(folder='DIR'))
    sets, names = ave(args.data, run.cfg, run.workers)
    for split in ('train', 'test'):
        if not sets.get(split):
            raise UserError(f'{args.data}/{split}Set.txt is missing or has no usable clips')
    schedule = schedule_for('ave', args)
    classes = ['background', *names]
    _, after, file = run.models()[-1]                                            # Table 8 evaluates the last model
    probes = [new_probe(run, file, len(classes), second_embedding, args)]

    def loss_fn(logits, batch):
        return F.cross_entropy(logits.flatten(0, 1), batch['target'].to(run.device).flatten())

    # train and test the head
    keys = probe_batches([len(sets['train'])], schedule, args.seed, args.clips)
    loader = Loader(sets['train'], keys, run.workers, pin=run.device.type == 'cuda')
    train_probes(probes, loader, len(keys), schedule, loss_fn)
    outputs, bad = predict(run, probes, [sets['test']], schedule.batch_size, 'target')
    logits, target = outputs[0][0]                                               # n,10,29 and n,10

    # accuracy over all seconds, and over the seconds of each class
    guess = logits.argmax(-1)
    right, seconds = (guess == target).double(), target.flatten().bincount(minlength=len(classes))
    per_class = [100 * right[target == c].mean().item() if seconds[c] else None for c in range(len(classes))]
    return dict(tasks=run.names, after=after, accuracy=100 * right.mean().item(),
                majority=100 * seconds.max().item() / target.numel(),
                classes=classes, finetune=args.finetune, options=options_text(args),
                left_out=sorted({*bad, *sets['train'].bad, *sets['test'].bad}), per_class=per_class)


def report(run, results):
    """results of `evaluate` → Markdown table in the form of Table 8, figure"""
    title = run.cfg.method + (', fine-tuned' if results['finetune'] else '')
    rows = [[title, format_number(results['accuracy'], 2)],
            ['always the most frequent class', format_number(results['majority'], 2)]]
    table = markdown_table(['method', 'Acc'], rows)

    # the accuracy of each class
    figure, axis = plt.subplots(figsize=(6, 6.5), layout='constrained')
    bars = sorted((value, name) for name, value in zip(results['classes'], results['per_class']) if value is not None)
    axis.barh([name for _, name in bars], [value for value, _ in bars], color=OKABE_ITO[4])
    axis.axvline(results['accuracy'], color='black', linestyle='--', label=f'all seconds: {results["accuracy"]:.1f} %')
    axis.set(xlabel='accuracy over seconds, in %', title=f'Events in AVE: {title}, after {results["after"]}')
    axis.legend(loc='lower right')
    return table, figure


def second_embedding(backbone, batch):
    """The embedding of each of AVE's ten seconds: the mean joint token of the second's frame and of its audio patches.

    audio (B, W, t, f), video (B, W, T, 3, H, W)   W windows per clip, normalized
    audio_start (B, W)                             second of the clip at which each window's audio begins
    returns (B, 10, 2D) float32, audio first

    How a second is represented is open (App. E, N39). The released code encodes each second alone; windows of
    the length that the model is trained on are our choice. An audio patch belongs to the second of its middle. A second
    without any patch takes the nearest one.
    """
    audio, video, audio_start = batch['audio'], batch['video'], batch['audio_start']
    s, (B, W) = backbone.sizes, audio.shape[:2]
    joint_a, joint_v = normed_joint_tokens(backbone, audio.flatten(0, 1), video.flatten(0, 1))
    steps = joint_a.float().reshape(B, W, *s.grid_a, -1).mean(3)                    # B,W,⌊t/p⌋,D
    frames = joint_v.float().reshape(B, W, s.num_frames, -1, s.embed_dim).mean(3)   # B,W,T,D
    window, frame = torch.tensor(window_of_second(s), device=audio.device).T        # 10 and 10: where each second is

    # which time steps of the window lie in the second
    second = torch.arange(AVE_SECONDS, device=audio.device)[:, None]                # 10,1
    step = torch.arange(s.grid_a[0], device=audio.device)
    middle = (step + 0.5) * s.patch_size * s.frame_shift / 1000                     # ⌊t/p⌋, seconds from audio_start
    time = audio_start[:, window, None] + middle - second                           # B,10,⌊t/p⌋, from its start
    inside = (time >= 0) & (time < 1)
    nearest = F.one_hot((time - 0.5).abs().argmin(-1), s.grid_a[0]).bool()

    # the mean over these steps, and the second's frame
    weight = torch.where(inside.any(-1, keepdim=True), inside, nearest).float()
    weight = weight / weight.sum(-1, keepdim=True)
    return torch.cat([(weight[..., None] * steps[:, window]).sum(2), frames[:, window, frame]], -1)
