"""streams/common.py: clips as tensors, alone and in batches; the scan of nine clips of VGGSound; the order of tasks."""
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clips import SMALL, make
from config import UserError
from data import check_clip, read_clip
from downstream.finished_run import FinishedRun
from folders import folder, options
from streams import common, shapes
from streams.catalogue import open_stream
from streams.common import (Clip, ConcatClips, Stream, VideoClips, check_batches, data_changes, describe, reordered,
                            batches_by_task)


# ---------------------------------------------------------------- clips as tensors

@pytest.fixture
def three(tmp_path):
    """Three clips of different brightness, and their files in order"""
    paths = [make(tmp_path / f'{name}.mp4', seconds=3, size=(80, 48),
                  image=lambda n, level=60 * i + 60: np.full((48, 80, 3), level, np.uint8)) for i, name in
             enumerate('abc')]
    return VideoClips([Clip(path, (Path(path).stem,)) for path in paths], SMALL, augment=False), paths


def test_items_depend_on_the_key_alone(three):
    """The next clip replaces one that cannot be read."""
    dataset, paths = three
    train = VideoClips(dataset.clips, SMALL, augment=True)
    a, b, c, first = train[1, 7], train[1, 7], train[1, 8], train[0, 5]
    assert set(a) == {'audio', 'video', 'clip', 'bad'} and a['clip'] == 1 and a['bad'] == ''
    assert torch.equal(a['audio'], b['audio']) and torch.equal(a['video'], b['video'])
    assert not torch.equal(a['audio'], c['audio'])
    assert torch.equal(dataset[0, 1]['audio'], dataset[0, 2]['audio'])
    assert torch.equal(dataset[0, 1]['video'], read_clip(paths[0], SMALL)[1])
    assert dataset.labels == [('a',), ('b',), ('c',)]
    os.remove(paths[2])
    item = train[2, 5]
    assert item['clip'] == 0 and item['bad'].endswith('/c.mp4: file missing')
    assert torch.equal(item['audio'], first['audio']) and torch.equal(item['video'], first['video'])


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_by_task_leave_bad_clips_out(three, workers, monkeypatch):
    dataset, paths = three
    tasks = [VideoClips(dataset.clips[:1], SMALL, augment=False), dataset]
    both = ConcatClips(tasks)
    assert len(both) == 4 and both.labels == [('a',), ('a',), ('b',), ('c',)]
    assert both[3, 0]['clip'] == 3 and torch.equal(both[3, 0]['video'], dataset[2, 0]['video'])

    bad, before = [], torch.get_rng_state()
    batches = list(batches_by_task(tasks, 2, workers, bad))
    expected = [(0, [0]), (1, [0, 1]), (1, [2])]
    assert [(task, batch['clip'].tolist()) for task, batch in batches] == expected and bad == []
    for name in ('audio', 'video'):
        assert torch.equal(torch.cat([batch[name] for _, batch in batches[1:]]),
                           torch.stack([dataset[i, 0][name] for i in range(3)]))
    monkeypatch.setattr(common, 'get_world_size', lambda: 2)
    for rank in range(2):                                          # ranks share the batches
        monkeypatch.setattr(common, 'get_rank', lambda: rank)
        found = [(task, batch['clip'].tolist()) for task, batch in batches_by_task(tasks, 2, 0, [])]
        assert found == expected[rank::2]
    monkeypatch.undo()
    os.remove(paths[1])
    fewer = list(batches_by_task([dataset], 2, workers, bad))
    assert [batch['clip'].tolist() for _, batch in fewer] == [[0], [2]] and len(bad) == 1 and bad[0].endswith('/b.mp4: file missing')
    assert torch.equal(torch.get_rng_state(), before)              # masks are drawn from this state
    os.remove(paths[0]), os.remove(paths[2])
    with pytest.raises(UserError, match='^None of the 3 clips can be read any more:\n  .*/a.mp4: file missing'):
        list(batches_by_task([dataset], 2, workers, bad))           # a sentence, without the traceback of a worker


# --------------------------------------------------------------- checking the clips

def scan(folder, workers=0, **given):
    """The stream of the nine clips; eight are in use: the test clip of a class of no task is not"""
    return open_stream(options(folder, dataset='vggsound', tasks=str(folder / 'tasks.csv'), **given), workers)


def test_bad_clips_are_left_out_up_to_a_share(folder, capfd):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'')
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    with pytest.raises(UserError, match=r'1 of 8 clips \(12%\)(.|\n)*--max-bad(.|\n)*sea1_000001.mp4: file missing'):
        scan(folder)                                               # before any clip is tested
    with pytest.raises(UserError, match=r'2 of 8 clips \(25%\)(.|\n)*dog3_000000.mp4: empty file'):
        scan(folder, max_bad=0.2)
    for workers in (0, 2):
        stream = scan(folder, workers, max_bad=0.25, cache=f'{folder}.{workers}')
        assert stream.bad == ['video/dog3_000000.mp4: empty file', 'video/sea1_000001.mp4: file missing']
        assert len(stream.train[1]) == 2 and len(stream.pretrain) == 0
    assert capfd.readouterr() == ('', '')


def test_the_scan_is_cached(folder, monkeypatch, capsys):
    """A file that has changed is tested again. An interrupted scan keeps its results."""
    tested, cache = [], Path(f'{folder}.cache') / 'checked-clips.json'

    def check(path, segment):
        tested.append(Path(path).name)
        if len(tested) == 4:
            raise KeyboardInterrupt
        return check_clip(path, segment)
    monkeypatch.setattr(common, 'check_clip', check)
    with pytest.raises(KeyboardInterrupt):
        scan(folder)
    assert len(json.loads(cache.read_text())) == 3
    first = scan(folder, max_bad=1)
    assert list(cache.parent.iterdir()) == [cache] and len(json.loads(cache.read_text())) == 8
    assert len(tested) == 4 + 5
    tested.clear()
    assert scan(folder).names == first.names and tested == []
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'no video')
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    assert len(scan(folder, max_bad=1).bad) == 2
    assert tested == ['dog3_000000.mp4']                           # a missing file is known without a test
    monkeypatch.undo()
    cache.write_text('{"a')                                        # damaged
    assert len(scan(folder, max_bad=1).bad) == 2
    scan(folder, max_bad=1, cache=str(folder / 'vggsound.csv'))
    assert 'cannot be written' in capsys.readouterr().out


def test_crashes_are_not_cached_and_ranks_must_see_the_same_clips(folder, monkeypatch):
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (common.DECODER_CRASH, False))
    clips = [Clip(str(folder / 'whole.mp4'), ('x',))]
    assert len(common.filter_clips(folder, clips, options(folder, max_bad=1), 0)[1]) == 1
    assert json.loads(Path(f'{folder}.cache', 'checked-clips.json').read_text()) == {}
    monkeypatch.setattr(common, 'all_gather_object', lambda mine: [mine, mine[:0]])
    with pytest.raises(UserError, match='the ranks see different clips in '):
        scan(folder)


def test_a_finished_run_follows_its_data(folder, tmp_path_factory):
    """The same clips elsewhere are the same data. Other clips at the same path are not, nor is another order."""
    run, moved = tmp_path_factory.mktemp('run'), tmp_path_factory.mktemp('moved') / 'data'
    cfg = options(folder, dataset='vggsound', tasks=str(folder / 'tasks.csv'), cache=str(run))
    (run / 'config.json').write_text(json.dumps(vars(cfg)))
    stream = open_stream(cfg, 0)
    was, turned = describe(stream), describe(reordered(stream, 'pets,music'))
    assert data_changes(was, was) == data_changes({}, was) == ''   # {}: a run of an older version
    assert data_changes(was, turned) == 'the tasks were music, pets, now pets, music'
    (run / 'data.json').write_text(json.dumps(was))
    shutil.move(folder, moved)
    assert FinishedRun(run, 0, 'cpu', data=moved).stream.names == ['music', 'pets']
    shutil.copytree(moved, folder)
    make(folder / 'video' / 'harp2_000007.mp4', seconds=3)
    with pytest.raises(UserError, match='trained on other data than .*: there are other clips in music'):
        FinishedRun(run, 0, 'cpu').stream


# ---------------------------------------------------------------- batches and the order of tasks

def test_check_batches(monkeypatch, capsys):
    cfg = SimpleNamespace(method='er', batch_size=4, pretrain_batch_size=4, pretrain_steps=-1)
    stream = Stream(['one', 'two'], [0] * 2, [[0] * 4, [0] * 3], [], [], [], [], [])
    check_batches(cfg, stream)
    out = capsys.readouterr().out
    assert 'two has only 3' in out and 'initial pre-training has only 2' in out and 'one has' not in out
    monkeypatch.setattr(common, 'get_world_size', lambda: 4)
    with pytest.raises(UserError, match='two has 3 training clips'):
        check_batches(cfg, stream)
    cfg.method, cfg.pretrain_steps = 'multitask', 0
    check_batches(cfg, stream)


def stream_of(names):
    """A Stream whose parts contain the names of their tasks"""
    return Stream(list(names), 'pretrain', [f'train {n}' for n in names], [f'retrieval {n}' for n in names], ['bad'],
                  ['note'], [f'test {n}' for n in names], [[f'class of {n}'] for n in names])


VGGSOUND = ['sports', 'music', 'vehicle', 'people', 'animals', 'home_nature', 'others_part1', 'others_part2']


@pytest.mark.parametrize('names, order, expected', [
    (VGGSOUND, '', VGGSOUND),
    (VGGSOUND, 'shuffled', ['music', 'others_part1', 'home_nature', 'sports', 'others_part2', 'vehicle', 'animals',
                            'people']),                                               # Table 7
    (VGGSOUND[:4], 'shuffled', ['music', 'sports', 'vehicle', 'people']),
    (['human', 'vehicle', 'nature', 'animal', 'others', 'home', 'music'], 'shuffled',
     ['nature', 'human', 'home', 'vehicle', 'music', 'animal', 'others']),
    (shapes.NAMES, 'shuffled', ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir']), ('abc', 'c, a,b', 'cab')])
def test_order(names, order, expected):
    assert reordered(stream_of(names), order) == stream_of(expected)


def test_order_errors():
    for order in ('ash,birhc,cedar', 'ash,birch', 'ash,birch,cedar,ash'):
        with pytest.raises(UserError, match=f'--order {order}: name each task once: ash,birch,cedar'):
            reordered(stream_of(['ash', 'birch', 'cedar']), order)
