"""The conformance numbers, by the command itself; and that the command notices a changed number."""
import subprocess
import sys

import pytest
import torch

from conftest import ROOT

GOLDEN = ROOT / 'tests' / 'data' / 'golden_tiny.pt'


def conformance(*files):
    return subprocess.run([sys.executable, str(ROOT / 'tests' / 'conformance.py'), *map(str, files)],
                          capture_output=True, text=True)


def test_conformance():
    done = conformance(GOLDEN)
    assert done.returncode == 0, done.stdout
    assert 'float32' in done.stdout and 'float64' in done.stdout and 'over the limit' not in done.stdout


@pytest.mark.parametrize('key', ['prune_v', 'selected.loss_contrastive', 'avm_logits'])
def test_a_changed_number_is_noticed(tmp_path, key):
    golden = torch.load(GOLDEN, weights_only=True)
    place = golden['expected']
    *path, last = key.split('.')
    for name in path:
        place = place[name]
    place[last] = place[last] * 1.001
    torch.save(golden, tmp_path / 'changed.pt')
    done = conformance(tmp_path / 'changed.pt')
    over = [line.split()[0] for line in done.stdout.splitlines() if 'over the limit' in line]
    assert done.returncode == 1 and key in over
