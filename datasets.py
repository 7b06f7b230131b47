"""Many clips (App. B, E): VGGSound and AudioSet -> a stream of tasks; AVE -> clips with a label a second.

In:  the folder of a data set, laid out as it is distributed (`lists.py` reads its lists).
Out: a Stream, whose items are the tensors of `data.read_clip`; for AVE, data sets of those of `data.read_windows`.
"""
import json
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import AVE_SECONDS, BadClip, check_clip, read_clip, read_windows
from lists import near, read_audioset, read_ave, read_mids, read_retrieval_list, read_tasks, read_vggsound, train_tables
from model import Sizes, UserError

TASKS = Path(__file__).parent / 'tasks'                     # the paper's: vggsound.csv, audioset.csv
SHUFFLED = (                                                # Table 7
    ('music', 'others_part1', 'home_nature', 'sports', 'others_part2', 'vehicle', 'animals', 'people'),
    ('nature', 'human', 'home', 'vehicle', 'music', 'animal', 'others'))


class Stream(NamedTuple):
    """What a model is trained and evaluated on (§3.2): tasks one after another, after an initial pre-training."""
    names: list      # of the tasks, in order
    pretrain: torch.utils.data.Dataset   # the initial pre-training set: training clips of the classes that no task has
    train: list      # a Dataset per task
    test: list       # a Dataset per task, not augmented: its retrieval clips
    bad: list        # 'name: reason' of each clip left out
    notes: list      # sentences to show to the user
    evaluate: list   # a Dataset per task, not augmented: the whole test split, for classification
    classes: list    # per task, the names of its classes


def open_stream(cfg, sizes, workers):
    """The data that a run's options name -> Stream. Raises UserError."""
    if cfg.dataset == 'shapes':
        import shapes   # which imports this module for its Stream
        stream = shapes.stream(sizes, cfg.seed, cfg.clips_per_task, cfg.test_clips, max_silent=cfg.max_silent)
    else:
        scan = dict(workers=workers, max_bad=cfg.max_bad, cache=Path(cfg.cache) / 'checked-clips.json')
        lists = dict(tasks_csv=cfg.tasks or None, retrieval_list=cfg.retrieval_list, pretrain_data=cfg.pretrain_data)
        if cfg.dataset == 'audioset':
            stream = audioset(cfg.data, sizes, **lists, **scan)
        else:
            stream = vggsound(cfg.data, sizes, clips_per_class=cfg.clips_per_class, **lists, **scan)
    return reordered(stream, cfg.order)


def count_workers(dataset, wanted):
    """How many processes load clips: as many as wanted; for -1, one a core, shared with the other processes of torchrun, and none
    for shapes, which are made faster than they are sent."""
    if wanted >= 0:
        return wanted
    return 0 if dataset == 'shapes' else (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))


# ---------------------------------------------------------------- datasets

def _first_readable(clips, index, read):
    """What read(path) returns of clip number index -> (index, that, ''). Where it raises BadClip though the clip was tested
    (deleted since), the next one stands in -> (its index, what was read of it, 'name: reason' of the one it replaces). For
    of several processes, each needs a full batch, or the others wait for it forever."""
    bad = []
    for step in range(len(clips)):
        delivered = (index + step) % len(clips)
        path = clips[delivered].path
        try:
            return delivered, read(path), '; '.join(bad)
        except BadClip as error:
            bad.append(f'{os.path.basename(path)}: {error}')
    raise UserError(f'None of the {len(clips)} clips can be read any more:\n  ' + '\n  '.join(bad[:5]))


class VideoClips(torch.utils.data.Dataset):
    """Clips as tensors. An item's key is (index, seed): what is random about it follows from the seed alone, so
    neither the number of workers nor a restart in the middle of a run changes what the model sees."""

    def __init__(self, clips, sizes: Sizes, augment):
        self.clips, self.sizes, self.augment = clips, sizes, augment
        self.labels = [clip.labels for clip in clips]

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        """audio (t, f) float32, video (T, 3, S, S) uint8, clip (the index of the clip that this is, the one asked for
        unless that is bad) and bad: '' or 'name: reason'."""
        index, seed = key
        generator = lambda: torch.Generator().manual_seed(seed) if self.augment else None
        index, (audio, video), bad = _first_readable(
            self.clips, index, lambda path: read_clip(path, self.sizes, generator()))
        return dict(audio=audio, video=video, clip=index, bad=bad)


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
        """audio (W, t, f) float32, video (W, T, 3, S, S) uint8, audio_start (W,) float32 seconds: `data.read_windows`;
        target (10,) int64, the label of each second; clip and bad as in VideoClips."""
        index, seed = key
        generator = lambda: torch.Generator().manual_seed(seed) if self.augment else None
        index, (audio, video, audio_start), bad = _first_readable(
            self.events, index, lambda path: read_windows(path, self.sizes, generator()))
        event = self.events[index]
        second = torch.arange(AVE_SECONDS)
        happening = (event.start <= second) & (second < event.end)
        target = happening * (1 + self.classes.index(event.label))
        return dict(audio=audio, video=video, audio_start=audio_start, target=target, clip=index, bad=bad)


# ---------------------------------------------------------------- streams

def vggsound(folder, sizes: Sizes, tasks_csv=None, clips_per_class=400, retrieval_list='', pretrain_data='', **scan):
    """VGGSound as a Stream (App. B): eight tasks of up to 20 classes, the other classes for the pre-training.

    tasks_csv       class -> task, in the order of the tasks; None: the paper's
    retrieval_list  JSON file of the clips to retrieve, in CAV-MAE's format; '': the whole test split
    pretrain_data   folder of AudioSet, whose balanced clips (AudioSet-20k) join the pre-training; '': none
    scan            how clips are tested: see `usable`
    """
    clips = read_vggsound(folder)
    paper = TASKS / 'vggsound.csv'
    tasks = read_tasks(tasks_csv or paper, {clip.labels[0] for clip in clips} | set(read_tasks(paper, None)))
    listed, notes = read_retrieval_list(retrieval_list, clips)

    used, per_class, present = [], Counter(), set(os.listdir(Path(folder) / 'video'))
    for clip in clips:
        per_class[clip.labels, clip.split] += os.path.basename(clip.path) in present   # YouTube's losses do not count
        if clip.split == 'test':
            wanted = clip.labels[0] in tasks
        else:
            wanted = clip.labels[0] not in tasks or per_class[clip.labels, 'train'] <= clips_per_class
        if wanted:
            used.append(clip)
    used, bad, more_notes = usable(folder, used, **scan)
    ours = [clip for clip in used if clip.labels[0] in tasks]
    pretrain = [clip for clip in used if clip.labels[0] not in tasks]
    notes += more_notes
    if pretrain_data:
        more, more_bad, more_notes = usable(pretrain_data, _audioset_20k(pretrain_data, tasks, clips), **scan)
        pretrain, bad, notes = pretrain + more, bad + more_bad, notes + more_notes
    return _stream(folder, tasks, ours, listed, pretrain, sizes, bad, notes)


def _audioset_20k(folder, tasks, clips):
    """AudioSet's balanced clips without the tasks' classes and without the test clips.

    The paper kept the tasks' classes out of the initial pre-training, but does not say how among AudioSet's. Here those
    clips go that have a label of the same name (Helicopter, helicopter). Names that differ (Bark, dog barking) cannot be
    matched, so the set still holds such sounds. Both data sets are of YouTube: no test clip may come in by the other."""
    names, tested = {name.casefold() for name in tasks}, {clip.name for clip in clips if clip.split == 'test'}
    return [clip for clip in read_audioset(folder, ['balanced_train_segments.csv'])
            if clip.name not in tested and not names & {label.casefold() for label in clip.labels}]


def audioset(folder, sizes: Sizes, tasks_csv=None, retrieval_list='', pretrain_data='', **scan):
    """AudioSet as a Stream (App. B): seven tasks. Clips with labels of two tasks are left out; of the labels of the others,
    those of their task are kept. Arguments as for vggsound, but pretrain_data is a folder of VGGSound, all of whose
    training clips are the initial pre-training set; without it there is none."""
    clips = read_audioset(folder, [*train_tables(folder), 'eval_segments.csv'])
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
    ours, bad, more_notes = usable(folder, ours, **scan)
    pretrain, notes = [], notes + more_notes
    if pretrain_data:   # no test clip may come in by the other data set: both are of YouTube
        tested = {clip.name for clip in clips if clip.split == 'test'}
        pretrain, more_bad, more_notes = usable(pretrain_data, [
            clip for clip in read_vggsound(pretrain_data) if clip.split == 'train' and clip.name not in tested], **scan)
        bad, notes = bad + more_bad, notes + more_notes
    return _stream(folder, tasks, ours, listed, pretrain, sizes, bad, notes)


def _stream(folder, tasks, ours, listed, pretrain, sizes, bad, notes):
    """Clips of the tasks (each with labels of one task) and for the pre-training -> Stream. listed: paths of the clips to
    retrieve, or None for all of the test split. A task without clips of some kind is left out, and a note says so."""
    names, classes, train, test, evaluate = [], [], [], [], []
    for name in dict.fromkeys(tasks.values()):
        clips = [clip for clip in ours if tasks[clip.labels[0]] == name]
        learned = [clip for clip in clips if clip.split == 'train']
        held_out = [clip for clip in clips if clip.split == 'test']
        retrieved = [clip for clip in held_out if listed is None or clip.path in listed]
        kinds = (('training clips', learned), ('test clips', held_out), ('retrieval clips', retrieved or not held_out))
        lacks = ' and no '.join(kind for kind, some in kinds if not some)
        if lacks:
            notes.append(f'task {name} has no {lacks} and is left out')
            continue
        names.append(name)
        classes.append([label for label, task in tasks.items() if task == name])
        train.append(VideoClips(learned, sizes, augment=True))
        test.append(VideoClips(retrieved, sizes, augment=False))
        evaluate.append(VideoClips(held_out, sizes, augment=False))
    if not names:
        raise UserError(f'no task has both training and test clips in {folder}: ' + '; '.join(notes))
    return Stream(names, VideoClips(pretrain, sizes, augment=True), train, test, bad, notes, evaluate, classes)


def reordered(stream, order):
    """The same tasks in another order (Table 7).

    order  '': as they are. 'shuffled': as in Table 7 where the tasks are the paper's; others, every second one first, the
           rest after them. Else the names of all tasks, separated by commas."""
    names = stream.names
    if not order:
        return stream
    if order == 'shuffled':
        wanted = next(([n for n in table if n in names] for table in SHUFFLED if set(names) <= set(table)),
                      names[1::2] + names[::2])
    else:
        wanted = [name.strip() for name in order.split(',')]
    for name in wanted:
        if name not in names:
            raise UserError(f'--order: there is no task {name!r}{near(name, names)} The tasks are: {", ".join(names)}')
    wrong = [f'{name} is there twice' for name in names if wanted.count(name) > 1]
    wrong += [f'{name} is missing' for name in names if name not in wanted]
    if wrong:
        raise UserError(f'--order {order}: {", ".join(wrong)}; name each task once: {",".join(names)}')
    moved = {part: [getattr(stream, part)[names.index(name)] for name in wanted]
             for part in ('names', 'train', 'test', 'evaluate', 'classes')}
    return stream._replace(**moved)


def ave(folder, sizes: Sizes, **scan):
    """AVE (Tian et al. 2018; App. E) -> ({'train', 'val', 'test': AVE}, of which those are there whose list is; the names
    of the events). What cannot be used is left out and named in each one's `bad`. scan: see `usable`."""
    lists, classes = read_ave(folder)
    sets = {}
    for split, events in lists.items():
        events, bad, notes = usable(folder, events, **scan)
        sets[split] = AVE(events, classes, sizes, split == 'train', bad + notes)
    return sets, classes


# ---------------------------------------------------------------- testing the clips

def usable(folder, clips, workers=0, max_bad=0.1, cache=None):
    """Tests the clips of a folder -> those that can be used, 'name: reason' of each other one, notes for the user.

    workers    processes that test the clips; 0: this one
    max_bad    share of clips that may be unusable: some always are, but many point to a mistake
    cache      file that remembers which clips were tested
    """
    reasons, notes = _scan(list(dict.fromkeys(clip.path for clip in clips)), workers, cache)
    bad = [f'{os.path.basename(path)}: {reason}' for path, reason in reasons.items() if reason]
    if len(bad) > max_bad * len(reasons):
        raise UserError(f'{len(bad)} of {len(reasons)} clips ({len(bad) / len(reasons):.0%}) in {folder} cannot be used, more '
                        f'than {max_bad:.0%}. The first of them:\n  ' + '\n  '.join(bad[:5]) +
                        '\nRaise --max-bad to train without them.')
    return [clip for clip in clips if not reasons[clip.path]], bad, notes


def _scan(paths, workers, cache):
    """check_clip on each path -> dict path -> reason or None, and notes for the user."""
    try:
        known = dict(json.loads(Path(cache).read_text()))
    except (TypeError, OSError, ValueError):    # no cache wanted, none there yet, or one that was damaged
        known = {}
    stamps = {path: _stamp(path) for path in paths}
    reasons = {path: known.get(stamp) for path, stamp in stamps.items()}
    todo, notes = [path for path in paths if stamps[path] not in known], []
    # Spawned processes, for a forked copy of a process that has threads or a GPU may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn')) if workers and todo else nullcontext()
    try:
        with pool as processes, tqdm(
                total=len(todo), desc='testing clips', unit='clip', leave=False, disable=None) as bar:
            results = processes.map(check_clip, todo, chunksize=8) if processes else map(check_clip, todo)
            for path, reason in zip(todo, results):
                reasons[path] = reason
                if stamps[path]:
                    known[stamps[path]] = reason
                bar.update()
    finally:   # also when interrupted: what was tested stays tested
        if cache is not None and todo:
            try:
                Path(cache).parent.mkdir(parents=True, exist_ok=True)
                temporary = Path(f'{cache}.{os.getpid()}.tmp')
                temporary.write_text(json.dumps(known, indent=0))
                os.replace(temporary, cache)   # whole or not at all
            except OSError as error:
                notes.append(f'{cache} cannot be written ({error.strerror}): the clips are tested again next time')
    return reasons, notes


def _stamp(path):
    """Says which file was tested, and when it was written; '' without a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ''
    return f'{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}'
