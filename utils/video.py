"""Decoding one video file with PyAV: packets, frames at given times, and the sound (App. B).

In:  a file, whole or damaged, and optionally a segment of it.
Out: a Demuxed clip while the file is open; its waveform and its frames. BadClip says why a file cannot be used.

Time stamps place everything: a hole in the sound is silence, and a frame stays until the next one.
"""
import itertools
import math
import os
import re
from bisect import bisect_right
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import NamedTuple

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type

SAMPLE_RATE = 16000                                  # Hz, of every waveform
WHOLE = 0, math.inf                                  # as a segment: all of a file, however long
CLEARLY_LONGER = 5                                   # seconds: a file this much longer than its segment is the whole video
MINUTE = 60                                          # seconds: of longer files, the middle minute is read
MAX_SECONDS = 600                                    # longest file that is read whole
MAX_BYTES = 2 ** 28                                  # of a clip's packets
MAX_PIXELS = 8192 * 4320                             # of a frame
TOLERANCE = 1e-4                                     # seconds: time stamps are rounded
HOLE = 0.05                                          # seconds: time stamps of real sound are off by up to 0.02
MAX_KEYS = 10                                        # key packets to try, in a file that starts between two
REORDERED = 16                                       # packets: H.264 decodes a frame at most this late


class BadClip(Exception):
    """A clip that cannot be used. The message is the reason, in a few words."""


class TransientReadError(BadClip):
    """The disk or the memory failed, not the clip. The clip may be readable another time."""


class Demuxed(NamedTuple):
    """The packets of an open file; of a whole video, only those that its segment needs. Times are in seconds."""
    video: av.VideoStream
    audio: av.AudioStream
    video_packets: list  # (time at which its frame is shown, packet), in decoding order
    audio_packets: list  # likewise
    times: list          # the times at which frames are shown, sorted; known without decoding
    start: float         # when the first frame is shown, or the segment starts
    end: float           # when the last frame ends, or the segment
    decoded: float       # when the first frame that can be decoded is shown; it may be before `start`
    has_times: bool      # False: the file only has the order of its frames (AVI)


# ------------------------------------------------------------------------------ opening a file

@contextmanager
def open_clip(path, segment=None):
    """Context manager: the file as a Demuxed. segment: (start, seconds) of the clip in its video, see `time_range`. Any
    error of PyAV, here or in the body of the `with`, becomes a BadClip: FFmpegError, OSError, ValueError, …"""
    path = os.path.abspath(path)   # or ffmpeg takes a name with a colon for a protocol
    if not os.path.isfile(path):
        raise TransientReadError('file missing')       # it existed when the folder was listed: the disk may be failing
    if not os.path.getsize(path):
        raise BadClip('empty file')
    action = 'opened as a video'
    try:
        with av.open(path, metadata_errors='replace') as container:   # titles are not always UTF-8
            action = 'decoded: damaged or truncated'
            yield _demux(container, segment)
    except (av.FFmpegError, OSError, EOFError, ValueError, OverflowError, RuntimeError, MemoryError) as error:     # PyAV
        kind = TransientReadError if isinstance(error, MemoryError) or not readable(path) else BadClip
        raise kind(f'cannot be {action} ({getattr(error, "strerror", None) or type(error).__name__})') from error


def readable(path):
    """Whether the disk gives all bytes of a file. FFmpeg reports damage as an I/O error, and an I/O error as damage."""
    try:
        with open(path, 'rb') as file:
            while file.read(2 ** 20):
                pass
        return True
    except OSError:
        return False


def _demux(container, segment):
    """Read the packets of a file, or of its segment → Demuxed. Raises BadClip."""
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

    lengths = announced_lengths(container, video, audio)
    span = time_range(container, lengths, segment)
    if not span:
        return _read(container, video, audio, lengths, -math.inf, math.inf)
    for earlier in (1, 30):                                    # until output starts at a key packet before the span
        container.seek(max(0, int((span[0] - earlier) * av.time_base)))
        clip = _read(container, video, audio, lengths, *span)
        if clip.decoded <= min(clip.video_packets[0][0], span[0]) + TOLERANCE:
            break
    return clip


def announced_lengths(container, video, audio):
    """The seconds that the header announces for picture and sound: a number for each, or one for both; [] if unknown.
    Other streams, such as subtitles, may last longer."""
    if container.format.name == 'avi' and video.frames:        # its durations are corrected by ffmpeg, and do not count
        return [float(video.frames * video.time_base)]
    if 'mov' in container.format.name and video.duration and audio.duration:
        return [float(stream.duration * stream.time_base) for stream in (video, audio)]
    if not container.streams.subtitles:
        return [container.duration / av.time_base] if container.duration is not None else []
    tags = [re.fullmatch(r'(\d+):(\d+):([\d.]+)', stream.metadata.get('DURATION', '')) for stream in (video, audio)]
    ends = [3600 * float(tag[1]) + 60 * float(tag[2]) + float(tag[3]) for tag in tags if tag]     # of Matroska
    return [max(ends)] if ends else []


def time_range(container, lengths, segment):
    """The (first, last) second to read of a file; None: all of it. Of a file that is clearly longer than its segment,
    read the segment. Of another file longer than a minute, read the middle minute: it has no segment, or its
    segment lies past its end."""
    if not lengths or segment == WHOLE:
        return None
    first, length = (container.start_time or 0) / av.time_base, max(lengths)
    start, seconds = segment or (0, 0)
    if seconds and length > seconds + CLEARLY_LONGER and start + seconds <= length + 1:
        return first + start, first + start + seconds
    if length > MINUTE:
        return first + length / 2 - MINUTE / 2, first + length / 2 + MINUTE / 2
    return None


def _read(container, video, audio, lengths, first, last):
    """Read the packets that the seconds from first to last need, from where the container is → Demuxed. Raises BadClip.
    Only packets tell reliably when each frame is shown, and whether the file ends too early."""
    packets = {video.index: [], audio.index: []}
    size, begin, has_times = 0, None, container.format.name != 'avi'
    for packet in container.demux(video, audio):
        if not packet.size or packet.is_corrupt:
            continue
        is_video = packet.stream_index == video.index
        if is_video and (packet.pts is None or not has_times):
            has_times, packet.pts = False, packet.dts          # in the order of decoding, see `_decode_video`
        time = _time(packet, (video if is_video else audio).time_base)
        begin = time if begin is None else begin
        if time >= last + 2:                                           # audio and video packets are interleaved
            break
        if is_video or first <= time < last:
            packets[packet.stream_index].append((time, packet))
            size += packet.size
        if size > MAX_BYTES or last == math.inf and time - begin > MAX_SECONDS:     # damage may be years of silence
            raise BadClip(f'more than {MAX_BYTES >> 20} MB or {MAX_SECONDS} s where a clip should be')

    # half a second less than announced is allowed, as headers are a little off
    ranges = [_range(packets[stream.index]) for stream in (video, audio)]
    if last < math.inf:
        lacks = ranges[0][1] < last - 2
    elif len(lengths) == 1:
        lacks = max(end for _, end in ranges) < 0.95 * lengths[0] - 0.5
    else:
        lacks = any(end - start < 0.95 * length - 0.5 for (start, end), length in zip(ranges, lengths))
    if lacks:
        raise BadClip('truncated')

    # Packets to discard come before the cut of a file that was cut without re-encoding: decoded but never shown.
    shown = [(time, packet) for time, packet in packets[video.index] if not packet.is_discard]
    clip = Demuxed(video, audio, packets[video.index], packets[audio.index], [], first, last, 0, has_times)
    if shown:
        key, decoded = _first_decoded(clip)                    # a file may start between two key frames
        clip = clip._replace(video_packets=clip.video_packets[key:], decoded=decoded)
        shown = [(time, packet) for time, packet in shown if decoded - TOLERANCE <= time < last]
    times = sorted(time for time, _ in shown)
    times = times[max(0, bisect_right(times, first + TOLERANCE) - 1):]         # with the frame before the first second
    if len(times) < 2:
        raise BadClip('only one frame' if times else 'no video frames')

    # the last frame stays for its duration, but not after the sound
    after = times[-1] + (times[-1] - times[0]) / (len(times) - 1)
    end = min(_range(shown)[1], max(after, ranges[1][1]))
    return clip._replace(times=times, start=max(first, times[0]), end=min(last, end))


def _range(packets):
    """[(time, packet)] → when they start, and when the last one ends: after its duration, or if that is unknown, after
    the mean interval"""
    if not packets:
        return 0, 0
    first, (last, packet) = min(time for time, _ in packets), max(packets, key=itemgetter(0))
    duration = float((packet.duration or 0) * packet.time_base) or (last - first) / max(1, len(packets) - 1)
    return first, last + duration


def _time(item, time_base):
    """The second at which a packet or frame is shown. Raises BadClip. Not frame.time: that is nan for the last frames
    that a decoder returns."""
    ticks = item.dts if item.pts is None else item.pts
    if ticks is None:
        raise BadClip('a frame without a time')
    return ticks * time_base.numerator / time_base.denominator


# ------------------------------------------------------------------------------------ decoding

def decode_packets(context, packets, needed=None):
    """[(time, packet)] → iterator of frames, in the order in which they are shown. needed: times of the frames that the
    caller uses; None: all. Other frames are skipped where none depends on them: 1.5 times as fast, same pixels."""
    context.flush_buffers()
    for time, packet in packets:
        if needed is not None and context.name in ('h264', 'hevc'):
            context.skip_frame = 'DEFAULT' if time in needed else 'NONREF'
        yield from context.decode(packet)
    yield from context.decode(None)                            # what the decoder still holds


def _decode_video(clip, start, stop, needed=None):
    """Iterate over the (time, frame) of some packets, from the first frame that the decoder does not call damaged."""
    packets = clip.video_packets[start:stop]
    order = iter(sorted(time for time, _ in packets))
    frames = decode_packets(clip.video.codec_context, packets, needed if clip.has_times else None)
    frames = ((_time(frame, clip.video.time_base) if clip.has_times else next(order, packets[-1][0]), frame)
              for frame in frames)
    return itertools.dropwhile(lambda item: item[1].is_corrupt, frames)


def _key_packets(clip):
    return [i for i, (_, packet) in enumerate(clip.video_packets) if packet.is_keyframe] or [0]


def _first_decoded(clip):
    """The first key packet from which a frame can be decoded, and the time of this frame. Raises BadClip."""
    if clip.video.codec_context.codec.intra_only:              # as in prepared clips
        return 0, clip.video_packets[0][0]
    for key in _key_packets(clip)[:MAX_KEYS]:
        with suppress(av.InvalidDataError):
            for stop in (key + 1, None):                       # nearly always the first packet is enough
                for time, _ in _decode_video(clip, key, stop):
                    return key, time
    raise BadClip('no frame can be decoded')


def frames_at(clip, targets):
    """Iterate over the frames on the screen at the targets (seconds, ascending): av.VideoFrame as stored, not yet
    upright. Past the end, the last frame. Raises BadClip."""
    packets = clip.video_packets
    keys = _key_packets(clip) if clip.has_times else [0]       # counted from the start if there is only the order
    needed = {clip.times[max(0, bisect_right(clip.times, target + TOLERANCE) - 1)] for target in targets}

    def last_key(target):
        return max((i for i in keys if packets[i][0] <= target + TOLERANCE), default=0)

    # Targets with the same key frame before them are decoded in one go; the decoder skips what lies between two groups.
    for key, group in itertools.groupby(targets, last_key):
        group = list(group)
        until = max(group[-1], clip.times[0]) + TOLERANCE
        stop = 1 + max(i for i, (time, _) in enumerate(packets) if time <= until) + (not clip.has_times) * REORDERED

        # A key packet does not prove that output starts there (intra refresh). If it starts later, go further back.
        before = [i for i in keys if i <= key]
        # Go back 1, 2, 4, … key packets, and at last to the first packet.
        starts = [before[-2 ** n] for n in range(len(before).bit_length())] + [0]
        for start in starts:
            frames = _decode_video(clip, start, stop, needed)
            time, shown = next(frames, (math.inf, None))
            if time <= packets[start][0] + TOLERANCE:
                break
        if shown is None:
            raise BadClip('no frame can be decoded')

        # a frame is on the screen until the next one's time
        for time, frame in frames:
            while group and time > group[0] + TOLERANCE:
                yield shown
                group.pop(0)
            if not group:
                break
            shown = frame
        yield from [shown] * len(group)


def decode_frames(clip, targets, size):
    """The frames at the targets, upright, the shorter side `size` → (len(targets), 3, H, W) uint8. Raises BadClip."""
    pictures, previous, shape = [], None, None
    for frame in frames_at(clip, targets):                     # one at a time: frames may be large
        if frame is not previous:
            if shape is None:                                  # the first frame's: a video may change its size
                width, height = display_size(clip, frame)
                scale = size / min(width, height)
                shape = round(width * scale), round(height * scale)
            picture = upright(frame, shape)
        pictures.append(picture)
        previous = frame
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


def display_size(clip, frame):
    """Width and height of a frame as it is shown, upright. Pixels may not be square."""
    ratio = float(clip.video.sample_aspect_ratio or 1)
    ratio = ratio if 0.01 < abs(math.log(ratio)) < 2 else 1        # 448:447 is rounding; beyond 7:1, damage
    size = frame.width * ratio, frame.height
    a, b = _display_matrix(frame)[0]
    return size[::-1] if abs(b) > abs(a) else size


def upright(frame, size, interpolation='BILINEAR'):
    """A frame resized to size (width, height), upright → (height, width, 3) uint8"""
    (a, b), (c, d) = _display_matrix(frame)                        # x' = a·x + c·y, y' = b·x + d·y
    turned = abs(b) > abs(a)
    # one thread: a child process that frees a scaler with its parent's threads waits for them for ever
    width, height = size[::-1] if turned else size
    pixels = frame.reformat(width, height, 'rgb24', interpolation=interpolation, threads=1).to_ndarray()
    if turned:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


def is_upright(frame):
    return _display_matrix(frame) == [[1, 0], [0, 1]]


def _display_matrix(frame):
    """How the stored picture is turned and mirrored to be upright → 2×2: phones store it as the sensor sees it."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    matrix = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2] / 2 ** 16 if data else np.eye(2)
    return (matrix if matrix.any() else np.eye(2)).tolist()


def decode_sound(clip, format, layout, rate):
    """All of the sound → samples (channels, n), and the second at which they start. Holes are filled with silence, and
    overlaps are cut. Raises BadClip."""
    frames = decode_packets(clip.audio.codec_context, clip.audio_packets)
    start, blocks, length = None, [], 0
    for _, part in itertools.groupby(frames, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        first = next(part)
        start = _time(first, clip.audio.time_base) if start is None else start
        expected = round((start + length / rate) * first.sample_rate)         # at its own rate
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_abuffer(format=first.format, layout=first.layout, sample_rate=first.sample_rate,
                              time_base=clip.audio.time_base),
            graph.add('aresample', f'{rate}:async=1:min_hard_comp={HOLE}:first_pts={expected}'),
            graph.add('aformat', f'sample_fmts={format}:channel_layouts={layout}:sample_rates={rate}'),
            graph.add('abuffersink')).configure()
        for frame in itertools.chain([first], part, [None]):
            graph.push(frame)
            with suppress(av.BlockingIOError, av.EOFError):    # no more output until the next frame
                while True:
                    blocks.append(graph.pull().to_ndarray())
                    length += blocks[-1].shape[1]
    if not length:
        raise BadClip('silent audio')
    return np.concatenate(blocks, 1), start


def decode_audio(clip):
    """The sound → waveform (samples,) float32 in [-1, 1], mono, 16 kHz; and the second at which it starts. Raises
    BadClip where it is silent."""
    samples, start = decode_sound(clip, 's16', 'mono', SAMPLE_RATE)
    if np.abs(samples[0].astype(np.int32)).max() <= 3:         # of 32767: codecs add this much to silence
        raise BadClip('silent audio')
    return torch.from_numpy(samples[0]).float() / 32768, start
