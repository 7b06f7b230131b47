"""Runs, groups of runs, and their numbers over seeds."""
import json
import statistics

import pytest

from config import UserError
from fake_runs import cells_of, fake_run, results_of
from paper import groups as g


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path):
    paths = [fake_run(tmp_path / f'er{s}', s, method='er', device='cpu' if s else '', workers=s, data_seed=s,
                      init=f'/{s}/shapes_small.pt', evaluated=()) for s in range(3)]
    paths += [fake_run(tmp_path / 'big', 3, method='er', init='shapes_small.pt', memory_size=99, evaluated=()),
              fake_run(tmp_path / 'ft', 4, method='finetune', init='shapes_small.pt', evaluated=())]
    groups = g.group_runs(paths + paths[:1])                        # a folder counts once
    assert [(group.title, len(group.runs)) for group in groups] == [('Finetune', 1), ('ER', 3), ('ER', 1)]
    assert g.labels(groups) == ['Finetune', 'ER, memory_size 160', 'ER, memory_size 99']
    assert [group.cfg.memory_size for group in g.comparable(groups, 'method')] == [160] * 2
    value = g.retrieval('audio_to_video', 'Avg', 'A')
    by_hand = [results_of(path)['audio_to_video']['Avg']['A'] for path in paths[:3]]
    assert g.over_seeds(groups[1], value) == pytest.approx((statistics.mean(by_hand), statistics.stdev(by_hand)))
    assert g.over_seeds(groups[2], value)[1] is None


def test_options_that_a_method_does_not_read_do_not_separate_groups(tmp_path):
    paths = [fake_run(tmp_path / 'er', method='er', evaluated=()),
             fake_run(tmp_path / 'other', method='gmed', gmed_alpha=0.3, evaluated=()),
             fake_run(tmp_path / 'gmed', method='gmed', evaluated=())]
    groups = g.group_runs(paths)
    assert g.labels(groups) == ['ER', 'GMED, gmed_alpha 0.3', 'GMED, gmed_alpha 0.1']
    assert g.comparable(groups, 'method') == groups[:2]


def test_another_selection_has_another_title(tmp_path):
    for method, selection, title in (('flava', 'rank', 'rank (ours)'), ('flava+', 'both', 'FLAVA+'),
                                     ('flava+', 'rank', 'FLAVA+, rank (ours)')):
        path = fake_run(tmp_path / f'{method}-{selection}', method=method, selection=selection, evaluated=())
        assert g.group_runs([path])[0].title == title


def test_runs_that_are_left_out(tmp_path, capsys):
    paths = [fake_run(tmp_path / f'{k}', k, method='er', evaluated=('gap',) if k else ()) for k in range(3)]
    only, = g.with_evaluation(g.group_runs(paths), 'gap')
    assert [str(run.folder) for run in only.runs] == [str(path) for path in paths[1:]]
    with pytest.raises(g.Missing, match='python eval.py RUN --eval ave'):
        g.with_evaluation(g.group_runs(paths), 'ave')
    gap = results_of(paths[1], 'eval/gap')                          # an evaluation that ends before the last task
    (paths[1] / 'eval/gap.json').write_text(json.dumps(gap | dict(after=gap['after'][:-1])))
    only, = g.with_evaluation(g.group_runs(paths), 'gap')
    assert [str(run.folder) for run in only.runs] == [str(paths[2])]
    twin = fake_run(tmp_path / 'twin', method='er')
    assert [len(group.runs) for group in g.group_runs([*paths, twin])] == [3]
    assert 'twin has the options and the seed of' in capsys.readouterr().out
    (paths[0] / 'results.json').unlink()
    assert [len(group.runs) for group in g.group_runs(paths)] == [2]
    assert '0 has no readable results.json' in capsys.readouterr().out
    with pytest.raises(UserError, match='nowhere'):
        g.group_runs([tmp_path / 'nowhere'])


def test_summary_shows_the_options_that_differ(tmp_path):
    paths = [fake_run(tmp_path / f'{m}{s}{size}', s + size, method=m, memory_size=size, evaluated=())
             for m in ('er', 'flava') for size in (50, 100) for s in range(2)]
    table = g.summary(paths)
    assert table.splitlines()[0].startswith('| method | memory_size | seeds | R@10 by chance | a→v Avg A ↑')
    rows = [[cell.strip() for cell in row.split('|')[1:-1]] for row in table.splitlines()[2:]]
    assert [row[:3] for row in rows] == [[name, size, '2'] for name in ('ER', 'FLAVA') for size in ('50', '100')]
    own = [results_of(path)['video_to_audio']['R@10']['F'] for path in paths[2:4]]
    assert rows[1][-1] == f'{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}'
    finetune = g.summary([*paths, fake_run(tmp_path / 'finetune', method='finetune', evaluated=())])
    assert cells_of(finetune, 'Finetune')[1:3] == ['–', '1']       # it has no memory
