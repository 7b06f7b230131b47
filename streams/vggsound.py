"""VGGSound (Chen et al. 2020; App. B): its list of clips → a stream of eight tasks.

In:  its folder, laid out as it is distributed (VGGSOUND_LAYOUT).
Out: a Clip for each line of its list; a Stream. UserError for a line that cannot be right, with its number.
"""
import os
import re
from collections import Counter
from pathlib import Path

from patches import Sizes, UserError
from streams.common import Clip, check_nothing, counts, stream_of, usable
from streams.tables import TASKS, demand, find_file, read_retrieval_list, read_tasks, require, require_id, rows

VGGSOUND_LAYOUT = """\
Download vggsound.csv from https://www.robots.ox.ac.uk/~vgg/data/vggsound, and the clips it lists (10 s of a
YouTube video each), so that they lie like this:
  {folder}/vggsound.csv
  {folder}/video/<id>_<start second, six digits>.mp4   (or .mkv, .webm, .avi)
`--dataset shapes` needs no download."""
SECONDS = 10      # of each clip


def read_vggsound(folder):
    """folder/vggsound.csv (id, start second, label, split; no header) → list of Clip, in its order."""
    folder = Path(folder)
    table, videos = folder / 'vggsound.csv', folder / 'video'
    demand(VGGSOUND_LAYOUT, folder, [table, videos])
    present = set(os.listdir(videos))   # one look, not one per clip: the folder may be far away
    clips, lines = [], {}
    for line, row in rows(table):
        require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start second, label, split)')
        name, start, label, split = row
        require_id(name, table, line)
        require(re.fullmatch('[0-9]{1,9}', start), table, line, f'the start {start!r} is not a whole number')
        require(label, table, line, 'the label is empty')
        require(split in ('train', 'test'), table, line, f'the split is {split!r}, not train or test')
        stem = f'{name}_{int(start):06d}'
        require(stem not in lines, table, line, f'the same clip as in line {lines.get(stem)}')
        lines[stem] = line
        path = find_file(videos, present, stem)
        clips.append(Clip(path, (label,), line, name, float(start), split, SECONDS, os.path.basename(path) in present))
    if not clips:
        raise UserError(f'{table}: lists no clips')
    return clips


def vggsound(folder, sizes: Sizes, tasks_csv=None, clips_per_class=400, retrieval_list='', pretrain=None, max_roll=-1,
             counted=check_nothing, **scan):
    """VGGSound as a Stream (App. B): eight tasks of up to 20 classes, the other classes for the pre-training.

    tasks_csv       class → task, in the order of the tasks; None: the paper's
    retrieval_list  JSON file of the clips to retrieve, in CAV-MAE's format; '': the whole test split
    pretrain        (folder of AudioSet, its balanced clips), AudioSet-20k, which joins the pre-training; None: none
    max_roll        of training clips: see `data.augment_audio`
    counted         is told how many clips there are to learn from at most: see `check_batches`
    scan            how clips are tested: see `usable`
    """
    clips = read_vggsound(folder)
    paper = TASKS / 'vggsound.csv'
    tasks = read_tasks(tasks_csv or paper, {clip.labels[0] for clip in clips} | set(read_tasks(paper, None)))
    listed, notes = read_retrieval_list(retrieval_list, clips)
    wanted, theirs = _wanted(clips, tasks, clips_per_class), []
    if pretrain:
        their_folder, theirs = pretrain[0], _audioset_20k(pretrain[1], tasks, clips)
    counted(*counts(wanted, tasks, theirs))
    used, bad, more_notes = usable(folder, wanted, **scan)
    ours = [clip for clip in used if clip.labels[0] in tasks]
    initial = [clip for clip in used if clip.labels[0] not in tasks]
    notes += more_notes
    if pretrain:
        more, more_bad, more_notes = usable(their_folder, theirs, **scan)
        initial, bad, notes = initial + more, bad + more_bad, notes + more_notes
    return stream_of(folder, tasks, ours, listed, initial, sizes, bad, notes, max_roll)


def _wanted(clips, tasks, clips_per_class):
    """Of the tasks' classes the test clips and the first clips_per_class training clips that are there; of the other
    classes all training clips."""
    wanted, per_class = [], Counter()
    for clip in clips:
        per_class[clip.labels, clip.split] += clip.there           # YouTube's losses do not count
        if clip.split == 'test':
            is_wanted = clip.labels[0] in tasks
        else:
            is_wanted = clip.labels[0] not in tasks or per_class[clip.labels, 'train'] <= clips_per_class
        if is_wanted:
            wanted.append(clip)
    return wanted


def _audioset_20k(balanced, tasks, clips):
    """AudioSet's balanced clips without the tasks' classes and without the test clips.

    The paper kept the tasks' classes out of the initial pre-training, but does not say how among AudioSet's. Here those
    clips go that have a label of the same name (Helicopter, helicopter). Names that differ (Bark, dog barking) cannot
    be matched, so the set still holds such sounds. Both data sets are of YouTube: no test clip may come in by the
    other."""
    names, tested = {name.casefold() for name in tasks}, {clip.name for clip in clips if clip.split == 'test'}
    return [clip for clip in balanced
            if clip.name not in tested and not names & {label.casefold() for label in clip.labels}]
