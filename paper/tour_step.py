"""One step of FLAVA on one clip, with all that passes through it written down: what the tour shows.

In:  a configuration and its model, a batch whose first pair is the clip, and the past clip.
Out: `Seen`: every tensor of the paper by name, as the step itself computed it. Nothing is computed a second time.

The step is `flava.FLAVA.forward`, called as training calls it. While it runs, the functions that it is made of are
wrapped: each hands on what it is given and what it returns, and notes both.
"""
import contextlib
import dataclasses
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

import avm as matching
import flava
import model
import selection
from memory import Memory

SEED = 0   # of masks, coins and draws


class Seen(NamedTuple):
    """What one step made of its batch. Row 0 of every tensor is the clip."""
    cfg: object      # Config
    t: dict          # name → tensor (B, ...), of the current pairs; LETTERS has their names
    past: dict       # name → tensor (1, ...): the replayed pair as the memory gave it
    log: dict        # the terms of the loss, as training logs them
    stored: dict     # name → (dtype, shape, bytes) of the clip in the memory
    plus: dict       # the same for FLAVA+
    norms: dict      # {'avm backbone': …}: length of the gradient of L^avm in the backbone, …; None where none arrives


# name here, and on the page: symbol, shape in the paper's letters
LETTERS = {
    'audio': ('X_a', 'B, t, f'), 'video': ('X_v', 'B, T, 3, H, W'),
    'x_a': ('x_a', 'B, M, p·p'), 'x_v': ('x_v', 'B, N, p·p·3'), 'a': ('a', 'B, M, D'), 'v': ('v', 'B, N, D'),
    'o_a': ('o_a', 'B, M, D'), 'o_v': ('o_v', 'B, N, D'),
    'joint_a': (r'\tilde o_a', 'B, M, D'), 'joint_v': (r'\tilde o_v', 'B, N, D'),
    'q_a': ('q_a', 'B, H, M, d'), 'k_a': ('k_a', 'B, H, M, d'),
    'q_v': ('q_v', 'B, H, N, d'), 'k_v': ('k_v', 'B, H, N, d'),
    'A_a': ('A_a', 'B, H, N, M'), 'A_v': ('A_v', 'B, H, M, N'),
    'importance_a': ('I_a', 'B, M'), 'importance_v': ('I_v', 'B, N'),
    'va': (r'\hat V_{av}', 'B, 2D'), 'logit': (r'\mathrm{FC}(\hat V_{av})', 'B'), 'matched': ('y', 'B'),
    'query_a': (r'\hat q_a', 'B, H, d'), 'query_v': (r'\hat q_v', 'B, H, d'),
    'past_query_a': (r'\hat q_a^p', 'B, H, d'), 'past_query_v': (r'\hat q_v^p', 'B, H, d'),
    'key_a': (r'\hat k_a', 'B, H, κ_a, d'), 'key_v': (r'\hat k_v', 'B, H, κ_v, d'),
    'now_a': (r'\hat A_a', 'B, H, κ_a'), 'now_v': (r'\hat A_v', 'B, H, κ_v'),
    'then_a': (r'\hat A_a^p', 'B, H, κ_a'), 'then_v': (r'\hat A_v^p', 'B, H, κ_v'),
    'prune_a': ('P_a', 'B, M'), 'prune_v': ('P_v', 'B, N'), 'coins_a': ('F_a', 'B, M'), 'coins_v': ('F_v', 'B, N'),
    'chunks': (r't_{select}', 'B, chunks'),
    'kept_a': (r'\tilde S_a', 'B, κ_a'), 'kept_v': (r'\tilde S_v', 'B, κ_v'),
    'chosen_a': (r'\hat x_a', 'B, κ_a, p·p'), 'chosen_v': (r'\hat x_v', 'B, κ_v, p·p·3'),
    'seen_a': ('m_a', 'B, seen'), 'seen_v': ('m_v', 'B, seen'),
    'hidden_a': (r'1 - m_a', 'B, hidden'), 'hidden_v': (r'1 - m_v', 'B, hidden'),
    'target_a': ('x_a', 'B, hidden, p·p'), 'target_v': ('x_v', 'B, hidden, p·p·3'),
    'guess_a': (r'D(\tilde a)', 'B, hidden, p·p'), 'guess_v': (r'D(\tilde v)', 'B, hidden, p·p·3'),
    'mae_a': (r'\ell^r_a', 'B'), 'mae_v': (r'\ell^r_v', 'B'), 'contrastive': (r'\ell^c', 'B'),
    'pooled_a': ('c_a', 'B, D'), 'pooled_v': ('c_v', 'B, D'), 'cosine': (r'c_a^\top c_v', '2B, 2B'),
}


# ------------------------------------------------------------------------------------- writing down

@contextlib.contextmanager
def written_down(**places):
    """name=(what holds a function, the function's name there) → {name: [(arguments, result)]}, filled meanwhile."""
    calls = {name: [] for name in places}

    def noting(function, own):
        def call(*given, **named):
            result = function(*given, **named)
            own.append(([*given, *named.values()], result))
            return result
        return call
    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(mock.patch.object(owner, attribute, noting(getattr(owner, attribute), calls[name])))
        yield calls


def places(method):
    """The functions that FLAVA's step is made of, where it looks them up."""
    backbone, avm = method.backbone, method.avm
    return dict(
        whole=(flava, 'whole'), score=(flava, 'score'), matching=(flava, 'matching_loss'), chosen=(flava, 'chosen'),
        prune=(flava, 'prune_probability'), select=(flava, 'select'), autoencode=(flava, 'autoencode'),
        penalty=(flava, 'penalty'), store=(method, 'stored'), embed_a=(backbone.patch_embed_a, 'forward'),
        embed_v=(backbone.patch_embed_v, 'forward'), fuse=(backbone, 'fuse'), va=(avm.fc, 'forward'),
        attend=(matching, 'mu'), answer=(selection, 'mu'), coins=(selection, 'coins'), order=(selection, 'draw_order'),
        masks=(model, 'draw_masks'), reconstruct=(model, 'reconstruction_loss'), similar=(F, 'cross_entropy'),
        decide=(F, 'binary_cross_entropy_with_logits'), replay=(method.memory, 'sample'), keep=(method.memory, 'add'))


def watch(cfg, backbone, avm, batch, past):
    """A step on the batch, after one on the past clip alone, which the memory then holds → Seen

    batch, past: {audio (B, t, f), video (B, T, 3, H, W) uint8}; past of one pair. Between the two steps the weights
    stay as they are, so that all that is shown is of the model that was given.
    """
    torch.manual_seed(SEED)
    cfg = dataclasses.replace(cfg, memory_size=len(batch['audio']) + 1)            # room for all: none is turned away
    method = flava.FLAVA(cfg, backbone, avm)
    method(past)
    with written_down(**places(method)) as calls:
        loss, log = method(batch)
    t, B, stored = tensors(cfg, calls), len(batch['audio']), calls['store'][0][0]
    before, pooled_a, pooled_v = calls['penalty'][0][0]
    return Seen(cfg, {name: x.detach()[:B] if name != 'cosine' else x.detach() for name, x in t.items()},
                dict(before, **past, now_pooled_a=pooled_a.detach(), now_pooled_v=pooled_v.detach()),
                log | {'loss': loss.detach()}, rows_of(method.memory, 1), in_flava_plus(method, stored, calls),
                gradients(method, loss, calls['matching'][0][1]))


def tensors(cfg, calls):
    """What was written down of a step → {name: tensor} of LETTERS. Calls come in the step's order: of the pairs that
    are current before those that are replayed, of audio before video."""
    given, result = (lambda name, nth=0: calls[name][nth][0]), (lambda name, nth=0: calls[name][nth][1])
    patches, s, losses, learned = result('whole'), result('score'), result('autoencode'), given('autoencode')[2]
    (see_a, hide_a), (see_v, hide_v) = result('masks')
    logits, matched = given('decide')
    t = dict(x_a=patches.x_a, x_v=patches.x_v, a=result('embed_a'), v=result('embed_v'),
             A_a=result('attend', 0).softmax(-1), A_v=result('attend', 1).softmax(-1), va=given('va')[0], logit=logits,
             matched=matched, partner=partners(s, given('fuse', 1), matched), chunks=result('order', 0),
             kept_a=result('select')[0], kept_v=result('select')[1], chosen_a=result('chosen').x_a,
             chosen_v=result('chosen').x_v, cosine=given('similar')[0] * cfg.tau,
             seen_a=learned.kept_a.gather(1, see_a), seen_v=learned.kept_v.gather(1, see_v),
             hidden_a=learned.kept_a.gather(1, hide_a), hidden_v=learned.kept_v.gather(1, hide_v))
    t |= {name: getattr(s, name) for name in s._fields} | losses._asdict()
    t['audio'], t['video'] = given('store')[0]['audio'], given('store')[0]['video']
    for i, n, other in ((0, 'a', 'v'), (1, 'v', 'a')):
        _, _, t[f'query_{other}'], t[f'past_query_{other}'], _ = given('prune', i)
        t[f'prune_{n}'], t[f'coins_{n}'] = result('prune', i), result('coins', i)
        t[f'key_{n}'] = given('answer', 2 * i)[1]
        t[f'now_{n}'], t[f'then_{n}'] = (result('answer', 2 * i + j).squeeze(2) for j in (0, 1))
        t[f'guess_{n}'], t[f'target_{n}'] = given('reconstruct', i)
    return t


def partners(s, fused, matched):
    """Whose audio each pair had in L^avm (B,): its own, or that of the pair whose o_a the second fusion was given."""
    partner = torch.arange(len(matched))
    partner[matched == 0] = torch.stack([(s.o_a == o_a).all(-1).all(-1).int().argmax() for o_a in fused[0]])
    return partner


def rows_of(memory, row):
    """What the memory holds of a pair: {name: (dtype, shape, bytes)}"""
    return {name: (str(rows.dtype).removeprefix('torch.'), tuple(rows[row].shape), rows[row].nbytes)
            for name, rows in memory.rows.items()}


def in_flava_plus(method, given, calls):
    """What FLAVA+ would hold of the clip, by its own `stored`."""
    also = {name: x for name, x in zip(('query_a', 'query_v', 'pooled_a', 'pooled_v'), calls['keep'][0][0])}
    memory = Memory(len(given[0]['audio']))
    memory.add(**also, **flava.FLAVAPlus.stored(method, *given))
    return rows_of(memory, 0)


def gradients(method, loss, avm_loss):
    """How long the gradient is that each part of the loss gives to each part of the model; None where it gives none."""
    parts = {'backbone': list(method.backbone.parameters()), 'AVM': list(method.avm.parameters())}
    found = {}
    for name, term in (('avm', avm_loss), ('rest', loss - avm_loss)):
        for part, parameters in parts.items():
            grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            there = [g for g in grads if g is not None and g.abs().sum() > 0]
            found[f'{name} {part}'] = torch.stack([g.norm() for g in there]).norm().item() if there else None
    return found


# ------------------------------------------------------------------------------- what is counted of it

def turns(seen):
    """Of each chunk of the clip's sound: the turn at which it was drawn, patches left by the coins, patches taken."""
    cfg, t = seen.cfg, seen.t
    size = cfg.chunk * cfg.grid_a[1]
    left = (1 - t['coins_a'][0]).reshape(-1, size).sum(1)
    taken = torch.bincount(t['kept_a'][0] // size, minlength=len(left))
    return t['chunks'][0].argsort().tolist(), left.tolist(), taken.tolist()


def weighted(seen):
    """The terms that the step adds up, as they enter the loss."""
    cfg, log = seen.cfg, {name: value.item() for name, value in seen.log.items()}
    return {'ℓ^r, audio': cfg.mae_weight * log['mae_a'], 'ℓ^r, video': cfg.mae_weight * log['mae_v'],
            'λ ℓ^c': cfg.lam * log['contrastive'], 'L^avm': log['avm'], 'α ℓ^p': cfg.alpha * log['penalty']}
