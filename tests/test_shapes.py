"""The built-in data: its ground truth against its own pixels and samples."""
import numpy as np
import pytest
import torch

import shapes
from data import read_clip
from model import SIZES, Sizes, patchify_a, patchify_v
from shapes_files import write_clip


@pytest.fixture(scope='module')
def small():
    return Sizes(**SIZES['small'])


@pytest.fixture(scope='module')
def stream(small):
    return shapes.stream(small, seed=3)


def test_classes_are_distinct_and_tasks_disjoint(stream):
    kinds = shapes.kinds()
    assert len({k.name for k in kinds}) == len({k.voice for k in kinds}) == 36
    used = [kind for dataset in [stream.pretrain, *stream.train] for kind in dataset.classes]
    assert len(used) == len(set(used)) == 36
    assert [d.classes for d in stream.train] == [d.classes for d in stream.test]


def test_labels_are_the_sounding_objects(stream):
    for dataset, classes in zip(stream.train, stream.classes):
        assert len(dataset.labels) == len(dataset) and {name for names in dataset.labels for name in names} == set(classes)
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
    assert item['audio'].shape == (256, 64) and item['video'].shape == (2, 3, 96, 96) and item['video'].dtype == torch.uint8
    a, v = shapes.truth(stream.train[0].scene(0), small)
    assert a.shape == (small.num_patches_a,) and v.shape == (small.num_patches_v,)


def test_truth_in_frames_is_where_the_source_changes_pixels(stream, small):
    """Take the source away: the pixels that change lie in the true patches, and those patches all change."""
    for i in range(12):
        scene = stream.train[i % 6].scene(i)
        times = shapes.frame_times(small)
        changed = (shapes.draw_frames(scene, times, 96).int() - shapes.draw_frames(scene._replace(
            tracks=scene.tracks[1:]), times, 96).int()).abs().amax(1) > 8              # T,H,W
        share = patchify_v(changed[:, None].expand(-1, 3, -1, -1)[None].float(), 16)[0].mean(-1)   # N
        truth = shapes.truth(scene, small)[1]
        assert (share[truth] > 0.05).all() and (share[~truth] < 0.13).all()


def test_truth_in_the_spectrogram_is_where_the_source_changes_sound(stream, small):
    """Without the source, the mixture loses most of its energy in the true patches and keeps it elsewhere."""
    lost, kept = [], []
    for i in range(12):
        scene = stream.train[i % 6].scene(i)
        mixed = shapes.spectrogram(torch.from_numpy(shapes.source_waveform(scene) + shapes.other_waveform(scene)), small)
        alone = shapes.spectrogram(torch.from_numpy(shapes.other_waveform(scene)), small)
        energy = lambda s: patchify_a((4.485 * s).exp()[None], 16)[0].mean(-1)                      # M
        ratio = energy(alone) / energy(mixed)
        truth = shapes.truth(scene, small)[0]
        assert truth.any() and not truth.all()
        lost.append(ratio[truth])
        kept.append(ratio[~truth])
    assert torch.cat(lost).median() < 0.1 and torch.cat(kept).median() > 0.7


def test_seen_is_heard():
    """Height is pitch and brightness is loudness, at every moment."""
    kind = shapes.Kind('square', 'red', shapes.Voice(320.0, (1.0,), 0.0))
    knots = int(shapes.SECONDS / shapes.KNOT) + 1
    track = shapes.Track(kind, 0.5, np.linspace(0, 1, knots), np.linspace(1, 0.2, knots))
    scene = shapes.Scene([track], (1000.0, 0.0, 0.5), 5)
    wave = shapes.source_waveform(scene)
    frames = shapes.draw_frames(scene, [0.5, 3.5], 96).float()
    rows = [(frame[0] - frame[2] > 60).nonzero()[:, 0].float().mean().item() for frame in frames]
    second = [wave[int(t * 16000 - 2000):int(t * 16000 + 2000)] for t in (0.5, 3.5)]
    pitch = [np.abs(np.fft.rfft(w * np.hanning(len(w)))).argmax() * 4 for w in second]               # Hz, to 4 Hz
    assert rows[0] > rows[1] and abs(pitch[0] - 320 * 2 ** 0.125) < 12 and abs(pitch[1] - 320 * 2 ** 0.875) < 12
    assert frames[0, 0].max() > frames[1, 0].max() and np.abs(second[0]).max() > np.abs(second[1]).max()


def test_silent_objects_are_silent_and_of_other_classes(stream):
    counts = []
    for i in range(60):
        scene = stream.train[0].scene(i)
        assert all(t.kind != scene.tracks[0].kind for t in scene.tracks[1:])
        counts.append(len(scene.tracks) - 1)
        assert np.array_equal(shapes.source_waveform(scene), shapes.source_waveform(scene._replace(tracks=scene.tracks[:1])))
    assert set(counts) == {0, 1}


def test_written_files_hold_the_same_clip(stream, small, tmp_path):
    scene = stream.test[2].scene(1)
    write_clip(tmp_path / 'clip.mp4', scene)
    audio, video = read_clip(tmp_path / 'clip.mp4', small)
    made_audio, made_video = shapes.render(scene, small)
    assert (video.float() - made_video.float()).abs().mean() < 12           # H.264 halves the colours' resolution
    shift = lambda s: s[:250] - s[:250].mean()
    assert torch.corrcoef(torch.stack([shift(audio).flatten(), shift(made_audio).flatten()]))[0, 1] > 0.9
