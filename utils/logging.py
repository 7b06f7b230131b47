"""What a run prints and logs: log.jsonl, the progress bar, the clips that were skipped.

In:  the loss and the values of each step.
Out: a line of log.jsonl every `--log-every` steps; checkpoints when they are due; KeyboardInterrupt when a stop is due.
"""
import json
import math
import time

import torch
import torch.distributed as dist
from tqdm import tqdm

from config import UserError
from utils.checkpoint import write_text
from utils.distributed import all_gather_object, cpu_group, get_rank, get_world_size, peak_memory


def truncate_log(path, global_step):
    """Drop the lines of log.jsonl after a checkpoint's step: these steps are taken again."""
    if not path.exists():
        return
    complete = [line for line in path.read_text(encoding='utf-8').splitlines() if line.endswith('}')]  # a kill may cut
    kept = [line for line in complete if json.loads(line)['global_step'] <= global_step]
    write_text(path, ''.join(line + '\n' for line in kept))


class SkippedClips:
    """'name: reason' of each clip that could not be read, printed once."""

    def __init__(self, lines=()):
        self.lines = dict.fromkeys(lines)

    def add(self, lines):
        for line in lines:
            if line and line not in self.lines:
                self.lines[line] = None
                tqdm.write(f'skipped: {line}')

    def gather(self):
        """Merge the lines of all ranks."""
        self.lines = {line: None for lines in all_gather_object(list(self.lines)) for line in lines}


class Progress:
    """The steps of one task: counted, shown, logged and saved. `waits`: seconds that each batch was waited for"""

    def __init__(self, run, title, total):
        self.run, self.title, self.total, self.waits = run, title, total, []

    def __enter__(self):
        self.bar = tqdm(total=self.total, initial=self.run.step, desc=self.title, unit='step',
                        disable=None if get_rank() == 0 else True)
        self.log_time, self.samples, self.save_time = time.perf_counter(), 0, time.monotonic()
        self.run.stop.active = True
        return self

    def __exit__(self, kind, *rest):
        self.bar.close()
        self.run.stop.active = kind is not None        # after an error, a signal interrupts no save

    def update(self, pairs, loss, log):
        """One more step, of so many pairs on this rank. Raises KeyboardInterrupt if a stop was requested."""
        run = self.run
        run.step, run.global_step = run.step + 1, run.global_step + 1
        self.samples += pairs * get_world_size()
        if run.step % run.cfg.log_every == 0 or run.step == self.total:
            self.write_log(loss, log)                  # .item() is a host-device sync, so only here
        self.bar.update()
        stop, save = self.sync_stop()
        if stop or save:
            run.save()
            self.save_time = time.monotonic()
        if stop:
            raise KeyboardInterrupt

    def write_log(self, loss, log):
        """A line of log.jsonl. Raises UserError on all ranks if the loss of one is not finite."""
        run, loss = self.run, loss.item()
        for value in all_gather_object(loss):
            if not math.isfinite(value):
                raise UserError(f'{self.title}, step {run.step}: the loss is {value}; try a smaller --lr. '
                                f'The last checkpoint is {run.out / "last.pt"}')
        seconds = time.perf_counter() - self.log_time
        speed, waited = self.samples / seconds, sum(self.waits) / seconds
        self.log_time, self.samples = time.perf_counter(), 0
        self.waits.clear()
        if get_rank() == 0:
            entry = dict(phase=run.phase, task=run.task, step=run.step, global_step=run.global_step, loss=loss,
                         **{name: value.item() for name, value in log.items()}, samples_per_s=round(speed, 2),
                         waited=round(waited, 3), memory_gb=round(peak_memory(run.device), 3))
            with (run.out / 'log.jsonl').open('a', encoding='utf-8') as file:
                file.write(json.dumps(entry) + '\n')
        waiting = f', {waited:.0%} waiting for data' if waited >= 0.01 else ''
        self.bar.set_postfix_str(f'loss {loss:.3f}, {speed:.1f} samples/s{waiting}')

    def sync_stop(self):
        """Whether to stop, and whether to save: on all ranks, if any rank needs to."""
        save_due = time.monotonic() - self.save_time >= 60 * self.run.cfg.save_every
        flags = torch.tensor([self.run.stop.requested, get_rank() == 0 and save_due]).int()
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=cpu_group())
        return flags.bool().tolist()
