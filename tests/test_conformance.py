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


@pytest.mark.parametrize('key', ['prune_v', 'selected.loss_contrastive', 'avm_logits'])
def test_a_changed_number_is_reported(tmp_path, key, capsys):
    golden = torch.load(GOLDEN, weights_only=True)
    *path, last = key.split('.')
    place = golden['expected']
    for name in path:
        place = place[name]
    place[last] = place[last] * 1.001
    torch.save(golden, tmp_path / 'changed.pt')
    code, printed = run(capsys, tmp_path / 'changed.pt')
    over = [line.split()[0] for line in printed.splitlines() if 'over the limit' in line]
    assert code == 1 and key in over
