"""tests/conformance.py: the golden numbers agree, and a changed number is reported."""
import pytest
import torch

import conformance
from conftest import ROOT

GOLDEN = ROOT / 'tests' / 'data' / 'golden_tiny.pt'


def run(capsys, file):
    """→ exit code, what it prints"""
    with pytest.raises(SystemExit) as end:
        conformance.main([str(file)])
    return end.value.code, capsys.readouterr().out


def test_golden_numbers(capsys):
    code, printed = run(capsys, GOLDEN)
    assert code == 0, printed
    assert 'float32' in printed and 'float64' in printed and 'over the limit' not in printed


def test_changed_numbers_are_reported(tmp_path, capsys):
    golden = torch.load(GOLDEN, weights_only=True)
    golden['expected']['prune_v'] *= 1.001
    golden['expected']['selected']['loss_contrastive'] *= 1.001
    torch.save(golden, tmp_path / 'changed.pt')
    code, printed = run(capsys, tmp_path / 'changed.pt')
    over = [line.split()[0] for line in printed.splitlines() if 'over the limit' in line]
    assert code == 1 and set(over) == {'prune_v', 'selected.loss_contrastive'}
