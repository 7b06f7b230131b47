"""streams/vggsound.py: its clips as a stream of tasks, alone, with AudioSet-20k, and real ones."""
import pytest

from clips import vggsound_folder
from config import UserError
from folders import REAL, SMALL, audioset_folder, folder, names_of
from streams import common
from streams.audioset import BALANCED, read_audioset
from streams.vggsound import vggsound


def test_stream(folder):
    stream = vggsound(folder, SMALL, folder / 'tasks.csv', clips_per_class=2)
    assert stream.names == ['music', 'pets'] and stream.bad == []
    assert len(stream.notes) == 1 and 'cats' in stream.notes[0] and 'test' in stream.notes[0]
    assert [names_of(d) for d in stream.train] == [['harp1_000007.mkv'], ['-dog1_000003.mp4', 'dog2_000014.webm']]
    assert [names_of(d) for d in stream.test] == [['harp2_000007.mp4'], ['dog4_000000.mp4']]
    assert stream.classes == [['playing harp'], ['dog barking']]
    assert [d.labels for d in stream.train] == [[('playing harp',)], [('dog barking',)] * 2]
    assert [names_of(d) for d in stream.evaluate] == [names_of(d) for d in stream.test]
    assert names_of(stream.pretrain) == ['sea1_000001.mp4']       # test clips of classes of no task are unused
    assert stream.train[0].augment and stream.pretrain.augment
    assert not stream.test[0].augment and not stream.evaluate[0].augment
    assert stream.train[1][1, 0]['video'].shape == (2, 3, 32, 32)
    default = vggsound(folder, SMALL)                              # the paper's tasks have no class 'sea, waves'
    assert 'music' in default.names and len(default.notes) >= 5


def test_lost_clips_do_not_count(folder):
    """The first two training clips of a class that exist"""
    (folder / 'video' / '-dog1_000003.mp4').unlink()
    stream = vggsound(folder, SMALL, folder / 'tasks.csv', clips_per_class=2, max_bad=0.2)
    assert names_of(stream.train[1]) == ['dog2_000014.webm', 'dog3_000000.mp4']


def test_no_task_left(folder):
    (folder / 'tasks.csv').write_text('class,task\ncat purring,cats\n')
    with pytest.raises(UserError, match='no task has both'):
        vggsound(folder, SMALL, folder / 'tasks.csv')


def test_audioset_20k_joins_the_initial_pretraining(tmp_path, monkeypatch):
    """Its balanced clips, without those that have the name of a class of the tasks, and without test clips."""
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))
    ours, theirs = tmp_path / 'vggsound', tmp_path / 'audioset'
    ours.mkdir(), theirs.mkdir()
    vggsound_folder(ours, ['a,1,helicopter,train', 'b,2,helicopter,test', 'c,3,hail,train', 'd,4,hail,test'])
    (tmp_path / 'tasks.csv').write_text('class,task\nhelicopter,vehicle\n')
    audioset_folder(theirs, ['a1, 0.0, 9.0, "/m/h"', 'a2, 0.0, 9.0, "/m/r"', 'a3, 0.0, 9.0, "/m/r,/m/h"',
                             'b, 0.0, 9.0, "/m/r"', 'a4, 0.0, 9.0, "/m/r"'],
                    mids='index,mid,display_name\n0,/m/h,Helicopter\n1,/m/r,"Rotor, wing"\n')
    for folder, names in ((ours, ('a_000001', 'b_000002', 'c_000003')), (theirs, ('a2_000000', 'a4_000000'))):
        for name in names:
            (folder / 'video' / f'{name}.mp4').touch()
    pretrain = theirs, read_audioset(theirs, [BALANCED])
    stream = vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain)
    assert names_of(stream.pretrain) == ['c_000003.mp4', 'a2_000000.mp4', 'a4_000000.mp4']
    assert stream.pretrain.labels == [('hail',), ('Rotor, wing',), ('Rotor, wing',)] and stream.names == ['vehicle']
    assert names_of(vggsound(ours, SMALL, tmp_path / 'tasks.csv').pretrain) == ['c_000003.mp4']
    # they are counted apart from the larger set when bad clips are refused
    monkeypatch.setattr(common, 'check_clip', lambda path, _: ('silent audio' if 'a2' in path else None, True))
    with pytest.raises(UserError, match=r'1 of 2 clips \(50%\) in .*audioset'):
        vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain)
    stream = vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain, max_bad=0.5)
    assert stream.bad == ['a2_000000.mp4: silent audio']
    # without an initial pre-training, they are not tested
    stream = vggsound(ours, SMALL, tmp_path / 'tasks.csv', pretrain=pretrain, pretrained=True)
    assert stream.bad == [] and not stream.scanned


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
