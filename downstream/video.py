"""A video of where models look: a clip with its sound, its frames under I_v, its spectrogram under I_a (Fig. 2, 17).

In:  a video with sound, of any length; models of a run, one or several.
Out: an mp4 file (H.264, AAC) at the clip's own frame rate: the clip; beside it, of each model, its frames under I_v;
     below, of each model, its spectrogram under I_a, with a cursor that runs along.

A model sees T frames a second apart. So for a moment every half second a window is asked that has a frame just then,
and between two moments the maps are mixed. Each map goes from dark to bright between its least and greatest value over
the whole clip. What is no part of the square that the model sees stays gray.
"""
import dataclasses
import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import matplotlib.pyplot as plt
import numpy as np
import torch

from avm import score
from data import WHOLE, BadClip, audio_around, centre_crop, check_clip, decode_audio, decode_frames, frames_at, opened
from data import spectrogram
from patches import UserError, whole

HOP = 0.5           # seconds between two moments at which a model is asked; a second is a whole number of them
TILE = 320          # pixels of the longer side of a frame as it is shown
MOST_COLUMNS = 4    # of frames beside each other
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)   # Hz, that AAC knows
TICK = Fraction(1, 90000)                                                 # seconds: times of the frames are whole ones


def make(run, file, out):
    """The video of a file, as the models of a Recorded run see it → out. Raises UserError; what training would leave
    out, with its words."""
    if Path(out).suffix != '.mp4':
        raise UserError(f'--out {out}: the video is an mp4 file, so its name must end in .mp4')
    begun = Path(f'{out}.{os.getpid()}.tmp')
    try:
        reason, _ = check_clip(file, WHOLE)
        if reason:
            raise BadClip(reason)
        with opened(file, WHOLE) as clip:
            heard = listen(clip, run.cfg)
        names, maps_v, maps_a = [], [], []
        for _, name, model in run.models():                    # one after the other: none is needed for long
            I_v, I_a = looked_at(run.cfg, *run.load(model), heard, run.device)
            names.append('initial' if name == 'initial' else f'after {name}')
            maps_v.append(scaled(I_v))
            maps_a.append(scaled(I_a))
        with opened(file, WHOLE) as clip:
            write(clip, heard, names, maps_v, maps_a, begun)
        os.replace(begun, out)
    except BadClip as bad:
        raise UserError(f'{Path(file).name}: {bad}')
    finally:
        begun.unlink(missing_ok=True)


# -------------------------------------------------------------------------------- what models say

class Heard(NamedTuple):
    """A clip as models are asked about it."""
    frames: torch.Tensor        # K, 3, S, S  uint8: at each of K moments, HOP apart, from the first frame on
    windows: torch.Tensor       # K, T    of each moment the frames of its window, as moments
    place: list                 # K       which of them is the moment's own
    audio: torch.Tensor         # K, t, f
    begins: list                # K       second of the sound at which that spectrogram begins
    spectrogram: torch.Tensor   # steps, f  of the whole clip
    step: float                 # seconds from one of its steps to the next
    offset: float               # seconds from the first frame to the first sound
    seconds: float              # from the first frame to the end of the last


def listen(clip, sizes):
    """A Demuxed → Heard"""
    T, first, seconds, a_second = sizes.num_frames, clip.times[0], duration(clip), round(1 / HOP)
    waveform, audio_start = decode_audio(clip)
    K = int(seconds / HOP) + 1
    frames = centre_crop(decode_frames(clip, [first + k * HOP for k in range(K)], sizes.image_size), sizes.image_size)
    before = [min(T // 2, k // a_second) for k in range(K)]                            # frames of a window before its
    place = [min(T - 1, max(b, T - 1 - (K - 1 - k) // a_second)) for k, b in enumerate(before)]     # moment's own
    windows = torch.tensor([[k + (i - here) * a_second for i in range(T)] for k, here in enumerate(place)])
    middles = [first + k * HOP + (T - 1) / 2 - here - audio_start for k, here in enumerate(place)]
    audio, begins = zip(*(audio_around(waveform, middle, sizes) for middle in middles))
    steps = max(1, int(len(waveform) / 16 / sizes.frame_shift))                        # 16 samples are a millisecond
    return Heard(frames, windows.clamp(0, K - 1), place, torch.stack(audio), list(begins),
                 spectrogram(waveform, dataclasses.replace(sizes, audio_frames=steps)), sizes.frame_shift / 1000,
                 audio_start - first, seconds)


@torch.no_grad()
def looked_at(cfg, backbone, avm, heard, device):
    """→ I_v in each moment's own frame (K, rows, columns); I_a over the whole clip (steps, ⌊f/p⌋), the mean over the
    windows that hear it, nan where none does"""
    found, p, steps = [], cfg.patch_size, len(heard.spectrogram)
    sums, number = torch.zeros(steps, cfg.grid_a[1]), torch.zeros(steps, 1)
    for audio, window, here, begin in zip(heard.audio, heard.windows, heard.place, heard.begins):
        batch = dict(audio=audio[None].to(device), video=heard.frames[window][None].to(device))
        s = score(cfg, backbone, avm, whole(batch, p))
        found.append(s.importance_v[0].float().cpu().reshape(cfg.grid_v)[here])
        at = round(begin * 1000 / cfg.frame_shift)
        own = s.importance_a[0].float().cpu().reshape(cfg.grid_a).repeat_interleave(p, 0)[:max(0, steps - at)]
        sums[at:at + len(own)] += own
        number[at:at + len(own)] += 1
    return torch.stack(found), sums / number


def scaled(x):
    """To 0 … 1, from its least to its greatest."""
    known = x[~x.isnan()]
    return ((x - known.min()) / (known.max() - known.min() + 1e-12)).numpy()


def duration(clip):
    """Seconds from the first frame to the end of the last, which lasts as long as others do."""
    return (clip.times[-1] - clip.times[0]) * len(clip.times) / (len(clip.times) - 1)


# ---------------------------------------------------------------------------------------- the page

class Page(NamedTuple):
    """What does not move, and where the rest goes, in pixels."""
    picture: np.ndarray   # height, width, 3  uint8
    tiles: list           # (top, left) of the clip, and of each model's frames
    strips: list          # (top, bottom) of each model's spectrogram
    ends: tuple           # (left, right) of all of them: the clip's first and last moment


def page(names, size, heard, maps_a):
    """size (h, w) of a frame as shown; maps_a [(steps, ⌊f/p⌋)] in 0 … 1 → Page, by matplotlib, for the words on it"""
    (h, w), columns = size, min(MOST_COLUMNS, 1 + len(names))
    pad, title, strip, left = 12, 24, 78, 96
    width, below = even(max(columns * (w + pad) + pad, 640)), -(-(1 + len(names)) // columns) * (h + title) + pad
    height = even(below + len(names) * (strip + pad) + 40)
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    tiles = [(title + k // columns * (h + title), pad + k % columns * (w + pad)) for k in range(1 + len(names))]
    for (top, x), name in zip(tiles, ['the clip', *(f'$I_v$, {name}' for name in names)]):
        figure.text(x / width, 1 - (top - 6) / height, name, fontsize=9, va='bottom')
    strips = [(below + k * (strip + pad), below + k * (strip + pad) + strip) for k in range(len(names))]
    for (top, bottom), name, I_a in zip(strips, names, maps_a):
        axis = figure.add_axes((left / width, 1 - bottom / height, (width - left - pad) / width, strip / height))
        draw_sound(axis, heard, I_a)
        axis.set_ylabel('$I_a$\n' + name.replace(' ', '\n'), rotation=0, ha='right', va='center', fontsize=8)
        axis.tick_params(labelbottom=name is names[-1], labelsize=8)
    axis.set_xlabel('seconds', fontsize=8, labelpad=0)
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return Page(picture, tiles, strips, (left, width - pad))


def draw_sound(axis, heard, I_a):
    """The spectrogram in gray, I_a over it, at the seconds at which they are heard."""
    extent = (heard.offset, heard.offset + len(I_a) * heard.step, 0, 1)
    axis.imshow(heard.spectrogram.numpy().T, origin='lower', aspect='auto', cmap='gray', extent=extent)
    axis.imshow(I_a.T, origin='lower', aspect='auto', cmap='viridis', alpha=0.6, extent=extent)
    axis.set(xlim=(0, heard.seconds), yticks=[])


def even(x):
    """H.264 with half of the colours' pixels has even sides."""
    return int(x) + int(x) % 2


# -------------------------------------------------------------------------------------- the frames

def moving(page, time, seconds, pixels, maps):
    """The page at a time: pixels (h, w, 3) of the clip, maps [(rows, columns)] in 0 … 1 of now → (height, width, 3)"""
    now, (h, w) = page.picture.copy(), pixels.shape[:2]
    for (top, left), heat in zip(page.tiles, [None, *maps]):
        now[top:top + h, left:left + w] = pixels if heat is None else under(pixels, heat)
    x = page.ends[0] + min(round(time / seconds * (page.ends[1] - page.ends[0])), page.ends[1] - page.ends[0] - 1)
    for top, bottom in page.strips:
        now[top:bottom, x - 2:x + 3] = 0
        now[top:bottom, x - 1:x + 2] = 255
    return now


def under(pixels, heat):
    """pixels (h, w, 3) in gray, and over the square in their middle a map (rows, columns) in 0 … 1"""
    h, w = pixels.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    gray = pixels.mean(-1, keepdims=True).repeat(3, -1)
    at = lambda cells: np.arange(side) * cells // side
    colour = 255 * plt.get_cmap('viridis')(heat)[..., :3][at(heat.shape[0])[:, None], at(heat.shape[1])]
    square = gray[top:top + side, left:left + side]
    square[:] = 0.4 * square + 0.6 * colour
    return gray.astype(np.uint8)


def at_time(maps, time):
    """maps (K, rows, columns), one every HOP seconds → that of a time, mixed of the two beside it"""
    k = min(time / HOP, len(maps) - 1)
    before, after = int(k), min(int(k) + 1, len(maps) - 1)
    return maps[before] + (k - before) * (maps[after] - maps[before])


def write(clip, heard, names, maps_v, maps_a, out):
    """The video, frame by frame, and the sound along with it."""
    frames, first, the_page = frames_at(clip, clip.times), clip.times[0], None
    with av.open(str(out), 'w', format='mp4', options={'movflags': '+faststart'}) as file:
        rate = Fraction((len(clip.times) - 1) / (clip.times[-1] - first)).limit_denominator(1001)
        video = file.add_stream('libx264', rate=rate, options={'crf': '20', 'preset': 'veryfast'})
        sound = Sound(file, clip, first)
        for time, frame in zip(clip.times, frames):
            pixels = upright(frame)
            if the_page is None:
                the_page = page(names, pixels.shape[:2], heard, maps_a)
                video.height, video.width = the_page.picture.shape[:2]
                video.pix_fmt, video.codec_context.time_base = 'yuv420p', TICK
            now = moving(the_page, time - first, heard.seconds, pixels, [at_time(m, time - first) for m in maps_v])
            shown = av.VideoFrame.from_ndarray(now, format='rgb24')
            shown.pts, shown.time_base = round((time - first) / TICK), TICK
            file.mux(video.encode(shown))
            sound.reach(time - first)
        file.mux(video.encode())
        sound.reach(float('inf'))


def upright(frame):
    """An av.VideoFrame → pixels (h, w, 3) uint8, the longer side TILE, the right way up"""
    scale = TILE / max(frame.width, frame.height)
    size = even(frame.width * scale), even(frame.height * scale)
    return np.rot90(frame.reformat(*size, 'rgb24', interpolation='BILINEAR').to_ndarray(), round(frame.rotation / 90))


class Sound:
    """The clip's sound as AAC, from the first frame on: what comes before is cut, what is missing is silence."""

    def __init__(self, file, clip, first):
        context = clip.audio.codec_context
        self.rate = context.sample_rate if context.sample_rate in RATES else 48000
        self.layout = 'mono' if context.layout.nb_channels == 1 else 'stereo'
        self.file, self.stream = file, file.add_stream('aac', rate=self.rate, layout=self.layout)
        self.written, self.blocks = 0, self.decoded(clip, first)

    def decoded(self, clip, first):
        """→ blocks of samples (channels, n) float32, of which the first sample is heard with the first frame"""
        resampler, lead = av.AudioResampler('fltp', self.layout, self.rate), None
        for _, packet in [*clip.audio_packets, (None, None)]:
            for frame in clip.audio.codec_context.decode(packet):
                if lead is None:                                       # samples by which the sound comes later
                    lead = round((float(frame.pts * frame.time_base) - first) * self.rate)
                    yield np.zeros((1 if self.layout == 'mono' else 2, max(0, lead)), np.float32)
                    early = max(0, -lead)
                for block in resampler.resample(frame):
                    samples = block.to_ndarray()
                    yield samples[:, early:]
                    early = max(0, early - samples.shape[1])
        for block in resampler.resample(None):
            yield block.to_ndarray()

    def reach(self, time):
        """Write on, to a second of the video, so that both lie side by side in the file."""
        while self.blocks is not None and self.written < time * self.rate:
            samples = next(self.blocks, None)
            if samples is None:
                self.file.mux(self.stream.encode())
                self.blocks = None
            elif samples.shape[1]:
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format='fltp', layout=self.layout)
                block.sample_rate, block.pts, block.time_base = self.rate, self.written, Fraction(1, self.rate)
                self.written += samples.shape[1]
                self.file.mux(self.stream.encode(block))
