"""What the tour's page says in numbers: facts of the step, tables of its tensors, lines of its code.

In:  `Seen` of `tour_step.py`, and the project's own files.
Out: text in Markdown, for the places that `tour_page.md` leaves open.
"""
import ast
import os
from pathlib import Path

from paper.tour_step import LETTERS, turns

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------ lines of code

def definition(file, name):
    """The lines of a function or Class.method, and its node.  Raises KeyError where there is none."""
    lines = (ROOT / file).read_text().splitlines()
    node = ast.parse('\n'.join(lines))
    for part in name.split('.'):
        node = {sub.name: sub for sub in node.body if isinstance(sub, (ast.FunctionDef, ast.ClassDef))}[part]
    return lines, node


def cut(lines, first, last):
    """Lines first … last, counted from 1, without what all of them are indented by."""
    margin = min(len(line) - len(line.lstrip()) for line in lines[first - 1:last] if line)
    return '\n'.join(line[margin:] for line in lines[first - 1:last])


def code(out, *places):
    """file.py:name … → each one's source, under a link to its file"""
    found = []
    for place in places:
        file, name = place.split(':')
        lines, node = definition(file, name)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        found.append(f'{link(out, file)}, `{name}`\n\n```python\n{cut(lines, first, node.end_lineno)}\n```')
    return '\n\n'.join(found)


def step(out, *called):
    """The statements of FLAVA's step that call these functions."""
    lines, node = definition('flava.py', 'FLAVA.forward')
    simple = [x for x in ast.walk(node) if isinstance(x, (ast.Assign, ast.Expr))]
    calls = lambda x: {getattr(call.func, 'id', getattr(call.func, 'attr', '')) for call in ast.walk(x)
                       if isinstance(call, ast.Call)}
    wanted = sorted((x for x in simple if calls(x) & set(called)), key=lambda x: x.lineno)
    text = '\n'.join(cut(lines, x.lineno, x.end_lineno) for x in wanted)
    return f'In the step, {link(out, "flava.py")}:\n\n```python\n{text}\n```'


def link(out, file):
    """From the page to a file of the project."""
    return f'[`{file}`]({Path(os.path.relpath(ROOT / file, Path(out).resolve())).as_posix()})'


# ------------------------------------------------------------------------------------------ tensors

def number(x):
    """Three digits, as short as they go."""
    return f'{x:.3g}'


def tensors(seen, *names):
    """A table: name, symbol, shape of the batch's tensor, and its range on this clip."""
    rows = ['| name | in the paper | shape | | on this clip |', '| --- | --- | --- | --- | --- |']
    for name in names:
        (symbol, letters), x = LETTERS[name], seen.t[name]
        own = x if name == 'cosine' else x[0]
        low, high = (number(v.item()) for v in (own.min(), own.max()))
        shape = ' × '.join(map(str, x.shape))
        rows.append(f'| `{name}` | ${symbol}$ | {letters.replace(", ", " × ")} | {shape} | '
                    + (low if own.numel() == 1 else f'{low} … {high}') + ' |')
    return '\n'.join(rows)


def stored(seen):
    """What the memory holds of the clip, tensor by tensor, for FLAVA and FLAVA+."""
    rows = ['| | stored as | FLAVA, bytes | FLAVA+, bytes |', '| --- | --- | --- | --- |']
    for name in dict.fromkeys([*seen.stored, *seen.plus]):
        kind, shape, _ = seen.stored.get(name) or seen.plus[name]
        size = [f'{of[name][2]:,}' if name in of else '–' for of in (seen.stored, seen.plus)]
        rows.append(f'| `{name}` | {kind}, {" × ".join(map(str, shape))} | {size[0]} | {size[1]} |')
    both = [f'**{total(of):,}**' for of in (seen.stored, seen.plus)]
    return '\n'.join([*rows, f'| together | | {both[0]} | {both[1]} |'])


def total(rows):
    return sum(size for _, _, size in rows.values())


def terms(seen):
    """A table of the terms, their weights, and the loss."""
    cfg, log = seen.cfg, {name: value.item() for name, value in seen.log.items()}
    weights = {'mae_a': cfg.mae_weight, 'mae_v': cfg.mae_weight, 'contrastive': cfg.lam, 'avm': 1.0,
               'penalty': cfg.alpha}
    symbols = {'mae_a': r'\ell^r_a', 'mae_v': r'\ell^r_v', 'contrastive': r'\ell^c', 'avm': r'\mathcal{L}^{avm}',
               'penalty': r'\ell^p'}
    rows = ['| term | as logged | weight | in the loss |', '| --- | --- | --- | --- |']
    rows += [f'| ${symbols[name]}$ `{name}` | {number(log[name])} | {number(weight)} | {number(weight * log[name])} |'
             for name, weight in weights.items()]
    return '\n'.join([*rows, f'| $\\mathcal{{L}}$ | | | **{number(log["loss"])}** |'])


def gradients(seen):
    """A table: which part of the loss moves which part of the model, as lengths of gradients."""
    cell = lambda key: 'none' if seen.norms[key] is None else number(seen.norms[key])
    return '\n'.join([
        '| gradient of | in the backbone | in the AVM |', '| --- | --- | --- |',
        f'| $\\mathcal{{L}}^{{avm}}$ | {cell("avm backbone")} | {cell("avm AVM")} |',
        f'| all the other terms | {cell("rest backbone")} | {cell("rest AVM")} |'])


# -------------------------------------------------------------------------------------------- facts

def facts(seen):
    """Words that the page has in its sentences: {name: text}"""
    cfg, t = seen.cfg, seen.t
    M, N = cfg.num_patches_a, cfg.num_patches_v
    sizes = dict(B=len(t['audio']), M=M, N=N, T=cfg.num_frames, t=cfg.audio_frames, f=cfg.mel_bins, p=cfg.patch_size,
                 D=cfg.embed_dim, H=cfg.avm_heads, d=cfg.embed_dim // cfg.avm_heads, kappa_a=cfg.kappa_a,
                 kappa_v=cfg.kappa_v, chunk=cfg.chunk, time=cfg.grid_a[0], freq=cfg.grid_a[1], size=cfg.image_size,
                 values_a=cfg.patch_size ** 2, values_v=3 * cfg.patch_size ** 2)
    of_clip = dict(seen_a=t['seen_a'].shape[1], seen_v=t['seen_v'].shape[1], hidden_a=t['hidden_a'].shape[1],
                   hidden_v=t['hidden_v'].shape[1], pruned_a=t['coins_a'][0].sum().item(),
                   pruned_v=t['coins_v'][0].sum().item(), masked_a=M - t['seen_a'].shape[1],
                   masked_v=N - t['seen_v'].shape[1], never_a=M - cfg.kappa_a, never_v=N - cfg.kappa_v)
    share = dict(rho_a=cfg.rho_a, rho_v=cfg.rho_v, beta=cfg.beta, inv_beta=1 / cfg.beta, tau=cfg.tau,
                 mask=cfg.mask_ratio, uniform_a=1 / M, uniform_v=1 / N, best_a=t['importance_a'][0].max().item(),
                 best_v=t['importance_v'][0].max().item(), most_P=t['prune_v'][0].max().item())
    more = dict(bytes=f'{total(seen.stored):,}', bytes_plus=f'{total(seen.plus):,}',
                more_pairs=number(1 / cfg.rho_v), turns=turns_in_words(seen),
                tokens=f'{cfg.kappa_a + cfg.kappa_v}', all_tokens=f'{M + N}',
                encoded=f'{t["seen_a"].shape[1] + t["seen_v"].shape[1]}')
    return {name: str(value) for name, value in (sizes | of_clip).items()} \
        | {name: number(value) for name, value in share.items()} | more


def turns_in_words(seen):
    """How Algorithm 2 went on this clip."""
    turn, left, taken = turns(seen)
    order = sorted(range(len(turn)), key=turn.__getitem__)
    words, sum_ = [], 0
    for k in order:
        if not taken[k]:
            break
        sum_ += taken[k]
        words.append(f'chunk {k + 1} gives {taken[k]} of the {left[k]} patches that the coins left it'
                     + (f' ({left[k] - taken[k]} are trimmed)' if taken[k] < left[k] else ''))
    more = max(0, seen.cfg.kappa_a - sum(map(min, taken, left)))
    return '; '.join(words) + f': {sum_} in all' + (f', of which {more} are pruned ones that fill up' if more else '')
