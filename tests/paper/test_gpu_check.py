"""The check on a GPU, tiny and on a CPU: every part runs to its end and is in the report; errors are recorded."""
import json

import pytest

from paper import bench, gpu_check


@pytest.mark.slow
def test_every_part_runs(tmp_path, capfd):
    gpu_check.main(['--device', 'cpu', '--smoke', '--minutes', '40', '--out', str(tmp_path)])
    report = json.loads((tmp_path / 'cpu.json').read_text())
    parts = report['parts']
    assert set(parts) == set(gpu_check.PARTS) and not [part for part in parts.values() if 'error' in part]
    assert parts['tests']['passed'] >= 7 and not parts['tests']['failed']
    for label in gpu_check.SMOKE:
        assert parts['methods'][label]['loss_difference'] == 0         # a CPU against itself: the same draws
        costs = parts['speed']['eager, batch 3'][label]
        assert costs['median'] > 0 and 0 < costs['matrix_share'] and abs(sum(costs['shares'].values()) - 1) < 1e-6
        assert (costs['shares']['scoring'] > 0) == (label != 'der++')
    assert parts['run']['cpu_min'] < parts['run']['cpu_mean'] < parts['run']['cpu_max']
    assert parts['resume']['same_results'] and 0 < parts['resume']['stopped_after_steps'] < parts['resume']['steps']
    assert parts['processes']['finished'] and parts['processes']['backend'] == 'gloo'
    page = (tmp_path / 'cpu.md').read_text()
    assert all(f'## {name}' in page for name in parts) and page.count('| flava-grid |') == 2


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    def fails(check, found):
        found['before'] = 1
        raise ValueError('no luck')
    monkeypatch.setattr(gpu_check, 'PARTS', dict(methods=fails, speed=lambda check, found: found.update(after=2)))
    gpu_check.main(['--device', 'cpu', '--smoke', '--parts', '1', '2', '--out', str(tmp_path)])
    parts = json.loads((tmp_path / 'cpu.json').read_text())['parts']
    assert parts['methods']['before'] == 1 and parts['methods']['error'] == 'ValueError: no luck'
    assert 'fails(' not in parts['methods']['error'] and 'no luck' in parts['methods']['traceback']
    assert parts['speed']['after'] == 2 and '- error: ValueError: no luck' in (tmp_path / 'cpu.md').read_text()


def test_too_little_memory_is_recorded_for_its_method(tmp_path, monkeypatch, capsys):
    """Here for FLAVA; DER++ is timed all the same."""
    step = bench.Bench.step

    def runs_out(method):
        if method.cfg.method == 'flava':
            raise gpu_check.torch.OutOfMemoryError('out of memory')
        return step(method)
    monkeypatch.setattr(bench.Bench, 'step', runs_out)
    gpu_check.main(['--device', 'cpu', '--smoke', '--parts', '2', '--out', str(tmp_path)])
    costs = json.loads((tmp_path / 'cpu.json').read_text())['parts']['speed']['eager, batch 3']
    assert costs['flava']['error'] == 'OutOfMemoryError: out of memory' and costs['der++']['median'] > 0


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, 'is_available', lambda: False)
    for options, reason in (([], 'needs a GPU'), (['--device', 'cpu'], 'needs --smoke')):
        with pytest.raises(SystemExit) as end:
            gpu_check.main(options)
        assert end.value.code == 2 and reason in capsys.readouterr().err
