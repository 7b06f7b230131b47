"""data.py and utils/video.py on files whose content is known: brightness encodes the time, and each sound is a tone."""
import math
import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio

import damaged_clips
import data
from clips import make, times_of, tone
from config import Sizes
from data import BadClip, check_clip, read_clip
from utils import video as decoding

SMALL = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)
MIDDLE = Sizes(image_size=32, num_frames=4, audio_frames=400, mel_bins=128, frame_shift=10.0)
PADDING = torch.tensor(5.081 / 4.485)                 # 0 after normalization


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------- spectrogram and augmentation

def test_spectrogram_is_the_literal_call():
    waveform = torch.randn(160000, generator=seeded(0)) * 0.1 + 0.02
    bank = torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean())[None], htk_compat=True, sample_frequency=16000, use_energy=False,
        window_type='hanning', num_mel_bins=128, dither=0.0, frame_shift=10)
    expected = (torch.cat([bank, torch.zeros(26, 128)]) + 5.081) / 4.485
    assert torch.equal(data.spectrogram(waveform, Sizes()), expected)
    long = data.spectrogram(waveform.repeat(2), Sizes())
    assert long.shape == (1024, 128) and long[-1].mean() < 1     # cut, so without padding


@pytest.mark.parametrize('samples', [0, 1, 399, 400, 5000])
def test_spectrogram_of_short_sounds(samples):
    result = data.spectrogram(torch.linspace(-1, 1, samples), SMALL)
    assert result.shape == (64, 32) and result.isfinite().all()
    assert torch.allclose(result[-1], PADDING)


@pytest.mark.parametrize('max_roll, low, high', [(-1, -40, 40), (10, -10, 10)])
def test_augment_audio(max_roll, low, high):
    audio = torch.zeros(100, 8)
    audio[50] = 100.0
    shifts = set()
    for seed in range(300):
        result = data.augment_audio(audio, seeded(seed), max_roll)
        shift = result.mean(1).argmax().item() - 50
        noise = torch.roll(result, -shift, 0) - audio
        assert 0 <= noise.min() and noise.max() < 0.1 + 1e-4
        shifts.add(shift)
    if max_roll < 0:
        assert len(shifts) > 80 and min(shifts) < low and max(shifts) > high
    else:
        assert shifts == set(range(low, high + 1))
    assert torch.equal(data.augment_audio(audio, seeded(3)), data.augment_audio(audio, seeded(3)))


def test_multi_scale_crop_draws_the_crops_of_tsn():
    """7 shapes at 13 places, as in TSN's code, and the same one for all frames."""
    size, H, W = 32, 32, 48
    rows = torch.arange(H, dtype=torch.uint8).view(1, 1, H, 1).expand(3, 1, H, W)
    columns = torch.arange(W, dtype=torch.uint8).view(1, 1, 1, W).expand(3, 1, H, W)
    frames = torch.cat([rows, columns, rows], 1)                        # 3, 3, H, W: pixels encode their place
    expected = set()
    for i, h in enumerate((32, 28, 24)):
        for j, w in enumerate((32, 28, 24)):
            if abs(i - j) <= 1:
                y, x = (H - h) / 4, (W - w) / 4
                for column, row in ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1),
                                    (3, 1), (1, 3), (3, 3)):
                    expected.add((int(row * y), int(column * x), h, w))
    seen = set()
    for seed in range(1500):
        crop = data.multi_scale_crop(frames, size, seeded(seed))
        assert crop.shape == (3, 3, size, size) and crop.dtype == torch.uint8
        assert torch.equal(crop[0], crop[1]) and torch.equal(crop[0], crop[2])
        top, bottom = crop[0, 0, 0, 0].item(), crop[0, 0, -1, 0].item()
        left, right = crop[0, 1, 0, 0].item(), crop[0, 1, 0, -1].item()
        seen.add((top, left, bottom - top + 1, right - left + 1))
    assert seen == expected


# ----------------------------------------------------------------------- frames and their times

@pytest.mark.parametrize('suffix, options', [
    ('.mp4', {}), ('.mp4', dict(bframes=0, size=(66, 50), gop=25)), ('.mkv', dict(rate=22050, gop=7)),
    ('.mp4', dict(fps=29.97, rate=44100, layout='stereo', size=(98, 54))),
    ('.mkv', dict(rate=48000, layout='5.1', size=(48, 64))),
    ('.webm', dict(vcodec='libvpx', acodec='libopus', rate=48000)),
    ('.webm', dict(vcodec='libvpx-vp9', acodec='libopus', rate=48000, layout='stereo')),
    ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', rate=8000, bframes=0)),
    ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', rate=44100, layout='stereo')),
    ('.mp4', dict(vcodec='mpeg4', rate=8000)), ('.mkv', dict(shift=1.3))])
def test_frames_are_the_right_ones(tmp_path, suffix, options):
    path = make(tmp_path / f'clip{suffix}', **options)
    assert check_clip(path) == (None, True)
    audio, video = read_clip(path, SMALL)
    assert audio.shape == (64, 32) and audio.dtype == torch.float32 and audio.isfinite().all()
    assert video.shape == (2, 3, 32, 32) and video.dtype == torch.uint8
    # of 5 s, the window is 1.5 … 3.5 and its frames are at 2.0 and 3.0; at 29.97 fps the previous frame is shown
    expected = [20, 30] if options.get('fps', 10) == 10 else [19, 29]
    assert all(abs(a - b) <= bool(options) for a, b in zip(times_of(video), expected)), times_of(video)
    for seed in range(4):
        audio, video = read_clip(path, SMALL, seeded(seed))
        first, second = times_of(video)
        start = 3 * torch.rand((), generator=seeded(seed)).item()     # the first random number places the window
        assert abs(first - (start + 0.45) * 10) <= 1.5 and abs(second - first - 10) <= 1, (seed, first, second, start)
        again = read_clip(path, SMALL, seeded(seed))
        assert torch.equal(audio, again[0]) and torch.equal(video, again[1])


def test_skipping_frames_changes_no_pixel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    path = make(tmp_path / 'noise.mp4', seconds=6, size=(32, 32), image=lambda n: noise[n], bframes=3, gop=25)
    with av.open(path) as container:
        every = [f.reformat(32, 32, 'rgb24', interpolation='BILINEAR').to_ndarray() for f in container.decode(video=0)]
    for at in (0.0, 0.55, 1.2, 3.35, 4.99):
        with decoding.open_clip(path) as clip:
            frames = decoding.decode_frames(clip, [at, at + 0.7], 32)
        for frame, second in zip(frames, (at, at + 0.7)):
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), every[int(second * 10 + 1e-6)])


def test_cut_without_reencoding(tmp_path):
    """A file that is cut between key frames keeps the frames before the cut, to be decoded but not shown."""
    path = make(tmp_path / 'cut.mp4', seconds=5, shift=-0.7, gop=50)
    with decoding.open_clip(path) as clip:
        assert clip.times[0] == pytest.approx(0, abs=0.02) and len(clip.times) == 43
    assert times_of(read_clip(path, SMALL)[1]) == [23, 33] and check_clip(path) == (None, True)


@pytest.mark.parametrize('options, expected', [(dict(seconds=1.2), [5, 11, 11, 11]),
                                               (dict(seconds=1, frames=2), [1, 1, 1, 1])])
def test_short_clips_hold_the_last_frame(tmp_path, options, expected):
    path = make(tmp_path / 'short.mp4', **options)
    assert times_of(read_clip(path, MIDDLE)[1]) == times_of(read_clip(path, MIDDLE, seeded(0))[1]) == expected
    audio, _ = read_clip(path, MIDDLE)
    assert torch.allclose(audio[130:], PADDING) and (audio[:90] < 1.13).any(1).all()
    assert check_clip(path) == (None, True)


@pytest.mark.parametrize('width, height', [(32, 32), (34, 200), (200, 34), (130, 98)])
def test_shorter_side_is_resized_and_the_middle_kept(tmp_path, width, height):
    """A white square in the middle, half as long as the shorter side, covers a quarter of the result."""
    picture, q = np.zeros((height, width, 3), np.uint8), min(width, height) // 4
    picture[height // 2 - q:height // 2 + q, width // 2 - q:width // 2 + q] = 255
    path = make(tmp_path / 'square.mp4', size=(width, height), image=lambda n: picture, seconds=2)
    video = read_clip(path, SMALL)[1].float()
    assert video[:, :, 12:20, 12:20].min() > 220 and video[:, :, :6].max() < 40 and video[..., -6:].max() < 40
    assert 0.2 < video.mean() / 255 < 0.3


# ---------------------------------------------------------------------------------------- audio

def mel_bin(hertz, sizes):
    """The mel bin with the nearest centre, by the formula: bins are even on the mel scale from 20 Hz to 8 kHz."""
    def mel(f):
        return 1127 * math.log(1 + f / 700)
    step = (mel(8000) - mel(20)) / (sizes.mel_bins + 1)
    return round((mel(hertz) - mel(20)) / step) - 1


def onset_frame(audio):
    loud = audio.amax(1)
    return (loud > loud.max() - 1.0).float().argmax().item()


@pytest.mark.parametrize('rate, layout, acodec, suffix', [
    (8000, 'mono', 'aac', '.mp4'), (22050, 'stereo', 'aac', '.mkv'), (44100, 'stereo', 'pcm_s16le', '.avi'),
    (48000, '5.1', 'aac', '.mp4'), (48000, 'mono', 'libopus', '.webm')])
def test_sound_has_its_pitch_and_its_time(tmp_path, rate, layout, acodec, suffix):
    """A tone starts at 5.0 s of 9: the windows of sound and picture are the same four seconds, 2.5 … 6.5."""
    vcodec = {'.avi': 'mpeg4', '.webm': 'libvpx'}.get(suffix, 'libx264')
    for hertz in (700, 2500):
        path = make(tmp_path / f'{hertz}{suffix}', rate=rate, layout=layout, acodec=acodec, vcodec=vcodec, seconds=9,
                    sound=tone(9, rate, hertz, onset=5.0), bframes=0)
        audio, video = read_clip(path, MIDDLE)
        assert abs(onset_frame(audio) - 250) <= 3, onset_frame(audio)
        assert abs(audio[270:380].mean(0).argmax().item() - mel_bin(hertz, MIDDLE)) <= 1
        assert all(abs(a - b) <= 1 for a, b in zip(times_of(video), (30, 0, 10, 20)))
        assert audio[-1].max() > 1                               # filled to the last frame


def test_audio_window_follows_the_video_window(tmp_path, monkeypatch):
    """It stays within the clip. Audio that starts later than the video is heard later."""
    monkeypatch.setattr(data, 'augment_audio', lambda audio, generator, max_roll: audio)
    path = make(tmp_path / 'onset.mp4', seconds=9, rate=16000, sound=tone(9, 16000, 1000, onset=5.0), bframes=0)
    long = Sizes(image_size=32, num_frames=2, audio_frames=600, mel_bins=32, frame_shift=10.0)
    for seed in range(5):
        start = 7 * torch.rand((), generator=seeded(seed)).item()
        window = min(max(start + 1 - 3, 0), 3)                  # centred on the video's, within 0 … 9 − 6
        assert abs(onset_frame(read_clip(path, long, seeded(seed))[0]) - 100 * (5 - window)) <= 3
    late = make(tmp_path / 'late.mkv', seconds=9, sound=tone(9, 16000, 1000, onset=5.0), audio_shift=0.5, bframes=0)
    assert abs(onset_frame(read_clip(late, MIDDLE)[0]) - 300) <= 4


def test_ten_seconds_fit_the_papers_size(tmp_path):
    path = make(tmp_path / 'ten.mp4', seconds=10, sound=tone(10, 16000, onset=5.0), gop=50)
    audio, video = read_clip(path, Sizes())
    assert audio.shape == (1024, 128) and video.shape == (4, 3, 224, 224)
    assert abs(onset_frame(audio[:990]) - 500) <= 3 and torch.allclose(audio[-15:], PADDING)
    assert times_of(video) == [35, 5, 15, 25]


# -------------------------------------------------------------------- clips that cannot be used

def truncated(path, share=0.6):
    raw = Path(path).read_bytes()
    Path(path).write_bytes(raw[:int(len(raw) * share)])
    return path


def write(path, content):
    path.write_bytes(content)
    return str(path)


NOISE = np.random.default_rng(1).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
WEBM = dict(vcodec='libvpx', acodec='libopus', rate=48000)
BAD = {   # name: how it is made in a folder, word of the reason
    'missing': (lambda d: str(d / 'not_there.mp4'), 'missing'),
    'empty': (lambda d: write(d / 'a.mp4', b''), 'empty'),
    'text': (lambda d: write(d / 'a.mp4', b'this is no video, but text\n' * 100), 'opened'),
    'random': (lambda d: write(d / 'a.mkv', np.random.default_rng(0).bytes(20000)), 'opened'),
    'no_audio': (lambda d: make(d / 'a.mp4', acodec=None), 'no audio'),
    'no_video': (lambda d: make(d / 'a.mp4', vcodec=None), 'no video'),
    'silent': (lambda d: make(d / 'a.mp4', sound=np.zeros(80000)), 'silent'),
    'one_frame': (lambda d: make(d / 'a.mp4', frames=1), 'one frame'),
    'truncated_mp4': (lambda d: truncated(make(d / 'a.mp4', image=lambda n: NOISE[n])), 'opened'),
    'truncated_faststart': (lambda d: truncated(make(d / 'a.mp4', image=lambda n: NOISE[n],
                                                     options={'movflags': 'faststart'})), 'truncated'),
    'truncated_mkv': (lambda d: truncated(make(d / 'a.mkv', image=lambda n: NOISE[n])), 'truncated'),
    'truncated_webm': (lambda d: truncated(make(d / 'a.webm', image=lambda n: NOISE[n], **WEBM)), 'truncated'),
    'truncated_avi': (lambda d: truncated(make(d / 'a.avi', vcodec='mpeg4', acodec='pcm_s16le', bframes=0,
                                               image=lambda n: NOISE[n])), 'truncated'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_clips_are_refused_with_a_reason(tmp_path, kind, capfd):
    build, word = BAD[kind]
    path = build(tmp_path)
    capfd.readouterr()
    reason, permanent = check_clip(path)
    assert permanent == (kind != 'missing')        # a disk may come back
    assert word in reason and len(reason) < 90 and '\n' not in reason, reason
    for generator in (None, seeded(0)):
        with pytest.raises(BadClip) as error:
            read_clip(path, SMALL, generator)
        assert str(error.value) == reason
    assert capfd.readouterr() == ('', '')                        # ffmpeg prints nothing


def test_damaged_clips_are_read_whole_or_refused(tmp_path):
    """`python tests/damaged_clips.py` tests a thousand."""
    seed = random.SystemRandom().randrange(2 ** 31)
    print(f'seed {seed}')                                        # shown if the test fails
    found, slow = damaged_clips.run(tmp_path, 50, seed)
    assert sum(found.values()) == 50 and len(found) > 2 and not slow, (found, slow)


@pytest.mark.parametrize('error, permanent', [
    (MemoryError(), False), (av.error.MemoryError(12, 'Cannot allocate memory'), False),
    (OSError(5, 'Input/output error'), True), (av.error.InvalidDataError(1, 'Invalid data'), True)])
def test_lack_of_memory_and_a_failing_disk_are_transient(tmp_path, monkeypatch, error, permanent):
    """FFmpeg mistakes an I/O error for damage, and the reverse: so the file itself is read."""
    def fail(clip):
        raise error
    path = make(tmp_path / 'clip.mp4', seconds=1)
    monkeypatch.setattr(data, 'decode_audio', fail)
    reason, found = check_clip(path)
    assert 'cannot be decoded' in reason and found == permanent
    real_open = open

    def open_or_fail(name, *rest):
        if str(name) == path:
            raise OSError(5, 'Input/output error')
        return real_open(name, *rest)
    monkeypatch.setattr('builtins.open', open_or_fail)
    assert check_clip(path) == (reason, False)


# -------------------------------------------------------------------------------- whole videos

def long_file(folder, suffix, seconds=150, **options):
    """A tone that is loud from second 70 on"""
    sound = tone(seconds, 16000, onset=70) + tone(seconds, 16000, level=0.003)
    return make(folder / f'long{suffix}', seconds=seconds, size=(32, 32), sound=sound, **options)


@pytest.mark.parametrize('suffix, options', [
    ('.mp4', {}), ('.mkv', {}), ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', bframes=0)), ('.mp4', dict(gop=1500)),
    ('.mp4', dict(options=dict(movflags='frag_keyframe+empty_moov')))])
def test_a_whole_video_is_read_at_its_segment(suffix, options, tmp_path):
    path = long_file(tmp_path, suffix, **options)
    for start, loud in ((0, 0), (61.5, 0.15), (140, 1)):           # of 61.5 … 71.5, the last 1.5 s
        with decoding.open_clip(path, (start, 10)) as clip:
            assert abs(clip.times[0] - start) < 0.21 and abs(clip.times[-1] - start - 9.9) < 0.11, clip.times[::98]
            waveform, audio_start = decoding.decode_audio(clip)
        assert abs(audio_start - start) < 0.1 and abs(len(waveform) / 16000 - 10) < 0.2
        peaks = waveform[:158000].view(-1, 1000).abs().max(1).values
        assert abs((peaks > 0.1).float().mean().item() - loud) < 0.04
        _, video = read_clip(path, MIDDLE, segment=(start, 10))
        expected = [int((start + 3 + i + 0.5) * 10 + 1e-6) % 40 for i in range(4)]
        assert all(min((a - b) % 40, (b - a) % 40) <= 2 for a, b in zip(times_of(video), expected)), times_of(video)
        assert check_clip(path, (start, 10)) == (None, True)


def test_time_range(tmp_path):
    """A file that is not clearly longer than its segment is read whole; a long one without a segment, in the middle."""
    clip, long = make(tmp_path / 'clip.mp4', seconds=12), long_file(tmp_path, '.mp4')
    for path, segment, first, last in ((clip, (30, 10), 0, 11.9), (clip, (0, 10), 0, 11.9), (clip, None, 0, 11.9),
                                       (long, None, 45, 104.9), (long, (500, 10), 45, 104.9)):
        with decoding.open_clip(path, segment) as opened:
            assert opened.times[0] == pytest.approx(first, abs=0.11)
            assert opened.times[-1] == pytest.approx(last, abs=0.11)
    cut = write(tmp_path / 'cut.mkv', Path(long_file(tmp_path, '.mkv')).read_bytes()[:200_000])
    assert check_clip(cut, (140, 10))[0] in ('truncated', 'no video frames')


def test_large_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = make(tmp_path / 'clip.mp4', seconds=1)
    monkeypatch.setattr(data, 'decode_audio', None)                     # not even the sound is decoded
    monkeypatch.setattr(decoding, 'MAX_PIXELS', 40 * 40)
    assert 'pixels of 12 bits are too large' in check_clip(path)[0]


def test_files_that_are_longer_than_their_header_says_are_refused(tmp_path, monkeypatch):
    path = make(tmp_path / 'clip.mp4', seconds=12, options=dict(movflags='frag_keyframe+empty_moov'))
    monkeypatch.setattr(decoding, 'MAX_SECONDS', 11)
    assert '11 s where a clip should be' in check_clip(path)[0]
    monkeypatch.setattr(decoding, 'MAX_SECONDS', 100)
    monkeypatch.setattr(decoding, 'MAX_BYTES', 2 ** 10)
    assert 'more than 0 MB' in check_clip(path)[0]
