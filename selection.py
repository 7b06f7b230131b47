"""Forget-robust multimodal patch selection (§4.2, §4.3, App. H).

In:  importance scores I (Eq. 3) and the AVM's queries and keys of a batch; discriminative queries of past pairs.
Out: S̃_a (B, κ_a), S̃_v (B, κ_v): positions of the patches to learn from, of which Eq. 7 makes x̂ (`patches.chosen`).
     Last, what the paper compares with: the ablations of Table 3 and Fig. 10, and selections that need no attention.

    I, q, k ─ Eq. 4 ─► k̂, q̂ ─ Eq. 5, with the past q̂ᵖ ─► P ─ Bernoulli ─► F ─┬─ Eq. 6 ────────► S̃_v
                                                                             └─ Algorithm 2 ──► S̃_a

(Not `select.py`: that is a module of the standard library, which `python train.py` would hide behind this one.)

The batch is handled at once. Drawing without replacement by weight is done by an exponential race: patch i gets the
arrival time e_i / w_i with e_i ~ Exp(1), and the first to arrive are drawn. That is exactly the law of drawing one
after the other (and what torch.multinomial does), and it leaves an order to sort by.

Tour: stops 7 to 11.
"""
import torch

from avm import mu
from patches import count


def discriminative_query(I, q, kappa):
    """Eq. 4, lines 1-3: q̂, the mean query of the κ most important patches, weighted by importance.

    I (B, n), q (B, H, n, d) → q̂ (B, H, d)
    """
    weight, S = I.topk(kappa, dim=1)                                   # S = argsort(I), descending: readings
    q = q.gather(2, S[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))    # B,H,κ,d
    weight = weight / weight.sum(1, keepdim=True)
    return torch.einsum('bhkd,bk->bhd', q, weight.to(q.dtype))


def prune_probability(I, k, query, past_query, kappa):
    """Eq. 4, line 4, and Eq. 5: how much more each patch answers to the past than to the present.

    I (B, n), k (B, H, n, d)                importance and keys of modality n
    query, past_query (B, H, d)             q̂ and q̂ᵖ of the other modality, current and from the memory
    returns P (B, n) in [0, 1], the share of the past; 0 outside the κ most important patches
    """
    S = I.topk(kappa, dim=1).indices
    k = k.gather(2, S[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3]))    # k̂: B,H,κ,d
    now = mu(query[:, :, None], k, beta=1).squeeze(2)                  # Â: B,H,κ, logits
    past = mu(past_query[:, :, None], k, beta=1).squeeze(2)            # Âᵖ
    share = torch.stack([now, past]).softmax(0)[1].mean(1)             # B,κ: Softmax over the pair, mean over heads
    return torch.zeros_like(I).scatter(1, S, share.to(I.dtype))


def draw_order(weight):
    """Multinomial without replacement, to the end: weight (B, n) ≥ 0 → (B, n) indices in the order drawn.

    Weights of zero come last.
    """
    arrival = torch.empty_like(weight).exponential_() / weight         # e / 0 = inf
    return arrival.argsort(1)


def rank(order):
    """The inverse of a permutation: order (B, n) → the place (B, n) at which each index stands in it."""
    return order.argsort(1)


def coins(P):
    """F of Eq. 6: P (B, n) → (B, n) of 0 and 1, 1 where a patch is pruned. Where the loss is NaN, P is too: a GPU would
    stop for good at that, before the loop can say what happened."""
    return torch.bernoulli(P.nan_to_num(0)).long()


def select_video(I, P, kappa):
    """Eq. 6: κ patches by importance, without those that a coin with P prunes.

    I, P (B, N) → S̃_v (B, κ), distinct positions
    The pruned ones fill up the end when too few are left (readings).
    """
    N = I.shape[1]
    F = coins(P)
    key = F * N + rank(draw_order(I))                                  # all unpruned ones before any pruned one
    return key.argsort(1)[:, :kappa]


def select_audio(I, P, kappa, grid, chunk):
    """Algorithm 2: κ patches in whole chunks of L_c time steps, so that time stays continuous.

    I, P (B, M), M = time · freq patches, time-major; grid = (time, freq); chunk = L_c, which divides time
    returns S̃_a (B, κ), distinct positions

    Chunks are drawn by multinomial on their mean importance. Of the chunks in the order drawn, all unpruned patches are
    taken until κ are counted. The surplus of the last chunk is dropped from its tail, or from its head where only the
    chunk after it is taken, so that what is left of it touches its neighbour. Without enough unpruned patches, the
    pruned ones fill up, in the same order of chunks.
    """
    B, M = I.shape
    time, freq = grid
    num_chunks, size = time // chunk, chunk * freq
    F = coins(P)

    order = draw_order(I.reshape(B, num_chunks, size).mean(2))         # t_select: B,chunks
    place = rank(order)                                                # at which turn each chunk comes
    unpruned = size - F.reshape(B, num_chunks, size).sum(2)            # B,chunks
    counted = unpruned.gather(1, order).cumsum(1)                      # patches after each turn
    last_turn = (counted < kappa).sum(1, keepdim=True).clamp(max=num_chunks - 1)   # the turn at which κ is reached
    taken = place < last_turn                                          # B,chunks: whole
    before = torch.nn.functional.pad(taken, (1, 0))[:, :-1]            # is the chunk before / after this one taken?
    after = torch.nn.functional.pad(taken, (0, 1))[:, 1:]
    from_head = (place == last_turn) & after & ~before                 # B,chunks

    # One integer sorts it all: unpruned before pruned, then the chunk's turn, then the place inside the chunk, which is
    # counted backwards where the head is to be dropped. The first κ are the selection.
    inside = torch.arange(size, device=I.device).expand(B, num_chunks, size)
    inside = torch.where(from_head[:, :, None], size - 1 - inside, inside)
    key = F * M + (place[:, :, None] * size + inside).reshape(B, M)
    return key.argsort(1)[:, :kappa]


def select(cfg, I_a, I_v, P_a, P_v):
    """Of I_a, P_a (B, M) and I_v, P_v (B, N): S̃_a (B, κ_a) by Algorithm 2 and S̃_v (B, κ_v) by Eq. 6, which is what
    `--selection both --audio-selection time` names; other names are the ablations below."""
    goes_by, take_audio = SELECTIONS[cfg.selection], AUDIO_SELECTIONS[cfg.audio_selection]
    (I_a, P_a), (I_v, P_v) = goes_by(I_a, P_a), goes_by(I_v, P_v)
    if cfg.selection in BY_RANK:
        I_v = rank_weights(I_v, cfg.rank_share, cfg.rank_weight)
    return take_audio(I_a, P_a, cfg.kappa_a, cfg.grid_a, cfg.chunk), select_video(I_v, P_v, cfg.kappa_v)


# --------------------------------------------------------------- what the paper compares with

# Table 3: which of I and P a selection goes by. The paper does not define FRS alone; here its draw ignores the
# importance, while P is computed as ever (readings).
SELECTIONS = {
    'both': lambda I, P: (I, P),                                   # FLAVA
    'importance': lambda I, P: (I, torch.zeros_like(P)),           # LAVA: nothing is pruned
    'forget-robust': lambda I, P: (torch.ones_like(I), P),         # FRS: nothing is preferred
    # Ours, not in the paper: P is about ½ where past and present are answered alike, and the coin of Eq. 6 then prunes
    # half of what I prefers. Here a patch is pruned only as far as it answers more to the past.
    'excess': lambda I, P: (I, (2 * P - 1).clamp(min=0)),
}
# Ours: video patches are drawn by the rank of their importance, not by its value. I is steep, so Eq. 6 hardly ever draws
# a patch of low I. Audio is drawn by I_a as printed.
SELECTIONS['rank'], SELECTIONS['rank-excess'] = SELECTIONS['importance'], SELECTIONS['excess']
BY_RANK = ('rank', 'rank-excess')


def rank_weights(I, share, weight):
    """I (B, n) → weights (B, n) for Eq. 6: `weight` for the ⌊share · n⌋ patches of highest I (one at least), 1 for the
    others."""
    top = I.topk(max(1, count(share, I.shape[1])), dim=1).indices
    return torch.ones_like(I).scatter(1, top, weight)


def select_audio_by_frequency(I, P, kappa, grid, chunk=1):
    """Fig. 10 b, "Frequency": as Algorithm 2, but a chunk is one mel band over all of the time.  → S̃_a (B, κ)"""
    time, freq = grid
    by_band = lambda x: x.unflatten(1, grid).transpose(1, 2).flatten(1)            # B,M: band after band
    kept = select_audio(by_band(I), by_band(P), kappa, (freq, time), chunk=1)
    return kept % time * freq + kept // time                                       # back to time after time


AUDIO_SELECTIONS = {   # Fig. 10 b
    'time': select_audio,                                          # Algorithm 2
    'frequency': select_audio_by_frequency,
    'none': lambda I, P, kappa, grid, chunk: select_video(I, P, kappa),   # no constraint
}


def select_random(shape, kappa, device):
    """Table 3, "Random": shape (B, n) → (B, κ) distinct positions, every subset equally likely."""
    return torch.rand(shape, device=device).argsort(1)[:, :kappa]


def select_motion(v, kappa, grid):
    """MATS (Hwang et al. 2022; Table 3): the κ patches that change most against the same place in the frame before.

    v (B, N, D) embedded patches without positions; grid = (T, rows, columns), T ≥ 2  →  (B, κ) distinct positions
    The first frame's are compared with the frame after it (readings).
    """
    frames = v.unflatten(1, (grid[0], -1))                                         # B,T,rows·columns,D
    change = (frames[:, 1:] - frames[:, :-1]).norm(dim=-1)
    change = torch.cat([change[:, :1], change], 1)                                 # the first's is the second's
    return change.flatten(1).topk(kappa, dim=1).indices
