"""Atomic writes of checkpoints and text files; the lock on a run's folder; signals; options of saved runs.

In:  the state of a run, as tensors and plain values.
Out: last.pt, which `--resume` continues from. Loading never executes code from a file.
"""
import argparse
import contextlib
import dataclasses
import os
import re
import signal
import tempfile
import uuid
import zipfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from config import PATH_FIELDS, RUNTIME_FIELDS, Config, UserError
from utils.distributed import all_gather_object, get_rank, get_world_size


# --------------------------------------------------------------------------------- atomic files

@contextlib.contextmanager
def atomic_file(path):
    """Context manager: the path of a temporary file beside `path`. At the end it replaces `path`; after an error it is
    removed. Its name is random, because runs on several machines may share a disk."""
    temporary = Path(f'{path}.{uuid.uuid4().hex}.tmp')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):             # it would hide the error
            temporary.unlink()


def remove_temporary_files(*folders):
    """Delete what a killed process has left of `atomic_file` in these folders."""
    for folder in folders:
        for file in Path(folder).glob('*.tmp'):
            if re.search(r'\.[0-9a-f]+\.tmp$', file.name):
                file.unlink(missing_ok=True)


def save_atomically(content, path):
    """torch.save to a temporary file, then rename. Raises UserError if the disk is full."""
    try:
        with atomic_file(path) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:           # torch raises RuntimeError if a write fails
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__                    # torch also turns Ctrl-C during the write into a RuntimeError
        reason = getattr(error, 'strerror', None) or f'is the disk full? ({error})'.split('\n')[0]
        intact = f' {path} as it was before is intact.' if Path(path).exists() else ''
        raise UserError(f'cannot write {path}: {reason}.{intact} Make room and repeat the command; train.py continues '
                        'with --resume.')


def write_text(path, text):
    """A text file in UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding='utf-8', errors='backslashreplace')        # file names may not be UTF-8


def read_checkpoint(path):
    """torch.load of tensors and plain values, or the tensors of a .safetensors file. Raises UserError for any other."""
    try:
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):   # options, in the files of many trainers
            return torch.load(path, map_location='cpu', weights_only=True,
                              mmap=zipfile.is_zipfile(path))       # older files have another format
    except ImportError:
        raise UserError(f'{path}: reading it needs the package safetensors: pip install safetensors')
    except FileNotFoundError:
        raise UserError(f'{path}: no such file')
    except Exception as error:                         # torch raises many types, even for truncated files
        refused = re.search(r'GLOBAL [\w.]+|(?:class|function) [\w.]+\.\w+', str(error))
        if refused:
            raise UserError(f'{path}: refused, because loading it would execute code from the file ({refused[0]}). If you '
                            'trust it, save its weights alone: torch.save(torch.load(FILE, weights_only=False)["model"], '
                            'NEW)')
        raise UserError(f'{path}: truncated, or not a checkpoint ({type(error).__name__})')


def check_writable(folder, flag=''):
    """Create the folder if needed, and write to it once. Raises UserError. flag: the option that names it"""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f'{flag} {folder} cannot be written: {error.strerror}'.strip())


# ------------------------------------------------------------------------------ a run's checkpoint

def rank_state(method, device):
    """The random states and the memory of this rank"""
    states = {'torch': torch.get_rng_state()}
    if device.type == 'cuda':
        states['cuda'] = torch.cuda.get_rng_state(device)
    return dict(random=states, memory=None if method.memory is None else method.memory.state_dict())


def restore_rank_state(state, method, device, step):
    """The reverse of rank_state. step: of the checkpoint"""
    torch.set_rng_state(state['random']['torch'])
    if device.type == 'cuda' and 'cuda' in state['random']:
        torch.cuda.set_rng_state(state['random']['cuda'], device)
    elif device.type == 'cuda':                        # a checkpoint from a CPU: a new seed
        torch.cuda.manual_seed(torch.initial_seed() + 1_000_003 * step)
    if state['memory'] is not None:
        method.memory.load_state_dict(state['memory'], device)


def rank_checkpoint(folder, rank, phase, step):
    """The file of a further rank. Its name holds phase and step, because last.pt may be of an earlier step."""
    return Path(folder) / f'last.process{rank}.{phase}.step{step}.pt'


def remove_old(folder, pattern, keep):
    """Delete the files of a pattern, but for those to keep."""
    for file in set(Path(folder).glob(pattern)) - set(keep):
        file.unlink()


# ---------------------------------------------------------------------------------- lock, signals

@contextlib.contextmanager
def run_lock(out, cache):
    """Lock a run's folder for this run. Raises UserError on all ranks if another run has it, or if a rank cannot write
    to it or to the cache."""
    with contextlib.ExitStack() as held:
        error = ''
        try:
            check_writable(cache, '--cache')
            check_writable(out, '--out')               # last, because it makes the folder
            if get_rank() == 0:
                held.enter_context(folder_lock(Path(out)))
        except (UserError, OSError) as problem:
            error = str(problem)
        errors = [message for message in all_gather_object(error) if message]
        if errors:
            raise UserError(errors[0])
        yield


@contextlib.contextmanager
def folder_lock(folder):
    """Raises UserError if another process has the lock. A run that never starts leaves no lock, and no empty folder."""
    lock = FileLock(folder / '.lock', timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f'another run uses {folder}: wait until it ends, or choose another folder with --out')
    except (OSError, NotImplementedError):             # a network disk without locks
        tqdm.write(f'{folder} does not support locks: make sure that no other run writes there')
    try:
        yield
    finally:
        started = (folder / 'config.json').exists()
        if not started:                                # before the release, or it could be the lock of the next run
            (folder / '.lock').unlink(missing_ok=True)
        lock.release()
        if not started:
            with contextlib.suppress(OSError):
                folder.rmdir()


class StopRequest:
    """Set by the first SIGINT or SIGTERM while training: stop after this step. `active`: whether the training
    loop runs; outside of it a signal interrupts at once."""

    def __init__(self):
        self.requested, self.active = False, False
        signal.signal(signal.SIGINT, self.handle)
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, number, frame):
        if self.requested and get_world_size() > 1 and number == signal.SIGTERM:
            return                                     # torchrun repeats the signal that all ranks already have
        if self.requested or not self.active:
            raise KeyboardInterrupt
        self.requested = True
        tqdm.write('stopping after this step (again: stop at once)')


# --------------------------------------------------------------------------------- saved options

def with_older_defaults(saved):
    """Options of a saved run → all options. A run that does not know an option behaves as with its default, or with the
    value here."""
    saved = dict(saved)
    saved.setdefault('candidate_sets', saved.pop('galleries', 1))      # the option's first name
    if saved.get('dataset', 'shapes') == 'shapes':
        older = dict(max_roll=-1, min_silent=max(saved.get('max_silent', 1) - 1, 0))
    else:
        older = dict(max_roll=10, min_silent=0)
        saved['candidate_sets'] = 1
    if saved.get('scorer', 'full') != 'student':       # only the student reads it; its default was 8
        saved.pop('scorer_every', None)
    return {f.name: f.default for f in dataclasses.fields(Config)} | older | saved


def config_changes(was, now, names=None):
    """Two dicts of saved options → a sentence for each that differs; of `names`, or of all but RUNTIME_FIELDS
    and PATH_FIELDS."""
    was, now = with_older_defaults(was), with_older_defaults(now)
    sentences = []
    for name in names or sorted({*was, *now} - RUNTIME_FIELDS - PATH_FIELDS):
        before, after = was.get(name, 'unknown'), now.get(name, 'unknown')
        if name == 'init':                             # the file may have moved
            before, after = Path(before).name, Path(after).name
        if before != after:
            sentences.append(f'--{name.replace("_", "-")} was {before!r}, now {after!r}')
    return sentences
