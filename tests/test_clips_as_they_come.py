"""Clips as they come: holes in the sound, late streams, intra refresh, mirrors, slides. The right values, for the
reader of training and evaluation, the scan, prepared clips and the localization video alike."""
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from clips import brightness, heard, make, prepared, remux, sweep, times_of, write_matrix
from config import Sizes
from data import check_clip, read_clip
from downstream.video import read_windows, tile
from utils.video import WHOLE, decode_sound, frames_at, open_clip

SIZES = Sizes(image_size=32, num_frames=4, audio_frames=400, mel_bins=128, frame_shift=10.0)
TINY = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)


def noisy(n):
    """Intra refresh needs a picture with something to refresh."""
    noise = np.random.default_rng(n).integers(-6, 7, (96, 128, 1))
    return np.clip(np.full((96, 128, 3), brightness(n, 10)) + noise, 0, 255).astype(np.uint8)


REFRESH = dict(image=noisy, size=(128, 96), gop=20, bframes=0,
               x264='intra-refresh=1:keyint=20:min-keyint=20:scenecut=0:bframes=0')
KINDS = {   # name: (suffix, how it is made, second of its first frame that can be decoded)
    'plain': ('.mp4', {}, 0),
    'hole in mp4': ('.mp4', dict(holes=[(1, 3)]), 0),
    'hole in mkv': ('.mkv', dict(holes=[(1, 3)]), 0),
    'three holes': ('.mkv', dict(holes=[(1, 1.3), (4, 5), (8, 8.5)]), 0),
    'intra refresh': ('.mp4', REFRESH, 0),
    'joined between key frames': ('.mkv', dict(gop=40, keep_video=lambda t: t >= 0.1), 4),
    'joined in mp4': ('.mp4', dict(gop=40, bframes=0, keep_video=lambda t: t >= 0.1), 4),
    'joined in intra refresh': ('.mkv', dict(REFRESH, keep_video=lambda t: t >= 0.1), None),
    'B-frames in AVI': ('.avi', dict(acodec='pcm_s16le', x264='bframes=2:b-adapt=0'), 0),
    'open groups in AVI': ('.avi', dict(acodec='pcm_s16le', x264='bframes=3:b-adapt=0:open-gop=1:keyint=20'), 0),
}


@pytest.mark.parametrize('kind', KINDS)
def test_sound_and_picture_have_their_times(tmp_path, kind):
    """Both tell the second: the brightness of a frame, the pitch of the sound."""
    suffix, how, first = KINDS[kind]
    how = dict(how)
    holes = how.pop('holes', [])
    path = make(tmp_path / f'clip{suffix}', seconds=10, sound=sweep(10), **how,
                keep_audio=lambda t: not any(a <= t < b for a, b in holes))

    def silent(t):                                               # or a transition of the codec
        return any(a - 0.15 < t < b + 0.15 for a, b in holes)

    for file, tolerance in ((path, 1), (prepared(path), 2)):
        assert check_clip(file) == (None, True)
        with open_clip(file) as clip:
            start, end = clip.start, clip.end
        if first is None:                                        # when the refresh has gone round
            assert 1 < start + (file != path) * 10 < 20
            first = start
        elif file == path:
            assert abs(start - first) < 0.05 and abs(end - 10) < 0.05
        for seed in (None, 0, 1, 2, 3):
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            audio, video = read_clip(file, SIZES, generator, max_roll=0)
            where = 0.5 if seed is None else torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
            expected = [first + where * (10 - first - 4) + i + 0.5 for i in range(4)]
            assert all(abs((shown - int(10 * t + 1e-4) + 20) % 40 - 20) <= tolerance
                       for shown, t in zip(times_of(video), expected)), (seed, times_of(video), expected)
            sound = heard(audio)[50::100]
            assert all(abs(a - t) < 0.15 or silent(t) for a, t in zip(sound, expected)), (sound, expected)

    with open_clip(path, WHOLE) as clip:                         # the localization video
        windows = read_windows(clip, SIZES)
        samples, begin = decode_sound(clip, 'fltp', 'stereo', 48000)
    moments = [first + k / 2 for k in range(len(windows.frames))]
    assert all(abs((shown - int(10 * t + 1e-4) + 20) % 40 - 20) <= 1
               for shown, t in zip(times_of(windows.frames)[:-1], moments))
    for audio, own, t in zip(windows.audio, windows.own, moments):
        middle = t + 1.5 - own                                   # of the window, four seconds long
        if 2 <= middle <= 8 and not silent(middle):
            assert abs(heard(audio)[200] - middle) < 0.15, middle
    assert samples.shape[0] == 2 and abs(samples.shape[1] / 48000 + begin - 10) < 0.1


@pytest.mark.parametrize('suffix, rate', [('.mp4', 16000), ('.mkv', 44100), ('.ts', 44100)])
@pytest.mark.parametrize('how, sound, picture', [
    (dict(audio_shift=7.0), (7, 17), (0, 10)), (dict(shift=7.0, audio_shift=-7.0), (0, 10), (7, 17))])
def test_late_streams_are_whole(tmp_path, suffix, rate, how, sound, picture):
    path = make(tmp_path / f'late{suffix}', seconds=10, sound=sweep(10, rate), rate=rate, bframes=0, **how)
    for file in (path, prepared(path)):
        assert check_clip(file) == (None, True)
        with open_clip(file) as clip:
            samples, begin = decode_sound(clip, 's16', 'mono', 16000)
            assert begin - clip.start == pytest.approx(sound[0] - picture[0], abs=0.13)
            assert clip.end - clip.start == pytest.approx(10, abs=0.13) and abs(samples.shape[1] / 16000 - 10) < 0.15


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi'])
@pytest.mark.parametrize('fps, frames, last', [(1, 10, 0), (0.5, 5, 0), (0.2, 2, 0), (10, 80, 2)])
def test_few_frames_are_not_truncated(tmp_path, suffix, fps, frames, last):
    path = make(tmp_path / f'slow{suffix}', seconds=10, fps=Fraction(fps).limit_denominator(10), frames=frames,
                last=last, bframes=0, sound=sweep(10), acodec='pcm_s16le' if suffix == '.avi' else 'aac')
    assert check_clip(path) == (None, True)
    with open_clip(path) as clip:
        assert clip.end == pytest.approx(10 if suffix != '.avi' or not last else 8, abs=0.11)
        shown = [frame.pts * frame.time_base for frame in frames_at(clip, [0.5, 4.9, 9.5])]
    delay = clip.times[0]
    expected = [max(k for k in range(frames) if k / fps <= t - delay + 1e-6) / fps for t in (0.5, 4.9, 9.5)]
    assert [float(t) - delay for t in shown] == pytest.approx(expected)


def test_slides_in_a_segment_of_a_whole_video(tmp_path):
    """The frame on the screen at the beginning of the segment is from before."""
    path = make(tmp_path / 'slides.mp4', seconds=60, fps=Fraction(1, 4), sound=sweep(60), bframes=0,
                image=lambda n: np.full((48, 64, 3), 20 + 10 * n, np.uint8))
    assert check_clip(path, (21, 10)) == (None, True)
    _, video = read_clip(path, SIZES, segment=(21, 10))           # at 24.5, 25.5, 26.5, 27.5 s
    assert ((video.float().mean((1, 2, 3)) - 20) / 10).round().tolist() == [6, 6, 6, 6]
    with open_clip(path, (21, 10)) as clip:
        assert (clip.start, clip.end) == (21, 31)
        assert [round(float(f.pts * f.time_base)) for f in frames_at(clip, [21, 23.9, 24.1, 30.9])] == [20, 20, 24, 28]


@pytest.mark.parametrize('start', [31.3, 45])
def test_intra_refresh_in_a_segment_of_a_whole_video(tmp_path, start):
    path = make(tmp_path / 'long.mp4', seconds=60, sound=sweep(60), **REFRESH)
    _, video = read_clip(path, SIZES, segment=(start, 10))
    expected = [int((start + 3.5 + i) * 10 + 1e-4) % 40 for i in range(4)]
    assert all(abs(a - b) <= 1 for a, b in zip(times_of(video), expected)), (times_of(video), expected)


@pytest.mark.parametrize('segment', [None, (0, 10), (30, 10)])
def test_subtitles_are_not_the_length(tmp_path, segment):
    source, subtitles = make(tmp_path / 'clip.mkv', seconds=10), tmp_path / 'long.srt'
    subtitles.write_text('1\n00:00:01,000 --> 00:00:04,000\na\n\n2\n00:03:18,000 --> 00:03:20,000\nb\n')
    path = remux(tmp_path / 'subtitles.mkv', source, subtitles)
    assert check_clip(path, segment) == (None, True)
    with open_clip(path, segment) as clip:
        assert clip.start == 0 and clip.end == pytest.approx(10)


@pytest.mark.parametrize('second', [dict(rate=44100, layout='mono'), dict(rate=48000, layout='stereo')])
def test_sound_may_change_on_the_way(tmp_path, second):
    """Stereo, then mono; or another sample rate."""
    parts = b''
    for n, (rate, layout) in enumerate(((44100, 'stereo'), tuple(second.values()))):
        with av.open(str(tmp_path / 'part.mp3'), 'w', options={'write_xing': '0', 'id3v2_version': '0'}) as out:
            stream = out.add_stream('libmp3lame', rate=rate, layout=layout)
            sound = sweep(10, rate)[5 * rate * n:5 * rate * (n + 1)].astype(np.float32)
            for at in range(0, len(sound), 1152):
                block = np.tile(sound[at:at + 1152], (stream.codec_context.layout.nb_channels, 1))
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), 'fltp', layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        parts += (tmp_path / 'part.mp3').read_bytes()
    (tmp_path / 'joined.mp3').write_bytes(parts)
    picture = make(tmp_path / 'picture.mkv', seconds=10, acodec=None, bframes=0)
    path = remux(tmp_path / 'joined.mkv', picture, tmp_path / 'joined.mp3')
    assert check_clip(path) == (None, True)
    for file in (path, prepared(path)):
        audio, _ = read_clip(file, Sizes(**vars(SIZES) | dict(audio_frames=1000)))
        sound = heard(audio)
        assert all(abs(sound[100 * t] - t) < 0.2 for t in (1, 2, 3, 4, 6, 7, 8, 9)), sound[::100]


# ------------------------------------------------------------------------------- pictures

PICTURE = np.zeros((64, 64, 3), np.uint8)                       # R G / B W
PICTURE[:32, :32], PICTURE[:32, 32:], PICTURE[32:, :32], PICTURE[32:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
NAMES = {(1, 0, 0): 'R', (0, 1, 0): 'G', (0, 0, 1): 'B', (1, 1, 1): 'W'}


def corners(picture):
    """(h, w, 3) → the colours of its corners, row by row"""
    h, w, _ = picture.shape
    return ''.join(NAMES.get(tuple(int(v > 127) for v in picture[y, x]), '?')
                   for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4))


@pytest.mark.parametrize('matrix, shown', [
    ((1, 0, 0, 1), 'RGBW'), ((-1, 0, 0, -1), 'WBGR'), ((0, 1, -1, 0), 'BRWG'), ((0, -1, 1, 0), 'GWRB'),
    ((-1, 0, 0, 1), 'GRWB'), ((1, 0, 0, -1), 'BWRG'), ((0, 1, 1, 0), 'RBGW'), ((0, -1, -1, 0), 'WGBR')])
def test_pictures_are_turned_and_mirrored(tmp_path, matrix, shown):
    path = make(tmp_path / 'clip.mp4', seconds=2, size=(64, 64), image=lambda n: PICTURE)
    write_matrix(path, matrix)
    for file in (path, prepared(path)):
        assert corners(read_clip(file, TINY)[1][0].permute(1, 2, 0).numpy()) == shown
    with open_clip(path) as clip:
        assert corners(np.asarray(tile(clip, next(frames_at(clip, [0.5]))))) == shown


@pytest.mark.parametrize('matrix', [(1, 0, 0, 1), (0, 1, -1, 0)])
@pytest.mark.parametrize('aspect, width', [(Fraction(2), 192), (Fraction(1, 2), 48), (Fraction(448, 447), 96)])
def test_pixels_need_not_be_square(tmp_path, aspect, width, matrix):
    """96 × 48 pixels, shown as width × 48, and perhaps turned then"""
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:, 24:72] = 255                                       # white in the middle half
    path = make(tmp_path / 'clip.mp4', seconds=2, size=(96, 48), image=lambda n: picture, aspect=aspect)
    write_matrix(path, matrix)
    turned = matrix[0] == 0
    white = min(1, width / 2 / 48)                                # share of the square in the middle
    for file in (path, prepared(path)):
        video = read_clip(file, TINY)[1][0].float() / 255
        line = video[0, :, 16] if turned else video[0, 16]
        assert abs(line.mean() - white) < 0.06
    with open_clip(path) as clip:
        image = tile(clip, next(frames_at(clip, [0.5])))
    long, short = max(image.size), min(image.size)
    assert long / short == pytest.approx(max(width, 48) / min(width, 48), rel=0.02)
    assert (image.height > image.width) == (turned if width > 48 else False) or width == 48
