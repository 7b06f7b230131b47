"""Eq. 2, 3, 10 and 11 against slow, literal versions; what is matched with what in the AVM's loss."""
import math
from types import SimpleNamespace

import torch

from avm import AVM, Scores, importance, matching_loss, mu, score
from model import AudioVideoMAE
from one_step import batch, config
from patches import normalized, whole


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


def test_eq_2_3():
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


def test_scores_are_of_the_unmasked_pass(sizes):
    """All that the selection asks for, by the four modules one after the other; frames may still be bytes."""
    cfg, backbone, avm = config(beta=0.3), AudioVideoMAE(sizes), AVM(24, 6)
    patches = whole(batch(0), 8)
    x = normalized(patches, 8)
    s = score(cfg, backbone, avm, patches)
    o_a, o_v = backbone.encode(*x)
    joint_a, joint_v = backbone.fuse(o_a, o_v, x.kept_a, x.kept_v)
    p = avm.project(joint_a, joint_v)
    expected = Scores(o_a, o_v, joint_a, joint_v, *importance(p, 0.3), p.q_a, p.q_v, p.k_a, p.k_v)
    for got, other in zip(s, expected):
        assert torch.equal(got, other) and not got.requires_grad
    assert s.q_a.shape == s.k_a.shape == (4, 6, 48, 4) and s.importance_v.shape == (4, 48)


def test_no_audio_of_the_shuffled_half_meets_its_own_video():
    seen = {}

    class Spy(torch.nn.Module):
        def match(self, joint_a, joint_v):
            seen['a'], seen['v'] = joint_a, joint_v
            return joint_a.sum((1, 2))

    class Fuse:
        def fuse(self, o_a, o_v, *at):
            return o_a, o_v
    for B in (1, 2, 3, 4, 9):
        tokens = torch.arange(B).float()[:, None, None].expand(B, 2, 3)
        patches = SimpleNamespace(kept_a=torch.zeros(B, 2).long(), kept_v=torch.zeros(B, 2).long())
        matching_loss(Fuse(), Spy(), Scores(*[tokens] * 4, *[None] * 6), patches)
        shuffled = (seen['a'] != seen['v']).any(-1).any(-1).sum().item()
        assert shuffled == (B // 2 if B > 2 else 0)


def test_the_gradient_is_taken_at_once_and_is_exactly_the_same(sizes, monkeypatch):
    """Nothing of the AVM's pass is kept for the backward pass of what the loss is added to."""
    backbone, avm, patches = AudioVideoMAE(sizes), AVM(24, 6), whole(batch(0), 8)
    s = score(config(), backbone, avm, patches)
    found = []
    for taken in (True, False):
        if not taken:
            monkeypatch.setattr('avm.with_gradient_taken', lambda loss, parameters: loss)
        torch.manual_seed(3)
        loss = matching_loss(backbone, avm, s, patches)
        assert ('GradientTaken' in loss.grad_fn.name()) == taken
        avm.zero_grad()
        (4 * loss + avm.norm_a.weight.sum()).backward()
        found.append([loss.detach(), *(p.grad for p in avm.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_the_gradient_of_matching_stays_in_the_avm(sizes):
    backbone, avm, patches = AudioVideoMAE(sizes), AVM(24, 6), whole(batch(0), 8)
    matching_loss(backbone, avm, score(config(), backbone, avm, patches), patches).backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(p.grad is not None for p in avm.parameters())
