"""Decoding one video file with PyAV: packets, frames at given times, and the sound (App. B).

In:  a file, whole or damaged, and optionally a segment of it.
Out: a Demuxed clip while the file is open; its waveform and its frames. BadClip says why a file cannot be used.
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

SAMPLE_RATE = 16000                                  # Hz, of every waveform
WHOLE = 0, math.inf                                  # as a segment: all of a file, however long
CLEARLY_LONGER, MINUTE = 5, 60                       # seconds, see `time_range`
MAX_SECONDS, MAX_BYTES = 600, 2 ** 28                # of a file without a segment; of the packets of a clip
MAX_PIXELS = 8192 * 4320                             # of a frame
TOLERANCE = 1e-4                                     # seconds: time stamps are rounded


class BadClip(Exception):
    """A clip that cannot be used. The message is the reason, in a few words."""


class TransientReadError(BadClip):
    """The disk or the memory failed, not the clip. The clip may be readable another time."""


class Demuxed(NamedTuple):
    """The packets of an open file; of a whole video, only those that its segment needs."""
    video: av.VideoStream
    audio: av.AudioStream
    video_packets: list  # (second at which its frame is shown, packet), in decoding order
    audio_packets: list  # likewise
    times: list          # the seconds at which frames are shown, sorted; known without decoding


# ------------------------------------------------------------------------------ opening a file

@contextmanager
def open_clip(path, segment=None):
    """Context manager: the file as a Demuxed. segment: (start, seconds) of the clip in its video, see `time_range`. Any
    error of PyAV, here or in the body of the `with`, becomes a BadClip."""
    path = os.path.abspath(path)   # or ffmpeg takes a name with a colon for a protocol
    if not os.path.isfile(path):
        raise BadClip('file missing')
    if not os.path.getsize(path):
        raise BadClip('empty file')
    action = 'opened as a video'
    try:
        with av.open(path, metadata_errors='replace') as container:   # titles are not always UTF-8
            action = 'decoded: damaged or truncated'
            yield _demux(container, time_range(container, segment))
    except (av.FFmpegError, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:   # PyAV raises them all
        kind = TransientReadError if _is_transient(error, path) else BadClip
        raise kind(f'cannot be {action} ({getattr(error, "strerror", None) or type(error).__name__})') from error


def _is_transient(error, path):
    """Whether memory or disk caused the error. FFmpeg reports damage as an I/O error too: so read the raw bytes."""
    try:
        with open(path, 'rb') as file:
            while file.read(2 ** 20):
                pass
    except OSError:
        return True
    return isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM


def time_range(container, segment):
    """The (first, last) second to read of a file; None: all of it. Of a file that is clearly longer than its segment,
    read the segment. Of a file longer than a minute without a segment, read the middle minute."""
    if container.duration is None or segment == WHOLE:
        return None
    first, length = (container.start_time or 0) / av.time_base, container.duration / av.time_base
    start, seconds = segment or (0, 0)
    if seconds and length > seconds + CLEARLY_LONGER and start + seconds <= length + 1:
        return first + start, first + start + seconds
    if length > MINUTE:
        return first + length / 2 - MINUTE / 2, first + length / 2 + MINUTE / 2
    return None


def _demux(container, span):
    """Read all packets of the span (None: of the file) → Demuxed. Raises BadClip. Only packets tell reliably when each
    frame is shown, where decoding can start, and whether the file ends too early."""
    video, audio = container.streams.best('video'), container.streams.best('audio')
    for stream, kind in ((video, 'video'), (audio, 'audio')):
        if stream is None:
            raise BadClip(f'no {kind} stream')
        if stream.codec_context is None:
            raise BadClip(f'unknown {kind} codec')

    # refuse large frames before anything is decoded: a decoder keeps several of them in memory
    context = video.codec_context
    pixels, bits = context.width * context.height, context.format.padded_bits_per_pixel if context.format else 12
    if pixels > MAX_PIXELS or pixels * bits > 2 * MAX_PIXELS * 12:
        raise BadClip(f'frames of {context.width} × {context.height} pixels of {bits} bits are too large')
    context.options = {'max_pixels': str(MAX_PIXELS)}          # a frame may be larger than the header says
    context.thread_count = 1                                   # there is one worker process per core already
    video_packets, audio_packets = _packets(container, video, audio, span)

    # Packets to discard come before the cut of a file that was cut without re-encoding: decoded but never shown.
    times = sorted(time for time, packet in video_packets if not packet.is_discard)
    if span:
        times = [time for time in times if span[0] - TOLERANCE <= time < span[1]]
    if len(times) < 2:
        raise BadClip('only one frame' if times else 'no video frames')
    clip = Demuxed(video, audio, video_packets, audio_packets, times)
    if times[-1] < span[1] - 2 if span else _is_truncated(container, clip):
        raise BadClip('truncated')
    return clip


def _packets(container, video, audio, span):
    """→ [(second, packet)] of the video, the same of the audio, both in the order of the file. Raises BadClip."""
    first, last = span or (-math.inf, math.inf)
    if span:
        container.seek(max(0, int((first - 1) * av.time_base)))        # to a key frame before the span
    packets = {video.index: [], audio.index: []}
    size, begin = 0, None
    for packet in container.demux(video, audio):
        if not packet.size or packet.is_corrupt:
            continue
        is_video = packet.stream_index == video.index
        time = _time(packet, (video if is_video else audio).time_base)
        begin = time if begin is None else begin
        if time >= last + 2:                                           # audio and video packets are interleaved
            break
        if is_video and packet.is_keyframe and time <= first:
            packets[video.index].clear()                               # decoding can start at this key frame
        if is_video or first <= time < last:
            packets[packet.stream_index].append((time, packet))
            size += packet.size
        if size > MAX_BYTES or not span and time - begin > MAX_SECONDS:
            raise BadClip(f'more than {MAX_BYTES >> 20} MB or {MAX_SECONDS} s where a clip should be')
    return packets[video.index], packets[audio.index]


def _is_truncated(container, clip):
    """Whether the file holds clearly less than its header announces. Half a second is allowed: headers are a little
    off, and the last packet has a length."""
    if container.format.name == 'avi':     # ffmpeg corrects the duration of an AVI: compare the number of frames
        return len(clip.video_packets) < 0.9 * clip.video.frames
    last, short = 0.0, False
    for stream, packets in ((clip.video, clip.video_packets), (clip.audio, clip.audio_packets)):
        times = [time for time, _ in packets] or [0.0]
        last = max(last, *times)
        if stream.duration is not None:
            short |= max(times) - min(times) < 0.95 * float(stream.duration * stream.time_base) - 0.5
    if clip.video.duration is None and container.duration is not None:   # Matroska and WebM: one duration for all
        short |= last < 0.95 * container.duration / av.time_base - 0.5
    return short


def _time(item, time_base):
    """The second at which a packet or frame is shown; AVI only knows when it is decoded. Raises BadClip. Not
    frame.time: that is nan for the last frames that a decoder returns."""
    ticks = item.dts if item.pts is None else item.pts
    if ticks is None:
        raise BadClip('a frame without a time')
    return ticks * time_base.numerator / time_base.denominator


# ------------------------------------------------------------------------------------ decoding

def decode_audio(clip):
    """All of the audio → waveform (samples,) float32 in [-1, 1], mono, 16 kHz; and the second at which it starts.
    Raises BadClip where it is silent."""
    resampler = av.AudioResampler('s16', 'mono', SAMPLE_RATE)
    start, chunks = None, []
    for frame in decode_packets(clip.audio.codec_context, clip.audio_packets):
        if start is None:
            start = _time(frame, clip.audio.time_base)
        chunks += resampler.resample(frame)
    if chunks:
        chunks += resampler.resample(None)
    waveform = np.concatenate([chunk.to_ndarray()[0] for chunk in chunks] or [np.zeros(0, np.int16)])
    if len(waveform) == 0 or np.abs(waveform.astype(np.int32)).max() <= 3:   # of 32767: codecs add this much to silence
        raise BadClip('silent audio')
    return torch.from_numpy(waveform).float() / 32768, start


def frames_at(clip, targets):
    """Iterate over the frames on the screen at the targets (seconds, ascending): av.VideoFrame as stored, not yet
    rotated. Past the end, the last frame. Raises BadClip."""
    packets, last = clip.video_packets, None
    keys = [(time, i) for i, (time, packet) in enumerate(packets) if packet.is_keyframe]
    wanted = {clip.times[max(0, bisect_right(clip.times, target + TOLERANCE) - 1)] for target in targets}

    def last_key(target):
        return max((i for time, i in keys if time <= target + TOLERANCE), default=0)

    # Targets with the same key frame before them are decoded in one go; the decoder skips what lies between two groups.
    for key, group in itertools.groupby(targets, last_key):
        group = list(group)
        until = max(group[-1] + TOLERANCE, clip.times[0])
        end = max(i for i, (time, _) in enumerate(packets) if time <= until)
        clip.video.codec_context.flush_buffers()
        for frame in decode_packets(clip.video.codec_context, packets[key:end + 1], wanted):
            # the frame before this one is on the screen at all targets before this one's time
            time = _time(frame, clip.video.time_base)
            while group and time > group[0] + TOLERANCE:
                yield last or frame
                group.pop(0)
            last = frame
        if last is None:
            raise BadClip('no frame can be decoded')
        yield from [last] * len(group)


def decode_packets(context, packets, wanted=None):
    """[(second, packet)] → iterator of frames, in the order in which they are shown. wanted: seconds of the frames that
    are needed; None: all. Frames that no other needs are not decoded: 1.5 times as fast, same pixels."""
    for time, packet in packets:
        if wanted is not None and packet.pts is not None and context.name in ('h264', 'hevc'):
            context.skip_frame = 'DEFAULT' if time in wanted else 'NONREF'
        yield from context.decode(packet)
    yield from context.decode(None)                            # what the decoder still holds


def decode_frames(clip, targets, size):
    """The frames at the targets, resized to `size` at the shorter side and rotated upright
    → (len(targets), 3, H, W) uint8. Raises BadClip."""
    pixels, previous, shape = [], None, None
    for frame in frames_at(clip, targets):                     # one at a time: frames may be large
        scale = size / min(frame.width, frame.height)
        shape = shape or (round(frame.width * scale), round(frame.height * scale))
        if frame is not previous:
            resized = frame.reformat(*shape, 'rgb24', interpolation='BILINEAR').to_ndarray()
        pixels.append(resized)
        previous = frame
    # Phones store a rotated picture and the angle that turns it back: counterclockwise, as in rot90.
    frames = np.rot90(np.stack(pixels), round(previous.rotation / 90), axes=(1, 2))  # T, H, W, 3
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())
