"""Files whose content is known, for the tests: the brightness of a frame encodes its time, and each sound is a tone."""
import contextlib
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from config import Sizes
from streams.prepare import small_clip

SMALL = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)
MIDDLE = Sizes(image_size=32, num_frames=4, audio_frames=400, mel_bins=128, frame_shift=10.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tone(seconds, rate, hertz=1000.0, level=0.3, onset=0.0):
    t = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * hertz * t) * (t >= onset)


def sweep(seconds, rate=16000):
    """A sound whose pitch tells the time: 300 + 500 t Hz"""
    t = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (300 * t + 250 * t * t))


def heard(spectrogram):
    """(steps, f) of a sweep → the second of the sweep at each step"""
    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)
    step = (mel(8000) - mel(20)) / (spectrogram.shape[1] + 1)
    return (700 * (np.exp((mel(20) + step * (spectrogram.numpy().argmax(1) + 1)) / 1127) - 1) - 300) / 500


def brightness(n, fps):
    """Time in tenths of a second, modulo 40, as a level of grey. Levels are 5 apart, to survive lossy coding."""
    return 20 + 5 * (int(n / fps * 10 + 1e-6) % 40)


def make(path, seconds=5.0, fps=10, size=(64, 48), rate=16000, layout='mono', vcodec='libx264', acodec='aac',
         sound=None, image=None, frames=None, gop=12, bframes=2, options=None, shift=0.0, audio_shift=0.0, x264='',
         aspect=None, keep_video=lambda t: True, keep_audio=lambda t: True, last=0):
    """Write a file with video (vcodec=None: without) and audio (acodec=None: without) → its path as str.

    image(n) → uint8 (H, W, 3); the default is grey at `brightness`. shift: seconds added to all times. x264: further
    options of the encoder. aspect: of a pixel. keep_video, keep_audio: whether to keep a packet, by its seconds. last:
    seconds that the last frame stays.
    """
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
                video.options = {'preset': 'ultrafast', 'crf': '10', 'bf': str(bframes), 'sc_threshold': '0',
                                 'x264-params': x264}
            if vcodec.startswith('libvpx'):
                video.options = {'deadline': 'realtime', 'cpu-used': '8', 'crf': '5', 'b': '2M'}
            if vcodec == 'mpeg4':
                video.bit_rate = 4_000_000
            if aspect:
                video.codec_context.sample_aspect_ratio = aspect
        if acodec:
            audio = out.add_stream(acodec, rate=rate, layout=layout)
        muxed = []
        if video:
            count = round(seconds * fps) if frames is None else frames
            for n in range(count):
                picture = image(n) if image else np.full((size[1], size[0], 3), brightness(n, fps), np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, 'rgb24').reformat(format='yuv420p', threads=1)
                frame.pts, frame.time_base = n, 1 / Fraction(fps).limit_denominator(1001)
                muxed += [(p, shift) for p in video.encode(frame)]
            muxed += [(p, shift) for p in video.encode(None)]
            if last:
                muxed[-1][0].duration = int(last / muxed[-1][0].time_base)
        if audio:
            channels = len(audio.codec_context.layout.channels)
            for at in range(0, len(sound), 960):
                part = np.tile(sound[at:at + 960].astype(np.float32), (channels, 1))
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), 'fltp', layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
                muxed += [(p, shift + audio_shift) for p in audio.encode(frame)]
            muxed += [(p, shift + audio_shift) for p in audio.encode(None)]
        muxed.sort(key=lambda item: float(item[0].dts * item[0].time_base))
        for packet, seconds in muxed:
            ticks = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            keep = keep_video if packet.stream is video else keep_audio
            if keep(float(packet.pts * packet.time_base)):
                out.mux(packet)
    return path


def prepared(path, segment=None):
    """The prepared clip as a file next to the original → its path as str"""
    small = Path(path).with_suffix('.small.mkv')
    small.write_bytes(small_clip(str(path), segment))
    return str(small)


def remux(path, *sources):
    """Write the streams of several files into one, without encoding them again → its path as str"""
    with contextlib.ExitStack() as stack:
        files, out = [stack.enter_context(av.open(str(file))) for file in sources], av.open(str(path), 'w')
        stack.enter_context(out)
        streams = {id(stream): out.add_stream_from_template(stream) for file in files for stream in file.streams}
        for packet in (packet for file in files for packet in file.demux() if packet.size):
            packet.stream = streams[id(packet.stream)]
            out.mux(packet)                                      # the muxer puts them in order
    return str(path)


def write_matrix(path, matrix):
    """Write a display matrix (a, b, c, d) into the track header of an mp4 with video first: x' = a·x + c·y,
    y' = b·x + d·y, as ISO 14496-12 has it."""
    a, b, c, d = matrix
    raw = bytearray(Path(path).read_bytes())
    at = raw.index(b'tkhd') + 4 + 40                         # version 0: the matrix is 40 bytes after the name
    raw[at:at + 36] = struct.pack('>9i', a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    Path(path).write_bytes(raw)


def times_of(video):
    """video (T, 3, S, S) → the time of each frame from its brightness: tenths of a second, modulo 40"""
    return [round((level - 20) / 5) for level in video.float().mean((1, 2, 3)).tolist()]


def vggsound_folder(tmp_path, rows):
    """Write vggsound.csv with these rows, and an empty folder of videos → the folder"""
    (tmp_path / 'video').mkdir(exist_ok=True)
    content = rows if isinstance(rows, bytes) else ''.join(row + '\n' for row in rows).encode()
    (tmp_path / 'vggsound.csv').write_bytes(content)
    return tmp_path
