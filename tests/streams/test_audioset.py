"""streams/audioset.py: its clips as a stream of tasks, alone and after VGGSound."""
import csv

import pytest

from clips import vggsound_folder
from config import UserError
from folders import SMALL, audioset_folder, names_of, written
from streams import common
from streams.audioset import audioset
from streams.vggsound import read_vggsound


def rows_of(path):
    return list(csv.reader(path.open(), skipinitialspace=True))


def test_stream(written):
    """Counted from the files: two clips are of two tasks; the others keep the labels of their task."""
    folder = written['audioset']
    stream = audioset(folder, SMALL, folder / 'tasks.csv')
    assert stream.names == ['ash', 'birch', 'cedar', 'elm', 'fir', 'oak'] and stream.bad == []
    assert [len(d) for d in stream.train] == [3, 4, 4, 4, 4, 4]
    assert [len(d) for d in stream.evaluate] == [3, 2, 3, 3, 3, 3]
    assert stream.notes == ['2 clips with labels of several tasks are left out'] and len(stream.pretrain) == 0
    class_of = {mid: name for _, mid, name in rows_of(folder / 'class_labels_indices.csv')}
    task_of = dict(rows_of(folder / 'tasks.csv'))
    assert stream.classes == [[c for c, task in task_of.items() if task == name] for name in stream.names]
    expected, several, foreign = {}, 0, 0
    for table in ('balanced_train_segments.csv', 'eval_segments.csv'):
        for name, start, _, mids in rows_of(folder / table)[3:]:
            labels = [class_of[mid] for mid in mids.split(',')]
            tasks = {task_of[label] for label in labels if label in task_of}
            if len(tasks) == 1:
                own = tuple(label for label in labels if label in task_of)
                expected[f'{name}_000030.mp4'] = tasks.pop(), own
                several += len(own) > 1
                foreign += len(labels) > len(own)
    found = {name: (task, labels) for part in (stream.train, stream.evaluate) for task, d in zip(stream.names, part)
             for name, labels in zip(names_of(d), d.labels)}
    assert found == expected and several >= 3 and foreign >= 3
    assert stream.train[0].augment and not stream.test[0].augment and not stream.evaluate[0].augment
    assert stream.train[1][0, 0]['video'].shape == (2, 3, 32, 32)


def test_pretraining_on_all_of_vggsound(written):
    """App. B: also on its classes that are in tasks."""
    folder, theirs = written['audioset'], written['vggsound']
    stream = audioset(folder, SMALL, folder / 'tasks.csv', pretrain=(theirs, read_vggsound(theirs)))
    assert len(stream.pretrain) == 6 + 6 * 4 and stream.pretrain.augment
    assert all('-train-' in name for name in names_of(stream.pretrain))
    assert stream.pretrain[0, 1]['audio'].shape == (64, 32)


def test_no_test_clip_is_pretrained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))
    ours, theirs = tmp_path / 'audioset', tmp_path / 'vggsound'
    ours.mkdir(), theirs.mkdir()
    audioset_folder(ours, ['a, 1.0, 9.0, "/m/h"'], ['b, 1.0, 9.0, "/m/h"'],
                    mids='index,mid,display_name\n0,/m/h,Helicopter\n')
    (tmp_path / 'tasks.csv').write_text('class,task\nHelicopter,vehicle\n')
    vggsound_folder(theirs, ['a,1,helicopter,train', 'b,2,helicopter,train', 'c,3,hail,train', 'd,4,hail,test'])
    for path in (ours / 'video/a_000001.mp4', ours / 'video/b_000001.mp4', theirs / 'video/a_000001.mp4',
                 theirs / 'video/c_000003.mp4'):
        path.touch()
    stream = audioset(ours, SMALL, tmp_path / 'tasks.csv', pretrain=(theirs, read_vggsound(theirs)))
    assert names_of(stream.pretrain) == ['a_000001.mp4', 'c_000003.mp4']
    assert names_of(stream.train[0]) == ['a_000001.mp4']


def test_classes_of_tasks_must_be_audiosets(written):
    with pytest.raises(UserError, match="audioset.csv:2: unknown class 'Whoop'"):
        audioset(written['audioset'], SMALL)
