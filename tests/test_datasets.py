"""datasets.py: the files of each data set, as `shapes.py` writes them, -> streams of tasks; and AVE's labels."""
import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import datasets
import shapes
import shapes_files
from clips import make, vggsound_folder
from data import check_clip, read_clip, read_windows
from datasets import AVE, Stream, VideoClips, audioset, ave, open_stream, reordered, vggsound
from lists import Clip, Event
from model import Sizes, UserError

SMALL = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)
REAL = Path(__file__).resolve().parents[2] / 'shared' / 'clips' / 'vggsound'


# ---------------------------------------------------------------- the Dataset

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
    assert item['clip'] == 0 and item['bad'] == '2.mp4: file missing'           # the one that is delivered, not asked for
    assert torch.equal(item['audio'], expected['audio']) and torch.equal(item['video'], expected['video'])
    os.remove(paths[0]), os.remove(paths[1])
    with pytest.raises(UserError, match='None of the 3 clips'):
        dataset[1, 0]


# ---------------------------------------------------------------- the stream

ROWS = ['-dog1,3,dog barking,train', 'dog2,14,dog barking,train', 'dog3,0,dog barking,train',
        'dog4,0,dog barking,test', 'harp1,7,playing harp,train', 'harp2,7,playing harp,test',
        'sea1,1,"sea, waves",train', 'sea2,1,"sea, waves",test', 'cat1,1,cat purring,train']
TASKS = 'class,task\nplaying harp,music\ndog barking,pets\ncat purring,cats\n'


@pytest.fixture
def folder(tmp_path):
    """Nine clips of four classes; three suffixes; `sea, waves` is in no task, cats have no test clips."""
    vggsound_folder(tmp_path, ROWS)
    (tmp_path / 'tasks.csv').write_text(TASKS)
    whole = Path(make(tmp_path / 'whole.mp4', seconds=2)).read_bytes()
    for name, start, *_ in csv.reader(ROWS):
        stem = tmp_path / 'video' / f'{name}_{int(start):06d}'
        if name == 'dog2':
            make(f'{stem}.webm', seconds=2, vcodec='libvpx', acodec='libopus', rate=48000)
        else:
            Path(f'{stem}{".mkv" if name == "harp1" else ".mp4"}').write_bytes(whole)
    return tmp_path


def names_of(dataset):
    return [Path(clip.path).name for clip in dataset.clips]


def test_stream(folder):
    stream = vggsound(folder, SMALL, folder / 'tasks.csv', clips_per_class=2)
    assert stream.names == ['music', 'pets'] and stream.bad == []
    assert len(stream.notes) == 1 and 'cats' in stream.notes[0] and 'test' in stream.notes[0]
    assert [names_of(d) for d in stream.train] == [['harp1_000007.mkv'], ['-dog1_000003.mp4', 'dog2_000014.webm']]
    assert [names_of(d) for d in stream.test] == [['harp2_000007.mp4'], ['dog4_000000.mp4']]
    assert stream.classes == [['playing harp'], ['dog barking']]
    assert [d.labels for d in stream.train] == [[('playing harp',)], [('dog barking',)] * 2]
    assert [names_of(d) for d in stream.evaluate] == [names_of(d) for d in stream.test] and not stream.evaluate[0].augment
    assert names_of(stream.pretrain) == ['sea1_000001.mp4']       # the test clips of no task's classes are unused
    assert stream.train[0].augment and stream.pretrain.augment and not stream.test[0].augment
    assert stream.train[1].clips[1].labels == ('dog barking',) and stream.train[1].clips[1].line == 2
    assert stream.train[1][1, 0]['video'].shape == (2, 3, 32, 32)
    # under the paper's tasks, too; they have no class 'sea, waves'
    default = vggsound(folder, SMALL)
    assert 'music' in default.names and len(default.notes) >= 5


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
    monkeypatch.setattr(datasets, 'check_clip', lambda path: tested.append(Path(path).name) or check_clip(path))
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

    def interrupted(path):
        count.append(path)
        if len(count) == 4:
            raise KeyboardInterrupt
        return check_clip(path)
    monkeypatch.setattr(datasets, 'check_clip', interrupted)
    with pytest.raises(KeyboardInterrupt):
        vggsound(folder, SMALL, folder / 'tasks.csv', cache=folder / 'scan.json')
    assert len(json.loads((folder / 'scan.json').read_text())) == 3


def test_scan_in_processes_gives_the_same(folder):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'')
    options = dict(tasks_csv=folder / 'tasks.csv', max_bad=1)
    here, there = vggsound(folder, SMALL, **options), vggsound(folder, SMALL, workers=2, **options)
    assert here.bad == there.bad and here.notes == there.notes
    assert [names_of(d) for d in here.train] == [names_of(d) for d in there.train]


def test_no_task_left(folder):
    (folder / 'tasks.csv').write_text('class,task\ncat purring,cats\n')
    with pytest.raises(UserError, match='no task has both'):
        vggsound(folder, SMALL, folder / 'tasks.csv')


# ---------------------------------------------------------------- what shapes.py writes

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Both layouts, with 4 training clips of each of six tasks, 3 test clips, 6 of no task; by the command line."""
    folders = {}
    for layout in ('vggsound', 'audioset'):
        folders[layout] = folder = tmp_path_factory.mktemp(layout)
        with pytest.MonkeyPatch.context() as patch:
            words = f'shapes.py --out {folder} --layout {layout} --train 4 --test 3 --pretrain 6 --size 32'
            patch.setattr(sys, 'argv', words.split())
            shapes.main()
    return folders


def rows_of(path):
    return list(csv.reader(path.open(), skipinitialspace=True))


def test_audioset_stream(written):
    """Counted by hand from the files: two clips are of two tasks, the others keep the labels of their one task."""
    folder = written['audioset']
    stream = audioset(folder, SMALL, folder / 'tasks.csv')
    assert stream.names == ['ash', 'birch', 'cedar', 'elm', 'fir', 'oak'] and stream.bad == []
    assert [len(d) for d in stream.train] == [3, 4, 4, 4, 4, 4] and [len(d) for d in stream.evaluate] == [3, 2, 3, 3, 3, 3]
    assert stream.notes == ['2 clips with labels of two tasks or more are left out'] and len(stream.pretrain) == 0
    class_of = {mid: name for _, mid, name in rows_of(folder / 'class_labels_indices.csv')}
    task_of = dict(rows_of(folder / 'tasks.csv'))
    assert stream.classes == [[c for c, task in task_of.items() if task == name] for name in stream.names]
    expected, several, foreign = {}, 0, 0
    for table in ('balanced_train_segments.csv', 'eval_segments.csv'):
        for name, start, _, mids in rows_of(folder / table)[3:]:
            labels = [class_of[mid] for mid in mids.split(',')]
            tasks = {task_of[label] for label in labels if label in task_of}
            if len(tasks) == 1:
                expected[f'{name}_000030.mp4'] = tasks.pop(), tuple(label for label in labels if label in task_of)
                several += len(expected[f'{name}_000030.mp4'][1]) > 1
                foreign += len(labels) > len(expected[f'{name}_000030.mp4'][1])
    found = {name: (task, labels) for part in (stream.train, stream.evaluate) for task, d in zip(stream.names, part)
             for name, labels in zip(names_of(d), d.labels)}
    assert found == expected and several >= 3 and foreign >= 3         # there are clips of two labels, and of others'
    assert stream.train[0].augment and not stream.test[0].augment and not stream.evaluate[0].augment
    assert stream.train[1][0, 0]['video'].shape == (2, 3, 32, 32)


def test_audioset_starts_from_all_of_vggsound(written):
    """App. B: also from the classes that are in tasks. Test clips of AudioSet that VGGSound trains on are not among them."""
    folder = written['audioset']
    stream = audioset(folder, SMALL, folder / 'tasks.csv', pretrain_data=written['vggsound'])
    assert len(stream.pretrain) == 6 + 6 * 4 and stream.pretrain.augment
    assert all('-train-' in name for name in names_of(stream.pretrain))
    assert stream.pretrain[0, 1]['audio'].shape == (64, 32)


def test_retrieval_list_limits_the_retrieval_clips_alone(written, tmp_path):
    for layout, read, ids in (('vggsound', vggsound, '{}_000000'), ('audioset', audioset, '{}')):
        folder, scan = written[layout], dict(cache=tmp_path / 'scan.json')
        whole = read(folder, SMALL, folder / 'tasks.csv', **scan)
        given = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=folder / 'retrieval.json', **scan)
        assert [names_of(d) for d in given.test] == [names_of(d) for d in whole.evaluate] and given.notes == whole.notes
        entries = [e for e in json.loads((folder / 'retrieval.json').read_text())['data'] if not e['video_id'].endswith('1')]
        chosen = [ids.format(f'{task}-test-00002') for task in whole.names] + ['elsewhere']
        (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(entries[0], video_id=name) for name in chosen]}))
        few = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=tmp_path / 'list.json', **scan)
        assert [len(d) for d in few.test] == [1] * 6 and all('-test-00002_' in names_of(d)[0] for d in few.test)
        assert [names_of(d) for d in few.evaluate] == [names_of(d) for d in whole.evaluate]
        assert [note for note in few.notes if note not in whole.notes] == [
            f'1 of 7 entries of {tmp_path / "list.json"} are no test clip here']
        chosen = chosen[1:]                                    # none of the first task's: nothing to retrieve there
        (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(video_id=name) for name in chosen]}))
        five = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=tmp_path / 'list.json', **scan)
        assert five.names == whole.names[1:] and 'task ash has no retrieval clips and is left out' in five.notes


def test_written_retrieval_lists_hold_five_clips_a_class(tmp_path):
    clips = [(f'id{i}', f'id{i}_000000', 'ab'[i % 2]) for i in range(14)]
    shapes_files.write_retrieval_list(tmp_path / 'list.json', clips, {'a': '/m/a', 'b': '/m/b'})
    entries = json.loads((tmp_path / 'list.json').read_text())['data']
    assert Counter(entry['labels'] for entry in entries) == {'/m/a': 5, '/m/b': 5}
    assert set(entries[0]) == {'video_id', 'wav', 'video_path', 'labels'} and entries[0]['wav'].endswith('/id0_000000.wav')


def test_audioset_20k_joins_vggsounds_other_classes(tmp_path, monkeypatch):
    """Of the balanced clips those that have no label named as a class of the tasks, in either case, and are no test clip."""
    monkeypatch.setattr(datasets, 'check_clip', lambda path: None)                   # what the clips show does not matter here
    ours, theirs = tmp_path / 'vggsound', tmp_path / 'audioset'
    ours.mkdir(), (theirs / 'video').mkdir(parents=True)
    vggsound_folder(ours, ['a,1,helicopter,train', 'b,2,helicopter,test', 'c,3,hail,train', 'd,4,hail,test'])
    (tmp_path / 'tasks.csv').write_text('class,task\nhelicopter,vehicle\n')
    (theirs / 'class_labels_indices.csv').write_text('index,mid,display_name\n0,/m/h,Helicopter\n1,/m/r,"Rotor, wing"\n')
    (theirs / 'balanced_train_segments.csv').write_text(
        'a1, 0.0, 9.0, "/m/h"\na2, 0.0, 9.0, "/m/r"\na3, 0.0, 9.0, "/m/r,/m/h"\nb, 0.0, 9.0, "/m/r"\na4, 0.0, 9.0, "/m/r"\n')
    (theirs / 'unbalanced_train_segments.csv').write_text('u1, 0.0, 9.0, "/m/r"\n')
    stream = vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain_data=theirs)
    assert names_of(stream.pretrain) == ['c_000003.mp4', 'a2_000000.mp4', 'a4_000000.mp4']
    assert stream.pretrain.labels == [('hail',), ('Rotor, wing',), ('Rotor, wing',)] and stream.names == ['vehicle']
    assert names_of(vggsound(ours, SMALL, tmp_path / 'tasks.csv').pretrain) == ['c_000003.mp4']
    # these clips are tested, too, and apart: bad ones among them do not hide in the larger set
    monkeypatch.setattr(datasets, 'check_clip', lambda path: 'file missing' if 'a2' in path else None)
    with pytest.raises(UserError, match=r'1 of 2 clips \(50%\) in .*audioset'):
        vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain_data=theirs)
    assert vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain_data=theirs, max_bad=0.5).bad == ['a2_000000.mp4: file missing']
    with pytest.raises(UserError, match='class_labels_indices.csv is missing'):
        vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain_data=ours)


def test_audioset_leaves_vggsounds_copies_of_its_test_clips_out(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'check_clip', lambda path: None)
    ours, theirs = tmp_path / 'audioset', tmp_path / 'vggsound'
    (ours / 'video').mkdir(parents=True), theirs.mkdir()
    (ours / 'class_labels_indices.csv').write_text('index,mid,display_name\n0,/m/h,Helicopter\n')
    (ours / 'unbalanced_train_segments.csv').write_text('a, 1.0, 9.0, "/m/h"\n')
    (ours / 'eval_segments.csv').write_text('b, 1.0, 9.0, "/m/h"\n')
    (tmp_path / 'tasks.csv').write_text('class,task\nHelicopter,vehicle\n')
    vggsound_folder(theirs, ['a,1,helicopter,train', 'b,2,helicopter,train', 'c,3,hail,train', 'd,4,hail,test'])
    stream = audioset(ours, SMALL, tmp_path / 'tasks.csv', pretrain_data=theirs)
    assert names_of(stream.pretrain) == ['a_000001.mp4', 'c_000003.mp4'] and names_of(stream.train[0]) == ['a_000001.mp4']


def test_audioset_classes_of_tasks_must_be_its_own(written):
    folder = written['audioset']
    with pytest.raises(UserError, match="audioset.csv:2: unknown class 'Whoop'"):
        audioset(folder, SMALL)


# ---------------------------------------------------------------- order

def stream_of(names):
    """A Stream whose parts say which task they are of."""
    return Stream(list(names), 'pretrain', [f'train {n}' for n in names], [f'test {n}' for n in names], ['bad'], ['note'],
                  [f'evaluate {n}' for n in names], [[f'class of {n}'] for n in names])


def test_order():
    vgg = ['sports', 'music', 'vehicle', 'people', 'animals', 'home_nature', 'others_part1', 'others_part2']
    table_7 = ['music', 'others_part1', 'home_nature', 'sports', 'others_part2', 'vehicle', 'animals', 'people']
    assert reordered(stream_of(vgg), '') == stream_of(vgg)
    assert reordered(stream_of(vgg), 'shuffled') == stream_of(table_7)
    assert reordered(stream_of(vgg[:4]), 'shuffled').names == ['music', 'sports', 'vehicle', 'people']   # some are left out
    assert reordered(stream_of(['human', 'vehicle', 'nature', 'animal', 'others', 'home', 'music']), 'shuffled') == stream_of(
        ['nature', 'human', 'home', 'vehicle', 'music', 'animal', 'others'])
    other = reordered(stream_of(shapes.NAMES), 'shuffled')
    assert sorted(other.names) == sorted(shapes.NAMES) and other.names != list(shapes.NAMES) and other == stream_of(other.names)
    assert reordered(stream_of('abc'), 'c, a,b') == stream_of('cab')


@pytest.mark.parametrize('order, reason', [
    ('ash,birhc,cedar', "no task 'birhc'; did you mean 'birch'?"), ('ash,birch', 'cedar is missing'),
    ('ash,birch,cedar,ash', 'ash is there twice'), ('ash,birch,cedar,', "no task ''"), ('zzz', 'The tasks are: ash, birch, cedar')])
def test_order_errors(order, reason):
    with pytest.raises(UserError) as error:
        reordered(stream_of(['ash', 'birch', 'cedar']), order)
    assert '--order' in str(error.value) and reason in str(error.value)


def options(**given):
    return SimpleNamespace(**{**dict(dataset='shapes', data='', tasks='', order='', retrieval_list='', pretrain_data='', seed=0,
                                     clips_per_class=400, max_bad=0.1, cache='', clips_per_task=6, test_clips=3, max_silent=1), **given})


def test_open_stream_honours_every_option(written, tmp_path):
    stream = open_stream(options(order='oak,fir,elm,cedar,birch,ash'), SMALL, 0)
    assert stream.names == ['oak', 'fir', 'elm', 'cedar', 'birch', 'ash'] and len(stream.train[0]) == 6
    assert stream.classes[0] == [kind.name for kind in stream.train[0].classes]
    audio, video = written['audioset'], written['vggsound']
    common = dict(order='shuffled', cache=str(tmp_path))
    stream = open_stream(options(dataset='audioset', data=str(audio), tasks=str(audio / 'tasks.csv'), pretrain_data=str(video),
                                 retrieval_list=str(audio / 'retrieval.json'), **common), SMALL, 0)
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir'] and len(stream.pretrain) == 30
    assert [d.labels[0][0] in classes for d, classes in zip(stream.test, stream.classes)] == [True] * 6
    stream = open_stream(options(dataset='vggsound', data=str(video), tasks=str(video / 'tasks.csv'), pretrain_data=str(audio),
                                 clips_per_class=1, **common), SMALL, 0)
    assert [len(d) for d in stream.train] == [3] * 6 and len(stream.pretrain) == 12      # AudioSet's have no task's class
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir'] and (tmp_path / 'checked-clips.json').exists()
    with pytest.raises(UserError, match='--retrieval-list'):
        open_stream(options(dataset='vggsound', data=str(video), tasks=str(video / 'tasks.csv'), retrieval_list='nowhere',
                            **common), SMALL, 0)


# ---------------------------------------------------------------- AVE

@pytest.fixture(scope='module')
def ave_written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ave')
    command = shapes_files.write('ave', folder, train_clips=2, test_clips=1, pretrain_clips=1, size=32, seed=1)
    assert command.startswith('python eval.py') and str(folder) in command
    return folder


def test_ave_items(ave_written):
    sets, classes = ave(ave_written, SMALL)
    assert {split: len(d) for split, d in sets.items()} == {'train': 12, 'val': 6, 'test': 6}
    assert classes == sorted({line.split('&')[0] for line in (ave_written / 'Annotations.txt').read_text().splitlines()[1:]})
    assert [d.augment for d in sets.values()] == [True, False, False] and all(d.bad == [] for d in sets.values())
    lines = (ave_written / 'trainSet.txt').read_text().splitlines()
    for index in (0, 5, 11):
        label, name, _, start, end = lines[index].split('&')
        item = sets['train'][index, 4]
        assert item['target'].tolist() == [1 + classes.index(label) if int(start) <= s < int(end) else 0 for s in range(10)]
        assert item['target'].dtype == torch.int64 and item['clip'] == index and item['bad'] == ''
        read = read_windows(ave_written / 'AVE' / f'{name}.mp4', SMALL, torch.Generator().manual_seed(4))
        assert all(torch.equal(item[key], value) for key, value in zip(('audio', 'video', 'audio_start'), read))
        assert item['audio'].shape == (5, 64, 32) and item['video'].shape == (5, 2, 3, 32, 32) and item['audio_start'].shape == (5,)
        assert sets['train'].labels[index] == (label,)
    assert torch.equal(sets['test'][0, 1]['video'], sets['test'][0, 2]['video'])


def test_ave_stand_in_brings_its_own_labels(ave_written, tmp_path):
    """And a list without a clip that is there: what cannot be used is left out, by name; too many are refused."""
    video = ave_written / 'AVE'
    events = [Event(str(tmp_path / 'gone.mp4'), 'b', 0, 10), Event(str(video / 'ash-train-00000.mp4'), 'a', 2, 4)]
    item = AVE(events, ['a', 'b'], SMALL, augment=False)[0, 0]
    assert item['target'].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0] and item['clip'] == 1
    assert item['bad'] == 'gone.mp4: file missing'
    (tmp_path / 'AVE').symlink_to(video)
    (tmp_path / 'Annotations.txt').write_text((ave_written / 'Annotations.txt').read_text())
    (tmp_path / 'testSet.txt').write_text((ave_written / 'testSet.txt').read_text() + 'red disc&gone&good&0&10\n')
    sets, _ = ave(tmp_path, SMALL, max_bad=0.2)
    assert list(sets) == ['test'] and len(sets['test']) == 6 and sets['test'].bad == ['gone.mp4: file missing']
    with pytest.raises(UserError, match='1 of 7 clips'):
        ave(tmp_path, SMALL)


def test_ave_scenes_sound_in_their_event_alone():
    kinds = shapes.kinds()[:3]
    lengths, starts = set(), set()
    for seed in range(30):
        scene, start, end = shapes_files.event_scene(kinds[0], kinds[1:], 1, seed)
        lengths.add(end - start), starts.add(start)
        assert scene.seconds == 10 and 0 <= start < end <= 10 and end - start >= 2
        loud = np.abs(shapes.source_waveform(scene)).reshape(10, -1).max(1)
        assert (loud[start:end] > 0.02).all() and not loud[:start].any() and not loud[end:].any()
        assert np.abs(shapes.other_waveform(scene)).reshape(10, -1).max(1).min() > 0
    assert len(lengths) > 4 and len(starts) > 4


# ---------------------------------------------------------------- real clips

@pytest.mark.skipif(not REAL.exists(), reason=f'no real clips at {REAL}')
def test_real_clips():
    stream = vggsound(REAL, SMALL, REAL / 'tasks.csv')
    assert stream.names == ['music', 'people', 'animals', 'others'] and stream.bad == [] and stream.notes == []
    datasets = [stream.pretrain, *stream.train, *stream.test]
    assert sum(map(len, datasets)) == 22
    for dataset in datasets:
        for index in range(len(dataset)):
            item = dataset[index, index]
            assert item['bad'] == '' and item['audio'].shape == (64, 32) and item['video'].shape == (2, 3, 32, 32)
            assert item['audio'].isfinite().all() and item['video'].float().std() > 5
