"""One clip: App. B and Table 6. A file → audio and video tensors.

In:  a video file with sound, whole or damaged (`utils/video.py` decodes it).
Out: the spectrogram and the frames of one window; BadClip with the reason. `streams/` makes tasks of many clips.

    python data.py prepare --data DIR --out SMALL      (`streams/prepare.py`)
        writes the clips of a data set anew, small and quick to read

Tour: stop 1.

Shapes: t, f  spectrogram frames and mel bins;  T, H, W  video frames, height, width;  S  the model's image size.
"""
import torch
import torch.nn.functional as F
import torchaudio

from config import Sizes
from utils.video import SAMPLE_RATE, BadClip, TransientReadError, decode_audio, decode_frames, frames_at, open_clip

AUDIO_MEAN, AUDIO_STD = -5.081, 4.485     # Table 6, of log mel energies


# ------------------------------------------------------------------- spectrogram and augmentation

def spectrogram(waveform, sizes: Sizes):
    """Log mel energies, as CAV-MAE computes them (App. B, N31).

    waveform  (samples,)  float in [-1, 1], mono, 16 kHz, of any length
    returns   (t, f)      float32, normalized; low frequencies first

    A trap: the end is padded with 0 before normalization, as in CAV-MAE. That is a fairly loud sound, not silence
    (about -16), and 1.13 after normalization.
    """
    # a spectrogram frame sees 25 ms, and never less than the step to the next frame
    length = max(25, sizes.frame_shift)
    waveform = waveform - waveform.mean()
    waveform = F.pad(waveform, (0, max(0, int(SAMPLE_RATE * length * 0.001) - len(waveform))))   # at least one frame
    bank = torchaudio.compliance.kaldi.fbank(
        waveform[None], htk_compat=True, sample_frequency=SAMPLE_RATE, use_energy=False, window_type='hanning',
        num_mel_bins=sizes.mel_bins, dither=0.0, frame_shift=sizes.frame_shift, frame_length=length)

    # cut or pad to t frames, then normalize
    bank = bank[:sizes.audio_frames]
    bank = F.pad(bank, (0, 0, 0, sizes.audio_frames - len(bank)))
    return (bank - AUDIO_MEAN) / AUDIO_STD


def augment_audio(audio, generator, max_roll=-1):
    """Add noise of at most 0.1 and roll in time (Table 6). audio (t, f) → (t, f).

    max_roll  roll by at most this many frames either way. The paper does not give the limit; -1: by any number of
              frames, as released, so that sound and picture are not in step (N33)
    """
    strength, t = 0.1 * torch.rand((), generator=generator), len(audio)
    audio = audio + strength * torch.rand(audio.shape, generator=generator)
    low, high = (-t, t) if max_roll < 0 else (-max_roll, max_roll + 1)
    return torch.roll(audio, torch.randint(low, high, (), generator=generator).item(), dims=0)


def multi_scale_crop(frames, size, generator):
    """MultiScaleCrop of TSN (Wang et al. 2016; Table 6): a random size, place and slight change of aspect ratio.

    frames   (T, 3, H, W)        uint8, shorter side = size
    returns  (T, 3, size, size)  uint8; the same crop for all frames, or the crop would look like motion
    """
    # 7 of the 9 pairs of scales: height and width differ by one step at most
    H, W = frames.shape[-2:]
    scales = (1, 0.875, 0.75)
    shapes = [(h, w) for i, h in enumerate(scales) for j, w in enumerate(scales) if abs(i - j) <= 1]
    h, w = (int(min(H, W) * scale) for scale in _choose(shapes, generator))

    # 13 places: of a 5×5 grid from corner to corner, those whose row and column are both even or both odd
    places = [(row, column) for row in range(5) for column in range(5) if (row - column) % 2 == 0]
    row, column = _choose(places, generator)
    top, left = row * (H - h) // 4, column * (W - w) // 4
    crop = frames[..., top:top + h, left:left + w]
    return F.interpolate(crop, (size, size), mode='bilinear', antialias=True)


def centre_crop(frames, size):
    """frames (T, 3, H, W) → their middle, (T, 3, size, size)"""
    top, left = (frames.shape[-2] - size) // 2, (frames.shape[-1] - size) // 2
    return frames[..., top:top + size, left:left + size]


def _choose(choices, generator):
    return choices[torch.randint(len(choices), (), generator=generator).item()]


# ------------------------------------------------------------------------------------- one clip

def read_clip(path, sizes: Sizes, generator=None, max_roll=-1, segment=None):
    """One clip → audio (t, f) float32, video (T, 3, S, S) uint8. Raises BadClip.

    generator  training: a random window of T seconds, MultiScaleCrop and noise; the same state gives the same bits.
               None, evaluation: the middle of the clip, nothing random
    max_roll   see `augment_audio`
    segment    (start, seconds) of the clip in its video, for a file that is the whole video: `utils.video.time_range`
    """
    T = sizes.num_frames
    with open_clip(path, segment) as clip:
        waveform, audio_start = decode_audio(clip)

        # place the window of T seconds: anywhere in training, in the middle in evaluation
        spare = max(0.0, clip.end - clip.start - T)            # seconds the window can move by
        where = 0.5 if generator is None else torch.rand((), generator=generator).item()
        start = clip.start + where * spare

        # which frame of each second: here the middle one (N32)
        frames = decode_frames(clip, [start + i + 0.5 for i in range(T)], sizes.image_size)   # T, 3, H, W

    audio, _ = audio_around(waveform, start + T / 2 - audio_start, sizes)
    if generator is None:
        return audio, centre_crop(frames, sizes.image_size)
    return augment_audio(audio, generator, max_roll), multi_scale_crop(frames, sizes.image_size, generator)


def audio_around(waveform, middle, sizes):
    """The spectrogram (t, f) of a window around the second `middle` of the waveform, moved to lie within it; and the
    second at which the window begins. At the paper's size, 10 s fit in whole."""
    # the window: t steps, and what the last spectrogram frame sees beyond its step
    milliseconds = (sizes.audio_frames - 1) * sizes.frame_shift + max(25, sizes.frame_shift)
    window = int(SAMPLE_RATE * milliseconds * 0.001)                                       # samples
    first = round(middle * SAMPLE_RATE) - window // 2
    first = max(0, min(first, len(waveform) - window))
    return spectrogram(waveform[first:first + window], sizes), first / SAMPLE_RATE


def check_clip(path, segment=None):
    """→ why read_clip would raise BadClip, or None; and whether that is permanent (not the disk or memory failing).

    Decodes all of the sound, and five frames from the beginning to the end. Damage between them is found in training,
    where another clip replaces this one."""
    try:
        with open_clip(path, segment) as clip:
            decode_audio(clip)
            for _ in frames_at(clip, [clip.start + i / 4 * (clip.end - clip.start) for i in range(5)]):
                pass
        return None, True
    except BadClip as bad:
        return str(bad), not isinstance(bad, TransientReadError)


if __name__ == '__main__':                             # imported here alone: `streams` imports this file
    from streams.prepare import main
    from utils.cli import cli_errors

    with cli_errors('the same command goes on'):
        main()
