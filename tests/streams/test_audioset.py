"""streams/audioset.py: its lists, right and wrong, where no clip is opened; its clips as a stream of tasks."""
import csv

import pytest

from clips import vggsound_folder
from folders import COMMENTS, SMALL, audioset_folder, names_of, written
from patches import UserError
from streams import common
from streams.audioset import audioset, read_audioset, read_mids, train_tables
from streams.common import Clip
from streams.vggsound import read_vggsound


# ---------------------------------------------------------------- the lists

def test_audioset_rows_and_the_names_of_its_files(tmp_path):
    """Downloaders name the files in three ways; the first is expected where there is none."""
    folder = audioset_folder(
        tmp_path, ['-a, 30.000, 40.000, "/m/dog,/m/waves"', 'b_1, 0.000, 10.000, "/t/cat"',
                   'c,5.5,15.5,"/m/dog, /m/dog"', 'd, 7.000, 9.020, "/m/waves"'],
        ['e, 1.000, 11.000, "/m/dog"'],
        videos=['-a_000030.webm', 'b_1_0_10000.mkv', 'c.mp4', 'c_5500_15500.avi', 'e.mp4'])
    clips = read_audioset(folder, [*train_tables(folder), 'eval_segments.csv'])
    video = folder / 'video'
    assert clips == [
        Clip(str(video / '-a_000030.webm'), ('Dog', 'Waves, surf'), 4, '-a', 30.0, 'train', 10.0),
        Clip(str(video / 'b_1_0_10000.mkv'), ('Cat',), 5, 'b_1', 0.0, 'train', 10.0),
        Clip(str(video / 'c_5500_15500.avi'), ('Dog',), 6, 'c', 5.5, 'train', 10.0),
        Clip(str(video / 'd_000007.mp4'), ('Waves, surf',), 7, 'd', 7.0, 'train', 9.02 - 7),
        Clip(str(video / 'e.mp4'), ('Dog',), 4, 'e', 1.0, 'test', 10.0)]
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


@pytest.mark.parametrize('lacks', [
    'class_labels_indices.csv', 'balanced_train_segments.csv', 'eval_segments.csv', 'video'])
def test_missing_audioset_says_what_to_download(tmp_path, lacks):
    folder = audioset_folder(tmp_path, [])
    (folder / lacks).rmdir() if lacks == 'video' else (folder / lacks).unlink()
    with pytest.raises(UserError) as error:
        read_audioset(folder, [*train_tables(folder), 'eval_segments.csv'])
    for word in (f'{folder / lacks} is missing', 'research.google.com/audioset', '<id>_<start ms>_<end ms>'):
        assert word in str(error.value)


# ---------------------------------------------------------------- the stream

def rows_of(path):
    return list(csv.reader(path.open(), skipinitialspace=True))


def test_audioset_stream(written):
    """Counted by hand from the files: two clips are of two tasks, the others keep the labels of their one task."""
    folder = written['audioset']
    stream = audioset(folder, SMALL, folder / 'tasks.csv')
    assert stream.names == ['ash', 'birch', 'cedar', 'elm', 'fir', 'oak'] and stream.bad == []
    assert [len(d) for d in stream.train] == [3, 4, 4, 4, 4, 4]
    assert [len(d) for d in stream.evaluate] == [3, 2, 3, 3, 3, 3]
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
    """App. B: also from the classes that are in tasks."""
    folder = written['audioset']
    theirs = written['vggsound']
    stream = audioset(folder, SMALL, folder / 'tasks.csv', pretrain=(theirs, read_vggsound(theirs)))
    assert len(stream.pretrain) == 6 + 6 * 4 and stream.pretrain.augment
    assert all('-train-' in name for name in names_of(stream.pretrain))
    assert stream.pretrain[0, 1]['audio'].shape == (64, 32)


def test_audioset_leaves_vggsounds_copies_of_its_test_clips_out(tmp_path, monkeypatch):
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))
    ours, theirs = tmp_path / 'audioset', tmp_path / 'vggsound'
    (ours / 'video').mkdir(parents=True), theirs.mkdir()
    (ours / 'class_labels_indices.csv').write_text('index,mid,display_name\n0,/m/h,Helicopter\n')
    (ours / 'unbalanced_train_segments.csv').write_text('a, 1.0, 9.0, "/m/h"\n')
    (ours / 'eval_segments.csv').write_text('b, 1.0, 9.0, "/m/h"\n')
    (tmp_path / 'tasks.csv').write_text('class,task\nHelicopter,vehicle\n')
    vggsound_folder(theirs, ['a,1,helicopter,train', 'b,2,helicopter,train', 'c,3,hail,train', 'd,4,hail,test'])
    stream = audioset(ours, SMALL, tmp_path / 'tasks.csv', pretrain=(theirs, read_vggsound(theirs)))
    assert names_of(stream.pretrain) == ['a_000001.mp4', 'c_000003.mp4']
    assert names_of(stream.train[0]) == ['a_000001.mp4']


def test_audioset_classes_of_tasks_must_be_its_own(written):
    folder = written['audioset']
    with pytest.raises(UserError, match="audioset.csv:2: unknown class 'Whoop'"):
        audioset(folder, SMALL)
