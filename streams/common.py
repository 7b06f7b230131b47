"""What the streams have in common (§3.2, App. B): tasks of clips in an order, the clips as tensors, and their testing.

In:  lists of clips, as a data set's own file reads them.
Out: a Stream, whose items are the tensors of `data.read_clip`; what cannot be used is left out and named.
"""
import difflib
import hashlib
import itertools
import json
import os
import time
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from data import BadClip, check_clip, read_clip
from patches import Sizes, UserError, gathered, rank, world
from streams.workers import Loader, in_processes, say_once

SHUFFLED = (                                                # Table 7
    ('music', 'others_part1', 'home_nature', 'sports', 'others_part2', 'vehicle', 'animals', 'people'),
    ('nature', 'human', 'home', 'vehicle', 'music', 'animal', 'others'))
SAVE_EVERY = 60                                             # seconds, while clips are tested
FELLED = 'fells the process that tests it', False           # what is found of such a clip, and that it may not last


class Stream(NamedTuple):
    """What a model is trained and evaluated on (§3.2): tasks one after another, after an initial pre-training."""
    names: list         # of the tasks, in order
    pretrain: Dataset   # the initial pre-training set: training clips of the classes that no task has
    train: list         # a Dataset per task
    test: list          # a Dataset per task, not augmented: its retrieval clips
    bad: list           # 'name: reason' of each clip left out
    notes: list         # sentences to show to the user
    evaluate: list      # a Dataset per task, not augmented: the whole test split, for classification
    classes: list       # per task, the names of its classes


class Clip(NamedTuple):
    """A clip of files, as a list names it; times in seconds."""
    path: str
    labels: tuple       # names of its classes: one in VGGSound, several in AudioSet
    line: int           # of its list
    name: str = ''      # YouTube's id
    start: float = 0.0  # second of the YouTube video
    split: str = ''     # train or test
    seconds: float = 0  # length of its segment; 0: unknown
    there: bool = True  # whether its folder had it when that was listed

    @property
    def segment(self):
        """(start, seconds), or None where the length is unknown: which part of a whole video the clip is"""
        return (self.start, self.seconds) if self.seconds else None


# ----------------------------------------------------------------------------- clips as tensors

def first_readable(clips, index, read):
    """What read(clip) returns of clip number index → (index, that, '').

    Where it raises BadClip though the clip was tested (deleted since), the next one stands in → (its index, what was
    read of it, 'name: reason' of the one it replaces). For of several processes, each needs a full batch, or the others
    wait for it forever."""
    bad = []
    for step in range(len(clips)):
        delivered = (index + step) % len(clips)
        try:
            return delivered, read(clips[delivered]), '; '.join(bad)
        except BadClip as error:
            bad.append(f'{os.path.basename(clips[delivered].path)}: {error}')
    raise UserError(f'None of the {len(clips)} clips can be read any more:\n  ' + '\n  '.join(bad[:5]))


class VideoClips(Dataset):
    """Clips as tensors. An item's key is (index, seed): what is random about it follows from the seed alone, so
    neither the number of workers nor a restart in the middle of a run changes what the model sees."""

    def __init__(self, clips, sizes: Sizes, augment, max_roll=-1):
        self.clips, self.sizes, self.augment, self.max_roll = clips, sizes, augment, max_roll
        self.labels = [clip.labels for clip in clips]

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        """audio (t, f) float32, video (T, 3, S, S) uint8, clip (the index of the clip that this is, the one asked for
        unless that is bad) and bad: '' or 'name: reason'."""
        index, seed = key
        generator = lambda: torch.Generator().manual_seed(seed) if self.augment else None
        index, (audio, video), bad = first_readable(
            self.clips, index,
            lambda clip: read_clip(clip.path, self.sizes, generator(), self.max_roll, clip.segment))
        return dict(audio=audio, video=video, clip=index, bad=bad)


class Union(Dataset):
    """Several tasks' clips as one: those of Multitask, and those of a head that tells all tasks' classes apart."""

    def __init__(self, datasets):
        self.datasets = datasets
        self.starts = [0, *itertools.accumulate(map(len, datasets))]

    @property
    def labels(self):
        return [label for dataset in self.datasets for label in dataset.labels]

    def __len__(self):
        return self.starts[-1]

    def __getitem__(self, key):
        """As the data set's own item, but for clip, which counts over all of them."""
        which = bisect_right(self.starts, key[0]) - 1
        start = self.starts[which]
        item = self.datasets[which][key[0] - start, key[1]]
        return dict(item, clip=start + item['clip'])


def clips_in_order(dataset, batch_size, workers, bad, indices=None):
    """Batches {audio (B, t, f), video (B, T, 3, S, S), clip (B,), …}, on the CPU, of all clips or of those of the
    indices, each once and in order.

    A clip that could not be read after all is left out, for what stands in for it has its own turn; its 'name: reason'
    joins the list `bad`. So a batch may hold fewer than batch_size clips; one that would hold none is skipped.
    """
    indices = range(len(dataset)) if indices is None else indices
    for batch in Loader(dataset, _cut(indices, batch_size), workers):
        yield from _readable(batch, bad)


def tasks_in_order(datasets, batch_size, workers, bad):
    """All tasks' clips, one task after another → (task, a batch of it), as clips_in_order makes them. One loader
    serves all, so that its processes start but once; a batch holds clips of one task alone. Of several processes that
    ask, each gets its share of the batches."""
    union = Union(datasets)
    cut = [(task, batch) for task, start in enumerate(union.starts[:-1])
           for batch in _cut(range(start, union.starts[task + 1]), batch_size)][rank()::world()]
    for batch, (task, _) in zip(Loader(union, [batch for _, batch in cut], workers), cut):
        for readable in _readable(batch, bad):
            yield task, dict(readable, clip=readable['clip'] - union.starts[task])


def _cut(indices, batch_size):
    """Indices of clips that are not augmented → lists of their keys"""
    return [[(index, 0) for index in indices[i:i + batch_size]] for i in range(0, len(indices), batch_size)]


def _readable(batch, bad):
    """The part of a batch that is not in place of a bad clip, if there is any."""
    reasons = batch.pop('bad')
    bad += [reason for reason in reasons if reason]
    good = torch.tensor([not reason for reason in reasons])
    if good.any():
        yield {name: value[good] for name, value in batch.items() if torch.is_tensor(value)}


# ------------------------------------------------------------------------------- clips as tasks

def stream_of(folder, tasks, ours, listed, pretrain, sizes, bad, notes, max_roll=-1):
    """Clips of the tasks (each with labels of one task) and for the pre-training → Stream. A task without clips of some
    kind is left out, and a note says so. listed: paths of the clips to retrieve, or None for all of the test split;
    max_roll: of training clips (`data.augment_audio`)."""
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
        train.append(VideoClips(learned, sizes, augment=True, max_roll=max_roll))
        test.append(VideoClips(retrieved, sizes, augment=False))
        evaluate.append(VideoClips(held_out, sizes, augment=False))
    if not names:
        raise UserError(f'no task has both training and test clips in {folder}: ' + '; '.join(notes))
    pretrain = VideoClips(pretrain, sizes, augment=True, max_roll=max_roll)
    return Stream(names, pretrain, train, test, bad, notes, evaluate, classes)


def reordered(stream, order):
    """The same tasks in another order (Table 7).

    order  '': as they are. 'shuffled': as in Table 7 where the tasks are the paper's; others, every second one first,
           the rest after them. Else the names of all tasks, separated by commas."""
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


def near(name, known):
    """'; did you mean …?' where there is a name like it, else '.'"""
    alike = ' or '.join(map(repr, difflib.get_close_matches(name, known, 3)))
    return f'; did you mean {alike}?' if alike else '.'


def counts(clips, tasks, pretrain):
    """What `check_batches` asks of clips that are to be tested. tasks: class → task; pretrain: further clips of the
    initial pre-training"""
    learned = [tasks.get(clip.labels[0]) for clip in clips if clip.split == 'train']
    found = Counter(learned)
    return {task: found[task] for task in dict.fromkeys(tasks.values()) if found[task]}, found[None] + len(pretrain)


def check_nothing(clips, pretrain):
    """Instead of `check_batches`, for who takes no steps."""


def check_batches(cfg, clips, pretrain):
    """How many clips there are against how many a step takes, before any of them is drawn or decoded: what is odd is
    said. Raises UserError where the processes cannot share them.

    clips     {task: how many training clips it has, or will have at most}
    pretrain  how many the initial pre-training has
    """
    if cfg.method == 'multitask':
        clips = {'all tasks': sum(clips.values())}
    initial = {'initial pre-training': pretrain} if pretrain and cfg.pretrain_steps != 0 else {}
    for name, size, parts in (('--batch-size', cfg.batch_size, clips),
                              ('--pretrain-batch-size', cfg.pretrain_batch_size, initial)):
        few = [f'{part} has {number}' for part, number in parts.items() if number < size]
        for part, number in parts.items():
            if number < world():
                raise UserError(f'{part} has {number} training clips, too few for {world()} processes')
        if few and rank() == 0:
            more = f' (and {len(few) - 1} more of {len(parts)})' if few[1:] else ''
            say_once(f'{name} {size} is more than there is: {few[0]} training clips{more}, so its batches have as many')


# ---------------------------------------------------------------------------- testing the clips

def usable(folder, clips, workers=0, max_bad=0.1, cache=None):
    """Tests the clips of a folder → those that can be used, 'name: reason' of each other one, notes for the user.

    workers    processes that test the clips; 0: this one
    max_bad    share of clips that may be unusable: some always are, but many point to a mistake
    cache      file that remembers which clips were tested
    """
    stamps = {clip.path: _stamp(clip.path) for clip in clips}
    compare(folder, clips, stamps)
    reasons, notes = _scan(clips, stamps, workers, cache)
    bad = [f'{os.path.basename(path)}: {reason}' for path, reason in reasons.items() if reason]
    if len(bad) > max_bad * len(reasons):
        raise UserError(f'{len(bad)} of {len(reasons)} clips ({len(bad) / len(reasons):.0%}) in {folder} cannot be '
                        f'used, more than {max_bad:.0%}. The first of them:\n  ' + '\n  '.join(bad[:5]) +
                        '\nRaise --max-bad to train without them.')
    return [clip for clip in clips if not reasons[clip.path]], bad, notes


def compare(folder, clips, stamps):
    """Refuses processes that see different clips: they may be of several machines, each with a folder of its own, of
    which one has not been copied whole. stamps: path → `_stamp`. Raises UserError."""
    facts = [f'{os.path.basename(clip.path)} {"|".join(stamps[clip.path].split("|")[-2:-1]) or "missing"} {clip.labels}'
             for clip in clips]
    marks = gathered(hashlib.sha256('\n'.join(facts).encode()).digest())
    if len(set(marks)) > 1:
        first, *others = gathered(facts)
        other = next(other for other in others if other != first)
        pairs = itertools.zip_longest(first, other, fillvalue='nothing')
        here, there = next((one, two) for one, two in pairs if one != two)
        raise UserError(f'the processes see different clips in {folder}: name, bytes and labels are "{here}" for the '
                        f'first, and "{there}" for another. Each must find the same lists and files there')


def _scan(clips, stamps, workers, cache):
    """check_clip on each clip → dict path → reason or None, and notes for the user. Of several processes each tests its
    share, and all have what all found."""
    try:
        known = dict(json.loads(Path(cache).read_text()))
    except (TypeError, OSError, ValueError):    # no cache wanted, none there yet, or one that was damaged
        known = {}
    segments = {clip.path: clip.segment for clip in clips}
    keys = {path: f'{stamp}|{segments[path]}' for path, stamp in stamps.items()}
    # Caches of before the segment mattered have the stamp alone.
    reasons = {path: known.get(keys[path], known.get(stamp)) for path, stamp in stamps.items()}
    todo = [(path, segment) for path, segment in segments.items() if not {keys[path], stamps[path]} & known.keys()]
    todo = list(dict.fromkeys(job for jobs in gathered(todo) for job in jobs if job[0] in segments))[rank()::world()]
    lost, saved = '', time.monotonic()
    results = in_processes(_check, todo, workers, FELLED) if workers and todo else map(_check, todo)
    try:
        with tqdm(total=len(todo), desc='testing clips', unit='clip', leave=False, disable=None) as bar:
            for (path, _), (reason, lasting) in zip(todo, results):
                reasons[path] = reason
                if stamps[path] and (not reason or lasting and _stamp(path) == stamps[path]):     # else bad luck
                    known[keys[path]] = reason
                bar.update()
                if time.monotonic() - saved > SAVE_EVERY and cache is not None:
                    lost, saved = _remember(known, cache), time.monotonic()
    finally:   # also when interrupted: what was tested stays tested
        if cache is not None and todo and world() == 1:
            lost = _remember(known, cache)
    if world() > 1:
        for found, theirs in gathered(({path: reasons[path] for path, _ in todo}, known)):
            reasons |= {path: reason for path, reason in found.items() if path in reasons}
            known |= theirs
        lost = _remember(known, cache) if cache is not None and rank() == 0 else ''
    return reasons, [lost] if lost else []


def _check(job):
    return check_clip(*job)


def _remember(known, cache):
    """Writes what was found of the clips so far, whole or not at all → '', or a note that it cannot be written."""
    try:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f'{cache}.{os.getpid()}.tmp')
        temporary.write_text(json.dumps(known, separators=(',\n', ': ')))
        os.replace(temporary, cache)
    except OSError as error:
        return f'{cache} cannot be written ({error.strerror}): the clips are tested again next time'
    return ''


def _stamp(path):
    """Says which file was tested, and when it was written; '' without a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ''
    return f'{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}'
