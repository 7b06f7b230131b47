"""The report of a run: training curves, and a page whose command starts the same run."""
import dataclasses
import json
import shlex

import matplotlib.pyplot as plt
import pytest

from config import Config
from downstream import report
from utils.cli import parse


def entries():
    """A log: initial pre-training, two tasks; the penalty from the fourth step on"""
    phases = [('pretrain', 0)] * 2 + [('stream', 0)] * 3 + [('stream', 1)] * 3
    return [dict(phase=phase, task=task, step=n, global_step=10 * (n + 1), loss=3.0 - 0.1 * n, mae_a=1.0, own=2.0,
                 samples_per_s=5.0 + n, waited=0.1, memory_gb=0.5, **({'penalty': 0.2} if n > 2 else {}))
            for n, (phase, task) in enumerate(phases)]


def test_all_terms_and_phases_are_drawn():
    figure = report.plot_training(entries())
    top, speed, memory = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in top.get_lines() if line.get_label()[0] != '_'}
    assert set(lines) == {'total loss', 'ℓ^r, audio', 'ℓ^p', 'own'} and lines['ℓ^p'][3:] == [0.2] * 5
    assert [(text.get_text(), text.xy[0]) for text in top.texts] == [('initial', 0), ('task 1', 20), ('task 2', 50)]
    assert list(speed.get_lines()[0].get_ydata()) == [5.0 + n for n in range(8)] and memory.get_ylabel() == 'peak, GB'
    plt.close('all')


@pytest.mark.parametrize('words', [
    '', '--method er --seed 3', '--method flava+ --size small --lam 0.5', '--dataset audioset --beta 0.2',
    '--dataset vggsound --data "my clips" --size small', '--pretrain-steps 5 --embed-dim 32', '--size base',
    '--init "a file.pt"', '--pretrain-steps 0'])
def test_the_command_starts_the_same_run(words):
    cfg, _ = parse(shlex.split(words))
    command = shlex.split(report.train_command(cfg))
    assert command[:2] == ['python', 'train.py']
    assert dataclasses.asdict(parse(command[2:])[0]) == dataclasses.asdict(cfg)


def test_the_page_of_a_run(tmp_path):
    words = ['--method', 'er', '--steps', '2', '--out', str(tmp_path)]
    (tmp_path / 'config.json').write_text(json.dumps(dataclasses.asdict(parse(words)[0])))
    results = dict(candidates=40, chance={'R@10': 25}, left_out=['a.mp4: silent audio'])
    (tmp_path / 'results.json').write_text(json.dumps(results))
    (tmp_path / 'table.md').write_text('| the table |\n')
    for name in ('figures/stream.png', 'eval/gap.png', 'eval/gap.md', 'eval/gap.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{}' if name.endswith('json') else '| the gap |')
    assert report.write_report(tmp_path) == [tmp_path / 'report.md']          # without log.jsonl, no curves
    text = (tmp_path / 'report.md').read_text()
    for part in ('--resume', '`--steps` | 2 |', '| the table |', '40 candidates', '- a.mp4: silent audio',
                 '](figures/stream.png)', '### gap\n\n| the gap |', '](eval/gap.png)'):
        assert part in text


def test_an_unfinished_run_has_a_page_too(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(dataclasses.asdict(Config())))
    (tmp_path / 'log.jsonl').write_text(json.dumps(entries()[0]) + '\n{"phase": "str')        # killed while writing
    assert report.write_report(tmp_path)[-1] == tmp_path / 'report.md'
    assert 'not finished' in (tmp_path / 'report.md').read_text() and (tmp_path / 'figures/training.png').exists()


def test_an_evaluation_of_an_unfinished_run_says_so(tmp_path):
    (tmp_path / 'gap.json').write_text(json.dumps(dict(tasks=['a', 'b', 'c'], after=['initial', 'a', 'b'])))
    (tmp_path / 'ave.json').write_text(json.dumps(dict(after='c')))
    (tmp_path / 'selection.json').write_text(json.dumps(dict(tasks=['a', 'b', 'c'], after=['a', 'b', 'c'])))
    found = [report.unfinished(tmp_path / f'{name}.md') for name in ('gap', 'ave', 'selection', 'nothing')]
    assert found == ['This evaluation ends after b, before the last task.', '', '', '']
