"""The built-in data: a stream of sounding shapes (`scenes.py`), so that nothing need be downloaded (ours).

In:  a seed, and how many clips of each kind.
Out: a Stream of six tasks of three classes each; the other 18 classes are the initial pre-training set. Clips are drawn
     when they are first needed, and kept: in a folder, where all runs find them, or in memory.

    python -m streams.shapes --out DIR      writes such clips as mp4 files, laid out as VGGSound
"""
import contextlib
import hashlib
from pathlib import Path

import numpy as np
import torch

import data
from config import SIZES, Sizes
from streams import scenes
from streams.common import Stream
from streams.scenes import draw_scene, kinds, render
from streams.shapes_files import write_vggsound
from utils.checkpoint import atomic_file, check_writable
from utils.cli import Parser, cli_errors, number
from utils.distributed import print_once

NUM_TASKS, CLASSES_PER_TASK = 6, 3             # 18 of the 36 classes; the other 18 are the initial pre-training set
NAMES = ('ash', 'birch', 'cedar', 'elm', 'fir', 'oak')   # of the tasks


class Shapes(torch.utils.data.Dataset):
    """`length` clips of some classes (list of Kind), drawn when they are first needed and kept.

    silent  minimum and maximum number of silent objects       folder  where clips are kept; '': in memory
    area    of the objects, see `scenes.draw_track`"""

    def __init__(self, classes, length, sizes, silent, seed, folder='', area=1.0):
        self.classes, self.length, self.sizes, self.silent, self.seed = classes, length, sizes, silent, seed
        self.folder, self.area, self.kept = folder, area, None
        self.labels = [(classes[i % len(classes)].name,) for i in range(length)]

    def __len__(self):
        return self.length

    def scene(self, index):
        """The Scene of a clip"""
        kind = self.classes[index % len(self.classes)]
        others = [k for k in self.classes if k != kind]
        return draw_scene(kind, others, self.silent, self.seed * 1_000_003 + index, area=self.area)

    def __getitem__(self, key):
        """key (index, seed): the seed is unused, since shapes are not augmented → audio (t, f) float32, video
        (T, 3, S, S) uint8, clip, bad: ''"""
        index, _ = key
        if self.kept is None:
            self.kept = open_cache(self)
        clip = self.kept[index]
        if not clip['drawn']:
            with single_thread():
                audio, video = render(self.scene(index), self.sizes)
            clip['audio'], clip['video'] = audio.half().numpy(), video.numpy()
            clip['drawn'] = 1                              # last: no other process may read half a clip
        return dict(audio=torch.from_numpy(clip['audio'].astype(np.float32)),
                    video=torch.from_numpy(clip['video'].copy()), clip=index, bad='')

    def __getstate__(self):
        return vars(self) | {'kept': None}                 # each worker maps the file itself


@contextlib.contextmanager
def single_thread():
    """Several threads add in another order: the last bit of a clip would depend on their number. Training amplifies
    that bit to points of R@10 (results/details-benchmark.md)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------- clips that are kept

def open_cache(shapes):
    """All clips of a Shapes → array (n,) of records: drawn uint8, audio (t, f) float16, video (T, 3, S, S) uint8.

    It is a memory-mapped file that all runs with these clips share, also at the same time; its name has a hash of the
    options and of the code that the clips depend on. Without a folder, or if it cannot be written, it is in memory.
    """
    s, n = shapes.sizes, shapes.length
    record = np.dtype([('drawn', np.uint8), ('audio', np.float16, (s.audio_frames, s.mel_bins)),
                       ('video', np.uint8, (s.num_frames, 3, s.image_size, s.image_size))])
    if not shapes.folder:
        return np.zeros(n, record)
    options = (n, [kind.name for kind in shapes.classes], shapes.silent, shapes.seed, shapes.area, record.descr,
               s.frame_shift)
    code = b''.join(Path(module).read_bytes() for module in (__file__, scenes.__file__, data.__file__))
    options, code = (hashlib.sha256(content).hexdigest()[:12] for content in (repr(options).encode(), code))
    path = Path(shapes.folder) / f'shapes-{options}-{code}.clips'
    try:
        if not path.exists() or path.stat().st_size != n * record.itemsize:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in path.parent.glob(f'shapes-{options}-*.clips'):     # drawn by other code
                if old != path:
                    old.unlink(missing_ok=True)                           # another rank may be faster
            create_file(path, n * record.itemsize)
        return np.memmap(path, record, 'r+')
    except OSError as error:
        print_once(f'{path} cannot be kept ({error.strerror}): this run draws its own clips. Make room, or choose '
                   'another folder with --cache')
        return np.zeros(n, record)


def create_file(path, size):
    """A file of zeros, created atomically. They are written now: writing to a map cannot report a full disk."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(bytes(size))


# ---------------------------------------------------------------------------------------- the stream

def stream(sizes, seed=0, clips_per_task=1000, test_clips=60, pretrain_clips=6000, silent=(1, 1), folder='', area=1.0):
    """The Stream of shapes. Classes of no task are the initial pre-training set, as in the paper. silent, folder, area:
    see `Shapes`"""
    classes = kinds()
    in_tasks = NUM_TASKS * CLASSES_PER_TASK
    tasks = [classes[i:i + CLASSES_PER_TASK] for i in range(0, in_tasks, CLASSES_PER_TASK)]

    # every part has its own seed: training and test clips never share one
    def part(classes, length, number):
        return Shapes(classes, length, sizes, silent, seed * 100 + number, folder, area)

    pretrain = part(classes[in_tasks:], pretrain_clips, 0)
    train = [part(of_task, clips_per_task, 1 + i) for i, of_task in enumerate(tasks)]
    test = [part(of_task, test_clips, 51 + i) for i, of_task in enumerate(tasks)]
    return Stream(list(NAMES), pretrain, train, test, bad=[], notes=[], test=list(test),
                  classes=[[kind.name for kind in of_task] for of_task in tasks])


def main(arguments=None):
    """The command line: write the clips as files. Raises UserError."""
    parser = Parser(prog='python -m streams.shapes',
                    description='Write the built-in clips as mp4 files, laid out as VGGSound.')
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    count = number(int, min=0, max=10 ** 6)
    parser.add_argument('--train', type=count, default=60, help='training clips per task (default 60)')
    parser.add_argument('--test', type=count, default=18, help='test clips per task (default 18)')
    parser.add_argument('--pretrain', type=count, default=180, help='clips of classes of no task (default 180)')
    parser.add_argument('--size', type=number(int, min=16, max=4096), default=96,
                        help='width and height in pixels, an even number (default 96)')
    args = parser.parse_args(arguments)
    if args.size % 2:
        parser.error(f'--size {args.size} must be even, for H.264')
    check_writable(args.out, '--out')
    clips = stream(Sizes(**SIZES['small']), 0, args.train, args.test, args.pretrain)
    print(write_vggsound(args.out, clips, args.size))


if __name__ == '__main__':
    with cli_errors():
        main()
