"""The check on a GPU, tiny and on a CPU: every part runs to its end and is in the report; errors are recorded."""
import json

import pytest

from conftest import ROOT
from paper import bench, gpu_check


@pytest.mark.slow
def test_every_part_runs(tmp_path, capfd):
    gpu_check.main(['--device', 'cpu', '--smoke', '--minutes', '40', '--out', str(tmp_path)])
    report = json.loads((tmp_path / 'cpu.json').read_text())
    parts = report['parts']
    assert set(parts) == set(gpu_check.PARTS) and not [part for part in parts.values() if 'error' in part]
    assert ' passed' in parts['tests']['summary'] and not parts['tests']['failures']
    for label in gpu_check.SMOKE.split():
        assert parts['methods'][label]['loss_difference'] == 0         # a CPU against itself: the same draws
        own = parts['speed']['eager, batch 3'][label]
        assert min(own['samples_per_s']) > 0 and 0 < own['outside'] < 1
    assert parts['run']['cpu_min'] < parts['run']['cpu_mean'] < parts['run']['cpu_max']
    assert parts['resume']['same_results'] and 0 < parts['resume']['stopped_after_steps'] < parts['resume']['steps']
    assert parts['processes']['finished'] and parts['processes']['backend'] == 'gloo'
    page = (tmp_path / 'cpu.md').read_text()
    assert all(f'## {name}' in page for name in parts) and page.count('| flava-grid |') == 2


def test_failures_are_recorded_and_the_check_goes_on(tmp_path, monkeypatch, capsys):
    """A process that fails; and too little memory for one method."""
    step = bench.Bench.step

    def runs_out(method):
        if method.cfg.method == 'flava':
            raise gpu_check.torch.OutOfMemoryError('out of memory')
        return step(method)
    monkeypatch.setattr(bench.Bench, 'step', runs_out)
    monkeypatch.setattr(gpu_check, 'SHORT_RUN', ['--method', 'none'])
    gpu_check.main(['--device', 'cpu', '--smoke', '--parts', 'resume', 'speed', '--out', str(tmp_path)])
    parts = json.loads((tmp_path / 'cpu.json').read_text())['parts']
    assert parts['resume']['error'].startswith('RuntimeError: exit code 2: ') and 'none' in parts['resume']['error']
    costs = parts['speed']['eager, batch 3']
    assert costs['flava']['error'] == 'OutOfMemoryError: out of memory' and costs['der++']['samples_per_s']
    page = (tmp_path / 'cpu.md').read_text()
    assert '- error: RuntimeError' in page and '| flava | OutOfMemoryError: out of memory |' in page


def test_recorded_report_is_printed():
    """The report of the H200 in results/, which an older version wrote."""
    report = json.loads((ROOT / 'results' / 'gpu' / 'nvidia-h200.json').read_text())
    page = gpu_check.to_markdown(report)
    assert '| flava | 275.9 (275.4 … 276.2) | 1.02 | 21.4 | 30.9% | 6% |' in page and '| mats | 5.5805' in page


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, 'is_available', lambda: False)
    for options, reason in (([], 'needs a GPU'), (['--device', 'cpu'], 'needs --smoke')):
        with pytest.raises(SystemExit) as end:
            gpu_check.main(options)
        assert end.value.code == 2 and reason in capsys.readouterr().err
