"""Sounding shapes whose source is known: what the built-in clips show and sound like (ours).

In:  a class and a seed, and the `Sizes` of the tensors.
Out: a scene; its frames, its sound, its spectrogram; and `truth`, the patches in which the source is seen and heard.

A class is a look (a shape in a colour) with a voice (an octave, a timbre, a tremolo). A clip lasts four seconds. In it
one object of the class sounds and others, of other classes, are silent, over a textured background. The sound track
also has noise and a tone from off the screen. What differs between two clips of a class is both seen and heard:

    height of the sounding object  ↔  its pitch          brightness of the sounding object  ↔  its loudness

Silent objects rise, sink and flash in the same way, but at other times: only a model that knows the voice of a look can
find the source. As the source is known, maps of attention can be scored.
"""
import colorsys
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data import AUDIO_STD, SAMPLE_RATE, spectrogram

SECONDS = 4                                    # length of a clip
KNOT = 0.25                                    # seconds between two knots of a path or an envelope
FORMS = ('disc', 'square', 'triangle', 'ring', 'cross', 'bars')
HUES = ('red', 'yellow', 'green', 'cyan', 'blue', 'magenta')
OCTAVES = (160.0, 320.0, 640.0, 1280.0)        # Hz: pitch at the bottom of the frame; twice that at the top
TIMBRES = ((1.0,), (1.0, 0.0, 0.7, 0.0, 0.5), (1.0, 0.8, 0.6, 0.5, 0.4, 0.3))   # strength of each harmonic
TREMOLOS = (0.0, 5.0, 11.0)                    # Hz
RADIUS = 0.15                                  # of an object, as a share of the frame; --object-area scales its square


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
    """All 36 classes, in an order in which neighbours share little. No two have the same look or the same voice."""
    voices = [Voice(octave, timbre, tremolo) for octave in OCTAVES for timbre in TIMBRES for tremolo in TREMOLOS]
    looks = [(form, hue) for form in FORMS for hue in HUES]
    return [Kind(*looks[i * 7 % 36], voices[i * 11 % 36]) for i in range(36)]   # 7 and 11 share no factor with 36


class Track(NamedTuple):
    """How one object behaves over the clip. Curves are given at knots and are linear in between."""
    kind: Kind
    x: float                # centre, as a share of the frame's width
    height: np.ndarray      # 0 (bottom) … 1 (top)
    loudness: np.ndarray    # 0 … 1: heard if the object sounds; always seen as brightness
    radius: float = RADIUS

    def at(self, curve, times):
        """A curve at times in seconds"""
        return np.interp(times, np.arange(len(curve)) * KNOT, curve)


class Scene(NamedTuple):
    tracks: list            # of Track; the first one sounds, the others are silent
    off_screen: tuple       # (Hz, start, end) of the tone from off the screen
    seed: int               # of background and noise


def draw_track(kind, x, rng, area=1.0):
    """A random Track of a class. area: of the object, relative to that of RADIUS"""
    # a path from one height to another; bursts of half a second to a second, with rests
    knots = int(SECONDS / KNOT) + 1
    start, end = rng.uniform(0, 1, 2)
    height = np.linspace(start, end, knots)
    levels = rng.choice([0.0, 0.55, 1.0], size=SECONDS * 2 + 1, p=[0.35, 0.25, 0.4])
    levels[rng.integers(2, 6)] = 1.0            # at least a quarter of a second of full loudness, near the middle
    return Track(kind, x, height, np.repeat(levels, 2)[:knots], RADIUS * area ** 0.5)


def draw_scene(kind, others, silent, seed, area=1.0):
    """A random clip of class `kind`. silent: (minimum, maximum) number of silent objects, of the classes `others`. The
    same seed gives the same scene."""
    rng = np.random.default_rng(seed)
    number = rng.integers(silent[0], silent[1] + 1)
    places = rng.permutation([0.2, 0.5, 0.8])[:1 + number] + rng.uniform(-0.05, 0.05, 1 + number)
    shown = [kind] + [others[i] for i in rng.choice(len(others), number, replace=False)]
    tracks = [draw_track(k, x, rng, area) for k, x in zip(shown, places)]
    start = rng.uniform(0, SECONDS - 1)
    tone = float(np.exp(rng.uniform(np.log(200), np.log(5000)))), start, start + rng.uniform(0.5, 1.5)
    return Scene(tracks, tone, int(seed))


# ------------------------------------------------------------------------------------ pictures

def cover(track, time, size):
    """The share of each pixel that the object covers at a time in seconds: (size, size) in [0, 1]"""
    radius = track.radius * size
    row = size - radius - track.at(track.height, time) * (size - 2 * radius)      # height 1 is the top row
    y, x = np.mgrid[:size, :size] + 0.5
    x, y = (x - track.x * size) / radius, (y - row) / radius                      # the object fills [-1, 1]²
    far, box = np.hypot(x, y), np.maximum(abs(x), abs(y))
    distance = dict(                                                              # signed: below 0 inside
        disc=far - 1, square=box - 0.9, ring=abs(far - 0.75) - 0.25,
        triangle=np.maximum(y - 0.8, abs(x) * 0.87 - (y + 1) * 0.44),
        cross=np.maximum(box - 1, np.minimum(abs(x), abs(y)) - 0.33),
        bars=np.maximum(box - 0.95, abs(abs(x) - 0.65) - 0.3))[track.kind.form]
    return np.clip(0.5 - distance * radius, 0, 1)                                 # soft over one pixel


def background(size, rng):
    """A texture in muted colours: (size, size, 3) in [0, 1]"""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 6, 6)).astype('f4'))
    fine = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 24, 24)).astype('f4'))
    coarse, fine = (F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False)[0]
                    for x in (coarse, fine))
    return (0.35 + 0.1 * coarse + 0.08 * fine).permute(1, 2, 0).numpy()


def draw_frames(scene, times, size):
    """Frames at the given times (seconds): (len(times), 3, size, size) uint8"""
    texture = background(size, np.random.default_rng([scene.seed, 1]))
    frames = []
    for time in times:
        frame = texture.copy()
        for track in scene.tracks[::-1]:                                      # the source in front
            colour = np.array(colorsys.hsv_to_rgb(HUES.index(track.kind.hue) / len(HUES), 0.85, 1))
            brightness = 0.35 + 0.65 * track.at(track.loudness, time)         # a silent moment is dim, not invisible
            alpha = cover(track, time, size)[..., None]
            frame = frame * (1 - alpha) + colour * brightness * alpha
        frames.append(frame)
    return torch.from_numpy((np.stack(frames) * 255).round().astype('u1')).permute(0, 3, 1, 2).contiguous()


# -------------------------------------------------------------------------------------- sounds

def source_waveform(scene):
    """The sound of the first object: (SECONDS · 16,000,) float32"""
    track = scene.tracks[0]
    voice = track.kind.voice
    times = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE

    # sum the harmonics: the k-th one is the imaginary part of e^(ikφ)
    pitch = voice.octave * 2 ** track.at(track.height, times)
    turn = np.exp(2j * np.pi * np.cumsum(pitch) / SAMPLE_RATE).astype('c8')
    wave, harmonic = np.zeros(len(times), 'f4'), np.ones(len(times), 'c8')
    for strength in voice.harmonics:
        harmonic = harmonic * turn
        wave += strength * harmonic.imag
    wave /= np.linalg.norm(voice.harmonics)
    tremolo = 1 - 0.45 * (1 - np.cos(2 * np.pi * voice.tremolo * times))
    return (0.2 * wave * track.at(track.loudness, times) * tremolo).astype('f4')


def other_waveform(scene):
    """All other sound, (SECONDS · 16,000,) float32: noise, stronger at low frequencies, and the tone from off screen"""
    rng = np.random.default_rng([scene.seed, 2])
    n = SECONDS * SAMPLE_RATE
    noise = rng.standard_normal(n).astype('f4')
    noise = 0.004 * noise + 0.004 * np.convolve(noise, np.ones(16, 'f4') / 4, 'same')
    hz, start, end = scene.off_screen
    times = np.arange(n) / SAMPLE_RATE
    fade = np.clip(np.minimum(times - start, end - times) / 0.02, 0, 1)       # over 20 ms, so that it does not click
    return noise + (0.05 * fade * np.sin(2 * np.pi * hz * times)).astype('f4')


# --------------------------------------------------------------------------------------- clips

def frame_times(sizes):
    """The middles of T successive seconds in the middle of the clip, as in `data.read_clip`"""
    return (SECONDS - sizes.num_frames) / 2 + np.arange(sizes.num_frames) + 0.5


def render(scene, sizes):
    """scene → audio (t, f) float32, normalized; video (T, 3, H, W) uint8"""
    waveform = torch.from_numpy(source_waveform(scene) + other_waveform(scene))
    return spectrogram(waveform, sizes), draw_frames(scene, frame_times(sizes), sizes.image_size)


def truth(scene, sizes):
    """Where the source is.

    scene → truth_a (M,) bool: spectrogram patches in which the source has more energy than all other sound
            truth_v (N,) bool: frame patches of which the source covers a tenth or more
    """
    # Normalization shifts and scales all log energies alike: undo the scale, and average energies over patches.
    p = sizes.patch_size
    waves = source_waveform(scene), other_waveform(scene)
    spectrograms = [spectrogram(torch.from_numpy(wave), sizes) for wave in waves]
    source, other = (F.avg_pool2d((AUDIO_STD * s).exp()[None], p)[0] for s in spectrograms)
    covered = np.stack([cover(scene.tracks[0], time, sizes.image_size) for time in frame_times(sizes)])
    covered = F.avg_pool2d(torch.from_numpy(covered), p)                           # T, H/p, W/p
    return (source > other).flatten(), (covered >= 0.1).flatten()
