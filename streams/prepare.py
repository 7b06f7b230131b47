"""Preparing a data set: its clips written again, small, so that training need not wait for them (ours).

In:  a folder laid out as VGGSound, AudioSet or AVE.
Out: another, of the same lists and names, which the same code reads; its clips are those of `small.py`.

    python data.py prepare --data DIR --out SMALL
"""
import argparse
import contextlib
import errno
import os
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import BadClip, read_clip
from patches import SHARE, WORKERS, UserError
from streams.audioset import BALANCED, MIDS, read_audioset
from streams.ave import read_ave
from streams.small import is_prepared, small_clip
from streams.vggsound import read_vggsound
from streams.workers import count_workers, in_processes

ENOUGH, TRIED = 1000, 3       # clips of which preparing is advised; those that are read to say what it brings
FELLED = None, 'fells the process that decodes it, or hangs'


# ------------------------------------------------------------------------------- a folder of them

class Job(NamedTuple):
    """A clip to prepare, and the file to write. written: when the original was, in ns"""
    source: str
    segment: tuple | None
    target: Path
    written: int
    shard: str


def listed(folder):
    """The clips that a folder's lists name → {path: (start, seconds) of its segment, or None}, in their order."""
    if (folder / 'vggsound.csv').is_file():
        clips = read_vggsound(folder)
    elif (folder / MIDS).is_file():
        clips = read_audioset(folder, sorted(path.name for path in folder.glob('*_segments.csv')) or [BALANCED])
    elif (folder / 'Annotations.txt').is_file():
        clips = [event for events in read_ave(folder)[0].values() for event in events]
    else:
        raise UserError(f'{folder} is no data set known here: it has neither vggsound.csv nor {MIDS} nor '
                        'Annotations.txt. streams/README.md says what lies where')
    return {clip.path: clip.segment for clip in clips}


def plan(clips, out, shard):
    """What is to be done of a shard's clips → jobs, the originals' and the prepared files' bytes of those that are
    done, names of those that are missing; a clip whose original is gone stays.

    A prepared file was last changed when its original was: so it is seen whether that is another one by now.
    """
    jobs, done, missing = [], [], []
    for source, segment in clips:
        target = out / Path(source).parent.name / f'{Path(source).stem}.mkv'
        before, after = _stat(source), _stat(target)
        if before is None:
            missing += [] if after else [f'{os.path.basename(source)}: file missing']
            done += [(0, 0)] if after else []
        elif after and abs(after.st_mtime_ns - before.st_mtime_ns) < 2e9:       # some disks keep times to two seconds
            done.append((before.st_size, after.st_size))
        elif after and not is_prepared(target):
            raise UserError(f'{target} is there, and is no prepared clip: --out must be a folder of its own')
        else:
            jobs.append(Job(source, segment, target, before.st_mtime_ns, shard))
    return jobs, done, missing


def _stat(path):
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def prepare_clip(job):
    """→ bytes of the original and of the prepared file, which is there whole or not at all; and ''. Or None and why the
    clip cannot be prepared."""
    try:
        content, size = small_clip(job.source, job.segment), os.path.getsize(job.source)
    except BadClip as bad:
        return None, str(bad)
    except FileNotFoundError:
        return None, 'file missing'
    _write(job.target, content, job.shard, job.written)
    return (size, len(content)), ''


def _write(path, content, shard, written=None):
    """The name of a file that is not whole yet says of which shard it is, and of which process."""
    temporary = Path(f'{path}.{shard}.{os.getpid()}.tmp')
    try:
        temporary.write_bytes(content)
        if written is not None:
            os.utime(temporary, ns=(written, written))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sweep(folder, shard):
    """Removes what killed calls left: those of this shard, and whosoever's after an hour. Others may be at work."""
    for path in folder.glob('*.tmp'):
        of = re.search(r'\.(\d+-of-\d+)\.\d+\.tmp$', path.name)
        with contextlib.suppress(OSError):
            if of and (of[1] == shard or time.time() - path.stat().st_ctime > 3600):
                path.unlink()


# --------------------------------------------------------------------------------- the command line

def prepare(data, out, workers=-1, max_bad=0.1, shard=(1, 1)):
    """Writes what is missing or changed of a shard's clips → a sentence on what there is now. Raises UserError."""
    data, out, name = Path(data), Path(out), '{}-of-{}'.format(*shard)
    clips = listed(data)
    if not clips:
        raise UserError(f'{data}: its lists name no clips')
    mine = list(clips.items())[shard[0] - 1::shard[1]]
    folder = out / Path(next(iter(clips))).parent.name             # video, or AVE
    for one, other in ((data, out), (data / folder.name, folder)):     # either may be a link
        one, other = one.resolve(), other.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise UserError(f'--data {data} and --out {out} must be two folders, neither of them in the other')
    try:
        _lay_out(data, out, folder, name)
        jobs, done, bad = plan(mine, out, name)
        _refuse_many(bad, mine, max_bad, f'are not in {data}. Was it copied whole?')
        there = len(done)
        sizes, reasons = _work(jobs, count_workers('clips', workers))
    except OSError as error:
        what = 'the disk is full. Make room' if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise UserError(f'{error.filename or out}: {what}. What is prepared is whole, and the same command goes on'
                        ) from error
    done, bad = done + sizes, bad + reasons
    for line in bad:
        print(f'left out: {line}')
    _refuse_many(bad, mine, max_bad, f'cannot be prepared; the others lie in {out}.')
    before, after = (sum(size) / 1e6 for size in zip(*done, (0, 0)))
    part = f' of shard {shard[0]} of {shard[1]}' if shard[1] > 1 else ''
    return (f'{out}: {len(sizes)} clips{part} prepared, {there} were there already, {len(bad)} left out; '
            f'{before:,.1f} MB became {after:,.1f} MB')


def _lay_out(data, out, folder, shard):
    """The folder, and the lists as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(out, shard), sweep(folder, shard)
    for path in sorted(data.iterdir()):
        if path.suffix in ('.csv', '.txt', '.json') and path.is_file():
            _write(out / path.name, path.read_bytes(), shard)


def _refuse_many(bad, clips, max_bad, what):
    if len(bad) > max_bad * len(clips):
        raise UserError(f'{len(bad)} of {len(clips)} clips ({len(bad) / len(clips):.0%}) {what} More than '
                        f'{max_bad:.0%} are too many; the first of them:\n  ' + '\n  '.join(bad[:5]) +
                        '\nRaise --max-bad to do without them.')


def _work(jobs, workers):
    """→ the bytes of each original and of its prepared file, 'name: reason' of each clip that has none"""
    sizes, bad = [], []
    results = in_processes(prepare_clip, jobs, workers, FELLED) if workers else (prepare_clip(job) for job in jobs)
    with contextlib.closing(results), tqdm(
            total=len(jobs), desc='preparing clips', unit='clip', leave=False, disable=None) as bar:
        for job, (size, reason) in zip(jobs, results):
            if reason:
                bad.append(f'{os.path.basename(job.source)}: {reason}')
            else:
                sizes.append(size)
            bar.update()
    return sizes, bad


def advice(datasets, sizes):
    """What preparing would bring, where clips are so many that it pays → a sentence in a list, or []. To say so, three
    of them are prepared and read."""
    clips = [clip for dataset in datasets for clip in getattr(dataset, 'clips', ())]       # shapes have no files
    times = []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, 'clip.mkv')
        for clip in clips[::len(clips) // TRIED][:TRIED] if len(clips) >= ENOUGH else ():
            with contextlib.suppress(BadClip, OSError):            # no room for it, or no longer there: no advice
                target.write_bytes(small_clip(clip.path, clip.segment))
                times.append((_seconds(clip.path, sizes, clip.segment), _seconds(target, sizes, None)))
    now, then = (sum(column) for column in zip(*times, (0, 0)))
    if now <= 2 * then:                                            # as they are of prepared clips
        return []
    return [f'a clip takes {now / len(times):.2g} s to read here, {then / len(times):.2g} s once prepared: `python '
            f'data.py prepare --data {Path(clips[0].path).parent.parent} --out SMALL` makes loading {now / then:.0f} '
            'times as fast']


def _seconds(path, sizes, segment):
    """How long a training clip takes to read, the second time: from then on the disk's part is the same for both."""
    for _ in range(2):
        begun = time.perf_counter()
        read_clip(path, sizes, torch.Generator().manual_seed(0), segment=segment)
    return time.perf_counter() - begun


def main(arguments=None):
    """The command line. arguments: its words, or sys.argv's"""
    parser = argparse.ArgumentParser(prog='python data.py', description='Prepare the clips of a data set.')
    words = parser.add_subparsers(required=True, metavar='prepare').add_parser(
        'prepare', help='write them again, small and quick to read',
        description='Write the clips of VGGSound, AudioSet or AVE again, small and quick to read, with the same lists '
                    'and names. The same command again does what is missing or changed.')
    words.error = parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    words.add_argument('--data', type=Path, required=True, help='folder of the data set, see streams/README.md')
    words.add_argument('--out', type=Path, required=True, help='folder to write: then --data of train.py and eval.py')
    words.add_argument('--workers', default=-1, **WORKERS.asked('processes; -1: as for training (default -1)'))
    words.add_argument('--max-bad', default=0.1, **SHARE.asked('share of clips that may be left out (default 0.1)'))
    words.add_argument('--shard', default='1/1', help='part to do, for many machines: 1/n, 2/n … n/n (default 1/1)')
    args = parser.parse_args(arguments)
    parts = re.fullmatch('([0-9]{1,6})/([0-9]{1,6})', args.shard)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise UserError(f'--shard {args.shard}: there is no such part; of four, they are 1/4, 2/4, 3/4 and 4/4')
    print(prepare(args.data, args.out, args.workers, args.max_bad, (int(parts[1]), int(parts[2]))))
