"""What a run prints and logs: the opening summary, log.jsonl, the progress bar, the clips that were skipped.

In:  the loss and the values of each step.
Out: a line of log.jsonl every `--log-every` steps; checkpoints when they are due; KeyboardInterrupt when a stop is due.
     Without a terminal, a plain line at least every 30 s in place of the progress bar.
"""
import json
import math
import time
from datetime import datetime

import torch
import torch.distributed as dist
from tqdm import tqdm

from config import UserError
from utils.checkpoint import write_text
from utils.distributed import (all_gather_object, cpu_group, get_rank, get_world_size, peak_memory, print_rank0,
                               uses_bf16)

PRINT_EVERY = 30        # seconds between two plain lines
PRINTED_TASKS = 20      # tasks that the summary names
NAMED = 10              # skipped clips that are printed, and named in results.json


def print_summary(run, stream, initial):
    """What this run will do. initial: a sentence about the initial pre-training"""
    cfg, steps = run.cfg, sum(steps for _, _, steps in run.tasks)
    backbone, avm = (sum(p.numel() for p in module.parameters()) for module in (run.backbone, run.avm))
    precision = 'bf16 autocast' if uses_bf16(run.device, run.cfg.precision) else 'float32'
    processes = f', {get_world_size()} processes' if get_world_size() > 1 else ''
    lines = [f'device        {run.device}, {precision}{processes}',
             f'model         {cfg.size or "base"}: {backbone:,} parameters, AVM {avm:,}',
             f'method        {cfg.method}, batches of {cfg.batch_size}',
             f'pre-training  {initial}',
             f'tasks         {len(run.tasks)}, {steps:,} steps, {sum(map(len, stream.retrieval)):,} retrieval clips']
    lines += [f'              {name}: {len(clips):,} training clips, {steps:,} steps'
              for name, clips, steps in run.tasks[:PRINTED_TASKS]]
    if len(run.tasks) > PRINTED_TASKS:
        lines.append(f'              … and {len(run.tasks) - PRINTED_TASKS} more')
    print_rank0('\n'.join([*lines, f'output        {run.out}']))


def check_tensorboard(cfg):
    """Raises UserError, before any clip is read, if event files are requested but cannot be written."""
    try:
        if cfg.tensorboard:
            import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError('--tensorboard 1 needs the package tensorboard: pip install tensorboard')


def event_writer(cfg, global_step):
    """`--tensorboard`: a SummaryWriter on rank 0, which replaces what it wrote after this step; else None."""
    if not cfg.tensorboard or get_rank() > 0:
        return None
    from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(cfg.out, purge_step=global_step + 1)


def truncate_log(path, global_step):
    """Drop the lines of log.jsonl after a checkpoint's step: these steps are taken again."""
    if not path.exists():
        return
    complete = [line for line in path.read_text(encoding='utf-8').splitlines() if line.endswith('}')]  # a kill may cut
    kept = [line for line in complete if json.loads(line)['global_step'] <= global_step]
    write_text(path, ''.join(line + '\n' for line in kept))


class SkippedClips:
    """'name: reason' of each clip that could not be read. The first are printed, all are in skipped.txt."""

    def __init__(self, lines=()):
        self.lines, self.many = dict.fromkeys(lines), False

    def add(self, lines):
        """lines: 'name: reason' of each skipped clip; '' of a clip that was read does not count"""
        for line in lines:
            if line and line not in self.lines:
                self.lines[line] = None
                if len(self.lines) <= NAMED:
                    tqdm.write(f'skipped: {line}')
                elif not self.many:
                    self.many = True
                    tqdm.write('more clips are skipped: skipped.txt will name them')

    def write(self, folder):
        write_text(folder / 'skipped.txt', ''.join(line + '\n' for line in sorted(self.lines)))

    def gather(self):
        """Merge the lines of all ranks."""
        self.lines = {line: None for lines in all_gather_object(list(self.lines)) for line in lines}


class Progress:
    """The steps of one task, or of the initial pre-training: counted, shown, logged and saved.

    waits  seconds of waiting for each batch
    later  number of steps after these, in all further tasks
    """

    def __init__(self, run, title, batches):
        self.run, self.title, self.total, self.waits = run, title, batches.steps, []
        self.steps_per_epoch = batches.steps_per_epoch
        in_stream = run.phase == 'stream'
        self.name = run.tasks[run.task][0] if in_stream else title
        self.later = sum(steps for _, _, steps in run.tasks[run.task + 1 if in_stream else 0:])

    def __enter__(self):
        self.bar = tqdm(total=self.total, initial=self.run.step, desc=self.title, unit='step',
                        disable=None if get_rank() == 0 else True)
        self.log_time, self.samples, self.save_time = time.perf_counter(), 0, time.monotonic()
        self.start_time, self.start_step, self.print_time = self.log_time, self.run.step, self.log_time
        self.logs = []                                 # of the steps since the last line of log.jsonl
        self.run.stop.active = True
        return self

    def __exit__(self, kind, *rest):
        self.bar.close()
        self.run.stop.active = kind is not None        # after an error, a signal must not interrupt the exit

    def update(self, pairs, loss, log):
        """After a step of so many pairs on this rank: log it, now and then."""
        run = self.run
        self.samples += pairs * get_world_size()
        self.logs.append(dict(mean_loss=loss.detach(), **log))
        if run.step % run.cfg.log_every == 0 or run.step == self.total:
            self.write_log(loss)                       # .item() is a host-device sync, so only here
        self.bar.update()

    def write_log(self, loss):
        """A line of log.jsonl: `loss` is of this step; its parts are means over the steps since the last line that have
        them. Raises UserError on all ranks if the loss of one rank is not finite."""
        run, loss = self.run, loss.item()
        for value in all_gather_object(loss):
            if not math.isfinite(value):
                raise UserError(f'{self.title}, step {run.step}: the loss is {value}; try a smaller --lr. '
                                f'The last checkpoint is {run.out / "last.pt"}')
        seconds = time.perf_counter() - self.log_time
        speed, waited = self.samples / seconds, sum(self.waits) / seconds
        means = {name: torch.stack([log[name] for log in self.logs if name in log]).mean().item()
                 for name in dict.fromkeys(name for log in self.logs for name in log)}
        self.log_time, self.samples = time.perf_counter(), 0
        self.waits.clear()
        self.logs.clear()
        if get_rank() > 0:
            return

        # log.jsonl and, with --tensorboard, event files
        entry = dict(
            time=datetime.now().isoformat(timespec='seconds'), phase=run.phase, task=run.task, task_name=self.name,
            step=run.step, global_step=run.global_step, epoch=1 + (run.step - 1) // self.steps_per_epoch,
            lr=run.optimizer.param_groups[0]['lr'], loss=loss, **means, samples_per_s=round(speed, 2),
            waited=round(waited, 3), memory_gb=round(peak_memory(run.device), 3))
        with (run.out / 'log.jsonl').open('a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')
        if run.events:
            for name, value in entry.items():
                if isinstance(value, (int, float)):
                    run.events.add_scalar(name, value, run.global_step)
            run.events.flush()

        # the progress bar or, without a terminal, a line now and then
        waiting = f', {waited:.0%} waiting for data' if waited >= 0.01 else ''
        state = f'loss {means["mean_loss"]:.3f}, {speed:.1f} samples/s{waiting}, all tasks: {self.time_left()} left'
        self.bar.set_postfix_str(state)
        if self.bar.disable and (run.step == self.total or self.log_time - self.print_time >= PRINT_EVERY):
            print_rank0(f'{self.title}: step {run.step}/{self.total}, {state}')
            self.print_time = self.log_time

    def time_left(self):
        """Training time of all further steps, at this task's speed so far: '12:34'. Evaluations are not counted."""
        seconds_per_step = (self.log_time - self.start_time) / (self.run.step - self.start_step)
        return tqdm.format_interval(seconds_per_step * (self.total - self.run.step + self.later))

    def stop_or_save(self):
        """Whether a signal asked to stop, and whether --save-every is over: on all ranks, if any rank needs to."""
        save_due = time.monotonic() - self.save_time >= 60 * self.run.cfg.save_every
        flags = torch.tensor([self.run.stop.requested, get_rank() == 0 and save_due]).int()
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=cpu_group())
        stop, save = flags.bool().tolist()
        if stop or save:
            self.save_time = time.monotonic()
        return stop, save
