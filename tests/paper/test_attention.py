"""Figures of attention: each map of what was recorded, at its place."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from fake_runs import fake_run, looked
from paper import attention
from paper.groups import Missing, groups
from patches import SIZES, Sizes


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close('all')


def images(axis):
    return [np.asarray(image.get_array()) for image in axis.get_images()]


def beside(frames, blank, gap=1):
    """Two frames (…, h, w) with blank columns between."""
    first, second = frames
    return torch.cat([first, torch.full((*first.shape[:-1], gap), blank, dtype=first.dtype), second], -1)


def test_attention_over_the_stream(tmp_path):
    cfg = Sizes(**SIZES['small'])
    paths = [looked(fake_run(tmp_path / m, method=m, evaluated=()), number=k) for k, m in enumerate(('der++', 'flava'))]
    found = groups(paths)
    record = torch.load(paths[1] / 'eval/localization.pt', weights_only=True)
    axes = np.array(attention.figure_2(found).axes).reshape(3, 4)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ['(a) sports', 'DER++', 'FLAVA (Ours)']
    clip = record['clips'][0]                              # of the first task; models: initial, sports, music, vehicle
    for column, model in ((0, 1), (2, 3)):
        I_v = clip['I_v'][model].reshape(cfg.grid_v)
        assert np.array_equal(images(axes[2, column])[1], beside(I_v, float('nan')), equal_nan=True)
        assert np.array_equal(images(axes[2, column + 1])[0], clip['I_a'][model].reshape(cfg.grid_a).T)
    assert np.array_equal(images(axes[0, 0])[0], beside(clip['frames'], 255, cfg.patch_size).permute(1, 2, 0))
    edges = {tuple(sorted(map(tuple, edge))) for edge in axes[2, 0].collections[1].get_segments()}
    p, true = cfg.patch_size, beside(clip['truth_v'].reshape(cfg.grid_v), False)
    around = torch.nn.functional.pad(true.float(), (1, 1, 1, 1))
    assert len(edges) == sum(int((around.diff(dim=d) != 0).sum()) for d in (0, 1))
    y, x = true.nonzero()[0].tolist()                      # the first true patch has none above it
    assert ((x * p, y * p), ((x + 1) * p, y * p)) in edges
    assert len(attention.figure_17(found).axes) == 3 * 3 * 4         # three more clips of tasks that are past


def test_whose_avm_it_is_stands_beside(tmp_path):
    said = lambda *runs: ' '.join(text.get_text() for text in attention.figure_2(groups(runs)).findobj(plt.Text))
    flava, er = (looked(fake_run(tmp_path / m, method=m, evaluated=())) for m in ('flava', 'er'))
    assert 'right after sports' in said(flava) and 'after vehicle, the last' in said(flava)
    assert 'initial pre-training' in said(flava, er) and 'initial pre-training' not in said(flava)
    random = looked(fake_run(tmp_path / 'random', selection='random', evaluated=()))     # FLAVA without its AVM
    assert 'initial pre-training' in said(random)


def test_attention_over_the_stream_needs_each_tasks_model(tmp_path):
    run = looked(fake_run(tmp_path / 'a', evaluated=()))
    file = run / 'eval' / 'localization.pt'
    record = torch.load(file, weights_only=True)
    torch.save(record | {'after': record['after'][-1:]}, file)
    with pytest.raises(Missing, match='without --last'):
        attention.figure_2(groups([run]))


def test_sound_sources(tmp_path):
    cfg = Sizes(**SIZES['small'])
    paths = [looked(fake_run(tmp_path / m, method=m, evaluated=()), number=k, known=False)
             for k, m in enumerate(('er', 'flava'))]
    axes = np.array(attention.figure_12(groups(paths)).axes).reshape(4, 3)     # raw, two methods, AVM; a column a task
    names = [axis.get_ylabel() for axis in axes[:, 0]]
    assert names == ['raw', 'cosine: ER', 'cosine: FLAVA (Ours)', 'AVM: FLAVA (Ours)']
    clip = torch.load(paths[1] / 'eval/localization.pt', weights_only=True)['clips'][2]
    middle = cfg.num_frames // 2
    assert np.array_equal(images(axes[2, 1])[1], clip['cosine_v'][-1].reshape(cfg.grid_v)[middle])
    assert np.array_equal(images(axes[3, 1])[1], clip['I_v'][-1].reshape(cfg.grid_v)[middle])
    assert not axes[3, 1].collections                                      # no truth, no outline


def test_spurious_attention(tmp_path):
    cfg = Sizes(**SIZES['small'])
    found = groups([looked(fake_run(tmp_path / m, method=m, evaluated=()), number=k)
                    for k, m in enumerate(('er', 'flava'))])
    figure = attention.figure_3(found)
    axes = np.array(figure.axes).reshape(3, 4)
    clip = torch.load(tmp_path / 'flava/eval/spurious.pt', weights_only=True)['clips'][-1]        # of the last task
    assert 'FLAVA' in figure.get_suptitle()
    assert np.array_equal(images(axes[2, 1])[0], clip['I_a_other'].reshape(cfg.grid_a).T)
    assert np.array_equal(images(axes[1, 0])[1], beside(clip['I_v'].reshape(cfg.grid_v), float('nan')), equal_nan=True)
    assert np.array_equal(images(axes[0, 3])[0], clip['other_audio'].T)
    assert len(attention.figure_16(found).axes) == 2 * 3 * 4


def test_only_equal_clips_stand_side_by_side(tmp_path):
    a = looked(fake_run(tmp_path / 'a', method='er', evaluated=()))
    b = looked(fake_run(tmp_path / 'b', method='flava', evaluated=()), clips_seed=1)
    assert [label for label, _, _ in attention.same_clips(groups([a, b]))] == ['ER']
