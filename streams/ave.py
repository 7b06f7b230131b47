"""AVE (Tian et al. 2018; App. E): clips of ten seconds with a label a second, for event localization.

In:  its folder, laid out as it is distributed (AVE_LAYOUT).
Out: a data set for each split, whose items are the tensors of `data.read_windows` and ten labels. UserError for a line
     of its lists that cannot be right, with its number.
"""
import csv
from pathlib import Path
from typing import NamedTuple

import torch

from data import AVE_SECONDS, read_windows
from patches import Sizes
from streams.common import first_readable, near, usable
from streams.tables import demand, require, require_id, rows

AVE_LAYOUT = """Download AVE from https://github.com/YapengTian/AVE-ECCV18, and unpack it, so that it lies like this:
  {folder}/Annotations.txt
  {folder}/trainSet.txt, valSet.txt, testSet.txt
  {folder}/AVE/<id>.mp4"""
COLUMNS = ['Category', 'VideoID', 'Quality', 'StartTime', 'EndTime']


class Event(NamedTuple):
    """A clip of AVE: something is both seen and heard from second start to second end."""
    path: str
    label: str
    start: int
    end: int


def read_ave(folder):
    """folder/Annotations.txt and those of trainSet.txt, valSet.txt, testSet.txt that are there (COLUMNS with & between
    them; only the first has a header) → {split: list of Event}, the names of the events, sorted."""
    folder = Path(folder)
    table, videos = folder / 'Annotations.txt', folder / 'AVE'
    files = {split: folder / f'{split}Set.txt' for split in ('train', 'val', 'test')}
    files = {split: path for split, path in files.items() if path.is_file()}
    demand(AVE_LAYOUT, folder, [table, videos, *([] if files else [folder / 'trainSet.txt'])])
    read = lambda path: rows(path, delimiter='&', quoting=csv.QUOTE_NONE)
    annotated = list(read(table))
    right = annotated and annotated[0][1] == COLUMNS
    require(right, table, 1, f'the first line must be the header: {"&".join(COLUMNS)}')
    classes = sorted({_event(table, line, row, videos, None).label for line, row in annotated[1:]})
    events = {split: [_event(path, line, row, videos, classes) for line, row in read(path)]
              for split, path in files.items()}
    return events, classes


def _event(path, line, row, videos, classes):
    """A line of AVE's lists → Event; of one of the classes, unless None."""
    require(len(row) == 5, path, line, f'{len(row)} columns, not 5 ({"&".join(COLUMNS)})')
    label, name, _, start, end = row
    require(label, path, line, 'the category is empty')
    if classes is not None:
        require(label in classes, path, line,
                f'unknown category {label!r}{near(label, classes)} It is not in Annotations.txt')
    require_id(name, path, line)
    right = start.isdecimal() and end.isdecimal() and int(start) < int(end) <= AVE_SECONDS
    require(right, path, line,
            f'the event is from {start!r} to {end!r}, not between two whole seconds of 0 … {AVE_SECONDS}')
    return Event(str(videos / f'{name}.mp4'), label, int(start), int(end))


class AVE(torch.utils.data.Dataset):
    """Clips of ten seconds with a label a second (App. E). classes: names of the events, which are labels 1, 2, …;
    label 0 is background. Keys are (index, seed), as in VideoClips."""

    def __init__(self, events, classes, sizes: Sizes, augment, bad=()):
        self.events, self.classes, self.sizes, self.augment = events, classes, sizes, augment
        self.bad = list(bad)   # 'name: reason' of each clip that was left out
        self.labels = [(event.label,) for event in events]

    def __len__(self):
        return len(self.events)

    def __getitem__(self, key):
        """audio (W, t, f) float32, video (W, T, 3, S, S) uint8, audio_start (W,) float32 seconds: `data.read_windows`;
        target (10,) int64, the label of each second; clip and bad as in VideoClips."""
        index, seed = key
        generator = lambda: torch.Generator().manual_seed(seed) if self.augment else None
        index, (audio, video, audio_start), bad = first_readable(
            self.events, index, lambda path: read_windows(path, self.sizes, generator()))
        event = self.events[index]
        second = torch.arange(AVE_SECONDS)
        happening = (event.start <= second) & (second < event.end)
        target = happening * (1 + self.classes.index(event.label))
        return dict(audio=audio, video=video, audio_start=audio_start, target=target, clip=index, bad=bad)


def ave(folder, sizes: Sizes, **scan):
    """AVE → ({'train', 'val', 'test': AVE}, of which those are there whose list is; the names of the events).
    What cannot be used is left out and named in each one's `bad`. scan: see `usable`."""
    lists, classes = read_ave(folder)
    sets = {}
    for split, events in lists.items():
        events, bad, notes = usable(folder, events, **scan)
        sets[split] = AVE(events, classes, sizes, split == 'train', bad + notes)
    return sets, classes
