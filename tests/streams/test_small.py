"""streams/small.py: what is read of a prepared clip is what is read of its original."""
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import make, times_of, tone
from data import decode_audio, opened, read_clip
from folders import SMALL
from patches import Sizes
from streams.small import BYTES, is_prepared, small_clip
from test_data import turn


def prepared(path, segment=None):
    """The prepared clip as a file beside the original."""
    small = Path(path).with_suffix('.small.mkv')
    small.write_bytes(small_clip(path, segment))
    return str(small)


def psnr(video, other):
    return 20 * np.log10(255) - 10 * np.log10(max((video.float() - other.float()).square().mean().item(), 1e-9))


def pattern(n):
    y, x = np.mgrid[:120, :160]
    return np.stack([(x + 5 * n) % 256, 2 * y, 128 + 100 * np.sin((x + y) / 20 + n)], -1).astype(np.uint8)


@pytest.mark.parametrize('options', [
    dict(seconds=10), dict(seconds=10.03, fps=30000 / 1001), dict(seconds=7.1, fps=24), dict(seconds=5, shift=1.5),
    dict(seconds=5, audio_shift=0.237, shift=1), dict(seconds=5, audio_shift=-0.2, shift=1), dict(seconds=3.3, fps=25),
    dict(seconds=4, fps=3, bframes=0), dict(seconds=5, rate=48000, layout='stereo')])
def test_evaluation_reads_the_same(tmp_path, options):
    """Of the picture the same frames, whose times are their brightness; of the sound the same bits."""
    options = dict(sound=tone(options['seconds'], options.get('rate', 16000), onset=1.3), **options)
    path = make(tmp_path / 'clip.mkv', **options)
    small = prepared(path)
    sizes = Sizes(image_size=32)
    (audio, video), (audio_2, video_2) = read_clip(path, sizes), read_clip(small, sizes)
    assert times_of(video) == times_of(video_2) and torch.equal(audio, audio_2)
    with opened(path) as clip, opened(small) as other:
        (sound, start), (sound_2, start_2) = decode_audio(clip), decode_audio(other)
        assert torch.equal(sound, sound_2) and is_prepared(small) and not is_prepared(path)
        assert abs(start - clip.times[0] - start_2 + other.times[0]) < 0.126                # of a grid of 1/8 s


def test_training_reads_the_same_window(tmp_path):
    path = make(tmp_path / 'clip.mp4', seconds=10)
    small = prepared(path)
    for seed in range(4):
        (_, video), (_, other) = (read_clip(p, SMALL, torch.Generator().manual_seed(seed)) for p in (path, small))
        assert all((a - b) % 40 in (0, 1, 2, 39, 38) for a, b in zip(times_of(video), times_of(other)))


@pytest.mark.parametrize('size', [(160, 120), (512, 384), (480, 360), (300, 534)])
def test_pictures_agree(tmp_path, size):
    """480 × 360 is where rounding twice would stretch them."""
    y, x = np.mgrid[:size[1], :size[0]]
    image = lambda n: np.stack([(x // 3 + n) % 256, y // 3, 128 + 100 * np.sin((x + y) / 9 + n)], -1).astype(np.uint8)
    path = make(tmp_path / 'clip.mp4', seconds=4, size=size, image=image)
    assert psnr(read_clip(path, Sizes())[1], read_clip(prepared(path), Sizes())[1]) > 35


def test_a_segment_of_a_whole_video(tmp_path):
    path = make(tmp_path / 'whole.mp4', seconds=40, fps=5, sound=tone(40, 16000, onset=18))
    small = prepared(path, (12, 10))
    (audio, video), (audio_2, video_2) = read_clip(path, SMALL, segment=(12, 10)), read_clip(small, SMALL)
    assert times_of(video) == times_of(video_2) and (audio - audio_2).abs().mean() < 0.02
    with opened(small) as clip:
        assert 9.9 < clip.times[-1] - clip.times[0] + 1 / 8 < 10.1


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_pictures_of_phones_stand_upright(tmp_path, degrees):
    upright = pattern(3)
    stored = np.ascontiguousarray(np.rot90(upright, degrees // 90))
    path = make(tmp_path / 'turned.mp4', size=stored.shape[1::-1], image=lambda n: stored, seconds=3)
    c, s = [(0, 1), (-1, 0), (0, -1)][degrees // 90 - 1]
    turn(path, (c, s, 0, -s, c, 0, 0, 0, 1))
    small = prepared(path)
    with opened(small) as clip:
        assert (clip.video.codec_context.width, clip.video.codec_context.height) == (160, 120)
    assert psnr(read_clip(path, SMALL)[1], read_clip(small, SMALL)[1]) > 30


def test_no_clip_takes_more_than_its_bytes(tmp_path):
    """Noise is the worst there is. And a clip's file is always the same, though Matroska would number it at random."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 384, 512, 3), dtype=np.uint8)
    path = make(tmp_path / 'noise.mp4', seconds=10, fps=4, size=(512, 384), image=lambda n: noise[n % 4])
    assert BYTES / 2 < len(small_clip(path)) <= BYTES
    assert small_clip(path) == small_clip(path)
