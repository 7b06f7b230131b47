"""The built-in data: a stream of sounding shapes (`scenes.py`), so that nothing need be downloaded (ours).

In:  a seed, and how many clips of each kind.
Out: a Stream of six tasks of three classes each; the other 18 classes are the initial pre-training set. Clips are drawn
     when they are asked for, and kept: in a folder, where all runs find them, or in memory.

    python -m streams.shapes --out DIR --layout vggsound|audioset|ave
        writes such clips as mp4 files, laid out as that data set
"""
import argparse
import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
from patches import MANY, SEED, SIZES, Range, Sizes, UserError
from streams import scenes
from streams.common import Stream
from streams.scenes import draw_scene, kinds, render
from streams.shapes_files import LAYOUTS, write

NUM_TASKS, CLASSES_PER_TASK = 6, 3             # 18 of the 36 classes; the other 18 are the initial pre-training set
NAMES = ('ash', 'birch', 'cedar', 'elm', 'fir', 'oak')   # of the tasks


class Shapes(torch.utils.data.Dataset):
    """Clips 0 … length−1 of some classes, drawn when they are first asked for and kept. silent: how many objects, at
    least and at most, make no sound. folder: where; '': in memory"""

    def __init__(self, classes, length, sizes, silent, seed, folder='', area=1.0):
        self.area = area
        self.classes, self.length, self.sizes, self.silent, self.seed = classes, length, sizes, silent, seed
        self.labels = [(classes[i % len(classes)].name,) for i in range(length)]
        self.folder, self.drawn = folder, None

    def __len__(self):
        return self.length

    def scene(self, index):
        kind = self.classes[index % len(self.classes)]
        return draw_scene(kind, [k for k in self.classes if k != kind], self.silent, self.seed * 1_000_003 + index,
                          area=self.area)

    def __getitem__(self, key):
        """key (index, seed); no noise is added in training, so the second goes unused → audio, video, clip, bad"""
        index, _ = key
        if self.drawn is None:
            self.drawn = kept_clips(self)
        there, audio, video = self.drawn
        if not there[index]:
            with on_one_thread():
                one, frames = render(self.scene(index), self.sizes)
            audio[index], video[index] = one.half().numpy(), frames.numpy()
            there[index] = 1                               # last: of two processes, neither reads half a clip
        return dict(audio=torch.from_numpy(audio[index].astype(np.float32)),
                    video=torch.from_numpy(video[index].copy()), clip=index, bad='')

    def __getstate__(self):
        return vars(self) | {'drawn': None}                # a process that loads clips maps the file for itself


@contextlib.contextmanager
def on_one_thread():
    """Several threads add in another order, and the last bit of a clip would tell how many drew it. No run forgets that
    bit: with the same seed it ends elsewhere, by points of R@10 (results/README.md)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------- clips that are kept

def kept_clips(shapes):
    """Where the clips of a Shapes lie → there (n,) uint8, audio (n, t, f) float16, video (n, T, 3, S, S) uint8.

    One file, mapped into memory and shared by all runs with these clips, also at the same time; its name says what they
    depend on, and so does what draws them. Without a folder, or where it cannot be written, memory alone.
    """
    s, n = shapes.sizes, shapes.length
    parts = [((n,), np.uint8), ((n, s.audio_frames, s.mel_bins), np.float16),
             ((n, s.num_frames, 3, s.image_size, s.image_size), np.uint8)]
    starts = np.cumsum([0] + [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in parts])
    content = np.zeros(starts[-1], np.uint8) if not shapes.folder else _mapped(shapes, int(starts[-1]))
    return [content[a:b].view(dtype).reshape(shape) for a, b, (shape, dtype) in zip(starts, starts[1:], parts)]


def _mapped(shapes, size):
    """The file of so many bytes → all of them (size,) uint8, mapped."""
    facts, code = _marks(shapes)
    folder = Path(shapes.folder)
    path = folder / f'shapes-{facts}-{code}.clips'
    begun = Path(f'{path}.{os.getpid()}.tmp')
    there = lambda: path.exists() and path.stat().st_size == size
    try:
        if not there():
            folder.mkdir(parents=True, exist_ok=True)
            with open(begun, 'wb') as file:
                file.write(np.zeros(size, np.uint8))                   # now, for a mapped file cannot say "disk full"
        if there():                                                    # perhaps by now: another run has begun it
            begun.unlink(missing_ok=True)
        else:
            for old in folder.glob(f'shapes-{facts}-*.clips'):
                tqdm.write(f'{old} {"was cut short" if old == path else "was drawn by other code"}: drawn anew')
                old.unlink(missing_ok=True)
            os.replace(begun, path)
        return np.memmap(path, np.uint8, 'r+')
    except OSError as error:
        tqdm.write(f'{path} cannot be kept ({error.strerror}): this run draws its clips for itself. Make room, or name '
                   'another folder by --cache')
        with contextlib.suppress(OSError):
            begun.unlink()
        return np.zeros(size, np.uint8)


def _marks(shapes):
    """Of the options that the clips depend on, and of the lines that draw them."""
    s = shapes.sizes
    facts = (shapes.length, [kind.name for kind in shapes.classes], shapes.silent, shapes.seed, shapes.area, s.image_size,
             s.num_frames, s.audio_frames, s.mel_bins, s.frame_shift)
    code = b''.join(Path(module).read_bytes() for module in (__file__, scenes.__file__, data.__file__))
    return [hashlib.sha256(mark).hexdigest()[:12] for mark in (repr(facts).encode(), code)]


# ---------------------------------------------------------------------------------------- the stream

def stream(sizes, seed=0, clips_per_task=1000, test_clips=60, pretrain_clips=6000, silent=(1, 1), folder='',
           area=1.0):
    """The stream of tasks; classes of no task are the initial pre-training set, as in the paper. folder: where drawn
    clips are kept; '': in memory"""
    classes = kinds()
    in_tasks = NUM_TASKS * CLASSES_PER_TASK
    own = [classes[i * CLASSES_PER_TASK:(i + 1) * CLASSES_PER_TASK] for i in range(NUM_TASKS)]
    # Each part draws from seeds of its own; training and test clips never share one.
    part = lambda kinds_, length, number: Shapes(kinds_, length, sizes, silent, seed * 100 + number, folder, area)
    test = [part(k, test_clips, 51 + i) for i, k in enumerate(own)]
    return Stream(names=list(NAMES), pretrain=part(classes[in_tasks:], pretrain_clips, 0),
                  train=[part(k, clips_per_task, 1 + i) for i, k in enumerate(own)], test=test, evaluate=list(test),
                  bad=[], notes=[], classes=[[k.name for k in kinds_] for kinds_ in own])


def main(arguments=None):
    """The command line: write the clips as files. arguments: its words, or sys.argv's. Raises UserError."""
    parser = argparse.ArgumentParser(prog='python -m streams.shapes',
                                     description='Write the built-in clips as mp4 files, laid out as a known data set.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument('--layout', choices=list(LAYOUTS), default='vggsound', help='(default vggsound)')
    parser.add_argument('--train', default=60, **MANY.asked('training clips a task (default 60)'))
    parser.add_argument('--test', default=18,
                        **MANY.asked('test clips a task; for AVE as many for validation (default 18)'))
    parser.add_argument('--pretrain', default=180,
                        **MANY._replace(low=0).asked('clips of classes of no task; none for AVE (default 180)'))
    parser.add_argument('--size', default=96, **Range(int, 16, 4096).asked('pixels, an even number (default 96)'))
    parser.add_argument('--seed', default=0, **SEED.asked('of the clips (default 0)'))
    args = parser.parse_args(arguments)
    if args.size % 2:
        raise UserError(f'--size {args.size}: H.264 needs an even number of pixels')
    shown = stream(Sizes(**SIZES['small']), args.seed, args.train, args.test, args.pretrain)
    try:
        print(write(args.layout, args.out, shown, args.size, args.seed))
    except OSError as error:
        raise UserError(f'--out {args.out} cannot be written: {error.strerror}')


if __name__ == '__main__':                             # not when imported: what is streamed knows no options
    from config import exit_politely

    with exit_politely():
        main()
