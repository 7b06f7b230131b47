"""streams/tables.py: the tasks' classes and CAV-MAE's lists, right and wrong."""
import json

import pytest

from conftest import ROOT
from patches import UserError
from streams.common import Clip
from streams.tables import read_retrieval_list, read_tasks


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


def test_the_papers_tasks():
    """App. B: their order, and 20 classes a task of VGGSound."""
    tasks = read_tasks(ROOT / 'tasks' / 'vggsound.csv', None)
    assert list(dict.fromkeys(tasks.values())) == [
        'sports', 'music', 'vehicle', 'people', 'animals', 'home_nature', 'others_part1', 'others_part2']
    assert {list(tasks.values()).count(task) for task in tasks.values()} == {20}
    tasks = read_tasks(ROOT / 'tasks' / 'audioset.csv', None)
    assert list(dict.fromkeys(tasks.values())) == ['human', 'vehicle', 'nature', 'animal', 'others', 'home', 'music']


# ---------------------------------------------------------------- CAV-MAE's lists

CLIPS = [Clip(path, ('x',), 1, name, start, split) for path, name, start, split in (
    ('A', 'abc', 30.0, 'test'), ('B', 'abc_12', 7.0, 'test'), ('C', 'abc', 12.0, 'test'), ('D', '-d', 5.5, 'test'),
    ('E', 'e', 0.0, 'train'))]


@pytest.mark.parametrize('entry, paths', [
    (dict(video_id='abc'), 'AC'), (dict(video_id='abc_30'), 'A'), (dict(video_id='abc_000030'), 'A'),
    (dict(video_id='abc_30.000'), 'A'), (dict(video_id='abc_12'), 'B'), (dict(video_id='abc_000012'), 'C'),
    (dict(video_id='abc_12_7'), 'B'), (dict(video_id='-d_5.5', wav='abc.wav'), 'D'),
    (dict(wav='/data/eval/-d.flac'), 'D'), (dict(video_id='', wav='audio/abc_000030.wav'), 'A'),
    (dict(video_id=None, wav='abc_30.000.wav', labels='/m/x'), 'A')])
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
    ('\xff', 'format'), ('{"data": []}', 'none of its 0 entries'),
    ('{"data": [{"video_id": "e"}]}', 'none of its 1 entries'),
    (None, 'No such file')])
def test_malformed_retrieval_lists(tmp_path, content, reason):
    path = tmp_path / 'list.json'
    if content is not None:
        path.write_bytes(content.encode('latin-1'))
    with pytest.raises(UserError) as error:
        read_retrieval_list(path, CLIPS)
    assert str(error.value).startswith(f'--retrieval-list {path}') and reason in str(error.value)
