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


def check_message(error, path, line, reason):
    """A UserError starts with the file and the line."""
    assert str(error.value).startswith(f'{path}:{line}: ') and reason in str(error.value)


# ---------------------------------------------------------------- VGGSound

@pytest.mark.parametrize('rows, line, reason', [
    (['a,1,dog,train', 'b,2,dog'], 2, '3 columns'), (['a,1.5,dog,train'], 1, 'whole number'),
    (['', 'a,1,dog,val'], 2, 'train or test'),
    (['a,1,dog,train', 'b,1,dog,train', 'a,01,dog,test'], 3, 'same clip as in line 1'),
    (['../x,1,dog,train'], 1, 'out of the folder'), (['a\\b,1,dog,train'], 1, 'out of the folder'),
    ([',1,dog,train'], 1, 'id is empty'), (['a,1,dog,train', 'b,2,"dog,train'], 2, 'end of data')])
def test_vggsound_errors(tmp_path, rows, line, reason):
    folder = vggsound_folder(tmp_path, rows)
    with pytest.raises(UserError) as error:
        read_vggsound(folder)
    check_message(error, folder / 'vggsound.csv', line, reason)


# ---------------------------------------------------------------- AudioSet

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
        Clip(str(video / 'd_000007.mp4'), ('Waves, surf',), 'd', 7.0, 'train', 9.02 - 7, False),
        Clip(str(video / 'e.mp4'), ('Dog',), 'e', 1.0, 'test', 10.0)]
    (folder / 'unbalanced_train_segments.csv').write_text(COMMENTS + 'f, 1.0, 2.0, "/m/dog"\n')
    assert [clip.name for clip in read_audioset(folder, train_tables(folder))] == ['-a', 'b_1', 'c', 'd', 'f']


@pytest.mark.parametrize('row, reason', [
    ('a, 1.0, 2.0', '3 columns'), ('a, 1.0, nan, "/m/dog"', "'nan' is not a number of seconds"),
    ('a, 1.0, 2.0, "/m/dog,/m/dgo"', "unknown label '/m/dgo'"), ('../a, 1.0, 2.0, "/m/dog"', 'out of the folder'),
    ('x, 1.0, 2.0, "/m/dog"', 'the same clip as in balanced_train_segments.csv:4')])
def test_audioset_errors(tmp_path, row, reason):
    folder = audioset_folder(tmp_path, ['x, 1.0, 2.0, "/m/dog"'], ['y, 1.0, 2.0, "/m/dog"', row])
    with pytest.raises(UserError) as error:
        read_audioset(folder, ['balanced_train_segments.csv', 'eval_segments.csv'])
    check_message(error, folder / 'eval_segments.csv', 5, reason)


@pytest.mark.parametrize('mids, line, reason', [
    ('0,/m/dog,Dog\n', 1, 'header'), ('index,mid,display_name\n0,/m/w,Waves, surf\n', 2, '4 columns')])
def test_audioset_class_errors(tmp_path, mids, line, reason):
    folder = audioset_folder(tmp_path, [], mids=mids)
    with pytest.raises(UserError) as error:
        read_mids(folder)
    check_message(error, folder / 'class_labels_indices.csv', line, reason)


# ---------------------------------------------------------------- AVE

def test_ave_rows(tmp_path):
    folder = ave_folder(tmp_path, train='Bark&b_1&bad&3&5\nViolin, fiddle&-v1&good&0&10\n', test='Bark&b2&good&9&10\n')
    video = folder / 'AVE'
    (video / '-v1.MP4').touch()
    def clip(name, label, split, start, end, exists=False):
        return Clip(str(video / name), (label,), name.split('.')[0], 0, split, 10, exists, event=(start, end))

    (video / '-v1.mkv').touch()
    expected = ({'train': [clip('b_1.mp4', 'Bark', 'train', 3, 5),
                           clip('-v1.mkv', 'Violin, fiddle', 'train', 0, 10, exists=True)],
                 'test': [clip('b2.mp4', 'Bark', 'test', 9, 10)]}, ['Bark', 'Violin, fiddle'], [])
    assert read_ave(folder) == expected
    # as GitHub has it: without a header; and an event of no length, which AVE has
    (folder / 'Annotations.txt').write_text(''.join(ANNOTATIONS.splitlines(True)[1:]))
    (folder / 'testSet.txt').write_text('Bark&b2&good&9&10\nBark&b_1&good&0&0\n')
    assert read_ave(folder) == (*expected[:2], [f'{folder}/testSet.txt:2: b_1 is left out: its event has no length'])


@pytest.mark.parametrize('row, reason', [
    ('Bark&b2&good&9', '4 columns'), ('Bark&b2&good&nine&10', "from 'nine' to '10'"),
    ('Bark&b2&good&9&11', "to '11'"), ('Bark&b2&good&9&8', "from '9' to '8'"),
    ('Barks&b2&good&9&10', "the category 'Barks' is not in Annotations.txt"),
    ('Bark&../b2&good&9&10', 'out of the folder')])
def test_ave_errors(tmp_path, row, reason):
    folder = ave_folder(tmp_path, train=f'Bark&b2&good&9&10\n{row}\n')
    with pytest.raises(UserError) as error:
        read_ave(folder)
    check_message(error, folder / 'trainSet.txt', 2, reason)


# ---------------------------------------------------------------- what to download

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


# ---------------------------------------------------------------- tasks

@pytest.mark.parametrize('text, line, reason', [
    ('dog,pets\n', 1, 'header'), ('', 1, 'header'), ('class,task\nplaying harp, slowly,music\n', 2, '3 columns'),
    ('class,task\ndog,pets\n\ndog,music\n', 4, 'twice'), ('class,task\ndog barkin,pets\n', 2, "'dog barking'"),
    ('class,task\ndog,\n', 2, 'empty'), ('class,task\n', 1, 'no rows')])
def test_tasks_errors(tmp_path, text, line, reason):
    (tmp_path / 'tasks.csv').write_text(text)
    with pytest.raises(UserError) as error:
        read_tasks(tmp_path / 'tasks.csv', {'dog', 'dog barking', 'playing harp'})
    check_message(error, tmp_path / 'tasks.csv', line, reason)


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
