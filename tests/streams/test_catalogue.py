"""streams/catalogue.py, vggsound.py and audioset.py: a run's options → its stream of tasks."""
import json

import pytest

from clips import vggsound_folder
from config import DATASETS, UserError
from folders import audioset_folder, folder, names_of, options
from streams import catalogue, common
from streams.catalogue import open_stream

CLASSES = ('harp', 'dog', 'train', 'hail')             # the last one is in no task


def test_every_dataset_has_a_function():
    assert tuple(catalogue.DATASETS) == DATASETS


def test_vggsound(folder):
    given = dict(dataset='vggsound', tasks=str(folder / 'tasks.csv'), clips_per_class=2)
    stream = open_stream(options(folder, **given), 0)
    assert stream.names == ['music', 'pets'] and stream.bad == []
    assert len(stream.notes) == 1 and 'cats' in stream.notes[0] and 'test' in stream.notes[0]
    assert [names_of(d) for d in stream.train] == [['harp1_000007.mkv'], ['-dog1_000003.mp4', 'dog2_000014.webm']]
    assert [names_of(d) for d in stream.retrieval] == [['harp2_000007.mp4'], ['dog4_000000.mp4']]
    assert stream.classes == [['playing harp'], ['dog barking']]
    assert [d.labels for d in stream.train] == [[('playing harp',)], [('dog barking',)] * 2]
    assert [names_of(d) for d in stream.test] == [names_of(d) for d in stream.retrieval]
    assert names_of(stream.pretrain) == ['sea1_000001.mp4']       # test clips of classes of no task are unused
    assert stream.train[0].augment and stream.pretrain.augment
    assert not stream.retrieval[0].augment and not stream.test[0].augment
    assert stream.train[1][1, 0]['video'].shape == (2, 3, 32, 32)
    default = open_stream(options(folder, dataset='vggsound'), 0)  # the paper's tasks have no class 'sea, waves'
    assert 'music' in default.names and len(default.notes) >= 5
    # clips that YouTube has lost do not count
    (folder / 'video' / '-dog1_000003.mp4').unlink()
    stream = open_stream(options(folder, max_bad=0.2, **given), 0)
    assert names_of(stream.train[1]) == ['dog2_000014.webm', 'dog3_000000.mp4']
    # cats have no test clips
    (folder / 'tasks.csv').write_text('class,task\ncat purring,cats\n')
    with pytest.raises(UserError, match='no task has both'):
        open_stream(options(folder, max_bad=0.2, **given), 0)


# --------------------------------------------------------------------- lists of clips that nobody opens

@pytest.fixture
def unopened(monkeypatch):
    """Every clip passes the test."""
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))


def test_audioset(tmp_path, unopened):
    """Clips with labels of two tasks are left out. The others keep the labels of their task."""
    folder = audioset_folder(
        tmp_path, ['a, 0, 9, "/m/dog"', 'b, 0, 9, "/m/waves,/m/dog"', 'c, 0, 9, "/m/waves"', 'd, 0, 9, "/t/cat"'],
        ['e, 0, 9, "/m/dog,/m/wolf,/t/cat"', 'f, 0, 9, "/m/waves"'],
        mids='index,mid,display_name\n0,/m/dog,Dog\n1,/m/waves,"Waves, surf"\n2,/t/cat,Cat\n3,/m/wolf,Wolf\n',
        videos=[f'{name}_000000.mp4' for name in 'abcdef'])
    (folder / 'tasks.csv').write_text('class,task\nDog,pets\n"Waves, surf",sea\nWolf,pets\n')
    stream = open_stream(options(folder, dataset='audioset', tasks=str(folder / 'tasks.csv')), 0)
    assert stream.names == ['pets', 'sea'] and stream.classes == [['Dog', 'Wolf'], ['Waves, surf']]
    assert stream.notes == ['1 clips with labels of several tasks are left out'] and len(stream.pretrain) == 0
    assert [d.labels for d in stream.train] == [[('Dog',)], [('Waves, surf',)]]
    assert [d.labels for d in stream.test] == [[('Dog', 'Wolf')], [('Waves, surf',)]]
    assert [names_of(d) for d in stream.retrieval] == [['e_000000.mp4'], ['f_000000.mp4']]


@pytest.fixture
def both(tmp_path, unopened):
    """Options of --dataset vggsound and audioset: of each class three training clips and one for testing, empty files.
    Each data set also trains on a clip that the other one tests; AudioSet on one of two classes."""
    video, audio = tmp_path / 'vggsound', tmp_path / 'audioset'
    video.mkdir()
    rows = [(f'{name}{n}', name, 'test' if n == 3 else 'train') for name in CLASSES for n in range(4)]
    vggsound_folder(video, [*(f'v{clip},0,{name},{split}' for clip, name, split in rows), 'aharp3,0,hail,train'])
    lists = {part: [f'a{clip}, 0, 10, "/m/{name}"' for clip, name, split in rows if split == part]
             for part in ('train', 'test')}
    lists['train'] += ['vharp3, 0, 10, "/m/hail"', 'two, 0, 10, "/m/hail,/m/dog"']
    mids = 'index,mid,display_name\n' + ''.join(f'{n},/m/{name},{name.title()}\n' for n, name in enumerate(CLASSES))
    audioset_folder(audio, lists['train'], lists['test'], mids, ['vharp3_000000.mp4', 'two_000000.mp4'])
    (video / 'video' / 'aharp3_000000.mp4').touch()
    for clip, _, _ in rows:
        (video / 'video' / f'v{clip}_000000.mp4').touch()
        (audio / 'video' / f'a{clip}_000000.mp4').touch()
    found = []
    for name, data, case in (('vggsound', video, str), ('audioset', audio, str.title)):
        tasks = tmp_path / f'{name}.csv'
        tasks.write_text(f'class,task\n{case("harp")},one\n{case("dog")},two\n{case("train")},three\n')
        found.append(dict(folder=data, dataset=name, tasks=str(tasks), cache=str(tmp_path / 'cache')))
    return found


def test_open_stream_uses_every_option(both, tmp_path):
    order = 'oak,fir,elm,cedar,birch,ash'
    stream = open_stream(options('', dataset='shapes', cache='', clips_per_task=6, order=order), 0)
    assert stream.names == ['oak', 'fir', 'elm', 'cedar', 'birch', 'ash'] and len(stream.train[0]) == 6
    assert stream.classes[0] == [kind.name for kind in stream.train[0].classes]
    stream = open_stream(options(clips_per_class=2, max_roll=7, order='shuffled', **both[0]), 0)
    assert {d.max_roll for d in (*stream.train, stream.pretrain)} == {7} and [len(d) for d in stream.train] == [2] * 3
    assert stream.names == ['two', 'one', 'three'] and (tmp_path / 'cache' / 'checked-clips.json').exists()


def test_pretrain_data(both, tmp_path, monkeypatch):
    """All of VGGSound's training clips before AudioSet. AudioSet's balanced clips before VGGSound, without those that
    have the name of a class of the tasks. Never a test clip of the other data set."""
    of_vggsound, of_audioset = both
    stream = open_stream(options(pretrain_data=str(of_vggsound['folder']), **of_audioset), 0)
    assert stream.names == ['one', 'two', 'three'] and len(stream.pretrain_digest) == 16 and stream.pretrain.augment
    assert names_of(stream.pretrain) == [f'v{name}{n}_000000.mp4' for name in CLASSES for n in range(3)]
    options_of = dict(pretrain_data=str(of_audioset['folder']), **of_vggsound)
    own = [f'vhail{n}_000000.mp4' for n in range(3)] + ['aharp3_000000.mp4']
    stream = open_stream(options(**options_of), 0)
    assert names_of(stream.pretrain) == own + [f'ahail{n}_000000.mp4' for n in range(3)]
    assert names_of(open_stream(options(**of_vggsound), 0).pretrain) == own
    for missing, of in (('vggsound.csv', of_audioset), ('class_labels_indices.csv', of_vggsound)):
        with pytest.raises(UserError, match=f'nowhere/{missing} is missing'):
            open_stream(options(pretrain_data='nowhere', **of), 0)
    # bad clips are counted apart from the larger set; without an initial pre-training, nothing is tested
    monkeypatch.setattr(common, 'check_clip', lambda path, _: ('silent audio' if 'ahail0' in path else None, True))
    options_of['cache'] = str(tmp_path / 'other')
    with pytest.raises(UserError, match=r'1 of 3 clips \(33%\) in .*audioset'):
        open_stream(options(**options_of), 0)
    assert open_stream(options(max_bad=0.5, **options_of), 0).bad == ['video/ahail0_000000.mp4: silent audio']
    stream = open_stream(options(pretrain_steps=0, **options_of), 0)
    assert stream.bad == [] and len(stream.pretrain) == 0


@pytest.mark.parametrize('which', [0, 1])
def test_the_retrieval_list_limits_the_retrieval_clips(both, tmp_path, which):
    """No clip of the last task is listed: then that task has nothing to retrieve."""
    path, letter = tmp_path / 'list.json', 'va'[which]
    path.write_text(json.dumps({'data': [dict(video_id=f'{letter}{name}') for name in ('harp3', 'dog3', 'elsewhere')]}))
    stream = open_stream(options(retrieval_list=str(path), **both[which]), 0)
    assert [names_of(d) for d in stream.retrieval] == [[f'{letter}{name}3_000000.mp4'] for name in ('harp', 'dog')]
    assert stream.names == ['one', 'two'] and any('task three' in note and 'retrieval' in note for note in stream.notes)
    assert any('1 of 3 entries' in note for note in stream.notes)
