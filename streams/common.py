"""What the streams have in common (§3.2, App. B): tasks of clips, clips as tensors, and the test that finds bad clips.

In:  lists of clips, as each data set's own file reads them.
Out: a Stream, whose items are the tensors of `data.read_clip`. Unusable clips are left out and named.
"""
import hashlib
import json
import os
import sys
import time
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from config import Sizes, UserError
from data import BadClip, check_clip, read_clip
from streams.loading import Loader, run_jobs
from utils.checkpoint import write_text
from utils.distributed import all_gather_object, broadcast_object, get_rank, get_world_size, print_once

SHUFFLED = (                                                # Table 7
    ('music', 'others_part1', 'home_nature', 'sports', 'others_part2', 'vehicle', 'animals', 'people'),
    ('nature', 'human', 'home', 'vehicle', 'music', 'animal', 'others'))
SAVE_EVERY = 60                                             # seconds between two writes of the scan's cache
DECODER_CRASH = 'crashes the decoder, or takes too long'


class Stream(NamedTuple):
    """What a model is trained and evaluated on (§3.2): an initial pre-training set, then tasks in an order."""
    names: list         # of the tasks, in order
    pretrain: Dataset   # initial pre-training set: training clips of the classes that are in no task
    train: list         # a Dataset per task
    retrieval: list     # a Dataset per task, not augmented: its retrieval clips
    bad: list           # 'name: reason' of each clip left out
    notes: list         # sentences to print for the user
    test: list          # a Dataset per task, not augmented: the whole test split, for classification
    classes: list       # per task, the names of its classes
    pretrain_digest: str = ''    # of the clips that are listed for the initial pre-training


class Clip(NamedTuple):
    """One line of a list of clips; times in seconds."""
    path: str
    labels: tuple       # names of its classes: one in VGGSound, several in AudioSet
    name: str = ''      # YouTube's id
    start: float = 0.0  # second of the YouTube video
    split: str = ''     # train or test
    seconds: float = 0  # length of its segment; 0: unknown
    size: int = 0       # bytes, of a clip that was checked
    event: tuple = ()   # AVE: (first second, end) of its event

    @property
    def segment(self):
        """(start, seconds) of the clip in its video; None if the length is unknown"""
        return (self.start, self.seconds) if self.seconds else None


# ----------------------------------------------------------------------------- clips as tensors

class VideoClips(Dataset):
    """Clips as tensors. The key of an item is (index, seed): all that is random about it follows from the seed, so
    neither the number of workers nor resuming a run changes what the model sees."""

    def __init__(self, clips, sizes: Sizes, augment, max_roll=-1):
        self.clips, self.sizes, self.augment, self.max_roll = clips, sizes, augment, max_roll
        self.labels = [clip.labels for clip in clips]

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        """What `read` returns, with clip: its index, and bad: ''.

        If the clip has become unreadable since it was checked, the next one replaces it: every rank must get a full
        batch, or DDP hangs. Then clip is the index of the replacement, and bad is 'name: reason' of the clip at `index`.
        Raises UserError."""
        index, seed = key
        skipped = []
        for step in range(len(self)):
            used = (index + step) % len(self)
            clip = self.clips[used]
            generator = torch.Generator().manual_seed(seed) if self.augment else None
            try:
                return dict(self.read(clip, generator), clip=used, bad=skipped[0] if skipped else '')
            except BadClip as error:
                skipped.append(f'{short_name(clip.path)}: {error}')
        raise UserError(f'None of the {len(self)} clips can be read any more:\n  ' + '\n  '.join(skipped[:5]))

    def read(self, clip, generator):
        """audio (t, f) float32, video (T, 3, S, S) uint8. Raises BadClip."""
        audio, video = read_clip(clip.path, self.sizes, generator, self.max_roll, clip.segment)
        return dict(audio=audio, video=video)


class ConcatClips(torch.utils.data.ConcatDataset):
    """The clips of several tasks as one data set, with keys (index, seed). In its items, `clip` counts over all."""

    @property
    def labels(self):
        return [label for dataset in self.datasets for label in dataset.labels]

    def __getitem__(self, key):
        index, seed = key
        task = bisect_right(self.cumulative_sizes, index)
        start = self.cumulative_sizes[task] - len(self.datasets[task])
        item = self.datasets[task][index - start, seed]
        return dict(item, clip=start + item['clip'])


def batches_by_task(datasets, batch_size, workers, bad):
    """Iterate over the clips of all tasks, each once and in order: pairs of a task's number and a batch {audio
    (B, t, f), video (B, T, 3, S, S), clip (B,), …} on the CPU. Under torchrun, each rank gets its share of the batches.

    A batch holds clips of one task. A clip that cannot be read is left out, and its 'name: reason' is appended to the
    list `bad`. So a batch may hold fewer than batch_size clips; an empty one is skipped.
    """
    # one loader for all tasks, so that its workers start only once
    clips, batches = ConcatClips(datasets), []
    starts = [0, *clips.cumulative_sizes]
    for task in range(len(datasets)):
        keys = [(index, 0) for index in range(starts[task], starts[task + 1])]               # seed 0: not used
        batches += [(task, keys[i:i + batch_size]) for i in range(0, len(keys), batch_size)]
    batches = batches[get_rank()::get_world_size()]
    loader = Loader(clips, [keys for _, keys in batches], workers)
    for batch, (task, _) in zip(loader, batches):
        # leave out the replacements of bad clips
        reasons = batch.pop('bad')
        bad += [reason for reason in reasons if reason]
        good = torch.tensor([not reason for reason in reasons])
        if good.any():
            batch = {name: value[good] for name, value in batch.items() if torch.is_tensor(value)}
            yield task, dict(batch, clip=batch['clip'] - starts[task])


# ------------------------------------------------------------------------------- clips as tasks

def make_stream(cfg, workers, clips, tasks, pretrain=(), retrieval_paths=None, notes=()):
    """Check the clips and divide them into tasks → Stream. A task without training or test clips is left out, with a
    note. Raises UserError.

    clips     of the folder cfg.data; those whose first label is in no task are the initial pre-training set
    tasks     {class: task}, in the order of the tasks
    pretrain  clips of the folder cfg.pretrain_data, which join the initial pre-training set
    retrieval_paths  of the retrieval clips; None: the whole test split
    """
    if cfg.pretrain_steps == 0:                                # no initial pre-training: its clips are not checked
        clips, pretrain = [clip for clip in clips if clip.labels[0] in tasks], ()
    # digest the clips before the check: a transient read error must not change the name of the cached pre-training
    of_pretraining = [clip for clip in clips if clip.labels[0] not in tasks] + list(pretrain)
    digest = clips_digest(clip._replace(size=file_size(clip.path)) for clip in of_pretraining)
    clips, bad = filter_clips(cfg.data, clips, cfg, workers)
    initial = [clip for clip in clips if clip.labels[0] not in tasks]
    if pretrain:                                               # --max-bad counts for each folder
        more, more_bad = filter_clips(cfg.pretrain_data, pretrain, cfg, workers)
        initial, bad = initial + more, bad + more_bad
    stream = Stream([], VideoClips(initial, cfg, True, cfg.max_roll), [], [], bad, list(notes), [], [], digest)

    for name in dict.fromkeys(tasks.values()):
        of_task = [clip for clip in clips if tasks.get(clip.labels[0]) == name]
        train = [clip for clip in of_task if clip.split == 'train']
        test = [clip for clip in of_task if clip.split == 'test']
        retrieval = [clip for clip in test if retrieval_paths is None or clip.path in retrieval_paths]
        missing = [kind for kind, found in (('training', train), ('test', test), ('retrieval', retrieval)) if not found]
        if missing:
            stream.notes.append(f'task {name} is left out: it has no {missing[0]} clips')
            continue
        stream.names.append(name)
        stream.classes.append([label for label, task in tasks.items() if task == name])
        stream.train.append(VideoClips(train, cfg, True, cfg.max_roll))
        stream.retrieval.append(VideoClips(retrieval, cfg, False))
        stream.test.append(VideoClips(test, cfg, False))
    if not stream.names:
        raise UserError(f'no task has both training and test clips in {cfg.data}: ' + '; '.join(stream.notes))
    return stream


def clips_digest(clips):
    """A digest of the names, sizes and labels of clips: the same wherever their folder lies. '' without clips"""
    facts = [(os.path.basename(clip.path), clip.size, clip.labels, clip.split) for clip in clips]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16] if facts else ''


def describe(stream):
    """What a run is trained and evaluated on → {name of a task: digest of its clips}, in order. Built-in clips follow
    from the options, so their digest is ''."""
    described = {}
    for name, *datasets in zip(stream.names, stream.train, stream.retrieval, stream.test):
        described[name] = clips_digest(clip for dataset in datasets for clip in getattr(dataset, 'clips', ()))
    return described


def data_changes(was, now):
    """Two results of `describe` → '', or how they differ. {}: not known"""
    if not was or not now or list(was.items()) == list(now.items()):
        return ''
    if list(was) != list(now):
        return f'the tasks were {", ".join(was)}, now {", ".join(now)}'
    names = ', '.join(name for name in was if was[name] != now[name])
    return (f'there are other clips in {names}. Prepared clips and their originals count as different. If nothing has '
            'changed, compare skipped.txt: a failing disk can hide a clip for a moment')


def reordered(stream, order):
    """The same tasks in another order (Table 7). Raises UserError.

    order  '': unchanged. 'shuffled': the order of Table 7; of other tasks than the paper's, every second one first.
           Otherwise the names of all tasks, separated by commas."""
    names = stream.names
    if not order:
        return stream
    if order == 'shuffled':
        new_order = names[1::2] + names[::2]
        for table in SHUFFLED:
            if set(names) <= set(table):
                new_order = [name for name in table if name in names]
    else:
        new_order = [name.strip() for name in order.split(',')]
    if sorted(new_order) != sorted(names):
        raise UserError(f'--order {order}: name each task once: {",".join(names)}')
    moved = {part: [getattr(stream, part)[names.index(name)] for name in new_order]
             for part in ('names', 'train', 'retrieval', 'test', 'classes')}
    return stream._replace(**moved)


def check_batches(cfg, stream):
    """Compare numbers of training clips with batch sizes. Prints where batches are smaller than the option. Raises
    UserError where a rank would get no clip."""
    tasks = dict(zip(stream.names, map(len, stream.train)))
    if cfg.method == 'multitask':
        tasks = {'all tasks': sum(tasks.values())}
    used = len(stream.pretrain) and cfg.pretrain_steps != 0
    initial = {'initial pre-training': len(stream.pretrain)} if used else {}
    for option, size, clips in (('--batch-size', cfg.batch_size, tasks),
                                ('--pretrain-batch-size', cfg.pretrain_batch_size, initial)):
        for name, number in clips.items():
            if number < get_world_size():
                raise UserError(f'{name} has {number} training clips, fewer than the {get_world_size()} processes')
            if number < size and get_rank() == 0:
                print_once(f'{option} {size}: {name} has only {number} training clips, so its batches are smaller')


# --------------------------------------------------------------------------- checking the clips

def filter_clips(folder, clips, cfg, workers):
    """Check the clips of a folder → the usable ones; 'name: reason' of each other one. Raises UserError.

    cfg      its `max_bad` is the share of clips that may be unusable; results are stored in its folder `cache`
    workers  processes that check the clips; 0: this one
    """
    # missing files are known before any worker starts
    stats = {clip.path: file_stat(clip.path) for clip in clips}
    reasons = {path: None if stat else 'file missing' for path, stat in stats.items()}
    check_share(reasons, cfg.max_bad, f'are missing in {folder}')

    # the key of a result changes with the file or its segment
    clips = [clip._replace(size=stats[clip.path].st_size) for clip in clips if stats[clip.path]]
    check_same_on_all_ranks(folder, clips)
    jobs = {}
    for clip in clips:
        modified = stats[clip.path].st_mtime_ns
        jobs[clip.path, clip.segment] = f'{os.path.abspath(clip.path)}|{clip.size}|{modified}|{clip.segment}'
    reasons |= _scan(jobs, workers, Path(cfg.cache) / 'checked-clips.json')
    bad = check_share(reasons, cfg.max_bad, f'in {folder} cannot be used')
    return [clip for clip in clips if not reasons[clip.path]], bad


def check_share(reasons, max_bad, what):
    """{path of a clip: why it is bad, or None} → 'name: reason' of each bad one. Raises UserError if their share is
    above max_bad: some clips are always bad, but many point to a mistake."""
    bad = [f'{short_name(path)}: {reason}' for path, reason in reasons.items() if reason]
    if len(bad) > max_bad * len(reasons):
        raise UserError(f'{len(bad)} of {len(reasons)} clips ({len(bad) / len(reasons):.0%}) {what}, more than '
                        f'--max-bad {max_bad:g} allows. The first of them:\n  ' + '\n  '.join(bad[:5]))
    return bad


def short_name(path):
    """A clip's name in messages, with its folders: CLASS/FILE, train/CLASS/FILE or video/FILE"""
    parts = Path(path).parts
    return '/'.join(parts[-3:] if parts[-3:][0] in ('train', 'test') else parts[-2:])


def file_stat(path):
    """os.stat of a file; None if it is missing"""
    try:
        return os.stat(path)
    except OSError:
        return None


def file_size(path):
    """Bytes of a file; 0 if it is missing"""
    stat = file_stat(path)
    return stat.st_size if stat else 0


def check_same_on_all_ranks(folder, clips):
    """Raises UserError if the ranks see different clips: they may run on machines with a copy of the folder each, of
    which one is incomplete."""
    if len(set(all_gather_object(clips_digest(clips)))) > 1:
        raise UserError(f'the ranks see different clips in {folder}: compare the names and sizes of its files')


def _scan(jobs, workers, cache):
    """check_clip on {(path, segment): key of its result} → {path: why it is bad, or None}. Each rank checks its share.
    cache: JSON file of the permanent results, {key: reason}"""
    known = _read_cache(cache)

    # rank 0's cache decides for all ranks what is left to check
    jobs, keys = list(jobs), list(jobs.values())
    reasons = broadcast_object([known.get(key, 'unchecked') for key in keys])
    todo = [n for n, reason in enumerate(reasons) if reason == 'unchecked'][get_rank()::get_world_size()]

    # check this rank's share; after an interruption, what rank 0 has found is kept
    found, saved = {}, time.monotonic()
    results = run_jobs(check_clip, [jobs[n] for n in todo], workers, (DECODER_CRASH, False))
    try:
        for n, result in zip(todo, progress_bar(results, 'checking clips', len(todo))):
            found[n] = result
            if time.monotonic() - saved > SAVE_EVERY:
                _save_cache(cache, known, keys, found)
                saved = time.monotonic()
    finally:
        results.close()
        _save_cache(cache, known, keys, found)

    # merge what all ranks found
    for part in all_gather_object(found):
        found |= part
    _save_cache(cache, known, keys, found)
    for n, (reason, _) in found.items():
        reasons[n] = reason
    return {path: reason for (path, _), reason in zip(jobs, reasons)}


def progress_bar(results, title, total):
    """Iterate over results with a progress bar; without a terminal, it is printed every 30 s."""
    seconds = 0.1 if sys.stderr.isatty() else 30
    return tqdm(results, title, total, unit='clip', leave=False, delay=seconds, mininterval=seconds,
                disable=get_rank() > 0)


def _read_cache(cache):
    """{key: reason} of the permanent results; {} if there is no cache yet, or a damaged one"""
    try:
        return dict(json.loads(Path(cache).read_text('utf-8')))
    except (OSError, ValueError, TypeError):
        return {}


def _save_cache(cache, known, keys, found):
    """Add the permanent results to the known ones; rank 0 writes them atomically."""
    known |= {keys[n]: reason for n, (reason, permanent) in found.items() if permanent}
    if not found or get_rank() > 0:
        return
    known |= _read_cache(cache)                                # another run may have added to it
    try:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, json.dumps(known, separators=(',\n', ': ')))
    except OSError as error:
        print_once(f'{cache} cannot be written ({error.strerror}): the clips will be checked again next time')
