"""The lists of VGGSound, AudioSet and AVE, tasks and retrieval lists: right and wrong rows. No clip is opened."""
import json

import pytest

from clips import vggsound_folder
from config import UserError
from conftest import ROOT
from folders import COMMENTS, audioset_folder
from streams.audioset import read_audioset, read_mids, train_tables
from streams.ave import Event, read_ave
from streams.common import Clip
from streams.tables import read_retrieval_list, read_tasks
from streams.vggsound import read_vggsound


def check_error(read, path, line, reason):
    """read() raises a UserError that starts with the file and the line."""
    with pytest.raises(UserError) as error:
        read()
    assert str(error.value).startswith(f'{path}:{line}: ') and reason in str(error.value), error.value


# ---------------------------------------------------------------- VGGSound

@pytest.mark.parametrize('rows, line, reason', [
    (['a,1,dog,train', 'b,2,dog'], 2, '3 columns'), (['a,1,dog,train,x'], 1, '5 columns'),
    (['a,1.5,dog,train'], 1, 'whole number'), (['a,-1,dog,train'], 1, 'whole number'),
    (['a,²,dog,train'], 1, 'whole number'), (['', 'a,1,dog,val'], 2, 'train or test'),
    (['a,1,dog,train', 'b,1,dog,train', 'a,01,dog,test'], 3, 'same clip as in line 1'),
    (['../x,1,dog,train'], 1, 'out of the folder'), (['/etc/x,1,dog,train'], 1, 'out of the folder'),
    (['..,1,dog,train'], 1, 'out of the folder'), (['a\\b,1,dog,train'], 1, 'out of the folder'),
    ([',1,dog,train'], 1, 'id is empty'), (['a,1,,train'], 1, 'label is empty'),
    (b'a,1,dog,train\nb,2,d\xff\xfeg,train\n', 2, 'UTF-8'), (['a,1,dog,train', 'b,2,"dog,train'], 2, 'end of data')])
def test_vggsound_errors(tmp_path, rows, line, reason):
    folder = vggsound_folder(tmp_path, rows)
    check_error(lambda: read_vggsound(folder), folder / 'vggsound.csv', line, reason)


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
    ('a, 1.0, 2.0', '3 columns'), ('a, 1.0, 2.0, /m/dog,/m/waves', '5 columns'),
    ('a, one, 2.0, "/m/dog"', "'one' is not a number of seconds"), ('a, 1.0, nan, "/m/dog"', "'nan' is not a number"),
    ('a, -1.0, 2.0, "/m/dog"', "'-1.0' is not a number of seconds"), ('a, 2.0, 2.0, "/m/dog"', 'ends at 2 s'),
    ('a, 1.0, 2.0, "/m/dog,/m/dgo"', "unknown label '/m/dgo'"), ('a, 1.0, 2.0, ""', "unknown label ''"),
    ('../a, 1.0, 2.0, "/m/dog"', 'out of the folder'), (', 1.0, 2.0, "/m/dog"', 'id is empty'),
    ('x, 1.0, 2.0, "/m/dog"', 'the same clip as in balanced_train_segments.csv:4'),
    ('a, 1.0, 2.0, "/m/dog', 'end of data')])
def test_audioset_errors(tmp_path, row, reason):
    folder = audioset_folder(tmp_path, ['x, 1.0, 2.0, "/m/dog"'], ['y, 1.0, 2.0, "/m/dog"', row])
    check_error(lambda: read_audioset(folder, ['balanced_train_segments.csv', 'eval_segments.csv']),
                folder / 'eval_segments.csv', 5, reason)


@pytest.mark.parametrize('mids, line, reason', [
    ('0,/m/dog,Dog\n', 1, 'header'), ('index,mid,display_name\n0,/m/dog\n', 2, '2 columns'),
    ('index,mid,display_name\n0,/m/w,Waves, surf\n', 2, '4 columns'), ('index,mid,display_name\n0,,Dog\n', 2, 'empty'),
    ('index,mid,display_name\n0,/m/dog,Dog\n1,/m/dog,Cat\n', 3, 'twice')])
def test_audioset_class_errors(tmp_path, mids, line, reason):
    folder = audioset_folder(tmp_path, [], mids=mids)
    check_error(lambda: read_mids(folder), folder / 'class_labels_indices.csv', line, reason)


# ---------------------------------------------------------------- AVE

ANNOTATIONS = ('Category&VideoID&Quality&StartTime&EndTime\n'
               'Violin, fiddle&-v1&good&0&10\nBark&b_1&bad&3&5\nBark&b2&good&9&10\n')


def ave_folder(folder, annotations=ANNOTATIONS, **lists):
    (folder / 'AVE').mkdir()
    (folder / 'Annotations.txt').write_text(annotations)
    for name, rows in lists.items():
        (folder / f'{name}Set.txt').write_text(rows)
    return folder


def test_ave_rows(tmp_path):
    folder = ave_folder(tmp_path, train='Bark&b_1&bad&3&5\nViolin, fiddle&-v1&good&0&10\n', test='Bark&b2&good&9&10\n')
    video = folder / 'AVE'
    (video / '-v1.MP4').touch()
    expected = ({'train': [Event(str(video / 'b_1.mp4'), 'Bark', 3, 5, False),
                           Event(str(video / '-v1.MP4'), 'Violin, fiddle', 0, 10)],
                 'test': [Event(str(video / 'b2.mp4'), 'Bark', 9, 10, False)]}, ['Bark', 'Violin, fiddle'], [])
    assert read_ave(folder) == expected
    # as GitHub has it: without a header; and an event of no length, which AVE has
    (folder / 'Annotations.txt').write_text(''.join(ANNOTATIONS.splitlines(True)[1:]))
    (folder / 'testSet.txt').write_text('Bark&b2&good&9&10\nBark&b_1&good&0&0\n')
    assert read_ave(folder) == (*expected[:2], [f'{folder}/testSet.txt:2: b_1 is left out: its event has no length'])


@pytest.mark.parametrize('row, reason', [
    ('Bark&b2&good&9', '4 columns'), ('Bark&b2&good&nine&10', "from 'nine' to '10'"),
    ('Bark&b2&good&-1&10', "from '-1'"), ('Bark&b2&good&9&11', "to '11'"), ('Bark&b2&good&9&8', "from '9' to '8'"),
    ('Barks&b2&good&9&10', "did you mean 'Bark'?"), ('&b2&good&9&10', 'category is empty'),
    ('Bark&&good&9&10', 'id is empty'), ('Bark&../b2&good&9&10', 'out of the folder')])
def test_ave_errors(tmp_path, row, reason):
    folder = ave_folder(tmp_path, train=f'Bark&b2&good&9&10\n{row}\n')
    check_error(lambda: read_ave(folder), folder / 'trainSet.txt', 2, reason)


@pytest.mark.parametrize('annotations, line, reason', [('', 1, 'no events'),
                                                       (ANNOTATIONS.splitlines()[0], 1, 'no events'),
                                                       (ANNOTATIONS + 'Bark&b3&good&9\n', 5, '4 columns')])
def test_ave_annotation_errors(tmp_path, annotations, line, reason):
    folder = ave_folder(tmp_path, annotations, train='Bark&b2&good&9&10\n')
    check_error(lambda: read_ave(folder), folder / 'Annotations.txt', line, reason)


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
    ('dog,pets\n', 1, 'header'), ('class,task,x\ndog,pets,y\n', 1, 'header'), ('', 1, 'header'),
    ('class,task\ndog\n', 2, '1 columns'), ('class,task\nplaying harp, slowly,music\n', 2, '3 columns'),
    ('class,task\ndog,pets\n\ndog,music\n', 4, 'twice'), ('class,task\ndog barkin,pets\n', 2, "'dog barking'"),
    ('class,task\nzzzzzz,pets\n', 2, "unknown class 'zzzzzz'"), ('class,task\ndog,\n', 2, 'empty'),
    ('class,task\n', 1, 'no rows')])
def test_tasks_errors(tmp_path, text, line, reason):
    (tmp_path / 'tasks.csv').write_text(text)
    check_error(lambda: read_tasks(tmp_path / 'tasks.csv', {'dog', 'dog barking', 'playing harp'}),
                tmp_path / 'tasks.csv', line, reason)


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


@pytest.mark.parametrize('entry, paths', [
    (dict(video_id='abc'), 'AC'), (dict(video_id='abc_30'), 'A'), (dict(video_id='abc_000030'), 'A'),
    (dict(video_id='abc_30.000'), 'A'), (dict(video_id='abc_12'), 'B'), (dict(video_id='abc_000012'), 'C'),
    (dict(video_id='abc_12_7'), 'B'), (dict(video_id='-d_5.5', wav='abc.wav'), 'D'),
    (dict(wav='/data/eval/-d.flac'), 'D'), (dict(video_id='', wav='audio/abc_000030.wav'), 'A'),
    (dict(video_id=None, wav='abc_30.000.wav', labels='/m/x'), 'A')])
def test_retrieval_entries(tmp_path, entry, paths):
    (tmp_path / 'list.json').write_text(json.dumps({'data': [entry]}))
    assert read_retrieval_list(tmp_path / 'list.json', CLIPS) == (set(paths), [])


def test_retrieval_entries_without_a_clip_are_counted(tmp_path):
    path = tmp_path / 'list.json'
    path.write_text(json.dumps({'data': [dict(video_id=name) for name in ('abc_30', 'e', 'abc_31', 'zzz', '-d')]}))
    listed, notes = read_retrieval_list(path, CLIPS)
    assert listed == {'A', 'D'} and len(notes) == 1 and notes[0].startswith('3 of 5 entries')
    assert read_retrieval_list('', CLIPS) == (None, [])


@pytest.mark.parametrize('content, reason', [
    ('{"data": [', 'format'), ('[]', 'format'), ('{"dat": []}', "'data'"), ('{"data": ["abc"]}', 'format'),
    ('{"data": [{"labels": "/m/x"}]}', "'wav'"), ('{"data": [{"wav": 5}]}', 'format'), ('{"data": 5}', 'format'),
    ('\xff', 'format'), ('{"data": []}', 'none of its 0 entries'), (None, 'No such file'),
    ('{"data": [{"video_id": "e"}]}', 'none of its 1 entries')])
def test_malformed_retrieval_lists(tmp_path, content, reason):
    path = tmp_path / 'list.json'
    if content is not None:
        path.write_bytes(content.encode('latin-1'))
    with pytest.raises(UserError) as error:
        read_retrieval_list(path, CLIPS)
    assert str(error.value).startswith(f'--retrieval-list {path}') and reason in str(error.value)
