"""Figures: what is drawn where, read back from the axes; and those that train.py draws."""
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from avm import attend
from config import SIZES, Sizes
from downstream import pictures
from patches import patchify
from streams.scenes import truth
from streams.shapes import Shapes, kinds
from untrained import only_last, shared_run


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def small():
    """Sizes of two frames, a clip of shapes and its source"""
    sizes = Sizes(**SIZES['small'])
    dataset = Shapes(kinds()[:3], 2, sizes, (0, 1), 0)
    return sizes, dataset[0, 0], truth(dataset.scene(0), sizes)


def images(axis):
    return [np.asarray(image.get_array()) for image in axis.get_images()]


def with_gaps(frames, blank, gap=1):
    """Frames (…, h, w) with blank columns between"""
    between = torch.full((*frames[0].shape[:-1], gap), blank, dtype=frames[0].dtype)
    return torch.cat([part for frame in frames for part in (between, frame)][1:], -1)


def test_frames_with_a_map_and_an_outline(small):
    cfg, item, (_, source) = small
    p, I = cfg.patch_size, torch.rand(cfg.num_patches_v)
    _, (plain, over) = plt.subplots(1, 2)
    pictures.show_frames(plain, cfg, item['video'])
    assert np.array_equal(images(plain)[0], with_gaps(item['video'], 255, p).permute(1, 2, 0)) and not plain.collections
    pictures.show_frames(over, cfg, item['video'], I, source)
    gray, heat = images(over)
    assert gray.ndim == 2 and np.array_equal(heat, with_gaps(I.reshape(cfg.grid_v), float('nan')), equal_nan=True)
    assert over.get_images()[0].get_extent() == over.get_images()[1].get_extent()

    mask = with_gaps(source.reshape(cfg.grid_v), False)
    edges = {tuple(sorted(map(tuple, edge))) for edge in over.collections[1].get_segments()}
    padded = torch.nn.functional.pad(mask.float(), (1, 1, 1, 1))
    assert len(edges) == sum(int((padded.diff(dim=d) != 0).sum()) for d in (0, 1))
    y, x = mask.nonzero()[0].tolist()                                # no source patch is above the first one
    assert ((x * p, y * p), ((x + 1) * p, y * p)) in edges


def test_sound_with_time_to_the_right_and_frequency_up(small):
    cfg, item, (source, _) = small
    I = torch.rand(cfg.num_patches_a)
    _, (plain, heat) = plt.subplots(1, 2)
    pictures.show_sound(plain, cfg, item['audio'])
    pictures.show_sound(heat, cfg, item['audio'], I, source)
    assert np.array_equal(images(plain)[0], item['audio'].T)
    assert np.array_equal(images(heat)[0], I.reshape(cfg.grid_a).T)
    for axis in (plain, heat):
        assert axis.get_images()[0].origin == 'lower'
        assert axis.get_images()[0].get_extent() == [0, cfg.audio_frames, 0, cfg.mel_bins]


def test_maps_have_a_row_per_clip_and_a_column_per_map(small):
    cfg, item, (source_a, source_v) = small
    clips = [dict(frames=item['video'], audio=item['audio'], truth_a=a, truth_v=v, own=torch.rand(cfg.num_patches_v),
                  other=torch.rand(cfg.num_patches_v), sound=torch.rand(cfg.num_patches_a))
             for a, v in ((source_a, source_v), (None, None))]
    columns = [('own map', 'own'), ('other map', 'other')], [('sound map', 'sound')]
    figure = pictures.plot_maps(cfg, list(zip('xy', clips)), *columns, 'Two clips')
    axes = np.array(figure.axes).reshape(2, 5)
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == ['frames', 'own map', 'other map', 'sound: time →, frequency ↑', 'sound map']
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ['x', 'y']
    assert np.array_equal(images(axes[1, 4])[0], clips[1]['sound'].reshape(cfg.grid_a).T)
    assert [bool(axis.collections) for axis in axes[0]] == [False, True, True, False, True]
    assert not any(axis.collections for axis in axes[1]) and figure.get_suptitle().endswith('white: the true source')
    assert 'white' not in pictures.plot_maps(cfg, [('y', clips[1])], *columns, 'One clip').get_suptitle()


# ---------------------------------------------------------------------- retrieval, and the end of a run

def some_results(tasks):
    """The part of results.json that is drawn"""
    rng = np.random.default_rng(0)
    results = dict(tasks=tasks, candidates=40, initial={}, chance={'R@10': 25.0})
    for direction in pictures.DIRECTIONS:
        results['initial'][direction] = {'R@10': [26.0] * len(tasks)}
        results[direction] = {'R@10': {'acc': rng.uniform(5, 40, (len(tasks), len(tasks))).tolist()}}
    return results


def test_lines_are_dotted_until_a_task_is_learned():
    results = some_results(['x', 'y', 'z']) | {'after': ['x', 'y', 'z']}
    for axis, direction in zip(pictures.recalls(results).axes, pictures.DIRECTIONS):
        acc = results[direction]['R@10']['acc']
        for i in range(3):
            before, after, marker = axis.lines[3 * i:3 * i + 3]
            assert list(before.get_ydata()) == [row[i] for row in acc[:i + 1]] and before.get_linestyle() == ':'
            assert list(after.get_xdata()) == list(range(i, 3))
            assert list(after.get_ydata()) == [row[i] for row in acc[i:]]
            assert list(marker.get_xdata()) == [i]
            assert {line.get_color() for line in (before, after, marker)} == {pictures.task_style(i)['color']}
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ['x', 'y', 'z']


def test_figures_at_the_end_of_a_run(tmp_path, tmp_path_factory, monkeypatch):
    run = only_last(shared_run(tmp_path_factory, monkeypatch))
    (tmp_path / 'results.json').write_text(json.dumps(some_results(run.stream.names)))
    model = run.load_model(run.models()[0][2])
    drawn, real = [], pictures.save_figure
    monkeypatch.setattr(pictures, 'save_figure', lambda figure, path: drawn.append(figure) or real(figure, path))
    files = pictures.draw(tmp_path, *model, run.stream, run.cfg, run.device)
    assert files == [tmp_path / 'figures' / name for name in ('stream.png', 'attention.png')]
    assert all(file.stat().st_size > 5000 for file in files)

    ticks = [tick.get_text() for tick in drawn[0].axes[0].get_xticklabels()]
    assert ticks == ['initial', *run.stream.names] and drawn[0].axes[0].lines[0].get_ydata()[0] == 26
    axes = np.array(drawn[1].axes).reshape(4, 4)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == [run.stream.names[i] for i in (0, 2, 3, 5)]
    item = run.stream.test[5][0, 0]
    out = attend(run.cfg, *model, patchify({name: item[name][None] for name in ('audio', 'video')}, run.cfg.patch_size))
    heat_v, heat_a = images(axes[3, 1])[1], images(axes[3, 3])[0]
    expected = with_gaps(out.importance_v[0].reshape(run.cfg.grid_v), float('nan'))
    assert np.allclose(heat_v, expected, atol=1e-6, equal_nan=True)
    assert np.allclose(heat_a, out.importance_a[0].reshape(run.cfg.grid_a).T, atol=1e-6)
