"""Algorithm 1: a stream of tasks, a method, a step; after each task, retrieval.

    python train.py                                    FLAVA on the built-in data, at small size
    python train.py --dataset vggsound --data DIR      the paper's main experiment
    torchrun --nproc_per_node 4 train.py ...           the same on four GPUs

In:  options, of which `--help` lists all.
Out: a run's folder (`run.py` says what is in it), from whose last.pt `--resume` goes on after any interruption, on a
     CPU to the same results bit for bit.

Tour: stop 17.
"""
import dataclasses
import json

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import eval as evaluation
from baselines import build
from config import autocast, exit_politely, parse, without_effect
from flava import InitialPretraining
from patches import UserError, rank, world
from processes import (agreed, check_memory, check_shares, claimed, leave_processes, say, start_processes,
                       stop_gently)
from run import Steps, open_run
from streams.catalogue import open_stream
from streams.common import Union, check_batches
from streams.prepare import advice
from streams.workers import Loader, count_workers, waiting
from weights import load_weights, pretraining_cache, save_atomically, write_text


def learn_stream(run, stream, checkpoint):
    """Algorithm 1: task after task, of whose borders the method is told nothing; retrieval after each."""
    cfg, tasks = run.cfg, tasks_of(run.cfg, stream)
    run.start_phase('stream', build(cfg, run.backbone, run.avm), cfg.lr, checkpoint)
    if not checkpoint:
        run.rows = [evaluate(run, stream)]                     # row 0: before the first task
        run.keep_model(0)
        run.save()
    while run.task < len(tasks):
        name, clips, steps = tasks[run.task]
        batches = plan(len(clips), cfg.batch_size, cfg.epochs, steps, cfg.seed * 1000 + 1 + run.task)
        if run.step < len(batches):
            take_steps(run, clips, batches, f'task {run.task + 1}/{len(tasks)} {name}')
            run.save()                                         # what is learned outlives an interrupted evaluation
        run.rows = run.rows + [evaluate(run, stream)]
        tell_recall(run, name)
        run.task, run.step = run.task + 1, 0
        run.keep_model(run.task)
        run.save()


def take_steps(run, clips, batches, title):
    """The steps of one task, or of the initial pre-training, that are still to be taken: from run.step on."""
    method = DistributedDataParallel(run.method, broadcast_buffers=False) if dist.is_initialized() else run.method
    loader = Loader(clips, batches.after(run.step), count_workers(run.cfg.dataset, run.cfg.workers),
                    pin=run.device.type == 'cuda')
    with Steps(run, title, len(batches)) as steps:
        for batch in waiting(loader, steps.waits):
            run.note_bad(batch['bad'])
            batch = {name: batch[name].to(run.device, non_blocking=True) for name in ('audio', 'video')}
            run.optimizer.zero_grad(set_to_none=True)          # now: the last step's need not outlive the forward pass
            with autocast(run.device):
                loss, log = method(batch)                      # `flava.py`, `baselines.py`
            loss.backward()
            run.optimizer.step()
            if hasattr(run.method, 'after_step'):
                run.method.after_step()
            steps.count(len(batch['audio']), loss, log)


# -------------------------------------------------------------------------------- what is learned, when

def tasks_of(cfg, stream):
    """[(name, clips, steps at most)], one after the other. Multitask learns all tasks at once, in as many steps as the
    others take in all."""
    steps = [len(plan(len(clips), cfg.batch_size, cfg.epochs, cfg.steps, 0)) for clips in stream.train]
    if cfg.method == 'multitask':
        return [('all tasks', Union(stream.train), sum(steps))]
    return list(zip(stream.names, stream.train, steps))


def plan(clips, batch_size, epochs, max_steps, seed):
    """The batches of a phase, which are certain before it begins; so a resumed run need only go on at a place among
    them. A task smaller than a batch trains on the smaller batch; an incomplete last batch is dropped."""
    batch_size = min(batch_size, clips) // world() * world()
    if batch_size == 0:
        raise UserError(f'{clips} clips cannot be split over {world()} processes')
    steps = clips // batch_size * epochs
    return Batches(clips, batch_size, min(steps, max_steps) if max_steps >= 0 else steps, seed)


@dataclasses.dataclass
class Batches:
    """Batches first … steps − 1 of a phase: lists of (clip, seed of its augmentation). Each epoch is drawn when it
    begins, since those of millions of clips would fill the memory. Under several processes, each has its part of every
    batch."""
    clips: int
    batch_size: int
    steps: int
    seed: int
    first: int = 0

    def __len__(self):
        return self.steps - self.first

    def __iter__(self):
        generator, each = torch.Generator().manual_seed(self.seed), self.clips // self.batch_size      # an epoch
        for epoch in range(0, self.steps, each):
            order = torch.randperm(self.clips, generator=generator)
            seeds = torch.randint(2 ** 62, (self.clips,), generator=generator)
            for step in range(max(epoch, self.first), min(epoch + each, self.steps)):
                start = (step - epoch) * self.batch_size
                one = slice(start + rank(), start + self.batch_size, world())
                yield list(zip(order[one].tolist(), seeds[one].tolist()))

    def after(self, steps):
        """Those that are left after so many steps."""
        return dataclasses.replace(self, first=steps)


def pretrain(run, stream, checkpoint):
    """Initial pre-training on the clips of classes of no task (App. B): once, then read from the cache."""
    cfg, path = run.cfg, pretraining_cache(run.cfg, run.device, len(stream.pretrain))
    if cfg.pretrain_steps == 0 or len(stream.pretrain) == 0:
        if cfg.pretrain_steps != 0:
            say('no clips of classes of no task: no initial pre-training '
                '(--pretrain-data or --init would give a start)')
        return
    if not checkpoint and agreed(path.exists()):
        say(f'initial pre-training: {load_weights(path, run.backbone, run.avm)}')
        return
    # The same code as the stream's, with the pre-training's own numbers. The paper does not say whether ℓ^r is left out
    # here too where the stream leaves it out (Fig. 11); here it is kept, so that all start from the same model.
    own = dataclasses.replace(cfg, mask_ratio=cfg.pretrain_mask_ratio, mae_weight=1.0)
    run.start_phase('pretrain', InitialPretraining(own, run.backbone, run.avm), cfg.pretrain_lr, checkpoint)
    batches = plan(len(stream.pretrain), cfg.pretrain_batch_size, cfg.pretrain_epochs, cfg.pretrain_steps, cfg.seed)
    take_steps(run, stream.pretrain, batches, 'initial pre-training')
    run.refuse_nan()
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(run.weights(), path)
        say(f'initial pre-training is kept in {path}')


# ---------------------------------------------------------------------------------- what came of it

def evaluate(run, stream):
    """Retrieval with all tasks' clips as candidates → a row of results. Every process embeds its share of the clips."""
    workers = count_workers(run.cfg.dataset, run.cfg.workers)
    [(c_a, c_v)], task_of, bad = evaluation.embed_clips([run.evaluated()], stream.test, run.device,
                                                        run.cfg.batch_size, workers)
    if rank() == 0:                                            # all have what all found, and one says it
        run.note_bad(bad)
    found = evaluation.retrieval(c_a, c_v, task_of, len(stream.names), run.device, run.cfg.galleries)
    return dict(found, candidates=len(task_of) // run.cfg.galleries)


def tell_recall(run, name):
    """A line on how well the task just learned was learned; of Multitask, the mean over all tasks."""
    if rank() == 0:
        row = {direction: run.rows[-1][direction]['R@10'] for direction in evaluation.DIRECTIONS}
        own = slice(None) if run.cfg.method == 'multitask' else slice(run.task, run.task + 1)
        recall = {direction: acc[own] for direction, acc in row.items()}
        say(f'after {name}: R@10 of it ' + ', '.join(
            f'{direction.replace("_", " ")} {sum(acc) / len(acc):.1f} %' for direction, acc in recall.items()))


def finish(run, stream):
    """The table, results.json, the figures and the report."""
    from downstream import report              # doors of the command line: the core needs no pictures
    from downstream.pictures import draw

    results = evaluation.summarize(run.rows[1:], stream.names, run.rows[-1]['candidates'])
    results['initial'] = {d: {k: run.rows[0][d][k] for k in run.rows[0][d]} for d in evaluation.DIRECTIONS}
    results['method'], results['clips_left_out'], results['left_out'] = run.cfg.method, len(run.bad), sorted(run.bad)
    table = evaluation.table(run.cfg.method, results)
    write_text(run.out / 'results.json', json.dumps(results, indent=1))
    write_text(run.out / 'table.md', table + '\n')
    chance = f'{results["candidates"]} candidates, so chance is R@10 {results["chance"]["R@10"]:.1f} %'
    say(f'\n{table}\n\nin percent; {chance}')
    for path in draw(run.out, run.evaluated(), run.avm, stream, run.cfg, run.device):
        say(f'figure: {path}')
    for path in report.write(run.out):
        say(f'report: {path}')
    if run.bad:
        say(f'{len(run.bad)} clips were left out')


def open_data(cfg):
    """The run's Stream; every process tests its share of the clips."""
    stream = open_stream(cfg, count_workers(cfg.dataset, cfg.workers))
    check_batches(cfg, dict(zip(stream.names, map(len, stream.train))), len(stream.pretrain))
    if rank() == 0:
        stream.notes.extend(advice(stream.train, cfg))
    return stream


def run_all(run, checkpoint):
    """Data → initial pre-training → stream → table, or what is left of it after the checkpoint."""
    cfg = run.cfg
    stop_gently(run)
    stream = open_data(cfg)
    run.open_folder(checkpoint)
    for note in stream.notes:
        say(note)
    if rank() == 0:
        run.note_bad(stream.bad)
    if cfg.init and not checkpoint:
        say(f'--init {load_weights(cfg.init, run.backbone, run.avm)}')
    if not checkpoint or checkpoint['phase'] == 'pretrain':
        pretrain(run, stream, checkpoint)
        checkpoint = None
    learn_stream(run, stream, checkpoint)
    run.share_bad()
    if rank() == 0:
        finish(run, stream)


def main(arguments=None):
    """Options → a run. arguments: the command line's words, or sys.argv's"""
    with exit_politely('the same command with --resume goes on'):
        cfg, resume = parse(arguments)
        device = start_processes(cfg)
        for line in without_effect(arguments, cfg):
            say(line)
        check_shares(cfg)
        check_memory(cfg, device)
        with claimed(cfg):
            run_all(*open_run(cfg, resume, device))
            leave_processes()


if __name__ == '__main__':
    main()
