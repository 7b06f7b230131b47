"""data.py against files whose content is known: a frame's brightness tells its time, and each sound is a tone."""
import csv
import json
import math
import os
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: E402
from data import BadClip, Clip, VideoClips, check_clip, read_clip, read_tasks, vggsound  # noqa: E402
from model import Sizes, UserError  # noqa: E402

SMALL = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)
MIDDLE = Sizes(image_size=32, num_frames=4, audio_frames=400, mel_bins=128, frame_shift=10.0)
REAL = ROOT.parent / 'shared' / 'clips' / 'vggsound'


def tone(seconds, rate, hertz=1000.0, level=0.3, onset=0.0):
    t = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * hertz * t) * (t >= onset)


def brightness(n, fps):
    """Time in tenths of a second, modulo 40, as a level of grey: 5 apart, to be told apart after lossy coding."""
    return 20 + 5 * (int(n / fps * 10 + 1e-6) % 40)


def make(path, seconds=5.0, fps=10, size=(64, 48), rate=16000, layout='mono', vcodec='libx264', acodec='aac',
         sound=None, image=None, frames=None, gop=12, bframes=2, options=None, shift=0.0, audio_shift=0.0):
    """A file with video (None: without) and audio (acodec=None: without); returns its path as str.

    image(n) -> uint8 (H, W, 3); the default is grey, its level saying the time. shift: seconds added to all times.
    """
    from fractions import Fraction
    path = str(path)
    sound = tone(seconds, rate) if sound is None else sound
    with av.open(path, 'w', options=options or {}) as out:
        video = audio = None
        if vcodec:
            video = out.add_stream(vcodec, rate=Fraction(fps).limit_denominator(1001))
            video.width, video.height, video.pix_fmt = *size, 'yuv420p'
            video.gop_size = gop
            if vcodec in ('libx264', 'mpeg4'):
                video.max_b_frames = bframes
            if vcodec == 'libx264':
                video.options = {'preset': 'ultrafast', 'crf': '10', 'bf': str(bframes), 'sc_threshold': '0'}
            if vcodec.startswith('libvpx'):
                video.options = {'deadline': 'realtime', 'cpu-used': '8', 'crf': '5', 'b': '2M'}
            if vcodec == 'mpeg4':
                video.bit_rate = 4_000_000
        if acodec:
            audio = out.add_stream(acodec, rate=rate, layout=layout)
        muxed = []
        if video:
            count = round(seconds * fps) if frames is None else frames
            for n in range(count):
                picture = image(n) if image else np.full((size[1], size[0], 3), brightness(n, fps), np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
                frame.pts, frame.time_base = n, 1 / Fraction(fps).limit_denominator(1001)
                muxed += [(p, shift) for p in video.encode(frame)]
            muxed += [(p, shift) for p in video.encode(None)]
        if audio:
            channels = len(audio.codec_context.layout.channels)
            for at in range(0, len(sound), 960):
                part = np.tile(sound[at:at + 960].astype(np.float32), (channels, 1))
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), 'fltp', layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
                muxed += [(p, shift + audio_shift) for p in audio.encode(frame)]
            muxed += [(p, shift + audio_shift) for p in audio.encode(None)]
        muxed.sort(key=lambda item: float(item[0].dts * item[0].time_base))
        for packet, seconds_later in muxed:
            ticks = round(seconds_later / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            out.mux(packet)
    return path


def times_of(video):
    """video (T, 3, S, S) -> the tenth of a second, modulo 40, that each frame's brightness tells."""
    return [round((level - 20) / 5) for level in video.float().mean((1, 2, 3)).tolist()]


# ---------------------------------------------------------------- tensors

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


def test_normalize_frames():
    frames = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    result = data.normalize_frames(frames)
    assert result.dtype == torch.float32 and result.shape == frames.shape
    assert math.isclose(result[1, 2, 1, 3, 4], (frames[1, 2, 1, 3, 4].item() / 255 - 0.456) / 0.224, abs_tol=1e-5)


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
    assert shifts == set(range(-10, 11))
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


# ---------------------------------------------------------------- frames and their times

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
    assert check_clip(path) is None
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
        with data._opened(path) as clip:
            got = data._decode_frames(clip, [at, at + 0.7], 32)
        for frame, second in zip(got, (at, at + 0.7)):
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), every[int(second * 10 + 1e-6)])


def test_cut_without_reencoding(tmp_path):
    """A file cut between two keyframes keeps the frames before the cut, to be decoded but not shown."""
    path = make(tmp_path / 'cut.mp4', seconds=5, shift=-0.7, gop=50)
    with data._opened(path) as clip:
        assert clip.times[0] == pytest.approx(0, abs=0.02) and len(clip.times) == 43
    _, video = read_clip(path, SMALL)
    assert times_of(video) == [round(10 * (0.7 + 1.15 + 0.5) - 0.5) + d for d in (0, 10)]
    assert check_clip(path) is None


def test_short_clips_hold_the_last_frame(tmp_path):
    path = make(tmp_path / 'short.mp4', seconds=1.2)
    audio, video = read_clip(path, MIDDLE)
    assert times_of(video) == [5, 11, 11, 11]
    assert torch.allclose(audio[125:], torch.tensor(5.081 / 4.485)) and (audio[:100] < 1.13).any(1).all()
    trained = read_clip(path, MIDDLE, torch.Generator().manual_seed(0))
    assert times_of(trained[1]) == [5, 11, 11, 11]
    assert check_clip(path) is None
    two = make(tmp_path / 'two.mp4', seconds=1, frames=2)
    assert check_clip(two) is None and times_of(read_clip(two, MIDDLE)[1]) == [1, 1, 1, 1]


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


# ---------------------------------------------------------------- audio

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
    monkeypatch.setattr(data, 'augment_audio', lambda spec, generator: spec)
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


# ---------------------------------------------------------------- clips that cannot be used

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
    found = check_clip(path)
    assert found and reason in found and len(found) < 90 and '\n' not in found, found
    with pytest.raises(BadClip, match='^' + found.replace('(', r'\(').replace(')', r'\)') + '$'):
        read_clip(path, SMALL)
    with pytest.raises(BadClip):
        read_clip(path, SMALL, torch.Generator().manual_seed(0))
    assert capfd.readouterr() == ('', '')                        # ffmpeg itself keeps quiet


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi'])
def test_damaged_files_raise_nothing_but_bad_clip(tmp_path, suffix):
    kind = dict(vcodec='mpeg4', acodec='pcm_s16le', bframes=0) if suffix == '.avi' else {}
    whole = Path(make(tmp_path / ('a' + suffix), seconds=2, **kind)).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        raw = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(0, len(raw), rng.integers(1, 60))
        raw[at] = rng.integers(0, 256, len(at))
        path = write(tmp_path / ('b' + suffix), raw.tobytes())
        check_clip(path)
        try:
            audio, video = read_clip(path, SMALL)
            assert audio.shape == (64, 32) and audio.isfinite().all() and video.shape == (2, 3, 32, 32)
        except BadClip:
            pass


# ---------------------------------------------------------------- the Dataset

def test_dataset_items_depend_on_the_key_alone(tmp_path):
    paths = [make(tmp_path / f'{n}.mp4', seconds=4, size=(80, 48)) for n in range(2)]
    clips = [Clip(path, 'x', n + 1) for n, path in enumerate(paths)]
    train, test = VideoClips(clips, SMALL, augment=True), VideoClips(clips, SMALL, augment=False)
    assert len(train) == 2
    a, b, c = train[1, 7], train[1, 7], train[1, 8]
    assert set(a) == {'audio', 'video', 'clip', 'bad'} and a['clip'] == 1 and a['bad'] == ''
    assert torch.equal(a['audio'], b['audio']) and torch.equal(a['video'], b['video'])
    assert not torch.equal(a['audio'], c['audio']) and not torch.equal(a['video'], c['video'])
    assert torch.equal(test[0, 1]['audio'], test[0, 2]['audio'])
    assert torch.equal(test[0, 1]['video'], read_clip(paths[0], SMALL)[1])


def test_the_next_clip_stands_in(tmp_path):
    paths = [make(tmp_path / f'{n}.mp4', seconds=3) for n in range(3)]
    dataset = VideoClips([Clip(path, 'x', 1) for path in paths], SMALL, augment=True)
    expected = dataset[0, 5]
    os.remove(paths[2])
    item = dataset[2, 5]
    assert item['clip'] == 2 and item['bad'] == '2.mp4: file missing'
    assert torch.equal(item['audio'], expected['audio']) and torch.equal(item['video'], expected['video'])
    os.remove(paths[0]), os.remove(paths[1])
    with pytest.raises(UserError, match='None of the 3 clips'):
        dataset[1, 0]


# ---------------------------------------------------------------- CSV files

def dataset_folder(tmp_path, rows):
    (tmp_path / 'video').mkdir(exist_ok=True)
    content = rows if isinstance(rows, bytes) else ''.join(row + '\n' for row in rows).encode()
    (tmp_path / 'vggsound.csv').write_bytes(content)
    return tmp_path


@pytest.mark.parametrize('rows, line, reason', [
    (['a,1,dog,train', 'b,2,dog'], 2, '3 columns'),
    (['a,1,dog,train,x'], 1, '5 columns'),
    (['a,1.5,dog,train'], 1, 'whole number'),
    (['a,-1,dog,train'], 1, 'whole number'),
    (['a,²,dog,train'], 1, 'whole number'),
    (['', 'a,1,dog,val'], 2, 'train or test'),
    (['a,1,dog,train', 'b,1,dog,train', 'a,01,dog,test'], 3, 'same clip as in line 1'),
    (['../x,1,dog,train'], 1, 'out of the folder'),
    (['/etc/x,1,dog,train'], 1, 'out of the folder'),
    (['..,1,dog,train'], 1, 'out of the folder'),
    (['a\\b,1,dog,train'], 1, 'out of the folder'),
    ([',1,dog,train'], 1, 'id is empty'),
    (['a,1,,train'], 1, 'label is empty'),
    (b'a,1,dog,train\nb,2,d\xff\xfeg,train\n', 2, 'UTF-8'),
    (['a,1,dog,train', 'b,2,"dog,train'], 2, 'end of data'),
])
def test_csv_errors_name_the_line(tmp_path, rows, line, reason):
    folder = dataset_folder(tmp_path, rows)
    with pytest.raises(UserError) as error:
        vggsound(folder, SMALL, progress=False)
    assert str(error.value).startswith(f'{folder / "vggsound.csv"}:{line}: ') and reason in str(error.value)


@pytest.mark.parametrize('text, line, reason', [
    ('dog,pets\n', 1, 'header'),
    ('class,task,x\ndog,pets,y\n', 1, 'header'),
    ('class,task\ndog\n', 2, '1 columns'),
    ('class,task\nplaying harp, slowly,music\n', 2, '3 columns'),
    ('class,task\ndog,pets\n\ndog,music\n', 4, 'twice'),
    ('class,task\ndog barkin,pets\n', 2, "'dog barking'"),
    ('class,task\nzzzzzz,pets\n', 2, "unknown class 'zzzzzz'"),
    ('class,task\ndog,\n', 2, 'empty'),
    ('class,task\n', None, 'no rows'),
    ('', None, 'no rows'),
])
def test_tasks_errors_name_the_line(tmp_path, text, line, reason):
    path = tmp_path / 'tasks.csv'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_tasks(path, {'dog', 'dog barking', 'playing harp'})
    assert str(error.value).startswith(f'{path}:{line}: ' if line else f'{path}: ') and reason in str(error.value)


def test_tasks_keep_their_order_and_windows_files_are_fine(tmp_path):
    path = tmp_path / 'tasks.csv'
    path.write_bytes('\ufeffclass,task\r\ndog,b\r\n"sea, waves",a\r\ncat,b\r\n'.encode())
    assert list(read_tasks(path, {'dog', 'cat', 'sea, waves'}).items()) == [('dog', 'b'), ('sea, waves', 'a'),
                                                                           ('cat', 'b')]
    with pytest.raises(UserError, match='nowhere.csv'):
        read_tasks(tmp_path / 'nowhere.csv', {'dog'})


@pytest.mark.parametrize('lacks', ['folder', 'csv', 'video', 'video is a file'])
def test_missing_data_says_what_to_download(tmp_path, lacks):
    folder = tmp_path / 'data'
    if lacks != 'folder':
        folder.mkdir()
        dataset_folder(folder, ['a,1,dog,train'])
        (folder / 'vggsound.csv').unlink() if lacks == 'csv' else (folder / 'video').rmdir()
    if lacks == 'video is a file':
        (folder / 'video').touch()
    with pytest.raises(UserError) as error:
        vggsound(folder, SMALL)
    for word in ('vggsound.csv', 'video/<id>_<start', '--dataset shapes'):
        assert word in str(error.value)


# ---------------------------------------------------------------- the stream

ROWS = ['-dog1,3,dog barking,train', 'dog2,14,dog barking,train', 'dog3,0,dog barking,train',
        'dog4,0,dog barking,test', 'harp1,7,playing harp,train', 'harp2,7,playing harp,test',
        'sea1,1,"sea, waves",train', 'sea2,1,"sea, waves",test', 'cat1,1,cat purring,train']
TASKS = 'class,task\nplaying harp,music\ndog barking,pets\ncat purring,cats\n'


@pytest.fixture
def folder(tmp_path):
    """Nine clips of four classes; three suffixes; `sea, waves` is in no task, cats have no test clips."""
    dataset_folder(tmp_path, ROWS)
    (tmp_path / 'tasks.csv').write_text(TASKS)
    whole = Path(make(tmp_path / 'whole.mp4', seconds=2)).read_bytes()
    for name, start, *_ in csv.reader(ROWS):
        stem = tmp_path / 'video' / f'{name}_{int(start):06d}'
        if name == 'dog2':
            make(f'{stem}.webm', seconds=2, vcodec='libvpx', acodec='libopus', rate=48000)
        else:
            Path(f'{stem}{".mkv" if name == "harp1" else ".mp4"}').write_bytes(whole)
    return tmp_path


def names_of(dataset):
    return [Path(clip.path).name for clip in dataset.clips]


def test_stream(folder):
    stream = vggsound(folder, SMALL, folder / 'tasks.csv', clips_per_class=2, progress=False)
    assert stream.names == ['music', 'pets'] and stream.bad == []
    assert len(stream.notes) == 1 and 'cats' in stream.notes[0] and 'test' in stream.notes[0]
    assert [names_of(d) for d in stream.train] == [['harp1_000007.mkv'], ['-dog1_000003.mp4', 'dog2_000014.webm']]
    assert [names_of(d) for d in stream.test] == [['harp2_000007.mp4'], ['dog4_000000.mp4']]
    assert names_of(stream.pretrain) == ['sea1_000001.mp4']       # the test clips of no task's classes are unused
    assert stream.train[0].augment and stream.pretrain.augment and not stream.test[0].augment
    assert stream.train[1].clips[1].label == 'dog barking' and stream.train[1].clips[1].line == 2
    assert stream.train[1][1, 0]['video'].shape == (2, 3, 32, 32)
    # under the paper's tasks, too; they have no class 'sea, waves'
    default = vggsound(folder, SMALL, progress=False)
    assert 'music' in default.names and len(default.notes) >= 5


def test_bad_clips_are_left_out_up_to_a_share(folder, capfd):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'')
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    options = dict(tasks_csv=folder / 'tasks.csv', progress=False)
    with pytest.raises(UserError) as error:
        vggsound(folder, SMALL, **options)
    for word in ('2 of 8', '25%', 'dog3_000000.mp4: empty file', 'sea1_000001.mp4: file missing', '--max-bad'):
        assert word in str(error.value)
    stream = vggsound(folder, SMALL, max_bad=0.25, **options)
    assert stream.bad == ['dog3_000000.mp4: empty file', 'sea1_000001.mp4: file missing']
    assert len(stream.train[1]) == 2 and len(stream.pretrain) == 0
    assert capfd.readouterr() == ('', '')


def test_scan_is_remembered(folder, monkeypatch):
    cache = folder / 'run' / 'scan.json'
    options = dict(tasks_csv=folder / 'tasks.csv', cache=cache, progress=False, max_bad=1)
    first = vggsound(folder, SMALL, **options)
    assert [p.name for p in cache.parent.iterdir()] == ['scan.json'] and len(json.loads(cache.read_text())) == 8
    tested = []
    monkeypatch.setattr(data, 'check_clip', lambda path: tested.append(Path(path).name) or check_clip(path))
    again = vggsound(folder, SMALL, **options)
    assert tested == [] and again.names == first.names
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'no video')          # another size: tested again
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    assert len(vggsound(folder, SMALL, **options).bad) == 2
    assert tested == ['dog3_000000.mp4', 'sea1_000001.mp4']
    for damage in ('{"a', '[1]', '"x"'):
        cache.write_text(damage)
        assert len(vggsound(folder, SMALL, **options).bad) == 2
    blocked = vggsound(folder, SMALL, **(options | dict(cache=folder / 'vggsound.csv' / 'scan.json')))
    assert 'cannot be written' in ' '.join(blocked.notes)


def test_an_interrupted_scan_keeps_what_it_has(folder, monkeypatch):
    count = []

    def interrupted(path):
        count.append(path)
        if len(count) == 4:
            raise KeyboardInterrupt
        return check_clip(path)
    monkeypatch.setattr(data, 'check_clip', interrupted)
    with pytest.raises(KeyboardInterrupt):
        vggsound(folder, SMALL, folder / 'tasks.csv', cache=folder / 'scan.json', progress=False)
    assert len(json.loads((folder / 'scan.json').read_text())) == 3


def test_scan_in_processes_gives_the_same(folder):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'')
    options = dict(tasks_csv=folder / 'tasks.csv', max_bad=1, progress=False)
    here, there = vggsound(folder, SMALL, **options), vggsound(folder, SMALL, workers=2, **options)
    assert here.bad == there.bad and here.notes == there.notes
    assert [names_of(d) for d in here.train] == [names_of(d) for d in there.train]


def test_no_task_left(folder):
    (folder / 'tasks.csv').write_text('class,task\ncat purring,cats\n')
    with pytest.raises(UserError, match='no task has both'):
        vggsound(folder, SMALL, folder / 'tasks.csv', progress=False)


# ---------------------------------------------------------------- real clips

@pytest.mark.skipif(not REAL.exists(), reason=f'no real clips at {REAL}')
def test_real_clips():
    stream = vggsound(REAL, SMALL, REAL / 'tasks.csv', progress=False)
    assert stream.names == ['music', 'people', 'animals', 'others'] and stream.bad == [] and stream.notes == []
    datasets = [stream.pretrain, *stream.train, *stream.test]
    assert sum(map(len, datasets)) == 22
    for dataset in datasets:
        for index in range(len(dataset)):
            item = dataset[index, index]
            assert item['bad'] == '' and item['audio'].shape == (64, 32) and item['video'].shape == (2, 3, 32, 32)
            assert item['audio'].isfinite().all() and item['video'].float().std() > 5
