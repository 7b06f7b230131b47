"""streams/catalogue.py: a run's options → its stream, from the files that streams/shapes.py writes."""
import json

import pytest

from config import DATASETS, Config, UserError
from folders import SMALL, names_of, written
from streams import catalogue
from streams.audioset import audioset
from streams.catalogue import open_stream
from streams.prepare import advice
from streams.vggsound import vggsound


def options(**given):
    return Config(**{**vars(SMALL), **dict(dataset='shapes', cache='', clips_per_task=6, test_clips=3, min_silent=1,
                                           mask_ratio=0.5, patch_size=8, embed_dim=24, num_heads=3, avm_heads=6,
                                           rho_a=0.75, rho_v=0.75), **given})


def test_every_dataset_has_a_function():
    assert tuple(catalogue.DATASETS) == DATASETS


def test_open_stream_uses_every_option(written, tmp_path):
    stream = open_stream(options(order='oak,fir,elm,cedar,birch,ash'), 0)
    assert stream.names == ['oak', 'fir', 'elm', 'cedar', 'birch', 'ash'] and len(stream.train[0]) == 6
    assert stream.classes[0] == [kind.name for kind in stream.train[0].classes]
    audio, video = map(str, (written['audioset'], written['vggsound']))
    common = dict(order='shuffled', cache=str(tmp_path))
    of_audioset = dict(dataset='audioset', data=audio, tasks=f'{audio}/tasks.csv', **common)
    of_vggsound = dict(dataset='vggsound', data=video, tasks=f'{video}/tasks.csv', **common)
    stream = open_stream(options(pretrain_data=video, retrieval_list=f'{audio}/retrieval.json', **of_audioset), 0)
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir'] and len(stream.pretrain) == 30
    assert all(d.labels[0][0] in classes for d, classes in zip(stream.test, stream.classes))
    stream = open_stream(options(pretrain_data=audio, clips_per_class=1, max_roll=7, **of_vggsound), 0)
    assert {d.max_roll for d in (*stream.train, stream.pretrain)} == {7}
    assert [len(d) for d in stream.train] == [3] * 6
    assert len(stream.pretrain) == 12                                     # no clip of AudioSet has a label of a task
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir'] and (tmp_path / 'checked-clips.json').exists()
    assert advice(stream.train) == []                                     # few clips: no need to prepare them
    with pytest.raises(UserError, match='--retrieval-list'):
        open_stream(options(retrieval_list='nowhere', **of_vggsound), 0)
    for missing, of in (('vggsound.csv', of_audioset), ('class_labels_indices.csv', of_vggsound)):
        with pytest.raises(UserError, match=f'nowhere/{missing} is missing'):
            open_stream(options(pretrain_data='nowhere', **of), 0)


@pytest.mark.parametrize('layout, read, name', [('vggsound', vggsound, '{}_000000'), ('audioset', audioset, '{}')])
def test_the_retrieval_list_limits_the_retrieval_clips(written, tmp_path, layout, read, name):
    folder, scan = written[layout], dict(cache=tmp_path / 'scan.json')
    whole = read(folder, SMALL, folder / 'tasks.csv', **scan)
    given = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=folder / 'retrieval.json', **scan)
    assert [names_of(d) for d in given.test] == [names_of(d) for d in whole.evaluate] and given.notes == whole.notes

    # one clip per task, but none of the first task: then that task has nothing to retrieve
    ids = [name.format(f'{task}-test-00002') for task in whole.names] + ['elsewhere']
    (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(video_id=one) for one in ids]}))
    few = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=tmp_path / 'list.json', **scan)
    assert [len(d) for d in few.test] == [1] * 6 and all('-test-00002_' in names_of(d)[0] for d in few.test)
    assert [names_of(d) for d in few.evaluate] == [names_of(d) for d in whole.evaluate]
    assert any('1 of 7 entries' in note for note in few.notes)
    (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(video_id=one) for one in ids[1:]]}))
    five = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=tmp_path / 'list.json', **scan)
    assert five.names == whole.names[1:] and any('task ash' in note and 'retrieval' in note for note in five.notes)
