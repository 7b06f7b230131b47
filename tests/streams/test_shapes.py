"""streams/shapes.py: the built-in stream, and its command line."""
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from folders import SMALL
from patches import SIZES, Sizes
from streams import scenes, shapes


@pytest.fixture(scope='module')
def small():
    return Sizes(**SIZES['small'])


@pytest.fixture(scope='module')
def stream(small):
    return shapes.stream(small, seed=3)


def test_classes_are_distinct_and_tasks_disjoint(stream):
    kinds = scenes.kinds()
    assert len({k.name for k in kinds}) == len({k.voice for k in kinds}) == 36
    used = [kind for dataset in [stream.pretrain, *stream.train] for kind in dataset.classes]
    assert len(used) == len(set(used)) == 36
    assert [d.classes for d in stream.train] == [d.classes for d in stream.test]


def test_labels_are_the_sounding_objects(stream):
    for dataset, classes in zip(stream.train, stream.classes):
        assert len(dataset.labels) == len(dataset)
        assert {name for names in dataset.labels for name in names} == set(classes)
        assert all(dataset.labels[i] == (dataset.scene(i).tracks[0].kind.name,) for i in range(4))
    assert stream.evaluate == stream.test and [d.classes for d in stream.evaluate] == [d.classes for d in stream.train]


def test_same_seed_same_clip_and_test_clips_are_others(stream, small):
    again = shapes.stream(small, seed=3)
    for part in ('train', 'test'):
        first, second = getattr(stream, part)[1][4, 0], getattr(again, part)[1][4, 9]
        assert torch.equal(first['audio'], second['audio']) and torch.equal(first['video'], second['video'])
    assert not torch.equal(stream.train[1][4, 0]['video'], stream.test[1][4, 0]['video'])
    assert not torch.equal(shapes.stream(small, seed=4).train[1][4, 0]['video'], stream.train[1][4, 0]['video'])


def test_shapes_and_ranges(stream, small):
    item = stream.train[0][0, 0]
    assert item['audio'].shape == (256, 64) and item['audio'].dtype == torch.float32
    assert item['video'].shape == (2, 3, 96, 96) and item['video'].dtype == torch.uint8
    a, v = scenes.truth(stream.train[0].scene(0), small)
    assert a.shape == (small.num_patches_a,) and v.shape == (small.num_patches_v,)


def test_the_command_line_writes_files(tmp_path):
    """Its words are a promise to users: `python -m streams.shapes --out DIR …`."""
    words = f'--out {tmp_path} --layout ave --train 1 --test 1 --pretrain 1 --size 32 --seed 2'.split()
    done = subprocess.run([sys.executable, '-m', 'streams.shapes', *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f'python eval.py RUN --task ave --data {tmp_path}\n'
    assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr
    assert len(list((tmp_path / 'AVE').glob('*.mp4'))) == 6 * 3


# ----------------------------------------------------------------------------- clips that are kept

def drawn_once(monkeypatch):
    """From here on, how often a clip is drawn → a list that grows"""
    render, drawn = shapes.render, []
    monkeypatch.setattr(shapes, 'render', lambda scene, sizes: drawn.append(scene.seed) or render(scene, sizes))
    return drawn


def clips_of(stream, number=4):
    return [dataset[index, 0] for dataset in (stream.train[1], stream.test[2]) for index in range(number)]


def alike(one, other):
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other) for name in ('audio', 'video'))


def test_clips_are_drawn_once_for_all_runs(tmp_path, monkeypatch):
    drawn = drawn_once(monkeypatch)
    expected = clips_of(shapes.stream(SMALL, 3))
    assert len(drawn) == 8
    both = [shapes.stream(SMALL, 3, folder=tmp_path) for _ in range(2)]          # side by side
    for first, second in ((0, 1), (1, 0)):
        assert alike(clips_of(both[first], 2), clips_of(both[second], 2))
    assert len(drawn) == 12 and alike(clips_of(both[0]), expected) and len(drawn) == 16
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), expected) and len(drawn) == 16
    assert len(list(tmp_path.iterdir())) == 2                                    # a file for each of the two
    workers = torch.utils.data.DataLoader(shapes.stream(SMALL, 3, folder=tmp_path).test[2], sampler=[(0, 0), (3, 0)],
                                          num_workers=1, multiprocessing_context='spawn')
    assert alike([{name: value[0] for name, value in batch.items() if name in ('audio', 'video')} for batch in workers],
                 [expected[4], expected[7]])


def test_a_file_that_another_run_has_just_begun_is_shared(tmp_path, monkeypatch, capsys):
    """Two runs at once: the other's file comes between this one's look for it and its own."""
    data_set, size = shapes.stream(SMALL, 3, folder=tmp_path).test[0], 1000
    facts, code = shapes._marks(data_set)
    path = tmp_path / f'shapes-{facts}-{code}.clips'

    exists = type(path).exists

    def not_yet_and_then_it_is(one):
        found = exists(one)
        path.write_bytes(b'\1' * size)
        return found

    monkeypatch.setattr(type(path), 'exists', not_yet_and_then_it_is)
    content = shapes._mapped(data_set, size)
    assert content.tolist() == [1] * size and list(tmp_path.iterdir()) == [path]
    content[0] = 2
    content.flush()
    assert path.read_bytes()[0] == 2 and 'drawn anew' not in capsys.readouterr().out


def test_kept_clips_are_made_anew_where_they_are_not_those(tmp_path, monkeypatch):
    """Another seed, another size, another way to draw them; and a file that was cut short."""
    drawn = drawn_once(monkeypatch)
    expected = clips_of(shapes.stream(SMALL, 3, folder=tmp_path))
    for other in (dict(seed=4), dict(silent=(1, 2)), dict(sizes=Sizes(**{**vars(SMALL), 'image_size': 48}))):
        before = len(drawn)
        clips_of(shapes.stream(**{**dict(sizes=SMALL, seed=3, folder=tmp_path), **other}))
        assert len(drawn) == before + 8
    for file in tmp_path.iterdir():
        with file.open('r+b') as cut:
            cut.truncate(1000)
    before = len(drawn)
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), expected) and len(drawn) == before + 8
    (tmp_path / 'scenes.py').write_text('# drawn otherwise\n')
    monkeypatch.setattr(shapes.scenes, '__file__', str(tmp_path / 'scenes.py'))
    clips_of(shapes.stream(SMALL, 3, folder=tmp_path))
    assert len(drawn) == before + 16


@pytest.mark.parametrize('full', [True, False])
def test_where_clips_cannot_be_kept_they_are_drawn_for_this_run(full, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'file' / 'cache'
    if full:
        def no_space(*arguments):
            raise OSError(28, 'No space left on device')
        monkeypatch.setattr('os.replace', no_space)
    else:
        (tmp_path / 'file').write_text('not a folder')
    expected = clips_of(shapes.stream(SMALL, 3))
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=folder)), expected)
    said = capsys.readouterr().out
    assert 'cannot be kept (No space left on device)' in said if full else 'cannot be kept (Not a directory)' in said


def test_a_clip_is_the_same_to_the_bit_however_many_threads_draw_it():
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            clips = shapes.stream(Sizes(**SIZES['small']), seed=0, clips_per_task=12).train[1]
            drawn.append([clips[index, 0] for index in range(12)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*drawn):
        assert all(torch.equal(one[x], other[x]) for other in others for x in ('audio', 'video'))


def test_data_seed_is_of_the_clips_alone(tmp_path):
    from config import parse
    from streams.catalogue import open_stream
    few = ['--cache', str(tmp_path), '--clips-per-task', '6']
    opened = lambda *words: clips_of(open_stream(parse([*few, *words])[0], 0))
    plain = opened('--seed', '3')
    assert alike(plain, opened('--seed', '7', '--data-seed', '3')) and not alike(plain, opened('--seed', '7'))
