"""The lists of VGGSound, AudioSet and AVE, tasks and retrieval lists: right and wrong rows. No clip is opened."""
import json

import pytest

from clips import vggsound_folder
from config import UserError
from conftest import ROOT
from folders import ANNOTATIONS, COMMENTS, audioset_folder, ave_folder
from streams.audioset import read_audioset, read_mids, train_tables
from streams.ave import read_ave
from streams.common import Clip
from streams.tables import read_retrieval_list, read_tasks
from streams.vggsound import read_vggsound


# ---------------------------------------------------------------- wrong lines

def of_vggsound(folder, rows):
    read_vggsound(vggsound_folder(folder, rows))


def of_audioset(folder, row):
    audioset_folder(folder, ['x, 1.0, 2.0, "/m/dog"'], ['y, 1.0, 2.0, "/m/dog"', row])
    read_audioset(folder, ['balanced_train_segments.csv', 'eval_segments.csv'])


def of_classes(folder, mids):
    read_mids(audioset_folder(folder, [], mids=mids))


def of_ave(folder, row):
    read_ave(ave_folder(folder, train=f'Bark&b2&good&9&10\n{row}\n'))


def of_tasks(folder, text):
    (folder / 'tasks.csv').write_text(text)
    read_tasks(folder / 'tasks.csv', {'dog', 'dog barking', 'playing harp'})


@pytest.mark.parametrize('read, content, place, reason', [
    (of_vggsound, ['a,1,dog,train', 'b,2,dog'], 'vggsound.csv:2', '3 columns'),
    (of_vggsound, ['a,1.5,dog,train'], 'vggsound.csv:1', 'whole number'),
    (of_vggsound, ['', 'a,1,dog,val'], 'vggsound.csv:2', 'train or test'),
    (of_vggsound, ['a,1,dog,train', 'b,1,dog,train', 'a,01,dog,test'], 'vggsound.csv:3', 'same clip as in line 1'),
    (of_vggsound, ['../x,1,dog,train'], 'vggsound.csv:1', 'out of the folder'),
    (of_vggsound, [',1,dog,train'], 'vggsound.csv:1', 'id is empty'),
    (of_vggsound, ['a,1,dog,train', 'b,2,"dog,train'], 'vggsound.csv:2', 'end of data'),
    (of_audioset, 'a, 1.0, 2.0', 'eval_segments.csv:5', '3 columns'),
    (of_audioset, 'a, 1.0, nan, "/m/dog"', 'eval_segments.csv:5', "'nan' is not a number of seconds"),
    (of_audioset, 'a, 2.0, 1.0, "/m/dog"', 'eval_segments.csv:5', 'ends at 1, not after its start 2'),
    (of_audioset, 'a, 1.0, 2.0, "/m/dog,/m/dgo"', 'eval_segments.csv:5', "unknown label '/m/dgo'"),
    (of_audioset, '../a, 1.0, 2.0, "/m/dog"', 'eval_segments.csv:5', 'out of the folder'),
    (of_audioset, 'x, 1.0, 2.0, "/m/dog"', 'eval_segments.csv:5', 'same clip as in balanced_train_segments.csv:4'),
    (of_classes, '0,/m/dog,Dog\n', 'class_labels_indices.csv:1', 'header'),
    (of_classes, 'index,mid,display_name\n0,/m/w,Waves, surf\n', 'class_labels_indices.csv:2', '4 columns'),
    (of_ave, 'Bark&b2&good&9', 'trainSet.txt:2', '4 columns'),
    (of_ave, 'Bark&b2&good&nine&10', 'trainSet.txt:2', "from 'nine' to '10'"),
    (of_ave, 'Bark&b2&good&9&11', 'trainSet.txt:2', "to '11'"),
    (of_ave, 'Bark&b2&good&9&8', 'trainSet.txt:2', "from '9' to '8'"),
    (of_ave, 'Barks&b2&good&9&10', 'trainSet.txt:2', "the category 'Barks' is not in Annotations.txt"),
    (of_ave, 'Bark&../b2&good&9&10', 'trainSet.txt:2', 'out of the folder'),
    (of_tasks, '', 'tasks.csv:1', 'header'), (of_tasks, 'class,task\n', 'tasks.csv:1', 'no rows'),
    (of_tasks, 'class,task\nplaying harp, slowly,music\n', 'tasks.csv:2', '3 columns'),
    (of_tasks, 'class,task\ndog,pets\n\ndog,music\n', 'tasks.csv:4', 'twice'),
    (of_tasks, 'class,task\ndog barkin,pets\n', 'tasks.csv:2', "did you mean 'dog barking'"),
    (of_tasks, 'class,task\ndog,\n', 'tasks.csv:2', 'empty')])
def test_a_wrong_line_is_named(tmp_path, read, content, place, reason):
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f'{tmp_path}/{place}: ') and reason in str(error.value)


@pytest.mark.parametrize('make_folder, read, needed, word', [
    (lambda d: vggsound_folder(d, ['a,1,dog,train']), read_vggsound, ['vggsound.csv', 'video'], '--dataset shapes'),
    (lambda d: audioset_folder(d, []), lambda d: read_audioset(d, [*train_tables(d), 'eval_segments.csv']),
     ['class_labels_indices.csv', 'balanced_train_segments.csv', 'eval_segments.csv', 'video'], 'research.google.com'),
    (lambda d: ave_folder(d, train=''), read_ave, ['Annotations.txt', 'AVE', 'trainSet.txt'], 'AVE-ECCV18')],
    ids=['vggsound', 'audioset', 'ave'])
def test_missing_files_are_named_with_the_layout(tmp_path, make_folder, read, needed, word):
    for number, name in enumerate(needed):
        (tmp_path / str(number)).mkdir()
        folder = make_folder(tmp_path / str(number))
        (folder / name).rmdir() if '.' not in name else (folder / name).unlink()
        with pytest.raises(UserError, match=f'{name} is missing') as error:
            read(folder)
        assert word in str(error.value) and '<id>' in str(error.value)


# ---------------------------------------------------------------- right lines

def test_audioset_rows_and_file_names(tmp_path):
    """Downloaders name the files in three ways. A missing file gets the first name."""
    folder = audioset_folder(
        tmp_path, ['-a, 30.000, 40.000, "/m/dog,/m/waves"', 'b_1, 0.000, 10.000, "/t/cat"',
                   'c,5.5,15.5,"/m/dog, /m/dog"', 'd, 7.000, 9.020, "/m/waves"'],
        ['e, 1.000, 11.000, "/m/dog"'],
        videos=['-a_000030.webm', 'b_1_0_10000.mkv', 'c.mp4', 'c_5500_15500.avi', 'e.mp4'])
    video = folder / 'video'
    assert read_audioset(folder, [*train_tables(folder), 'eval_segments.csv']) == [
        Clip(str(video / '-a_000030.webm'), ('Dog', 'Waves, surf'), '-a', 30.0, 'train', 10.0),
        Clip(str(video / 'b_1_0_10000.mkv'), ('Cat',), 'b_1', 0.0, 'train', 10.0),
        Clip(str(video / 'c_5500_15500.avi'), ('Dog',), 'c', 5.5, 'train', 10.0),
        Clip(str(video / 'd_000007.mp4'), ('Waves, surf',), 'd', 7.0, 'train', 9.02 - 7),
        Clip(str(video / 'e.mp4'), ('Dog',), 'e', 1.0, 'test', 10.0)]
    (folder / 'unbalanced_train_segments.csv').write_text(COMMENTS + 'f, 1.0, 2.0, "/m/dog"\n')
    assert [clip.name for clip in read_audioset(folder, train_tables(folder))] == ['-a', 'b_1', 'c', 'd', 'f']


def test_ave_rows(tmp_path):
    folder = ave_folder(tmp_path, train='Bark&b_1&bad&3&5\nViolin, fiddle&-v1&good&0&10\n', test='Bark&b2&good&9&10\n')
    video = folder / 'AVE'
    (video / '-v1.MP4').touch()
    (video / '-v1.mkv').touch()

    def clip(name, label, split, start, end):
        return Clip(str(video / name), (label,), name.split('.')[0], 0, split, 10, event=(start, end))

    expected = ({'train': [clip('b_1.mp4', 'Bark', 'train', 3, 5), clip('-v1.mkv', 'Violin, fiddle', 'train', 0, 10)],
                 'test': [clip('b2.mp4', 'Bark', 'test', 9, 10)]}, ['Bark', 'Violin, fiddle'], [])
    assert read_ave(folder) == expected
    # as GitHub has it: without a header; and an event of no length, which AVE has
    (folder / 'Annotations.txt').write_text(''.join(ANNOTATIONS.splitlines(True)[1:]))
    (folder / 'testSet.txt').write_text('Bark&b2&good&9&10\nBark&b_1&good&0&0\n')
    assert read_ave(folder) == (*expected[:2], [f'{folder}/testSet.txt:2: b_1 is left out: its event has no length'])


def test_tasks_keep_their_order_and_windows_files_are_read(tmp_path):
    path = tmp_path / 'tasks.csv'
    path.write_bytes('\ufeffclass,task\r\ndog,b\r\n"sea, waves",a\r\ncat,b\r\n'.encode())
    assert list(read_tasks(path, {'dog', 'cat', 'sea, waves'}).items()) == [('dog', 'b'), ('sea, waves', 'a'),
                                                                           ('cat', 'b')]
    with pytest.raises(UserError, match='nowhere.csv'):
        read_tasks(tmp_path / 'nowhere.csv', {'dog'})


def test_the_papers_tasks():
    """App. B: their order, and 20 classes per task of VGGSound."""
    tasks = read_tasks(ROOT / 'tasks' / 'vggsound.csv', None)
    assert list(dict.fromkeys(tasks.values())) == [
        'sports', 'music', 'vehicle', 'people', 'animals', 'home_nature', 'others_part1', 'others_part2']
    assert {list(tasks.values()).count(task) for task in tasks.values()} == {20}
    tasks = read_tasks(ROOT / 'tasks' / 'audioset.csv', None)
    assert list(dict.fromkeys(tasks.values())) == ['human', 'vehicle', 'nature', 'animal', 'others', 'home', 'music']


# ---------------------------------------------------------------- CAV-MAE's retrieval lists

CLIPS = [Clip(path, ('x',), name, start, split) for path, name, start, split in (
    ('A', 'abc', 30.0, 'test'), ('B', 'abc_12', 7.0, 'test'), ('C', 'abc', 12.0, 'test'), ('D', '-d', 5.5, 'test'),
    ('E', 'e', 0.0, 'train'))]


@pytest.mark.parametrize('name, paths', [
    ('abc', 'AC'), ('abc_30', 'A'), ('abc_000030', 'A'), ('abc_30.000', 'A'), ('abc_12', 'B'), ('abc_000012', 'C'),
    ('abc_12_7', 'B'), ('-d_5.5', 'D')])
def test_retrieval_entries(tmp_path, name, paths):
    (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(video_id=name, wav='abc.wav', labels='/m/x')]}))
    assert read_retrieval_list(tmp_path / 'list.json', CLIPS) == (set(paths), [])


def test_retrieval_entries_without_a_clip_are_counted(tmp_path):
    path = tmp_path / 'list.json'
    path.write_text(json.dumps({'data': [dict(video_id=name) for name in ('abc_30', 'e', 'abc_31', 'zzz', '-d')]}))
    listed, notes = read_retrieval_list(path, CLIPS)
    assert listed == {'A', 'D'} and len(notes) == 1 and notes[0].startswith('3 of 5 entries')
    assert read_retrieval_list('', CLIPS) == (None, [])


@pytest.mark.parametrize('content, reason', [
    ('{"data": [', 'format'), ('[]', 'format'), ('{"data": [{"labels": "/m/x"}]}', "'video_id'"),
    ('{"data": 5}', 'format'), (None, 'No such file'), ('{"data": [{"video_id": "e"}]}', 'none of its 1 entries')])
def test_malformed_retrieval_lists(tmp_path, content, reason):
    path = tmp_path / 'list.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        read_retrieval_list(path, CLIPS)
    assert str(error.value).startswith(f'--retrieval-list {path}') and reason in str(error.value)
