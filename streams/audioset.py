"""AudioSet (Gemmeke et al. 2017; App. B): its lists of clips → a stream of seven tasks.

In:  its folder, laid out as it is distributed (AUDIOSET_LAYOUT).
Out: a Clip for each line of its lists; a Stream. UserError for a line that cannot be right, with its number.
"""
import os
import re
from pathlib import Path

from patches import Sizes
from streams.common import Clip, check_nothing, counts, stream_of, usable
from streams.tables import TASKS, demand, find_file, read_retrieval_list, read_tasks, require, require_id, rows

AUDIOSET_LAYOUT = """\
Download AudioSet's lists from https://research.google.com/audioset/download.html, and the clips they list
(10 s of a YouTube video each), so that they lie like this:
  {folder}/class_labels_indices.csv
  {folder}/balanced_train_segments.csv, unbalanced_train_segments.csv   (one or both), eval_segments.csv
  {folder}/video/<id>_<start second, six digits>.mp4   (or <id>_<start ms>_<end ms>, or <id>; .mkv, .webm, .avi)
`--dataset shapes` needs no download."""
MIDS = 'class_labels_indices.csv'     # which class each mid is, such as /m/09x0r
BALANCED, TESTED = 'balanced_train_segments.csv', 'eval_segments.csv'     # AudioSet-20k; the test split


def read_audioset(folder, tables):
    """AudioSet's segment files, of the given names (id, start second, end second, "mid,mid,…"; comments begin with #)
    → list of Clip, in their order. The clips of eval_segments.csv are the test split."""
    folder = Path(folder)
    videos = folder / 'video'
    demand(AUDIOSET_LAYOUT, folder, [folder / MIDS, *(folder / table for table in tables), videos])
    names, present = read_mids(folder), set(os.listdir(videos))
    clips, lines = [], {}
    for table in (folder / name for name in tables):
        split = 'test' if table.name == TESTED else 'train'
        for line, row in rows(table):
            if row[0].startswith('#'):
                continue
            name, start, end, mids = _segment(table, line, row, names)
            path = find_file(
                videos, present, f'{name}_{int(start):06d}', f'{name}_{start * 1000:.0f}_{end * 1000:.0f}', name)
            require(path not in lines, table, line, f'the same clip as in {lines.get(path)}')
            lines[path] = f'{table.name}:{line}'
            labels = tuple(dict.fromkeys(names[mid] for mid in mids))
            clips.append(Clip(path, labels, line, name, start, split, end - start))
    return clips


def _segment(table, line, row, names):
    """A line of AudioSet's lists → id, start, end, list of mids, each of which has a name."""
    require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start, end, "labels")')
    name, start, end, mids = row
    require_id(name, table, line)
    for text in (start, end):
        require(re.fullmatch(r'[0-9]{1,9}(\.[0-9]+)?', text), table, line, f'{text!r} is not a number of seconds')
    start, end = float(start), float(end)
    require(start < end, table, line, f'the clip ends at {end:g} s, not after its start at {start:g} s')
    mids = [mid.strip() for mid in mids.split(',')]
    for mid in mids:
        require(mid in names, table, line, f'unknown label {mid!r}: it is not in {MIDS}')
    return name, start, end, mids


def train_tables(folder):
    """Names of AudioSet's lists of training clips that are there: balanced, unbalanced, or both."""
    return sorted(path.name for path in Path(folder).glob('*train_segments.csv')) or [BALANCED]


def read_mids(folder):
    """folder/class_labels_indices.csv → dict mid → display name"""
    path, names, header = Path(folder) / MIDS, {}, None
    for line, row in rows(path):
        if header is None:
            header = row
            require(row == ['index', 'mid', 'display_name'], path, line, 'the header must be: index,mid,display_name')
            continue
        require(len(row) == 3, path, line, f'{len(row)} columns, not 3; a name with a comma needs "quotes"')
        _, mid, name = row
        require(mid and name, path, line, 'the mid or the name is empty')
        require(mid not in names, path, line, f'the mid {mid!r} is there twice')
        names[mid] = name
    return names


def audioset(folder, sizes: Sizes, tasks_csv=None, retrieval_list='', pretrain=None, max_roll=-1,
             counted=check_nothing, **scan):
    """AudioSet as a Stream (App. B): seven tasks. Clips with labels of two tasks are left out; of the labels of the
    others, those of their task are kept.

    tasks_csv       class → task, in the order of the tasks; None: the paper's
    retrieval_list  JSON file of the clips to retrieve, in CAV-MAE's format; '': the whole test split
    pretrain        (folder of VGGSound, its clips), whose training clips are the initial pre-training set; None: none
    max_roll        of training clips: see `data.augment_audio`
    counted         is told how many clips there are to learn from at most: see `check_batches`
    scan            how clips are tested: see `usable`
    """
    clips = read_audioset(folder, [*train_tables(folder), TESTED])
    tasks = read_tasks(tasks_csv or TASKS / 'audioset.csv', set(read_mids(folder).values()))
    listed, notes = read_retrieval_list(retrieval_list, clips)

    ours, between = [], 0
    for clip in clips:
        labels = tuple(label for label in clip.labels if label in tasks)
        its_tasks = {tasks[label] for label in labels}
        between += len(its_tasks) > 1
        if len(its_tasks) == 1:
            ours.append(clip._replace(labels=labels))
    if between:
        notes.append(f'{between} clips with labels of two tasks or more are left out')
    initial, tested = [], {clip.name for clip in clips if clip.split == 'test'}
    if pretrain:   # no test clip may come in by the other data set: both are of YouTube
        initial = [clip for clip in pretrain[1] if clip.split == 'train' and clip.name not in tested]
    counted(*counts(ours, tasks, initial))
    ours, bad, more_notes = usable(folder, ours, **scan)
    notes += more_notes
    if pretrain:
        initial, more_bad, more_notes = usable(pretrain[0], initial, **scan)
        bad, notes = bad + more_bad, notes + more_notes
    return stream_of(folder, tasks, ours, listed, initial, sizes, bad, notes, max_roll)
