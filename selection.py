"""Forget-robust patch selection (§4.2, §4.3, App. H).

In:  importance scores I (Eq. 3), queries and keys of the AVM, and q̂ of past pairs.
Out: S̃_a (B, κ_a), S̃_v (B, κ_v): positions of the selected patches (Eq. 6, Algorithm 2), for `gather_patches` (Eq. 7).
     At the end: the ablations of Table 3 and Fig. 10, and our variants.

    I, q, k ─ Eq. 4 ─► k̂, q̂ ─ Eq. 5, with a past q̂ᵖ ─► P ─ Bernoulli ─► pruned (F) ─┬─ Eq. 6 ──────► S̃_v
    I ─────────────────────────────────────────────────────────────────────────────┴─ Algorithm 2 ─► S̃_a

The whole batch is selected at once. Sampling without replacement uses exponential arrival times e_i / w_i with
e_i ~ Exp(1): the order of arrival has exactly the distribution of drawing one patch after the other by weight w.

The file is not called `select.py`: that name would hide a module of Python's standard library.
Tour: stops 7 to 11.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from avm import mu
from config import num_kept


class Scores(NamedTuple):
    """How one training step scores all patches of the current pairs (`flava.py`)."""
    I_a: torch.Tensor        # B,M     importance, Eq. 3
    I_v: torch.Tensor        # B,N
    P_a: torch.Tensor        # B,M     pruning probability, Eq. 5
    P_v: torch.Tensor        # B,N
    queries: dict            # {query_a, query_v}: q̂_a, q̂_v (B, H, d) of Eq. 4, for the memory; {} with a student
    aux_losses: dict         # what trains the scorer: {avm: L^avm of Eq. 11}; a student has its own, in some steps


# --------------------------------------------------------------- Eq. 4, 5: the pruning probability

def discriminative_query(I, q, kappa):
    """q̂ of Eq. 4: the mean query of the κ most important patches, weighted by importance.

    I (B, n), q (B, H, n, d) → q̂ (B, H, d)
    """
    weight, S = I.topk(kappa, dim=1)                   # S = argsort(I), descending (N14)
    q_top = gather_tokens(q, S)                        # B,H,κ,d
    weight = weight / weight.sum(1, keepdim=True)
    return torch.einsum('bhkd,bk->bhd', q_top, weight.to(q.dtype))


def prune_probability(I, k, query, past_query, kappa):
    """k̂, Â of Eq. 4, and Eq. 5: the Softmax over the current and the past query's attention to each patch.

    I (B, n), k (B, H, n, d)       importance and keys of one modality
    query, past_query (B, H, d)    q̂ and q̂ᵖ of the other modality, current and from the memory
    returns P (B, n): the past query's part, ½ where both attend alike (N15); 0 outside the κ most important (N16)
    """
    S = I.topk(kappa, dim=1).indices
    k_top = gather_tokens(k, S)                                        # k̂: B,H,κ,d
    logits = mu(query[:, :, None], k_top, beta=1).squeeze(2)           # Â: B,H,κ
    past_logits = mu(past_query[:, :, None], k_top, beta=1).squeeze(2)                 # Âᵖ: B,H,κ
    share_of_past = torch.stack([logits, past_logits]).softmax(0)[1].mean(1)           # B,κ: the mean over heads
    return torch.zeros_like(I).scatter(1, S, share_of_past.to(I.dtype))


def gather_tokens(x, S):
    """x (B, H, n, d), S (B, κ) → (B, H, κ, d)"""
    return x.gather(2, S[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def sample_pruned(P):
    """The Bernoulli draws of Eq. 6: P (B, n) → pruned (B, n), 1 where a patch is pruned. After a NaN loss P is NaN.
    torch.bernoulli raises an error on NaN, so NaN becomes 0; the training loop reports the NaN loss."""
    return torch.bernoulli(P.nan_to_num(0)).long()


# ------------------------------------------------------------------------- Eq. 6: select video

def draw_order(weight):
    """Multinomial without replacement, to the end: weight (B, n) ≥ 0 → (B, n) indices in the order drawn. Weights of 0
    come last."""
    arrival = torch.empty_like(weight).exponential_() / weight         # e / 0 = inf
    return arrival.argsort(1)


def inverse_permutation(order):
    """order (B, n) → (B, n): the place of each index in the order"""
    return order.argsort(1)


def select_video(weight, P, kappa):
    """Eq. 6: draw κ patches by weight, without the pruned ones.

    weight, P (B, N) → S̃_v (B, κ), distinct positions
    If too few are left, pruned patches fill up the end (N19).
    """
    pruned = sample_pruned(P)
    order = draw_order(weight)
    # Without the pruned patches, the others are still in an order drawn by weight. So moving the pruned ones to the end
    # is the draw of Eq. 6, where their weight is 0.
    unpruned_first = pruned.gather(1, order).argsort(dim=1, stable=True)
    return order.gather(1, unpruned_first)[:, :kappa]


# ------------------------------------------------------------------- Algorithm 2: select audio

def select_audio(weight, P, kappa, grid, chunk):
    """Algorithm 2: κ patches in whole chunks of L_c time steps, so that sound stays continuous.

    weight, P (B, M), time-major; grid = (time, freq), M = time · freq; chunk = L_c, which divides time
    returns S̃_a (B, κ), distinct positions

        1. draw which patches are pruned
        2. draw an order of chunks, by the mean weight of each
        3. count the unpruned patches of the chunks, in the order drawn, until κ are reached. All chunks but the last
           one counted are complete: each of their unpruned patches is taken
        4. the last chunk counted has a surplus: drop it from its tail; or, if the next chunk in time is complete and the
           previous one is not, from its head (N20)
        5. sort the patches: unpruned before pruned (N19), then by the order of chunks, then by index in the chunk. Take
           the first κ
    """
    B, M = weight.shape
    time, freq = grid
    num_chunks, size = time // chunk, chunk * freq

    # 1. draw which patches are pruned
    pruned = sample_pruned(P)

    # 2. draw an order of chunks
    order = draw_order(weight.reshape(B, num_chunks, size).mean(2))    # t_select: B,chunks
    draw_index = inverse_permutation(order)                            # index of each chunk in the order drawn

    # 3. count unpruned patches until κ are reached
    unpruned = size - pruned.reshape(B, num_chunks, size).sum(2)       # B,chunks
    counted = unpruned.gather(1, order).cumsum(1)                      # B,chunks, in the order drawn
    # with fewer than κ unpruned patches, all chunks are counted (N19)
    last_index = (counted < kappa).sum(1, keepdim=True).clamp(max=num_chunks - 1)      # B,1: of the last chunk counted
    complete = draw_index < last_index                                 # B,chunks, in time

    # 4. number the patches of the last chunk from the end that is kept: the cut to κ below drops the other end
    previous_complete = F.pad(complete, (1, 0))[:, :-1]                # is the previous chunk in time complete?
    next_complete = F.pad(complete, (0, 1))[:, 1:]
    drop_head = (draw_index == last_index) & next_complete & ~previous_complete
    index_in_chunk = torch.arange(size, device=weight.device).expand(B, num_chunks, size)
    index_in_chunk = torch.where(drop_head[:, :, None], size - 1 - index_in_chunk, index_in_chunk)

    # 5. sort by one integer per patch
    key = pruned * M + (draw_index[:, :, None] * size + index_in_chunk).reshape(B, M)
    return key.argsort(1)[:, :kappa]


# ------------------------------------------------------------------- the selection of a training step

def select_patches(cfg, I_a, I_v, P_a, P_v):
    """I_a, P_a (B, M) and I_v, P_v (B, N) → S̃_a (B, κ_a) by Algorithm 2, S̃_v (B, κ_v) by Eq. 6"""
    weight_a, weight_v, P_a, P_v = sampling_weights(cfg, I_a, I_v, P_a, P_v)
    if cfg.audio_selection == 'frequency':             # Fig. 10 b
        ids_a = select_audio_by_frequency(weight_a, P_a, cfg.kappa_a, cfg.grid_a)
    elif cfg.audio_selection == 'none':                # Fig. 10 b: no chunks, as for video
        ids_a = select_video(weight_a, P_a, cfg.kappa_a)
    else:
        ids_a = select_audio(weight_a, P_a, cfg.kappa_a, cfg.grid_a, cfg.chunk)
    return ids_a, select_video(weight_v, P_v, cfg.kappa_v)


def sampling_weights(cfg, I_a, I_v, P_a, P_v):
    """`--selection` → weight_a (B, M), weight_v (B, N), to draw by; P_a (B, M), P_v (B, N), to prune by

        both            I and P: FLAVA                     excess          I and the excess of P: ours
        importance      I, no pruning: LAVA (Table 3)      rank            video by rank of I, no pruning: ours
        forget-robust   uniform, P: FRS (Table 3, N21)     rank-excess     video by rank of I, the excess of P: ours
    """
    # weights; `rank` draws audio by I, because drawing audio by rank gave no gain (results/details-rank.md)
    weight_a, weight_v = I_a, I_v
    if cfg.selection == 'forget-robust':
        weight_a, weight_v = torch.ones_like(I_a), torch.ones_like(I_v)
    if cfg.selection in ('rank', 'rank-excess'):
        weight_v = rank_weights(I_v, cfg.rank_share, cfg.rank_weight)

    # pruning probabilities
    if cfg.selection in ('importance', 'rank'):
        P_a, P_v = torch.zeros_like(P_a), torch.zeros_like(P_v)
    if cfg.selection in ('excess', 'rank-excess'):
        P_a, P_v = excess(P_a), excess(P_v)
    return weight_a, weight_v, P_a, P_v


def excess(P):
    """Ours. P is about ½ where past and current query attend to a patch alike, and Eq. 6 then prunes half of the
    patches of high importance. This prunes a patch only as far as the past query attends to it more.

    P (B, n) → (B, n)
    """
    return (2 * P - 1).clamp(min=0)


def rank_weights(I, share, weight):
    """Ours: draw by whether I is in its top share, not by its value. I is steep, so Eq. 6 hardly ever draws a patch of
    low I.

    I (B, n) → (B, n): `weight` for the ⌊share · n⌋ patches of highest I (at least one), 1 for the others
    """
    top = I.topk(max(1, num_kept(share, I.shape[1])), dim=1).indices
    return torch.ones_like(I).scatter(1, top, weight)


# ------------------------------------------------------------------------- ablations (Table 3, Fig. 10)

def select_audio_by_frequency(weight, P, kappa, grid):
    """Fig. 10 b, "Frequency": Algorithm 2 with chunks of one frequency row over all time (N21).  → S̃_a (B, κ)"""
    time, freq = grid
    by_frequency = select_audio(transpose_grid(weight, grid), transpose_grid(P, grid), kappa, (freq, time), chunk=1)
    return (by_frequency % time) * freq + by_frequency // time         # back to time-major positions


def transpose_grid(x, grid):
    """x (B, M), time-major → (B, M), frequency-major"""
    return x.unflatten(1, grid).transpose(1, 2).flatten(1)


def select_random(ids, kappa):
    """Table 3, "Random": ids (B, n) of all patches → (B, κ) distinct positions, every subset equally likely"""
    return torch.rand(ids.shape, device=ids.device).argsort(1)[:, :kappa]


def select_motion(v, kappa, grid):
    """Table 3, MATS (Hwang et al. 2022): the κ patches that change most from the frame before.

    v (B, N, D): patch embeddings without positions; grid = (T, rows, columns), T ≥ 2 → (B, κ) distinct positions
    The first frame is compared with the second (N21).
    """
    frames = v.unflatten(1, (grid[0], -1))                             # B,T,rows·columns,D
    change = (frames[:, 1:] - frames[:, :-1]).norm(dim=-1)
    change = torch.cat([change[:, :1], change], 1)
    return change.flatten(1).topk(kappa, dim=1).indices
