"""The lists that VGGSound, AudioSet and AVE come with, and CAV-MAE's of retrieval clips (App. B, E).

In:  text files, as they are distributed.
Out: a Clip or an Event for each line, or a class's task; UserError for a line that cannot be right, with its number: a class
     misspelt or a clip listed twice would only change results.
"""
import csv
import difflib
import io
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from data import AVE_SECONDS
from model import UserError

SUFFIXES = ('.mp4', '.mkv', '.webm', '.avi')
MIDS = 'class_labels_indices.csv'     # of AudioSet: which class each mid is, such as /m/09x0r


class Clip(NamedTuple):
    path: str
    labels: tuple       # names of its classes: one in VGGSound, several in AudioSet
    line: int           # of its list
    name: str = ''      # YouTube's id
    start: float = 0.0  # second of the YouTube video
    split: str = ''     # train or test


class Event(NamedTuple):
    """A clip of AVE: something is both seen and heard from second start to second end."""
    path: str
    label: str
    start: int
    end: int


VGGSOUND_LAYOUT = """Download vggsound.csv from https://www.robots.ox.ac.uk/~vgg/data/vggsound, and the clips it lists (10 s of a
YouTube video each), so that they lie like this:
  {folder}/vggsound.csv
  {folder}/video/<id>_<start second, six digits>.mp4   (or .mkv, .webm, .avi)
`--dataset shapes` needs no download."""
AUDIOSET_LAYOUT = """Download AudioSet's lists from https://research.google.com/audioset/download.html, and the clips they list
(10 s of a YouTube video each), so that they lie like this:
  {folder}/class_labels_indices.csv
  {folder}/balanced_train_segments.csv, unbalanced_train_segments.csv   (one or both), eval_segments.csv
  {folder}/video/<id>_<start second, six digits>.mp4   (or <id>_<start ms>_<end ms>, or <id>; .mkv, .webm, .avi)
`--dataset shapes` needs no download."""
AVE_LAYOUT = """Download AVE from https://github.com/YapengTian/AVE-ECCV18, and unpack it, so that it lies like this:
  {folder}/Annotations.txt
  {folder}/trainSet.txt, valSet.txt, testSet.txt
  {folder}/AVE/<id>.mp4"""
AVE_COLUMNS = ['Category', 'VideoID', 'Quality', 'StartTime', 'EndTime']


def read_vggsound(folder):
    """folder/vggsound.csv (id, start second, label, split; no header) -> list of Clip, in its order."""
    folder = Path(folder)
    table, videos = folder / 'vggsound.csv', folder / 'video'
    _demand(VGGSOUND_LAYOUT, folder, [table, videos])
    present = set(os.listdir(videos))   # one look, not one per clip: the folder may be far away
    clips, lines = [], {}
    for line, row in _rows(table):
        _require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start second, label, split)')
        name, start, label, split = row
        _require_id(name, table, line)
        _require(re.fullmatch('[0-9]{1,9}', start), table, line, f'the start {start!r} is not a whole number')
        _require(label, table, line, 'the label is empty')
        _require(split in ('train', 'test'), table, line, f'the split is {split!r}, not train or test')
        stem = f'{name}_{int(start):06d}'
        _require(stem not in lines, table, line, f'the same clip as in line {lines.get(stem)}')
        lines[stem] = line
        clips.append(Clip(_file(videos, present, stem), (label,), line, name, float(start), split))
    if not clips:
        raise UserError(f'{table}: lists no clips')
    return clips


def read_audioset(folder, tables):
    """AudioSet's segment files, of the given names (id, start second, end second, "mid,mid,…"; comments begin with #)
    -> list of Clip, in their order. The clips of eval_segments.csv are the test split."""
    folder = Path(folder)
    videos = folder / 'video'
    _demand(AUDIOSET_LAYOUT, folder, [folder / MIDS, *(folder / table for table in tables), videos])
    names, present = read_mids(folder), set(os.listdir(videos))
    clips, lines = [], {}
    for table in (folder / name for name in tables):
        for line, row in _rows(table):
            if row[0].startswith('#'):
                continue
            _require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start, end, "labels")')
            name, start, end, labels = row
            _require_id(name, table, line)
            for text in (start, end):
                _require(re.fullmatch(r'[0-9]{1,9}(\.[0-9]+)?', text), table, line, f'{text!r} is not a number of seconds')
            start, end = float(start), float(end)
            _require(start < end, table, line, f'the clip ends at {end:g} s, not after its start at {start:g} s')
            labels = [mid.strip() for mid in labels.split(',')]
            for mid in labels:
                _require(mid in names, table, line, f'unknown label {mid!r}: it is not in {MIDS}')
            path = _file(videos, present, f'{name}_{int(start):06d}', f'{name}_{start * 1000:.0f}_{end * 1000:.0f}', name)
            _require(path not in lines, table, line, f'the same clip as in {lines.get(path)}')
            lines[path] = f'{table.name}:{line}'
            split = 'test' if table.name == 'eval_segments.csv' else 'train'
            clips.append(Clip(path, tuple(dict.fromkeys(names[mid] for mid in labels)), line, name, start, split))
    return clips


def train_tables(folder):
    """Names of AudioSet's lists of training clips that are there: balanced, unbalanced, or both."""
    return sorted(path.name for path in Path(folder).glob('*train_segments.csv')) or ['balanced_train_segments.csv']


def read_mids(folder):
    """folder/class_labels_indices.csv -> dict mid -> display name"""
    path, names, header = Path(folder) / MIDS, {}, None
    for line, row in _rows(path):
        if header is None:
            header = row
            _require(row == ['index', 'mid', 'display_name'], path, line, 'the header must be: index,mid,display_name')
            continue
        _require(len(row) == 3, path, line, f'{len(row)} columns, not 3; a name with a comma needs "quotes"')
        _, mid, name = row
        _require(mid and name, path, line, 'the mid or the name is empty')
        _require(mid not in names, path, line, f'the mid {mid!r} is there twice')
        names[mid] = name
    return names


def read_ave(folder):
    """folder/Annotations.txt and those of trainSet.txt, valSet.txt, testSet.txt that are there (Category&VideoID&Quality&
    StartTime&EndTime a line; only the first has a header) -> {split: list of Event}, the names of the events, sorted."""
    folder = Path(folder)
    table, videos = folder / 'Annotations.txt', folder / 'AVE'
    files = {split: folder / f'{split}Set.txt' for split in ('train', 'val', 'test')}
    files = {split: path for split, path in files.items() if path.is_file()}
    _demand(AVE_LAYOUT, folder, [table, videos, *([] if files else [folder / 'trainSet.txt'])])
    rows = list(_rows(table, delimiter='&', quoting=csv.QUOTE_NONE))
    _require(rows and rows[0][1] == AVE_COLUMNS, table, 1, f'the first line must be the header: {"&".join(AVE_COLUMNS)}')
    classes = sorted({_event(table, line, row, videos, None).label for line, row in rows[1:]})
    events = {split: [_event(path, line, row, videos, classes)
                      for line, row in _rows(path, delimiter='&', quoting=csv.QUOTE_NONE)] for split, path in files.items()}
    return events, classes


def _event(path, line, row, videos, classes):
    """A line of AVE's lists (Category&VideoID&Quality&StartTime&EndTime) -> Event; of one of the classes, unless None."""
    _require(len(row) == 5, path, line, f'{len(row)} columns, not 5 ({"&".join(AVE_COLUMNS)})')
    label, name, _, start, end = row
    _require(label, path, line, 'the category is empty')
    if classes is not None:
        _require(label in classes, path, line, f'unknown category {label!r}{near(label, classes)} It is not in Annotations.txt')
    _require_id(name, path, line)
    right = start.isdecimal() and end.isdecimal() and int(start) < int(end) <= AVE_SECONDS
    _require(right, path, line, f'the event is from {start!r} to {end!r}, not between two whole seconds of 0 … {AVE_SECONDS}')
    return Event(str(videos / f'{name}.mp4'), label, int(start), int(end))


def read_tasks(csv_path, known_classes):
    """A file with the header `class,task` -> dict class -> task, in the file's order. A class that is not known is
    refused, for a misspelt one would silently have no clips; with known_classes=None, every class is accepted."""
    tasks, header = {}, None
    for line, row in _rows(csv_path):
        if header is None:
            header = row
            _require(row == ['class', 'task'], csv_path, line, 'the first line must be the header: class,task')
            continue
        _require(len(row) == 2, csv_path, line, f'{len(row)} columns, not 2; a class with a comma needs "quotes"')
        name, task = row
        _require(name and task, csv_path, line, 'the class or the task is empty')
        _require(name not in tasks, csv_path, line, f'the class {name!r} is there twice')
        if known_classes is not None and name not in known_classes:
            raise UserError(f'{csv_path}:{line}: unknown class {name!r}{near(name, known_classes)}')
        tasks[name] = task
    if not tasks:
        raise UserError(f'{csv_path}: has no rows; needed are the header class,task and a line for each class')
    return tasks


def read_retrieval_list(path, clips):
    """CAV-MAE's list of clips to retrieve -> the paths of those clips, of the test split; and notes. '' -> None, [].

    {"data": [{"video_id": "<id>", "wav": "…", …}, …]}; an id may have _<start second> behind it, with zeros or decimals.
    Where there is no video_id, the wav's name says it."""
    if not path:
        return None, []
    try:
        entries = json.loads(Path(path).read_bytes())['data']
        names = [str(entry.get('video_id') or Path(entry['wav']).stem) for entry in entries]
    except OSError as error:
        raise UserError(f'--retrieval-list {path}: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'--retrieval-list {path} is not in CAV-MAE\'s format, JSON of {{"data": [{{"video_id": …, "wav": …}}, '
                        f'…]}}: {type(error).__name__} {error}') from error
    by_name = {}
    for clip in clips:
        if clip.split == 'test':
            for key in (clip.name, (clip.name, clip.start)):
                by_name.setdefault(key, []).append(clip.path)
    found = []
    for name in names:
        start = re.fullmatch(r'(.+)_([0-9]+(?:\.[0-9]+)?)', name)      # ids, too, may hold a _ with digits behind it
        found.append(by_name.get(name) or start and by_name.get((start[1], float(start[2]))) or [])
    if not any(found):
        raise UserError(f'--retrieval-list {path}: none of its {len(names)} entries is a test clip; is it of this data set?')
    missing = found.count([])
    notes = [f'{missing} of {len(names)} entries of {path} are no test clip here'] if missing else []
    return {path for paths in found for path in paths}, notes


def _file(videos, present, *stems):
    """The path of the first of the stems that is there, with any suffix; else that of the first, which is missing."""
    names = (stem + suffix for stem in stems for suffix in SUFFIXES)
    return str(videos / next((name for name in names if name in present), stems[0] + SUFFIXES[0]))


def _demand(layout, folder, needed):
    """Files and folders (those without a suffix) that must be there; else says what to download."""
    for path in needed:
        if not (path.is_file() if path.suffix else path.is_dir()):
            raise UserError(f'{path} is missing. ' + layout.format(folder=folder))


def _require(condition, path, line, reason):
    if not condition:
        raise UserError(f'{path}:{line}: {reason}')


def _require_id(name, path, line):
    _require(name, path, line, 'the id is empty')
    _require(not re.search(r'[/\\\0]|\.\.', name), path, line, f'the id {name!r} would lead out of the folder')


def near(name, known):
    """'; did you mean …?' where there is a name like it, else '.'"""
    alike = ' or '.join(map(repr, difflib.get_close_matches(name, known, 3)))
    return f'; did you mean {alike}?' if alike else '.'


def _rows(path, **dialect):
    """(line number, cells) of a CSV file, empty lines left out."""
    try:
        data = Path(path).read_bytes()
        text = data.decode('utf-8-sig')   # -sig: some spreadsheets start a file with a mark
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path}:{data[:error.start].count(10) + 1}: not UTF-8 text') from error
    reader = csv.reader(io.StringIO(text, newline=''), strict=True, skipinitialspace=True, **dialect)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f'{path}:{reader.line_num}: {error}') from error
