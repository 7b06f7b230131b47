"""Selection statistics: by hand, and of a whole run."""
import dataclasses

import pytest
import torch

from downstream import selection_stats
from downstream.selection_stats import ATTENTION_SELECTIONS, PARTNERS
from eval import run_evaluation
from untrained import options, shared_run  # noqa: F401


def test_coverage_by_hand():
    source = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    ids = torch.tensor([[0, 3], [1, 2], [0, 1], [0, 1]])           # half, all; no source, nothing but source
    assert selection_stats.coverage(ids, source) == 75
    assert selection_stats.coverage(ids[2:], source[2:]) is None


def test_P_on_and_off_the_source_among_the_most_important_patches():
    I, P = torch.tensor([[4., 3., 2., 1.]]), torch.tensor([[0.8, 0.2, 0.6, 0.]])
    found = selection_stats.mean_on_and_off(I, P, torch.tensor([[True, False, False, True]]), 3)
    assert found == pytest.approx((0.8, 0.4), abs=1e-6)


def test_kinds_of_past_pairs():
    kinds = selection_stats.partner_kinds(['x', 'x', 'y', 'y'], 1, [(1, 'x'), (1, 'y'), (0, 'z'), (0, 'z')])
    assert [kinds[kind].nonzero()[:, 0].tolist() for kind in PARTNERS] == [[0], [1], [2, 3]]


def test_statistics_of_a_run(run):
    models = run.models()[:3]
    run.models = lambda: models
    results, table, figure = run_evaluation(run, 'selection', options())
    assert results == selection_stats.evaluate(run, options())                          # the same random numbers
    assert results['after'] == ['ash', 'birch'] and set(results['selected_v']) == set(ATTENTION_SELECTIONS)
    for x in 'va':
        for rows in results[f'selected_{x}'].values():
            assert len(rows) == 2 and all(len(row) == 6 and all(0 <= share <= 100 for share in row) for row in rows)
    P = results['P']
    assert P['same task'][0][0] is not None and P['other task'][0][0] is None           # after ash there is only ash
    assert P['other task'][0][1] is not None and P['same class'][0][1] is None
    assert '| excess |' in table and len(figure.axes) == 2


@pytest.mark.parametrize('changed', [dict(method='der++'), dict(selection='importance', scorer='student')])
def test_statistics_of_a_run_that_selects_otherwise_or_not_at_all(run, changed):
    models = run.models()[1:2]
    run.models, run.cfg = (lambda: models), dataclasses.replace(run.cfg, **changed)
    assert set(selection_stats.evaluate(run, options())['selected_v']) == set(ATTENTION_SELECTIONS)
