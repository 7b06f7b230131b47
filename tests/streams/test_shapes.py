"""streams/shapes.py and streams/shapes_files.py: the built-in stream, the clips it keeps, and the files it writes."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from config import SIZES, Sizes
from conftest import ROOT
from data import read_clip
from folders import SMALL, written
from streams import scenes, shapes, shapes_files


@pytest.fixture(scope='module')
def small():
    return Sizes(**SIZES['small'])


@pytest.fixture(scope='module')
def stream(small):
    return shapes.stream(small, seed=3)


def test_classes_labels_and_shapes(stream, small):
    kinds = scenes.kinds()
    assert len({k.name for k in kinds}) == len({k.voice for k in kinds}) == 36
    used = [kind for dataset in [stream.pretrain, *stream.train] for kind in dataset.classes]
    assert len(used) == len(set(used)) == 36                       # tasks are disjoint
    assert [d.classes for d in stream.train] == [d.classes for d in stream.test] and stream.evaluate == stream.test
    for dataset, classes in zip(stream.train, stream.classes):
        assert {name for names in dataset.labels for name in names} == set(classes)
        assert all(dataset.labels[i] == (dataset.scene(i).tracks[0].kind.name,) for i in range(4))
    item = stream.train[0][0, 0]
    assert item['audio'].shape == (256, 64) and item['audio'].dtype == torch.float32
    assert item['video'].shape == (2, 3, 96, 96) and item['video'].dtype == torch.uint8
    a, v = scenes.truth(stream.train[0].scene(0), small)
    assert a.shape == (small.num_patches_a,) and v.shape == (small.num_patches_v,)


def clips_of(stream, number=4):
    return [dataset[index, 0] for dataset in (stream.train[1], stream.test[2]) for index in range(number)]


def alike(first, second):
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second) for name in ('audio', 'video'))


def test_a_seed_fixes_the_clips_and_test_clips_differ():
    first = clips_of(shapes.stream(SMALL, 3))
    assert alike(first, clips_of(shapes.stream(SMALL, 3))) and not alike(first, clips_of(shapes.stream(SMALL, 4)))
    assert not torch.equal(first[0]['video'], shapes.stream(SMALL, 3).test[1][0, 0]['video'])


@pytest.mark.parametrize('threads', [1, 2, 4])
def test_the_number_of_threads_changes_no_bit(threads, small, stream):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        clips = shapes.stream(small, seed=3).train[1]
        assert alike([clips[index, 0] for index in range(6)], [stream.train[1][index, 0] for index in range(6)])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------- clips that are kept

@pytest.fixture
def drawn(monkeypatch):
    """List that grows with every clip that is drawn"""
    render, drawn = shapes.render, []
    monkeypatch.setattr(shapes, 'render', lambda scene, sizes: drawn.append(scene.seed) or render(scene, sizes))
    return drawn


def test_clips_are_drawn_once_for_all_runs(tmp_path, drawn):
    expected = clips_of(shapes.stream(SMALL, 3))
    both = [shapes.stream(SMALL, 3, folder=tmp_path) for _ in range(2)]          # at the same time
    for first, second in ((0, 1), (1, 0)):
        assert alike(clips_of(both[first], 2), clips_of(both[second], 2))
    assert len(drawn) == 8 + 4 and alike(clips_of(both[0]), expected) and len(drawn) == 8 + 8
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), expected) and len(drawn) == 8 + 8
    assert len(list(tmp_path.iterdir())) == 2                                    # a file for each of the two data sets
    workers = torch.utils.data.DataLoader(shapes.stream(SMALL, 3, folder=tmp_path).test[2], sampler=[(0, 0), (3, 0)],
                                          num_workers=1, multiprocessing_context='spawn')
    assert alike([{name: batch[name][0] for name in ('audio', 'video')} for batch in workers],
                 [expected[4], expected[7]])


def test_other_options_or_code_draw_anew(tmp_path, drawn, monkeypatch):
    expected = clips_of(shapes.stream(SMALL, 3, folder=tmp_path))
    larger = Sizes(**vars(SMALL) | dict(image_size=48))
    for other in (dict(seed=4), dict(silent=(1, 2)), dict(area=2.0), dict(sizes=larger)):
        drawn.clear()
        clips_of(shapes.stream(**dict(sizes=SMALL, seed=3, folder=tmp_path) | other))
        assert len(drawn) == 8
    files = len(list(tmp_path.iterdir()))
    for file in tmp_path.iterdir():
        with file.open('r+b') as cut:
            cut.truncate(1000)
    drawn.clear()
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), expected) and len(drawn) == 8
    (tmp_path / 'scenes.py').write_text('# draws otherwise\n')
    monkeypatch.setattr(shapes.scenes, '__file__', str(tmp_path / 'scenes.py'))
    clips_of(shapes.stream(SMALL, 3, folder=tmp_path))
    assert len(drawn) == 16 and len(list(tmp_path.glob('*.clips'))) == files     # the old files are gone


@pytest.mark.parametrize('full', [True, False])
def test_clips_that_cannot_be_kept_are_drawn_for_this_run(full, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'file' / 'cache'
    if full:
        def no_space(*arguments):
            raise OSError(28, 'No space left on device')
        monkeypatch.setattr('os.replace', no_space)
    else:
        (tmp_path / 'file').write_text('not a folder')
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=folder)), clips_of(shapes.stream(SMALL, 3)))
    reason = 'No space left on device' if full else 'Not a directory'
    assert f'cannot be kept ({reason})' in capsys.readouterr().out
    assert not full or not list(folder.iterdir())


def test_data_seed_is_the_seed_of_the_clips(tmp_path):
    from streams.catalogue import open_stream
    from utils.cli import parse
    few = ['--cache', str(tmp_path), '--clips-per-task', '6']
    plain, same, other = (clips_of(open_stream(parse([*few, *words])[0], 0)) for words in (
        ['--seed', '3'], ['--seed', '7', '--data-seed', '3'], ['--seed', '7']))
    assert alike(plain, same) and not alike(plain, other)


# ----------------------------------------------------------------------------- clips as files

def test_the_command_line_writes_files(tmp_path):
    words = f'--out {tmp_path} --layout ave --train 1 --test 1 --pretrain 1 --size 32 --seed 2'.split()
    done = subprocess.run([sys.executable, '-m', 'streams.shapes', *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f'python eval.py RUN --eval ave --data {tmp_path}\n'
    assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr
    assert len(list((tmp_path / 'AVE').glob('*.mp4'))) == 6 * 3


@pytest.mark.parametrize('words, message', [
    ('--train 0', '--train: 0 must be'), ('--size 95', 'even number'), ('--seed -1', '--seed: -1 must be'),
    ('--layout vgg', 'vggsound'), ('--out {}/file/below', 'file/below cannot be written: Not a directory')])
def test_command_line_errors_are_one_line(words, message, tmp_path, capsys):
    from utils.cli import cli_errors
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit) as end, cli_errors():
        shapes.main(['--out', str(tmp_path / 'new'), *words.format(tmp_path).split()])
    err = capsys.readouterr().err
    assert end.value.code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_a_written_file_contains_its_clip(tmp_path, small):
    scene = shapes.stream(small, seed=3).test[2].scene(1)
    shapes_files.write_clip(tmp_path / 'clip.mp4', scene)
    audio, video = read_clip(tmp_path / 'clip.mp4', small)
    drawn_audio, drawn_video = scenes.render(scene, small)
    assert (video.float() - drawn_video.float()).abs().mean() < 12          # H.264 halves the colours' resolution
    both = torch.stack([(s[:250] - s[:250].mean()).flatten() for s in (audio, drawn_audio)])
    assert torch.corrcoef(both)[0, 1] > 0.9


def test_written_retrieval_lists(stream, tmp_path):
    """Five clips of each class, in CAV-MAE's format"""
    classes = stream.classes[0][:2]
    tested = [(f'id{i}', f'id{i}_000000', classes[i % 2]) for i in range(14)]
    shapes_files.write_tasks(tmp_path, stream, tested)
    entries = json.loads((tmp_path / 'retrieval.json').read_text())['data']
    assert [entry['labels'] for entry in entries] == ['/m/ash00', '/m/ash01'] * 5
    assert set(entries[0]) == {'video_id', 'wav', 'video_path', 'labels'}
    assert entries[0]['wav'].endswith('/id0_000000.wav')


def test_scenes_of_ave_sound_in_their_event_alone():
    kinds = scenes.kinds()[:3]
    lengths, starts = set(), set()
    for seed in range(30):
        scene, start, end = shapes_files.event_scene(kinds[0], kinds[1:], (0, 1), seed)
        lengths.add(end - start), starts.add(start)
        assert scene.seconds == 10 and 0 <= start < end <= 10 and end - start >= 2
        loud = np.abs(scenes.source_waveform(scene)).reshape(10, -1).max(1)
        assert (loud[start:end] > 0.02).all() and not loud[:start].any() and not loud[end:].any()
        assert np.abs(scenes.other_waveform(scene)).reshape(10, -1).max(1).min() > 0
    assert len(lengths) > 4 and len(starts) > 4
