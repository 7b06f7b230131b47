"""Eq. 4-6 and Algorithm 2 against slow, literal versions; the selections of Table 3 and Fig. 10."""
import math

import pytest
import torch

import selection
from one_step import config
from selection import (discriminative_query, prune_probability, select, select_audio, select_motion, select_random,
                       select_video)


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


def literal_video(I, P, kappa):
    """Eq. 6 for one sample, patch by patch."""
    F = torch.bernoulli(P).bool()
    weight = torch.where(F, torch.zeros_like(I), I)
    drawn = []
    while len(drawn) < kappa and weight.sum() > 0:
        j = torch.multinomial(weight, 1).item()
        drawn.append(j)
        weight[j] = 0
    weight = torch.where(F, I, torch.zeros_like(I))        # too few: the pruned ones
    while len(drawn) < kappa:
        j = torch.multinomial(weight, 1).item()
        drawn.append(j)
        weight[j] = 0
    return drawn, F


def literal_audio(I, P, kappa, grid, chunk):
    """Algorithm 2 for one sample, with the corrections of the readings."""
    time, freq = grid
    F = torch.bernoulli(P).bool().reshape(time, freq)
    I_c = I.reshape(time, freq).mean(1).reshape(-1, chunk).mean(1)
    t_select = torch.multinomial(I_c, len(I_c)).tolist()
    taken, drawn = [], []
    for t in t_select:
        patches = [i * freq + f for i in range(t * chunk, (t + 1) * chunk) for f in range(freq) if not F[i, f]]
        surplus = len(drawn) + len(patches) - kappa
        if surplus > 0:
            only_after = t + 1 in taken and t - 1 not in taken
            patches = patches[surplus:] if only_after else patches[:len(patches) - surplus]
        drawn += patches
        taken.append(t)
        if len(drawn) == kappa:
            return drawn, F.flatten(), taken
    for t in t_select:                                     # too few: the pruned ones
        for j in range(t * chunk * freq, (t + 1) * chunk * freq):
            if F.flatten()[j] and len(drawn) < kappa:
                drawn.append(j)
    return drawn, F.flatten(), taken


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

DRAWS = 10_000
CASES = {   # name: (scale of I's logits, scale of P, κ as a share)
    'plain': (1.0, 0.5, 0.5), 'peaked': (3.0, 0.3, 0.5), 'much pruned': (1.0, 1.0, 0.5), 'few': (1.0, 0.6, 0.25),
    'all': (1.0, 0.5, 1.0)}


def close(frequency, reference, draws):
    """Two samples of the same law: within 5 standard deviations of their difference."""
    p = (frequency + reference) / 2
    return ((frequency - reference).abs() <= 5 * (2 * p * (1 - p) / draws).clamp(min=1e-6).sqrt() + 2 / draws).all()


@pytest.mark.parametrize('case', CASES)
def test_video_selection(case):
    scale, pruned, share = CASES[case]
    N, kappa = 14, int(14 * share)
    I, P = (scale * torch.randn(N)).softmax(0), pruned * torch.rand(N)
    S = select_video(I.expand(DRAWS, -1), P.expand(DRAWS, -1), kappa)
    assert S.shape == (DRAWS, kappa) and (S.sort(1).values.diff(dim=1) > 0).all()        # κ distinct ones
    reference = torch.zeros(N)
    for _ in range(DRAWS):
        reference[literal_video(I, P, kappa)[0]] += 1
    assert close(torch.bincount(S.flatten(), minlength=N) / DRAWS, reference / DRAWS, DRAWS)


@pytest.mark.parametrize('case', CASES)
def test_audio_selection(case):
    scale, pruned, share = CASES[case]
    grid, chunk = (12, 3), 2
    M, kappa = 36, int(36 * share) - (share < 1)           # κ is no multiple of a chunk, so that one is trimmed
    I, P = (scale * torch.randn(M)).softmax(0), pruned * torch.rand(M)
    S = select_audio(I.expand(DRAWS, -1), P.expand(DRAWS, -1), kappa, grid, chunk)
    assert S.shape == (DRAWS, kappa) and (S.sort(1).values.diff(dim=1) > 0).all()
    reference = torch.zeros(M)
    for _ in range(DRAWS):
        reference[literal_audio(I, P, kappa, grid, chunk)[0]] += 1
    assert close(torch.bincount(S.flatten(), minlength=M) / DRAWS, reference / DRAWS, DRAWS)


def fixed(P, monkeypatch):
    """Let the coins of Eq. 6 fall as P says: it holds zeros and ones."""
    monkeypatch.setattr(torch, 'bernoulli', lambda p: p.clone())
    return P


def test_pruned_patches_come_last(monkeypatch):
    torch.manual_seed(1)
    F = fixed((torch.rand(2000, 24) < torch.rand(2000, 1)).float(), monkeypatch)
    I = torch.randn(2000, 24).softmax(1)
    for S in (select_video(I, F, 12), select_audio(I, F, 12, (8, 3), 2)):
        pruned_taken = F.gather(1, S).sum(1)
        assert torch.equal(pruned_taken, (12 - (24 - F.sum(1))).clamp(min=0))            # exactly what was missing
    assert (F.sum(1) > 12).any() and (F.sum(1) < 12).any()


def test_audio_comes_in_whole_chunks(monkeypatch):
    """Every chunk but one is taken whole (its unpruned patches) or not at all, and the one that is trimmed is cut at
    the side that does not touch a taken neighbour."""
    torch.manual_seed(2)
    B, grid, chunk, kappa = 3000, (16, 3), 4, 20
    F = fixed((torch.rand(B, 48) < 0.25).float(), monkeypatch)
    S = select_audio(torch.randn(B, 48).softmax(1), F, kappa, grid, chunk)
    chosen = torch.zeros(B, 48).scatter(1, S, 1).reshape(B, 4, 12)
    F = F.reshape(B, 4, 12)
    tails = heads = 0
    for b in range(B):
        assert (F[b].sum() <= 28)                          # enough is left in every draw of this test
        whole = [(chosen[b, c] == 1 - F[b, c]).all().item() for c in range(4)]
        none = [chosen[b, c].sum() == 0 for c in range(4)]
        part = [c for c in range(4) if not whole[c] and not none[c]]
        assert len(part) <= 1
        for c in part:
            unpruned = [i for i in range(12) if F[b, c, i] == 0]
            got = [i for i in range(12) if chosen[b, c, i]]
            before, after = c > 0 and whole[c - 1], c < 3 and whole[c + 1]
            if after and not before:
                assert got == unpruned[-len(got):]
                heads += 1
            else:
                assert got == unpruned[:len(got)]
                tails += 1
    assert heads > 100 and tails > 100


# ------------------------------------------------------------------- what the paper compares with

def both(n, patches, draw=torch.rand):
    return draw(n, patches), draw(n, patches)


def test_importance_only_and_forget_robust_only(monkeypatch):
    I, P = both(4, 48), both(4, 48)                                # audio, video
    given = {}
    monkeypatch.setitem(selection.AUDIO_SELECTIONS, 'time', lambda *of: given.update(a=of[:2]))
    monkeypatch.setattr(selection, 'select_video', lambda *of: given.update(v=of[:2]))
    for name, uses_I, uses_P in (('both', True, True), ('importance', True, False), ('forget-robust', False, True)):
        select(config(selection=name), *I, *P)
        for (I_used, P_used), mine, prune in zip((given['a'], given['v']), I, P):
            assert torch.equal(I_used, mine if uses_I else torch.ones_like(mine))
            assert torch.equal(P_used, prune if uses_P else torch.zeros_like(prune))


def test_selection_by_name_is_algorithm_2_and_eq_6():
    cfg, I, P = config(rho_a=0.4), both(5, 48), both(5, 48)
    torch.manual_seed(9)
    kept_a, kept_v = select(cfg, *I, *P)
    torch.manual_seed(9)
    assert torch.equal(kept_a, select_audio(I[0], P[0], 19, (8, 6), 2))       # ⌊0.4 · 48⌋ of 8 time steps by 6 bands
    assert torch.equal(kept_v, select_video(I[1], P[1], 24))


@pytest.mark.parametrize('how', ['frequency', 'none'])
def test_audio_selection_by_frequency_or_without_constraint(how):
    cfg = config(audio_selection=how)
    time, freq = cfg.grid_a                                        # 8, 6

    def kept_of(I):
        I_v = torch.rand(len(I), cfg.num_patches_v)
        return select(cfg, I, I_v, torch.zeros_like(I), torch.zeros_like(I_v))[0]
    kept = kept_of(torch.rand(200, time * freq))
    assert kept.shape == (200, time * freq // 2) and all(len(set(row.tolist())) == len(row) for row in kept)
    bands = lambda row: sorted(t * freq + f for f in {n % freq for n in row} for t in range(time))
    assert all(sorted(row) == bands(row) for row in kept.tolist()) == (how == 'frequency')      # whole bands
    loud = torch.full((2000, time * freq), 0.01)
    loud[:, 2::freq] = 1.0                                         # the third band: what matters is drawn more often
    share = ((kept_of(loud) % freq == 2).sum(1) == time).float().mean()
    assert share > (0.95 if how == 'frequency' else 0.6)


def test_random_selection_is_a_uniform_subset():
    kept = select_random((4000, 10), 3, 'cpu')
    assert kept.shape == (4000, 3) and (kept.sort(1).values.diff(dim=1) > 0).all()
    often = torch.bincount(kept.flatten(), minlength=10) / 4000
    assert (often - 0.3).abs().max() < 4.5 * math.sqrt(0.3 * 0.7 / 4000)


def test_motion_literally():
    v, grid, kappa = torch.randn(3, 3 * 2 * 4, 5), (3, 2, 4), 9
    for b, row in enumerate(select_motion(v, kappa, grid).tolist()):
        change = []
        for n in range(24):
            before = n - 8 if n >= 8 else n + 8                    # the first frame's: against the frame after it
            change.append(round((v[b, n] - v[b, before]).norm().item(), 4))
        # the first frame and the second tie; which of two equals comes in at the border is no matter
        assert sorted(change[n] for n in row) == sorted(change, reverse=True)[:kappa][::-1] and len(set(row)) == kappa


def test_excess_prunes_only_what_answers_more_to_the_past():
    I, P = torch.rand(1, 4), torch.tensor([[0.2, 0.5, 0.75, 1.0]])
    kept_I, pruned = selection.SELECTIONS['excess'](I, P)
    assert kept_I is I and torch.allclose(pruned, torch.tensor([[0.0, 0.0, 0.5, 1.0]]))


# ------------------------------------------------------------------------------ drawing by rank (ours)

def literal_rank_weights(I, share, weight):
    """Patch by patch: the ⌊share · n⌋ of highest importance have the weight, the others 1."""
    out = []
    for row in I.tolist():
        top = sorted(range(len(row)), key=lambda j: -row[j])[:int(share * len(row) + 1e-9)]
        out.append([float(weight) if j in top else 1.0 for j in range(len(row))])
    return torch.tensor(out)


@pytest.mark.parametrize('share, weight', [(1 / 16, 4), (1 / 8, 16), (1 / 4, 64)])
def test_rank_weights_literally(share, weight):
    I = torch.rand(5, 72)
    assert torch.equal(selection.rank_weights(I, share, weight), literal_rank_weights(I, share, weight))


@pytest.mark.parametrize('name, share_of_P', [('rank', 0.0), ('rank-excess', 1.0)])
def test_selection_by_rank_draws_as_literally(name, share_of_P):
    """How often each patch is drawn: video by the weights of its rank, audio by I_a as printed."""
    cfg, n = config(method='flava', selection=name, rank_share=0.25, rank_weight=8.0), 4000
    N, M = cfg.num_patches_v, cfg.num_patches_a
    I_v, I_a, P = torch.rand(N), torch.rand(M), torch.rand(N)
    spread = lambda x: x.expand(n, -1)
    kept_a, kept_v = select(cfg, spread(I_a), spread(I_v), torch.zeros(n, M), spread(P))
    weights = literal_rank_weights(I_v[None], 0.25, 8.0)[0]
    excess = ((2 * P - 1).clamp(min=0) * share_of_P)
    literal = torch.tensor([literal_video(weights, excess, cfg.kappa_v)[0] for _ in range(n)])
    often = lambda kept, m: torch.bincount(kept.flatten(), minlength=m) / n
    assert (often(kept_v, N) - often(literal, N)).abs().max() < 5 * math.sqrt(0.5 / n)
    expected = select_audio(spread(I_a), torch.zeros(n, M), cfg.kappa_a, cfg.grid_a, cfg.chunk)
    assert (often(kept_a, M) - often(expected, M)).abs().max() < 5 * math.sqrt(0.5 / n)
