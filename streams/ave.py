"""AVE (Tian et al. 2018; App. E): clips of ten seconds with a label per second, for event localization.

In:  its folder, laid out as it is distributed (AVE_LAYOUT).
Out: a data set for each split, whose items are the tensors of `read_windows` and ten labels. UserError names the line
     of its lists that is wrong.
"""
import csv
import os
from pathlib import Path

import torch

from config import Sizes
from data import audio_around, centre_crop, multi_scale_crop
from streams.common import Clip, VideoClips, filter_clips
from streams.tables import find_file, require, require_files, require_id, rows
from utils.distributed import print_rank0
from utils.video import decode_audio, decode_frames, open_clip

AVE_LAYOUT = """Download AVE from https://github.com/YapengTian/AVE-ECCV18, and unpack it, so that it lies like this:
  {folder}/Annotations.txt
  {folder}/trainSet.txt, valSet.txt, testSet.txt
  {folder}/AVE/<id>.mp4   (or .mkv, .webm, .avi)"""
AVE_SECONDS = 10                    # of a clip, with a label each
COLUMNS = ['Category', 'VideoID', 'Quality', 'StartTime', 'EndTime']


def read_ave(folder):
    """folder/Annotations.txt and those of trainSet.txt, valSet.txt, testSet.txt that exist (COLUMNS separated by &;
    only the first file may have a header) → {split: list of Clip}, sorted names of the events, notes for the user.
    Raises UserError."""
    folder = Path(folder)
    table, videos = folder / 'Annotations.txt', folder / 'AVE'
    files = {split: folder / f'{split}Set.txt' for split in ('train', 'val', 'test')}
    files = {split: path for split, path in files.items() if path.is_file()}
    require_files(AVE_LAYOUT, folder, [table, videos, *([] if files else [folder / 'trainSet.txt'])])
    present = set(os.listdir(videos))

    def read(path):                                    # GitHub's copy of Annotations.txt has no header
        lines = rows(path, delimiter='&', quoting=csv.QUOTE_NONE)
        return [(line, row) for line, row in lines if row != COLUMNS]

    for line, row in read(table):
        require(len(row) == 5, table, line, f'{len(row)} columns, not 5 ({"&".join(COLUMNS)})')
    classes = sorted({row[0] for _, row in read(table)})
    clips, notes = {}, []
    for split, path in files.items():
        clips[split] = []
        for line, row in read(path):
            require(len(row) == 5, path, line, f'{len(row)} columns, not 5 ({"&".join(COLUMNS)})')
            label, name, _, start, end = row
            require(label in classes, path, line, f'the category {label!r} is not in Annotations.txt')
            require_id(name, path, line)
            valid = start.isdecimal() and end.isdecimal() and int(start) <= int(end) <= AVE_SECONDS
            require(valid, path, line,
                    f'the event is from {start!r} to {end!r}, not between two whole seconds of 0 … {AVE_SECONDS}')
            if int(start) == int(end):                           # AVE's own lists have one
                notes.append(f'{path}:{line}: {name} is left out: its event has no length')
                continue
            clips[split].append(Clip(find_file(videos, present, name), (label,), name, 0, split, AVE_SECONDS,
                                     event=(int(start), int(end))))
    return clips, classes, notes


class AVE(VideoClips):
    """Clips of ten seconds with a label per second (App. E). Keys are (index, seed).

    clips    list of Clip                 classes  names of the events: labels 1, 2, …; label 0 is background
    bad      'name: reason' of each clip that was left out"""

    def __init__(self, clips, classes, sizes: Sizes, augment, bad=()):
        super().__init__(clips, sizes, augment)
        self.classes, self.bad = classes, list(bad)

    def read(self, clip, generator):
        """audio (W, t, f) float32, video (W, T, 3, S, S) uint8, audio_start (W,) float32 seconds: `read_windows`;
        target (10,) int64, the label of each second. Raises BadClip."""
        audio, video, audio_start = read_windows(clip.path, self.sizes, generator)
        second = torch.arange(AVE_SECONDS)
        start, end = clip.event
        during = (start <= second) & (second < end)
        target = during * (1 + self.classes.index(clip.labels[0]))
        return dict(audio=audio, video=video, audio_start=audio_start, target=target)


def ave(folder, cfg, workers):
    """AVE → {split: AVE} for those of train and test that have a list; the names of the events. Unusable clips are left
    out and named in `bad`. cfg, workers: see `filter_clips`. Raises UserError."""
    lists, classes, notes = read_ave(folder)
    for note in notes:
        print_rank0(note)
    sets = {}
    lists.pop('val', None)                             # nothing is chosen on it
    for split, clips in lists.items():
        clips, bad = filter_clips(folder, clips, cfg, workers)
        sets[split] = AVE(clips, classes, cfg, split == 'train', bad)
    return sets, classes


# ------------------------------------------------------------------------ ten seconds as windows

def window_starts(sizes: Sizes):
    """Seconds at which the windows of T seconds start that cover a clip of AVE (App. E): 0, T, 2T, …; the last one is
    moved back to end with the clip. For T = 4: [0, 4, 6]."""
    T = sizes.num_frames
    return [max(0, min(start, AVE_SECONDS - T)) for start in range(0, AVE_SECONDS, T)]


def window_of_second(sizes: Sizes):
    """For each of the ten seconds, the first window that shows it: (window, frame in it)"""
    T, starts = sizes.num_frames, window_starts(sizes)
    windows = [next(w for w, start in enumerate(starts) if start <= second < start + T)
               for second in range(AVE_SECONDS)]
    return [(w, second - starts[w]) for second, w in enumerate(windows)]


def read_windows(path, sizes: Sizes, generator=None):
    """Ten seconds → audio (W, t, f) float32, video (W, T, 3, S, S) uint8, and audio_start (W,) float32, the second of
    the clip at which the audio of each window starts. Raises BadClip.

    The middle frame of each second; for each window the audio around its middle, as in read_clip. generator: training,
    one MultiScaleCrop for the whole clip. AVE has neither noise nor roll in time (Table 6).
    """
    T, starts, size = sizes.num_frames, window_starts(sizes), sizes.image_size
    seconds = max(AVE_SECONDS, starts[-1] + T)
    with open_clip(path, (0, AVE_SECONDS)) as clip:
        waveform, audio_start = decode_audio(clip)
        begin = clip.start
        frames = decode_frames(clip, [begin + second + 0.5 for second in range(seconds)], size)
    frames = centre_crop(frames, size) if generator is None else multi_scale_crop(frames, size, generator)
    windows = [audio_around(waveform, begin + start + T / 2 - audio_start, sizes) for start in starts]
    return (torch.stack([audio for audio, _ in windows]),
            torch.stack([frames[start:start + T] for start in starts]),
            torch.tensor([audio_start + first - begin for _, first in windows]))
