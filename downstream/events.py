"""Audio-visual event localization (App. E; Table 8): which event, or none, is in each second of AVE's clips?

In:  the last model of a run, and the folder of AVE: clips of ten seconds, a label for each.
Out: the share of the seconds, in percent, that a linear head on the model tells rightly.
"""
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from config import autocast
from downstream.heads import draw_batches, joint_tokens, learn, loader_of, new_probe, options, predict, recipe
from downstream.pictures import OKABE_ITO
from patches import UserError, normalize_frames
from streams.ave import AVE_LAYOUT, AVE_SECONDS, ave, window_of_second

SHOWN = 8     # clips in the picture, at most
BACKGROUND, OWN, OTHER = ('#DDDDDD', ''), (OKABE_ITO[4], ''), (OKABE_ITO[5], '///')   # colour and hatch of a second


def measure(run, args):
    """A head on the last model → results. args.data: AVE's folder. Raises UserError.

    results  after; accuracy, majority (always the commonest class), per_class in percent; classes, the first being
             background; finetune, options; left_out: clips that are not used; shown: some clips second by second
    """
    sets, names = open_ave(run, args.data)
    plan, model, classes = recipe('ave', args), run.models()[-1], ['background', *names]
    probes = [new_probe(run, model, len(classes), args)]       # of the last model alone, as Table 8 has it

    def logits_of(probe, batch):                               # B,10,29
        audio, audio_start = batch['audio'].to(run.device), batch['audio_start'].to(run.device)
        video = normalize_frames(batch['video'].to(run.device))
        with autocast(run.device):
            x = second_embedding(probe.backbone, audio, video, audio_start)
        return probe.head(x)                                   # in float32

    def loss_of(probe, batch):
        logits, target = logits_of(probe, batch).flatten(0, 1), batch['target'].to(run.device).flatten()
        return F.cross_entropy(logits, target), (logits.argmax(1) == target).double().mean().item()

    batches = draw_batches([len(sets['train'])], plan, args.seed, args.clips)
    learn(probes, loader_of(run, sets['train'], batches), plan, dict, loss_of, f'AVE: {probes[0].title}')
    found, bad = predict(run, probes, [sets['test']], ['AVE, test'], logits_of, plan.batch_size, 'target')
    ((logits, target),), = found
    guess = logits.argmax(-1)                                                    # n,10
    right, there = (guess == target).double(), target.flatten().bincount(minlength=len(classes))
    per_class = [100 * right[target == c].mean().item() if there[c] else None for c in range(len(classes))]
    return dict(after=model[1], accuracy=100 * right.mean().item(), majority=100 * there.max().item() / target.numel(),
                classes=classes, finetune=args.finetune, options=options(args),
                left_out=sorted({*bad, *sets['train'].bad, *sets['test'].bad}), per_class=per_class,
                shown=[dict(target=target[n].tolist(), guess=guess[n].tolist()) for n in telling(target)])


def show(run, results):
    """→ Markdown table in the form of Table 8, figure.  results: those of `measure`"""
    how = ', fine-tuned' if results['finetune'] else ''
    table = (f'| method | Acc |\n| --- | --- |\n| {run.cfg.method}{how} | {results["accuracy"]:.2f} |\n'
             f'| always the commonest class | {results["majority"]:.2f} |')
    return table, picture(run.cfg.method, results)


def open_ave(run, folder):
    """→ {'train', 'test', …: AVE}, the names of its events. Raises UserError where something is missing."""
    if not folder:
        raise UserError('AVE is needed: --data DIR. ' + AVE_LAYOUT.format(folder='DIR'))
    sets, names = ave(folder, run.cfg, workers=run.workers, max_bad=run.cfg.max_bad,
                      cache=Path(run.cfg.cache) / 'checked-clips.json')
    for split in ('train', 'test'):
        if not sets.get(split):
            raise UserError(f'{folder}/{split}Set.txt is missing, or has no clips that can be used')
    return sets, names


def second_embedding(backbone, audio, video, audio_start):
    """What each of AVE's ten seconds looks and sounds like, as joint tokens: the means over the frame of that second
    and over the audio patches of it. The paper does not say how a second is represented (App. E); the released code
    encodes each second alone. Windows of the size that the model was trained on, as here, are a choice.

    audio (B, W, t, f), video (B, W, T, 3, H, W)   W windows a clip, normalized
    audio_start (B, W)                             seconds of the clip at which each window's sound begins
    returns (B, 10, 2D) float32, audio first

    A patch belongs to the second that its middle is in; where a window's sound has none in a second (it ends before),
    the nearest one stands in.
    """
    s, (B, W) = backbone.sizes, audio.shape[:2]
    joint_a, joint_v = joint_tokens(backbone, audio.flatten(0, 1), video.flatten(0, 1))
    steps = joint_a.float().reshape(B, W, *s.grid_a, -1).mean(3)                    # B,W,⌊t/p⌋,D
    frames = joint_v.float().reshape(B, W, s.num_frames, -1, s.embed_dim).mean(3)   # B,W,T,D
    window, frame = torch.tensor(window_of_second(s), device=audio.device).T        # 10 and 10: where each is seen

    second = torch.arange(AVE_SECONDS, device=audio.device)[:, None]                # 10,1
    step = torch.arange(s.grid_a[0], device=audio.device)
    middle = (step + 0.5) * s.patch_size * s.frame_shift / 1000                     # ⌊t/p⌋, seconds from audio_start
    since = audio_start[:, window, None] + middle - second                          # B,10,⌊t/p⌋
    heard = (since >= 0) & (since < 1)
    nearest = F.one_hot((since - 0.5).abs().argmin(-1), s.grid_a[0]).bool()
    share = torch.where(heard.any(-1, keepdim=True), heard, nearest).float()
    share = share / share.sum(-1, keepdim=True)
    return torch.cat([(share[..., None] * steps[:, window]).sum(2), frames[:, window, frame]], -1)


# ------------------------------------------------------------------------------------- the picture

def telling(target):
    """Of clips (n, 10) the rows of up to SHOWN in which something begins or ends; where there are none, the first."""
    return (target != target[:, :1]).any(1).nonzero()[:, 0][:SHOWN].tolist() or list(range(min(SHOWN, len(target))))


def picture(method, results):
    """The accuracy of each class; and of some clips, second by second, what is and what was found."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.5), layout='constrained')
    bars = sorted((value, name) for name, value in zip(results['classes'], results['per_class']) if value is not None)
    left.barh([name for _, name in bars], [value for value, _ in bars], color=OKABE_ITO[4])
    left.axvline(results['accuracy'], color='black', linestyle='--', label=f'all seconds: {results["accuracy"]:.1f} %')
    left.set_xlabel('seconds told rightly, in %')
    left.tick_params(axis='y', labelsize=8)
    left.legend(loc='lower right')
    seconds(right, results['shown'], results['classes'])
    figure.suptitle(f'Events in AVE: {method}, after {results["after"]}')
    return figure


def seconds(axis, clips, classes):
    """Two bars a clip, in the colours of what is and of what was found.  clips: [{target, guess: a label a second}]"""
    for row, clip in enumerate(clips):
        own = max(clip['target'])                              # a clip has one event, besides background
        for second, labels in enumerate(zip(clip['target'], clip['guess'])):
            for y, label in zip((row - 0.18, row + 0.18), labels):
                colour, hatch = BACKGROUND if label == 0 else OWN if label == own else OTHER
                axis.barh(y, 1, 0.34, left=second, color=colour, hatch=hatch, edgecolor='white')
    axis.set_yticks(range(len(clips)), [classes[max(clip['target'])] for clip in clips], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel('second; above what is, below what was found')
    legend = {'background': dict(color=BACKGROUND[0]), 'the event': dict(color=OWN[0]),
              'another event': dict(facecolor=OTHER[0], hatch=OTHER[1], edgecolor='white')}
    axis.legend(handles=[plt.Rectangle((0, 0), 1, 1, label=label, **style) for label, style in legend.items()],
                loc='lower center', bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
