"""The modality gap: by hand, its invariances, and a whole run."""
import math

import torch
import torch.nn.functional as F

from downstream import gap
from eval import run_evaluation
from patches import normalize_frames
from untrained import options, shared_run  # noqa: F401


def test_modality_gap_by_hand_and_its_invariances():
    c_a, c_v = torch.tensor([[2., 0], [0, 5]]), torch.tensor([[0., -3], [0, -1]])
    assert math.isclose(gap.modality_gap(c_a, c_v), math.hypot(0.5, 1.5), rel_tol=1e-6)     # centres (½, ½) and (0, −1)
    c_a, c_v = torch.randn(30, 8).double() + 1, torch.randn(30, 8).double() - 1
    rotation, lengths = torch.linalg.qr(torch.randn(8, 8).double())[0], torch.rand(30, 1).double() + 0.1
    changed = gap.modality_gap(lengths * c_a @ rotation, c_v.flip(0) @ rotation)
    assert math.isclose(changed, gap.modality_gap(c_a, c_v), rel_tol=1e-9)


def test_mean_difference_by_hand():
    rows = [[9, 9, 9], [1.0, 9, 9], [2, 1.5, 9], [0.7, 1.9, 3]]
    assert math.isclose(gap.mean_difference(rows, [0, 1, 2, 3]), (0.3 + 0.4) / 2)
    assert gap.mean_difference(rows[::3], [0, 3]) is None and gap.mean_difference(rows[:2], [0, 1]) is None


def test_clouds_lie_in_the_plane_of_most_variance():
    c_a, c_v = torch.randn(gap.POINTS + 50, 6), torch.randn(gap.POINTS + 50, 6) + 2
    many, few = gap.pca_clouds(c_a, c_v), gap.pca_clouds(c_a[:150], c_v[:150])
    assert len(many['audio']) == len(many['video']) == gap.POINTS and len(few['audio']) == 150
    both = F.normalize(torch.cat([c_a[:150], c_v[:150]]), dim=1).double()
    points = torch.tensor(few['audio'] + few['video']).double()
    largest = torch.linalg.eigvalsh(both.T.cov(correction=0))[-2:]
    torch.testing.assert_close(points.T.cov(correction=0), largest.flip(0).diag(), atol=1e-7, rtol=0)


def test_gap_of_a_run(run):
    results, table, figure = run_evaluation(run, 'gap', options())
    assert len(results['gap']) == 7 and len(results['over_stream']) == 6 and len(results['clouds']) == 6
    assert math.isclose(results['over_stream'][1], sum(results['gap'][2][:2]) / 2)
    # one cell, from the clips themselves
    backbone = run.load_model(run.models()[2][2])[0]
    items = [run.stream.test[3][index, 0] for index in range(5)]
    c = backbone.embed(torch.stack([item['audio'] for item in items]),
                       normalize_frames(torch.stack([item['video'] for item in items])))
    assert math.isclose(results['gap'][2][3], gap.modality_gap(*c), rel_tol=1e-5)
    assert f'{results["gap"][2][3]:.3f}' in table and f'{results["difference"]:.3f}' in table
    assert 'mean of learned tasks' in [line.get_label() for line in figure.axes[0].lines]
    assert 'difference' not in gap.report(run, results | {'difference': None})[0]      # Multitask
