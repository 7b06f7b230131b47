"""Files whose content is known, for the tests: the brightness of a frame encodes its time, and each sound is a tone."""
from fractions import Fraction

import av
import numpy as np


def tone(seconds, rate, hertz=1000.0, level=0.3, onset=0.0):
    t = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * hertz * t) * (t >= onset)


def brightness(n, fps):
    """Time in tenths of a second, modulo 40, as a level of grey. Levels are 5 apart, to survive lossy coding."""
    return 20 + 5 * (int(n / fps * 10 + 1e-6) % 40)


def make(path, seconds=5.0, fps=10, size=(64, 48), rate=16000, layout='mono', vcodec='libx264', acodec='aac',
         sound=None, image=None, frames=None, gop=12, bframes=2, options=None, shift=0.0, audio_shift=0.0):
    """Write a file with video (vcodec=None: without) and audio (acodec=None: without) → its path as str.

    image(n) → uint8 (H, W, 3); the default is grey at `brightness`. shift: seconds added to all times.
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
        for packet, seconds in muxed:
            ticks = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            out.mux(packet)
    return path


def times_of(video):
    """video (T, 3, S, S) → the time of each frame from its brightness: tenths of a second, modulo 40"""
    return [round((level - 20) / 5) for level in video.float().mean((1, 2, 3)).tolist()]


def vggsound_folder(tmp_path, rows):
    """Write vggsound.csv with these rows, and an empty folder of videos → the folder"""
    (tmp_path / 'video').mkdir(exist_ok=True)
    content = rows if isinstance(rows, bytes) else ''.join(row + '\n' for row in rows).encode()
    (tmp_path / 'vggsound.csv').write_bytes(content)
    return tmp_path
