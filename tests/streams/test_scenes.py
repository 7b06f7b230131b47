"""streams/scenes.py: the ground truth of the built-in clips against their own pixels and samples."""
import numpy as np
import pytest
import torch

from data import spectrogram
from folders import BENCHMARK
from patches import patchify_a, patchify_v
from streams import scenes, shapes


@pytest.fixture(scope='module')
def stream():
    return shapes.stream(BENCHMARK, seed=3)


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
