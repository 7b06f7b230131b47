"""The rehearsal memory: chance, precision, bytes."""
import math

import pytest
import torch

import memory
from avm import AVM
from config import parse
from flava import FLAVA
from memory import Memory, patch_capacity, penalty, split_anew
from model import AudioVideoMAE
from one_step import batch, make
from patches import Sizes


def test_reservoir_keeps_each_pair_equally_often():
    kept, runs, capacity, stream = torch.zeros(60), 4000, 12, 60
    for _ in range(runs):
        m = Memory(capacity)
        for start in range(0, stream, 10):
            m.add(number=torch.arange(start, start + 10).float()[:, None])
        numbers = m.sample(capacity, 'cpu')['number'].flatten().long()
        assert len(numbers) == len(set(numbers.tolist())) == capacity
        kept[numbers] += 1
    share = capacity / stream
    assert (kept / runs - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / runs)


def test_replayed_values_are_what_was_stored():
    m = Memory(50)
    audio, video = torch.randn(20, 64, 48), torch.randint(0, 256, (20, 3, 3, 8, 8), dtype=torch.uint8)
    I = torch.rand(20, 7) * torch.tensor([1e-9] + [1.0] * 6)        # smaller than float16 can hold
    kept = torch.randint(0, 784, (20, 5))
    m.add(audio=audio, video=video, importance_a=I, kept_v=kept, number=torch.arange(20).float()[:, None])
    for _ in range(3):
        past = m.sample(8, 'cpu')
        of = past['number'].flatten().long()
        assert torch.equal(past['video'], video[of])
        assert torch.equal(past['importance_a'], I[of]) and torch.equal(past['kept_v'], kept[of])
        assert torch.equal(past['audio'], audio[of].half().float())
        assert len(of.unique()) == 8                                # without replacement
    assert len(m.sample(100, 'cpu')['number']) == 20                # all there are


def test_empty_memory_and_saved_memory():
    m = Memory(5)
    assert m.sample(3, 'cpu') == {} and len(m) == 0
    m.add(x=torch.arange(3.0)[:, None])
    other = Memory(1)
    other.load_state_dict(m.state_dict(), 'cpu')
    for chosen in (m, other):
        torch.manual_seed(7)
        chosen.add(x=torch.arange(3.0, 20.0)[:, None])
    assert torch.equal(m.rows['x'], other.rows['x']) and m.seen == other.seen == 20


def test_bytes_at_full_size(capsys):
    """2,000 pairs under 1.8 GB; FLAVA+ holds twice as many in no more."""
    memory.main()
    flava, plus = capsys.readouterr().out.splitlines()
    gigabytes = lambda line: float(line.split('=')[1].split()[0])
    assert '2,000 pairs of' in flava and '4,000 pairs of' in plus
    assert gigabytes(plus) <= gigabytes(flava) < 1.8
    assert int(flava.split('of')[1].split()[0].replace(',', '')) < 900_000


def test_flava_stores_what_the_report_counts():
    """The report of memory.py and the methods must speak of the same tensors."""
    stored, pairs = {}, batch(0, pairs=3)
    for name in ('flava', 'flava+'):
        method = make(name, memory_size=6)
        for _ in range(2):
            loss, log = method(pairs)
            loss.backward()
        stored[name] = method.memory
        assert torch.isfinite(loss) and 'penalty' in log
    cfg = method.cfg
    M, N, p, D = cfg.num_patches_a, cfg.num_patches_v, 8, 24
    embeddings = 2 * D * 2 + 2 * D * 2
    assert stored['flava'].bytes == 6 * (64 * 48 * 2 + 3 * 3 * 32 * 32 + 2 * 4 * (M + N) + embeddings)
    assert stored['flava+'].capacity == 12
    assert stored['flava+'].bytes == 12 * (M // 2 * (p * p * 2 + 2) + N // 2 * (p * p * 3 + 2) + embeddings)
    past = stored['flava'].sample(3, 'cpu')
    assert all((past['video'][i] == pairs['video']).flatten(1).all(1).any() for i in range(3))


def test_patch_capacity_of_unequal_shares():
    s = Sizes()
    assert patch_capacity(2000, s, 512, 784) == 2000
    few = patch_capacity(2000, s, 512 * 3 // 8, 784 // 2)
    assert few * (192 * 512 + 392 * 768) <= 2000 * (512 * 512 + 784 * 768) < (few + 1) * (192 * 512 + 392 * 768)


@pytest.mark.parametrize('pairs, before, after, batches', [
    (12, 4, 2, 20), (12, 2, 4, 20), (10, 4, 3, 20), (10, 1, 4, 20), (12, 4, 2, 1), (12, 1, 3, 0)])
def test_a_memory_is_dealt_out_anew(pairs, before, after, batches):
    """What several processes held, others hold: nothing twice, no more than fits; each part goes on as a reservoir."""
    held = [Memory(pairs // before) for _ in range(before)]
    for number in range(batches):
        for process, memory in enumerate(held):
            memory.add(audio=torch.tensor([[float(1 + number * before + process)]]))
    states, seen = [memory.state_dict() for memory in held], batches * before
    parts = [Memory(pairs // after) for _ in range(after)]
    for process, memory in enumerate(parts):
        memory.load_state_dict(split_anew(states, process, after, memory.capacity), 'cpu')
    rows = [memory.rows['audio'][:len(memory)].flatten().tolist() for memory in parts if memory.rows]
    there = {x for state in states if state['rows'] for x in state['rows']['audio'].flatten().tolist()}
    found = sum(rows, [])
    assert len(set(found)) == len(found) and set(found) <= there
    assert len(found) >= min(len(there), pairs // after * after) - after
    assert all(len(own) <= pairs // after for own in rows)
    assert seen - after < sum(memory.seen for memory in parts) <= seen
    for memory in parts:
        for number in range(30):
            memory.add(audio=torch.tensor([[1000. + number]]))
        kept = memory.sample(100, 'cpu')['audio']
        assert len(kept) == len(memory) == memory.capacity and (kept > 0).all()
        assert memory.seen > 30 or batches == 0


def test_penalty_literally():
    past = dict(pooled_a=torch.randn(3, 4), pooled_v=torch.randn(3, 4))
    a, v = torch.randn(3, 4), torch.randn(3, 4)
    total = sum((x[i, j] - y[i, j]).item() ** 2 / 12 for x, y in ((a, past['pooled_a']), (v, past['pooled_v']))
                for i in range(3) for j in range(4))
    assert math.isclose(penalty(past, a, v).item(), total, rel_tol=1e-5)


def test_a_step_repeats_to_the_bit_on_several_threads():
    """What a resumed run rests on, at the size of the demo: large enough for threads to share a sum."""
    cfg = parse([])[0]
    pairs = dict(audio=torch.randn(32, 256, 64), video=torch.randint(0, 256, (32, 2, 3, 96, 96), dtype=torch.uint8))
    gradients = []
    torch.set_num_threads(2)
    for _ in range(4):
        torch.manual_seed(3)
        method = FLAVA(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))
        for _ in range(2):
            method(pairs)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.parameters()]))
    torch.set_num_threads(1)                               # as conftest.py has it
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
