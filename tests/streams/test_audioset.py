"""streams/audioset.py: its clips as a stream of tasks, alone and after VGGSound. No clip is opened."""
import pytest

from clips import vggsound_folder
from config import UserError
from folders import SMALL, audioset_folder, names_of
from streams import common
from streams.audioset import audioset
from streams.vggsound import read_vggsound


@pytest.fixture(autouse=True)
def all_clips_are_usable(monkeypatch):
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))


def test_stream(tmp_path):
    """Clips with labels of two tasks are left out. The others keep the labels of their task."""
    folder = audioset_folder(
        tmp_path, ['a, 0, 9, "/m/dog"', 'b, 0, 9, "/m/waves,/m/dog"', 'c, 0, 9, "/m/waves"', 'd, 0, 9, "/t/cat"'],
        ['e, 0, 9, "/m/dog,/m/wolf,/t/cat"', 'f, 0, 9, "/m/waves"'],
        mids='index,mid,display_name\n0,/m/dog,Dog\n1,/m/waves,"Waves, surf"\n2,/t/cat,Cat\n3,/m/wolf,Wolf\n',
        videos=[f'{name}_000000.mp4' for name in 'abcdef'])
    (folder / 'tasks.csv').write_text('class,task\nDog,pets\n"Waves, surf",sea\nWolf,pets\n')
    stream = audioset(folder, SMALL, folder / 'tasks.csv')
    assert stream.names == ['pets', 'sea'] and stream.classes == [['Dog', 'Wolf'], ['Waves, surf']]
    assert stream.notes == ['1 clips with labels of several tasks are left out'] and len(stream.pretrain) == 0
    assert [d.labels for d in stream.train] == [[('Dog',)], [('Waves, surf',)]]
    assert [d.labels for d in stream.evaluate] == [[('Dog', 'Wolf')], [('Waves, surf',)]]
    assert [names_of(d) for d in stream.test] == [['e_000000.mp4'], ['f_000000.mp4']]
    assert stream.train[0].augment and not stream.test[0].augment and not stream.evaluate[0].augment
    (folder / 'tasks.csv').write_text('class,task\nDogs,pets\n')
    with pytest.raises(UserError, match="tasks.csv:2: unknown class 'Dogs'; did you mean 'Dog'"):
        audioset(folder, SMALL, folder / 'tasks.csv')


def test_pretraining_on_all_of_vggsound_but_no_test_clip(tmp_path):
    """App. B: also on classes that are in tasks."""
    ours, theirs = audioset_folder(tmp_path / 'audioset', ['a, 1.0, 9.0, "/m/h"'], ['b, 1.0, 9.0, "/m/h"'],
                                   mids='index,mid,display_name\n0,/m/h,Helicopter\n',
                                   videos=['a_000001.mp4', 'b_000001.mp4']), tmp_path / 'vggsound'
    theirs.mkdir()
    (tmp_path / 'tasks.csv').write_text('class,task\nHelicopter,vehicle\n')
    vggsound_folder(theirs, ['a,1,helicopter,train', 'b,2,helicopter,train', 'c,3,hail,train', 'd,4,hail,test'])
    for name in ('a_000001.mp4', 'c_000003.mp4'):
        (theirs / 'video' / name).touch()
    stream = audioset(ours, SMALL, tmp_path / 'tasks.csv', pretrain=(theirs, read_vggsound(theirs)))
    assert names_of(stream.pretrain) == ['a_000001.mp4', 'c_000003.mp4'] and stream.pretrain.augment
    assert names_of(stream.train[0]) == ['a_000001.mp4']
