"""One clip: App. B and Table 6. A file → audio and video tensors.

In:  a video file with sound, whole or damaged.
Out: the spectrogram and the frames of one window; or BadClip with the reason. `streams/` makes tasks of many clips.

    python data.py prepare --data DIR --out SMALL      (`streams/prepare.py`)
        writes the clips of a data set anew, small and quick to read

Tour: stop 1.

Shapes: t, f  spectrogram frames and mel bins;  T, H, W  video frames, height, width;  S  the model's image size.
"""
import errno
import itertools
import math
import os
from bisect import bisect_right
from contextlib import contextmanager
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio

from patches import Sizes

SAMPLE_RATE, AUDIO_MEAN, AUDIO_STD = 16000, -5.081, 4.485     # the latter of Table 6, of log mel energies
CLEARLY_LONGER, MINUTE, LONGEST, AFTER = 5, 60, 600, 2        # seconds, of files: see `_span`, `_packets`
LARGEST, MOST_BYTES = 8192 * 4320, 2 ** 28                    # pixels of a frame; bytes of a clip's packets
WHOLE = 0, math.inf                                           # as a segment: all of a file, however long


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


class Hiccup(BadClip):
    """Bad luck: the disk or the memory failed, not the clip. Another time it may be read."""


class Demuxed(NamedTuple):
    """What a file holds, still compressed; of one much longer than a clip, what its segment needs."""
    video: av.VideoStream
    audio: av.AudioStream
    video_packets: list  # (second at which its frame is shown, packet), in the order in which they are decoded
    audio_packets: list  # likewise
    times: list          # those seconds of the video, sorted: frames' times without decoding


def read_clip(path, sizes: Sizes, generator=None, max_roll=-1, segment=None):
    """One clip → audio (t, f) float32, video (T, 3, S, S) uint8. Raises BadClip.

    With a generator, as in training: a random window of T seconds, MultiScaleCrop, noise. Without, as in
    evaluation: the middle of the clip, nothing random. The same generator state gives the same bits.
    segment: (start, seconds) of the clip in the video it is of, for a file that is the whole video (`_span`).
    """
    T = sizes.num_frames
    with opened(path, segment) as clip:
        waveform, audio_start = decode_audio(clip)
        gap = (clip.times[-1] - clip.times[0]) / (len(clip.times) - 1)             # between two frames, on average
        spare = max(0.0, clip.times[-1] + gap - clip.times[0] - T)                 # seconds the window can move by
        where = 0.5 if generator is None else torch.rand((), generator=generator).item()
        start = clip.times[0] + where * spare
        # The paper does not say where in its second a frame lies; here in the middle.
        video = decode_frames(clip, [start + i + 0.5 for i in range(T)], sizes.image_size)   # T, 3, H, W

    audio, _ = audio_around(waveform, start + T / 2 - audio_start, sizes)
    if generator is None:
        return audio, centre_crop(video, sizes.image_size)
    return augment_audio(audio, generator, max_roll), multi_scale_crop(video, sizes.image_size, generator)


def audio_around(waveform, middle, sizes):
    """The spectrogram (t, f) of a window around a second of the waveform, as far as its ends allow; and the second of
    the waveform at which the window begins. At the paper's size, 10 s fit in whole."""
    # The window: t steps, and what the last spectrogram frame sees beyond its step.
    milliseconds = (sizes.audio_frames - 1) * sizes.frame_shift + max(25, sizes.frame_shift)
    window = int(SAMPLE_RATE * milliseconds * 0.001)                                       # samples
    first = round(middle * SAMPLE_RATE) - window // 2
    first = max(0, min(first, len(waveform) - window))
    return spectrogram(waveform[first:first + window], sizes), first / SAMPLE_RATE


def check_clip(path, segment=None):
    """→ why read_clip would refuse the clip, or None; and whether that lasts, or was bad luck. Decodes the audio, but
    of the video only two frames, so that a whole data set can be tested before training."""
    try:
        with opened(path, segment) as clip:
            decode_audio(clip)
            frames = len(list(itertools.islice(_decoded(clip.video.codec_context, clip.video_packets), 2)))
            return ['no frame can be decoded', 'only one frame', None][frames], True
    except BadClip as bad:
        return str(bad), not isinstance(bad, Hiccup)


@contextmanager
def opened(path, segment=None):
    """The file as a Demuxed, while it is open. Whatever goes wrong with it meanwhile becomes a BadClip."""
    path = os.path.abspath(path)   # so that ffmpeg cannot take a name with a colon for a protocol
    if not os.path.isfile(path) or not os.path.getsize(path):
        raise BadClip('empty file' if os.path.isfile(path) else 'file missing')
    doing = 'opened as a video'
    try:
        with av.open(path, metadata_errors='replace') as container:   # titles are not always UTF-8
            doing = 'decoded: damaged or truncated'
            yield _demux(container, _span(container, segment))
    except (av.FFmpegError, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:   # PyAV raises them all
        kind = Hiccup if _is_bad_luck(error, path) else BadClip
        raise kind(f'cannot be {doing} ({getattr(error, "strerror", None) or type(error).__name__})') from error


def _is_bad_luck(error, path):
    """Was it too little memory, or a disk that cannot be read just now? FFmpeg calls damage an I/O error, too: so the
    file is read once more, as bytes."""
    try:
        with open(path, 'rb') as file:
            while file.read(2 ** 20):
                pass
    except OSError:
        return True
    return isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM


def _span(container, segment):
    """The (first, last) second of which to read a file that is clearly longer than a clip; None: it is read whole.

    Of a whole video the segment is read, where it lies in it. Of one that is longer than a minute and whose segment
    nobody knows, the middle minute: what an hour holds is no clip.
    """
    if container.duration is None or segment == WHOLE:
        return None
    first, length = (container.start_time or 0) / av.time_base, container.duration / av.time_base
    start, seconds = segment or (0, 0)
    if seconds and length > seconds + CLEARLY_LONGER and start + seconds <= length + 1:
        return first + start, first + start + seconds
    return (first + length / 2 - MINUTE / 2, first + length / 2 + MINUTE / 2) if length > MINUTE else None


def _demux(container, span):
    """Reads all packets at once: clips are short, and only the packets tell reliably when each frame is shown, where
    decoding can start, and whether the file ends too early. Of a span, what lies in it, from the key frame before."""
    video, audio = container.streams.best('video'), container.streams.best('audio')
    for stream, kind in ((video, 'video'), (audio, 'audio')):
        if stream is None or stream.codec_context is None:
            raise BadClip(f'no {kind} stream' if stream is None else f'unknown {kind} codec')
    _refuse_large(video.codec_context)
    video.codec_context.thread_count = 1   # clips are read in parallel, by as many workers as there are cores
    clip = Demuxed(video, audio, *_packets(container, video, audio, span), [])
    # is_discard: before the cut of a file that was cut without re-encoding; decoded for what follows, never shown.
    times = sorted(time for time, packet in clip.video_packets if not packet.is_discard)
    clip.times.extend(time for time in times if not span or span[0] - 1e-4 <= time < span[1])
    if len(clip.times) < 2:
        raise BadClip('only one frame' if clip.times else 'no video frames')
    if clip.times[-1] < span[1] - 2 if span else _truncated(container, clip):
        raise BadClip('truncated')
    return clip


def _refuse_large(context):
    """Before anything is decoded: a decoder keeps several frames, to predict others from."""
    pixels, bits = context.width * context.height, context.format.padded_bits_per_pixel if context.format else 12
    if pixels > LARGEST or pixels * bits > 2 * LARGEST * 12:
        raise BadClip(f'frames of {context.width} × {context.height} pixels of {bits} bits are too large')
    context.options = {'max_pixels': str(LARGEST)}             # a frame may say otherwise than the header


def _packets(container, video, audio, span):
    """Both streams, or what a span needs of them → [(second, packet)] of video, of audio, in the file's order."""
    first, last = span or (-math.inf, math.inf)
    if span:
        container.seek(max(0, int((first - 1) * av.time_base)))        # to a key frame before it, by the file's index
    found, size, begin = {video.index: [], audio.index: []}, 0, None
    bases = {stream.index: stream.time_base for stream in (video, audio)}
    for packet in container.demux(video, audio):
        if not packet.size or packet.is_corrupt:
            continue
        time, packets = _time(packet, bases[packet.stream_index]), found[packet.stream_index]
        begin, of_video = time if begin is None else begin, packet.stream_index == video.index
        if time >= last + AFTER:
            break
        if of_video and packet.is_keyframe and time <= first:
            packets.clear()                                            # decoding can start here
        if of_video or first <= time < last:
            packets.append((time, packet))
            size += packet.size
        if size > MOST_BYTES or time - begin > LONGEST and not span:
            raise BadClip(f'more than {MOST_BYTES >> 20} MB or {LONGEST} s where a clip should be')
    return found.values()


def _truncated(container, clip):
    """Does the file hold clearly less than its header announces? By duration, or by frames in AVI, whose duration is
    corrected to what is there. Half a second is granted: headers are a little off, and a last packet has a length."""
    if container.format.name == 'avi':
        return len(clip.video_packets) < 0.9 * clip.video.frames
    last, short = 0.0, False
    for stream, packets in ((clip.video, clip.video_packets), (clip.audio, clip.audio_packets)):
        times = [time for time, _ in packets] or [0.0]
        last = max(last, *times)
        if stream.duration is not None:
            short |= max(times) - min(times) < 0.95 * float(stream.duration * stream.time_base) - 0.5
    if clip.video.duration is None and container.duration is not None:   # Matroska and WebM: only that of the whole
        short |= last < 0.95 * container.duration / av.time_base - 0.5
    return short


def _time(item, base):
    """Second at which a packet or frame is shown, base being a tick's; AVI knows only when it is decoded. Not
    frame.time: that is nan for the frames that a decoder gives at the very end."""
    ticks = item.dts if item.pts is None else item.pts
    if ticks is None:
        raise BadClip('a frame without a time')
    return ticks * base.numerator / base.denominator


def decode_audio(clip):
    """All of the audio → waveform (samples,) float32 in [-1, 1], mono, 16 kHz; and the second at which it starts."""
    resampler = av.AudioResampler('s16', 'mono', SAMPLE_RATE)
    start, chunks = None, []
    for frame in _decoded(clip.audio.codec_context, clip.audio_packets):
        if start is None:
            start = _time(frame, clip.audio.time_base)
        chunks += resampler.resample(frame)
    if chunks:
        chunks += resampler.resample(None)
    waveform = np.concatenate([chunk.to_ndarray()[0] for chunk in chunks] or [np.zeros(0, np.int16)])
    if len(waveform) == 0 or np.abs(waveform.astype(np.int32)).max() <= 3:   # of 32767: what a codec makes of silence
        raise BadClip('silent audio')
    return torch.from_numpy(waveform).float() / 32768, start


def frames_at(clip, targets):
    """The frame on the screen at each of the targets (seconds, ascending) → av.VideoFrame, one after the other, as
    stored; past the end the last. From one target to the next, decoding jumps to the last key frame before it."""
    packets, base, last = clip.video_packets, clip.video.time_base, None
    keys = [(time, i) for i, (time, packet) in enumerate(packets) if packet.is_keyframe]
    key_of = lambda target: max((i for time, i in keys if time <= target + 1e-4), default=0)   # 1e-4: times are rounded
    wanted = {clip.times[max(0, bisect_right(clip.times, target + 1e-4) - 1)] for target in targets}
    for key, group in itertools.groupby(targets, key_of):
        group = list(group)
        end = max(i for i, (time, _) in enumerate(packets) if time <= max(group[-1] + 1e-4, clip.times[0]))
        clip.video.codec_context.flush_buffers()
        for frame in _decoded(clip.video.codec_context, packets[key:end + 1], wanted):
            time = _time(frame, base)
            while group and time > group[0] + 1e-4:
                yield last or frame
                group.pop(0)
            last = frame
        if last is None:
            raise BadClip('no frame can be decoded')
        yield from [last] * len(group)


def _decoded(context, packets, wanted=None):
    """[(second, packet)] → frames, in the order in which they are shown. wanted: seconds of those that are asked for,
    where not all are. Others that no frame refers to are then not decoded: 1.5 times as fast, same pixels."""
    for time, packet in packets:
        if wanted is not None and packet.pts is not None and context.name in ('h264', 'hevc'):
            context.skip_frame = 'DEFAULT' if time in wanted else 'NONREF'
        yield from context.decode(packet)
    yield from context.decode(None)                            # what the decoder still holds


def decode_frames(clip, targets, size):
    """What `frames_at` gives, the shorter side resized to size → (len(targets), 3, H, W) uint8, the right way up."""
    pixels, before, shape = [], None, None
    for frame in frames_at(clip, targets):                       # one at a time: frames may be large
        scale = size / min(frame.width, frame.height)
        shape = shape or (round(frame.width * scale), round(frame.height * scale))
        if frame is not before:
            resized = frame.reformat(*shape, 'rgb24', interpolation='BILINEAR').to_ndarray()
        pixels.append(resized)
        before = frame
    # Phones store a turned picture and how to turn it back: counterclockwise, as rot90 counts.
    frames = np.rot90(np.stack(pixels), round(before.rotation / 90), axes=(1, 2))  # T, H, W, 3
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())


if __name__ == '__main__':                             # not when imported: as a module, this file knows no stream
    from config import exit_politely
    from streams.prepare import main

    with exit_politely('the same command goes on'):
        main()
