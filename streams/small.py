"""A prepared clip: the same clip again, small and quick to read (ours).

In:  a clip, or a segment of a whole video.
Out: the bytes of a Matroska file: eight frames a second, each a picture of its own, the shorter side 256 at most; and
     the sound as it is heard here, 16 kHz and uncompressed. Read like any clip, it gives nearly the same tensors.
"""
import io
import math
from fractions import Fraction

import av
import numpy as np

from data import SAMPLE_RATE, BadClip, decode_audio, frames_at, opened
from patches import Sizes

FPS, SHORTER, MOST_PIXELS = 8, 256, 2 ** 18      # frames a second; their shorter side; at most so many pixels
QUALITIES = (5, 6, 7, 9, 12, 16, 22, 31)         # of MJPEG's quantizer: at 5, the eye sees no difference
BYTES, SECONDS, LONGEST = 1_500_000, 10, 120     # what a clip of 10 s or less may take; seconds of the longest clip
COMMENT = 'prepared clip: 8 frames a second, 16 kHz'          # in the file: it says that it is one


def small_clip(path, segment=None):
    """A clip, or a segment (start, seconds) of a whole video, → the bytes of its prepared file. Raises BadClip."""
    with opened(path, segment) as clip:
        waveform, audio_start = decode_audio(clip)
        targets = timetable(clip.times)
        pictures = _pictures(frames_at(clip, targets))
        later = round(1000 * (audio_start - targets[0]))           # ms; below 0, the sound begins before the picture
        most = BYTES * max(1, len(targets) / FPS / SECONDS)
        for quality in QUALITIES:
            content = _matroska(pictures, max(0, -later), waveform, max(0, later), quality)
            if len(content) <= most:
                break
    return content


def timetable(times):
    """When each of a clip's frames is shown → the seconds whose frames are kept, 1/8 s apart.

    Laid out from the clip's middle: `read_clip` takes its frames at half seconds from there, and finds the same ones in
    what is kept, whose middle it is. On any other grid, evaluation would see the frame before. It takes those of a clip
    of less than four seconds from the start on, and holds the last.
    """
    gap = (times[-1] - times[0]) / (len(times) - 1)
    span = times[-1] + gap - times[0]
    if span > LONGEST:
        raise BadClip(f'{span:.0f} s, more than {LONGEST}, where a clip should be')
    n = max(2, 2 * round(span * FPS / 2))                          # even: as many before the middle as from it on
    first = times[0] + (span - n / FPS) / 2 if span >= Sizes().num_frames else times[0]
    targets = [first + k / FPS for k in range(n)]
    return targets if span >= Sizes().num_frames else [*targets[:-1], max(targets[-1], times[-1])]


def _pictures(frames):
    """Frames as they are stored → small, the right way up, in JPEG's colours."""
    pictures, before, size = [], None, None
    jpeg = dict(format='yuvj420p', dst_colorspace='ITU601', dst_color_range='JPEG')
    for frame in frames:
        size = size or _small(frame.width, frame.height)           # the first one's: some change on the way
        if frame is not before:
            picture = frame.reformat(*size, interpolation='BICUBIC', **jpeg)
        pictures.append(picture)
        before = frame
    turns = round(before.rotation / 90)                            # counterclockwise, as rot90 counts
    if turns:
        turned = (np.rot90(picture.to_ndarray(format='rgb24'), turns) for picture in pictures)
        pictures = [av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), 'rgb24').reformat(**jpeg)
                    for pixels in turned]
    return pictures


def _small(width, height):
    """The sides of a picture, the shorter one at most 256 pixels.

    A reader rounds the longer side, and rounding twice can end elsewhere: 480 × 360 is read as 299 × 224, but by way of
    341 × 256 as 298 × 224: half a pixel at the edges, and 7 dB. So here 299 × 224 is enlarged, to 342 × 256.
    """
    shorter = min(width, height)
    scale = min(1, SHORTER / shorter, math.sqrt(MOST_PIXELS / (width * height)))
    if scale == 1:
        return width, height
    return [max(2, round(round(side * 224 / shorter) * shorter * scale / 224)) for side in (width, height)]


def _matroska(pictures, first, waveform, audio_first, quality):
    """Pictures and sound → a file's bytes, the same for the same clip. first, audio_first: ms at which they begin"""
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='matroska', options={'fflags': 'bitexact'}) as file:    # else with random numbers
        file.metadata['comment'] = COMMENT
        video = file.add_stream('mjpeg', rate=FPS, options={'qmin': str(quality), 'qmax': str(quality)})
        video.width, video.height, video.pix_fmt = pictures[0].width, pictures[0].height, 'yuvj420p'
        video.codec_context.time_base, video.codec_context.thread_count = Fraction(1, 1000), 1
        audio = file.add_stream('pcm_s16le', rate=SAMPLE_RATE, layout='mono')
        packets = []
        for k, picture in enumerate(pictures):
            picture.pts, picture.time_base = first + 1000 * k // FPS, Fraction(1, 1000)
            packets += video.encode(picture)
        packets += video.encode(None)
        samples = (waveform * 32768).short().numpy()[None]
        for start in range(0, samples.shape[1], SAMPLE_RATE):      # packets of a second: few are quick to read
            block = av.AudioFrame.from_ndarray(samples[:, start:start + SAMPLE_RATE], 's16', 'mono')
            block.sample_rate, block.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            block.pts = audio_first * SAMPLE_RATE // 1000 + start
            packets += audio.encode(block)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):
            file.mux(packet)
    return buffer.getvalue()


def is_prepared(path):
    try:
        with av.open(str(path)) as file:
            return COMMENT in file.metadata.values()
    except (av.FFmpegError, OSError, ValueError):
        return False
