"""AVE (Tian et al. 2018; App. E): clips of ten seconds with a label a second, for event localization.

In:  its folder, laid out as it is distributed (AVE_LAYOUT).
Out: a data set for each split, whose items are the tensors of `read_windows` and ten labels. UserError for a line
     of its lists that cannot be right, with its number.
"""
import contextlib
import csv
import os
from pathlib import Path
from typing import NamedTuple

import av
import torch
from tqdm import tqdm

from data import CLEARLY_LONGER, audio_around, centre_crop, decode_audio, decode_frames, multi_scale_crop, opened
from patches import Sizes
from streams.common import first_readable, near, usable
from streams.tables import demand, find_file, require, require_id, rows

AVE_LAYOUT = """Download AVE from https://github.com/YapengTian/AVE-ECCV18, and unpack it, so that it lies like this:
  {folder}/Annotations.txt
  {folder}/trainSet.txt, valSet.txt, testSet.txt
  {folder}/AVE/<id>.mp4   (or .mkv, .webm, .avi)"""
AVE_SECONDS = 10                    # of a clip, a label each
LOOKED_AT = 20                      # files, to see whether they are whole videos
COLUMNS = ['Category', 'VideoID', 'Quality', 'StartTime', 'EndTime']


class Event(NamedTuple):
    """A clip of AVE: something is both seen and heard from second start to second end."""
    path: str
    label: str
    start: int
    end: int

    @property
    def labels(self):
        return (self.label,)

    @property
    def segment(self):
        """Which part of a longer video is the clip: no list says where it is, so the beginning"""
        return 0, AVE_SECONDS


def read_ave(folder):
    """folder/Annotations.txt and those of trainSet.txt, valSet.txt, testSet.txt that are there (COLUMNS with & between
    them; only the first has a header) → {split: list of Event}, the names of the events, sorted."""
    folder = Path(folder)
    table, videos = folder / 'Annotations.txt', folder / 'AVE'
    files = {split: folder / f'{split}Set.txt' for split in ('train', 'val', 'test')}
    files = {split: path for split, path in files.items() if path.is_file()}
    demand(AVE_LAYOUT, folder, [table, videos, *([] if files else [folder / 'trainSet.txt'])])
    present = set(os.listdir(videos))
    find = lambda name: find_file(videos, present, name)
    read = lambda path: rows(path, delimiter='&', quoting=csv.QUOTE_NONE)
    annotated = list(read(table))
    right = annotated and annotated[0][1] == COLUMNS
    require(right, table, 1, f'the first line must be the header: {"&".join(COLUMNS)}')
    classes = sorted({_event(table, line, row, find, None).label for line, row in annotated[1:]})
    events = {split: [_event(path, line, row, find, classes) for line, row in read(path)]
              for split, path in files.items()}
    return events, classes


def _event(path, line, row, find, classes):
    """A line of AVE's lists → Event; of one of the classes, unless None. find: an id → its file"""
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
    return Event(find(name), label, int(start), int(end))


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
        """audio (W, t, f) float32, video (W, T, 3, S, S) uint8, audio_start (W,) float32 seconds: `read_windows`;
        target (10,) int64, the label of each second; clip and bad as in VideoClips."""
        index, seed = key
        generator = lambda: torch.Generator().manual_seed(seed) if self.augment else None
        index, (audio, video, audio_start), bad = first_readable(
            self.events, index, lambda clip: read_windows(clip.path, self.sizes, generator()))
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
    say_if_longer([event.path for dataset in sets.values() for event in dataset.events])
    return sets, classes


def say_if_longer(paths):
    """Nothing says where in a whole video its ten seconds are. Some files are looked at, for they are mostly alike."""
    for path in paths[::max(1, len(paths) // LOOKED_AT)]:
        with contextlib.suppress(av.FFmpegError, OSError, ValueError), av.open(path) as file:
            seconds = (file.duration or 0) / av.time_base
            if seconds > AVE_SECONDS + CLEARLY_LONGER:
                tqdm.write(f'{path} has {seconds:.0f} s: of it, and of others longer than a clip of AVE, the first '
                           f'{AVE_SECONDS} s are used, for its lists do not say which are meant')
                return


# ------------------------------------------------------------------------ ten seconds as windows

def window_starts(sizes: Sizes):
    """Seconds at which the windows begin that cover the ten seconds of a clip of AVE (App. E), of T seconds each, as
    the model takes: 0, T, 2T, …; the last one moved back to end with the clip. For T = 4: [0, 4, 6]."""
    T = sizes.num_frames
    return [max(0, min(start, AVE_SECONDS - T)) for start in range(0, AVE_SECONDS, T)]


def window_of_second(sizes: Sizes):
    """For each of the ten seconds, where it is seen: (window, frame in it). Where two windows see it, the first."""
    T, starts = sizes.num_frames, window_starts(sizes)
    windows = [next(w for w, start in enumerate(starts) if start <= second < start + T)
               for second in range(AVE_SECONDS)]
    return [(w, second - starts[w]) for second, w in enumerate(windows)]


def read_windows(path, sizes: Sizes, generator=None):
    """Ten seconds → audio (W, t, f) float32, video (W, T, 3, S, S) uint8, and audio_start (W,) float32, the second of
    the clip at which each window's audio begins. Raises BadClip.

    Of each second its middle frame; with each window, the audio around its middle, as in read_clip. With a generator,
    as in training: one MultiScaleCrop for the whole clip. AVE has neither noise nor time shift (Table 6).
    """
    T, starts = sizes.num_frames, window_starts(sizes)
    seconds = max(AVE_SECONDS, starts[-1] + T)
    with opened(path, (0, AVE_SECONDS)) as clip:
        waveform, audio_start = decode_audio(clip)
        begin = clip.times[0]
        frames = decode_frames(clip, [begin + second + 0.5 for second in range(seconds)], sizes.image_size)
    size = sizes.image_size
    frames = centre_crop(frames, size) if generator is None else multi_scale_crop(frames, size, generator)
    heard = [audio_around(waveform, begin + start + T / 2 - audio_start, sizes) for start in starts]
    return (torch.stack([audio for audio, _ in heard]), torch.stack([frames[start:start + T] for start in starts]),
            torch.tensor([audio_start + first - begin for _, first in heard]))
