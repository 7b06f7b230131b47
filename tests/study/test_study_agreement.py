"""study/agreement.py: the top eighth and the rank correlation of two I, against plain loops."""
import pytest
import torch

from study.agreement import compare, top_share


def test_compare_against_loops():
    torch.manual_seed(0)
    full, cheap, source = torch.rand(5, 16), torch.rand(5, 16), torch.rand(5, 16) < 0.3
    shared, held = [], []
    for x, y, marked in zip(full, cheap, source):
        best_x, best_y = set(x.argsort()[-2:].tolist()), set(y.argsort()[-2:].tolist())      # an eighth of 16
        shared.append(len(best_x & best_y) / 2)
        held.append(sum(marked[i].item() for i in best_y) / marked.sum().item())
    found = compare(full, cheap, source)
    assert found['shared'] == pytest.approx(100 * sum(shared) / 5)
    assert found['source_cheap'] == pytest.approx(100 * sum(held) / 5)


def test_equal_and_reversed_orders():
    I = torch.rand(3, 16)
    source = top_share(I)
    same, reversed_ = compare(I, 2 * I, source), compare(I, -I, source)
    assert (same['correlation'], same['shared'], same['source_full']) == pytest.approx((1, 100, 100))
    assert (reversed_['correlation'], reversed_['shared'], reversed_['source_cheap']) == pytest.approx((-1, 0, 0))
