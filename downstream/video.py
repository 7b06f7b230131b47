"""A video of where models look: a clip with its sound, its frames under I_v, its spectrogram under I_a (Fig. 2, 17).

In:  a video with sound, of any length; one or several models of a run.
Out: an mp4 file (H.264, AAC) with the clip's own frames and sound. It shows the clip; for each model, the frames under
     I_v; below, for each model, the spectrogram under I_a; over these, a moving cursor.

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
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from avm import attend
from config import UserError
from data import SAMPLE_RATE, audio_around, centre_crop, spectrogram
from patches import patchify
from utils.video import WHOLE, BadClip, decode_audio, decode_frames, decode_sound, display_size, frames_at, open_clip
from utils.video import upright

PER_SECOND = 2                          # windows of a model
TILE, TITLE, STRIP = 320, 26, 84        # pixels: longer side of a frame, height of its title, height of a spectrogram
GAP, LEFT, BELOW = 12, 96, 40           # pixels: between frames; left of the spectrograms and below them
COLUMNS = 4                             # frames in a row
SOUND_RATE = 48000                      # Hz
TICK = Fraction(1, 90000)               # seconds: the unit of frame times


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
    audio_start: tuple          # K       second of the sound at which the spectrogram begins
    spectrogram: torch.Tensor   # steps, f  of the whole clip
    sound: tuple                # its first and last second, from the first frame on
    seconds: float              # from the first frame to the end of the last


def read_windows(clip, cfg):
    """A Demuxed clip → Windows"""
    T, first, seconds = cfg.num_frames, clip.start, clip.end - clip.start
    waveform, audio_start = decode_audio(clip)
    K = int(seconds * PER_SECOND) + 1
    frames = decode_frames(clip, [first + k / PER_SECOND for k in range(K)], cfg.image_size)

    # the moment's own frame is in the middle of its window, unless the clip begins or ends too near
    own = [min(T - 1, max(min(T // 2, k // PER_SECOND), T - 1 - (K - 1 - k) // PER_SECOND)) for k in range(K)]
    ids = torch.tensor([[k + (i - own[k]) * PER_SECOND for i in range(T)] for k in range(K)])

    # the sound around the middle of each window
    middles = [first + k / PER_SECOND + (T - 1) / 2 - own[k] - audio_start for k in range(K)]
    audio, starts = zip(*(audio_around(waveform, middle, cfg) for middle in middles))
    whole = copy.copy(cfg)
    whole.audio_frames = max(1, int(len(waveform) / (SAMPLE_RATE // 1000) / cfg.frame_shift))
    sound = audio_start - first, audio_start - first + whole.audio_frames * cfg.frame_shift / 1000
    return Windows(centre_crop(frames, cfg.image_size), ids.clamp(0, K - 1), own, torch.stack(audio), starts,
                   spectrogram(waveform, whole), sound, seconds)


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

class Page(NamedTuple):
    """What does not move: titles and spectrograms. And where frames and cursor go, in pixels."""
    image: Image.Image
    corners: list       # (left, top) of the clip's frame, and of each model's
    top: int            # of the spectrograms


def draw_page(names, size, windows, maps_a):
    """size (width, height) of the frames; maps_a: one (steps, ⌊f/p⌋) in [0, 1] per model → Page"""
    (w, h), columns = size, min(COLUMNS, 1 + len(names))
    corners = [(k % columns * (w + GAP), TITLE + k // columns * (h + TITLE)) for k in range(1 + len(names))]
    top = corners[-1][1] + h + GAP
    width, height = even(max(columns * (w + GAP), 2 * TILE)), even(top + len(names) * STRIP + BELOW)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    for (x, y), title in zip(corners, ['the clip', *(f'$I_v$, {name}' for name in names)]):
        figure.text((x + w / 2) / width, 1 - (y - 7) / height, title, fontsize=9, ha='center')

    # the spectrogram in gray, I_a over it
    borders = dict(left=LEFT / width, right=1 - GAP / width, top=1 - top / height, bottom=BELOW / height)
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False, gridspec_kw=borders)[:, 0]
    extent = (*windows.sound, 0, 1)
    for axis, name, I_a in zip(axes, names, maps_a):
        axis.imshow(windows.spectrogram.numpy().T, origin='lower', aspect='auto', cmap='gray', extent=extent)
        axis.imshow(I_a.T, origin='lower', aspect='auto', alpha=0.6, extent=extent)
        axis.set(xlim=(0, windows.seconds), yticks=[])
        axis.set_ylabel('$I_a$\n' + name.replace(' ', '\n'), rotation=0, ha='right', va='center', fontsize=8)
    axes[-1].set_xlabel('seconds', fontsize=8)
    canvas.draw()
    return Page(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]), corners, top)


def draw_moment(page, share, frame, maps):
    """The page at a share of the clip's seconds: frame, an image; maps [(rows, columns)] in [0, 1] → image"""
    image, (w, h) = page.image.copy(), frame.size
    image.paste(frame, page.corners[0])
    # each map covers the square that the model sees
    side = min(w, h)
    left, upper = (w - side) // 2, (h - side) // 2
    gray = frame.convert('L').convert('RGB')
    square = gray.crop((left, upper, left + side, upper + side))
    for (x, y), heat in zip(page.corners[1:], maps):
        colours = Image.fromarray(colormaps['viridis'](heat, bytes=True)[..., :3]).resize((side, side), Image.NEAREST)
        image.paste(gray, (x, y))
        image.paste(Image.blend(square, colours, 0.6), (x + left, y + upper))
    # the cursor: white, with a black border
    x, bottom = LEFT + round(share * (image.width - LEFT - GAP)), image.height - BELOW
    ImageDraw.Draw(image).rectangle((x - 2, page.top, x + 2, bottom), 'white', 'black')
    return image


def even(x):
    """Rounded up to an even number, as H.264 needs with chroma subsampling"""
    return int(x) + int(x) % 2


def tile(clip, frame):
    """An av.VideoFrame → an upright image, the longer side TILE"""
    size = display_size(clip, frame)
    return Image.fromarray(upright(frame, [even(side * TILE / max(size)) for side in size]))


# --------------------------------------------------------------------------------------- the file

def write(clip, windows, names, maps_v, maps_a, out):
    """Write the video frame by frame, with the clip's sound."""
    first, page = clip.times[0], None
    with av.open(str(out), 'w', format='mp4', options={'movflags': '+faststart'}) as file:
        rate = Fraction((len(clip.times) - 1) / (clip.times[-1] - first)).limit_denominator(1001)
        video = file.add_stream('libx264', rate=rate, options={'crf': '20', 'preset': 'veryfast'})
        packets = encode_sound(file, clip, first)
        for time, frame in zip(clip.times, frames_at(clip, clip.times)):
            pixels = tile(clip, frame)
            if page is None:
                page = draw_page(names, pixels.size, windows, maps_a)
                video.width, video.height = page.image.size
                video.pix_fmt, video.codec_context.time_base = 'yuv420p', TICK
            maps = [map_at(maps, time - first) for maps in maps_v]
            encoded = av.VideoFrame.from_image(draw_moment(page, (time - first) / windows.seconds, pixels, maps))
            encoded.pts, encoded.time_base = round((time - first) / TICK), TICK
            packets += video.encode(encoded)
        packets += video.encode()
        # sound and frames of the same time lie side by side in the file
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)


def encode_sound(file, clip, first):
    """Add the clip's sound to the file as AAC → its packets. They begin with the first frame: earlier sound is cut, and
    silence is put before later sound."""
    samples, start = decode_sound(clip, 'fltp', 'stereo', SOUND_RATE)
    late = round((start - first) * SOUND_RATE)                 # samples
    samples = np.pad(samples, ((0, 0), (max(0, late), 0)))[:, max(0, -late):]

    stream = file.add_stream('aac', rate=SOUND_RATE, layout='stereo')
    sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format='fltp', layout='stereo')
    sound.sample_rate, sound.pts, sound.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    return stream.encode(sound) + stream.encode()
