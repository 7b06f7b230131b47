"""Check, prepare and read clips that are damaged at random: each is read whole, or refused with a reason.

    python tests/damaged_clips.py [--clips 1000] [--seed N]

Prints the clips that take over 10 s or 1 GB of memory; then the exit code is 1. Any error but a refusal ends with a
traceback.
"""
import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from tqdm import tqdm

from clips import make, prepared
from config import Sizes
from data import BadClip, check_clip, read_clip

SIZES = Sizes(image_size=32, num_frames=2, audio_frames=64, mel_bins=32, frame_shift=16.0)
KINDS = {   # suffix: arguments of `make`
    'h264.mp4': {}, 'gop.mp4': dict(gop=4, layout='stereo', rate=44100), 'h264.mkv': dict(gop=7),
    'vp8.webm': dict(vcodec='libvpx', acodec='libopus', rate=48000),
    'mpeg4.avi': dict(vcodec='mpeg4', acodec='pcm_s16le', bframes=0)}


def damaged(raw, generator):
    """raw (bytes,) uint8 → the same, damaged once or twice"""
    raw = raw.copy()
    for _ in range(generator.choice((1, 1, 2))):
        a = generator.randrange(len(raw))
        b = min(len(raw), a + generator.choice((1, 40, 1000, len(raw) // 4)) + 1)
        damage = generator.choice(('flip', 'flip', 'zero', 'noise', 'cut', 'out', 'twice', 'head'))
        noise = np.frombuffer(generator.randbytes(b - a), np.uint8)
        if damage == 'flip':                                          # single bytes, all over the file
            at = [generator.randrange(len(raw)) for _ in range(generator.choice((1, 10, 100)))]
            raw[at] = np.frombuffer(generator.randbytes(len(at)), np.uint8)
        elif damage == 'head':                                        # where sizes, lengths and codecs are named
            raw[generator.randrange(min(800, len(raw)))] = generator.randrange(256)
        elif damage in ('zero', 'noise'):
            raw[a:b] = 0 if damage == 'zero' else noise
        else:
            middle = {'cut': raw[:0], 'out': raw[b:], 'twice': np.concatenate([raw[a:b], raw[a:]])}[damage]
            raw = np.concatenate([raw[:max(a, 1)], middle])
    return raw


def outcome_of(path):
    """Check, prepare and read a clip → 'read', or why it was refused. Raises AssertionError if it is neither read whole
    nor refused."""
    reason, _ = check_clip(str(path))
    try:
        for file in (str(path), prepared(path)):
            for generator in (None, torch.Generator().manual_seed(0)):
                audio, video = read_clip(file, SIZES, generator)
                assert audio.shape == (64, 32) and audio.isfinite().all(), path
                assert video.shape == (2, 3, 32, 32) and video.dtype == torch.uint8, path
    except BadClip as bad:
        assert str(bad), path
        return reason or f'in reading: {bad}'
    assert reason is None, (path, reason)
    return 'read'


def run(folder, clips, seed):
    """→ {outcome: number of clips}; sentences about clips that took too much time or memory"""
    generator, found, slow = random.Random(seed), Counter(), []
    whole = {kind: np.frombuffer(Path(make(folder / kind, seconds=2, **how)).read_bytes(), np.uint8)
             for kind, how in KINDS.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in tqdm(range(clips), disable=None, leave=False):
        kind = generator.choice(list(whole))
        path = folder / f'damaged.{kind}'
        path.write_bytes(damaged(whole[kind], generator).tobytes())
        began = time.perf_counter()
        outcome = outcome_of(path)
        found[outcome] += 1
        took, memory = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if took > 10 or memory > 2 ** 20:                          # KiB, on Linux
            slow.append(f'clip {n} ({kind}): {took:.1f} s, {memory >> 10} MB')
    return found, slow


def main():
    parser = argparse.ArgumentParser(description='Read damaged clips.')
    parser.add_argument('--clips', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(2 ** 31))
    args = parser.parse_args()
    print(f'seed {args.seed}')
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found, slow = run(Path(folder), args.clips, args.seed)
    for outcome, number in found.most_common():
        print(f'{number:6d}  {outcome}')
    print('\n'.join(slow))
    sys.exit(bool(slow))


if __name__ == '__main__':
    main()
