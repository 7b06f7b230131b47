"""Your own videos: a folder per class → a stream of tasks (ours).

In:  DIR/train/CLASS/* and DIR/test/CLASS/*; or DIR/CLASS/*, of which a fifth of each class is for testing.
Out: a Clip for each video; a Stream. A class is a task, or a file class,task groups classes.
"""
import hashlib
import os
import unicodedata
from pathlib import Path

from config import UserError
from streams.common import Clip, make_stream
from streams.tables import SUFFIXES, read_retrieval_list, read_tasks

VIDEOS = (*SUFFIXES, '.mov', '.m4v')           # phones write these two
FOLDERS_LAYOUT = """\
Videos lie in a folder per class:
  {folder}/train/CLASS/*.mp4 and {folder}/test/CLASS/*.mp4
or {folder}/CLASS/*.mp4, of which one in five is for testing. Formats: """ + ' '.join(VIDEOS)


def read_folders(folder):
    """The videos below a folder → list of Clip, sorted by class and file name. Raises UserError."""
    folder, clips = Path(folder), []
    if not folder.is_dir():
        raise UserError(f'--data {folder}: no such folder. ' + FOLDERS_LAYOUT.format(folder='DIR'))
    if all((folder / split).is_dir() for split in ('train', 'test')):
        for split in ('train', 'test'):
            for label, files in videos_by_class(folder / split).items():
                clips += [Clip(str(file), (label,), file.stem, split=split) for file in files]
    else:
        for label, files in videos_by_class(folder).items():
            for_test = choose_test(files)
            clips += [Clip(str(file), (label,), file.stem, split='test' if file in for_test else 'train')
                      for file in files]
    if not clips:
        raise UserError(f'{folder}: no videos in class folders. ' + FOLDERS_LAYOUT.format(folder=folder))
    return clips


def videos_by_class(folder):
    """{name of a subfolder: its videos}, both sorted. Hidden files are ignored."""
    classes = sorted(path for path in folder.glob('*') if path.is_dir() and not path.name.startswith('.'))
    return {path.name: sorted(file for file in path.iterdir()
                              if file.suffix.lower() in VIDEOS and not file.name.startswith('.'))
            for path in classes}


def choose_test(files):
    """A fifth of a class's files, and at least one: those whose names have the lowest hashes, on every machine the
    same."""
    def name_hash(file):
        name = unicodedata.normalize('NFC', file.name)         # macOS stores accents as characters of their own
        return hashlib.sha256(os.fsencode(name)).digest()      # a name may not be UTF-8
    by_hash = sorted(files, key=name_hash)
    return set(by_hash[:max(1, len(files) // 5)])


def folders(cfg, workers):
    """Folders of videos as a Stream. Without --tasks each class is a task; with it, other classes are the initial
    pre-training set."""
    clips = read_folders(cfg.data)
    classes = list(dict.fromkeys(clip.labels[0] for clip in clips))
    tasks = read_tasks(cfg.tasks, set(classes)) if cfg.tasks else {name: name for name in sorted(classes)}
    retrieval_paths, notes = read_retrieval_list(cfg.retrieval_list, clips)
    used = [clip for clip in clips if clip.labels[0] in tasks or clip.split == 'train']
    return make_stream(cfg, workers, used, tasks, retrieval_paths=retrieval_paths, notes=notes)
