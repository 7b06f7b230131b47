"""The cost table: what it counts, on a small model. Speed itself is not tested."""
import gc
import math
import weakref

import torch

from fake_runs import cells_of
from paper import bench


def test_every_method_is_measured():
    args = bench.read_options('--size small --batch 3 --rounds 1 --steps 1 --methods'.split() + list(bench.VARIANTS))
    found = bench.measure(args, torch.device('cpu'), 'fp32')
    table = bench.table(found, paper=False)
    for name, costs in found.items():
        assert costs['samples_per_s'][0] > 0 and costs['peak_gb'][0] >= 0 and len(cells_of(table, name)) == 12

    # operations
    work = {name: costs['operations'][0] for name, costs in found.items()}
    for one, other in (('er', 'der++'), ('finetune', 'lump'), ('flava', 'flava+')):
        assert math.isclose(work[one], work[other], rel_tol=1e-3)
    assert 1.9 < work['er'] / work['finetune'] < 2.1                # as many replayed as current pairs
    assert work['mir'] > 2 * work['er'] and work['gmed'] > 2 * work['er'] and work['cls-er'] > 1.2 * work['er']
    assert work['random'] < work['der++']
    assert work['random'] < min(work['flava-grid'], work['lava-student'])
    assert max(work['flava-grid'], work['lava-student']) < work['flava'] and work['lava'] <= work['flava']
    scoring = {name: costs['scoring'][0] for name, costs in found.items()}
    assert scoring['lava-student'] * 4 == scoring['lava'] == scoring['flava'] > 4 * scoring['flava-grid'] > 0

    # bytes in the memory
    stored = {name: costs['memory_bytes'][0] for name, costs in found.items()}
    assert stored['finetune'] == 0 and stored['gmed'] > 3 * stored['er']
    assert 0.9 < stored['flava+'] / stored['flava'] < 1.02
    clip = 256 * 64 * 2 + 2 * 3 * 96 * 96                          # float16 and uint8
    assert stored['er'] == 160 * clip and stored['der++'] == 160 * (clip + 2 * 64 * 2)


def test_operations_of_finetune_by_hand():
    """Matrix products of linear layers and attention: once forward, twice backward."""
    method = bench.Bench('finetune', 'small', 2, torch.device('cpu'), 'fp32')
    s = method.cfg
    p2, D, Dd = s.patch_size ** 2, s.embed_dim, s.decoder_embed_dim
    M, N = s.num_patches_a, s.num_patches_v
    m, n = int(0.3 * M + 1e-6), int(0.3 * N + 1e-6)                # visible

    def block(tokens, width):
        return 2 * tokens * width * width * (3 + 1 + 8) + 2 * 2 * tokens * tokens * width
    embed = 2 * m * p2 * D + 2 * n * 3 * p2 * D                                        # Eq. 1
    fusion = s.fusion_depth * (block(m + n, D) + block(m, D) + block(n, D))           # jointly, and each alone
    forward = embed + s.encoder_depth * (block(m, D) + block(n, D)) + fusion
    for tokens, visible, values in ((M, m, p2), (N, n, 3 * p2)):
        forward += 2 * visible * D * Dd + s.decoder_depth * block(tokens, Dd) + 2 * (tokens - visible) * Dd * values
    expected = 3 * forward - embed                                 # patches need no gradient
    assert math.isclose(method.operations(method.step), expected, rel_tol=0.01)


def test_kept_bytes_by_hand():
    """Input, pre-activation and hidden layer of a tiny network, without its weights; and they are released."""
    method = bench.Bench('finetune', 'small', 2, torch.device('cpu'), 'fp32')
    first, second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(first, torch.nn.GELU(), second)

        def forward(self, batch):
            return self.net(batch).sum(), {}
    method.method, method.batch, method.cfg.batch_size = Tiny(), torch.randn(6, 4), 1
    assert method.kept_bytes() == 4 * (6 * 4 + 6 * 8 + 6 * 8)
    weight = weakref.ref(first.weight)
    del first, second, method, Tiny
    gc.collect()
    assert weight() is None


def test_ratios_are_within_a_round():
    def costs(speeds):
        counts = dict(operations=[1e9], scoring=[0], kept=[2e6], memory_bytes=[1e9])
        return dict(samples_per_s=speeds, peak_gb=[2.0, 2.0, 2.0], **counts)
    found = {'der++': costs([10, 1, 10]), 'er': costs([20, 2, 22])}
    cells = cells_of(bench.table(found, paper=True), 'er')
    assert cells[1:5] == ['20.00 (2.00 … 22.00)', '2.00', f'{18.10 / 17.01:.2f}', '2.00 (2.00 … 2.00)']
    assert bench.paper_ratio('mats', 'samples_per_s') == f'{21.42 / 14.13:.2f}'   # DER++ of Table 3 is slower
    assert bench.paper_ratio('flava+', 'peak_gb') == '–'


def test_loading_speed(files, capsys):
    options = ['--data', str(files), '--tasks', str(files / 'tasks.csv'), '--workers', '1', '--size', 'small',
               '--batch', '2', '--rounds', '1', '--steps', '2', '--device', 'cpu']
    bench.main(options)
    out = capsys.readouterr().out
    assert 'training clips' in out and 'samples/s, 1 workers' in out and '| flava |' in out and '| er |' not in out
