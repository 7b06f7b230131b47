"""A video of where models look: a clip with its sound, its frames under I_v, its spectrogram under I_a (Fig. 2, 17).

In:  a video with sound, of any length; one or several models of a run.
Out: an mp4 file (H.264, AAC) with the clip's own frames and sound. It shows the clip; for each model, the frames under
     I_v; below, for each model, the spectrogram under I_a, with a moving cursor.

A model sees T frames, one second apart. So it gets one window every half second, with a frame at just this moment; maps
in between are interpolated. The colours of a map go from its minimum to its maximum over the whole clip.
"""
import copy
import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from avm import attend
from config import UserError
from data import SAMPLE_RATE, audio_around, centre_crop, spectrogram
from patches import patchify
from utils.video import WHOLE, BadClip, decode_audio, decode_frames, decode_packets, frames_at, open_clip

PER_SECOND = 2      # windows of a model
TILE = 320          # pixels of the longer side of a frame
COLUMNS = 4         # frames in a row
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)   # Hz
TICK = Fraction(1, 90000)                                                     # seconds: the unit of frame times


def make(run, file, out):
    """Write the video of a file, as the models of a FinishedRun see it, to out. Raises UserError."""
    if Path(out).suffix != '.mp4':
        raise UserError(f'--out {out}: the video is an mp4 file, so its name must end in .mp4')
    partial = Path(f'{out}.{os.getpid()}.tmp')
    try:
        with open_clip(file, WHOLE) as clip:
            windows = read_windows(clip, run.cfg)
        names, maps_v, maps_a = [], [], []
        for _, name, model in run.models():
            I_v, I_a = attend_windows(run.cfg, *run.load_model(model), windows, run.device)
            names.append('initial' if name == 'initial' else f'after {name}')
            maps_v.append(to_unit_range(I_v))
            maps_a.append(to_unit_range(I_a))
        with open_clip(file, WHOLE) as clip:
            write(clip, windows, names, maps_v, maps_a, partial)
        os.replace(partial, out)
    except BadClip as error:
        raise UserError(f'{Path(file).name}: {error}')
    finally:
        partial.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------- windows

class Windows(NamedTuple):
    """K windows of a clip, one every 1 / PER_SECOND seconds from the first frame on."""
    frames: torch.Tensor        # K, 3, S, S  uint8: the frame at each window's moment
    ids: torch.Tensor           # K, T    which of the K frames are in the window, a second apart
    own: list                   # K       which of these is the moment's own
    audio: torch.Tensor         # K, t, f
    audio_start: list           # K       second of the sound at which the spectrogram begins
    spectrogram: torch.Tensor   # steps, f  of the whole clip
    step: float                 # seconds of one of its steps
    offset: float               # seconds from the first frame to the first sound
    seconds: float              # from the first frame to the end of the last


def read_windows(clip, cfg):
    """A Demuxed clip → Windows"""
    T, first = cfg.num_frames, clip.times[0]
    seconds = (clip.times[-1] - first) * len(clip.times) / (len(clip.times) - 1)       # the last frame lasts, too
    waveform, audio_start = decode_audio(clip)
    K = int(seconds * PER_SECOND) + 1
    frames = decode_frames(clip, [first + k / PER_SECOND for k in range(K)], cfg.image_size)

    # the moment's own frame is in the middle of its window, unless the clip begins or ends too near
    own = [min(T - 1, max(min(T // 2, k // PER_SECOND), T - 1 - (K - 1 - k) // PER_SECOND)) for k in range(K)]
    ids = torch.tensor([[k + (i - own[k]) * PER_SECOND for i in range(T)] for k in range(K)])

    # the sound around the middle of each window
    middles = [first + k / PER_SECOND + (T - 1) / 2 - own[k] - audio_start for k in range(K)]
    audio, starts = zip(*(audio_around(waveform, middle, cfg) for middle in middles))
    sizes = copy.copy(cfg)
    sizes.audio_frames = max(1, int(len(waveform) / (SAMPLE_RATE // 1000) / cfg.frame_shift))     # the whole clip
    return Windows(centre_crop(frames, cfg.image_size), ids.clamp(0, K - 1), own, torch.stack(audio), list(starts),
                   spectrogram(waveform, sizes), cfg.frame_shift / 1000, audio_start - first, seconds)


@torch.no_grad()
def attend_windows(cfg, backbone, avm, windows, device):
    """→ I_v of each moment's own frame (K, rows, columns); I_a over the whole clip (steps, ⌊f/p⌋): the mean over the
    windows that include the step, NaN without any"""
    steps = len(windows.spectrogram)
    maps_v, total, number = [], torch.zeros(steps, cfg.grid_a[1]), torch.zeros(steps, 1)
    for audio, ids, own, start in zip(windows.audio, windows.ids, windows.own, windows.audio_start):
        batch = dict(audio=audio[None].to(device), video=windows.frames[ids][None].to(device))
        out = attend(cfg, backbone, avm, patchify(batch, cfg.patch_size))
        maps_v.append(out.importance_v[0].float().cpu().reshape(cfg.grid_v)[own])
        # add I_a at the window's place in the clip
        I_a = out.importance_a[0].float().cpu().reshape(cfg.grid_a).repeat_interleave(cfg.patch_size, 0)
        at = round(start * 1000 / cfg.frame_shift)
        I_a = I_a[:max(0, steps - at)]
        total[at:at + len(I_a)] += I_a
        number[at:at + len(I_a)] += 1
    return torch.stack(maps_v), total / number


def to_unit_range(x):
    """To [0, 1], from its minimum to its maximum; NaN stays NaN"""
    known = x[~x.isnan()]
    return ((x - known.min()) / (known.max() - known.min() + 1e-12)).numpy()


def map_at(maps, time):
    """maps (K, rows, columns), PER_SECOND a second → the linear interpolation at a time in seconds"""
    k = min(time * PER_SECOND, len(maps) - 1)
    before, after = int(k), min(int(k) + 1, len(maps) - 1)
    return maps[before] + (k - before) * (maps[after] - maps[before])


# ---------------------------------------------------------------------------------------- pictures

class Screen:
    """What the video shows, drawn by matplotlib. Only frames, maps and cursors are drawn anew for each picture."""

    def __init__(self, names, size, windows, maps_a):
        """size: (h, w) of the frames; maps_a: one (steps, ⌊f/p⌋) per model"""
        (h, w), columns = size, min(COLUMNS, 1 + len(names))
        rows = -(-(1 + len(names)) // columns)
        heights = rows * (h + 30), len(names) * 95 + 30
        width, height = even(max(columns * (w + 12), 640)), even(sum(heights))
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout='constrained')
        self.canvas = FigureCanvasAgg(figure)
        top, bottom = figure.subfigures(2, 1, height_ratios=heights)

        # frames: the clip's own, then those of each model in gray with a map over the square that the model sees
        tiles = top.subplots(rows, columns, squeeze=False).flatten()
        self.tiles = tiles[:1 + len(names)]
        for axis in tiles:
            axis.axis('off')
        for axis, name in zip(self.tiles, ['the clip', *(f'$I_v$, {name}' for name in names)]):
            axis.set_title(name, fontsize=9)
        self.frames = [axis.imshow(np.zeros((h, w, 3), np.uint8), animated=True) for axis in self.tiles]
        side = min(h, w)
        left, upper = (w - side) / 2 - 0.5, (h - side) / 2 - 0.5
        square = (left, left + side, upper + side, upper)
        self.maps = [axis.imshow([[0]], extent=square, alpha=0.6, vmin=0, vmax=1, animated=True)
                     for axis in self.tiles[1:]]
        for axis in self.tiles:
            axis.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))

        # sound: the spectrogram in gray, I_a over it, a cursor
        self.strips = bottom.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        extent = (windows.offset, windows.offset + len(maps_a[0]) * windows.step, 0, 1)
        for axis, name, I_a in zip(self.strips, names, maps_a):
            axis.imshow(windows.spectrogram.numpy().T, origin='lower', aspect='auto', cmap='gray', extent=extent)
            axis.imshow(I_a.T, origin='lower', aspect='auto', alpha=0.6, extent=extent)
            axis.set(xlim=(0, windows.seconds), yticks=[])
            axis.set_ylabel('$I_a$\n' + name.replace(' ', '\n'), rotation=0, ha='right', va='center', fontsize=8)
        self.strips[-1].set_xlabel('seconds', fontsize=8)
        self.cursors = [axis.axvline(0, color=colour, linewidth=width, animated=True)
                        for axis in self.strips for colour, width in (('black', 3.6), ('white', 2.2))]

        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def draw(self, time, pixels, maps):
        """time in seconds, pixels (h, w, 3) uint8, maps [(rows, columns)] in [0, 1] → (height, width, 3) uint8"""
        self.canvas.restore_region(self.background)
        gray = pixels.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
        for k, image in enumerate(self.frames):
            image.set_data(gray if k else pixels)
        for image, heat in zip(self.maps, maps):
            image.set_data(heat)
        for line in self.cursors:
            line.set_xdata([time, time])
        for artist in (*self.frames, *self.maps, *self.cursors):
            artist.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def even(x):
    """Rounded up to an even number, as H.264 needs with chroma subsampling"""
    return int(x) + int(x) % 2


def upright(frame):
    """An av.VideoFrame → pixels (h, w, 3) uint8, the longer side TILE, rotated as its file says"""
    scale = TILE / max(frame.width, frame.height)
    size = even(frame.width * scale), even(frame.height * scale)
    return np.rot90(frame.reformat(*size, 'rgb24', interpolation='BILINEAR').to_ndarray(), round(frame.rotation / 90))


# --------------------------------------------------------------------------------------- the file

def write(clip, windows, names, maps_v, maps_a, out):
    """Write the video frame by frame, with the clip's sound."""
    first, screen = clip.times[0], None
    with av.open(str(out), 'w', format='mp4', options={'movflags': '+faststart'}) as file:
        rate = Fraction((len(clip.times) - 1) / (clip.times[-1] - first)).limit_denominator(1001)
        video = file.add_stream('libx264', rate=rate, options={'crf': '20', 'preset': 'veryfast'})
        packets = encode_sound(file, clip, first)
        for time, frame in zip(clip.times, frames_at(clip, clip.times)):
            pixels = upright(frame)
            if screen is None:
                screen = Screen(names, pixels.shape[:2], windows, maps_a)
                video.width, video.height = screen.canvas.get_width_height()
                video.pix_fmt, video.codec_context.time_base = 'yuv420p', TICK
            picture = screen.draw(time - first, pixels, [map_at(maps, time - first) for maps in maps_v])
            encoded = av.VideoFrame.from_ndarray(picture, format='rgb24')
            encoded.pts, encoded.time_base = round((time - first) / TICK), TICK
            packets += video.encode(encoded)
        packets += video.encode()
        # sound and frames of the same time lie side by side in the file
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)


def encode_sound(file, clip, first):
    """Add the clip's sound to the file as AAC → its packets. They begin with the first frame: earlier sound is cut, and
    silence is put before later sound."""
    context = clip.audio.codec_context
    rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
    layout = 'mono' if context.layout.nb_channels == 1 else 'stereo'
    frames = list(decode_packets(context, clip.audio_packets))
    late = round((float(frames[0].pts * frames[0].time_base) - first) * rate)         # samples
    resampler = av.AudioResampler('fltp', layout, rate)
    blocks = [block.to_ndarray() for frame in [*frames, None] for block in resampler.resample(frame)]
    samples = np.concatenate(blocks, 1)
    samples = np.pad(samples, ((0, 0), (max(0, late), 0)))[:, max(0, -late):]

    stream = file.add_stream('aac', rate=rate, layout=layout)
    sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format='fltp', layout=layout)
    sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
    return stream.encode(sound) + stream.encode()
