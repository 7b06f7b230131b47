"""Eq. 4-6 and Algorithm 2 against slow, literal versions; the selections of Table 3 and Fig. 10, and ours."""
import math
import random

import pytest
import torch

import selection
from config import AUDIO_SELECTIONS, SELECTIONS
from conftest import DEVICE
from one_step import config
from selection import (discriminative_query, sampling_weights, prune_probability, rank_weights, select_audio,
                       select_motion, select_patches, select_random, select_video)


# ------------------------------------------------------------------------ the paper, word by word

def literal_query(I, q, kappa):
    """Eq. 4, lines 1-3"""
    out = []
    for b in range(len(I)):
        S = sorted(range(I.shape[1]), key=lambda j: -I[b, j].item())[:kappa]
        weight = sum(I[b, j] for j in S)
        out.append(sum(I[b, j] * q[b, :, j] for j in S) / weight)
    return torch.stack(out)


def literal_prune(I, k, query, past, kappa):
    """Eq. 4, line 4, and Eq. 5"""
    P = torch.zeros_like(I)
    B, H, n, d = k.shape
    for b in range(B):
        for j in sorted(range(n), key=lambda j: -I[b, j].item())[:kappa]:
            for h in range(H):
                now = math.exp((query[b, h] * k[b, h, j]).sum().item() / math.sqrt(d))
                then = math.exp((past[b, h] * k[b, h, j]).sum().item() / math.sqrt(d))
                P[b, j] += then / (now + then) / H
    return P


def draw(weight):
    """Multinomial without replacement, one by one, until only weights of 0 are left.  weight: {index: number}"""
    weight, drawn = {j: w for j, w in weight.items() if w > 0}, []
    while weight:
        j, = random.choices(list(weight), list(weight.values()))
        drawn.append(j)
        del weight[j]
    return drawn


def literal_video(I, P, kappa):
    """Eq. 6 for one sample, patch by patch; if too few are left, pruned patches fill up the end. I, P: lists"""
    F = [random.random() < p for p in P]
    unpruned = draw({j: weight for j, weight in enumerate(I) if not F[j]})
    return (unpruned + draw({j: weight for j, weight in enumerate(I) if F[j]}))[:kappa]


def literal_audio(I, P, kappa, grid, chunk):
    """Algorithm 2 for one sample, with the corrections of notes N19 and N20. I, P: lists"""
    size, F = chunk * grid[1], [random.random() < p for p in P]
    t_select = draw({t: sum(I[t * size:(t + 1) * size]) for t in range(len(I) // size)})
    taken, drawn = [], []
    for t in t_select:
        patches = [j for j in range(t * size, (t + 1) * size) if not F[j]]
        surplus = len(drawn) + len(patches) - kappa
        if surplus > 0:
            only_after = t + 1 in taken and t - 1 not in taken
            patches = patches[surplus:] if only_after else patches[:len(patches) - surplus]
        drawn += patches
        taken.append(t)
        if len(drawn) == kappa:
            return drawn
    for t in t_select:                                     # too few: the pruned ones
        drawn += [j for j in range(t * size, (t + 1) * size) if F[j]]
    return drawn[:kappa]


# ------------------------------------------------------------------------------------- Eq. 4 and 5

def test_eq_4_5():
    B, H, M, N, d = 3, 2, 9, 7, 4
    I_a, I_v = torch.rand(B, M).double().softmax(1), torch.rand(B, N).double().softmax(1)
    q_v, k_a, past_v = (torch.randn(B, H, *more).double() for more in ((N, d), (M, d), (d,)))
    query_v = discriminative_query(I_v, q_v, 4)
    assert torch.allclose(query_v, literal_query(I_v, q_v, 4))
    P = prune_probability(I_a, k_a, query_v, past_v, 5)
    assert torch.allclose(P, literal_prune(I_a, k_a, query_v, past_v, 5))
    assert ((P > 0).sum(1) == 5).all()
    assert torch.allclose(prune_probability(I_a, k_a, query_v, query_v, 5).max(), torch.tensor(0.5).double())


# --------------------------------------------------------------------------- Eq. 6 and Algorithm 2

DRAWS = 5000
CASES = {   # name: (scale of I's logits, scale of P, κ as a share)
    'plain': (1.0, 0.5, 0.5), 'peaked': (3.0, 0.3, 0.5), 'much pruned': (1.0, 1.0, 0.5), 'few': (1.0, 0.6, 0.25),
    'all': (1.0, 0.5, 1.0)}


def frequency(S, n):
    """S (draws, κ), distinct positions in each row → (n, n): how often each two of n patches are selected together; on
    the diagonal, how often each one is selected"""
    assert (S.sort(1).values.diff(dim=1) > 0).all()
    selected = torch.zeros(len(S), n).scatter(1, S, 1)
    return selected.T @ selected / len(S)


def same_distribution(S, literal, n):
    """Two samples of one distribution: within 5 standard deviations of their difference"""
    first, second = frequency(S, n), frequency(torch.tensor(literal), n)
    p = (first + second) / 2
    return ((first - second).abs() <= 5 * (2 * p * (1 - p) / len(S)).clamp(min=1e-6).sqrt() + 2 / len(S)).all()


@pytest.mark.parametrize('case', CASES)
def test_video_selection(case):
    scale, pruned, share = CASES[case]
    N, kappa = 14, int(14 * share)
    I, P = (scale * torch.randn(N)).softmax(0), pruned * torch.rand(N)
    S = select_video(I.expand(DRAWS, -1), P.expand(DRAWS, -1), kappa)
    assert S.shape == (DRAWS, kappa)
    assert same_distribution(S, [literal_video(I.tolist(), P.tolist(), kappa) for _ in range(DRAWS)], N)


@pytest.mark.parametrize('case', CASES)
def test_audio_selection(case):
    """Whole chunks are selected together, and one chunk is trimmed at the right side: Algorithm 2 literally."""
    scale, pruned, share = CASES[case]
    grid, chunk, M = (12, 3), 2, 36
    kappa = 36 if share == 1 else int(36 * share) - 1      # κ is no multiple of a chunk, so one is trimmed
    I, P = (scale * torch.randn(M)).softmax(0), pruned * torch.rand(M)
    S = select_audio(I.expand(DRAWS, -1), P.expand(DRAWS, -1), kappa, grid, chunk)
    assert S.shape == (DRAWS, kappa)
    assert same_distribution(S, [literal_audio(I.tolist(), P.tolist(), kappa, grid, chunk) for _ in range(DRAWS)], M)


# -------------------------------------------------------------------- `--selection`: Table 3 and ours

def test_weights_and_pruning_of_each_selection():
    """All but the methods without AVM. By rank: 16 for the ⌊1/8 · 48⌋ = 6 patches of highest importance, 1 for the
    others."""
    I_a, I_v, P_a, P_v = (torch.rand(4, 48) for _ in range(4))
    ones, none = torch.ones(4, 48), torch.zeros(4, 48)
    by_rank = torch.tensor([[16.0 if sorted(row, reverse=True).index(x) < 6 else 1.0 for x in row]
                            for row in I_v.tolist()])
    excess_a, excess_v = (2 * P_a - 1).clamp(min=0), (2 * P_v - 1).clamp(min=0)
    expected = {'both': (I_a, I_v, P_a, P_v), 'importance': (I_a, I_v, none, none),
                'forget-robust': (ones, ones, P_a, P_v), 'excess': (I_a, I_v, excess_a, excess_v),
                'rank': (I_a, by_rank, none, none), 'rank-excess': (I_a, by_rank, excess_a, excess_v)}
    assert set(expected) <= set(SELECTIONS)                # a fork may have more
    for name, tensors in expected.items():
        for got, tensor in zip(sampling_weights(config(selection=name), I_a, I_v, P_a, P_v), tensors):
            assert torch.equal(got, tensor), name
    assert torch.equal(rank_weights(I_v[:, :5], 0.01, 4.0).sum(1), torch.full((4,), 8.0))      # at least one patch


def test_a_step_selects_by_algorithm_2_and_eq_6():
    cfg, (I_a, I_v, P_a, P_v) = config(rho_a=0.4), (torch.rand(5, 48) for _ in range(4))
    torch.manual_seed(9)
    ids_a, ids_v = select_patches(cfg, I_a, I_v, P_a, P_v)
    torch.manual_seed(9)
    assert torch.equal(ids_a, select_audio(I_a, P_a, 19, (8, 6), 2))       # ⌊0.4 · 48⌋ of 8 time steps by 6 rows
    assert torch.equal(ids_v, select_video(I_v, P_v, 24))


@pytest.mark.parametrize('name', [name for name in AUDIO_SELECTIONS if name != 'time'])
def test_audio_chunks_along_frequency_or_none(name):
    cfg = config(audio_selection=name)
    time, freq = cfg.grid_a                                        # 8, 6

    def select(I):
        other = torch.rand(len(I), cfg.num_patches_v)
        return select_patches(cfg, I, other, torch.zeros_like(I), torch.zeros_like(other))[0]
    ids = select(torch.rand(200, time * freq))
    frequency(ids, time * freq)
    whole_rows = all((torch.bincount(row % freq, minlength=freq) % time == 0).all() for row in ids)
    assert ids.shape == (200, time * freq // 2) and whole_rows == (name == 'frequency')
    important = torch.full((2000, time * freq), 0.01)
    important[:, 2::freq] = 1.0                                    # the third row is selected more often
    share = ((select(important) % freq == 2).sum(1) == time).float().mean()
    assert share > (0.95 if name == 'frequency' else 0.6)


def test_random_selection_is_a_uniform_subset():
    ids = select_random(torch.zeros(4000, 10), 3)
    assert ids.shape == (4000, 3)
    assert (frequency(ids, 10).diagonal() - 0.3).abs().max() < 4.5 * math.sqrt(0.3 * 0.7 / 4000)


def test_motion_literally():
    v, grid, kappa = torch.randn(3, 3 * 2 * 4, 5), (3, 2, 4), 9
    for b, row in enumerate(select_motion(v, kappa, grid).tolist()):
        change = []
        for n in range(24):
            other = n - 8 if n >= 8 else n + 8                     # the first frame: compared with the second
            change.append(round((v[b, n] - v[b, other]).norm().item(), 4))
        # the first two frames tie: either of two equal patches may be selected
        assert sorted(change[n] for n in row) == sorted(change, reverse=True)[:kappa][::-1] and len(set(row)) == kappa


def test_pruning_survives_nan():
    assert not selection.sample_pruned(torch.tensor([[float('nan'), 0.0]])).any()
