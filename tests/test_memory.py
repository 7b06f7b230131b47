"""The rehearsal memory: chance, precision, bytes, and splitting over another number of processes."""
import math
from types import SimpleNamespace

import psutil
import pytest
import torch

from avm import AVM
from config import Sizes, UserError
from conftest import DEVICE, on_cpu
from flava import FLAVA
from memory import Memory, patch_capacity, penalty, reshard
from model import AudioVideoMAE
from one_step import batch, make
from utils.cli import parse


def test_reservoir_keeps_each_pair_equally_often():
    kept, runs, capacity, stream = torch.zeros(60), 1500, 12, 60
    for _ in range(runs):
        m = Memory(capacity)
        for start in range(0, stream, 10):
            m.add(number=torch.arange(start, start + 10).float()[:, None])
        numbers = m.sample(capacity, DEVICE)['number'].flatten().long()
        assert len(numbers) == len(set(numbers.tolist())) == capacity
        kept[numbers] += 1
    share = capacity / stream
    assert (kept / runs - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / runs)


def test_replayed_values_are_the_stored_ones():
    m = Memory(50)
    audio, video = torch.randn(20, 64, 48), torch.randint(0, 256, (20, 3, 3, 8, 8), dtype=torch.uint8)
    I = torch.rand(20, 7) * torch.tensor([1e-9] + [1.0] * 6)        # smaller than float16 can hold
    ids = torch.randint(0, 784, (20, 5))
    m.add(audio=audio, video=video, importance_a=I, ids_v=ids, number=torch.arange(20).float()[:, None])
    for _ in range(3):
        past = m.sample(8, DEVICE)
        rows = past['number'].flatten().long()
        assert torch.equal(past['video'], video[rows])
        assert torch.equal(past['importance_a'], I[rows]) and torch.equal(past['ids_v'], ids[rows])
        assert torch.equal(past['audio'], audio[rows].half().float())
        assert len(rows.unique()) == 8                              # without replacement
    assert len(m.sample(100, DEVICE)['number']) == 20


def test_an_empty_memory_and_a_saved_one():
    m = Memory(5)
    assert m.sample(3, DEVICE) == {} and len(m) == 0
    m.add(x=torch.arange(3.0)[:, None])
    other = Memory(1)
    other.load_state_dict(m.state_dict(), DEVICE)
    for memory in (m, other):
        torch.manual_seed(7)
        memory.add(x=torch.arange(3.0, 20.0)[:, None])
    assert torch.equal(m.rows['x'], other.rows['x']) and m.seen == other.seen == 20


@pytest.mark.parametrize('name, pairs, gigabytes', [('flava', 2000, 1.762), ('flava+', 4000, 1.758)])
def test_bytes_at_full_size(name, pairs, gigabytes):
    """The names and numbers of dimensions of a small memory, at the paper's shapes."""
    small, s = make(name, memory_size=8), Sizes()
    small(batch(0))
    values = dict(audio=1024 * 128, video=4 * 3 * 224 * 224, importance_a=512, importance_v=784, prune_a=512,
                  prune_v=784, query_a=768, query_v=768, pooled_a=768, pooled_v=768, patches_a=256 * 256,
                  patches_v=392 * 768, ids_a=256, ids_v=392)
    capacity = patch_capacity(2000, s, 256, 392) if name == 'flava+' else 2000
    row = sum(values[name] * rows.dtype.itemsize for name, rows in small.memory.rows.items())
    assert capacity == pairs and round(capacity * row / 1e9, 3) == gigabytes


def test_capacity_of_selected_patches():
    """Never more bytes than whole pairs take, and one more pair would not fit."""
    s = Sizes()
    assert patch_capacity(2000, s, 512, 784) == 2000
    few = patch_capacity(2000, s, 512 * 3 // 8, 784 // 2)
    assert few * (192 * 512 + 392 * 768) <= 2000 * (512 * 512 + 784 * 768) < (few + 1) * (192 * 512 + 392 * 768)


@on_cpu(reason='a GPU has memory of its own')
def test_a_memory_larger_than_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(total=10 ** 6))
    with pytest.raises(UserError, match='--memory-size: .* this machine has 0.0 GB'):
        Memory(1000).add(audio=torch.zeros(4, 1000))
    Memory(100).add(audio=torch.zeros(4, 1000))


@on_cpu(reason='a checkpoint is split on the CPU')
@pytest.mark.parametrize('pairs, before, after, batches', [
    (12, 4, 2, 20), (12, 2, 4, 20), (10, 4, 3, 20), (10, 1, 4, 20), (12, 4, 2, 1), (12, 1, 3, 0)])
def test_a_memory_is_split_over_another_number_of_processes(pairs, before, after, batches):
    """Nothing twice, no more than fits; each part continues as a reservoir."""
    old = [Memory(pairs // before) for _ in range(before)]
    for number in range(batches):
        for rank, memory in enumerate(old):
            memory.add(audio=torch.tensor([[float(1 + number * before + rank)]]))
    states, seen = [memory.state_dict() for memory in old], batches * before
    new = [Memory(pairs // after) for _ in range(after)]
    if states[0]['rows']:                                      # otherwise train.py keeps the empty ones
        for rank, memory in enumerate(new):
            memory.load_state_dict(reshard(states, rank, after, memory.capacity), DEVICE)
    rows = [memory.rows['audio'][:len(memory)].flatten().tolist() for memory in new if memory.rows]
    stored = {x for state in states if state['rows'] for x in state['rows']['audio'].flatten().tolist()}
    found = sum(rows, [])
    assert len(set(found)) == len(found) and set(found) <= stored
    assert len(found) >= min(len(stored), pairs // after * after) - after
    assert all(len(own) <= pairs // after for own in rows)
    assert seen - after < sum(memory.seen for memory in new) <= seen
    for memory in new:
        for number in range(30):
            memory.add(audio=torch.tensor([[1000. + number]]))
        kept = memory.sample(100, DEVICE)['audio']
        assert len(kept) == len(memory) == memory.capacity and (kept > 0).all()
        assert memory.seen > 30 or batches == 0


def test_penalty_literally():
    past = dict(pooled_a=torch.randn(3, 4), pooled_v=torch.randn(3, 4))
    a, v = torch.randn(3, 4), torch.randn(3, 4)
    total = sum((x[i, j] - y[i, j]).item() ** 2 / 12 for x, y in ((a, past['pooled_a']), (v, past['pooled_v']))
                for i in range(3) for j in range(4))
    assert math.isclose(penalty(past, a, v).item(), total, rel_tol=1e-5)


@pytest.mark.slow
def test_a_step_repeats_bit_for_bit_on_several_threads():
    """A resumed run relies on it. At the benchmark's size: large enough for threads to share a sum."""
    cfg = parse([])[0]
    pairs = dict(audio=torch.randn(16, 256, 64), video=torch.randint(0, 256, (16, 2, 3, 96, 96), dtype=torch.uint8))
    gradients = []
    torch.set_num_threads(2)
    for _ in range(2):
        torch.manual_seed(3)
        method = FLAVA(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))
        for _ in range(2):
            method(pairs)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.parameters()]))
    torch.set_num_threads(1)                               # as in conftest.py
    assert torch.equal(*gradients)
