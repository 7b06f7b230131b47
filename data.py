"""One clip: App. B and Table 6. A file → audio and video tensors.

In:  a video file with sound, whole or damaged.
Out: the spectrogram and the frames of one window, or of as many as cover the ten seconds of a clip of AVE (App. E); or
     BadClip with the reason. `streams/` makes tasks of many clips.

Shapes: t, f  spectrogram frames and mel bins;  T, H, W  video frames, height, width;  S  the model's image size.
"""
import os
from contextlib import contextmanager
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio

from patches import Sizes

SAMPLE_RATE = 16000
AUDIO_MEAN, AUDIO_STD = -5.081, 4.485                                   # Table 6, of log mel energies
AVE_SECONDS = 10                                                       # of a clip of AVE, a label each


# -------------------------------------------------------------------------------------- tensors

def spectrogram(waveform, sizes: Sizes):
    """Log mel energies, as CAV-MAE computes them (App. B).

    waveform  (samples,)  float in [-1, 1], mono, 16 kHz, of any length
    returns   (t, f)      float32, normalized; low frequencies first

    A trap: the end is padded with 0 before normalization, as in CAV-MAE. That is a fairly loud sound, not silence
    (about -16), and 1.13 after normalization.
    """
    length = max(25, sizes.frame_shift)   # ms that one spectrogram frame sees; never less than the step to the next
    waveform = waveform - waveform.mean()
    waveform = F.pad(waveform, (0, max(0, int(SAMPLE_RATE * length * 0.001) - len(waveform))))   # one frame at least
    bank = torchaudio.compliance.kaldi.fbank(
        waveform[None], htk_compat=True, sample_frequency=SAMPLE_RATE, use_energy=False, window_type='hanning',
        num_mel_bins=sizes.mel_bins, dither=0.0, frame_shift=sizes.frame_shift, frame_length=length)
    bank = bank[:sizes.audio_frames]
    bank = F.pad(bank, (0, 0, 0, sizes.audio_frames - len(bank)))
    return (bank - AUDIO_MEAN) / AUDIO_STD


def augment_audio(spec, generator, max_roll=-1):
    """Training noise and time shift (Table 6). spec (t, f) → (t, f). Noise up to 0.1 at most.

    The paper does not say how far the roll in time may go. As released (readings), by any number of frames, −t … t − 1,
    so that sound and picture are not in step; with max_roll ≥ 0, by so many either way at most.
    """
    strength, t = 0.1 * torch.rand((), generator=generator), len(spec)
    spec = spec + strength * torch.rand(spec.shape, generator=generator)
    low, high = (-t, t) if max_roll < 0 else (-max_roll, max_roll + 1)
    return torch.roll(spec, torch.randint(low, high, (), generator=generator).item(), dims=0)


def multi_scale_crop(frames, size, generator):
    """MultiScaleCrop of TSN (Wang et al. 2016; Table 6): a random size, place and slight change of aspect ratio.

    frames   (T, 3, H, W)        uint8, shorter side = size
    returns  (T, 3, size, size)  uint8; the same crop for all frames, or motion would come from the crop
    """
    H, W = frames.shape[-2:]
    scales = (1, 0.875, 0.75)
    shapes = [(h, w) for i, h in enumerate(scales) for j, w in enumerate(scales) if abs(i - j) <= 1]   # 7 of 9
    h, w = (int(min(H, W) * scale) for scale in _pick(shapes, generator))
    # 13 places: of a 5×5 grid from corner to corner, those whose row and column are both even or both odd
    places = [(row, column) for row in range(5) for column in range(5) if (row - column) % 2 == 0]
    row, column = _pick(places, generator)
    top, left = row * (H - h) // 4, column * (W - w) // 4
    crop = frames[..., top:top + h, left:left + w]
    return F.interpolate(crop, (size, size), mode='bilinear', antialias=True)


def centre_crop(frames, size):
    """frames (T, 3, H, W) uint8 → their middle, (T, 3, size, size)."""
    top, left = (frames.shape[-2] - size) // 2, (frames.shape[-1] - size) // 2
    return frames[..., top:top + size, left:left + size]


def _pick(choices, generator):
    return choices[torch.randint(len(choices), (), generator=generator).item()]


# ------------------------------------------------------------------------------------- one clip

class BadClip(Exception):
    """A clip that cannot be used. The message is the reason, in a few words."""


class Demuxed(NamedTuple):
    """What a file holds, still compressed."""
    video: av.VideoStream
    audio: av.AudioStream
    video_packets: list
    audio_packets: list
    times: list          # second at which each video packet's frame is shown, sorted: frames' times without decoding


def read_clip(path, sizes: Sizes, generator=None, max_roll=-1):
    """One clip → audio (t, f) float32, video (T, 3, S, S) uint8. Raises BadClip.

    With a generator, as in training: a random window of T seconds, MultiScaleCrop, noise. Without, as in
    evaluation: the middle of the clip, nothing random. The same generator state gives the same bits.
    """
    T = sizes.num_frames
    with _opened(path) as clip:
        waveform, audio_start = _decode_audio(clip)
        gap = (clip.times[-1] - clip.times[0]) / (len(clip.times) - 1)             # between two frames, on average
        spare = max(0.0, clip.times[-1] + gap - clip.times[0] - T)                 # seconds the window can move by
        where = 0.5 if generator is None else torch.rand((), generator=generator).item()
        start = clip.times[0] + where * spare
        # The paper does not say where in its second a frame lies; here in the middle.
        video = _decode_frames(clip, [start + i + 0.5 for i in range(T)], sizes.image_size)   # T, 3, H, W

    audio, _ = _audio_around(waveform, start + T / 2 - audio_start, sizes)
    if generator is None:
        return audio, centre_crop(video, sizes.image_size)
    return augment_audio(audio, generator, max_roll), multi_scale_crop(video, sizes.image_size, generator)


def _audio_around(waveform, middle, sizes):
    """The spectrogram (t, f) of a window around a second of the waveform, as far as its ends allow; and the second of
    the waveform at which the window begins. At the paper's size, 10 s fit in whole."""
    # The window: t steps, and what the last spectrogram frame sees beyond its step.
    milliseconds = (sizes.audio_frames - 1) * sizes.frame_shift + max(25, sizes.frame_shift)
    window = int(SAMPLE_RATE * milliseconds * 0.001)                                       # samples
    first = round(middle * SAMPLE_RATE) - window // 2
    first = max(0, min(first, len(waveform) - window))
    return spectrogram(waveform[first:first + window], sizes), first / SAMPLE_RATE


def check_clip(path):
    """Why read_clip would refuse the clip, or None. Decodes the audio, but of the video only two frames, so that a
    whole data set can be tested before training."""
    try:
        with _opened(path) as clip:
            _decode_audio(clip)
            frames = 0
            for packet in [*clip.video_packets, None]:   # None: the decoder gives what it still holds
                frames += len(clip.video.codec_context.decode(packet))
                if frames >= 2:
                    return None
            return 'only one frame' if frames else 'no frame can be decoded'
    except BadClip as bad:
        return str(bad)


@contextmanager
def _opened(path):
    """The file as a Demuxed, while it is open. Whatever goes wrong with it meanwhile becomes a BadClip."""
    path = os.path.abspath(path)   # so that ffmpeg cannot take a name with a colon for a protocol
    if not os.path.isfile(path):
        raise BadClip('file missing')
    if not os.path.getsize(path):
        raise BadClip('empty file')
    doing = 'opened as a video'
    try:
        with av.open(path, metadata_errors='replace') as container:   # titles are not always UTF-8
            doing = 'decoded: damaged or truncated'
            yield _demux(container)
    except (av.FFmpegError, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:   # PyAV raises them all
        raise BadClip(f'cannot be {doing} ({getattr(error, "strerror", None) or type(error).__name__})') from error


def _demux(container):
    """Reads all packets at once: clips are short, and only the packets tell reliably when each frame is shown, where
    decoding can start, and whether the file ends too early. Seeking would rely on an index that may be missing."""
    video, audio = container.streams.best('video'), container.streams.best('audio')
    for stream, kind in ((video, 'video'), (audio, 'audio')):
        if stream is None:
            raise BadClip(f'no {kind} stream')
        if stream.codec_context is None:
            raise BadClip(f'unknown {kind} codec')
    video.codec_context.thread_count = 1   # clips are read in parallel, by as many workers as there are cores
    packets = {video.index: [], audio.index: []}
    for packet in container.demux(video, audio):
        if packet.size and not packet.is_corrupt:
            packets[packet.stream_index].append(packet)
    clip = Demuxed(video, audio, packets[video.index], packets[audio.index], [])
    # is_discard: before the cut of a file that was cut without re-encoding; decoded for what follows, never shown.
    clip.times.extend(sorted(_time(packet, video) for packet in clip.video_packets if not packet.is_discard))
    if len(clip.times) < 2:
        raise BadClip('only one frame' if clip.times else 'no video frames')
    if _truncated(container, clip):
        raise BadClip('truncated')
    return clip


def _truncated(container, clip):
    """Does the file hold clearly less than its header announces? By duration, or by frames in AVI, whose duration is
    corrected to what is there. Half a second is granted: headers are a little off, and a last packet has a length."""
    if container.format.name == 'avi':
        return len(clip.video_packets) < 0.9 * clip.video.frames
    last, short = 0.0, False
    for stream, packets in ((clip.video, clip.video_packets), (clip.audio, clip.audio_packets)):
        times = [_time(packet, stream) for packet in packets] or [0.0]
        last = max(last, *times)
        if stream.duration is not None:
            short |= max(times) - min(times) < 0.95 * float(stream.duration * stream.time_base) - 0.5
    if clip.video.duration is None and container.duration is not None:   # Matroska and WebM: only that of the whole
        short |= last < 0.95 * container.duration / av.time_base - 0.5
    return short


def _time(item, stream):
    """Second at which a packet or frame is shown; AVI knows only when it is decoded. Not frame.time: that is nan for
    the frames that a decoder gives at the very end."""
    ticks = item.dts if item.pts is None else item.pts
    if ticks is None:
        raise BadClip('a frame without a time')
    return float(ticks * stream.time_base)


def _decode_audio(clip):
    """All of the audio → waveform (samples,) float32 in [-1, 1], mono, 16 kHz; and the second at which it starts."""
    resampler = av.AudioResampler('s16', 'mono', SAMPLE_RATE)
    start, chunks = None, []
    for packet in [*clip.audio_packets, None]:
        for frame in clip.audio.codec_context.decode(packet):
            if start is None:
                start = _time(frame, clip.audio)
            chunks += resampler.resample(frame)
    if chunks:
        chunks += resampler.resample(None)
    waveform = np.concatenate([chunk.to_ndarray()[0] for chunk in chunks] or [np.zeros(0, np.int16)])
    if len(waveform) == 0 or np.abs(waveform.astype(np.int32)).max() <= 3:   # of 32767: what a codec makes of silence
        raise BadClip('silent audio')
    return torch.from_numpy(waveform).float() / 32768, start


def _decode_frames(clip, targets, size):
    """The frame on the screen at each of the targets (seconds, ascending), the shorter side resized to size.
    Past the end, the last frame is held. Returns (len(targets), 3, H, W) uint8, the right way up."""
    context = clip.video.codec_context
    first = max((i for i, packet in enumerate(clip.video_packets)
                 if packet.is_keyframe and _time(packet, clip.video) <= targets[0] + 1e-4), default=0)
    wanted = {max((time for time in clip.times if time <= target + 1e-4), default=clip.times[0]) for target in targets}
    shown, last = [], None                                       # a frame per target; the frame decoded before
    for packet in [*clip.video_packets[first:], None]:
        if packet and packet.pts is not None and context.name in ('h264', 'hevc'):
            # Frames that no other frame refers to need not be decoded unless wanted: 1.5 times as fast, same pixels.
            context.skip_frame = 'DEFAULT' if _time(packet, clip.video) in wanted else 'NONREF'
        for frame in context.decode(packet):
            time = _time(frame, clip.video)
            while len(shown) < len(targets) and time > targets[len(shown)] + 1e-4:   # 1e-4: times are rounded
                shown.append(last or frame)
            last = frame
        if len(shown) == len(targets):
            break
    if last is None:
        raise BadClip('no frame can be decoded')
    shown += [last] * (len(targets) - len(shown))

    scale = size / min(last.width, last.height)
    width, height = round(last.width * scale), round(last.height * scale)
    pixels = [frame.reformat(width, height, 'rgb24', interpolation='BILINEAR').to_ndarray() for frame in shown]
    # Phones store a turned picture and how to turn it back: counterclockwise, as rot90 counts.
    frames = np.rot90(np.stack(pixels), round(last.rotation / 90), axes=(1, 2))    # T, H, W, 3
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())


# ------------------------------------------------------------------------ AVE: a label a second

def window_starts(sizes: Sizes):
    """Seconds at which the windows begin that cover the ten seconds of a clip of AVE (App. E), of T seconds each, as
    the model takes: 0, T, 2T, …; the last one moved back to end with the clip. For T = 4: [0, 4, 6]."""
    T = sizes.num_frames
    return [max(0, min(start, AVE_SECONDS - T)) for start in range(0, AVE_SECONDS, T)]


def window_of_second(sizes: Sizes):
    """For each of the ten seconds, where it is seen: (window, frame in it). Where two windows see it, the first."""
    T, starts = sizes.num_frames, window_starts(sizes)
    windows = [next(w for w, start in enumerate(starts) if start <= second < start + T)
               for second in range(AVE_SECONDS)]
    return [(w, second - starts[w]) for second, w in enumerate(windows)]


def read_windows(path, sizes: Sizes, generator=None):
    """Ten seconds → audio (W, t, f) float32, video (W, T, 3, S, S) uint8, and audio_start (W,) float32, the second of
    the clip at which each window's audio begins. Raises BadClip.

    Of each second its middle frame; with each window, the audio around its middle, as in read_clip. With a generator,
    as in training: one MultiScaleCrop for the whole clip. AVE has neither noise nor time shift (Table 6).
    """
    T, starts = sizes.num_frames, window_starts(sizes)
    seconds = max(AVE_SECONDS, starts[-1] + T)
    with _opened(path) as clip:
        waveform, audio_start = _decode_audio(clip)
        begin = clip.times[0]
        frames = _decode_frames(clip, [begin + second + 0.5 for second in range(seconds)], sizes.image_size)
    size = sizes.image_size
    frames = centre_crop(frames, size) if generator is None else multi_scale_crop(frames, size, generator)
    heard = [_audio_around(waveform, begin + start + T / 2 - audio_start, sizes) for start in starts]
    return (torch.stack([audio for audio, _ in heard]), torch.stack([frames[start:start + T] for start in starts]),
            torch.tensor([audio_start + first - begin for _, first in heard]))
