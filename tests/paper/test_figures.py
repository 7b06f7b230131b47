"""Figures of numbers against what fake runs recorded; and the command that makes every figure and table."""
import matplotlib.pyplot as plt
import numpy as np
import pytest

from fake_runs import fake_run, looked, results_of
from paper import figures, gaps, tables
from paper.groups import NAMES, Missing, groups
from paper.looks import PRINT, looks


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close('all')


def line(axis, name):
    """The y data of the line of this name in the legend."""
    handles, names = axis.get_legend_handles_labels()
    handle = handles[names.index(name)]
    return list((handle if hasattr(handle, 'get_ydata') else handle[0]).get_ydata())


def ticks(labels):
    return [label.get_text() for label in labels]


# ---------------------------------------------------------------------------- figures of numbers

def test_modality_gap_figures_draw_what_was_recorded(tmp_path):
    methods = ('er', 'cls-er', 'flava', 'multitask')
    paths = {m: [fake_run(tmp_path / f'{m}{s}', 10 * k + s, method=m) for s in range(2)] for k, m in enumerate(methods)}
    read = lambda path: results_of(path, 'eval/gap')
    found = groups(sum(paths.values(), []))
    axis, left, right = gaps.figure_5(found).axes
    expected = np.mean([read(p)['over_stream'] for p in paths['flava']], 0)
    assert line(axis, 'FLAVA (Ours)') == pytest.approx(expected)
    assert line(axis, 'Multitask') == pytest.approx(2 * [np.mean([read(p)['over_stream'] for p in paths['multitask']])])
    assert (left.get_title(), right.get_title()) == ('(b) music:\nCLS-ER', '(b) music:\nFLAVA (Ours)')
    of_second_task = read(paths['flava'][0])['clouds'][1]['video']
    assert np.allclose(right.collections[1].get_offsets(), of_second_task)

    audioset = [fake_run(tmp_path / 'as', 90, method='er', dataset='audioset')]
    axes = gaps.figure_13(found + groups(audioset)).axes
    assert len(axes) == 2 and ticks(axes[0].get_yticklabels()) == ['ER', 'CLS-ER', 'FLAVA (Ours)']
    differences = [np.mean([read(p)['difference'] for p in paths[m]]) for m in methods[:3]]
    assert [bar.get_width() for bar in axes[0].patches] == pytest.approx(differences)
    assert line(axes[1], 'ER') == pytest.approx(read(audioset[0])['over_stream'])
    assert len(gaps.figure_13(found).axes) == 1
    drawn = [axis.get_title() for axis in gaps.figure_14(found + groups(audioset)).axes if axis.has_data()]
    assert drawn == ['ER', 'CLS-ER', 'FLAVA (Ours)', 'Multitask', 'ER']


def test_components_gap(tmp_path):
    paths = [fake_run(tmp_path / s, k, selection=s) for k, s in enumerate(('both', 'importance', 'forget-robust'))]
    left, right = gaps.figure_15(groups(paths)).axes
    assert line(left, 'LAVA') == pytest.approx(results_of(paths[1], 'eval/gap')['over_stream'])
    assert ticks(right.get_yticklabels()) == ['FLAVA (Ours)', 'LAVA', 'FRS']
    with pytest.raises(Missing, match='--method flava --selection importance'):
        gaps.figure_15(groups(paths[:1]))


def test_memory_sizes(tmp_path):
    runs = [('finetune', 100), ('er', 200), ('er', 50), ('er', 100), ('flava', 100)]
    paths = {(m, size): fake_run(tmp_path / f'{m}{size}', k, method=m, memory_size=size)
             for k, (m, size) in enumerate(runs)}
    axes = figures.figure_9(groups(paths.values())).axes
    value = lambda key: results_of(paths[key])['video_to_audio']['Avg']['A']
    assert len(axes) == 3 and line(axes[1], 'ER') == [value(('er', size)) for size in (50, 100, 200)]
    assert line(axes[1], 'Finetune') == 2 * [value(('finetune', 100))]
    assert line(axes[2], 'FLAVA (Ours)') == [results_of(paths['flava', 100], 'eval/classification')['A']]
    with pytest.raises(Missing, match='--method er .*--memory-size 50 '):
        figures.figure_9(groups([paths['er', 100], paths['finetune', 100]]))


def test_audio_selection(tmp_path):
    paths = [fake_run(tmp_path / f'c{c}', c, chunk=c) for c in (8, 2, 4)]
    paths.append(fake_run(tmp_path / 'f', 9, chunk=4, audio_selection='frequency'))
    chunks, kinds = figures.figure_10(groups(paths)).axes
    value = lambda path, d: results_of(path)[d]['Avg']['A']
    assert [bar.get_height() for bar in chunks.patches[:3]] == [value(paths[k], 'audio_to_video') for k in (1, 2, 0)]
    assert [bar.get_height() for bar in kinds.patches[2:]] == [value(paths[k], 'video_to_audio') for k in (2, 3)]
    assert ticks(kinds.get_xticklabels()) == ['time', 'frequency']
    assert len(figures.figure_10(groups(paths[:3])).axes) == 1


def test_without_reconstruction(tmp_path):
    runs = [('finetune', 1.0), ('finetune', 0.0), ('er', 1.0), ('er', 0.0), ('flava', 1.0)]
    paths = {(m, w): fake_run(tmp_path / f'{m}{w}', k, method=m, mae_weight=w) for k, (m, w) in enumerate(runs)}
    accuracy, forgetting, *tasks = figures.figure_11(groups(paths.values())).axes
    read = lambda key: results_of(paths[key], 'eval/classification')
    names = ticks(accuracy.get_yticklabels())
    assert names == ['Finetune', 'Finetune, no MAE', 'ER', 'ER, no MAE']                # FLAVA has no pair
    assert [bar.get_width() for bar in forgetting.patches] == pytest.approx([read(key)['F'] for key in runs[:4]])
    assert len(tasks) == 2 and line(tasks[1], 'music') == [row[1] for row in read(('er', 0.0))['acc']]
    with pytest.raises(Missing, match='--mae-weight 0'):
        figures.figure_11(groups([paths['er', 1.0]]))


# ------------------------------------------------------------------------------- the command line

def test_command_line(tmp_path, capsys):
    paths = [fake_run(tmp_path / m, k, method=m, evaluated=('gap',) if k else ())
             for k, m in enumerate(('er', 'flava'))]
    looked(paths[0])
    figures.main([*map(str, paths), '--out', str(tmp_path / 'out')])
    said = capsys.readouterr().out.splitlines()
    starts = lambda start: next(line for line in said if line.startswith(start))
    assert starts('figure 5:') == f'figure 5: {tmp_path / "out" / "figure_05.png"}'
    needs = 'figure 10: needs `python train.py --dataset shapes --method flava --chunk 8 --out runs/'
    assert starts('figure 10:').startswith(needs)
    assert starts('table 4:') == f'table 4: needs `python eval.py {paths[0]} --task classification` of a finished run'
    assert starts('without gap') == f'without gap, and so left out where it is drawn: {paths[0]}'
    drawn = {file.name for file in (tmp_path / 'out').iterdir()}
    assert drawn == {f'figure_{n:02d}.png' for n in (2, 3, 5, 12, 13, 14, 16, 17)} | {'table_01.md'}
    assert len([s for s in said if s.startswith(('figure', 'table'))]) == len(figures.FIGURES) + len(tables.TABLES)


@pytest.mark.parametrize('arguments', ([], ['nowhere'], ['--colour', 'red', 'nowhere']))
def test_mistakes_on_the_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        figures.main(arguments)
    said = capsys.readouterr()
    assert exit.value.code == 2 and said.err.startswith('error: ') and len(said.err.splitlines()) == 1 and not said.out


def test_letters_are_large_enough_in_print(tmp_path):
    """Ten methods, two seeds, eight tasks: as figures are saved, no letter is smaller than 8 points on a page 7 inches
    wide."""
    tasks = [f'task number {k}' for k in range(8)]
    paths = [fake_run(tmp_path / f'{m}{s}', 10 * k + s, tasks=tasks, method=m)
             for k, m in enumerate(list(NAMES)[:10]) for s in range(2)]
    found = groups(paths)
    with plt.rc_context(PRINT):
        for make in (gaps.figure_5, gaps.figure_13, gaps.figure_14):
            figure = make(found)
            figure.canvas.draw()
            assert figure.get_size_inches()[0] <= 7.7
            texts = [text for text in figure.findobj(plt.Text) if text.get_text().strip()]
            assert min(text.get_fontsize() for text in texts) >= 8
        each = looks(found)
    assert len({(look['color'], look['linestyle'], look['marker']) for look in each}) == len(each) == 10
