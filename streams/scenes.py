"""Sounding shapes whose source is known: what the built-in clips show and sound like (ours).

In:  a class and a seed, and the `Sizes` of what is wanted.
Out: a scene; its frames, its sound, its spectrogram; and `truth`, the patches in which the source is seen and heard.

A class is a look (a shape in a colour) with a voice (an octave, a timbre, a tremolo). A clip lasts four seconds. In it
one object of the class sounds and others, of other classes, are silent, over a textured ground; the sound track also
has noise and a tone that comes from off the screen. What differs between two clips of a class is heard as well as seen:

    height of the sounding object  ↔  its pitch          brightness of the sounding object  ↔  its loudness

Silent objects rise, sink and flash just so, but at other times: only who knows the voice of a look finds the source.
As the source is known, where the attention looks can be measured.
"""
import colorsys
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data import SAMPLE_RATE, spectrogram

SECONDS = 4                                    # a clip's length, unless it is to look like AVE's
KNOT = 0.25                                    # seconds between two knots of a path or an envelope
FORMS = ('disc', 'square', 'triangle', 'ring', 'cross', 'bars')
HUES = ('red', 'yellow', 'green', 'cyan', 'blue', 'magenta')
OCTAVES = (160.0, 320.0, 640.0, 1280.0)        # Hz: an object's pitch at the bottom of the frame; at the top, twice
TIMBRES = ((1.0,), (1.0, 0.0, 0.7, 0.0, 0.5), (1.0, 0.8, 0.6, 0.5, 0.4, 0.3))   # strength of each harmonic
TREMOLOS = (0.0, 5.0, 11.0)                    # Hz
RADIUS = 0.15                                  # of an object, as a share of the frame; --object-area changes it


class Voice(NamedTuple):
    octave: float       # Hz
    harmonics: tuple
    tremolo: float      # Hz


class Kind(NamedTuple):
    """A class: what it looks like and what it sounds like."""
    form: str
    hue: str
    voice: Voice

    @property
    def name(self):
        return f'{self.hue} {self.form}'


def kinds():
    """All 36 classes, in an order in which neighbours share little. No two share a look, and no two a voice."""
    voices = [Voice(o, t, r) for o in OCTAVES for t in TIMBRES for r in TREMOLOS]
    looks = [(form, hue) for form in FORMS for hue in HUES]
    return [Kind(*looks[i * 7 % 36], voices[i * 11 % 36]) for i in range(36)]   # 7 and 11 share no factor with 36


class Track(NamedTuple):
    """How one object behaves over the clip; every curve is given at knots and is linear between them."""
    kind: Kind
    x: float                # centre, as a share of the frame's width
    height: np.ndarray      # 0 (bottom) … 1 (top)
    loudness: np.ndarray    # 0 … 1: heard, if it sounds; seen as brightness, in any case
    radius: float = RADIUS

    def at(self, curve, times):
        return np.interp(times, np.arange(len(curve)) * KNOT, curve)


class Scene(NamedTuple):
    tracks: list            # of Track; the first one sounds, the others are silent
    off_screen: tuple       # (Hz, start, end) of the tone without a picture
    seed: int               # of ground and noise
    seconds: int = SECONDS


def draw_track(kind, x, rng, seconds, area=1.0):
    """How an object of a class behaves, at random, for so many seconds. area: relative to that of RADIUS"""
    knots = int(seconds / KNOT) + 1
    # A path: from one height to another over the clip. An envelope: bursts of half a second to a second, with rests.
    start, end = rng.uniform(0, 1, 2)
    height = np.linspace(start, end, knots)
    levels = rng.choice([0.0, 0.55, 1.0], size=seconds * 2 + 1, p=[0.35, 0.25, 0.4])
    levels[rng.integers(2, 6)] = 1.0            # never silent throughout, least of all in the middle
    return Track(kind, x, height, np.repeat(levels, 2)[:knots], RADIUS * area ** 0.5)


def draw_scene(kind, others, silent, seed, seconds=SECONDS, area=1.0):
    """A clip of class `kind`, of so many seconds, with silent objects of the classes `others`: silent = (at least, at
    most). The same seed, the same scene."""
    rng = np.random.default_rng(seed)
    beside = rng.integers(silent[0], silent[1] + 1)
    places = rng.permutation([0.2, 0.5, 0.8])[:1 + beside] + rng.uniform(-0.05, 0.05, 1 + beside)
    chosen = [kind] + [others[i] for i in rng.choice(len(others), beside, replace=False)]
    tracks = [draw_track(k, x, rng, seconds, area) for k, x in zip(chosen, places)]
    start = rng.uniform(0, seconds - 1)
    tone = float(np.exp(rng.uniform(np.log(200), np.log(5000)))), start, start + rng.uniform(0.5, 1.5)
    return Scene(tracks, tone, int(seed), seconds)


# ------------------------------------------------------------------------------------ pictures

def cover(track, time, size):
    """How much of each pixel the object covers at a time: (size, size) in [0, 1]"""
    radius = track.radius * size
    row = size - radius - track.at(track.height, time) * (size - 2 * radius)      # height 1 is the top row
    y, x = np.mgrid[:size, :size] + 0.5
    x, y = (x - track.x * size) / radius, (y - row) / radius                      # the object fills [-1, 1]²
    far, box = np.hypot(x, y), np.maximum(abs(x), abs(y))
    distance = {                                                                  # below 0 inside
        'disc': lambda: far - 1, 'square': lambda: box - 0.9, 'ring': lambda: abs(far - 0.75) - 0.25,
        'triangle': lambda: np.maximum(y - 0.8, abs(x) * 0.87 - (y + 1) * 0.44),
        'cross': lambda: np.maximum(box - 1, np.minimum(abs(x), abs(y)) - 0.33),
        'bars': lambda: np.maximum(box - 0.95, abs(abs(x) - 0.65) - 0.3),
    }[track.kind.form]()
    return np.clip(0.5 - distance * radius, 0, 1)                                 # soft over one pixel


def ground(size, rng):
    """A texture in muted colours: (size, size, 3) in [0, 1]"""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 6, 6)).astype('f4'))
    fine = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 24, 24)).astype('f4'))
    up = lambda x: F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False)[0]
    return (0.35 + 0.1 * up(coarse) + 0.08 * up(fine)).permute(1, 2, 0).numpy()


def draw_frames(scene, times, size):
    """Frames at the given times (seconds): (len(times), 3, size, size) uint8"""
    under = ground(size, np.random.default_rng([scene.seed, 1]))
    frames = []
    for time in times:
        frame = under.copy()
        for track in scene.tracks[::-1]:                                          # the source in front
            colour = np.array(colorsys.hsv_to_rgb(HUES.index(track.kind.hue) / len(HUES), 0.85, 1))
            bright = 0.35 + 0.65 * track.at(track.loudness, time)             # a silent moment is dim, not invisible
            alpha = cover(track, time, size)[..., None]
            frame = frame * (1 - alpha) + colour * bright * alpha
        frames.append(frame)
    return torch.from_numpy((np.stack(frames) * 255).round().astype('u1')).permute(0, 3, 1, 2).contiguous()


# -------------------------------------------------------------------------------------- sounds

def source_waveform(scene):
    """What the sounding object says: (seconds · 16,000,) float32"""
    track = scene.tracks[0]
    voice = track.kind.voice
    times = np.arange(scene.seconds * SAMPLE_RATE) / SAMPLE_RATE
    pitch = voice.octave * 2 ** track.at(track.height, times)
    turn = np.exp(2j * np.pi * np.cumsum(pitch) / SAMPLE_RATE).astype('c8')
    wave, harmonic = np.zeros(len(times), 'f4'), np.ones(len(times), 'c8')
    for strength in voice.harmonics:
        harmonic = harmonic * turn                                                # e^(ikφ), harmonic by harmonic
        wave += strength * harmonic.imag
    wave /= np.linalg.norm(voice.harmonics)
    tremolo = 1 - 0.45 * (1 - np.cos(2 * np.pi * voice.tremolo * times))
    return (0.2 * wave * track.at(track.loudness, times) * tremolo).astype('f4')


def other_waveform(scene):
    """What is heard besides: noise, stronger at low frequencies, and the tone from off the screen."""
    rng = np.random.default_rng([scene.seed, 2])
    n = scene.seconds * SAMPLE_RATE
    noise = rng.standard_normal(n).astype('f4')
    noise = 0.004 * noise + 0.004 * np.convolve(noise, np.ones(16, 'f4') / 4, 'same')
    hz, start, end = scene.off_screen
    times = np.arange(n) / SAMPLE_RATE
    fade = np.clip(np.minimum(times - start, end - times) / 0.02, 0, 1)           # 20 ms, so that it does not click
    return noise + (0.05 * fade * np.sin(2 * np.pi * hz * times)).astype('f4')


# --------------------------------------------------------------------------------------- clips

def frame_times(sizes):
    """The middles of T successive seconds in the middle of the clip, as `data.read_clip` takes them."""
    return (SECONDS - sizes.num_frames) / 2 + np.arange(sizes.num_frames) + 0.5


def render(scene, sizes):
    """scene → audio (t, f) float32, normalized; video (T, 3, H, W) uint8"""
    waveform = torch.from_numpy(source_waveform(scene) + other_waveform(scene))
    return spectrogram(waveform, sizes), draw_frames(scene, frame_times(sizes), sizes.image_size)


def truth(scene, sizes):
    """Where the source is.

    scene → truth_a (M,) bool: spectrogram patches in which the source has more energy than all else together
            truth_v (N,) bool: frame patches of which the source covers a tenth or more
    """
    p = sizes.patch_size
    energy = [spectrogram(torch.from_numpy(wave), sizes) for wave in (source_waveform(scene), other_waveform(scene))]
    # Normalized log energies are only shifted and scaled, alike for both; back to energies before patches are averaged.
    source, other = (F.avg_pool2d((4.485 * e).exp()[None], p)[0] for e in energy)
    covered = np.stack([cover(scene.tracks[0], time, sizes.image_size) for time in frame_times(sizes)])
    covered = F.avg_pool2d(torch.from_numpy(covered), p)                           # T, H/p, W/p
    return (source > other).flatten(), (covered >= 0.1).flatten()
