"""Clips as they come: codecs, holes in the sound, late streams, intra refresh, segments, mirrors. The right values, for
the reader of training and evaluation, the scan, prepared clips and the localization video alike."""
from fractions import Fraction

import numpy as np
import pytest
import torch

from clips import MIDDLE, SMALL, brightness, heard, make, prepared, remux, seeded, sweep, times_of, tone, write_matrix
from config import Sizes
from data import check_clip, read_clip
from downstream.video import read_windows, tile
from utils.video import WHOLE, decode_audio, decode_sound, frames_at, open_clip


def noisy(n):
    """Intra refresh needs a picture with something to refresh."""
    noise = np.random.default_rng(n).integers(-6, 7, (96, 128, 1))
    return np.clip(np.full((96, 128, 3), brightness(n, 10)) + noise, 0, 255).astype(np.uint8)


REFRESH = dict(image=noisy, size=(128, 96), gop=20, bframes=0,
               x264='intra-refresh=1:keyint=20:min-keyint=20:scenecut=0:bframes=0')
KINDS = {   # name: (suffix, how it is made, second of its first frame that can be decoded)
    'plain': ('.mp4', {}, 0),
    'VP8, Opus': ('.webm', dict(vcodec='libvpx', acodec='libopus', rate=48000), 0),
    'VP9, stereo': ('.webm', dict(vcodec='libvpx-vp9', acodec='libopus', rate=48000, layout='stereo'), 0),
    'MPEG-4': ('.mp4', dict(vcodec='mpeg4', rate=12000), 0),
    'MPEG-4 in AVI': ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', rate=11025, bframes=0), 0),
    'MPEG-4 with B-frames': ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', rate=44100, layout='stereo'), 0),
    '30 frames a second': ('.mp4', dict(fps=29.97, rate=44100, layout='stereo', size=(98, 54)), 0),
    'six channels': ('.mkv', dict(rate=48000, layout='5.1', size=(48, 64)), 0),
    'short groups': ('.mkv', dict(rate=22050, gop=7, size=(66, 50)), 0),
    'all is late': ('.mkv', dict(shift=1.3), 0),
    'the sound is late': ('.mkv', dict(audio_shift=0.5), 0),
    'sound much later in mp4': ('.mp4', dict(audio_shift=7, bframes=0), 0),
    'sound much later in mkv': ('.mkv', dict(audio_shift=7, bframes=0, rate=44100), 0),
    'sound much later in ts': ('.ts', dict(audio_shift=7, bframes=0, rate=44100), 0),
    'picture much later in mp4': ('.mp4', dict(shift=7, audio_shift=-7, bframes=0), 0),
    'picture much later in mkv': ('.mkv', dict(shift=7, audio_shift=-7, bframes=0, rate=44100), 0),
    'picture much later in ts': ('.ts', dict(shift=7, audio_shift=-7, bframes=0, rate=44100), 0),
    # frames before the cut are decoded, and not shown
    'cut without encoding again': ('.mp4', dict(shift=-0.7, gop=50), 0.7),
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


def frames_show(video, seconds, tolerance=1):
    """Whether the brightness of each frame tells its second, within some tenths"""
    return all(abs((shown - int(10 * t + 1e-4) + 20) % 40 - 20) <= tolerance
               for shown, t in zip(times_of(video), seconds))


@pytest.mark.parametrize('kind', KINDS)
def test_sound_and_picture_have_their_times(tmp_path, kind):
    """Both tell the second: the brightness of a frame, the pitch of the sound."""
    suffix, how, first = KINDS[kind]
    how = dict(how)
    holes, shift, late = how.pop('holes', []), how.get('shift', 0), how.get('audio_shift', 0)
    first_sound, last_sound = max(late, -shift), late + 10       # in the seconds that the brightness tells
    path = make(tmp_path / f'clip{suffix}', seconds=10, sound=sweep(10, how.get('rate', 16000)), **how,
                keep_audio=lambda t: not any(a <= t < b for a, b in holes))

    def silent(t):                                               # or a transition of the codec
        return any(a - 0.15 < t < b + 0.15 for a, b in [(-np.inf, first_sound), *holes, (last_sound, np.inf)])

    for file, tolerance in ((path, 1), (prepared(path), 2)):
        assert check_clip(file) == (None, True)
        with open_clip(file) as clip:
            start, end = clip.start - shift, clip.end - shift
            assert abs(len(decode_audio(clip)[0]) / 16000 - last_sound + first_sound) < 0.15
        if first is None:                                        # when the refresh has gone round
            assert 1 < start + (file != path) * 10 < 20
            first = start
        elif file == path:
            assert abs(start - first) < 0.05 and abs(end - 10) < 0.05
        for seed in (None, 0, 1, 2, 3):
            generator = None if seed is None else seeded(seed)
            audio, video = read_clip(file, MIDDLE, generator, max_roll=0)
            assert audio.shape == (400, 128) and audio.dtype == torch.float32 and audio.isfinite().all()
            assert video.shape == (4, 3, 32, 32) and video.dtype == torch.uint8

            # the first random number places the window
            where = 0.5 if seed is None else torch.rand((), generator=seeded(seed)).item()
            begin = first + where * (10 - first - 4)
            assert frames_show(video, [begin + i + 0.5 for i in range(4)], tolerance), (seed, times_of(video), begin)

            # the sound's window is the same, moved to lie within the sound, which may have a packet more at its ends
            sound_begin = min(max(begin, first_sound), last_sound - 4)
            moments = sound_begin + 0.005 + 0.01 * np.arange(400)          # the middles of the spectrogram's frames
            errors = [a + late - t for a, t in zip(heard(audio), moments) if not silent(t)]
            largest, mean = (0.15, 0.03 * tolerance) if sound_begin == begin else (0.2, 0.1)
            assert np.abs(errors).max() < largest and abs(np.mean(errors)) < mean, (seed, begin, errors)

    with open_clip(path, WHOLE) as clip:                         # the localization video
        windows = read_windows(clip, MIDDLE)
        samples, begin = decode_sound(clip, 'fltp', 'stereo', 48000)
    moments = [first + k / 2 for k in range(len(windows.frames))]
    assert frames_show(windows.frames[:-1], moments)
    for audio, own, t in zip(windows.audio, windows.own_index, moments):
        middle = t + 1.5 - own                                   # of the window, four seconds long
        if first_sound + 2 <= middle <= last_sound - 2 and not silent(middle):
            assert abs(heard(audio)[200] + late - middle) < 0.15, middle
    assert samples.shape[0] == 2 and abs(samples.shape[1] / 48000 + begin - shift - late - 10) < 0.1


def test_a_long_audio_window_stays_within_the_sound(tmp_path):
    """Eight seconds of sound around the middle of four seconds of frames; the paper's size holds all ten."""
    path = make(tmp_path / 'clip.mkv', seconds=10, sound=sweep(10), acodec='pcm_s16le', gop=50)
    long = Sizes(**vars(MIDDLE) | dict(audio_frames=800))
    for seed in range(5):
        middle = 6 * torch.rand((), generator=seeded(seed)).item() + 2
        audio, _ = read_clip(path, long, seeded(seed), max_roll=0)
        assert abs(heard(audio)[20:780].mean() - min(max(middle, 4), 6)) < 0.03
    audio, video = read_clip(path, Sizes())
    assert audio.shape == (1024, 128) and video.shape == (4, 3, 224, 224) and times_of(video) == [35, 5, 15, 25]
    assert abs(heard(audio)[20:980].mean() - 5) < 0.03 and torch.allclose(audio[-15:], torch.tensor(5.081 / 4.485))


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi'])
@pytest.mark.parametrize('fps, frames, last', [(1, 10, 0), (0.5, 5, 0), (0.2, 2, 0), (10, 80, 3)])
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


@pytest.mark.parametrize('segment', [None, (0, 10), (30, 10)])
def test_subtitles_are_not_the_length(tmp_path, segment):
    source, subtitles = make(tmp_path / 'clip.mkv', seconds=10), tmp_path / 'long.srt'
    subtitles.write_text('1\n00:00:01,000 --> 00:00:04,000\na\n\n2\n00:03:18,000 --> 00:03:20,000\nb\n')
    path = remux(tmp_path / 'subtitles.mkv', source, subtitles)
    assert check_clip(path, segment) == (None, True)
    with open_clip(path, segment) as clip:
        assert clip.start == 0 and clip.end == pytest.approx(10)


@pytest.mark.parametrize('rate, layout', [(44100, 'mono'), (48000, 'stereo')])
def test_sound_may_change_on_the_way(tmp_path, rate, layout):
    """Stereo, then mono; or another sample rate."""
    parts = b''
    for second, (rate, layout) in ((0, (44100, 'stereo')), (5, (rate, layout))):
        part = make(tmp_path / 'part.mp3', vcodec=None, acodec='libmp3lame', rate=rate, layout=layout,
                    sound=sweep(10, rate)[second * rate:(second + 5) * rate],
                    options={'write_xing': '0', 'id3v2_version': '0'})
        parts += open(part, 'rb').read()
    (tmp_path / 'joined.mp3').write_bytes(parts)
    picture = make(tmp_path / 'picture.mkv', seconds=10, acodec=None, bframes=0)
    path = remux(tmp_path / 'joined.mkv', picture, tmp_path / 'joined.mp3')
    assert check_clip(path) == (None, True)
    for file in (path, prepared(path)):
        audio, _ = read_clip(file, Sizes(**vars(MIDDLE) | dict(audio_frames=1000)))
        sound = heard(audio)
        assert all(abs(sound[100 * t] - t) < 0.2 for t in (1, 2, 3, 4, 6, 7, 8, 9)), sound[::100]


# ------------------------------------------------------------------- segments of whole videos

LONG = {   # name: (suffix, how it is made)
    'mp4': ('.mp4', {}), 'mkv': ('.mkv', {}), 'avi': ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', bframes=0)),
    'one group': ('.mp4', dict(gop=1100)),
    'fragments': ('.mp4', dict(options=dict(movflags='frag_keyframe+empty_moov')))}


@pytest.fixture(scope='module')
def long_file(tmp_path_factory):
    """long_file(name) → a video of 110 s with a tone that is loud from second 70 on. Each is made once."""
    folder, sound = tmp_path_factory.mktemp('long'), tone(110, 16000, onset=70) + tone(110, 16000, level=0.003)

    def get(name):
        suffix, how = LONG[name]
        path = folder / f'{name}{suffix}'
        return str(path) if path.exists() else make(path, seconds=110, size=(32, 32), sound=sound, **how)
    return get


@pytest.mark.parametrize('name', LONG)
def test_a_whole_video_is_read_at_its_segment(name, long_file):
    path = long_file(name)
    for start, loud in ((0, 0), (61.5, 0.15), (100, 1)):           # of 61.5 … 71.5, the last 1.5 s
        with open_clip(path, (start, 10)) as clip:
            assert abs(clip.times[0] - start) < 0.21 and abs(clip.times[-1] - start - 9.9) < 0.11, clip.times[::98]
            waveform, audio_start = decode_audio(clip)
        assert abs(audio_start - start) < 0.1 and abs(len(waveform) / 16000 - 10) < 0.2
        peaks = waveform[:158000].view(-1, 1000).abs().max(1).values
        assert abs((peaks > 0.1).float().mean().item() - loud) < 0.04
        _, video = read_clip(path, MIDDLE, segment=(start, 10))
        assert frames_show(video, [start + 3 + i + 0.5 for i in range(4)], 2), times_of(video)
        assert check_clip(path, (start, 10)) == (None, True)


def test_time_range(tmp_path, long_file):
    """A file that is not clearly longer than its segment is read whole; a long one without a segment, in the middle."""
    clip, long, cut = make(tmp_path / 'clip.mp4', seconds=12), long_file('mp4'), tmp_path / 'cut.mkv'
    for path, segment, first, last in ((clip, (30, 10), 0, 11.9), (clip, (0, 10), 0, 11.9), (clip, None, 0, 11.9),
                                       (long, None, 25, 84.9), (long, (500, 10), 25, 84.9)):
        with open_clip(path, segment) as opened:
            assert opened.times[0] == pytest.approx(first, abs=0.11)
            assert opened.times[-1] == pytest.approx(last, abs=0.11)
    content = open(long_file('mkv'), 'rb').read()
    cut.write_bytes(content[:len(content) // 2])
    assert check_clip(cut, (100, 10))[0] in ('truncated', 'no video frames')


def test_slides_in_a_segment(tmp_path):
    """The frame on the screen at the beginning of the segment is from before."""
    path = make(tmp_path / 'slides.mp4', seconds=60, fps=Fraction(1, 4), sound=sweep(60), bframes=0,
                image=lambda n: np.full((48, 64, 3), 20 + 10 * n, np.uint8))
    assert check_clip(path, (21, 10)) == (None, True)
    _, video = read_clip(path, MIDDLE, segment=(21, 10))          # at 24.5, 25.5, 26.5, 27.5 s
    assert ((video.float().mean((1, 2, 3)) - 20) / 10).round().tolist() == [6, 6, 6, 6]
    with open_clip(path, (21, 10)) as clip:
        assert (clip.start, clip.end) == (21, 31)
        assert [round(float(f.pts * f.time_base)) for f in frames_at(clip, [21, 23.9, 24.1, 30.9])] == [20, 20, 24, 28]


def test_intra_refresh_in_a_segment(tmp_path):
    path = make(tmp_path / 'long.mp4', seconds=60, sound=sweep(60), **REFRESH)
    for start in (31.3, 45):
        _, video = read_clip(path, MIDDLE, segment=(start, 10))
        assert frames_show(video, [start + 3.5 + i for i in range(4)]), (start, times_of(video))


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
        assert corners(read_clip(file, SMALL)[1][0].permute(1, 2, 0).numpy()) == shown
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
        video = read_clip(file, SMALL)[1][0].float() / 255
        line = video[0, :, 16] if turned else video[0, 16]
        assert abs(line.mean() - white) < 0.06
    with open_clip(path) as clip:
        image = tile(clip, next(frames_at(clip, [0.5])))
    assert image.width / image.height == pytest.approx(48 / width if turned else width / 48, rel=0.02)
