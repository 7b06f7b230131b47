"""streams/common.py: clips as tensors, one and in batches; testing them, on nine of VGGSound; tasks' order."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import make
from data import check_clip, read_clip
from folders import SMALL, folder, names_of
from patches import UserError
from streams import common, shapes
from streams.common import Clip, Stream, VideoClips, clips_in_order, reordered
from streams.vggsound import vggsound


# ---------------------------------------------------------------- clips as tensors

def test_dataset_items_depend_on_the_key_alone(tmp_path):
    paths = [make(tmp_path / f'{n}.mp4', seconds=4, size=(80, 48)) for n in range(2)]
    clips = [Clip(path, ('x',), n + 1) for n, path in enumerate(paths)]
    train, test = VideoClips(clips, SMALL, augment=True), VideoClips(clips, SMALL, augment=False)
    assert len(train) == 2
    a, b, c = train[1, 7], train[1, 7], train[1, 8]
    assert set(a) == {'audio', 'video', 'clip', 'bad'} and a['clip'] == 1 and a['bad'] == ''
    assert torch.equal(a['audio'], b['audio']) and torch.equal(a['video'], b['video'])
    assert not torch.equal(a['audio'], c['audio']) and not torch.equal(a['video'], c['video'])
    assert torch.equal(test[0, 1]['audio'], test[0, 2]['audio'])
    assert torch.equal(test[0, 1]['video'], read_clip(paths[0], SMALL)[1])


def test_the_next_clip_stands_in(tmp_path):
    paths = [make(tmp_path / f'{n}.mp4', seconds=3) for n in range(3)]
    dataset = VideoClips([Clip(path, (name,), 1) for path, name in zip(paths, 'xyz')], SMALL, augment=True)
    assert dataset.labels == [('x',), ('y',), ('z',)]
    expected = dataset[0, 5]
    os.remove(paths[2])
    item = dataset[2, 5]
    assert item['clip'] == 0 and item['bad'] == '2.mp4: file missing'         # the one that is delivered, not asked for
    assert torch.equal(item['audio'], expected['audio']) and torch.equal(item['video'], expected['video'])
    os.remove(paths[0]), os.remove(paths[1])
    with pytest.raises(UserError, match='None of the 3 clips'):
        dataset[1, 0]


@pytest.fixture
def three(tmp_path):
    """Three clips whose brightness differs, the files in order"""
    grey = lambda level: lambda n: np.full((48, 64, 3), level, np.uint8)
    paths = [make(tmp_path / f'{name}.mp4', seconds=3, image=grey(60 * i + 60)) for i, name in enumerate('abc')]
    return VideoClips([Clip(path, ('x',), 1) for path in paths], SMALL, augment=False), paths


@pytest.mark.parametrize('workers', [0, 2])
def test_clips_come_in_order_and_bad_ones_do_not(three, workers):
    """What stands in for a bad clip does not come twice, and the bad one is named."""
    dataset, paths = three
    bad = []
    batches = list(clips_in_order(dataset, 2, workers, bad))
    assert [batch['clip'].tolist() for batch in batches] == [[0, 1], [2]] and bad == []
    assert set(batches[0]) == {'audio', 'video', 'clip'} and batches[0]['audio'].shape == (2, 64, 32)
    for name in ('audio', 'video'):
        expected = torch.stack([dataset[i, 0][name] for i in range(3)])
        assert torch.equal(torch.cat([batch[name] for batch in batches]), expected)
    os.remove(paths[1])
    bad = ['an older one']
    fewer = list(clips_in_order(dataset, 2, workers, bad))
    assert [batch['clip'].tolist() for batch in fewer] == [[0], [2]]
    assert bad == ['an older one', 'b.mp4: file missing']
    assert torch.equal(fewer[0]['video'], batches[0]['video'][:1])
    assert torch.equal(fewer[1]['audio'], batches[1]['audio'])


def test_clips_of_some_indices_alone(three):
    dataset, paths = three
    bad = []
    assert [batch['clip'].tolist() for batch in clips_in_order(dataset, 2, 0, bad, [2, 0])] == [[2, 0]]
    assert [batch['clip'].tolist() for batch in clips_in_order(dataset, 1, 0, bad, [2, 0])] == [[2], [0]]
    assert list(clips_in_order(dataset, 2, 0, bad, [])) == [] and bad == []
    os.remove(paths[2])
    assert list(clips_in_order(dataset, 2, 0, bad, [2])) == [] and bad == ['c.mp4: file missing']


def test_a_batch_of_bad_clips_alone_does_not_come(three):
    dataset, paths = three
    os.remove(paths[0]), os.remove(paths[1])
    bad = []
    assert [batch['clip'].tolist() for batch in clips_in_order(dataset, 2, 0, bad)] == [[2]]
    assert bad == ['a.mp4: file missing; b.mp4: file missing', 'b.mp4: file missing']


def test_clips_in_order_leave_the_masks_randomness_alone(three):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(clips_in_order(three[0], 2, 0, []))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- testing the clips

def test_bad_clips_are_left_out_up_to_a_share(folder, capfd):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'')
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    options = dict(tasks_csv=folder / 'tasks.csv')
    with pytest.raises(UserError) as error:
        vggsound(folder, SMALL, **options)
    for word in ('2 of 8', '25%', 'dog3_000000.mp4: empty file', 'sea1_000001.mp4: file missing', '--max-bad'):
        assert word in str(error.value)
    stream = vggsound(folder, SMALL, max_bad=0.25, **options)
    assert stream.bad == ['dog3_000000.mp4: empty file', 'sea1_000001.mp4: file missing']
    assert len(stream.train[1]) == 2 and len(stream.pretrain) == 0
    assert capfd.readouterr() == ('', '')


def test_scan_is_remembered(folder, monkeypatch):
    cache = folder / 'run' / 'scan.json'
    options = dict(tasks_csv=folder / 'tasks.csv', cache=cache, max_bad=1)
    first = vggsound(folder, SMALL, **options)
    assert [p.name for p in cache.parent.iterdir()] == ['scan.json'] and len(json.loads(cache.read_text())) == 8
    tested = []
    monkeypatch.setattr(common, 'check_clip',
                        lambda path, segment: tested.append(Path(path).name) or check_clip(path, segment))
    again = vggsound(folder, SMALL, **options)
    assert tested == [] and again.names == first.names
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'no video')          # another size: tested again
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    assert len(vggsound(folder, SMALL, **options).bad) == 2
    assert tested == ['dog3_000000.mp4', 'sea1_000001.mp4']
    for damage in ('{"a', '[1]', '"x"'):
        cache.write_text(damage)
        assert len(vggsound(folder, SMALL, **options).bad) == 2
    blocked = vggsound(folder, SMALL, **(options | dict(cache=folder / 'vggsound.csv' / 'scan.json')))
    assert 'cannot be written' in ' '.join(blocked.notes)


def test_an_interrupted_scan_keeps_what_it_has(folder, monkeypatch):
    count = []

    def interrupted(path, segment):
        count.append(path)
        if len(count) == 4:
            raise KeyboardInterrupt
        return check_clip(path, segment)
    monkeypatch.setattr(common, 'check_clip', interrupted)
    with pytest.raises(KeyboardInterrupt):
        vggsound(folder, SMALL, folder / 'tasks.csv', cache=folder / 'scan.json')
    assert len(json.loads((folder / 'scan.json').read_text())) == 3


def test_scan_in_processes_gives_the_same(folder):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'')
    options = dict(tasks_csv=folder / 'tasks.csv', max_bad=1)
    here, there = vggsound(folder, SMALL, **options), vggsound(folder, SMALL, workers=2, **options)
    assert here.bad == there.bad and here.notes == there.notes
    assert [names_of(d) for d in here.train] == [names_of(d) for d in there.train]


# ---------------------------------------------------------------- order

def stream_of(names):
    """A Stream whose parts say which task they are of."""
    return Stream(list(names), 'pretrain', [f'train {n}' for n in names], [f'test {n}' for n in names], ['bad'],
                  ['note'], [f'evaluate {n}' for n in names], [[f'class of {n}'] for n in names])


def test_order():
    vgg = ['sports', 'music', 'vehicle', 'people', 'animals', 'home_nature', 'others_part1', 'others_part2']
    table_7 = ['music', 'others_part1', 'home_nature', 'sports', 'others_part2', 'vehicle', 'animals', 'people']
    assert reordered(stream_of(vgg), '') == stream_of(vgg)
    assert reordered(stream_of(vgg), 'shuffled') == stream_of(table_7)
    some = reordered(stream_of(vgg[:4]), 'shuffled')                     # the others are left out
    assert some.names == ['music', 'sports', 'vehicle', 'people']
    audioset = ['human', 'vehicle', 'nature', 'animal', 'others', 'home', 'music']
    table_7 = ['nature', 'human', 'home', 'vehicle', 'music', 'animal', 'others']
    assert reordered(stream_of(audioset), 'shuffled') == stream_of(table_7)
    other = reordered(stream_of(shapes.NAMES), 'shuffled')
    assert sorted(other.names) == sorted(shapes.NAMES) and other.names != list(shapes.NAMES)
    assert other == stream_of(other.names)
    assert reordered(stream_of('abc'), 'c, a,b') == stream_of('cab')


@pytest.mark.parametrize('order, reason', [
    ('ash,birhc,cedar', "no task 'birhc'; did you mean 'birch'?"), ('ash,birch', 'cedar is missing'),
    ('ash,birch,cedar,ash', 'ash is there twice'), ('ash,birch,cedar,', "no task ''"),
    ('zzz', 'The tasks are: ash, birch, cedar')])
def test_order_errors(order, reason):
    with pytest.raises(UserError) as error:
        reordered(stream_of(['ash', 'birch', 'cedar']), order)
    assert '--order' in str(error.value) and reason in str(error.value)
