"""The tables of clips: what the lists of every data set have in common, and the two that do not come with one (App. B).

In:  text files: CSV, as data sets are distributed; `class,task`; CAV-MAE's JSON list of retrieval clips.
Out: rows with their line numbers, a class's task, the clips to retrieve; UserError for a line that cannot be right,
     with its number: a class misspelt or a clip listed twice would only change results.
"""
import csv
import io
import json
import re
from pathlib import Path

from patches import UserError
from streams.common import near

TASKS = Path(__file__).parent.parent / 'tasks'      # the paper's: vggsound.csv, audioset.csv
SUFFIXES = ('.mp4', '.mkv', '.webm', '.avi')


# -------------------------------------------------------------------------------------- any list

def rows(path, **dialect):
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


def require(condition, path, line, reason):
    if not condition:
        raise UserError(f'{path}:{line}: {reason}')


def require_id(name, path, line):
    require(name, path, line, 'the id is empty')
    require(not re.search(r'[/\\\0]|\.\.', name), path, line, f'the id {name!r} would lead out of the folder')


def demand(layout, folder, needed):
    """Files and folders (those without a suffix) that must be there; else says what to download."""
    for path in needed:
        if not (path.is_file() if path.suffix else path.is_dir()):
            raise UserError(f'{path} is missing. ' + layout.format(folder=folder))


def find_file(videos, present, *stems):
    """The path of the first of the stems that is there, with any suffix; else that of the first, which is missing."""
    names = (stem + suffix for stem in stems for suffix in SUFFIXES)
    return str(videos / next((name for name in names if name in present), stems[0] + SUFFIXES[0]))


# ------------------------------------------------------------------ tasks, and what is retrieved

def read_tasks(csv_path, known_classes):
    """A file with the header `class,task` → dict class → task, in the file's order. A class that is not known is
    refused, for a misspelt one would silently have no clips; with known_classes=None, every class is accepted."""
    tasks, header = {}, None
    for line, row in rows(csv_path):
        if header is None:
            header = row
            require(row == ['class', 'task'], csv_path, line, 'the first line must be the header: class,task')
            continue
        require(len(row) == 2, csv_path, line, f'{len(row)} columns, not 2; a class with a comma needs "quotes"')
        name, task = row
        require(name and task, csv_path, line, 'the class or the task is empty')
        require(name not in tasks, csv_path, line, f'the class {name!r} is there twice')
        if known_classes is not None and name not in known_classes:
            raise UserError(f'{csv_path}:{line}: unknown class {name!r}{near(name, known_classes)}')
        tasks[name] = task
    if not tasks:
        raise UserError(f'{csv_path}: has no rows; needed are the header class,task and a line for each class')
    return tasks


def read_retrieval_list(path, clips):
    """CAV-MAE's list of clips to retrieve → the paths of those clips, of the test split; and notes. '' → None, [].

    {"data": [{"video_id": "<id>", "wav": "…", …}, …]}; an id may have _<start second> behind it, with zeros or
    decimals. Where there is no video_id, the wav's name says it."""
    if not path:
        return None, []
    try:
        entries = json.loads(Path(path).read_bytes())['data']
        names = [str(entry.get('video_id') or Path(entry['wav']).stem) for entry in entries]
    except OSError as error:
        raise UserError(f'--retrieval-list {path}: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'--retrieval-list {path} is not in CAV-MAE\'s format, JSON of {{"data": [{{"video_id": …, '
                        f'"wav": …}}, …]}}: {type(error).__name__} {error}') from error
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
        raise UserError(f'--retrieval-list {path}: none of its {len(names)} entries is a test clip; is it of this data '
                        'set?')
    missing = found.count([])
    notes = [f'{missing} of {len(names)} entries of {path} are no test clip here'] if missing else []
    return {path for paths in found for path in paths}, notes
