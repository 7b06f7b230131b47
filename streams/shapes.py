"""The built-in data: a stream of sounding shapes (`scenes.py`), so that nothing need be downloaded (ours).

In:  a seed, and how many clips of each kind.
Out: a Stream of six tasks of three classes each; the other 18 classes are the initial pre-training set. Clips are made
     when they are asked for.

    python -m streams.shapes --out DIR --layout vggsound|audioset|ave
        writes such clips as mp4 files, laid out as that data set
"""
import argparse
from pathlib import Path

import torch

from patches import SIZES, Sizes
from streams.common import Stream
from streams.scenes import draw_scene, kinds, render
from streams.shapes_files import LAYOUTS, write

NUM_TASKS, CLASSES_PER_TASK = 6, 3             # 18 of the 36 classes; the other 18 are the initial pre-training set
NAMES = ('ash', 'birch', 'cedar', 'elm', 'fir', 'oak')   # of the tasks


class Shapes(torch.utils.data.Dataset):
    """Clips 0 … length−1 of some classes, made when they are asked for and kept, small as they are, in memory."""

    def __init__(self, classes, length, sizes, max_silent, seed):
        self.classes, self.length, self.sizes, self.max_silent, self.seed = classes, length, sizes, max_silent, seed
        self.labels = [(classes[i % len(classes)].name,) for i in range(length)]
        self.made = {}

    def __len__(self):
        return self.length

    def scene(self, index):
        kind = self.classes[index % len(self.classes)]
        return draw_scene(kind, [k for k in self.classes if k != kind], self.max_silent, self.seed * 1_000_003 + index)

    def __getitem__(self, key):
        """key (index, seed); no noise is added in training, so the second goes unused → audio, video, clip, bad"""
        index, _ = key
        if index not in self.made:
            audio, video = render(self.scene(index), self.sizes)
            self.made[index] = audio.half(), video
        audio, video = self.made[index]
        return dict(audio=audio.float(), video=video, clip=index, bad='')


def stream(sizes, seed=0, clips_per_task=1000, test_clips=60, pretrain_clips=6000, max_silent=1):
    """The stream of tasks; classes of no task are the initial pre-training set, as in the paper."""
    classes = kinds()
    in_tasks = NUM_TASKS * CLASSES_PER_TASK
    own = [classes[i * CLASSES_PER_TASK:(i + 1) * CLASSES_PER_TASK] for i in range(NUM_TASKS)]
    # Each part draws from seeds of its own; training and test clips never share one.
    part = lambda kinds_, length, number: Shapes(kinds_, length, sizes, max_silent, seed * 100 + number)
    test = [part(k, test_clips, 51 + i) for i, k in enumerate(own)]
    return Stream(names=list(NAMES), pretrain=part(classes[in_tasks:], pretrain_clips, 0),
                  train=[part(k, clips_per_task, 1 + i) for i, k in enumerate(own)], test=test, evaluate=list(test),
                  bad=[], notes=[], classes=[[k.name for k in kinds_] for kinds_ in own])


def main():
    """The command line: write the clips as files."""
    parser = argparse.ArgumentParser(prog='python -m streams.shapes',
                                     description='Write the built-in clips as mp4 files, laid out as a known data set.')
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument('--layout', choices=list(LAYOUTS), default='vggsound', help='(default vggsound)')
    parser.add_argument('--train', type=int, default=60, help='training clips a task (default 60)')
    parser.add_argument('--test', type=int, default=18,
                        help='test clips a task; for AVE as many for validation (default 18)')
    parser.add_argument('--pretrain', type=int, default=180,
                        help='clips of classes of no task; none for AVE (default 180)')
    parser.add_argument('--size', type=int, default=96, help='pixels (default 96)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    shown = stream(Sizes(**SIZES['small']), args.seed, args.train, args.test, args.pretrain)
    print(write(args.layout, args.out, shown, args.size, args.seed))


if __name__ == '__main__':
    main()
