"""data.py against files whose content is known: a frame's brightness tells its time, and each sound is a tone."""
import math
import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio

import damaged_clips
import data
from clips import make, times_of, tone
from data import BadClip, check_clip, read_clip
from patches import Sizes
from streams import ave

SMALL = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)
MIDDLE = Sizes(image_size=32, num_frames=4, audio_frames=400, mel_bins=128, frame_shift=10.0)


# -------------------------------------------------------------------------------------- tensors

def test_spectrogram_is_the_literal_call():
    waveform = torch.randn(160000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02
    bank = torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean())[None], htk_compat=True, sample_frequency=16000, use_energy=False,
        window_type='hanning', num_mel_bins=128, dither=0.0, frame_shift=10)
    assert bank.shape == (998, 128)
    expected = (torch.cat([bank, torch.zeros(26, 128)]) + 5.081) / 4.485
    result = data.spectrogram(waveform, Sizes())
    assert result.shape == (1024, 128) and result.dtype == torch.float32
    assert torch.equal(result, expected)
    long = data.spectrogram(waveform.repeat(2), Sizes())
    assert long.shape == (1024, 128) and long[-1].mean() < 1     # cut, so that no padding is left


@pytest.mark.parametrize('samples', [0, 1, 399, 400, 5000])
def test_spectrogram_of_very_short_sounds(samples):
    result = data.spectrogram(torch.linspace(-1, 1, samples), SMALL)
    assert result.shape == (64, 32) and result.isfinite().all()
    assert torch.allclose(result[-1], torch.tensor(5.081 / 4.485))


def test_augment_audio_adds_little_noise_and_rolls():
    spec = torch.zeros(100, 8)
    spec[50] = 100.0
    shifts = set()
    for seed in range(300):
        result = data.augment_audio(spec, torch.Generator().manual_seed(seed))
        at = result.mean(1).argmax().item()
        noise = torch.roll(result, 50 - at, 0) - spec
        assert 0 <= noise.min() and noise.max() < 0.1 + 1e-4
        shifts.add(at - 50)
    assert len(shifts) > 80 and min(shifts) < -40 and max(shifts) > 40      # 300 draws of 100 places: the whole of it
    rolled = lambda seed: data.augment_audio(spec, torch.Generator().manual_seed(seed), max_roll=10)
    near = {rolled(seed).mean(1).argmax().item() - 50 for seed in range(300)}
    assert near == set(range(-10, 11))
    again = [data.augment_audio(spec, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


def test_multi_scale_crop_against_tsn():
    """The crops that can be drawn are those of TSN's code: 7 shapes at 13 places, and the same one for all frames."""
    size, H, W = 32, 32, 48
    rows = torch.arange(H, dtype=torch.uint8).view(1, 1, H, 1).expand(3, 1, H, W)
    columns = torch.arange(W, dtype=torch.uint8).view(1, 1, 1, W).expand(3, 1, H, W)
    frames = torch.cat([rows, columns, rows], 1)                        # 3, 3, H, W: a pixel says where it is
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
        crop = data.multi_scale_crop(frames, size, torch.Generator().manual_seed(seed))
        assert crop.shape == (3, 3, size, size) and crop.dtype == torch.uint8
        assert torch.equal(crop[0], crop[1]) and torch.equal(crop[0], crop[2])
        top, bottom = crop[0, 0, 0, 0].item(), crop[0, 0, -1, 0].item()
        left, right = crop[0, 1, 0, 0].item(), crop[0, 1, 0, -1].item()
        seen.add((top, left, bottom - top + 1, right - left + 1))
    assert seen == expected


def test_centre_crop():
    frames = torch.arange(8 * 12, dtype=torch.uint8).view(1, 1, 8, 12).expand(2, 3, 8, 12)
    assert torch.equal(data.centre_crop(frames, 8), frames[..., 2:10])


# ----------------------------------------------------------------------- frames and their times

KINDS = {
    'h264': dict(suffix='.mp4'),
    'h264_no_b': dict(suffix='.mp4', bframes=0, size=(66, 50), gop=25),
    'ntsc_odd_rate': dict(suffix='.mp4', fps=29.97, rate=44100, layout='stereo', size=(98, 54)),
    'mkv': dict(suffix='.mkv', rate=22050, gop=7),
    'mkv_ac51': dict(suffix='.mkv', rate=48000, layout='5.1', size=(48, 64)),
    'webm': dict(suffix='.webm', vcodec='libvpx', acodec='libopus', rate=48000),
    'webm_vp9': dict(suffix='.webm', vcodec='libvpx-vp9', acodec='libopus', rate=48000, layout='stereo'),
    'avi': dict(suffix='.avi', vcodec='mpeg4', acodec='pcm_s16le', rate=8000, bframes=0),
    'avi_b': dict(suffix='.avi', vcodec='mpeg4', acodec='pcm_s16le', rate=44100, layout='stereo', bframes=2),
    'mpeg4_mp4': dict(suffix='.mp4', vcodec='mpeg4', rate=8000),
    'late_start': dict(suffix='.mkv', shift=1.3),
}


@pytest.mark.parametrize('kind', KINDS)
def test_frames_are_the_right_ones(tmp_path, kind):
    options = dict(KINDS[kind])
    path = make(tmp_path / ('clip' + options.pop('suffix')), **options)
    assert check_clip(path) == (None, True)
    audio, video = read_clip(path, SMALL)
    assert audio.shape == (64, 32) and audio.dtype == torch.float32 and audio.isfinite().all()
    assert video.shape == (2, 3, 32, 32) and video.dtype == torch.uint8
    # 5 s: the window is 1.5 .. 3.5, its frames at 2.0 and 3.0. A rate of 29.97 has the frame before on the screen.
    expected = [20, 30] if options.get('fps', 10) == 10 else [19, 29]
    assert all(abs(a - b) <= (kind != 'h264') for a, b in zip(times_of(video), expected)), times_of(video)
    starts = set()
    for seed in range(6):
        audio, video = read_clip(path, SMALL, torch.Generator().manual_seed(seed))
        first, second = times_of(video)
        # the window's start is the generator's first number; a frame lasts 0.1 s
        start = 3 * torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
        assert abs(first - (start + 0.45) * 10) <= 1.5 and abs(second - first - 10) <= 1, (seed, first, second, start)
        starts.add(first)
        again = read_clip(path, SMALL, torch.Generator().manual_seed(seed))
        assert torch.equal(audio, again[0]) and torch.equal(video, again[1])
    assert len(starts) > 2


def test_skipped_frames_change_no_pixel(tmp_path):
    """Decoding leaves out what no frame refers to; the frames it gives are those of decoding everything."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    path = make(tmp_path / 'noise.mp4', seconds=6, size=(32, 32), image=lambda n: noise[n], bframes=3, gop=25)
    with av.open(path) as container:
        every = [f.reformat(32, 32, 'rgb24', interpolation='BILINEAR').to_ndarray() for f in container.decode(video=0)]
    assert len(every) == 60
    for at in (0.0, 0.55, 1.2, 3.35, 4.99):
        with data.opened(path) as clip:
            got = data.decode_frames(clip, [at, at + 0.7], 32)
        for frame, second in zip(got, (at, at + 0.7)):
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), every[int(second * 10 + 1e-6)])


def test_cut_without_reencoding(tmp_path):
    """A file cut between two keyframes keeps the frames before the cut, to be decoded but not shown."""
    path = make(tmp_path / 'cut.mp4', seconds=5, shift=-0.7, gop=50)
    with data.opened(path) as clip:
        assert clip.times[0] == pytest.approx(0, abs=0.02) and len(clip.times) == 43
    _, video = read_clip(path, SMALL)
    assert times_of(video) == [round(10 * (0.7 + 1.15 + 0.5) - 0.5) + d for d in (0, 10)]
    assert check_clip(path) == (None, True)


def test_short_clips_hold_the_last_frame(tmp_path):
    path = make(tmp_path / 'short.mp4', seconds=1.2)
    audio, video = read_clip(path, MIDDLE)
    assert times_of(video) == [5, 11, 11, 11]
    assert torch.allclose(audio[125:], torch.tensor(5.081 / 4.485)) and (audio[:100] < 1.13).any(1).all()
    trained = read_clip(path, MIDDLE, torch.Generator().manual_seed(0))
    assert times_of(trained[1]) == [5, 11, 11, 11]
    assert check_clip(path) == (None, True)
    two = make(tmp_path / 'two.mp4', seconds=1, frames=2)
    assert check_clip(two) == (None, True) and times_of(read_clip(two, MIDDLE)[1]) == [1, 1, 1, 1]


def turn(path, matrix):
    """Writes a display matrix into the track header of an mp4 with video alone first."""
    raw = bytearray(Path(path).read_bytes())
    at = raw.index(b'tkhd') + 4 + 40                         # version 0: the matrix is 40 bytes after the name
    raw[at:at + 36] = struct.pack('>9i', *(int(x * (1 << 30 if i % 3 == 2 else 1 << 16)) for i, x in enumerate(matrix)))
    Path(path).write_bytes(raw)


@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
def test_rotation_is_honoured(tmp_path, degrees):
    """The upright picture: red above, blue below. The file stores it turned, with the matrix that turns it back."""
    upright = np.zeros((64, 48, 3), np.uint8)
    upright[:32, :, 0], upright[32:, :, 2] = 255, 255
    stored = np.ascontiguousarray(np.rot90(upright, degrees // 90))                  # counterclockwise
    path = make(tmp_path / 'turned.mp4', size=stored.shape[1::-1], image=lambda n: stored, seconds=2)
    c, s = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    turn(path, (c, s, 0, -s, c, 0, 0, 0, 1))                                         # clockwise on the screen
    _, video = read_clip(path, SMALL)
    above, below = video[0, :, :14].float().mean((1, 2)), video[0, :, -14:].float().mean((1, 2))
    assert above[0] > 200 and above[2] < 60 and below[2] > 200 and below[0] < 60, (above, below)


@pytest.mark.parametrize('size', [(32, 32), (34, 200), (200, 34), (130, 98)])
def test_shorter_side_is_resized_and_the_middle_kept(tmp_path, size):
    """A white square in the middle, as large as half of the shorter side, covers a quarter of the result."""
    width, height = size
    picture, q = np.zeros((height, width, 3), np.uint8), min(size) // 4
    picture[height // 2 - q:height // 2 + q, width // 2 - q:width // 2 + q] = 255
    path = make(tmp_path / 'square.mp4', size=size, image=lambda n: picture, seconds=2)
    video = read_clip(path, SMALL)[1].float()
    assert video[:, :, 12:20, 12:20].min() > 220 and video[:, :, :6].max() < 40 and video[..., -6:].max() < 40
    assert 0.2 < video.mean() / 255 < 0.3


# ---------------------------------------------------------------------------------------- audio

def mel_bin(hertz, sizes):
    """The mel bin whose centre is nearest, by the formula: bins are even on the mel scale from 20 Hz to 8 kHz."""
    def mel(f):
        return 1127 * math.log(1 + f / 700)
    step = (mel(8000) - mel(20)) / (sizes.mel_bins + 1)
    return round((mel(hertz) - mel(20)) / step) - 1


@pytest.mark.parametrize('rate, layout, acodec, suffix', [
    (8000, 'mono', 'aac', '.mp4'), (22050, 'stereo', 'aac', '.mkv'), (44100, 'stereo', 'pcm_s16le', '.avi'),
    (48000, '5.1', 'aac', '.mp4'), (48000, 'mono', 'libopus', '.webm')])
def test_a_tone_lands_in_its_mel_bin(tmp_path, rate, layout, acodec, suffix):
    vcodec = {'.avi': 'mpeg4', '.webm': 'libvpx'}.get(suffix, 'libx264')
    for hertz in (700, 2500):
        path = make(tmp_path / f'{hertz}{suffix}', rate=rate, layout=layout, acodec=acodec, vcodec=vcodec, seconds=2,
                    sound=tone(2, rate, hertz), bframes=0)
        audio, _ = read_clip(path, MIDDLE)
        assert abs(audio[20:180].mean(0).argmax().item() - mel_bin(hertz, MIDDLE)) <= 1


def onset_frame(audio):
    loud = audio.amax(1)
    return (loud > loud.max() - 1.0).float().argmax().item()


@pytest.mark.parametrize('rate, acodec, suffix', [(16000, 'aac', '.mp4'), (44100, 'aac', '.mkv'), (8000, 'aac', '.mp4'),
                                                  (48000, 'pcm_s16le', '.avi'), (48000, 'libopus', '.webm')])
def test_sound_and_picture_keep_their_time(tmp_path, rate, acodec, suffix):
    """A tone that starts at 5.0 s of 9: the 4-second windows of sound and picture must be the same 4 seconds."""
    vcodec = {'.avi': 'mpeg4', '.webm': 'libvpx'}.get(suffix, 'libx264')
    path = make(tmp_path / f'onset{suffix}', seconds=9, rate=rate, acodec=acodec, vcodec=vcodec, bframes=0,
                sound=tone(9, rate, 1000, onset=5.0))
    audio, video = read_clip(path, MIDDLE)                  # 2.5 .. 6.5: the tone starts after 250 frames
    assert abs(onset_frame(audio) - 250) <= 3, onset_frame(audio)
    assert all(abs(a - b) <= 1 for a, b in zip(times_of(video), (30, 0, 10, 20)))
    assert audio[-1].max() > 1                               # filled to the last frame


def test_audio_window_follows_the_video_window(tmp_path, monkeypatch):
    """At the clip's ends it stops; and audio that starts later than the video stays as late."""
    monkeypatch.setattr(data, 'augment_audio', lambda spec, generator, max_roll: spec)
    path = make(tmp_path / 'onset.mp4', seconds=9, rate=16000, sound=tone(9, 16000, 1000, onset=5.0), bframes=0)
    long = Sizes(image_size=32, num_frames=2, audio_frames=600, mel_bins=32, frame_shift=10.0)
    for seed in range(5):
        start = 7 * torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
        audio, _ = read_clip(path, long, torch.Generator().manual_seed(seed))
        window = min(max(start + 1 - 3, 0), 3)                  # centred on the video's, within 0 .. 9 - 6
        assert abs(onset_frame(audio) - 100 * (5 - window)) <= 3
    late = make(tmp_path / 'late.mkv', seconds=9, sound=tone(9, 16000, 1000, onset=5.0), audio_shift=0.5, bframes=0)
    audio, _ = read_clip(late, MIDDLE)
    assert abs(onset_frame(audio) - 300) <= 4, onset_frame(audio)


def test_ten_seconds_fill_the_paper_size_from_zero(tmp_path):
    path = make(tmp_path / 'ten.mp4', seconds=10, sound=tone(10, 16000, onset=5.0), gop=50)
    audio, video = read_clip(path, Sizes())
    assert audio.shape == (1024, 128) and video.shape == (4, 3, 224, 224)
    assert abs(onset_frame(audio[:990]) - 500) <= 3
    assert torch.allclose(audio[-15:], torch.tensor(5.081 / 4.485))
    assert times_of(video) == [35, 5, 15, 25]


# ---------------------------------------------------------------------------- AVE's ten seconds

@pytest.mark.parametrize('T, starts', [
    (1, list(range(10))), (2, [0, 2, 4, 6, 8]), (3, [0, 3, 6, 7]), (4, [0, 4, 6]), (7, [0, 3]), (10, [0]), (12, [0])])
def test_windows_cover_ten_seconds(T, starts):
    sizes = Sizes(num_frames=T)
    assert ave.window_starts(sizes) == starts
    places = ave.window_of_second(sizes)
    assert len(places) == 10 and all(starts[w] + frame == s and 0 <= frame < T for s, (w, frame) in enumerate(places))
    assert all(starts[w - 1] + T <= s for s, (w, _) in enumerate(places) if w)     # the first window that sees it


@pytest.mark.parametrize('T', [1, 3, 4])
@pytest.mark.parametrize('late', [{}, dict(shift=1.3)])
def test_windows_show_the_middle_of_their_seconds(tmp_path, T, late):
    """Brightness tells the tenth of a second, 2 levels each. A file whose first frame comes late begins with it."""
    path = make(tmp_path / 'ten.mkv', seconds=10, bframes=0, sound=tone(10, 16000),
                image=lambda n: np.full((48, 64, 3), 20 + 2 * n, np.uint8), **late)
    audio, video, audio_start = ave.read_windows(path, Sizes(**{**vars(MIDDLE), 'num_frames': T}))
    starts = ave.window_starts(Sizes(num_frames=T))
    W = len(starts)
    assert audio.shape == (W, 400, 128) and audio.dtype == torch.float32 and audio_start.dtype == torch.float32
    assert video.shape == (W, T, 3, 32, 32) and video.dtype == torch.uint8
    tenths = (video.float().mean((2, 3, 4)) - 20) / 2
    expected = torch.tensor([[10 * (start + i) + 5 for i in range(T)] for start in starts])
    assert (tenths - expected).abs().max() < 1, tenths
    middles = [start + T / 2 - 2.0075 for start in starts]                 # of windows of 400 steps: 3.99 s and 25 ms
    assert audio_start.tolist() == pytest.approx([min(max(m, 0), 10 - 4.015) for m in middles], abs=0.08)


@pytest.mark.parametrize('onset, late', [(1.0, 0.0), (5.0, 0.0), (7.5, 0.0), (5.0, 0.5)])
def test_audio_start_says_what_is_heard_when(tmp_path, onset, late):
    """A tone is heard (onset + late) s into the clip; each window hears it where its audio_start says."""
    path = make(tmp_path / 'onset.mkv', seconds=10, sound=tone(10, 16000, 1000, onset=onset), audio_shift=late,
                bframes=0)
    audio, _, audio_start = ave.read_windows(path, MIDDLE)
    heard = 0
    for window, start in zip(audio, audio_start.tolist()):
        frame = 100 * (onset + late - start)
        if 10 < frame < 390:
            heard += 1
            assert abs(onset_frame(window) - frame) <= 4, (onset_frame(window), frame)
        else:
            loud = window[10:390].amax(1) > 0                       # throughout, or not at all
            assert loud.all() if frame <= 10 else not loud.any()
    assert heard


def test_windows_share_one_crop_and_hear_no_noise(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = make(tmp_path / 'still.mp4', seconds=10, image=lambda n: picture, gop=1, bframes=0, sound=tone(10, 16000))
    plain = ave.read_windows(path, SMALL)
    seen = set()
    for seed in range(4):
        first, second = (ave.read_windows(path, SMALL, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second)) and torch.equal(first[0], plain[0])
        frames = first[1].flatten(0, 1).float()                      # W·T, 3, S, S
        assert (frames - frames[0]).abs().max() < 12                 # a still picture, coded anew in each frame
        seen.add(tuple(frames[0, :, ::8, ::8].flatten().tolist()))
    assert len(seen) > 2 and tuple(plain[1][0, 0, :, ::8, ::8].flatten().float().tolist()) not in seen


def test_clips_shorter_than_ten_seconds_hold_their_last_frame(tmp_path):
    path = make(tmp_path / 'six.mp4', seconds=6.2, image=lambda n: np.full((48, 64, 3), 20 + 2 * n, np.uint8))
    _, video, audio_start = ave.read_windows(path, MIDDLE)
    tenths = ((video.float().mean((2, 3, 4)) - 20) / 2).round().tolist()
    assert sum(tenths, []) == pytest.approx([5, 15, 25, 35, 45, 55, 61, 61, 61, 61, 61, 61], abs=1)
    assert audio_start[-1] < 2.4
    with pytest.raises(BadClip, match='missing'):
        ave.read_windows(tmp_path / 'none.mp4', MIDDLE)


# -------------------------------------------------------------------- clips that cannot be used

def truncated(path, share):
    raw = Path(path).read_bytes()
    Path(path).write_bytes(raw[:int(len(raw) * share)])
    return path


def write(path, content):
    path.write_bytes(content)
    return str(path)


NOISE = np.random.default_rng(1).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
BAD = {
    'missing': (lambda d: str(d / 'not_there.mp4'), 'missing'),
    'folder': (lambda d: str(d), 'missing'),
    'empty': (lambda d: write(d / 'a.mp4', b''), 'empty'),
    'text': (lambda d: write(d / 'a.mp4', b'this is no video, but text\n' * 100), 'opened'),
    'zeros': (lambda d: write(d / 'a.mp4', bytes(10000)), 'opened'),
    'random': (lambda d: write(d / 'a.mkv', np.random.default_rng(0).bytes(20000)), 'opened'),
    'html': (lambda d: write(d / 'a.mp4', b'<html><body>Video unavailable</body></html>'), 'opened'),
    'no_audio': (lambda d: make(d / 'a.mp4', acodec=None), 'no audio'),
    'no_video': (lambda d: make(d / 'a.mp4', vcodec=None), 'no video'),
    'silent': (lambda d: make(d / 'a.mp4', sound=np.zeros(80000)), 'silent'),
    'silent_opus': (lambda d: make(d / 'a.webm', vcodec='libvpx', acodec='libopus', rate=48000,
                                   sound=np.zeros(240000)), 'silent'),
    'one_frame': (lambda d: make(d / 'a.mp4', frames=1), 'one frame'),
    'one_frame_mkv': (lambda d: make(d / 'a.mkv', frames=1), 'one frame'),
    'truncated_mp4': (lambda d: truncated(make(d / 'a.mp4', image=lambda n: NOISE[n]), 0.6), 'opened'),
    'truncated_faststart': (lambda d: truncated(make(d / 'a.mp4', image=lambda n: NOISE[n],
                                                     options={'movflags': 'faststart'}), 0.6), 'truncated'),
    'truncated_mkv': (lambda d: truncated(make(d / 'a.mkv', image=lambda n: NOISE[n]), 0.6), 'truncated'),
    'truncated_webm': (lambda d: truncated(make(d / 'a.webm', vcodec='libvpx', acodec='libopus', rate=48000,
                                                image=lambda n: NOISE[n]), 0.6), 'truncated'),
    'truncated_avi': (lambda d: truncated(make(d / 'a.avi', vcodec='mpeg4', acodec='pcm_s16le', bframes=0,
                                               image=lambda n: NOISE[n]), 0.6), 'truncated'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_clips_are_refused_with_a_reason(tmp_path, kind, capfd):
    build, reason = BAD[kind]
    path = build(tmp_path)
    capfd.readouterr()
    found, lasting = check_clip(path)
    assert lasting and reason in found and len(found) < 90 and '\n' not in found, found
    with pytest.raises(BadClip, match='^' + found.replace('(', r'\(').replace(')', r'\)') + '$'):
        read_clip(path, SMALL)
    with pytest.raises(BadClip):
        read_clip(path, SMALL, torch.Generator().manual_seed(0))
    assert capfd.readouterr() == ('', '')                        # ffmpeg itself keeps quiet


def test_damaged_clips_are_read_whole_or_refused(tmp_path):
    """`python tests/damaged_clips.py` does so with a thousand."""
    seed = random.SystemRandom().randrange(2 ** 31)
    print(f'seed {seed}')                                        # shown where it fails
    found, slow = damaged_clips.run(tmp_path, 50, seed)
    assert sum(found.values()) == 50 and len(found) > 2 and not slow, (found, slow)


def test_bad_luck_is_told_from_a_bad_clip(tmp_path, monkeypatch):
    path = make(tmp_path / 'clip.mp4', seconds=1)
    bad = write(tmp_path / 'bad.mp4', b'no clip at all')
    assert check_clip(bad)[1]

    def fails(kind):
        def decode(clip):
            raise kind
        return decode
    for luck in (MemoryError(), av.error.MemoryError(12, 'Cannot allocate memory')):
        monkeypatch.setattr(data, 'decode_audio', fails(luck))
        reason, lasting = check_clip(path)
        assert 'cannot be decoded' in reason and not lasting
        with pytest.raises(data.Hiccup):
            read_clip(path, SMALL)
    monkeypatch.setattr(data, 'decode_audio', fails(OSError(5, 'Input/output error')))
    damaged = 'cannot be decoded: damaged or truncated (Input/output error)'
    assert check_clip(path) == (damaged, True)                   # the file itself can be read
    real = open

    def unreadable(name, *rest):
        if str(name) == path:
            raise OSError(5, 'Input/output error')
        return real(name, *rest)
    monkeypatch.setattr('builtins.open', unreadable)
    assert check_clip(path) == (damaged, False)


# -------------------------------------------------------------- files that are more than a clip

def long_file(folder, suffix, seconds=150, **options):
    """A tone that is loud from second 70 on, and the time as grey."""
    sound = tone(seconds, 16000, onset=70) + tone(seconds, 16000, level=0.003)
    return make(folder / f'long{suffix}', seconds=seconds, size=(32, 32), sound=sound, **options)


@pytest.mark.parametrize('suffix, options', [
    ('.mp4', {}), ('.mkv', {}), ('.avi', dict(vcodec='mpeg4', acodec='pcm_s16le', bframes=0)), ('.mp4', dict(gop=1500)),
    ('.mp4', dict(options=dict(movflags='frag_keyframe+empty_moov')))])
def test_a_whole_video_is_read_at_its_segment(suffix, options, tmp_path):
    """The frames and the sound are those of a file of that segment alone, and no more than it is read."""
    path = long_file(tmp_path, suffix, **options)
    for start, loud in (0, 0), (61.5, 0.15), (140, 1):           # of 61.5 … 71.5, the last 1.5 s
        with data.opened(path, (start, 10)) as clip:
            assert abs(clip.times[0] - start) < 0.21 and abs(clip.times[-1] - start - 9.9) < 0.11, clip.times[::98]
            waveform, audio_start = data.decode_audio(clip)
        assert abs(audio_start - start) < 0.1 and abs(len(waveform) / 16000 - 10) < 0.2
        seconds = waveform[:158000].view(-1, 1000).abs().max(1).values
        assert abs((seconds > 0.1).float().mean().item() - loud) < 0.04
        _, video = read_clip(path, MIDDLE, segment=(start, 10))
        expected = [int((start + 3 + i + 0.5) * 10 + 1e-6) % 40 for i in range(4)]
        assert all(min((a - b) % 40, (b - a) % 40) <= 2 for a, b in zip(times_of(video), expected)), times_of(video)
        assert check_clip(path, (start, 10)) == (None, True)


def test_what_is_not_clearly_longer_is_read_whole(tmp_path):
    path = make(tmp_path / 'clip.mp4', seconds=12)
    whole, of_segment = read_clip(path, SMALL), read_clip(path, SMALL, segment=(30, 10))
    assert all(map(torch.equal, whole, of_segment))
    with data.opened(path, (0, 10)) as clip:
        assert len(clip.times) == 120


def test_of_a_long_file_whose_segment_nobody_knows_the_middle_minute_is_read(tmp_path):
    path = long_file(tmp_path, '.mp4')
    for segment in (None, (500, 10)):                            # it ends before that
        with data.opened(path, segment) as clip:
            assert abs(clip.times[0] - 45) < 0.11 and abs(clip.times[-1] - 104.9) < 0.11


def test_a_file_cut_short_before_its_segment_is_refused(tmp_path):
    raw = Path(long_file(tmp_path, '.mkv')).read_bytes()
    path = write(tmp_path / 'cut.mkv', raw[:len(raw) // 2])
    assert check_clip(path, (140, 10))[0] in ('truncated', 'no video frames')


def test_frames_too_large_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = Path(make(tmp_path / 'clip.avi', seconds=1, vcodec='mpeg4', acodec='pcm_s16le', bframes=0))
    raw = bytearray(path.read_bytes())
    for at in (raw.index(b'strf') + 12, raw.index(b'avih') + 40):       # width and height, in both headers
        raw[at:at + 8] = struct.pack('<2i', 12000, 12000)
    path.write_bytes(raw)
    monkeypatch.setattr(data, 'decode_audio', None)                     # not even the sound
    monkeypatch.setattr(data, 'LARGEST', 40 * 40)
    with pytest.raises(BadClip, match='pixels of .* bits are too large'):
        with data.opened(path):
            pass


def test_what_runs_on_though_its_header_does_not_say_so_is_refused(tmp_path, monkeypatch):
    path = make(tmp_path / 'clip.mp4', seconds=12, options=dict(movflags='frag_keyframe+empty_moov'))
    monkeypatch.setattr(data, 'LONGEST', 11)
    assert '11 s where a clip should be' in check_clip(path)[0]
    monkeypatch.setattr(data, 'LONGEST', 100)
    monkeypatch.setattr(data, 'MOST_BYTES', 2 ** 10)
    assert 'more than 0 MB' in check_clip(path)[0]


def test_a_thousand_frames_a_second_are_read(tmp_path):
    path = make(tmp_path / 'quick.mp4', seconds=3, fps=1000, size=(32, 32))
    assert check_clip(path) == (None, True) and times_of(read_clip(path, SMALL)[1]) == [10, 20]


def test_many_channels_are_read_or_refused(tmp_path):
    path = str(tmp_path / 'many.mkv')
    with av.open(path, 'w') as file:
        video = file.add_stream('mpeg4', rate=10)
        audio = file.add_stream('pcm_s16le', rate=16000, layout='64 channels')
        video.width, video.height, video.pix_fmt = 32, 32, 'yuv420p'
        for n in range(30):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * n, np.uint8), 'rgb24')
            file.mux(video.encode(picture))
            block = av.AudioFrame.from_ndarray(np.full((1, 64 * 1600), 1000 * (n % 2), np.int16), 's16', '64 channels')
            block.sample_rate = 16000
            file.mux(audio.encode(block))
        file.mux([*video.encode(None), *audio.encode(None)])
    reason, lasting = check_clip(path)
    assert lasting and (reason is None or 'cannot be' in reason)
    if reason is None:
        assert read_clip(path, SMALL)[0].isfinite().all()
