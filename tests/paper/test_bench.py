"""The cost table: what it counts, on a small model. Speed itself is not tested."""
import json
import math

import pytest
import torch

from paper import bench, printed


def test_every_method_is_measured(tmp_path, capsys):
    file = tmp_path / 'b.json'
    bench.main([*'--size small --batch 3 --rounds 2 --steps 1 --device cpu --out'.split(), str(file)])
    out = capsys.readouterr().out
    found = json.loads(file.read_text())['found']
    assert list(found) == 'finetune er mir der++ gmed cls-er lump flava flava+ random mats'.split()
    for name, of in found.items():
        assert len(of['samples_per_s']) == len(of['peak_gb']) == 2 and min(of['samples_per_s']) > 0
        assert f'| {name} |' in out
    work = {name: of['operations'] for name, of in found.items()}
    for one, other in (('er', 'der++'), ('finetune', 'lump'), ('flava', 'flava+')):
        assert math.isclose(work[one], work[other], rel_tol=1e-3)
    assert 1.9 < work['er'] / work['finetune'] < 2.1                # as many replayed as current pairs
    assert work['mir'] > 2 * work['er'] and work['gmed'] > 2 * work['er'] and work['cls-er'] > 1.2 * work['er']
    assert work['random'] < work['der++']
    kept = {name: of['memory_bytes'] for name, of in found.items()}
    assert kept['finetune'] == 0 and kept['gmed'] > 3 * kept['er'] and 0.9 < kept['flava+'] / kept['flava'] < 1.02
    clip = 256 * 64 * 2 + 2 * 3 * 96 * 96                          # float16 and uint8
    assert kept['er'] == 160 * clip and kept['der++'] == 160 * (clip + 2 * 64 * 2)


def test_operations_count_attention():
    """A step of Finetune by hand: every product of a linear layer and of attention, once forward and twice backward."""
    training = bench.Training('finetune', 'small', 2, torch.device('cpu'), 'fp32')
    s = training.cfg
    p2, D, Dd = s.patch_size ** 2, s.embed_dim, s.decoder_embed_dim
    M, N = s.num_patches_a, s.num_patches_v
    m, n = int(0.3 * M + 1e-6), int(0.3 * N + 1e-6)
    block = lambda tokens, width: 2 * tokens * width * width * (3 + 1 + 8) + 2 * 2 * tokens * tokens * width
    forward = 2 * m * p2 * D + 2 * n * 3 * p2 * D                                      # Eq. 1
    forward += s.encoder_depth * (block(m, D) + block(n, D))
    fusion = s.fusion_depth * (block(m + n, D) + block(m, D) + block(n, D))           # jointly, and each alone
    forward += fusion
    for tokens, seen, values in ((M, m, p2), (N, n, 3 * p2)):
        forward += 2 * seen * D * Dd + s.decoder_depth * block(tokens, Dd) + 2 * (tokens - seen) * Dd * values
    # the patches themselves need no gradient: Eq. 1 has one backward product, not two
    expected = 3 * forward - (2 * m * p2 * D + 2 * n * 3 * p2 * D)
    # the fusion is computed once more for its gradient, save for the last product of it, which no gradient asks for
    expected += fusion - 2 * (m + n) * 4 * D * D
    assert math.isclose(training.operations(training.step), expected, rel_tol=0.01)


def test_ratios_are_taken_within_a_round():
    of = lambda speeds: dict(samples_per_s=speeds, peak_gb=[2.0, 2.0, 2.0], operations=1e9, scoring=0, kept=2e6,
                             waits=0, memory_bytes=0)
    found = {'der++': of([10, 1, 10]), 'er': of([20, 2, 22])}
    text = bench.table(found, beside_paper=True)
    assert f'| er | 20.00 (2.00 … 22.00) | 2.00 | {18.10 / 17.01:.2f} |' in text and 'one V100, in batches of 9' in text
    text = bench.table(found, beside_paper=False)
    assert '| er | 20.00 (2.00 … 22.00) | 2.00 | 2.00 (2.00 … 2.00)' in text and f'{18.10 / 17.01:.2f}' not in text
    assert 'are left out' in text


@pytest.mark.parametrize('size, batch, device, same', [
    ('base', 9, 'cuda', True), ('base', 9, 'cpu', False), ('base', 48, 'cuda', False), ('small', 9, 'cuda', False)])
def test_the_papers_ratios_stand_beside_its_own_setting_alone(size, batch, device, same):
    assert bench.as_in_table_2(size, batch, torch.device(device)) == same


def test_the_papers_ratios_stand_beside():
    paper = printed.rows('table_2')
    assert bench.printed_ratio('er', 'samples_per_s') == f'{paper["er"][1] / paper["der++"][1]:.2f}' == '1.06'
    assert bench.printed_ratio('finetune', 'peak_gb') == '0.59'
    assert bench.printed_ratio('mats', 'samples_per_s') == f'{21.42 / 14.13:.2f}'   # Table 3's DER++ is slower
    assert bench.printed_ratio('flava+', 'peak_gb') == '–'


def test_mistakes(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(['--rounds', '0'])
    assert stopped.value.code == 2 and 'at least 1' in capsys.readouterr().err


def test_what_is_kept_for_backward_is_counted_and_given_back():
    """By hand: the input, the pre-activation and the hidden layer of a tiny network; weights are not of it."""
    import gc
    import weakref
    training = bench.Training('finetune', 'small', 2, torch.device('cpu'), 'fp32')
    first, hidden = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
    net = torch.nn.Sequential(first, torch.nn.GELU(), hidden)

    class Method(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return self.net(batch).sum(), {}
    training.method, training.batch = Method(), torch.randn(6, 4)
    training.cfg.batch_size = 1
    assert training.kept() == 4 * (6 * 4 + 6 * 8 + 6 * 8)
    weight = weakref.ref(first.weight)
    assert training.waits() == 0
    del net, first, hidden, training
    gc.collect()
    assert weight() is None


def test_waits_are_counted():
    x = torch.rand(5)
    for ask, expected in ((lambda: x.sum().item(), 1), (lambda: x[x > 0.5], 1), (lambda: x * 2, 0)):
        with bench.Waits() as counted:
            ask()
        assert counted.number == expected
