"""Reading lists of clips: what all data sets have in common, the tasks, and CAV-MAE's retrieval clips (App. B).

In:  text files: CSV, as data sets are distributed; `class,task`; CAV-MAE's JSON list.
Out: rows with their line numbers; the task of each class; the retrieval clips. UserError names the line that is wrong:
     a misspelt class or a clip listed twice would silently change the results.
"""
import csv
import io
import json
import re
from pathlib import Path

from config import UserError
from utils.cli import did_you_mean

TASKS = Path(__file__).parent.parent / 'tasks'      # the paper's: vggsound.csv, audioset.csv
SUFFIXES = ('.mp4', '.mkv', '.webm', '.avi')


# -------------------------------------------------------------------------------------- any list

def rows(path, **dialect):
    """Iterate over the (line number, cells) of a CSV file, without empty lines. Raises UserError."""
    try:
        text = Path(path).read_text('utf-8-sig')   # -sig: some spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = 'does not exist' if isinstance(error, FileNotFoundError) else f'cannot be read as UTF-8 text: {error}'
        raise UserError(f'{path} {reason}') from error
    reader = csv.reader(io.StringIO(text, newline=''), strict=True, skipinitialspace=True, **dialect)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f'{path}:{reader.line_num}: {error}') from error


def rows_below(header, path):
    """As `rows`, for a file whose first line must be this header."""
    lines = rows(path)
    line, first = next(lines, (1, None))
    require(first == header, path, line, f'the first line must be the header: {",".join(header)}')
    for line, row in lines:
        require(len(row) == len(header), path, line,
                f'{len(row)} columns, not {len(header)}; a name with a comma needs "quotes"')
        yield line, row


def require(condition, path, line, reason):
    """Raises UserError with the file and the line unless the condition is true."""
    if not condition:
        raise UserError(f'{path}:{line}: {reason}')


def require_id(name, path, line):
    """Ids become file names: they must not be empty or lead out of the folder."""
    require(name, path, line, 'the id is empty')
    require(not re.search(r'[/\\\0]|\.\.', name), path, line, f'the id {name!r} would lead out of the folder')


def require_files(layout, folder, needed):
    """Raises UserError, with what to download, unless all files and folders (those without a suffix) exist."""
    for path in needed:
        if not (path.is_file() if path.suffix else path.is_dir()):
            raise UserError(f'{path} is missing. ' + layout.format(folder=folder))


def find_file(videos, present, *stems):
    """→ the path of the first stem that is in the folder with any suffix; or of a missing file. present: the names in
    the folder, listed once, because the disk may be far away"""
    names = [stem + suffix for stem in stems for suffix in SUFFIXES]
    return str(videos / next((name for name in names if name in present), names[0]))


# ------------------------------------------------------------------------ tasks, retrieval clips

def read_tasks(path, known_classes):
    """A file with the header `class,task` → {class: task}, in the order of the file. Raises UserError for a class that
    is not among known_classes; None: any class is accepted."""
    tasks = {}
    for line, (name, task) in rows_below(['class', 'task'], path):
        require(name and task, path, line, 'the class or the task is empty')
        require(name not in tasks, path, line, f'the class {name!r} is there twice')
        if known_classes is not None and name not in known_classes:
            raise UserError(f'{path}:{line}: unknown class {name!r}{did_you_mean(name, known_classes)}')
        tasks[name] = task
    require(tasks, path, 1, 'there are no rows below the header')
    return tasks


def read_retrieval_list(path, clips):
    """CAV-MAE's list of retrieval clips → the paths of those of the test split; notes for the user. '' → None, [].

    {"data": [{"video_id": "<id>", …}, …]}. _<start second> may follow an id, with zeros or decimals."""
    if not path:
        return None, []
    try:
        entries = json.loads(Path(path).read_bytes())['data']
        names = [str(entry['video_id']) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'--retrieval-list {path} is not in CAV-MAE\'s format, JSON of {{"data": [{{"video_id": …}}, '
                        f'…]}}: {type(error).__name__} {error}') from error

    # test clips by id, and by id and start
    by_name = {}
    for clip in clips:
        if clip.split == 'test':
            by_name.setdefault(clip.name, []).append(clip.path)
            by_name.setdefault((clip.name, clip.start), []).append(clip.path)
    found = []
    for name in names:
        paths = by_name.get(name, [])
        start = re.fullmatch(r'(.+)_([0-9]+(?:\.[0-9]+)?)', name)
        if not paths and start:                        # only then: an id may itself end with _ and digits
            paths = by_name.get((start[1], float(start[2])), [])
        found.append(paths)
    if not any(found):
        raise UserError(f'--retrieval-list {path}: none of its {len(names)} entries is a test clip of this data set')
    missing = found.count([])
    notes = [f'{missing} of {len(names)} entries of {path} are not test clips here'] if missing else []
    return {path for paths in found for path in paths}, notes
