"""Figures against the numbers and maps of fake runs; and the command that writes all figures and tables."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from config import SIZES, Sizes
from fake_runs import add_attention, fake_run, results_of
from paper import attention_figures, figures, gap_figures, tables
from paper.groups import Missing, group_runs

SMALL = Sizes(**SIZES['small'])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def line(axis, name):
    """The y values of the line with this name in the legend"""
    handles, names = axis.get_legend_handles_labels()
    handle = handles[names.index(name)]
    return list((handle if hasattr(handle, 'get_ydata') else handle[0]).get_ydata())


def ticks(labels):
    return [label.get_text() for label in labels]


# ---------------------------------------------------------------------------- figures of numbers

def test_modality_gap(tmp_path):
    methods = ('er', 'cls-er', 'flava', 'multitask')
    paths = {m: [fake_run(tmp_path / f'{m}{s}', 10 * k + s, method=m) for s in range(2)] for k, m in enumerate(methods)}
    gaps = {m: [results_of(path, 'eval/gap') for path in paths[m]] for m in methods}
    groups = group_runs(sum(paths.values(), []))
    axis, left, right = gap_figures.figure_5(groups).axes
    assert line(axis, 'FLAVA') == pytest.approx(np.mean([gap['over_stream'] for gap in gaps['flava']], 0))
    assert line(axis, 'Multitask') == pytest.approx(2 * [np.mean([gap['over_stream'] for gap in gaps['multitask']])])
    assert (left.get_title(), right.get_title()) == ('(b) music:\nCLS-ER', '(b) music:\nFLAVA')
    assert np.allclose(right.collections[1].get_offsets(), gaps['flava'][0]['clouds'][1]['video'])

    axis, = gap_figures.figure_13(groups).axes
    assert ticks(axis.get_yticklabels()) == ['ER', 'CLS-ER', 'FLAVA']
    differences = [np.mean([gap['difference'] for gap in gaps[m]]) for m in methods[:3]]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(differences)
    drawn = [axis.get_title() for axis in gap_figures.figure_14(groups).axes]
    assert drawn == ['ER', 'CLS-ER', 'FLAVA', 'Multitask']


def test_gap_of_selections(tmp_path):
    paths = [fake_run(tmp_path / s, k, selection=s) for k, s in enumerate(('both', 'importance', 'forget-robust'))]
    left, right = gap_figures.figure_15(group_runs(paths)).axes
    assert line(left, 'LAVA') == pytest.approx(results_of(paths[1], 'eval/gap')['over_stream'])
    assert ticks(right.get_yticklabels()) == ['FLAVA', 'LAVA', 'FRS']
    with pytest.raises(Missing, match='--method flava --selection importance'):
        gap_figures.figure_15(group_runs(paths[:1]))


def test_memory_sizes(tmp_path):
    runs = [('finetune', 100), ('er', 200), ('er', 50), ('er', 100), ('flava', 100)]
    paths = {(m, size): fake_run(tmp_path / f'{m}{size}', k, method=m, memory_size=size)
             for k, (m, size) in enumerate(runs)}
    axes = figures.figure_9(group_runs(paths.values())).axes
    expected = [results_of(paths['er', size])['video_to_audio']['Avg']['A'] for size in (50, 100, 200)]
    assert len(axes) == 3 and line(axes[1], 'ER') == expected
    assert list(axes[1].lines[1].get_xdata()) == pytest.approx(list(axes[1].get_xticks()))
    assert line(axes[1], 'Finetune') == 2 * [results_of(paths['finetune', 100])['video_to_audio']['Avg']['A']]
    assert line(axes[2], 'FLAVA') == [results_of(paths['flava', 100], 'eval/classification')['A']]
    with pytest.raises(Missing, match='--memory-size N'):
        figures.figure_9(group_runs([paths['er', 100], paths['finetune', 100]]))


def test_audio_selection(tmp_path):
    paths = [fake_run(tmp_path / f'c{c}', c, chunk=c) for c in (8, 2, 4)]
    paths.append(fake_run(tmp_path / 'f', 9, chunk=4, audio_selection='frequency'))
    chunks, kinds = figures.figure_10(group_runs(paths)).axes
    expected = [results_of(paths[k])['audio_to_video']['Avg']['A'] for k in (1, 2, 0)]
    assert [bar.get_height() for bar in chunks.patches[:3]] == expected
    expected = [results_of(paths[k])['video_to_audio']['Avg']['A'] for k in (2, 3)]
    assert [bar.get_height() for bar in kinds.patches[2:]] == expected
    assert ticks(kinds.get_xticklabels()) == ['time', 'frequency']


def test_without_reconstruction(tmp_path):
    runs = [('finetune', 1.0), ('finetune', 0.0), ('er', 1.0), ('er', 0.0), ('flava', 1.0)]
    paths = {(m, w): fake_run(tmp_path / f'{m}{w}', k, method=m, mae_weight=w) for k, (m, w) in enumerate(runs)}
    accuracy, forgetting, *tasks = figures.figure_11(group_runs(paths.values())).axes
    records = {key: results_of(path, 'eval/classification') for key, path in paths.items()}
    names = ticks(accuracy.get_yticklabels())
    assert names == ['Finetune', 'Finetune, no MAE', 'ER', 'ER, no MAE']                # FLAVA has no pair
    assert [bar.get_width() for bar in forgetting.patches] == pytest.approx([records[key]['F'] for key in runs[:4]])
    assert len(tasks) == 2 and line(tasks[1], 'sports') == [row[0] for row in records['er', 0.0]['acc']]
    with pytest.raises(Missing, match='--mae-weight 0'):
        figures.figure_11(group_runs([paths['er', 1.0]]))


# -------------------------------------------------------------------------- figures of attention

def images(axis):
    return [np.asarray(image.get_array()) for image in axis.get_images()]


def over_frames(I_v):
    """I_v (N,) of two frames as it is drawn: frames in a row, with a blank column between"""
    first, second = I_v.reshape(SMALL.grid_v)
    return torch.cat([first, torch.full((len(first), 1), float('nan')), second], 1)


def attention_runs(tmp_path, *methods, **options):
    return [add_attention(fake_run(tmp_path / m, method=m, evaluated=()), number=k, **options)
            for k, m in enumerate(methods)]


def test_attention_over_the_stream(tmp_path):
    paths = attention_runs(tmp_path, 'der++', 'flava')
    figure = attention_figures.figure_2(group_runs(paths))
    axes = np.array(figure.axes).reshape(2, 6)             # frames, two maps, spectrogram, two maps
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ['sports\nDER++', 'sports\nFLAVA']
    clip = torch.load(paths[1] / 'eval/localization.pt', weights_only=True)['clips'][0]
    for column, model in ((1, 1), (2, 3)):                 # models: initial, sports, music, vehicle
        assert np.array_equal(images(axes[1, column])[1], over_frames(clip['I_v'][model]), equal_nan=True)
        assert np.array_equal(images(axes[1, column + 3])[0], clip['I_a'][model].reshape(SMALL.grid_a).T)
    assert len(axes[1, 1].collections) == 2                # the outline of the source, white on black
    assert len(attention_figures.figure_17(group_runs(paths)).axes) == 3 * 2 * 6         # three more past clips


def test_sound_sources(tmp_path):
    paths = attention_runs(tmp_path, 'er', 'flava', known=False)
    axes = np.array(attention_figures.figure_12(group_runs(paths)).axes).reshape(3, 5)   # a row a task
    titles = [axis.get_title() for axis in axes[0, 1:4]]
    assert titles == ['cosine: ER', 'cosine: FLAVA', 'AVM: FLAVA']
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ['sports', 'music', 'vehicle']
    clip = torch.load(paths[1] / 'eval/localization.pt', weights_only=True)['clips'][2]
    middle = SMALL.num_frames // 2
    assert np.array_equal(images(axes[1, 2])[1], clip['cosine_v'][-1].reshape(SMALL.grid_v)[middle])
    assert np.array_equal(images(axes[1, 3])[1], clip['I_v'][-1].reshape(SMALL.grid_v)[middle])
    assert not axes[1, 3].collections                      # no known source, no outline


def test_spurious_attention(tmp_path):
    groups = group_runs(attention_runs(tmp_path, 'er', 'flava'))
    figure = attention_figures.figure_3(groups)
    clip = torch.load(tmp_path / 'flava/eval/spurious.pt', weights_only=True)['clips'][-1]        # of the last task
    assert 'FLAVA' in figure.get_suptitle() and len(figure.axes) == 6
    assert np.array_equal(images(figure.axes[1])[1], over_frames(clip['I_v']), equal_nan=True)
    assert np.array_equal(images(figure.axes[5])[0], clip['I_a_other'].reshape(SMALL.grid_a).T)
    assert len(attention_figures.figure_16(groups).axes) == 2 * 6


def test_runs_with_other_clips_are_left_out(tmp_path):
    paths = attention_runs(tmp_path, 'er') + attention_runs(tmp_path, 'flava', clips_seed=1)
    assert [label for label, _, _ in attention_figures.same_clips(group_runs(paths))] == ['ER']


# ------------------------------------------------------------------------------- the command line

def test_command_line(tmp_path, capsys):
    paths = [fake_run(tmp_path / m, k, method=m, evaluated=('gap',) if k else ())
             for k, m in enumerate(('er', 'flava'))]
    add_attention(paths[0])
    figures.main([*map(str, paths), '--out', str(tmp_path / 'out')])
    lines = capsys.readouterr().out.splitlines()
    assert f'figure 5: {tmp_path / "out" / "figure_05.png"}' in lines
    assert any(line.startswith('figure 10: needs runs of `python train.py --method flava --chunk 8') for line in lines)
    assert 'table 4: needs `python eval.py RUN --eval classification`' in lines
    drawn = {file.name for file in (tmp_path / 'out').iterdir()}
    assert drawn == {f'figure_{n:02d}.png' for n in (2, 3, 5, 12, 13, 14, 16, 17)} | {'table_01.md'}
    assert len([s for s in lines if s.startswith(('figure', 'table'))]) == len(figures.FIGURES) + len(tables.TABLES)


def test_runs_of_two_datasets_are_refused(tmp_path, capsys):
    paths = [fake_run(tmp_path / name, dataset=name, evaluated=()) for name in ('vggsound', 'audioset')]
    with pytest.raises(SystemExit):
        figures.main([*map(str, paths), '--out', str(tmp_path / 'out')])
    assert 'audioset and vggsound: name those of one dataset' in capsys.readouterr().err
