"""VGGSound (Chen et al. 2020; App. B): its list of clips → a stream of eight tasks.

In:  its folder, laid out as it is distributed (VGGSOUND_LAYOUT).
Out: a Clip for each line of its list; a Stream. UserError names the line that is wrong.
"""
import os
import re
from collections import Counter
from pathlib import Path

from streams.common import Clip, make_stream
from streams.tables import (TASKS, find_file, read_retrieval_list, read_tasks, require, require_files, require_id,
                            rows)

VGGSOUND_LAYOUT = """\
Download vggsound.csv from https://www.robots.ox.ac.uk/~vgg/data/vggsound, and the clips it lists (10 s of a
YouTube video each), so that they lie like this:
  {folder}/vggsound.csv
  {folder}/video/<id>_<start second, six digits>.mp4   (or .mkv, .webm, .avi)
`--dataset shapes` needs no download."""
SECONDS = 10      # of each clip


def read_vggsound(folder):
    """folder/vggsound.csv (id, start second, label, split; no header) → list of Clip. Raises UserError."""
    folder = Path(folder)
    table, videos = folder / 'vggsound.csv', folder / 'video'
    require_files(VGGSOUND_LAYOUT, folder, [table, videos])
    clips, lines, present = [], {}, set(os.listdir(videos))
    for line, row in rows(table):
        require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start second, label, split)')
        name, start, label, split = row
        require_id(name, table, line)
        require(re.fullmatch('[0-9]{1,9}', start), table, line, f'the start {start!r} is not a whole number')
        require(split in ('train', 'test'), table, line, f'the split is {split!r}, not train or test')
        stem = f'{name}_{int(start):06d}'
        require(stem not in lines, table, line, f'the same clip as in line {lines.get(stem)}')
        lines[stem] = line
        clips.append(Clip(find_file(videos, present, stem), (label,), name, float(start), split, SECONDS))
    return clips


def vggsound(cfg, workers, balanced=()):
    """VGGSound as a Stream (App. B): eight tasks of up to 20 classes (N34). The other classes are for the initial
    pre-training. balanced: AudioSet's balanced clips, AudioSet-20k, which join them"""
    clips = read_vggsound(cfg.data)
    paper = TASKS / 'vggsound.csv'
    tasks = read_tasks(cfg.tasks or paper, {clip.labels[0] for clip in clips} | set(read_tasks(paper, None)))
    retrieval_paths, notes = read_retrieval_list(cfg.retrieval_list, clips)
    pretrain = _audioset_20k(balanced, tasks, clips)
    clips = _select_clips(clips, tasks, cfg.clips_per_class)
    return make_stream(cfg, workers, clips, tasks, pretrain, retrieval_paths, notes)


def _select_clips(clips, tasks, clips_per_class):
    """Of the classes of the tasks, the test clips and the first clips_per_class training clips that exist; of the other
    classes, all training clips."""
    selected, count = [], Counter()
    for clip in clips:
        in_tasks = clip.labels[0] in tasks
        if clip.split == 'test':
            keep = in_tasks
        else:
            count[clip.labels] += os.path.exists(clip.path)          # clips that YouTube has lost do not count
            keep = not in_tasks or count[clip.labels] <= clips_per_class
        if keep:
            selected.append(clip)
    return selected


def _audioset_20k(balanced, tasks, clips):
    """AudioSet's balanced clips without classes of the tasks and without test clips (both are YouTube videos).

    How the paper kept the classes of the tasks out is open (N35). Here, clips with a label of the same name are left
    out (Helicopter, helicopter). Names that differ (Bark, dog barking) are not matched: such sounds remain."""
    names = {name.casefold() for name in tasks}
    tested = {clip.name for clip in clips if clip.split == 'test'}
    return [clip for clip in balanced
            if clip.name not in tested and not names & {label.casefold() for label in clip.labels}]
