"""Eq. 2, 3, 10 and 11 against slow, literal versions; which audio meets which video."""
import math
from types import SimpleNamespace

import pytest
import torch

from avm import AVM, UnmaskedTokens, attend, importance, unmasked_tokens, matching_loss, mu
from model import AudioVideoMAE
from one_step import batch, config
from patches import patchify, to_float


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
                for i in range(n):                         # memory order (H, n, d), read as rows of H·d
                    for c in range(d):
                        pooled[b, side * 24 + ((h * n + i) * d + c) % 24] += V[b, h, i, c] / n
    assert torch.allclose(avm.match(joint_a, joint_v), avm.fc(pooled).squeeze(-1))


def test_attend_is_an_unmasked_pass_without_gradient(sizes):
    """By the four modules, one after the other; frames may be uint8."""
    cfg, backbone, avm = config(beta=0.3), AudioVideoMAE(sizes), AVM(24, 6)
    patches = patchify(batch(0), 8)
    x = to_float(patches, 8)
    out = attend(cfg, backbone, avm, patches)
    o_a, o_v = backbone.encode(*x)
    joint_a, joint_v = backbone.fuse(o_a, o_v, x.ids_a, x.ids_v)
    p = avm.project(joint_a, joint_v)
    expected = o_a, o_v, joint_a, joint_v, *importance(p, 0.3), p.q_a, p.q_v, p.k_a, p.k_v
    for got, other in zip((*out.tokens, *out[1:]), expected, strict=True):
        assert torch.equal(got, other) and not got.requires_grad
    assert out.q_a.shape == out.k_a.shape == (4, 6, 48, 4) and out.I_v.shape == (4, 48)


@pytest.mark.parametrize('B', [1, 2, 3, 4, 9])
def test_half_of_the_batch_is_mismatched_and_never_with_its_own_audio(B):
    tokens = torch.arange(B).float()[:, None, None].expand(B, 2, 3)
    patches = SimpleNamespace(ids_a=torch.zeros(B, 2).long(), ids_v=torch.zeros(B, 2).long())
    seen = {}

    def match(joint_a, joint_v):
        seen['mismatched'], seen['logit'] = (joint_a != joint_v).flatten(1).any(1), joint_a.mean((1, 2))
        return seen['logit']
    backbone = SimpleNamespace(fuse=lambda o_a, o_v, *ids: (o_a, o_v), checkpointed=lambda function, *x: function(*x))
    avm = SimpleNamespace(match=match)
    loss = matching_loss(backbone, avm, UnmaskedTokens(*[tokens] * 4), patches)
    assert seen['mismatched'].sum() == (B // 2 if B > 2 else 0)
    p = seen['logit'].sigmoid()                            # Eq. 11
    torch.testing.assert_close(loss, -torch.where(seen['mismatched'], 1 - p, p).log().mean())


def test_the_gradient_of_matching_reaches_the_avm_alone(sizes):
    backbone, avm, patches = AudioVideoMAE(sizes), AVM(24, 6), patchify(batch(0), 8)
    matching_loss(backbone, avm, unmasked_tokens(config(), backbone, patches), patches).backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(p.grad is not None for p in avm.parameters())
