"""streams/catalogue.py: a run's options → its stream, of what streams/shapes.py writes; whatever data set they name."""
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from folders import SMALL, names_of, written
from patches import UserError
from streams.audioset import audioset
from streams.catalogue import DATASETS, open_stream
from streams.vggsound import vggsound


def options(**given):
    return SimpleNamespace(**{**asdict(SMALL), **dict(
        dataset='shapes', data='', tasks='', order='', retrieval_list='', pretrain_data='', seed=0, clips_per_class=400,
        max_bad=0.1, max_roll=-1, data_seed=-1, cache='', clips_per_task=6, test_clips=3, min_silent=1, max_silent=1,
        method='er', batch_size=1, pretrain_batch_size=1, pretrain_steps=0), **given})


def test_open_stream_honours_every_option(written, tmp_path):
    stream = open_stream(options(order='oak,fir,elm,cedar,birch,ash'), 0)
    assert stream.names == ['oak', 'fir', 'elm', 'cedar', 'birch', 'ash'] and len(stream.train[0]) == 6
    assert stream.classes[0] == [kind.name for kind in stream.train[0].classes]
    audio, video = map(str, (written['audioset'], written['vggsound']))
    common = dict(order='shuffled', cache=str(tmp_path))
    of_audioset = dict(dataset='audioset', data=audio, tasks=f'{audio}/tasks.csv', **common)
    of_vggsound = dict(dataset='vggsound', data=video, tasks=f'{video}/tasks.csv', **common)
    stream = open_stream(options(pretrain_data=video, retrieval_list=f'{audio}/retrieval.json', **of_audioset), 0)
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir'] and len(stream.pretrain) == 30
    assert [d.labels[0][0] in classes for d, classes in zip(stream.test, stream.classes)] == [True] * 6
    stream = open_stream(options(pretrain_data=audio, clips_per_class=1, max_roll=7, **of_vggsound), 0)
    assert {d.max_roll for d in (*stream.train, stream.pretrain)} == {7}
    assert [len(d) for d in stream.train] == [3] * 6
    assert len(stream.pretrain) == 12                                     # of AudioSet's none has a label of a task
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir'] and (tmp_path / 'checked-clips.json').exists()
    with pytest.raises(UserError, match='--retrieval-list'):
        open_stream(options(retrieval_list='nowhere', **of_vggsound), 0)
    for missing, of in (('vggsound.csv', of_audioset), ('class_labels_indices.csv', of_vggsound)):
        with pytest.raises(UserError, match=f'nowhere/{missing} is missing'):
            open_stream(options(pretrain_data='nowhere', **of), 0)


def test_another_data_set_is_a_file_and_a_line(monkeypatch):
    """Any function (options, workers) → Stream."""
    asked = []
    mine = lambda cfg, workers: asked.append(workers) or DATASETS['shapes'](cfg, workers)
    monkeypatch.setitem(DATASETS, 'mine', mine)
    stream = open_stream(options(dataset='mine', order='shuffled'), 3)
    assert stream.names == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir']
    assert asked == [3]


def test_retrieval_list_limits_the_retrieval_clips_alone(written, tmp_path):
    for layout, read, ids in (('vggsound', vggsound, '{}_000000'), ('audioset', audioset, '{}')):
        folder, scan = written[layout], dict(cache=tmp_path / 'scan.json')
        whole = read(folder, SMALL, folder / 'tasks.csv', **scan)
        given = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=folder / 'retrieval.json', **scan)
        assert [names_of(d) for d in given.test] == [names_of(d) for d in whole.evaluate] and given.notes == whole.notes
        entries = json.loads((folder / 'retrieval.json').read_text())['data']
        entries = [e for e in entries if not e['video_id'].endswith('1')]
        chosen = [ids.format(f'{task}-test-00002') for task in whole.names] + ['elsewhere']
        (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(entries[0], video_id=name) for name in chosen]}))
        few = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=tmp_path / 'list.json', **scan)
        assert [len(d) for d in few.test] == [1] * 6 and all('-test-00002_' in names_of(d)[0] for d in few.test)
        assert [names_of(d) for d in few.evaluate] == [names_of(d) for d in whole.evaluate]
        assert [note for note in few.notes if note not in whole.notes] == [
            f'1 of 7 entries of {tmp_path / "list.json"} are no test clip here']
        chosen = chosen[1:]                                    # none of the first task's: nothing to retrieve there
        (tmp_path / 'list.json').write_text(json.dumps({'data': [dict(video_id=name) for name in chosen]}))
        five = read(folder, SMALL, folder / 'tasks.csv', retrieval_list=tmp_path / 'list.json', **scan)
        assert five.names == whole.names[1:] and 'task ash has no retrieval clips and is left out' in five.notes
