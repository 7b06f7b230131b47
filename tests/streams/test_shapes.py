"""The built-in data: its scenes, whose ground truth is compared with their pixels and samples; the stream, the clips
that it keeps, and the files that it writes."""
import numpy as np
import pytest
import torch

from clips import SMALL
from config import Sizes, UserError
from data import read_clip, spectrogram
from folders import BENCHMARK, options
from patches import patchify_a, patchify_v
from streams import scenes, shapes, shapes_files
from streams.catalogue import open_stream
from streams.vggsound import vggsound


@pytest.fixture(scope='module')
def stream():
    return shapes.stream(BENCHMARK, seed=3)


# ----------------------------------------------------------------------------- scenes and their truth

def test_truth_v_is_where_the_source_changes_pixels(stream):
    """Remove the source: exactly the true patches change."""
    for i in range(12):
        scene = stream.train[i % 6].scene(i)
        times = scenes.frame_times(BENCHMARK)
        without = scene._replace(tracks=scene.tracks[1:])
        changed = scenes.draw_frames(scene, times, 96).int() - scenes.draw_frames(without, times, 96).int()
        changed = changed.abs().amax(1) > 8                                                         # T,H,W
        share = patchify_v(changed[:, None].expand(-1, 3, -1, -1)[None].float(), 16)[0].mean(-1)    # N
        truth = scenes.truth(scene, BENCHMARK)[1]
        assert (share[truth] > 0.05).all() and (share[~truth] < 0.13).all()


def test_truth_a_is_where_the_source_changes_sound(stream):
    """Remove the source: the true patches lose most of their energy, the others keep it."""
    lost, kept = [], []
    for i in range(12):
        scene = stream.train[i % 6].scene(i)
        source, other = scenes.source_waveform(scene), scenes.other_waveform(scene)
        energy_with, energy_without = (
            patchify_a((4.485 * spectrogram(torch.from_numpy(wave), BENCHMARK)).exp()[None], 16)[0].mean(-1)   # M
            for wave in (source + other, other))
        truth = scenes.truth(scene, BENCHMARK)[0]
        assert truth.any() and not truth.all()
        lost.append((energy_without / energy_with)[truth])
        kept.append((energy_without / energy_with)[~truth])
    assert torch.cat(lost).median() < 0.1 and torch.cat(kept).median() > 0.7


def test_height_is_pitch_and_brightness_is_loudness():
    kind = scenes.Kind('square', 'red', scenes.Voice(320.0, (1.0,), 0.0))
    knots = int(scenes.SECONDS / scenes.KNOT) + 1
    track = scenes.Track(kind, 0.5, np.linspace(0, 1, knots), np.linspace(1, 0.2, knots))
    scene = scenes.Scene([track], (1000.0, 0.0, 0.5), 5)
    wave = scenes.source_waveform(scene)
    frames = scenes.draw_frames(scene, [0.5, 3.5], 96).float()
    rows = [(frame[0] - frame[2] > 60).nonzero()[:, 0].float().mean().item() for frame in frames]
    sound = [wave[int(t * 16000 - 2000):int(t * 16000 + 2000)] for t in (0.5, 3.5)]
    pitch = [np.abs(np.fft.rfft(w * np.hanning(len(w)))).argmax() * 4 for w in sound]               # Hz, to 4 Hz
    assert rows[0] > rows[1] and abs(pitch[0] - 320 * 2 ** 0.125) < 12 and abs(pitch[1] - 320 * 2 ** 0.875) < 12
    assert frames[0, 0].max() > frames[1, 0].max() and np.abs(sound[0]).max() > np.abs(sound[1]).max()


@pytest.mark.parametrize('silent', [(0, 1), (2, 2)])
def test_silent_objects_are_silent_and_of_other_classes(silent):
    counts, clips = [], shapes.stream(BENCHMARK, seed=3, silent=silent).train[0]
    for i in range(60 if silent == (0, 1) else 20):
        scene = clips.scene(i)
        assert all(track.kind != scene.tracks[0].kind for track in scene.tracks[1:])
        counts.append(len(scene.tracks) - 1)
        alone = scene._replace(tracks=scene.tracks[:1])
        assert np.array_equal(scenes.source_waveform(scene), scenes.source_waveform(alone))
    assert set(counts) == set(silent)


def test_object_area_scales_the_objects_alone():
    one, two = (shapes.stream(BENCHMARK, seed=3, area=area).train[0] for area in (1.0, 2.0))
    for a, b in zip(one.scene(4).tracks, two.scene(4).tracks):
        assert a.kind == b.kind and a.x == b.x and np.array_equal(a.height, b.height)
        assert np.array_equal(a.loudness, b.loudness)
    assert one.scene(4).off_screen == two.scene(4).off_screen
    covered = [sum(scenes.cover(clips.scene(i).tracks[0], 2.0, 96).sum() for i in range(12)) for clips in (one, two)]
    assert 1.9 < covered[1] / covered[0] < 2.1


# ----------------------------------------------------------------------------- the stream

def test_classes_labels_and_shapes(stream):
    kinds = scenes.kinds()
    assert len({k.name for k in kinds}) == len({k.voice for k in kinds}) == 36
    used = [kind for dataset in [stream.pretrain, *stream.train] for kind in dataset.classes]
    assert len(used) == len(set(used)) == 36                       # tasks are disjoint
    assert [d.classes for d in stream.train] == [d.classes for d in stream.retrieval] and stream.test == stream.retrieval
    for dataset, classes in zip(stream.train, stream.classes):
        assert {name for names in dataset.labels for name in names} == set(classes)
        assert all(dataset.labels[i] == (dataset.scene(i).tracks[0].kind.name,) for i in range(4))
    item = stream.train[0][0, 0]
    assert item['audio'].shape == (256, 64) and item['audio'].dtype == torch.float32
    assert item['video'].shape == (2, 3, 96, 96) and item['video'].dtype == torch.uint8
    a, v = scenes.truth(stream.train[0].scene(0), BENCHMARK)
    assert a.shape == (BENCHMARK.num_patches_a,) and v.shape == (BENCHMARK.num_patches_v,)


def clips_of(stream, number=4):
    return [dataset[index, 0] for dataset in (stream.train[1], stream.retrieval[2]) for index in range(number)]


def alike(first, second):
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second) for name in ('audio', 'video'))


def test_a_seed_fixes_the_clips_and_test_clips_differ(stream):
    """--data-seed takes the place of --seed."""
    plain, same, other = (clips_of(open_stream(options('', dataset='shapes', cache='', **seeds), 0)) for seeds in (
        dict(seed=3), dict(seed=7, data_seed=3), dict(seed=7)))
    assert alike(plain, same) and not alike(plain, other)
    assert not torch.equal(stream.train[1][0, 0]['video'], stream.retrieval[1][0, 0]['video'])


@pytest.mark.parametrize('threads', [1, 4])
def test_the_number_of_threads_changes_no_bit(threads, stream):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        clips = shapes.stream(BENCHMARK, seed=3).train[1]
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


def test_clips_that_cannot_be_kept_are_drawn_for_this_run(tmp_path, monkeypatch, capsys):
    def no_space(*arguments):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', no_space)
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), clips_of(shapes.stream(SMALL, 3)))
    assert 'cannot be kept (No space left on device)' in capsys.readouterr().out and not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------- clips as files

def test_the_command_line_writes_files(tmp_path, capsys):
    out = tmp_path / 'new'
    shapes.main(f'--out {out} --train 3 --test 3 --pretrain 1 --size 32'.split())
    command = f'python train.py --dataset vggsound --data {out} --tasks {out}/tasks.csv --size small'
    assert capsys.readouterr().out == command + '\n'
    stream = vggsound(options(out, tasks=str(out / 'tasks.csv')), 0)
    assert stream.names == list(shapes.NAMES) and stream.bad == [] and len(stream.pretrain) == 1
    assert [len(d) for d in (*stream.train, *stream.retrieval)] == [3] * 12
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--out .*file/below cannot be written'):
        shapes.main(['--out', str(tmp_path / 'file' / 'below')])
    with pytest.raises(SystemExit):
        shapes.main(['--out', str(out), '--size', '33'])
    assert '--size 33 must be even' in capsys.readouterr().err


def test_a_written_file_contains_its_clip(tmp_path, stream):
    scene = stream.retrieval[2].scene(1)
    shapes_files.write_clip(tmp_path / 'clip.mp4', scene)
    audio, video = read_clip(tmp_path / 'clip.mp4', BENCHMARK)
    drawn_audio, drawn_video = scenes.render(scene, BENCHMARK)
    assert (video.float() - drawn_video.float()).abs().mean() < 12          # H.264 halves the colours' resolution
    both = torch.stack([(s[:250] - s[:250].mean()).flatten() for s in (audio, drawn_audio)])
    assert torch.corrcoef(both)[0, 1] > 0.9
