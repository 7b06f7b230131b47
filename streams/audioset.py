"""AudioSet (Gemmeke et al. 2017; App. B): its lists of clips → a stream of seven tasks.

In:  its folder, laid out as it is distributed (AUDIOSET_LAYOUT).
Out: a Clip for each line of its lists; a Stream. UserError names the line that is wrong.
"""
import os
import re
from pathlib import Path

from streams.common import Clip, make_stream
from streams.tables import (TASKS, find_file, read_retrieval_list, read_tasks, require, require_files, require_id,
                            rows, rows_below)

AUDIOSET_LAYOUT = """\
Download AudioSet's lists from https://research.google.com/audioset/download.html, and the clips they list
(10 s of a YouTube video each), so that they lie like this:
  {folder}/class_labels_indices.csv
  {folder}/balanced_train_segments.csv, unbalanced_train_segments.csv   (one or both), eval_segments.csv
  {folder}/video/<id>_<start second, six digits>.mp4   (or <id>_<start ms>_<end ms>, or <id>; .mkv, .webm, .avi)
`--dataset shapes` needs no download."""
MIDS = 'class_labels_indices.csv'     # the class of each mid, such as /m/09x0r
BALANCED, TESTED = 'balanced_train_segments.csv', 'eval_segments.csv'     # AudioSet-20k; the test split


def read_audioset(folder, tables):
    """Segment files of these names (id, start second, end second, "mid,mid,…"; comments begin with #) → list of Clip,
    in their order. The clips of eval_segments.csv are the test split. Raises UserError."""
    folder = Path(folder)
    videos = folder / 'video'
    require_files(AUDIOSET_LAYOUT, folder, [folder / MIDS, *(folder / table for table in tables), videos])
    names, present = read_mids(folder), set(os.listdir(videos))
    clips, lines = [], {}
    for table in (folder / name for name in tables):
        split = 'test' if table.name == TESTED else 'train'
        for line, row in rows(table):
            if row[0].startswith('#'):
                continue
            require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start, end, "labels")')
            name, start, end, mids = row
            require_id(name, table, line)
            for text in (start, end):
                valid = re.fullmatch(r'[0-9]{1,9}(\.[0-9]+)?', text)
                require(valid, table, line, f'{text!r} is not a number of seconds')
            start, end = float(start), float(end)
            require(end > start, table, line, f'the segment ends at {end:g}, not after its start {start:g}')
            mids = [mid.strip() for mid in mids.split(',')]
            for mid in mids:
                require(mid in names, table, line, f'unknown label {mid!r}: it is not in {MIDS}')
            path = find_file(
                videos, present, f'{name}_{int(start):06d}', f'{name}_{start * 1000:.0f}_{end * 1000:.0f}', name)
            require(path not in lines, table, line, f'the same clip as in {lines.get(path)}')
            lines[path] = f'{table.name}:{line}'
            labels = tuple(dict.fromkeys(names[mid] for mid in mids))
            clips.append(Clip(path, labels, name, start, split, end - start))
    return clips


def train_tables(folder):
    """Names of the lists of training clips in the folder: balanced, unbalanced, or both"""
    names = sorted(path.name for path in Path(folder).glob('*train_segments.csv'))
    return [name for name in names if not name.startswith('.')] or [BALANCED]


def read_mids(folder):
    """folder/class_labels_indices.csv → {mid: name of the class}. Raises UserError."""
    lines = rows_below(['index', 'mid', 'display_name'], Path(folder) / MIDS)
    return {mid: name for _, (_, mid, name) in lines}


def audioset(cfg, workers, pretrain=()):
    """AudioSet as a Stream (App. B): seven tasks. Clips with labels of several tasks are left out; the others keep the
    labels of their task. pretrain: VGGSound's clips; its training clips are the initial pre-training set."""
    clips = read_audioset(cfg.data, [*train_tables(cfg.data), TESTED])
    tasks = read_tasks(cfg.tasks or TASKS / 'audioset.csv', set(read_mids(cfg.data).values()))
    retrieval_paths, notes = read_retrieval_list(cfg.retrieval_list, clips)

    # keep the clips of exactly one task
    of_one_task, of_several = [], 0
    for clip in clips:
        labels = tuple(label for label in clip.labels if label in tasks)
        number = len({tasks[label] for label in labels})
        of_several += number > 1
        if number == 1:
            of_one_task.append(clip._replace(labels=labels))
    if of_several:
        notes.append(f'{of_several} clips with labels of several tasks are left out')

    # no test clip may return by way of VGGSound: both are YouTube videos
    tested = {clip.name for clip in clips if clip.split == 'test'}
    pretrain = [clip for clip in pretrain if clip.split == 'train' and clip.name not in tested]
    return make_stream(cfg, workers, of_one_task, tasks, pretrain, retrieval_paths, notes)
