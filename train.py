"""Algorithm 1: a stream of tasks, a method, a training step. After each task, retrieval (§5.1).

    python train.py                                    FLAVA on the built-in shapes, small model
    python train.py --dataset vggsound --data DIR      a stream of videos; the paper also gives --init (README.md)
    torchrun --nproc_per_node 4 train.py ...           the same on four GPUs

In:  options; `--help` lists them.
Out: a run's folder. `--resume` continues it after any interruption, on a CPU to the same results bit for bit.

    config.json     the options                 log.jsonl    loss, samples/s, peak memory
    results.json    acc[t][i], A and F          table.md     the same as a table
    models/t.pt     the model after t tasks     last.pt      the checkpoint
    figures/        pictures                    eval/        results of eval.py
    report.md       all of it on one page       data.json    the tasks, a digest of their clips
    skipped.txt     clips that were skipped

Tour: stop 17.
"""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import eval as evaluation
from avm import AVM
from config import UserError
from flava import InitialPretraining, build_method
from memory import reshard
from model import AudioVideoMAE, compile_blocks
from streams.catalogue import open_stream
from streams.common import ConcatClips, check_batches, data_changes, describe
from streams.loading import Loader, count_workers, timed
from utils.checkpoint import (StopRequest, config_changes, rank_checkpoint, rank_state, read_checkpoint, remove_old,
                              remove_temporary_files, restore_rank_state, run_lock, save_atomically, write_text)
from utils.cli import cli_errors, parse, unused_flags
from utils.distributed import (autocast, barrier, broadcast_object, cleanup, get_rank, get_world_size,
                               init_distributed, print_rank0, uses_checkpointing)
from utils.logging import NAMED, Progress, SkippedClips, check_tensorboard, event_writer, print_summary, truncate_log
from utils.weights import load_weights, pretraining_cache


# ----------------------------------------------------------------------------------- the training loop

def train_stream(run, stream, checkpoint):
    """Train on each task in turn. The method never sees task boundaries. Evaluate after each task."""
    cfg, tasks = run.cfg, run.tasks
    run.start_phase('stream', build_method(cfg, run.backbone, run.avm), cfg.lr, checkpoint)
    if not checkpoint:
        run.retrieval_rows = [evaluate_retrieval(run, stream)]             # row 0: before the first task
        run.save_model(0)
        run.save()
    while run.task < len(tasks):
        name, clips, steps = tasks[run.task]
        # a seed per task, other than that of the initial pre-training
        batches = make_batches(len(clips), cfg.batch_size, cfg.epochs, steps, cfg.seed * 1000 + 1 + run.task)
        if run.step < len(batches):
            train_task(run, clips, batches, f'task {run.task + 1}/{len(tasks)} {name}')
            run.save()
        run.retrieval_rows.append(evaluate_retrieval(run, stream))
        print_recall(run, name)
        run.task, run.step = run.task + 1, 0
        run.save_model(run.task)
        run.save()


def train_task(run, clips, batches, title):
    """The steps of one task, or of the initial pre-training, from run.step on."""
    cfg, model = run.cfg, run.method                   # in several processes, DDP wraps it
    if dist.is_initialized():
        # with a student, most steps leave the AVM without a gradient
        model = DistributedDataParallel(model, broadcast_buffers=False,
                                        find_unused_parameters=cfg.scorer == 'student')
    loader = Loader(clips, dataclasses.replace(batches, start_step=run.step), count_workers(cfg.dataset, cfg.workers),
                    pin=run.device.type == 'cuda')
    with Progress(run, title, batches) as progress:
        for batch in timed(loader, progress.waits):
            run.skipped.add(batch['bad'])                  # 'name: reason' of a clip that could not be read, else ''
            batch = {name: batch[name].to(run.device, non_blocking=True) for name in ('audio', 'video')}

            # forward, backward, optimizer
            run.optimizer.zero_grad(set_to_none=True)
            with autocast(run.device, cfg.precision):
                loss, log = model(batch)               # `flava.py`, `baselines.py`
            loss.backward()
            run.optimizer.step()
            run.method.after_step()

            # log.jsonl and the progress bar
            run.step, run.global_step = run.step + 1, run.global_step + 1
            progress.update(len(batch['audio']), loss, log)

            # checkpoint; stop on a signal
            stop, save = progress.stop_or_save()
            if stop or save:
                run.save()
            if stop:
                raise KeyboardInterrupt                # `main` prints how to resume


class PretrainingPlan(NamedTuple):
    """What the initial pre-training does."""
    action: str                 # train: on `batches`, then save the model at `path`; load: from `path`; skip
    summary: str                # for the user
    batches: 'Batches | None' = None
    path: Path | None = None    # in the cache that runs share


def plan_pretraining(run, stream, checkpoint):
    """→ PretrainingPlan"""
    cfg, num_clips = run.cfg, len(stream.pretrain)
    if cfg.pretrain_steps == 0:                        # as by default for small shapes, with --init (`utils/cli.py`)
        return PretrainingPlan('skip', f'none: {cfg.init} has initial weights' if cfg.init
                               else 'none: --pretrain-steps 0')
    if num_clips == 0:
        return PretrainingPlan('skip', 'none: every class belongs to a task (--init reads initial weights)')
    if checkpoint and checkpoint['phase'] == 'stream':
        return PretrainingPlan('skip', 'done')
    path = pretraining_cache(cfg, run.device, stream.pretrain_digest)
    # a resumed run continues its own pre-training; rank 0 decides, because ranks may see the file at different times
    if not checkpoint and broadcast_object(path.exists()):
        return PretrainingPlan('load', f'{path} of an earlier run has it', path=path)
    batches = make_batches(num_clips, cfg.pretrain_batch_size, cfg.pretrain_epochs, cfg.pretrain_steps, cfg.seed)
    summary = (f'{len(batches):,} steps on the {num_clips:,} training clips of classes in no task, as in the paper '
               '(App. B); --pretrain-steps 0 leaves it out')
    return PretrainingPlan('train', summary, batches, path)


def pretrain(run, stream, checkpoint, plan):
    """Initial pre-training on the clips of classes of no task (App. B). Later runs read it from the cache."""
    cfg, path = run.cfg, plan.path
    if plan.action == 'load':
        print_rank0(f'initial pre-training: {load_weights(path, run.backbone, run.avm)}')
    if plan.action != 'train':
        return
    # The same loop, with the options of the pre-training. As nothing is selected here, the options of FLAVA's selection
    # are off: Config would check them against this mask ratio. ℓ^r is kept in Fig. 11 too (N36).
    pretrain_cfg = dataclasses.replace(cfg, method='finetune', selection='both', scorer='full',
                                       mask_ratio=cfg.pretrain_mask_ratio, mae_weight=1.0)
    run.start_phase('pretrain', InitialPretraining(pretrain_cfg, run.backbone, run.avm), cfg.pretrain_lr, checkpoint)
    train_task(run, stream.pretrain, plan.batches, 'initial pre-training')
    run.check_finite()
    if get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(run.weights(), path)
        print_rank0(f'initial pre-training saved in {path}')


# ---------------------------------------------------------------------------------- tasks and batches

def list_tasks(cfg, stream):
    """[(name, clips, number of steps)], in order. Multitask trains on all tasks at once, for at most as many steps
    (N26)."""
    steps = [len(make_batches(len(clips), cfg.batch_size, cfg.epochs, cfg.steps, 0)) for clips in stream.train]
    if cfg.method == 'multitask':
        return [('all tasks', ConcatClips(stream.train), sum(steps))]
    return list(zip(stream.names, stream.train, steps))


def make_batches(num_clips, batch_size, epochs, max_steps, seed):
    """The Batches of a phase. An incomplete last batch is dropped; a set smaller than a batch is one batch."""
    batch_size = min(batch_size, num_clips) // get_world_size() * get_world_size()
    if batch_size == 0:
        raise UserError(f'{num_clips} clips cannot be split over {get_world_size()} processes')
    steps = num_clips // batch_size * epochs
    return Batches(num_clips, batch_size, min(steps, max_steps) if max_steps >= 0 else steps, seed)


@dataclass
class Batches:
    """A batch sampler: lists of (clip, seed of its augmentation), from start_step on. The seed determines all batches,
    so a resumed run gets the same ones. Each rank gets its share of every batch."""
    num_clips: int
    batch_size: int
    steps: int
    seed: int
    start_step: int = 0

    def __len__(self):
        return self.steps - self.start_step

    @property
    def steps_per_epoch(self):
        return self.num_clips // self.batch_size

    def __iter__(self):
        generator, steps_per_epoch = torch.Generator().manual_seed(self.seed), self.steps_per_epoch
        for epoch_start in range(0, self.steps, steps_per_epoch):
            order = torch.randperm(self.num_clips, generator=generator)
            seeds = torch.randint(2 ** 62, (self.num_clips,), generator=generator)
            for step in range(max(epoch_start, self.start_step), min(epoch_start + steps_per_epoch, self.steps)):
                start = (step - epoch_start) * self.batch_size
                mine = slice(start + get_rank(), start + self.batch_size, get_world_size())
                yield list(zip(order[mine].tolist(), seeds[mine].tolist()))


def notes_about_size(cfg, tasks):
    """Sentences to print where the stream or the memory leaves little or nothing to forget"""
    clips, notes = sum(len(clips) for _, clips, _ in tasks), []
    if len(tasks) == 1 and cfg.method != 'multitask':
        notes.append('the stream has one task: nothing can be forgotten')
    if cfg.method not in ('finetune', 'multitask') and cfg.memory_size >= clips:
        notes.append(f'--memory-size {cfg.memory_size}: the memory can hold all {clips} training clips, so little can '
                     'be forgotten')
    return notes


def check_batch_sizes(cfg):
    """Every rank must get an equal share, and the AVM at least 3 pairs: with fewer, none is mismatched. Raises
    UserError."""
    world_size = get_world_size()
    for flag, size, has_avm in (('--batch-size', cfg.batch_size, cfg.scores_patches),
                                ('--pretrain-batch-size', cfg.pretrain_batch_size, cfg.pretrain_steps != 0)):
        least = 3 * world_size if has_avm else world_size
        if size % world_size or size < least:
            why = ': the AVM needs three pairs per process' if has_avm else ''
            raise UserError(f'{flag} {size} must be a multiple of {world_size} (processes) and at least {least}{why}')


# ----------------------------------------------------------------------------------- state of a run

class Run:
    """Model, optimizer, and the place in the stream: everything that a checkpoint holds."""

    def __init__(self, cfg, device):
        self.cfg, self.device, self.out = cfg, device, Path(cfg.out)
        torch.manual_seed(cfg.seed)                    # the same weights on all ranks
        self.backbone, self.avm = AudioVideoMAE(cfg).to(device), AVM(cfg.embed_dim, cfg.avm_heads).to(device)
        self.backbone.activation_checkpointing = uses_checkpointing(cfg, device)
        if cfg.compile:
            print_rank0(compile_blocks(self.backbone))
        self.phase, self.task, self.step, self.global_step = 'pretrain', 0, 0, 0
        self.tasks = []                                # [(name, clips, number of steps)], see list_tasks
        self.data = {}                                 # the tasks and a digest of their clips, see `describe`
        self.retrieval_rows = []                       # retrieval: before the first task, and after each
        self.method, self.optimizer = None, None
        self.skipped, self.stop, self.events = SkippedClips(), StopRequest(), None

    def start_phase(self, phase, method, lr, checkpoint=None):
        """Start the initial pre-training or the stream, from its beginning or from a checkpoint."""
        cfg = self.cfg
        self.phase, self.task, self.step = phase, 0, 0
        self.method = method.to(self.device)
        self.optimizer = torch.optim.Adam(method.parameters(), lr=lr, betas=(cfg.beta1, cfg.beta2),
                                          weight_decay=cfg.weight_decay, fused=self.device.type == 'cuda')
        # a seed per phase and rank (2 phases, up to 10,007 ranks), so that the stream is the same whether its initial
        # pre-training was computed or read from the cache
        torch.manual_seed((cfg.seed * 2 + (phase == 'stream')) * 10_007 + get_rank())
        if checkpoint:
            self.restore(checkpoint)

    def weights(self):
        """The model to evaluate → {name: tensor}"""
        eval_model = self.method.eval_model if self.method else self.backbone
        return torch.nn.ModuleDict({'backbone': eval_model, 'avm': self.avm}).state_dict()

    def check_finite(self):
        """Raises UserError, so that NaN is never saved."""
        if not all(x.isfinite().all() for x in self.method.parameters()):
            raise UserError(f'step {self.step}: the weights are not finite; try a smaller --lr. '
                            f'The last checkpoint is {self.out / "last.pt"}')

    def save(self):
        """last.pt from rank 0, and a file with its own state from each further rank."""
        self.check_finite()
        self.skipped.gather()
        if get_rank() == 0:
            self.skipped.write(self.out)
        files = [rank_checkpoint(self.out, rank, self.phase, self.global_step) for rank in range(get_world_size())]
        if get_rank() > 0:
            save_atomically(rank_state(self.method, self.device), files[get_rank()])
        barrier()
        if get_rank() == 0:
            save_atomically(dict(
                config=dataclasses.asdict(self.cfg), processes=get_world_size(), phase=self.phase, task=self.task,
                step=self.step, global_step=self.global_step, rows=self.retrieval_rows, data=self.data,
                skipped=list(self.skipped.lines),
                weights=self.weights(), method=self.method.state_dict(), optimizer=self.optimizer.state_dict(),
                rank_state=rank_state(self.method, self.device)), self.out / 'last.pt')
            remove_old(self.out, 'last.process*.pt', keep=files)
        barrier()                                      # torchrun ends all ranks soon after the first rank exits

    def restore(self, state):
        """The reverse of `save`, after the same phase has started."""
        self.task, self.step, self.global_step = state['task'], state['step'], state['global_step']
        self.retrieval_rows = state['rows']
        # CLS-ER: `weights` holds the stable copy; the method's state then restores the backbone itself
        torch.nn.ModuleDict({'backbone': self.backbone, 'avm': self.avm}).load_state_dict(state['weights'])
        self.method.load_state_dict(state['method'])
        self.optimizer.load_state_dict(state['optimizer'])
        others = [rank_checkpoint(self.out, rank, self.phase, self.global_step)
                  for rank in range(1, state['processes'])]
        if state['processes'] == get_world_size():
            own = state['rank_state'] if get_rank() == 0 else read_checkpoint(others[get_rank() - 1])
            restore_rank_state(own, self.method, self.device, self.global_step)
        else:                                          # another number of processes: new seeds, memory split again
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_step)
            memories = [state['rank_state']['memory']] + [read_checkpoint(file)['memory'] for file in others]
            if memories[0] and memories[0]['rows']:
                self.method.memory.load_state_dict(
                    reshard(memories, get_rank(), get_world_size(), self.method.memory.capacity), self.device)

    def save_model(self, t):
        """models/t.pt: the model after t tasks, for `eval.py`"""
        if get_rank() == 0:
            folder = self.out / 'models'
            folder.mkdir(exist_ok=True)
            save_atomically(dict(config=dataclasses.asdict(self.cfg), weights=self.weights()), folder / f'{t}.pt')
            if not self.cfg.keep_models:
                remove_old(folder, '*.pt', keep=[folder / f'{t}.pt'])

    def open_folder(self, checkpoint):
        """Write config.json, and remove what a killed run left behind."""
        self.out.mkdir(parents=True, exist_ok=True)
        if get_rank() == 0:
            remove_temporary_files(self.out, self.out / 'models', self.out / 'eval')
            write_text(self.out / 'config.json', json.dumps(dataclasses.asdict(self.cfg), indent=1))
            write_text(self.out / 'data.json', json.dumps(self.data, indent=1))
            truncate_log(self.out / 'log.jsonl', checkpoint['global_step'] if checkpoint else 0)


def load_checkpoint(cfg, resume):
    """last.pt of the run, or None at its start. Raises UserError if the folder holds another run."""
    path = Path(cfg.out) / 'last.pt'
    if not path.exists():
        if resume:
            print_rank0(f'{cfg.out} has no checkpoint yet: starting from the beginning')
        return None
    if not resume:
        raise UserError(f'{cfg.out} already holds a run: continue it with --resume, or choose another folder with '
                        '--out')
    checkpoint = read_checkpoint(path)
    if 'rank_state' not in checkpoint:
        raise UserError(f'{path} was written by an older version, which this one can evaluate but not continue')
    changes = config_changes(checkpoint['config'], dataclasses.asdict(cfg))
    if changes:
        raise UserError(f'{cfg.out} was started with other options: {"; ".join(changes[:3])}')
    if checkpoint['processes'] != get_world_size():
        print_rank0(f'{cfg.out} was saved by {checkpoint["processes"]} processes and continues with '
                    f'{get_world_size()}: the memory is split again, and the results are not bit for bit the same')
    return checkpoint


# ------------------------------------------------------------------------------------------ results

def evaluate_retrieval(run, stream):
    """Retrieval with the clips of all tasks as candidates → a row of results. Each rank embeds its share of them."""
    cfg, workers = run.cfg, count_workers(run.cfg.dataset, run.cfg.workers)
    embeddings, task_of, skipped = evaluation.embed_clips([run.method.eval_model], stream.retrieval, run.device,
                                                          cfg.batch_size, workers, cfg.precision)
    if get_rank() == 0:
        run.skipped.add(skipped)
    row = evaluation.retrieval(*embeddings[0], task_of, len(stream.names), run.device, cfg.candidate_sets)
    return dict(row, candidates=len(task_of) // cfg.candidate_sets)


def print_recall(run, name):
    """R@10 on the task just learned, and by chance; for Multitask the mean over all tasks"""
    recalls = []
    for direction in evaluation.DIRECTIONS:
        acc = run.retrieval_rows[-1][direction]['R@10']
        own = acc if run.cfg.method == 'multitask' else acc[run.task:run.task + 1]
        recalls.append(f'{direction.replace("_", " ")} {sum(own) / len(own):.1f} %')
    chance = 100 * min(1, 10 / run.retrieval_rows[-1]['candidates'])
    print_rank0(f'after {name}: R@10 on it: {", ".join(recalls)} (chance {chance:.1f} %)')


def write_results(run, stream):
    """results.json, table.md, figures and report.md"""
    from downstream import report                      # not above: training needs no matplotlib
    from downstream.pictures import draw

    results = evaluation.summarize(run.retrieval_rows[1:], stream.names, run.retrieval_rows[-1]['candidates'])
    skipped = sorted(run.skipped.lines)
    results['initial'] = {direction: run.retrieval_rows[0][direction] for direction in evaluation.DIRECTIONS}
    results |= dict(method=run.cfg.method, clips_left_out=len(skipped), left_out=skipped[:NAMED])
    run.skipped.write(run.out)
    table = evaluation.results_table(run.cfg.method, results)
    write_text(run.out / 'table.md', table + '\n')
    write_text(run.out / 'results.json', json.dumps(results, indent=1))     # after table.md: a run with it has ended
    print(f'\n{table}\n\nin percent; {results["candidates"]} candidates, so chance is R@10 '
          f'{results["chance"]["R@10"]:.1f} %')
    for path in draw(run.out, run.method.eval_model, run.avm, stream, run.cfg, run.device):
        print(f'figure: {path}')
    for path in report.write_report(run.out):
        print(f'report: {path}')
    if skipped:
        print(f'{len(skipped)} clips were skipped: {run.out / "skipped.txt"}')


# --------------------------------------------------------------------------------------------- main

def train(run, checkpoint):
    """Data → initial pre-training → stream → results, from the checkpoint on."""
    cfg = run.cfg
    if cfg.init and not checkpoint and not Path(cfg.init).is_file():
        raise UserError(f'--init {cfg.init}: no such file')
    stream = open_stream(cfg, count_workers(cfg.dataset, cfg.workers))
    check_batches(cfg, stream)
    run.data = describe(stream)
    changes = data_changes(checkpoint.get('data', {}), run.data) if checkpoint else ''
    if changes:
        raise UserError(f'{cfg.out} was started with other data: {changes}')
    run.open_folder(checkpoint)
    if checkpoint:
        run.skipped = SkippedClips(checkpoint['skipped'])
    run.tasks = list_tasks(cfg, stream)
    run.events = event_writer(cfg, checkpoint['global_step'] if checkpoint else 0)
    plan = plan_pretraining(run, stream, checkpoint)
    print_summary(run, stream, plan.summary)
    if get_rank() == 0:
        for note in stream.notes + notes_about_size(cfg, run.tasks):
            print(note)
        run.skipped.add(stream.bad)
        run.skipped.write(run.out)
    if cfg.init and not checkpoint:
        print_rank0(f'--init {load_weights(cfg.init, run.backbone, run.avm)}')
    if not checkpoint or checkpoint['phase'] == 'pretrain':
        pretrain(run, stream, checkpoint, plan)
        checkpoint = None                              # the stream starts from its beginning
    train_stream(run, stream, checkpoint)
    run.skipped.gather()
    if get_rank() == 0:
        write_results(run, stream)


def main(arguments=None):
    """The command line. arguments: list of strings; None: sys.argv[1:]"""
    with cli_errors('the same command with --resume continues'):
        cfg, resume = parse(arguments)
        device = init_distributed(cfg)
        for line in unused_flags(arguments, cfg):
            print_rank0(line)
        check_batch_sizes(cfg)
        check_tensorboard(cfg)
        with run_lock(cfg.out, cfg.cache):
            checkpoint = load_checkpoint(cfg, resume)
            train(Run(cfg, device), checkpoint)
            cleanup()


if __name__ == '__main__':
    main()
