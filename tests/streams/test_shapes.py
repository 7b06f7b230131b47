"""streams/shapes.py: the built-in stream, and its command line."""
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from patches import SIZES, Sizes
from streams import scenes, shapes


@pytest.fixture(scope='module')
def small():
    return Sizes(**SIZES['small'])


@pytest.fixture(scope='module')
def stream(small):
    return shapes.stream(small, seed=3)


def test_classes_are_distinct_and_tasks_disjoint(stream):
    kinds = scenes.kinds()
    assert len({k.name for k in kinds}) == len({k.voice for k in kinds}) == 36
    used = [kind for dataset in [stream.pretrain, *stream.train] for kind in dataset.classes]
    assert len(used) == len(set(used)) == 36
    assert [d.classes for d in stream.train] == [d.classes for d in stream.test]


def test_labels_are_the_sounding_objects(stream):
    for dataset, classes in zip(stream.train, stream.classes):
        assert len(dataset.labels) == len(dataset)
        assert {name for names in dataset.labels for name in names} == set(classes)
        assert all(dataset.labels[i] == (dataset.scene(i).tracks[0].kind.name,) for i in range(4))
    assert stream.evaluate == stream.test and [d.classes for d in stream.evaluate] == [d.classes for d in stream.train]


def test_same_seed_same_clip_and_test_clips_are_others(stream, small):
    again = shapes.stream(small, seed=3)
    for part in ('train', 'test'):
        first, second = getattr(stream, part)[1][4, 0], getattr(again, part)[1][4, 9]
        assert torch.equal(first['audio'], second['audio']) and torch.equal(first['video'], second['video'])
    assert not torch.equal(stream.train[1][4, 0]['video'], stream.test[1][4, 0]['video'])
    assert not torch.equal(shapes.stream(small, seed=4).train[1][4, 0]['video'], stream.train[1][4, 0]['video'])


def test_shapes_and_ranges(stream, small):
    item = stream.train[0][0, 0]
    assert item['audio'].shape == (256, 64) and item['audio'].dtype == torch.float32
    assert item['video'].shape == (2, 3, 96, 96) and item['video'].dtype == torch.uint8
    a, v = scenes.truth(stream.train[0].scene(0), small)
    assert a.shape == (small.num_patches_a,) and v.shape == (small.num_patches_v,)


def test_the_command_line_writes_files(tmp_path):
    """Its words are a promise to users: `python -m streams.shapes --out DIR …`."""
    words = f'--out {tmp_path} --layout ave --train 1 --test 1 --pretrain 1 --size 32 --seed 2'.split()
    done = subprocess.run([sys.executable, '-m', 'streams.shapes', *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f'python eval.py RUN --task ave --data {tmp_path}\n'
    assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr
    assert len(list((tmp_path / 'AVE').glob('*.mp4'))) == 6 * 3
