"""Cheap scoring (ours): the grid against loops, a step on it recomputed; what the student learns, and when."""
import pytest
import torch

import flava
import scorer
from avm import attend
from one_step import B, all_patches, batch, config, make, record_calls
from patches import gather_patches
from scorer import SparseGrid, axis_positions, distillation_loss, grid_ids, interpolate


def literal_interpolation(x, rows, columns, num_rows, num_columns):
    """Bilinear interpolation of one frame, patch by patch.  x {(row, column): value}"""
    def neighbours(at, positions):
        """[(position, weight)] of the one or two grid positions around `at`"""
        below, above = [p for p in positions if p <= at], [p for p in positions if p >= at]
        low, high = (below or above[:1])[-1], (above or below[-1:])[0]
        share = 0 if low == high else (at - low) / (high - low)
        return [(low, 1 - share), (high, share)]
    return [sum(weight_r * weight_c * x[r, c] for r, weight_r in neighbours(row, rows)
                for c, weight_c in neighbours(column, columns))
            for row in range(num_rows) for column in range(num_columns)]


@pytest.mark.parametrize('grid', [(8, 6), (3, 7, 5), (2, 4, 1)])
@pytest.mark.parametrize('stride', [2, 3])
def test_interpolation_is_bilinear_in_each_frame(grid, stride):
    *frames, num_rows, num_columns = grid
    for _ in range(4):                                     # random offsets
        rows, columns = (axis_positions(length, stride, 'cpu') for length in (num_rows, num_columns))
        frame = [r * num_columns + c for r in rows.tolist() for c in columns.tolist()]
        size = num_rows * num_columns
        ids = [t * size + position for t in range(frames[0] if frames else 1) for position in frame]
        assert grid_ids(grid, rows, columns).tolist() == ids
        x = torch.rand(2, len(ids), dtype=torch.float64)
        got = interpolate(x, grid, rows, columns)
        for b in range(2):
            for t, values in enumerate(x[b].reshape(-1, len(frame)).tolist()):
                known = dict(zip([divmod(position, num_columns) for position in frame], values))
                expected = literal_interpolation(known, rows.tolist(), columns.tolist(), num_rows, num_columns)
                torch.testing.assert_close(got[b, t * size:(t + 1) * size], torch.tensor(expected, dtype=torch.float64))


def test_interpolation_keeps_float32_under_bf16_autocast():
    rows, columns = (axis_positions(length, 2, 'cpu') for length in (8, 6))
    x = torch.rand(2, len(rows) * len(columns))
    with torch.autocast('cpu', torch.bfloat16):
        got = interpolate(x, (8, 6), rows, columns)
    assert torch.equal(got, interpolate(x, (8, 6), rows, columns)) and got.dtype == torch.float32


def test_every_position_is_scored_equally_often():
    counts = sum(torch.bincount(axis_positions(8, 2, 'cpu'), minlength=8) for _ in range(400))
    assert (counts - 200).abs().max() < 50                 # five standard deviations


def test_a_step_on_the_grid_scores_the_grid_alone(fixed_masks, monkeypatch):
    """Eq. 2 to 5 on the patches of the grid; I and P interpolated to all patches before they select."""
    method = make('flava', memory_size=8, scorer='grid', selection='both')
    cfg, grid = method.cfg, SparseGrid(method.cfg, 'cpu')
    monkeypatch.setattr(scorer, 'SparseGrid', lambda *given: grid)
    method.step(batch(0))
    selected = record_calls(monkeypatch, flava, 'select_patches')
    attended = record_calls(monkeypatch, flava, 'attend')
    step = method.step(batch(1))
    ids_a, ids_v = grid_ids(cfg.grid_a, *grid.axes_a), grid_ids(cfg.grid_v, *grid.axes_v)
    assert len(ids_a) == cfg.num_patches_a / 4 and len(ids_v) == cfg.num_patches_v / 4
    patches = gather_patches(all_patches(method, 1), ids_a.expand(B, -1), ids_v.expand(B, -1))
    out = attend(cfg, method.backbone, method.avm, patches)
    (_, attention), = attended
    torch.testing.assert_close(attention.I_v, out.I_v)
    assert attention.k_a.shape[2] == len(ids_a)
    (_, I_a, I_v, P_a, P_v), _ = selected[0]               # of the current pairs
    torch.testing.assert_close(I_a[:, ids_a], out.I_a)
    torch.testing.assert_close(I_v[:, ids_v], out.I_v)
    assert P_v.shape == I_v.shape == (B, cfg.num_patches_v) and P_v.max() > 0.1


def test_the_student_learns_the_scores_of_the_avm():
    """Its loss is KL divergence, reaches the student alone, and falls as it learns."""
    cfg = config()
    method = make('flava', selection='rank', scorer='student')
    patches = all_patches(method, 0)
    _, I_a, I_v, *_ = attend(cfg, method.backbone, method.avm, patches)
    torch.testing.assert_close(distillation_loss(I_a.log(), I_v.log(), I_a, I_v), torch.zeros(()), atol=1e-6, rtol=0)
    log_a, log_v = method.student(method.backbone, patches)
    expected = sum((I * (I.log() - log)).sum() / B for I, log in ((I_a, log_a), (I_v, log_v)))
    loss = distillation_loss(log_a, log_v, I_a, I_v)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log_a.exp().sum(1), torch.ones(B))
    loss.backward()
    assert all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is None for p in method.backbone.parameters())
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        distillation_loss(*method.student(method.backbone, patches), I_a, I_v).backward()
        optimizer.step()
    assert distillation_loss(*method.student(method.backbone, patches), I_a, I_v) < loss / 2


@pytest.mark.parametrize('name', ['flava', 'flava+'])
def test_the_avm_scores_and_learns_every_third_step(name, monkeypatch):
    attended = record_calls(monkeypatch, flava, 'attend')
    method = make(name, selection='rank', scorer='student', scorer_every=3)
    for number in range(5):
        method.zero_grad()
        step = method.step(batch(number))
        step.loss.backward()
        scored = number % 3 == 0
        assert len(attended) == number // 3 + 1
        for module in (method.avm, method.student):
            assert all((p.grad is not None) == scored for p in module.parameters())
        assert ('avm' in step.log) == ('student' in step.log) == scored
        assert not step.scores.P_a.any() and 'query_a' not in method.memory.rows
        if not scored:
            log_a, log_v = method.student(method.backbone, all_patches(method, number))
            torch.testing.assert_close(step.scores.I_v, log_v.exp())
