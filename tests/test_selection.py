"""Eq. 2-7, 10, 11 and Algorithm 2 against slow, literal versions."""
import math

import pytest
import torch

from avm import AVM, importance, mu
from selection import discriminative_query, prune_probability, select_audio, select_video
from steps import Scores, matching_loss, score, whole


# ------------------------------------------------------------------------ the paper, word by word

def literal_importance(q, k, beta):
    """Eq. 2, 3 for one modality: q (B,H,n,d), k (B,H,m,d) → (B,m)"""
    B, H, n, d = q.shape
    out = torch.zeros(B, k.shape[2], dtype=q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(n):
                logits = [(q[b, h, i] * k[b, h, j]).sum().item() / (beta * math.sqrt(d)) for j in range(k.shape[2])]
                total = sum(math.exp(x) for x in logits)
                for j, x in enumerate(logits):
                    out[b, j] += math.exp(x) / total / (H * n)
    return out


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


# ------------------------------------------------------------------------------------------ AVM

def test_eq_2_3(sizes):
    avm = AVM(24, 6).double()
    p = avm.project(torch.randn(2, 7, 24).double(), torch.randn(2, 5, 24).double())
    I_a, I_v = importance(p, 0.4)
    assert torch.allclose(I_a, literal_importance(p.q_v, p.k_a, 0.4)) and I_a.shape == (2, 7)
    assert torch.allclose(I_v, literal_importance(p.q_a, p.k_v, 0.4)) and I_v.shape == (2, 5)


def test_eq_10_11_literally():
    avm, B, M, N, H, d = AVM(24, 6).double(), 2, 12, 18, 6, 4
    joint_a, joint_v = torch.randn(B, M, 24).double(), torch.randn(B, N, 24).double()
    p = avm.project(joint_a, joint_v)
    V_a = mu(p.q_v, p.k_a, 1).softmax(-1) @ p.v_a          # B,H,N,d
    V_v = mu(p.q_a, p.k_v, 1).softmax(-1) @ p.v_v          # B,H,M,d
    pooled = torch.zeros(B, 48).double()
    for b in range(B):
        for side, (V, n) in enumerate(((V_a, N), (V_v, M))):
            for h in range(H):
                for i in range(n):                         # row-major memory of (H, n, d), read as rows of H·d
                    for c in range(d):
                        pooled[b, side * 24 + ((h * n + i) * d + c) % 24] += V[b, h, i, c] / n
    assert torch.allclose(avm.match(joint_a, joint_v), avm.fc(pooled).squeeze(-1))


def test_matching_pairs_and_gradient(sizes):
    """No audio of the shuffled half meets its own video; the gradient stays in the AVM."""
    from model import AudioVideoMAE
    backbone, avm = AudioVideoMAE(sizes), AVM(24, 6)
    seen = {}

    class Spy:
        def match(self, joint_a, joint_v):
            seen['a'], seen['v'] = joint_a, joint_v
            return joint_a.sum((1, 2))

    class Fuse:
        def fuse(self, o_a, o_v, *at):
            return o_a, o_v
    for B in (1, 2, 3, 4, 9):
        tokens = torch.arange(B).float()[:, None, None].expand(B, 2, 3)
        s = Scores(*[tokens] * 4, *[None] * 6)
        patches = type('P', (), dict(kept_a=torch.zeros(B, 2).long(), kept_v=torch.zeros(B, 2).long()))
        matching_loss(Fuse(), Spy(), s, patches)
        shuffled = (seen['a'] != seen['v']).any(-1).any(-1).sum().item()
        assert shuffled == (B // 2 if B > 2 else 0)
    batch = dict(audio=torch.randn(4, 64, 48), video=torch.randint(0, 256, (4, 3, 3, 32, 32), dtype=torch.uint8))
    from config import Config
    cfg = Config(**{**sizes.__dict__})
    patches = whole(batch, 8)
    matching_loss(backbone, avm, score(cfg, backbone, avm, patches), patches).backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(p.grad is not None for p in avm.parameters())


# ------------------------------------------------------------------------------------- Eq. 4 and 5

def test_eq_4_5():
    B, H, M, N, d = 3, 2, 9, 7, 4
    I_a, I_v = torch.rand(B, M).double().softmax(1), torch.rand(B, N).double().softmax(1)
    q_v, k_a, past_v = torch.randn(B, H, N, d).double(), torch.randn(B, H, M, d).double(), torch.randn(B, H, d).double()
    query_v = discriminative_query(I_v, q_v, 4)
    assert torch.allclose(query_v, literal_query(I_v, q_v, 4))
    P = prune_probability(I_a, k_a, query_v, past_v, 5)
    assert torch.allclose(P, literal_prune(I_a, k_a, query_v, past_v, 5))
    assert ((P > 0).sum(1) == 5).all()
    assert torch.allclose(prune_probability(I_a, k_a, query_v, query_v, 5).max(), torch.tensor(0.5).double())


# --------------------------------------------------------------------------- Eq. 6 and Algorithm 2

DRAWS = 10_000
CASES = {   # name: (scale of I's logits, scale of P, κ as a share)
    'plain': (1.0, 0.5, 0.5), 'peaked': (3.0, 0.3, 0.5), 'much pruned': (1.0, 1.0, 0.5), 'few': (1.0, 0.6, 0.25), 'all': (1.0, 0.5, 1.0)}


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
    """Every chunk but one is taken whole (its unpruned patches) or not at all, and the one that is trimmed is cut at the
    side that does not touch a taken neighbour."""
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
                assert got == unpruned[-len(got):]; heads += 1
            else:
                assert got == unpruned[:len(got)]; tails += 1
    assert heads > 100 and tails > 100
