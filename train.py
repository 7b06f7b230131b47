"""Algorithm 1: a stream of tasks, a method, a step; after each task, retrieval.

    python train.py                                    FLAVA on the built-in data, at small size
    python train.py --dataset vggsound --data DIR      the paper's main experiment
    torchrun --nproc_per_node 4 train.py ...           the same on four GPUs

In:  options, of which `--help` lists all. Out: a folder with config.json, log.jsonl, results.json, table.md, figures/,
models/ (one after each task, for `eval.py`) and last.pt, from which `--resume` goes on after any interruption, on a CPU to
the same results bit for bit.
"""
import dataclasses
import datetime
import gc
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import eval as evaluation
import figures
from avm import AVM
from config import FREE_TO_CHANGE, exit_politely, open_device, parse
from datasets import count_workers, open_stream
from methods import InitialPretraining, build
from model import AudioVideoMAE, Sizes, UserError
from weights import load_weights, read_checkpoint


# ------------------------------------------------------------------------- processes, random states

def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def start_processes(cfg):
    """Under torchrun, join the other processes. Returns this one's device."""
    device = open_device(cfg.device)
    if device.type == 'cuda':
        torch.cuda.set_device(device if device.index is not None else int(os.environ.get('LOCAL_RANK', 0)))
        device = torch.device('cuda', torch.cuda.current_device())
    if 'RANK' in os.environ:
        # The first process evaluates while the others wait for it: an hour is too short for a large test set on a slow disk.
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=datetime.timedelta(hours=6))
    return device


def leave_processes():
    """The group's threads must be gone before Python is: killed in the middle of C++ they would abort the process."""
    if dist.is_initialized():
        dist.barrier()
        gc.collect()                                   # what remains of DDP refers to itself, and holds the group
        dist.destroy_process_group()


def seed_everything(seed):
    """Each process draws masks and selections of its own."""
    seed = seed * 10_007 + rank()
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)


def random_states(device):
    states = {'torch': torch.get_rng_state()}   # masks, selection and memory draw from torch alone
    if device.type == 'cuda':
        states['cuda'] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states, device):
    torch.set_rng_state(states['torch'])
    if device.type == 'cuda' and 'cuda' in states:
        torch.cuda.set_rng_state(states['cuda'], device)


# ------------------------------------------------------------------------------------ data order

class Union(Dataset):
    """Several tasks' clips as one (Multitask)."""

    def __init__(self, datasets):
        self.at = [(dataset, i) for dataset in datasets for i in range(len(dataset))]

    def __len__(self):
        return len(self.at)

    def __getitem__(self, key):
        (dataset, index), seed = self.at[key[0]], key[1]
        return dict(dataset[index, seed], clip=key[0])


def plan(clips, batch_size, epochs, max_steps, seed):
    """The batches of a phase, all of them, before it begins: a list of lists of (clip, seed of its augmentation).

    So a resumed run need only go on at a place in the list. A task smaller than a batch trains on the smaller batch; an
    incomplete last batch is dropped. Under several processes each gets its part of every batch.
    """
    processes = world()
    batch_size = min(batch_size, clips) // processes * processes
    if batch_size == 0:
        raise UserError(f'{clips} clips cannot be split over {processes} processes')
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(clips, generator=generator).tolist()
        seeds = torch.randint(2 ** 62, (clips,), generator=generator).tolist()
        for start in range(0, clips - batch_size + 1, batch_size):
            if len(batches) == max_steps:
                return batches
            one = slice(start + rank(), start + batch_size, processes)
            batches.append(list(zip(order[one], seeds[one])))
    return batches


# ----------------------------------------------------------------------------------- checkpoints

def save_atomically(content, path):
    """Write to a temporary file, then rename: whatever happens meanwhile, `path` is whole. Raises UserError when the disk
    is full."""
    temporary = Path(f'{path}.{os.getpid()}.tmp')      # two runs may finish the same initial pre-training
    try:
        with open(temporary, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:   # torch reports a failed write as a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f'; the last checkpoint, {path}, is intact' if Path(path).exists() else ''
        raise UserError(f'could not write {path}: {getattr(error, "strerror", None) or "is the disk full?"}{kept}. '
                        'Make room and go on with --resume.')


def write_text(path, text):
    temporary = Path(f'{path}.{os.getpid()}.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)


# ------------------------------------------------------------------------------------------ run

class Run:
    """A run: what it is made of, where it stands, and its folder."""

    def __init__(self, cfg, device):
        self.cfg, self.device, self.out = cfg, device, Path(cfg.out)
        torch.manual_seed(cfg.seed)                    # the same weights in every process
        self.backbone, self.avm = AudioVideoMAE(cfg).to(device), AVM(cfg.embed_dim, cfg.avm_heads).to(device)
        self.phase, self.task, self.step, self.global_step = 'pretrain', 0, 0, 0
        self.rows, self.bad = [], []                   # retrieval after each task; clips left out, with reasons
        self.method = self.optimizer = None
        self.stepping, self.stop = False, False        # between two steps it can be stopped; set by Ctrl-C

    def start_phase(self, phase, method, lr):
        cfg = self.cfg
        self.phase, self.task, self.step = phase, 0, 0
        self.method = method.to(self.device)
        self.optimizer = torch.optim.Adam(method.parameters(), lr=lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay)
        # From here on nothing depends on whether the phase before was computed or read from the cache.
        seed_everything(cfg.seed * 2 + (phase == 'stream'))

    def own_state(self):
        """What each process has for itself."""
        memory = self.method.memory
        return dict(random=random_states(self.device), memory=None if memory is None else memory.state_dict())   # `is`: an empty one is falsy

    def beside(self, process):
        """The file of a further process. Phase and step are in its name: the end of one phase and the start of the next are
        at the same step, and last.pt may be older than what lies beside it."""
        return self.out / f'last.process{process}.{self.phase}.step{self.global_step}.pt'

    def save(self):
        """last.pt, and beside it a file of each further process: last.pt says which ones it goes with."""
        if rank() > 0:
            save_atomically(self.own_state(), self.beside(rank()))
        if dist.is_initialized():
            dist.barrier()
        if rank() == 0:
            save_atomically(dict(
                config=dataclasses.asdict(self.cfg), processes=world(), phase=self.phase, task=self.task, step=self.step,
                global_step=self.global_step, rows=self.rows, bad=self.bad, weights=self.weights(),
                method=self.method.state_dict(), optimizer=self.optimizer.state_dict(), own=self.own_state()), self.out / 'last.pt')
            for file in set(self.out.glob('last.process*.pt')) - {self.beside(process) for process in range(1, world())}:
                file.unlink()

    def evaluated(self):
        """The backbone that is evaluated: the trained one, unless the method has a better"""
        return getattr(self.method, 'stable', self.backbone)

    def weights(self):
        return {**{f'backbone.{n}': x for n, x in self.evaluated().state_dict().items()},
                **{f'avm.{n}': x for n, x in self.avm.state_dict().items()}}

    def load_weights(self, weights):
        torch.nn.ModuleDict({'backbone': self.backbone, 'avm': self.avm}).load_state_dict(weights)

    def restore(self, state):
        """The rest of a checkpoint, once the phase it belongs to has been started anew."""
        self.task, self.step, self.global_step = state['task'], state['step'], state['global_step']
        self.rows, self.bad = state['rows'], state['bad']
        self.load_weights(state['weights'])
        self.method.load_state_dict(state['method'])
        self.optimizer.load_state_dict(state['optimizer'])
        own = state['own'] if rank() == 0 else read_checkpoint(self.beside(rank()))
        set_random_states(own['random'], self.device)
        if own['memory'] is not None:
            self.method.memory.load_state_dict(own['memory'])

    def keep_model(self, tasks):
        """models/t.pt: the model after t tasks, for `eval.py`"""
        if rank() == 0:
            folder = self.out / 'models'
            folder.mkdir(exist_ok=True)
            save_atomically(dict(config=dataclasses.asdict(self.cfg), weights=self.weights()), folder / f'{tasks}.pt')
            if not self.cfg.keep_models:
                for file in folder.glob('*.pt'):
                    if file.stem != str(tasks):
                        file.unlink()

    def log(self, **entry):
        if rank() == 0:
            with open(self.out / 'log.jsonl', 'a') as file:
                file.write(json.dumps(entry) + '\n')

    def forget_log_after(self, global_step):
        """The steps after the checkpoint are about to be taken again."""
        path = self.out / 'log.jsonl'
        if rank() == 0 and path.exists():
            whole = [line for line in path.read_text().splitlines() if line.endswith('}')]   # a kill may cut the last
            write_text(path, ''.join(line + '\n' for line in whole if json.loads(line)['global_step'] <= global_step))

    def note_bad(self, lines):
        """Name each clip that is left out, once. Whether they are too many was asked before the run (`datasets.vggsound`)."""
        for line in lines:
            if line and line not in self.bad:
                self.bad.append(line)
                tqdm.write(f'left out: {line}')

    def share_bad(self):
        """Every process met clips of its own."""
        if dist.is_initialized():
            found = [None] * world()
            dist.all_gather_object(found, self.bad)
            self.bad = list(dict.fromkeys(line for lines in found for line in lines))


def train_on(run, dataset, batches, title):
    """The steps of one phase or task that are still to be taken, from run.step on."""
    cfg, device = run.cfg, run.device
    parallel = DistributedDataParallel(run.method, broadcast_buffers=False) if dist.is_initialized() else run.method
    loader = DataLoader(dataset, batch_sampler=batches[run.step:], num_workers=count_workers(cfg.dataset, cfg.workers), pin_memory=device.type == 'cuda',
                        generator=torch.Generator())          # its own: workers' seeds must not use up the masks' randomness
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False))
    with tqdm(total=len(batches), initial=run.step, desc=title, unit='step', disable=None if rank() == 0 else True) as bar:
        since, samples, run.stepping = time.perf_counter(), 0, True
        for batch in loader:
            run.note_bad(batch['bad'])
            batch = {name: batch[name].to(device, non_blocking=True) for name in ('audio', 'video')}
            with autocast:
                loss, log = parallel(batch)
            if not torch.isfinite(loss):
                raise UserError(f'{title}, step {run.step}: the loss is {loss.item()}; try a smaller --lr. '
                                f'The last checkpoint is {run.out / "last.pt"}')
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            run.optimizer.step()
            if hasattr(run.method, 'after_step'):
                run.method.after_step()

            run.step += 1
            run.global_step += 1
            samples += len(batch['audio']) * world()
            if run.step % cfg.log_every == 0 or run.step == len(batches):
                speed, since, samples = samples / (time.perf_counter() - since), time.perf_counter(), 0
                run.log(phase=run.phase, task=run.task, step=run.step, global_step=run.global_step, loss=loss.item(),
                        **{name: part.item() for name, part in log.items()}, samples_per_s=round(speed, 2))
                bar.set_postfix_str(f'loss {loss.item():.3f}, {speed:.1f} samples/s')
            bar.update()
            if run.stop or run.step % cfg.save_every == 0:
                run.save()
            if run.stop:
                raise KeyboardInterrupt
        run.stepping = False


def pretraining_cache(cfg, device, clips):
    """The file that holds this initial pre-training on so many clips: its name depends on all that its result depends on."""
    fields = {f.name for f in dataclasses.fields(Sizes)} | {
        'dataset', 'data', 'tasks', 'init', 'seed', 'beta1', 'beta2', 'weight_decay', 'pretrain_epochs', 'pretrain_steps',
        'pretrain_lr', 'pretrain_batch_size', 'pretrain_data', 'pretrain_mask_ratio', 'lam', 'tau', 'beta', 'max_silent', 'clips_per_class'}
    lists = [path for folder in (cfg.data, cfg.pretrain_data) if folder for path in sorted(Path(folder).glob('*.csv'))]
    files = [path for path in (cfg.init, cfg.tasks, *lists) if path and os.path.exists(path)]
    text = json.dumps([{name: getattr(cfg, name) for name in sorted(fields)}, world(), device.type, clips,
                       [(os.path.getsize(file), os.path.getmtime(file)) for file in files]])
    return Path(cfg.cache) / f'initial-{cfg.dataset}-{cfg.size}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pt'


def agreed(answer):
    """The first process's answer, for all: what one sees on the disk, the next may see a moment later."""
    answers = [answer]
    if dist.is_initialized():
        dist.broadcast_object_list(answers)
    return answers[0]


def pretrain(run, stream, checkpoint):
    """Initial pre-training on the clips of classes of no task (App. B): once, then read from the cache."""
    cfg, path = run.cfg, pretraining_cache(run.cfg, run.device, len(stream.pretrain))
    if cfg.pretrain_steps == 0 or len(stream.pretrain) == 0:
        if cfg.pretrain_steps != 0:
            say('no clips of classes of no task: no initial pre-training (--pretrain-data or --init would give a start)')
        return
    if not checkpoint and agreed(path.exists()):
        say(f'initial pre-training: {load_weights(path, run.backbone, run.avm)}')
        return
    # The same code as the stream's, with the pre-training's own numbers.
    own = dataclasses.replace(cfg, mask_ratio=cfg.pretrain_mask_ratio, mae_weight=1.0)
    run.start_phase('pretrain', InitialPretraining(own, run.backbone, run.avm), cfg.pretrain_lr)
    if checkpoint:
        run.restore(checkpoint)
    batches = plan(len(stream.pretrain), cfg.pretrain_batch_size, cfg.pretrain_epochs, cfg.pretrain_steps, cfg.seed)
    train_on(run, stream.pretrain, batches, 'initial pre-training')
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(run.weights(), path)
        say(f'initial pre-training is kept in {path}')


def learn_stream(run, stream, checkpoint):
    """Algorithm 1: task after task, of whose borders the method is told nothing; retrieval after each."""
    cfg = run.cfg
    names, parts = stream.names, list(zip(stream.names, stream.train))
    sizes = [len(plan(len(d), cfg.batch_size, cfg.epochs, cfg.steps, 0)) for d in stream.train]
    if cfg.method == 'multitask':
        parts, sizes = [('all tasks', Union(stream.train))], [sum(sizes)]
    run.start_phase('stream', build(cfg, run.backbone, run.avm), cfg.lr)
    if checkpoint:
        run.restore(checkpoint)
    else:
        run.rows = [evaluate(run, stream)]                     # row 0: before the first task
        run.keep_model(0)
        run.save()
    while run.task < len(parts):
        name, dataset = parts[run.task]
        steps, epochs = sizes[run.task], cfg.epochs
        batches = plan(len(dataset), cfg.batch_size, epochs, steps, cfg.seed * 1000 + 1 + run.task)
        if run.step < len(batches):
            train_on(run, dataset, batches, f'task {run.task + 1}/{len(parts)} {name}')
            run.save()                                         # what is learned outlives an interrupted evaluation
        run.rows = run.rows + [evaluate(run, stream)]
        acc = [run.rows[-1][direction]['R@10'] for direction in evaluation.DIRECTIONS] if rank() == 0 else None
        if rank() == 0:
            own = range(len(names)) if cfg.method == 'multitask' else [run.task]
            say(f'after {name}: R@10 of it ' + ', '.join(
                f'{d.replace("_", " ")} {sum(a[i] for i in own) / len(own):.1f} %' for d, a in zip(evaluation.DIRECTIONS, acc)))
        run.task, run.step = run.task + 1, 0
        run.keep_model(run.task)
        run.save()


def evaluate(run, stream):
    """Retrieval with all tasks' clips as candidates, by the first process → a row of results, None in the others."""
    row = None
    if rank() == 0:
        c_a, c_v, task_of, bad = evaluation.embed_clips(run.evaluated(), stream.test, run.device, run.cfg.batch_size,
                                                        count_workers(run.cfg.dataset, run.cfg.workers))
        run.note_bad(bad)
        row = dict(evaluation.retrieval(c_a, c_v, task_of, len(stream.names)), candidates=len(task_of))
    if dist.is_initialized():
        dist.barrier()
    return row


def say(line):
    if rank() == 0:
        tqdm.write(line)


def finish(run, stream):
    """The table, results.json and the figures."""
    results = evaluation.summarize(run.rows[1:], stream.names, run.rows[-1]['candidates'])
    results['initial'] = {d: {k: run.rows[0][d][k] for k in run.rows[0][d]} for d in evaluation.DIRECTIONS}
    results['method'], results['clips_left_out'] = run.cfg.method, len(run.bad)
    table = evaluation.table(run.cfg.method, results)
    write_text(run.out / 'results.json', json.dumps(results, indent=1))
    write_text(run.out / 'table.md', table + '\n')
    say('\n' + table + f'\n\nin percent; {results["candidates"]} candidates, so chance is R@10 {results["chance"]["R@10"]:.1f} %')
    for path in figures.draw(run.out, run.evaluated(), run.avm, stream, run.cfg, run.device):
        say(f'figure: {path}')
    if run.bad:
        say(f'{len(run.bad)} clips were left out')


def open_run(cfg, resume, device):
    """→ (Run, its checkpoint or None). Raises UserError where the folder holds another run."""
    out = Path(cfg.out)
    checkpoint = None
    if (out / 'last.pt').exists():
        if not resume:
            raise UserError(f'{out} holds a run already: go on with it by --resume, or name another folder by --out')
        checkpoint = read_checkpoint(out / 'last.pt')
        mine = dataclasses.asdict(cfg)
        theirs = checkpoint['config']
        mine['init'], theirs['init'] = Path(mine['init']).name, Path(theirs['init']).name   # the checkout may have moved
        other = [f'--{n.replace("_", "-")} was {theirs.get(n)!r}, now {v!r}' for n, v in mine.items()
                 if n not in FREE_TO_CHANGE and theirs.get(n) != v]
        if other:
            raise UserError(f'{out} was started with other options: {"; ".join(other[:3])}')
        if checkpoint['processes'] != world():
            raise UserError(f'{out} was started with {checkpoint["processes"]} processes, not {world()}')
    elif resume:
        say(f'{out} has no checkpoint yet: starting')
    return Run(cfg, device), checkpoint


def open_data(cfg):
    """The first process tests the clips; the others then find its findings in the cache."""
    stream = open_stream(cfg, cfg, count_workers(cfg.dataset, cfg.workers)) if rank() == 0 else None
    if dist.is_initialized():
        dist.barrier()
    return stream or open_stream(cfg, cfg, count_workers(cfg.dataset, cfg.workers))


def stop_gently(run):
    """The first Ctrl-C ends the step, saves and leaves; a second one leaves at once. Several processes would stop at
    different steps, so there it only leaves."""
    process = os.getpid()

    def handler(number, frame):
        if os.getpid() != process:                     # a worker that loads clips inherits this handler: Ctrl-C is not
            return os._exit(143) if number == signal.SIGTERM else None    # meant for it, but being told to end is
        if run.stop or world() > 1 or not run.stepping:
            raise KeyboardInterrupt
        run.stop = True
        tqdm.write('stopping after this step (again: at once)')
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def main(arguments=None):
    """Options → data → initial pre-training → stream → table. arguments: the command line's words, or sys.argv's"""
    with exit_politely('the same command with --resume goes on'):
        cfg, resume = parse(arguments)
        device = start_processes(cfg)
        run, checkpoint = open_run(cfg, resume, device)
        stop_gently(run)
        stream = open_data(cfg)
        run.out.mkdir(parents=True, exist_ok=True)
        for file in run.out.rglob('*.tmp') if rank() == 0 else ():
            file.unlink()                              # of a run that was killed while it wrote
        for note in stream.notes:
            say(note)
        if rank() == 0:
            write_text(run.out / 'config.json', json.dumps(dataclasses.asdict(cfg), indent=1))
            run.note_bad(stream.bad)
        if cfg.init and not checkpoint:
            say(f'--init {load_weights(cfg.init, run.backbone, run.avm)}')
        run.forget_log_after(checkpoint['global_step'] if checkpoint else 0)
        if not checkpoint or checkpoint['phase'] == 'pretrain':
            pretrain(run, stream, checkpoint)
            checkpoint = None
        learn_stream(run, stream, checkpoint)
        run.share_bad()
        if rank() == 0:
            finish(run, stream)
        leave_processes()


if __name__ == '__main__':
    main()
