"""What a run shows of itself: curves, borders, and one page whose command makes the same run."""
import dataclasses
import json
import re
import shlex

import matplotlib.pyplot as plt
import pytest

import eval as evaluation
from config import Config, parse
from downstream import report
from running import TINY


def entries():
    """A log: initial pre-training, two tasks; the penalty from the second step on."""
    phases = [('pretrain', 0)] * 2 + [('stream', 0)] * 3 + [('stream', 1)] * 3
    return [dict(phase=phase, task=task, step=n, global_step=10 * (n + 1), loss=3.0 - 0.1 * n, mae_a=1.0, own=2.0,
                 samples_per_s=5.0 + n, waited=0.1, memory_gb=0.5, **({'penalty': 0.2} if n > 2 else {}))
            for n, (phase, task) in enumerate(phases)]


def test_every_term_and_every_border_is_drawn():
    figure = report.training(entries())
    top, speed, memory = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in top.get_lines() if line.get_label()[0] != '_'}
    assert set(lines) == {'loss, all together', 'ℓ^r, audio', 'ℓ^p', 'own'} and len(lines['ℓ^p']) == 5
    assert report.borders(entries()) == [(0, 'initial'), (20, 'task 1'), (50, 'task 2')]
    assert {text.get_text() for text in top.texts} == {'initial', 'task 1', 'task 2'}
    for axis in figure.axes:
        assert [line.get_xdata()[0] for line in axis.get_lines() if line.get_linestyle() == '--'] == [20, 50]
    assert list(speed.get_lines()[0].get_ydata()) == [5.0 + n for n in range(8)] and memory.get_ylabel() == 'peak, GB'
    plt.close(figure)
    old = [{name: x for name, x in entry.items() if name != 'memory_gb'} for entry in entries()]
    assert len(report.training(old).axes) == 2                          # a log from before memory was noted
    plt.close('all')


@pytest.mark.parametrize('words', [
    [], ['--method', 'er', '--seed', '3'], ['--method', 'flava+', '--size', 'small', '--lam', '0.5'],
    ['--dataset', 'vggsound', '--data', 'my clips', '--size', 'small'], ['--dataset', 'audioset', '--beta', '0.2'],
    ['--pretrain-steps', '5', '--embed-dim', '32'], ['--size', 'base'], ['--init', 'a file.pt'],
    ['--pretrain-steps', '0']])
def test_the_command_makes_the_same_run(words):
    cfg, _ = parse(words)
    told = shlex.split(report.command(cfg, report.differing(cfg)))
    assert told[:2] == ['python', 'train.py']
    assert dataclasses.asdict(parse(told[2:])[0]) == dataclasses.asdict(cfg)


def test_a_run_ends_with_its_page_and_eval_makes_it_anew(here, tmp_path, monkeypatch):
    code, said, err = here([*TINY, '--steps', '2', '--pretrain-steps', '2', '--log-every', '1', '--out', 'run',
                            '--clips-per-task', '8', '--method', 'er'], tmp_path)
    assert code == 0, err
    page, run = tmp_path / 'run' / 'report.md', tmp_path / 'run'
    text = page.read_text()
    assert (run / 'figures/training.png').stat().st_size > 0 and 'report.md' in said
    assert (run / 'table.md').read_text().strip() in text and '`--steps` | 2 |' in text and '--resume' in text
    pictures = re.findall(r'!\[\w+\]\(([^)]+)\)', text)
    assert set(pictures) == {f'figures/{x}.png' for x in ('attention', 'stream', 'training')}
    assert all((run / picture).exists() for picture in pictures)
    lines = [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]
    assert all(line['memory_gb'] > 0.01 for line in lines)
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
    assert report.write(tmp_path)[-1] == tmp_path / 'report.md'
    assert 'Not finished' in (tmp_path / 'report.md').read_text()
