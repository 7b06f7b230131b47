"""data.py and utils/video.py: spectrogram, augmentation, exact frames, clips that are refused. For codecs and the times
of sound and picture, see test_clips_as_they_come.py."""
import os
import random
import resource
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio

import data
from clips import MIDDLE, SMALL, make, prepared, seeded, times_of
from config import Sizes
from data import BadClip, check_clip, read_clip
from utils import video as decoding

PADDING = torch.tensor(5.081 / 4.485)                 # 0 after normalization


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


# ---------------------------------------------------------------------------------------- frames

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


def test_clips_that_are_too_large_are_refused(tmp_path, monkeypatch):
    """Large frames before anything is decoded; files that are longer than their header says."""
    path = make(tmp_path / 'clip.mp4', seconds=12, options=dict(movflags='frag_keyframe+empty_moov'))
    monkeypatch.setattr(data, 'decode_audio', None)                     # not even the sound is decoded
    for name, limit, reason in (('MAX_PIXELS', 40 * 40, 'pixels of 12 bits are too large'),
                                ('MAX_SECONDS', 11, '11 s where a clip should be'),
                                ('MAX_BYTES', 2 ** 10, 'more than 0 MB')):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, name, limit)
            assert reason in check_clip(path)[0]


# -------------------------------------------------------------------------------- damaged at random

WHOLE_CLIPS = {   # suffix: arguments of `make`
    'h264.mp4': {}, 'gop.mp4': dict(gop=4, layout='stereo', rate=44100), 'h264.mkv': dict(gop=7),
    'vp8.webm': WEBM, 'mpeg4.avi': dict(vcodec='mpeg4', acodec='pcm_s16le', bframes=0)}


def damaged(raw, generator):
    """The bytes of a file → the same, damaged once or twice"""
    for _ in range(generator.choice((1, 1, 2))):
        damage = generator.choice(('flip', 'flip', 'head', 'zero', 'noise', 'cut', 'out', 'twice'))
        if damage in ('flip', 'head'):         # single bytes: all over the file, or where sizes and codecs are named
            raw, limit = bytearray(raw), min(800, len(raw)) if damage == 'head' else len(raw)
            for _ in range(1 if damage == 'head' else generator.choice((1, 10, 100))):
                raw[generator.randrange(limit)] = generator.randrange(256)
            continue
        start = generator.randrange(1, len(raw))
        part = raw[start:start + generator.choice((1, 40, 1000, len(raw) // 4))]
        instead = dict(zero=bytes(len(part)), noise=generator.randbytes(len(part)), cut=b'', out=b'', twice=part * 2)
        rest = b'' if damage == 'cut' else raw[start + len(part):]
        raw = raw[:start] + instead[damage] + rest
    return raw


def outcome_of(path):
    """Check, prepare and read a clip → 'read', or why it was refused. Raises AssertionError if it is neither read whole
    nor refused."""
    reason, _ = check_clip(str(path))
    try:
        for file in (str(path), prepared(path)):
            for generator in (None, seeded(0)):
                audio, video = read_clip(file, SMALL, generator)
                assert audio.shape == (64, 32) and audio.isfinite().all()
                assert video.shape == (2, 3, 32, 32) and video.dtype == torch.uint8
    except BadClip as bad:
        assert str(bad)
        return reason or f'in reading: {bad}'
    assert reason is None, reason
    return 'read'


def test_damaged_clips_are_read_whole_or_refused(tmp_path):
    """In little time and memory. DAMAGED_CLIPS=1000: a thousand of them. DAMAGED_SEED: the same ones again."""
    number = int(os.environ.get('DAMAGED_CLIPS', 50))
    seed = int(os.environ.get('DAMAGED_SEED', random.SystemRandom().randrange(2 ** 31)))
    print(f'seed {seed}')                                        # shown if the test fails
    generator, outcomes = random.Random(seed), Counter()
    whole = {kind: Path(make(tmp_path / kind, seconds=2, **how)).read_bytes() for kind, how in WHOLE_CLIPS.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(number):
        kind = generator.choice(list(whole))
        path = tmp_path / f'damaged.{kind}'
        path.write_bytes(damaged(whole[kind], generator))
        began = time.perf_counter()
        outcomes[outcome_of(path)] += 1
        assert time.perf_counter() - began < 10, (n, kind)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 ** 20           # KiB: 1 GB
    assert len(outcomes) > 2, outcomes
