"""streams/catalogue.py: a run's options → its stream. No clip is opened."""
import json

import pytest

from clips import vggsound_folder
from config import DATASETS, Config, UserError
from folders import SMALL, audioset_folder, names_of
from streams import catalogue, common
from streams.catalogue import open_stream
from streams.prepare import advice


def options(**given):
    return Config(**{**vars(SMALL), **dict(dataset='shapes', cache='', clips_per_task=6, test_clips=3, min_silent=1,
                                           mask_ratio=0.5, patch_size=8, embed_dim=24, num_heads=3, avm_heads=6,
                                           rho_a=0.75, rho_v=0.75), **given})


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Options of --dataset vggsound and audioset: three tasks of one class each, another class, empty files"""
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))
    classes, video, audio = ('harp', 'dog', 'train', 'hail'), tmp_path / 'vggsound', tmp_path / 'audioset'
    video.mkdir()
    rows = [(f'{name}{n}', name, 'test' if n == 3 else 'train') for name in classes for n in range(4)]
    vggsound_folder(video, [f'v{clip},0,{name},{split}' for clip, name, split in rows])
    lists = {part: [f'a{clip}, 0, 10, "/m/{name}"' for clip, name, split in rows if split == part]
             for part in ('train', 'test')}
    mids = 'index,mid,display_name\n' + ''.join(f'{n},/m/{name},{name}\n' for n, name in enumerate(classes))
    audioset_folder(audio, lists['train'], lists['test'], mids, [f'a{clip}_000000.mp4' for clip, _, _ in rows])
    for clip, _, _ in rows:
        (video / 'video' / f'v{clip}_000000.mp4').touch()
    (tmp_path / 'tasks.csv').write_text('class,task\nharp,one\ndog,two\ntrain,three\n')
    shared = dict(tasks=str(tmp_path / 'tasks.csv'), cache=str(tmp_path))
    return (dict(dataset='vggsound', data=str(video), **shared), dict(dataset='audioset', data=str(audio), **shared))


def test_every_dataset_has_a_function():
    assert tuple(catalogue.DATASETS) == DATASETS


def test_open_stream_uses_every_option(both, tmp_path):
    stream = open_stream(options(order='oak,fir,elm,cedar,birch,ash'), 0)
    assert stream.names == ['oak', 'fir', 'elm', 'cedar', 'birch', 'ash'] and len(stream.train[0]) == 6
    assert stream.classes[0] == [kind.name for kind in stream.train[0].classes]
    of_vggsound, of_audioset = both
    stream = open_stream(options(pretrain_data=of_vggsound['data'], **of_audioset), 0)
    assert stream.names == ['one', 'two', 'three'] and stream.scanned and len(stream.initial) == 16
    assert len(stream.pretrain) == 4 * 3                                  # all of VGGSound's training clips
    stream = open_stream(options(pretrain_data=of_audioset['data'], clips_per_class=2, max_roll=7, order='shuffled',
                                 **of_vggsound), 0)
    assert {d.max_roll for d in (*stream.train, stream.pretrain)} == {7} and [len(d) for d in stream.train] == [2] * 3
    assert stream.names == ['two', 'one', 'three'] and (tmp_path / 'checked-clips.json').exists()
    assert len(stream.pretrain) == 3 + 3                                  # of AudioSet-20k, hail alone is in no task
    assert not open_stream(options(pretrain_steps=0, **of_vggsound), 0).scanned
    assert advice(stream.train) == []                                     # few clips: no need to prepare them
    for missing, of in (('vggsound.csv', of_audioset), ('class_labels_indices.csv', of_vggsound)):
        with pytest.raises(UserError, match=f'nowhere/{missing} is missing'):
            open_stream(options(pretrain_data='nowhere', **of), 0)


@pytest.mark.parametrize('which', [0, 1])
def test_the_retrieval_list_limits_the_retrieval_clips(both, tmp_path, which):
    """No clip of the last task is listed: then that task has nothing to retrieve."""
    path, letter = tmp_path / 'list.json', 'va'[which]
    path.write_text(json.dumps({'data': [dict(video_id=f'{letter}{name}') for name in ('harp3', 'dog3', 'elsewhere')]}))
    stream = open_stream(options(retrieval_list=str(path), **both[which]), 0)
    assert [names_of(d) for d in stream.test] == [[f'{letter}{name}3_000000.mp4'] for name in ('harp', 'dog')]
    assert stream.names == ['one', 'two'] and any('task three' in note and 'retrieval' in note for note in stream.notes)
    assert any('1 of 3 entries' in note for note in stream.notes)
    with pytest.raises(UserError, match='--retrieval-list'):
        open_stream(options(retrieval_list='nowhere', **both[which]), 0)
