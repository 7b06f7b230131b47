"""study/analysis.py: pairs counted by hand, and the tables of a run."""
import json

import pytest
import torch

from running import TINY
from study import analysis
from utils.cli import parse

OPTIONS = [*TINY, '--pretrain-steps', '0', '--clips-per-task', '9', '--test-clips', '6', '--out', 'run']


def test_pairs_by_hand():
    m = torch.tensor([[4., 1, 2, 2], [0., 0, 0, 9]])
    first = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    second = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    assert analysis.row_aucs(m, first, second) == [0.5, 0.5]           # 4 wins twice, 1 loses twice; two ties
    assert analysis.row_aucs(m[:1], first[:1], torch.zeros(1, 4).bool()) == []
    partners = [(0, 'x'), (1, 'y'), (2, 'z'), (0, 'w')]                # the past pairs of clips of task 0, class x
    P = torch.tensor([.6, .5, .7, .1])
    assert analysis.auc_own_class(P, ['x'] * 4, 0, partners) == 0.5    # .6 above .5, not above .7; w is of task 0
    assert analysis.auc_own_class(P, ['q'] * 4, 0, partners) is None


@pytest.mark.slow
def test_the_tables_of_a_run(tmp_path, here, capsys):
    code, _, err = here([*OPTIONS, '--steps', '2', '--max-silent', '1', '--min-silent', '1'], tmp_path)
    assert code == 0, err
    analysis.main([str(tmp_path / 'run')])
    results = json.loads((tmp_path / 'run/eval/analysis.json').read_text())
    assert [row['after'] for row in results['P']][-5:] == ['fir', *['oak'] * 4]
    far = {row['temperature']: row['far'] for row in results['P'] if row['after'] == 'oak'}
    assert far[1] < far[1 / 4] < far[1 / 64] <= 0.5
    for kind, columns in analysis.MAP_COLUMNS.items():
        assert set(results['maps'][kind]['I']) == set(columns)
    assert '| contrast of the patch |' in capsys.readouterr().out


def test_a_run_without_silent_objects_is_refused(tmp_path, capsys):
    cfg, _ = parse(['--max-silent', '0', '--min-silent', '0'])
    (tmp_path / 'config.json').write_text(json.dumps(vars(cfg)))
    with pytest.raises(SystemExit):
        analysis.main([str(tmp_path)])
    assert 'silent objects' in capsys.readouterr().err
