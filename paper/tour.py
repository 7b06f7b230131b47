"""The tour: one clip through the whole paper. Each equation with its code, its numbers and a picture.

    python -m paper.tour --out docs/tour                        the built-in clip: the page of the documentation
    python -m paper.tour --clip FILE --run RUN --past FILE      any video with sound, a trained model

In:  a clip, a past clip (for Eq. 4), a model.
Out: a folder with README.md and its pictures: `tour_page.md`, filled with the numbers of one step of FLAVA.
"""
import ast
import dataclasses
import os
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from avm import AVM, attend, mu
from config import Config, UserError, preset
from data import check_clip, read_clip
from downstream.maps import source_of_clip
from eval import FinishedRun
from flava import FLAVA, FLAVAPlus
from memory import penalty
from model import AudioVideoMAE, l2_normalize, run_backbone, total_loss
from paper import tour_pictures
from paper.plot_style import PRINT
from patches import concat_patches, gather, gather_patches, patchify, random_masks, to_float
from selection import draw_order, inverse_permutation, sample_pruned, select_patches, take_patches
from streams import shapes
from utils.cli import cli_errors, Parser
from utils.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
PAIRS = 4        # of the batch: the clip, and three built-in clips as negatives and mismatched pairs
SEED = 0         # of masks, coins and draws


# --------------------------------------------------------------------------- one step, looked into

class Seen(NamedTuple):
    """What the tour shows of one step. Row 0 of every tensor is the clip."""
    cfg: Config
    t: dict          # {name: tensor (B, ...)}: the names are those on the page
    past: dict       # {name: tensor (1, ...)}: the replayed pair as the memory returns it; now_a, now_v: its c now
    log: dict        # {name: number}: the terms of the loss, the loss, and lengths of gradients
    stored: dict     # {method: {name: bytes}}: what FLAVA and FLAVA+ store of the clip


def take_step(cfg, backbone, avm, batch, past):
    """One step of FLAVA on a batch, with the past clip in its memory → Seen. The weights do not change.

    batch, past: {audio (B, t, f), video (B, T, 3, H, W) uint8}; past has one pair
    """
    cfg = dataclasses.replace(cfg, memory_size=len(batch['audio']) + 1)          # the memory keeps every pair
    method, plus = FLAVA(cfg, backbone, avm), FLAVAPlus(cfg, backbone, avm)
    torch.manual_seed(SEED)
    method.step(past)
    random_state = torch.get_rng_state()
    step = method.step(batch)

    # what the step computes: without gradients, its random draws, and the losses
    out = attend(cfg, backbone, avm, step.patches)
    t = batch | attention_tensors(cfg, backbone, step, out)
    torch.set_rng_state(random_state)
    draws, learned, masks = repeat_draws(cfg, step)
    t |= draws | predict(backbone, to_float(learned, cfg.patch_size), masks) | step.losses._asdict()
    t |= dict(ids_a=step.current.ids_a, ids_v=step.current.ids_v, selected_a=step.current.x_a,
              selected_v=step.current.x_v)
    t['cosine'] = l2_normalize(t['pooled_a']) @ l2_normalize(t['pooled_v']).T

    # L^avm again: the AVM's logits for the same mismatched pairs
    with torch.no_grad():
        joint = backbone.fuse(out.o_a[t['partner']], out.o_v, step.patches.ids_a, step.patches.ids_v)
    t['logit'], t['matched'] = avm.match(*joint), (t['partner'] == torch.arange(PAIRS)).float()
    # the other terms again, under the same masks
    losses = run_backbone(cfg, backbone, learned, masks)
    drift = penalty(step.past, losses.pooled_a[PAIRS:], losses.pooled_v[PAIRS:])
    terms = dict(avm=F.binary_cross_entropy_with_logits(t['logit'], t['matched']),
                 rest=total_loss(cfg, losses).mean() + cfg.alpha * drift)
    log = {name: value.item() for name, value in dict(step.log, loss=step.loss).items()}
    log |= {f'{term}_{name}': gradient_length(loss, module) for term, loss in terms.items()
            for name, module in (('backbone', backbone), ('AVM', avm))}

    # what the memory stores of the clip
    plus.step(batch)
    stored = {name: {key: rows[row].nbytes for key, rows in memory.rows.items()}
              for name, memory, row in (('FLAVA', method.memory, 1), ('FLAVA+', plus.memory, 0))}
    past = dict(step.past, now_a=t['pooled_a'][-1:].detach(), now_v=t['pooled_v'][-1:].detach())
    # the rows of current pairs; `cosine` is between all pairs
    t = {name: x.detach() if name == 'cosine' else x.detach()[:PAIRS] for name, x in t.items()}
    return Seen(cfg, t, past, log, stored)


def attention_tensors(cfg, backbone, step, out):
    """The tensors of Eq. 1 to 5. out: the AVMOutput of the step's patches, with o and õ, which the step drops"""
    x = to_float(step.patches, cfg.patch_size)
    t = dict(x_a=step.patches.x_a, x_v=step.patches.x_v, a=backbone.patch_embed['a'](x.x_a),
             v=backbone.patch_embed['v'](x.x_v), I_a=out.importance_a, I_v=out.importance_v, **out._asdict(),
             A_a=mu(out.q_v, out.k_a, cfg.beta).softmax(-1), A_v=mu(out.q_a, out.k_v, cfg.beta).softmax(-1),
             query_a=step.query_a, query_v=step.query_v, past_query_a=step.past['query_a'],
             past_query_v=step.past['query_v'], P_a=step.P_a, P_v=step.P_v)
    # Â and Âᵖ of Eq. 4: the only past pair meets every current pair
    for n, m, kappa in (('a', 'v', cfg.kappa_a), ('v', 'a', cfg.kappa_v)):
        t[f'top_{n}'] = t[f'I_{n}'].topk(kappa, dim=1).indices
        t[f'key_{n}'] = take_patches(t[f'k_{n}'], t[f'top_{n}'])
        t[f'current_{n}'] = mu(t[f'query_{m}'][:, :, None], t[f'key_{n}'], beta=1).squeeze(2)
        t[f'past_{n}'] = mu(t[f'past_query_{m}'][:, :, None], t[f'key_{n}'], beta=1).squeeze(2)
    return t


def gradient_length(loss, module):
    """Length of the gradient of a loss in a module's parameters; 0 where no gradient arrives"""
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    lengths = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(lengths).norm().item() if lengths else 0.


def repeat_draws(cfg, step):
    """The random draws of a step, again in its order, from the random state before it.

    → {partner (B,): whose audio L^avm gives each pair; turn (B, chunks): when Algorithm 2 draws each chunk; pruned_a
      (B, M), pruned_v (B, N): the coins F}; Patches of current and replayed pairs; their masks
    """
    past, I_a, I_v = step.past, step.attention.importance_a, step.attention.importance_v
    # matching_loss: half of the pairs get the next one's audio
    partner, order = torch.arange(PAIRS), torch.randperm(PAIRS)
    partner[order[:PAIRS // 2]] = order.roll(1)[:PAIRS // 2]
    # Memory.sample
    torch.randperm(len(past['audio']))
    # select_audio and select_video, of current pairs
    pruned_a, chunks = sample_pruned(step.P_a), draw_order(I_a.reshape(PAIRS, -1, cfg.chunk * cfg.grid_a[1]).mean(2))
    pruned_v, _ = sample_pruned(step.P_v), draw_order(I_v)
    # … and of replayed ones
    ids = select_patches(cfg, past['importance_a'], past['importance_v'], past['prune_a'], past['prune_v'])
    learned = concat_patches(step.current, gather_patches(patchify(past, cfg.patch_size), *ids))
    # run_backbone
    masks = random_masks(cfg, learned)
    return dict(partner=partner, turn=inverse_permutation(chunks), pruned_a=pruned_a, pruned_v=pruned_v), learned, masks


def predict(backbone, x, masks):
    """Patches in float32 under masks → {ids_keep_*, ids_mask_*, target_*, pred_*}, as AudioVideoMAE.forward has them"""
    t = {}
    for n, x_n, ids, mask in (('a', x.x_a, x.ids_a, masks[0]), ('v', x.x_v, x.ids_v, masks[1])):
        t[f'ids_keep_{n}'], t[f'ids_mask_{n}'] = ids.gather(1, mask.keep), ids.gather(1, mask.mask)
        t[f'target_{n}'] = gather(x_n, mask.mask)
    o = backbone.encode(gather(x.x_a, masks[0].keep), gather(x.x_v, masks[1].keep), t['ids_keep_a'], t['ids_keep_v'])
    for n, joint in zip('av', backbone.fuse(*o, t['ids_keep_a'], t['ids_keep_v'])):
        t[f'pred_{n}'] = backbone.decode(joint, t[f'ids_keep_{n}'], t[f'ids_mask_{n}'], n)
    return t


# ---------------------------------------------------------------------------------- clips and model

def open_model(path):
    """A run's folder, one of its models, or None for the weights in `weights/` → Config of a FLAVA step, backbone, AVM,
    and a name for the page. Raises UserError."""
    if path is None:
        cfg = Config(**preset('shapes'))
        backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
        load_weights(ROOT / 'weights' / 'shapes_small.pt', backbone, avm)
        return cfg, backbone, avm, 'the weights after initial pre-training, `weights/shapes_small.pt`'
    run = FinishedRun(path, device='cpu')
    files = [run.file] if run.file else sorted((run.folder / 'models').glob('*.pt'), key=lambda file: int(file.stem))
    if not files:
        raise UserError(f'{run.folder / "models"} has no models')
    # the tour shows FLAVA's step, whatever method trained the model
    cfg = dataclasses.replace(run.cfg, method='flava', selection='both', audio_selection='time')
    backbone, avm = (module.requires_grad_(True).train() for module in run.load_model(files[-1]))
    return cfg, backbone, avm, f'`{files[-1].name}` of the run `{run.folder.resolve().name}`'


def read_file(path, cfg):
    """A video with sound, as evaluation reads it → {audio, video}. Raises UserError where training would skip it."""
    reason, _ = check_clip(path)
    if reason:
        raise UserError(f'{path.name}: {reason}')
    audio, video = read_clip(path, cfg)
    return dict(audio=audio, video=video)


def open_clips(args, cfg):
    """→ batch of PAIRS, the clip first; batch of one past clip; sources of the clip (source_a, source_v) or (None,
    None); names of both clips"""
    # the first two tasks of the built-in stream; in each clip one object sounds and one is silent
    past_task, task = shapes.stream(cfg, test_clips=12, pretrain_clips=1, clips_per_task=1, silent=(1, 1)).test[:2]
    items, past, source = [task[k, 0] for k in range(PAIRS)], past_task[0, 0], source_of_clip(task, cfg)
    name, past_name = (f'built-in: {sounding.kind.name} (with sound) and {silent.kind.name} (silent)'
                       for sounding, silent in (task.scene(0).tracks, past_task.scene(0).tracks))
    if args.clip:
        items[0], source, name = read_file(args.clip, cfg), (None, None), f'`{args.clip.name}`'
    if args.past:
        past, past_name = read_file(args.past, cfg), f'`{args.past.name}`'
    batch = {key: torch.stack([item[key] for item in items]) for key in ('audio', 'video')}
    return batch, {key: past[key][None] for key in batch}, source, name, past_name


# ----------------------------------------------------------------------------------------- the page

def code(out, place):
    """file.py:name or file.py:Class.name → a link to the file, and the function without its docstring"""
    file, name = place.split(':')
    source = (ROOT / file).read_text()
    node = ast.parse(source)
    for part in name.split('.'):
        node = next(sub for sub in node.body if getattr(sub, 'name', '') == part)
    lines = source.splitlines()[node.lineno - 1:node.end_lineno]
    if ast.get_docstring(node):
        docstring = node.body[0]
        del lines[docstring.lineno - node.lineno:docstring.end_lineno - node.lineno + 1]
    return f'{link(out, place)}\n\n```python\n' + textwrap.dedent('\n'.join(lines)) + '\n```'


def link(out, place):
    """file.py:name → a link from the page to the file"""
    file, name = place.split(':')
    return f'[`{file}`]({Path(os.path.relpath(ROOT / file, Path(out).resolve())).as_posix()}), `{name}`'


def digits(x):
    """A number with three digits"""
    return f'{x:.3g}'


def shape_and_range(x):
    """A tensor → its shape, and its range on the clip"""
    low, high = digits(x[0].min().item()), digits(x[0].max().item())
    return f'{" × ".join(map(str, x.shape))} | {low if x[0].numel() == 1 else f"{low} … {high}"}'


def facts(seen):
    """Numbers in the sentences of the page → {name: number or text}"""
    cfg, t = seen.cfg, seen.t
    M, N, kappa_a, kappa_v = cfg.num_patches_a, cfg.num_patches_v, cfg.kappa_a, cfg.kappa_v
    keep_a, keep_v = t['ids_keep_a'].shape[1], t['ids_keep_v'].shape[1]
    return dict(
        vars(cfg), **seen.log, B=PAIRS, M=M, N=N, d=cfg.embed_dim // cfg.avm_heads, kappa_a=kappa_a, kappa_v=kappa_v,
        freq=cfg.grid_a[1], inv_beta=1 / cfg.beta, keep_a=keep_a, keep_v=keep_v, mask_a=kappa_a - keep_a,
        mask_v=kappa_v - keep_v, hidden_a=M - keep_a, hidden_v=N - keep_v, dropped_a=M - kappa_a, dropped_v=N - kappa_v,
        uniform_a=1 / M, uniform_v=1 / N, best_a=t['I_a'][0].max().item(), best_v=t['I_v'][0].max().item(),
        pruned_a=int(t['pruned_a'][0].sum()), pruned_v=int(t['pruned_v'][0].sum()), encoded=keep_a + keep_v,
        tokens=kappa_a + kappa_v, all_tokens=M + N, bytes=f'{sum(seen.stored["FLAVA"].values()):,}',
        bytes_plus=f'{sum(seen.stored["FLAVA+"].values()):,}', more_pairs=1 / cfg.rho_v, chunks=chunks_in_words(seen))


def chunks_in_words(seen):
    """How many patches Algorithm 2 takes from each chunk of the clip, in the order drawn."""
    unpruned, taken = tour_pictures.chunk_counts(seen)
    order = [k for k in seen.t['turn'][0].argsort().tolist() if taken[k]]
    words = [f'chunk {k + 1} gives {taken[k]} of its {unpruned[k]} unpruned patches' for k in order]
    return '; '.join(words) + f'; {sum(taken)} in all'


def write(out, seen, source, more):
    """Write README.md and its pictures. source: (source_a, source_v) or (None, None); more: {name: text}"""
    out.mkdir(parents=True, exist_ok=True)
    texts, drawn = facts(seen) | more, []

    def fill(match):
        word, *rest = match[1].split()
        if word == 'picture':
            drawn.append(rest[0])
            file = f'{len(drawn):02d}-{rest[0].replace("_", "-")}.png'
            with plt.rc_context(PRINT):
                figure = getattr(tour_pictures, rest[0])(seen, source)
                figure.savefig(out / file, dpi=100, metadata={'Software': None}, pil_kwargs={'optimize': True})
                plt.close(figure)
            return f'![{rest[0].replace("_", " ")}]({file})'
        if word == 'tensor':
            return shape_and_range(seen.t[rest[0]])
        if word == 'code':
            return '\n\n'.join(code(out, place) for place in rest)
        if word == 'link':
            return '; '.join(link(out, place) for place in rest)
        return digits(texts[word]) if isinstance(texts[word], float) else str(texts[word])

    page = Path(__file__).with_name('tour_page.md').read_text()
    (out / 'README.md').write_text(re.sub(r'\{\{([\w.: +]+)\}\}', fill, page))


def main(arguments=None):
    """The command line: a clip → its page and pictures."""
    parser = Parser(prog='python -m paper.tour', description=__doc__.split('\n')[0])
    parser.add_argument('--clip', type=Path, help='a video with sound; default: a built-in clip')
    parser.add_argument('--past', type=Path, help='the past clip; default: a built-in clip of another task')
    parser.add_argument('--run', type=Path, help='a run, for its last model, or one of its models; default: '
                        'weights/shapes_small.pt')
    parser.add_argument('--out', type=Path, default=Path('tour'), help='folder to write to (default tour)')
    args = parser.parse_args(arguments)
    with cli_errors():
        cfg, backbone, avm, model = open_model(args.run)
        batch, past, source, name, past_name = open_clips(args, cfg)
        known = 'white outlines' if source[0] is not None else 'unknown'
        write(args.out, take_step(cfg, backbone, avm, batch, past), source,
              dict(clip=name, past=past_name, model=model, known=known))
        print(args.out / 'README.md')


if __name__ == '__main__':
    main()
