"""lists.py: lists of clips as each data set has them, right and wrong. No clip is opened, so the videos are empty files."""
import json
from pathlib import Path

import pytest

from clips import vggsound_folder
from lists import Clip, Event, read_audioset, read_ave, read_mids, read_retrieval_list, read_tasks, read_vggsound, train_tables
from model import UserError

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- VGGSound, tasks

@pytest.mark.parametrize('rows, line, reason', [
    (['a,1,dog,train', 'b,2,dog'], 2, '3 columns'),
    (['a,1,dog,train,x'], 1, '5 columns'),
    (['a,1.5,dog,train'], 1, 'whole number'),
    (['a,-1,dog,train'], 1, 'whole number'),
    (['a,²,dog,train'], 1, 'whole number'),
    (['', 'a,1,dog,val'], 2, 'train or test'),
    (['a,1,dog,train', 'b,1,dog,train', 'a,01,dog,test'], 3, 'same clip as in line 1'),
    (['../x,1,dog,train'], 1, 'out of the folder'),
    (['/etc/x,1,dog,train'], 1, 'out of the folder'),
    (['..,1,dog,train'], 1, 'out of the folder'),
    (['a\\b,1,dog,train'], 1, 'out of the folder'),
    ([',1,dog,train'], 1, 'id is empty'),
    (['a,1,,train'], 1, 'label is empty'),
    (b'a,1,dog,train\nb,2,d\xff\xfeg,train\n', 2, 'UTF-8'),
    (['a,1,dog,train', 'b,2,"dog,train'], 2, 'end of data'),
])
def test_csv_errors_name_the_line(tmp_path, rows, line, reason):
    folder = vggsound_folder(tmp_path, rows)
    with pytest.raises(UserError) as error:
        read_vggsound(folder)
    assert str(error.value).startswith(f'{folder / "vggsound.csv"}:{line}: ') and reason in str(error.value)


@pytest.mark.parametrize('text, line, reason', [
    ('dog,pets\n', 1, 'header'),
    ('class,task,x\ndog,pets,y\n', 1, 'header'),
    ('class,task\ndog\n', 2, '1 columns'),
    ('class,task\nplaying harp, slowly,music\n', 2, '3 columns'),
    ('class,task\ndog,pets\n\ndog,music\n', 4, 'twice'),
    ('class,task\ndog barkin,pets\n', 2, "'dog barking'"),
    ('class,task\nzzzzzz,pets\n', 2, "unknown class 'zzzzzz'"),
    ('class,task\ndog,\n', 2, 'empty'),
    ('class,task\n', None, 'no rows'),
    ('', None, 'no rows'),
])
def test_tasks_errors_name_the_line(tmp_path, text, line, reason):
    path = tmp_path / 'tasks.csv'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_tasks(path, {'dog', 'dog barking', 'playing harp'})
    assert str(error.value).startswith(f'{path}:{line}: ' if line else f'{path}: ') and reason in str(error.value)


def test_tasks_keep_their_order_and_windows_files_are_fine(tmp_path):
    path = tmp_path / 'tasks.csv'
    path.write_bytes('\ufeffclass,task\r\ndog,b\r\n"sea, waves",a\r\ncat,b\r\n'.encode())
    assert list(read_tasks(path, {'dog', 'cat', 'sea, waves'}).items()) == [('dog', 'b'), ('sea, waves', 'a'),
                                                                           ('cat', 'b')]
    with pytest.raises(UserError, match='nowhere.csv'):
        read_tasks(tmp_path / 'nowhere.csv', {'dog'})


@pytest.mark.parametrize('lacks', ['folder', 'csv', 'video', 'video is a file'])
def test_missing_data_says_what_to_download(tmp_path, lacks):
    folder = tmp_path / 'data'
    if lacks != 'folder':
        folder.mkdir()
        vggsound_folder(folder, ['a,1,dog,train'])
        (folder / 'vggsound.csv').unlink() if lacks == 'csv' else (folder / 'video').rmdir()
    if lacks == 'video is a file':
        (folder / 'video').touch()
    with pytest.raises(UserError) as error:
        read_vggsound(folder)
    for word in ('vggsound.csv', 'video/<id>_<start', '--dataset shapes'):
        assert word in str(error.value)


def test_the_papers_tasks():
    """App. B: their order, and 20 classes a task of VGGSound."""
    tasks = read_tasks(ROOT / 'tasks' / 'vggsound.csv', None)
    assert list(dict.fromkeys(tasks.values())) == ['sports', 'music', 'vehicle', 'people', 'animals', 'home_nature', 'others_part1',
                                                   'others_part2']
    assert {list(tasks.values()).count(task) for task in tasks.values()} == {20}
    tasks = read_tasks(ROOT / 'tasks' / 'audioset.csv', None)
    assert list(dict.fromkeys(tasks.values())) == ['human', 'vehicle', 'nature', 'animal', 'others', 'home', 'music']


# ---------------------------------------------------------------- AudioSet

MIDS = 'index,mid,display_name\n0,/m/dog,Dog\n1,/m/waves,"Waves, surf"\n2,/t/cat,Cat\n'
COMMENTS = '# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2\n# YTID, start_seconds, end_seconds, labels\n'


def audioset_folder(folder, train, test=(), mids=MIDS, videos=()):
    """The lists, of rows, and empty files as videos"""
    (folder / 'video').mkdir(exist_ok=True)
    (folder / 'class_labels_indices.csv').write_text(mids)
    for name, rows in (('balanced_train', train), ('eval', test)):
        (folder / f'{name}_segments.csv').write_text(COMMENTS + ''.join(row + '\n' for row in rows))
    for name in videos:
        (folder / 'video' / name).touch()
    return folder


def test_audioset_rows_and_the_names_of_its_files(tmp_path):
    """Downloaders name the files in three ways; the first is expected where there is none."""
    folder = audioset_folder(
        tmp_path, ['-a, 30.000, 40.000, "/m/dog,/m/waves"', 'b_1, 0.000, 10.000, "/t/cat"', 'c,5.5,15.5,"/m/dog, /m/dog"',
                   'd, 7.000, 9.020, "/m/waves"'],
        ['e, 1.000, 11.000, "/m/dog"'], videos=['-a_000030.webm', 'b_1_0_10000.mkv', 'c.mp4', 'c_5500_15500.avi', 'e.mp4'])
    clips = read_audioset(folder, [*train_tables(folder), 'eval_segments.csv'])
    video = folder / 'video'
    assert clips == [
        Clip(str(video / '-a_000030.webm'), ('Dog', 'Waves, surf'), 4, '-a', 30.0, 'train'),
        Clip(str(video / 'b_1_0_10000.mkv'), ('Cat',), 5, 'b_1', 0.0, 'train'),
        Clip(str(video / 'c_5500_15500.avi'), ('Dog',), 6, 'c', 5.5, 'train'),
        Clip(str(video / 'd_000007.mp4'), ('Waves, surf',), 7, 'd', 7.0, 'train'),
        Clip(str(video / 'e.mp4'), ('Dog',), 4, 'e', 1.0, 'test')]
    assert train_tables(folder) == ['balanced_train_segments.csv']
    (folder / 'unbalanced_train_segments.csv').write_text(COMMENTS + 'f, 1.0, 2.0, "/m/dog"\n')
    assert [clip.name for clip in read_audioset(folder, train_tables(folder))] == ['-a', 'b_1', 'c', 'd', 'f']


@pytest.mark.parametrize('row, reason', [
    ('a, 1.0, 2.0', '3 columns'),
    ('a, 1.0, 2.0, /m/dog,/m/waves', '5 columns'),
    ('a, one, 2.0, "/m/dog"', "'one' is not a number of seconds"),
    ('a, 1.0, nan, "/m/dog"', "'nan' is not a number of seconds"),
    ('a, -1.0, 2.0, "/m/dog"', "'-1.0' is not a number of seconds"),
    ('a, 2.0, 2.0, "/m/dog"', 'ends at 2 s'),
    ('a, 1.0, 2.0, "/m/dog,/m/dgo"', "unknown label '/m/dgo'"),
    ('a, 1.0, 2.0, ""', "unknown label ''"),
    ('../a, 1.0, 2.0, "/m/dog"', 'out of the folder'),
    ('a/b, 1.0, 2.0, "/m/dog"', 'out of the folder'),
    (', 1.0, 2.0, "/m/dog"', 'id is empty'),
    ('x, 1.0, 2.0, "/m/dog"', 'the same clip as in balanced_train_segments.csv:4'),
    ('a, 1.0, 2.0, "/m/dog', 'end of data'),
])
def test_audioset_errors_name_the_line(tmp_path, row, reason):
    folder = audioset_folder(tmp_path, ['x, 1.0, 2.0, "/m/dog"'], ['y, 1.0, 2.0, "/m/dog"', row])
    with pytest.raises(UserError) as error:
        read_audioset(folder, ['balanced_train_segments.csv', 'eval_segments.csv'])
    assert str(error.value).startswith(f'{folder / "eval_segments.csv"}:5: ') and reason in str(error.value)


@pytest.mark.parametrize('mids, line, reason', [
    ('0,/m/dog,Dog\n', 1, 'header'),
    ('index,mid,display_name\n0,/m/dog\n', 2, '2 columns'),
    ('index,mid,display_name\n0,/m/w,Waves, surf\n', 2, '4 columns'),
    ('index,mid,display_name\n0,/m/dog,Dog\n1,/m/dog,Cat\n', 3, 'twice'),
    ('index,mid,display_name\n0,,Dog\n', 2, 'empty'),
])
def test_class_file_errors_name_the_line(tmp_path, mids, line, reason):
    folder = audioset_folder(tmp_path, [], mids=mids)
    with pytest.raises(UserError) as error:
        read_mids(folder)
    assert str(error.value).startswith(f'{folder / "class_labels_indices.csv"}:{line}: ') and reason in str(error.value)


@pytest.mark.parametrize('lacks', ['class_labels_indices.csv', 'balanced_train_segments.csv', 'eval_segments.csv', 'video'])
def test_missing_audioset_says_what_to_download(tmp_path, lacks):
    folder = audioset_folder(tmp_path, [])
    (folder / lacks).rmdir() if lacks == 'video' else (folder / lacks).unlink()
    with pytest.raises(UserError) as error:
        read_audioset(folder, [*train_tables(folder), 'eval_segments.csv'])
    for word in (f'{folder / lacks} is missing', 'research.google.com/audioset', '<id>_<start ms>_<end ms>'):
        assert word in str(error.value)


# ---------------------------------------------------------------- AVE

ANNOTATIONS = 'Category&VideoID&Quality&StartTime&EndTime\nViolin, fiddle&-v1&good&0&10\nBark&b_1&bad&3&5\nBark&b2&good&9&10\n'


def ave_folder(folder, annotations=ANNOTATIONS, **lists):
    (folder / 'AVE').mkdir()
    (folder / 'Annotations.txt').write_text(annotations)
    for name, rows in lists.items():
        (folder / f'{name}Set.txt').write_text(rows)
    return folder


def test_ave_rows(tmp_path):
    folder = ave_folder(tmp_path, train='Bark&b_1&bad&3&5\nViolin, fiddle&-v1&good&0&10\n', test='Bark&b2&good&9&10\n')
    video = folder / 'AVE'
    assert read_ave(folder) == ({'train': [Event(str(video / 'b_1.mp4'), 'Bark', 3, 5),
                                           Event(str(video / '-v1.mp4'), 'Violin, fiddle', 0, 10)],
                                 'test': [Event(str(video / 'b2.mp4'), 'Bark', 9, 10)]}, ['Bark', 'Violin, fiddle'])


@pytest.mark.parametrize('row, reason', [
    ('Bark&b2&good&9', '4 columns'),
    ('Bark&b2&good&nine&10', "from 'nine' to '10'"),
    ('Bark&b2&good&-1&10', "from '-1'"),
    ('Bark&b2&good&9&11', "to '11'"),
    ('Bark&b2&good&9&9', "from '9' to '9'"),
    ('Barks&b2&good&9&10', "did you mean 'Bark'?"),
    ('&b2&good&9&10', 'category is empty'),
    ('Bark&&good&9&10', 'id is empty'),
    ('Bark&../b2&good&9&10', 'out of the folder'),
])
def test_ave_errors_name_the_line(tmp_path, row, reason):
    folder = ave_folder(tmp_path, train=f'Bark&b2&good&9&10\n{row}\n')
    with pytest.raises(UserError) as error:
        read_ave(folder)
    assert str(error.value).startswith(f'{folder / "trainSet.txt"}:2: ') and reason in str(error.value)


@pytest.mark.parametrize('annotations, line, reason', [('', 1, 'header'), ('Bark&b2&good&9&10\n', 1, 'header'),
                                                       (ANNOTATIONS + 'Bark&b3&good&9\n', 5, '4 columns')])
def test_annotation_errors_name_the_line(tmp_path, annotations, line, reason):
    folder = ave_folder(tmp_path, annotations, train='Bark&b2&good&9&10\n')
    with pytest.raises(UserError) as error:
        read_ave(folder)
    assert str(error.value).startswith(f'{folder / "Annotations.txt"}:{line}: ') and reason in str(error.value)


@pytest.mark.parametrize('lacks', ['Annotations.txt', 'AVE', 'trainSet.txt'])
def test_missing_ave_says_what_to_download(tmp_path, lacks):
    folder = ave_folder(tmp_path, train='')
    (folder / lacks).rmdir() if lacks == 'AVE' else (folder / lacks).unlink()
    with pytest.raises(UserError) as error:
        read_ave(folder)
    for word in (f'{folder / lacks} is missing', 'AVE-ECCV18', 'AVE/<id>.mp4'):
        assert word in str(error.value)


# ---------------------------------------------------------------- CAV-MAE's lists

CLIPS = [Clip(path, ('x',), 1, name, start, split) for path, name, start, split in (
    ('A', 'abc', 30.0, 'test'), ('B', 'abc_12', 7.0, 'test'), ('C', 'abc', 12.0, 'test'), ('D', '-d', 5.5, 'test'),
    ('E', 'e', 0.0, 'train'))]


@pytest.mark.parametrize('entry, paths', [
    (dict(video_id='abc'), 'AC'), (dict(video_id='abc_30'), 'A'), (dict(video_id='abc_000030'), 'A'),
    (dict(video_id='abc_30.000'), 'A'), (dict(video_id='abc_12'), 'B'), (dict(video_id='abc_000012'), 'C'),
    (dict(video_id='abc_12_7'), 'B'), (dict(video_id='-d_5.5', wav='abc.wav'), 'D'), (dict(wav='/data/eval/-d.flac'), 'D'),
    (dict(video_id='', wav='audio/abc_000030.wav'), 'A'), (dict(video_id=None, wav='abc_30.000.wav', labels='/m/x'), 'A')])
def test_retrieval_entries_find_their_clips(tmp_path, entry, paths):
    path = tmp_path / 'list.json'
    path.write_text(json.dumps({'data': [entry]}))
    assert read_retrieval_list(path, CLIPS) == (set(paths), [])


def test_retrieval_entries_without_a_clip_are_counted(tmp_path):
    path = tmp_path / 'list.json'
    path.write_text(json.dumps({'data': [dict(video_id=name) for name in ('abc_30', 'e', 'abc_31', 'zzz', '-d')]}))
    listed, notes = read_retrieval_list(path, CLIPS)
    assert listed == {'A', 'D'} and len(notes) == 1 and notes[0].startswith('3 of 5 entries') and str(path) in notes[0]
    assert read_retrieval_list('', CLIPS) == (None, [])


@pytest.mark.parametrize('content, reason', [
    ('{"data": [', 'format'), ('[]', 'format'), ('{"dat": []}', "'data'"), ('{"data": ["abc"]}', 'format'),
    ('{"data": [{"labels": "/m/x"}]}', "'wav'"), ('{"data": [{"wav": 5}]}', 'format'), ('{"data": 5}', 'format'),
    ('\xff', 'format'), ('{"data": []}', 'none of its 0 entries'), ('{"data": [{"video_id": "e"}]}', 'none of its 1 entries'),
    (None, 'No such file')])
def test_malformed_retrieval_lists(tmp_path, content, reason):
    path = tmp_path / 'list.json'
    if content is not None:
        path.write_bytes(content.encode('latin-1'))
    with pytest.raises(UserError) as error:
        read_retrieval_list(path, CLIPS)
    assert str(error.value).startswith(f'--retrieval-list {path}') and reason in str(error.value)
