"""streams/vggsound.py: its list, right and wrong, where no clip is opened; its clips as a stream of tasks."""
import pytest

from clips import vggsound_folder
from folders import REAL, SMALL, folder, names_of
from patches import UserError
from streams import common
from streams.audioset import BALANCED, read_audioset
from streams.vggsound import read_vggsound, vggsound


# ---------------------------------------------------------------- the list

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


# ---------------------------------------------------------------- the stream

def test_stream(folder):
    stream = vggsound(folder, SMALL, folder / 'tasks.csv', clips_per_class=2)
    assert stream.names == ['music', 'pets'] and stream.bad == []
    assert len(stream.notes) == 1 and 'cats' in stream.notes[0] and 'test' in stream.notes[0]
    assert [names_of(d) for d in stream.train] == [['harp1_000007.mkv'], ['-dog1_000003.mp4', 'dog2_000014.webm']]
    assert [names_of(d) for d in stream.test] == [['harp2_000007.mp4'], ['dog4_000000.mp4']]
    assert stream.classes == [['playing harp'], ['dog barking']]
    assert [d.labels for d in stream.train] == [[('playing harp',)], [('dog barking',)] * 2]
    assert [names_of(d) for d in stream.evaluate] == [names_of(d) for d in stream.test]
    assert not stream.evaluate[0].augment
    assert names_of(stream.pretrain) == ['sea1_000001.mp4']       # the test clips of no task's classes are unused
    assert stream.train[0].augment and stream.pretrain.augment and not stream.test[0].augment
    assert stream.train[1].clips[1].labels == ('dog barking',) and stream.train[1].clips[1].line == 2
    assert stream.train[1][1, 0]['video'].shape == (2, 3, 32, 32)
    # under the paper's tasks, too; they have no class 'sea, waves'
    default = vggsound(folder, SMALL)
    assert 'music' in default.names and len(default.notes) >= 5


def test_no_task_left(folder):
    (folder / 'tasks.csv').write_text('class,task\ncat purring,cats\n')
    with pytest.raises(UserError, match='no task has both'):
        vggsound(folder, SMALL, folder / 'tasks.csv')


def test_audioset_20k_joins_vggsounds_other_classes(tmp_path, monkeypatch):
    """Of the balanced clips those that have no label named as a class of the tasks, in either case, and are no test
    clip."""
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))      # what they show is no matter
    ours, theirs = tmp_path / 'vggsound', tmp_path / 'audioset'
    ours.mkdir(), (theirs / 'video').mkdir(parents=True)
    vggsound_folder(ours, ['a,1,helicopter,train', 'b,2,helicopter,test', 'c,3,hail,train', 'd,4,hail,test'])
    (tmp_path / 'tasks.csv').write_text('class,task\nhelicopter,vehicle\n')
    (theirs / 'class_labels_indices.csv').write_text(
        'index,mid,display_name\n0,/m/h,Helicopter\n1,/m/r,"Rotor, wing"\n')
    (theirs / 'balanced_train_segments.csv').write_text(
        'a1, 0.0, 9.0, "/m/h"\na2, 0.0, 9.0, "/m/r"\na3, 0.0, 9.0, "/m/r,/m/h"\nb, 0.0, 9.0, "/m/r"\n'
        'a4, 0.0, 9.0, "/m/r"\n')
    (theirs / 'unbalanced_train_segments.csv').write_text('u1, 0.0, 9.0, "/m/r"\n')
    pretrain = theirs, read_audioset(theirs, [BALANCED])
    stream = vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain)
    assert names_of(stream.pretrain) == ['c_000003.mp4', 'a2_000000.mp4', 'a4_000000.mp4']
    assert stream.pretrain.labels == [('hail',), ('Rotor, wing',), ('Rotor, wing',)] and stream.names == ['vehicle']
    assert names_of(vggsound(ours, SMALL, tmp_path / 'tasks.csv').pretrain) == ['c_000003.mp4']
    # these clips are tested, too, and apart: bad ones among them do not hide in the larger set
    monkeypatch.setattr(common, 'check_clip', lambda path, _: ('file missing' if 'a2' in path else None, True))
    with pytest.raises(UserError, match=r'1 of 2 clips \(50%\) in .*audioset'):
        vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain)
    stream = vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain, max_bad=0.5)
    assert stream.bad == ['a2_000000.mp4: file missing']


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
