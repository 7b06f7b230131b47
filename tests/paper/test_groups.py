"""Runs and groups of runs: what stands side by side, over seeds, and what is said of it."""
import math
import statistics

import pytest

from fake_runs import fake_run, results_of
from paper import groups as g
from paper.groups import groups
from paper.looks import looks
from patches import UserError


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path):
    paths = [fake_run(tmp_path / f'er{s}', s, method='er', device='cpu' if s else '', workers=s,
                      init=f'/{s}/shapes_small.pt', pretrain_steps=0, evaluated=()) for s in range(3)]
    paths += [fake_run(tmp_path / 'big', 3, method='er', memory_size=99, evaluated=()),
              fake_run(tmp_path / 'ft', 4, method='finetune', evaluated=())]
    found = groups(paths + paths[:1])                               # one given twice counts once
    assert [(group.name, len(group.runs)) for group in found] == [('Finetune', 1), ('ER', 3), ('ER', 1)]
    assert g.labels(found) == ['Finetune', 'ER, memory_size 160', 'ER, memory_size 99']
    assert [group.cfg.memory_size for group in g.compared(found, 'method')] == [160] * 2
    assert len(g.compared(found, 'method', 'memory_size')) == 3

    value = g.retrieval('audio_to_video', 'Avg', 'A')
    by_hand = [results_of(path)['audio_to_video']['Avg']['A'] for path in paths[:3]]
    mean = sum(by_hand) / 3
    assert g.over_seeds(found[1], value) == pytest.approx((mean, math.sqrt(sum((x - mean) ** 2 for x in by_hand) / 2)))
    assert g.over_seeds(found[2], value)[1] is None


def test_options_of_single_methods_do_not_part_what_is_compared(tmp_path):
    paths = [fake_run(tmp_path / 'a', method='er', evaluated=()),
             fake_run(tmp_path / 'b', method='gmed', gmed_alpha=0.3, evaluated=()),
             fake_run(tmp_path / 'c', method='gmed', evaluated=())]
    found = g.compared(groups(paths), 'method')
    assert g.labels(found) == ['ER', 'GMED, gmed_alpha 0.3', 'GMED, gmed_alpha 0.1']
    assert len({(str(look['linestyle']), look.get('markerfacecolor')) for look in looks(found)[1:]}) == 2


def test_other_weights_are_no_seeds(tmp_path):
    others = [fake_run(tmp_path / f'from{k}', k, dataset='vggsound', init=f'{k}.pt', evaluated=()) for k in range(2)]
    assert len(groups(others)) == 2


def test_unfinished_and_repeated_runs_are_named(tmp_path):
    done, not_done = fake_run(tmp_path / 'done'), fake_run(tmp_path / 'half')
    (not_done / 'results.json').unlink()
    with pytest.raises(UserError, match='half'):
        groups([done, not_done])
    with pytest.raises(UserError, match='no such run: .*nowhere'):
        groups([tmp_path / 'nowhere'])
    with pytest.raises(UserError, match='done and .*again have the same options and the same seed'):
        groups([done, fake_run(tmp_path / 'again')])
    (done / 'results.json').write_text('{')
    with pytest.raises(UserError, match='results.json cannot be read'):
        groups([done])


def test_runs_that_were_not_evaluated_do_not_count(tmp_path):
    paths = [fake_run(tmp_path / f'{k}', k, method='er', evaluated=('gap',) if k else ()) for k in range(3)]
    only, = g.evaluated(groups(paths), 'gap')
    assert [str(run.folder) for run in only.runs] == [str(path) for path in paths[1:]]
    with pytest.raises(g.Missing, match=f'python eval.py {paths[0]} --task ave --data AVE` of a finished run'):
        g.evaluated(groups(paths), 'ave')
    with pytest.raises(g.Missing, match='python eval.py RUN --task gap`'):
        g.evaluated([], 'gap')


def test_a_command_makes_a_run_like_the_others(tmp_path):
    own, = groups([fake_run(tmp_path / 'a', method='er', dataset='vggsound', memory_size=50, evaluated=())])
    words = g.command(own, order='shuffled').strip('`').split()
    assert words[:2] == ['python', 'train.py'] and words[-2:] == ['--out', 'runs/vggsound-er-order-shuffled']
    options = dict(zip(words[2::2], words[3::2]))
    assert options == {'--dataset': 'vggsound', '--size': 'small', '--method': 'er', '--memory-size': '50',
                       '--order': 'shuffled', '--out': 'runs/vggsound-er-order-shuffled'}
    assert g.command(None, method='flava', chunk=8) == (
        '`python train.py --dataset shapes --method flava --chunk 8 --out runs/shapes-flava-chunk-8`')
    assert '--memory-size' not in g.command(own, memory_size='')


def test_summary_shows_what_differs(tmp_path):
    paths = [fake_run(tmp_path / f'{m}{s}{size}', s + size, method=m, memory_size=size, evaluated=())
             for m in ('er', 'flava') for size in (50, 100) for s in range(2)]
    table = g.summary(paths)
    assert table.splitlines()[0].startswith('| method | memory_size | seeds | a→v Avg A ↑ | a→v Avg F ↓ | v→a Avg A ↑')
    rows = [[cell.strip() for cell in row.split('|')[1:-1]] for row in table.splitlines()[2:]]
    assert [row[:3] for row in rows] == [[name, size, '2'] for name in ('ER', 'FLAVA (Ours)') for size in ('50', '100')]
    own = [results_of(path)['video_to_audio']['R@10']['F'] for path in paths[2:4]]
    assert rows[1][-1] == f'{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}'
    assert ' ± ' not in g.summary(paths[:1])
