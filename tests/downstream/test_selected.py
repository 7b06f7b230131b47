"""What is selected of the source: each measure by hand, and a whole run."""
import math

import pytest
import torch

import eval as evaluation
from config import Config
from downstream import selected
from patches import UserError
from selection import SELECTIONS
from untrained import LOOKED_AT, Unknown, make_run, options


def test_the_share_of_the_source_that_is_kept_by_hand():
    source = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    kept = torch.tensor([[0, 3], [1, 2], [0, 1], [0, 1]])                  # half, all; no source, nothing but source
    assert selected.covered(kept, source) == 75
    assert selected.covered(kept[2:], source[2:]) is None


def test_P_on_the_source_and_beside_it_among_the_most_important():
    I, P = torch.tensor([[4., 3., 2., 1.]]), torch.tensor([[0.8, 0.2, 0.6, 0.]])
    found = selected.on_and_beside(I, P, torch.tensor([[True, False, False, True]]), 3)     # the fourth is not asked
    assert math.isclose(found['on'], 0.8, abs_tol=1e-6) and math.isclose(found['beside'], 0.4, abs_tol=1e-6)


def test_P_by_whose_pair_was_met():
    P, classes = torch.tensor([0.1, 0.2, 0.3, 0.5]), ['x', 'x', 'y', 'y']
    found = selected.by_partner(P, classes, 1, [(1, 'x'), (1, 'y'), (0, 'z'), (0, 'z')])
    assert [round(found[kind], 6) for kind in selected.PARTNERS] == [0.1, 0.2, 0.4]
    assert selected.by_partner(P, classes, 1, [(0, 'z')] * 4)['same class'] is None


def test_selection_of_a_run(tmp_path):
    run = make_run(tmp_path, Config(**LOOKED_AT), [0, 1, 2])
    results, table, figure = evaluation.answer(run, 'selection', options())
    assert results == evaluation.answer(run, 'selection', options())[0]                 # the same past, the same coins
    assert results['after'] == ['ash', 'birch'] and set(results['selected_v']) == set(SELECTIONS)
    for x in 'va':
        for rows in results[f'selected_{x}'].values():
            assert len(rows) == 2 and all(len(row) == 6 and all(0 <= share <= 100 for share in row) for row in rows)
    P = results['P']
    assert P['same task'][0][0] is not None and P['other task'][0][0] is None           # after ash there is only ash
    assert P['other task'][0][1] is not None and P['same class'][0][1] is None
    assert '| excess |' in table and len(figure.axes) == 2


def test_sources_must_be_known(tmp_path):
    run = make_run(tmp_path, Config(**LOOKED_AT), [1])
    run.stream = run.stream._replace(test=[Unknown(dataset) for dataset in run.stream.test])
    with pytest.raises(UserError, match='not known'):
        selected.measure(run, options())
