"""A video of where models look: a clip with its sound, and its frames under I_v (Fig. 2, 17).

In:  a video with sound, of at most ten minutes; one or several models of a run.
Out: an mp4 file (H.264, AAC) with the clip's own frames and sound. It shows the clip and, for each model, the frames
     under I_v.

A model sees T frames, one second apart. So it gets one window every half second, with a frame at just this moment; maps
in between are interpolated. The colours of a map go from its minimum to its maximum over the whole clip.
"""
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from avm import attend
from config import UserError
from data import audio_around, centre_crop
from patches import patchify
from utils.checkpoint import atomic_file, check_writable
from utils.video import WHOLE, BadClip, decode_audio, decode_frames, decode_sound, display_size, frames_at, open_clip
from utils.video import upright

PER_SECOND = 2                          # windows of a model
TILE, TITLE, GAP = 320, 26, 12          # pixels, even: longer side of a frame, height of its title, gap to the next
COLUMNS = 4                             # frames in a row
SOUND_RATE = 48000                      # Hz
TICK = Fraction(1, 90000)               # seconds: the unit of frame times


def make_video(run, file, out):
    """Write the video of a file, as the models of a FinishedRun see it, to out. Raises UserError."""
    if Path(out).suffix != '.mp4':
        raise UserError(f'--out {out}: the video is an mp4 file, so its name must end in .mp4')
    if Path(out).exists() and Path(file).exists() and Path(out).samefile(file):
        raise UserError(f'--out {out} is the video itself: choose another name')
    check_writable(Path(out).parent, '--out')
    try:
        with open_clip(file, WHOLE) as clip:
            windows = read_windows(clip, run.cfg)
        titles, maps = ['the clip'], []
        for _, name, model in run.models():
            titles.append('I_v, initial' if name == 'initial' else f'I_v, after {name}')
            maps.append(attend_windows(run.cfg, *run.load_model(model), windows, run.device))
        with atomic_file(out) as partial, open_clip(file, WHOLE) as clip:
            write(clip, titles, maps, partial)
    except BadClip as error:
        raise UserError(f'{Path(file).name}: {error}')


# ----------------------------------------------------------------------------------------- windows

class Windows(NamedTuple):
    """K windows of a clip, one every 1 / PER_SECOND seconds from the first frame on."""
    frames: torch.Tensor        # K, 3, S, S  uint8: the frame at each window's moment
    ids: torch.Tensor           # K, T    which of the K frames are in the window, a second apart
    own_index: list             # K       which of these is the moment's own
    audio: torch.Tensor         # K, t, f


def index_in_window(k, K, T):
    """Which of its window's T frames is the k-th of K moments: the middle one, unless the clip begins or ends too near"""
    seconds_before, seconds_after = k // PER_SECOND, (K - 1 - k) // PER_SECOND
    index = min(T // 2, seconds_before)                # a frame for each second before
    index = max(index, T - 1 - seconds_after)          # and for each second after
    return min(index, T - 1)                           # the clip is shorter than a window


def read_windows(clip, cfg):
    """A Demuxed clip → Windows"""
    T, first = cfg.num_frames, clip.start
    waveform, audio_start = decode_audio(clip)
    K = int((clip.end - first) * PER_SECOND) + 1
    frames = decode_frames(clip, [first + k / PER_SECOND for k in range(K)], cfg.image_size)

    # the frames of each window
    own_index = [index_in_window(k, K, T) for k in range(K)]
    ids = torch.tensor([[k + (i - own_index[k]) * PER_SECOND for i in range(T)] for k in range(K)])

    # the sound around the middle of each window
    middles = [first + k / PER_SECOND + (T - 1) / 2 - own_index[k] - audio_start for k in range(K)]
    audio = torch.stack([audio_around(waveform, middle, cfg)[0] for middle in middles])
    return Windows(centre_crop(frames, cfg.image_size), ids.clamp(0, K - 1), own_index, audio)


@torch.no_grad()
def attend_windows(cfg, backbone, avm, windows, device):
    """→ I_v of each moment's own frame (K, rows, columns), from 0 to 1 over the whole clip"""
    maps = []
    for audio, ids, index in zip(windows.audio, windows.ids, windows.own_index):
        batch = dict(audio=audio[None].to(device), video=windows.frames[ids][None].to(device))
        I_v = attend(cfg, backbone, avm, patchify(batch, cfg.patch_size)).I_v
        maps.append(I_v[0].float().cpu().reshape(cfg.grid_v)[index])
    maps = torch.stack(maps)
    return ((maps - maps.min()) / (maps.max() - maps.min() + 1e-12)).numpy()


def map_at(maps, time):
    """maps (K, rows, columns), PER_SECOND a second → the linear interpolation at a time in seconds"""
    k = min(time * PER_SECOND, len(maps) - 1)
    before, after = int(k), min(int(k) + 1, len(maps) - 1)
    return maps[before] + (k - before) * (maps[after] - maps[before])


# ---------------------------------------------------------------------------------------- pictures

def draw_page(titles, frame, maps):
    """frame: an image; maps [(rows, columns)] in [0, 1] → an image of the frame, plain and under each map, with a title
    above each"""
    # each map covers the square that the model sees
    (w, h), side = frame.size, min(frame.size)
    left, upper = (w - side) // 2, (h - side) // 2
    gray = frame.convert('L').convert('RGB')
    square = gray.crop((left, upper, left + side, upper + side))
    pictures = [frame]
    for heat in maps:
        colours = Image.fromarray(colormaps['viridis'](heat, bytes=True)[..., :3]).resize((side, side), Image.NEAREST)
        pictures.append(gray.copy())
        pictures[-1].paste(Image.blend(square, colours, 0.6), (left, upper))

    # side by side, in rows of COLUMNS
    rows, columns = -(-len(pictures) // COLUMNS), min(COLUMNS, len(pictures))
    page = Image.new('RGB', (columns * (w + GAP), rows * (h + TITLE) + GAP), 'white')
    font = ImageFont.truetype(findfont('DejaVu Sans'), 14)
    for k, (title, picture) in enumerate(zip(titles, pictures)):
        x, y = k % COLUMNS * (w + GAP), TITLE + k // COLUMNS * (h + TITLE)
        ImageDraw.Draw(page).text((x + 4, y - 20), title, 'black', font)
        page.paste(picture, (x, y))
    return page


def tile(clip, frame):
    """An av.VideoFrame → an upright image, the longer side TILE; even sides, as H.264 needs with chroma subsampling"""
    size = display_size(clip, frame)
    return Image.fromarray(upright(frame, [2 * round(side * TILE / max(size) / 2) for side in size]))


# --------------------------------------------------------------------------------------- the file

def write(clip, titles, maps, out):
    """Write the video frame by frame, with the clip's sound."""
    first = clip.times[0]
    with av.open(str(out), 'w', format='mp4', options={'movflags': '+faststart'}) as file:
        rate = Fraction((len(clip.times) - 1) / (clip.times[-1] - first)).limit_denominator(1001)
        video = file.add_stream('libx264', rate=rate, options={'crf': '20', 'preset': 'veryfast'})
        video.pix_fmt, video.codec_context.time_base = 'yuv420p', TICK
        packets = encode_sound(file, clip, first)
        for time, frame in zip(clip.times, frames_at(clip, clip.times)):
            page = draw_page(titles, tile(clip, frame), [map_at(own, time - first) for own in maps])
            if time == first:
                video.width, video.height = page.size
            encoded = av.VideoFrame.from_image(page)
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
