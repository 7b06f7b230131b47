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
from untrained import only_last, shared_run  # noqa: F401


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def images(axis):
    return [np.asarray(image.get_array()) for image in axis.get_images()]


def with_gaps(frames, blank, gap=1):
    """Frames (…, h, w) with blank columns between"""
    between = torch.full((*frames[0].shape[:-1], gap), blank, dtype=frames[0].dtype)
    return torch.cat([part for frame in frames for part in (between, frame)][1:], -1)


def test_frames_and_sound_with_maps_and_outlines():
    """Two clips of two frames, one row each. The source of the second one is not known."""
    cfg = Sizes(**SIZES['small'])
    dataset = Shapes(kinds()[:3], 2, cfg, (0, 1), 0)
    item, (source_a, source_v), p = dataset[0, 0], truth(dataset.scene(0), cfg), cfg.patch_size
    clips = [dict(frames=item['video'], audio=item['audio'], truth_a=a, truth_v=v,
                  I_v=torch.rand(cfg.num_patches_v), I_a=torch.rand(cfg.num_patches_a))
             for a, v in ((source_a, source_v), (None, None))]
    figure = pictures.plot_maps(cfg, list(zip('xy', clips)), [('a map', 'I_v')], [('sound map', 'I_a')], 'Two clips')
    (frames, over, sound, heat), second = np.array(figure.axes).reshape(2, 4)
    assert [axis.get_title() for axis in (frames, over, heat)] == ['frames', 'a map', 'sound map']
    assert frames.get_ylabel() == 'x' and second[0].get_ylabel() == 'y'

    # frames in a row, and the map over gray ones
    assert np.array_equal(images(frames)[0], with_gaps(item['video'], 255, p).permute(1, 2, 0))
    expected = with_gaps(clips[0]['I_v'].reshape(cfg.grid_v), float('nan'))
    assert np.array_equal(images(over)[1], expected, equal_nan=True)
    assert over.get_images()[0].get_extent() == over.get_images()[1].get_extent()

    # time to the right, frequency up
    assert np.array_equal(images(sound)[0], item['audio'].T)
    assert np.array_equal(images(heat)[0], clips[0]['I_a'].reshape(cfg.grid_a).T)
    assert all(axis.get_images()[0].origin == 'lower' for axis in (sound, heat))

    # the outline has all edges between source patches and others
    mask = with_gaps(source_v.reshape(cfg.grid_v), False)
    edges = {tuple(sorted(map(tuple, edge))) for edge in over.collections[1].get_segments()}
    padded = torch.nn.functional.pad(mask.float(), (1, 1, 1, 1))
    assert len(edges) == sum(int((padded.diff(dim=d) != 0).sum()) for d in (0, 1))
    y, x = mask.nonzero()[0].tolist()                                # no source patch is above the first one
    assert ((x * p, y * p), ((x + 1) * p, y * p)) in edges
    assert heat.collections and not any(axis.collections for axis in (frames, sound, *second))
    assert figure.get_suptitle().endswith('white: the true source')


# ---------------------------------------------------------------------- retrieval, and the end of a run

def some_results(tasks):
    """The part of results.json that is drawn"""
    rng = np.random.default_rng(0)
    results = dict(tasks=tasks, candidates=40, initial={}, chance={'R@10': 25.0})
    for direction in pictures.DIRECTIONS:
        results['initial'][direction] = {'R@10': [26.0] * len(tasks)}
        results[direction] = {'R@10': {'acc': rng.uniform(5, 40, (len(tasks), len(tasks))).tolist()}}
    return results


def test_lines_are_dotted_until_a_task_is_learned(tmp_path):
    results = some_results(['x', 'y', 'US$_$ z']) | {'after': ['x', 'y', 'US$_$ z']}       # no mathematics
    for axis, direction in zip(pictures.recalls(results).axes, pictures.DIRECTIONS):
        acc = results[direction]['R@10']['acc']
        for i in range(3):
            before, after, marker = axis.lines[3 * i:3 * i + 3]
            assert list(before.get_ydata()) == [row[i] for row in acc[:i + 1]] and before.get_linestyle() == ':'
            assert list(after.get_ydata()) == [row[i] for row in acc[i:]] and list(marker.get_xdata()) == [i]
            assert before.get_color() == after.get_color() == marker.get_color()
    pictures.recalls(results).savefig(tmp_path / 'retrieval.png')


def test_figures_at_the_end_of_a_run(run, tmp_path, monkeypatch):
    (tmp_path / 'results.json').write_text(json.dumps(some_results(run.stream.names)))
    model = run.load_model(only_last(run).models()[0][2])
    drawn, real = [], pictures.save_figure
    monkeypatch.setattr(pictures, 'save_figure', lambda figure, path: drawn.append(figure) or real(figure, path))
    files = pictures.draw(tmp_path, *model, run.stream, run.cfg, run.device)
    assert files == [tmp_path / 'figures' / name for name in ('stream.png', 'attention.png')]
    assert all(file.stat().st_size > 5000 for file in files)

    ticks = [tick.get_text() for tick in drawn[0].axes[0].get_xticklabels()]
    assert ticks == ['initial', *run.stream.names] and drawn[0].axes[0].lines[0].get_ydata()[0] == 26
    axes = np.array(drawn[1].axes).reshape(4, 4)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == [run.stream.names[i] for i in (0, 2, 3, 5)]
    item = run.stream.retrieval[5][0, 0]
    out = attend(run.cfg, *model, patchify({name: item[name][None] for name in ('audio', 'video')}, run.cfg.patch_size))
    assert np.allclose(images(axes[3, 3])[0], out.I_a[0].reshape(run.cfg.grid_a).T, atol=1e-6)
