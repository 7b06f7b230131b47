"""The report of a run: training curves, and a page whose command starts the same run."""
import dataclasses
import json
import re
import shlex

import matplotlib.pyplot as plt
import pytest

import eval as evaluation
from config import Config
from downstream import report
from running import TINY
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
    assert set(lines) == {'total loss', 'ℓ^r, audio', 'ℓ^p', 'own'} and len(lines['ℓ^p']) == 5
    assert report.phase_starts(entries()) == [(0, 'initial'), (20, 'task 1'), (50, 'task 2')]
    assert {text.get_text() for text in top.texts} == {'initial', 'task 1', 'task 2'}
    for axis in figure.axes:
        assert [line.get_xdata()[0] for line in axis.get_lines() if line.get_linestyle() == '--'] == [0, 20, 50]
    assert list(speed.get_lines()[0].get_ydata()) == [5.0 + n for n in range(8)] and memory.get_ylabel() == 'peak, GB'
    old = [{name: x for name, x in entry.items() if name != 'memory_gb'} for entry in entries()]
    assert len(report.plot_training(old).axes) == 2
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


def test_a_run_ends_with_its_page_and_eval_rewrites_it(here, tmp_path):
    code, out, err = here([*TINY, '--steps', '2', '--pretrain-steps', '2', '--log-every', '1', '--out', 'run',
                           '--clips-per-task', '8', '--method', 'er'], tmp_path)
    assert code == 0, err
    page, run = tmp_path / 'run' / 'report.md', tmp_path / 'run'
    text = page.read_text()
    assert (run / 'figures/training.png').stat().st_size > 0 and 'report.md' in out
    assert (run / 'table.md').read_text().strip() in text and '`--steps` | 2 |' in text and '--resume' in text
    figures = re.findall(r'!\[\w+\]\(([^)]+)\)', text)
    assert set(figures) == {f'figures/{name}.png' for name in ('attention', 'stream', 'training')}
    assert all((run / figure).exists() for figure in figures)

    # eval.py writes it again, with new results
    page.unlink()
    (run / 'figures/training.png').unlink()
    results = json.loads((run / 'results.json').read_text())
    (run / 'results.json').write_text(json.dumps(dict(results, left_out=['a.mp4: silent audio'])))
    (run / 'eval').mkdir(exist_ok=True)
    (run / 'eval/gap.png').write_bytes((run / 'figures/stream.png').read_bytes())
    evaluation.main([str(run)])
    text = page.read_text()
    assert '- a.mp4: silent audio' in text and '](eval/gap.png)' in text and (run / 'figures/training.png').exists()


def test_an_unfinished_run_has_a_page_too(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(dataclasses.asdict(Config())))
    (tmp_path / 'log.jsonl').write_text(json.dumps(entries()[0]) + '\n{"phase": "str')        # killed while writing
    assert report.write(tmp_path)[-1] == tmp_path / 'report.md'
    assert 'not finished' in (tmp_path / 'report.md').read_text() and (tmp_path / 'figures/training.png').exists()
