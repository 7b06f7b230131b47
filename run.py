"""A run on disk, written by `train.py` and read by `eval.py`; and all else around its steps that is not the paper.

    config.json     the options                 log.jsonl    loss, samples/s, waiting, memory
    results.json    acc[t][i], A and F          table.md     the same as a table
    models/t.pt     the model after t tasks     last.pt      the checkpoint that --resume reads
    figures/        pictures                    eval/        what `eval.py` found
    report.md       all of it on one page
"""
import dataclasses
import json
import math
import time
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from avm import AVM
from config import FREE_TO_CHANGE, Config, changed, check_config, open_device, with_older_defaults
from memory import split_anew
from model import AudioVideoMAE, compile_blocks
from patches import Sizes, UserError, gathered, patient, rank, world
from processes import peak_memory, say, wait_for_all
from streams.catalogue import open_stream
from streams.workers import count_workers, say_once
from weights import load_weights, read_checkpoint, save_atomically, write_text


# ----------------------------------------------------------------------------------- a run, written

class Run:
    """A run: what it is made of, where it stands, and its folder."""

    def __init__(self, cfg, device):
        self.cfg, self.device, self.out = cfg, device, Path(cfg.out)
        torch.manual_seed(cfg.seed)                    # the same weights in every process
        self.backbone, self.avm = AudioVideoMAE(cfg).to(device), AVM(cfg.embed_dim, cfg.avm_heads).to(device)
        self.phase, self.task, self.step, self.global_step = 'pretrain', 0, 0, 0
        if cfg.compile:
            say(compile_blocks(self.backbone))
        self.rows, self.bad, self.method = [], {}, None    # retrieval after each task; clips left out, with reasons
        self.stepping, self.stop = False, False        # between two steps it can be stopped; set by Ctrl-C

    def start_phase(self, phase, method, lr, checkpoint=None):
        """The initial pre-training or the stream, from its start or from a checkpoint of it."""
        cfg = self.cfg
        self.phase, self.task, self.step = phase, 0, 0
        self.method = method.to(self.device)
        self.optimizer = torch.optim.Adam(method.parameters(), lr=lr, betas=(cfg.beta1, cfg.beta2),
                                          weight_decay=cfg.weight_decay, fused=self.device.type == 'cuda')
        # From here on nothing depends on whether the phase before was computed or read from the cache.
        torch.manual_seed((cfg.seed * 2 + (phase == 'stream')) * 10_007 + rank())     # masks: each process its own
        if checkpoint:
            self.restore(checkpoint)

    def evaluated(self):
        """The backbone that is evaluated: the trained one, unless the method has a better."""
        return getattr(self.method, 'stable', self.backbone)

    def weights(self):
        return torch.nn.ModuleDict({'backbone': self.evaluated(), 'avm': self.avm}).state_dict()

    def own_state(self):
        """What each process has for itself. Masks, selection and memory draw from torch alone."""
        states, memory = {'torch': torch.get_rng_state()}, self.method.memory
        if self.device.type == 'cuda':
            states['cuda'] = torch.cuda.get_rng_state(self.device)
        return dict(random=states, memory=None if memory is None else memory.state_dict())    # an empty one is falsy

    def beside(self, process):
        """The file of a further process. Phase and step are in its name: the end of one phase and the start of the next
        are at the same step, and last.pt may be older than what lies beside it."""
        return self.out / f'last.process{process}.{self.phase}.step{self.global_step}.pt'

    def refuse_nan(self):
        """Before anything is saved. Raises UserError."""
        if not all(x.isfinite().all() for x in self.method.parameters()):
            raise UserError(f'step {self.step}: the weights are no longer finite; try a smaller --lr. The last '
                            f'checkpoint is {self.out / "last.pt"}')

    def save(self):
        """last.pt, and beside it a file of each further process: last.pt says which ones it goes with. Raises UserError
        where the weights are not finite: then the checkpoint of before stays."""
        self.refuse_nan()
        if rank() > 0:
            save_atomically(self.own_state(), self.beside(rank()))
        wait_for_all()
        if rank() == 0:
            save_atomically(dict(
                config=dataclasses.asdict(self.cfg), processes=world(), phase=self.phase, task=self.task,
                step=self.step, global_step=self.global_step, rows=self.rows, bad=list(self.bad),
                weights=self.weights(), method=self.method.state_dict(), optimizer=self.optimizer.state_dict(),
                own=self.own_state()), self.out / 'last.pt')
            for file in set(self.out.glob('last.process*.pt')) - {self.beside(n) for n in range(1, world())}:
                file.unlink()
        wait_for_all()                                 # torchrun ends the others soon after the first has left

    def restore(self, state):
        """A checkpoint, once the phase it belongs to has been started anew."""
        self.task, self.step, self.global_step = state['task'], state['step'], state['global_step']
        self.rows, self.bad = state['rows'], dict.fromkeys(state['bad'])
        torch.nn.ModuleDict({'backbone': self.backbone, 'avm': self.avm}).load_state_dict(state['weights'])
        self.method.load_state_dict(state['method'])
        self.optimizer.load_state_dict(state['optimizer'])
        if state['processes'] == world():
            own = state['own'] if rank() == 0 else read_checkpoint(self.beside(rank()))
            torch.set_rng_state(own['random']['torch'])
            if self.device.type == 'cuda' and 'cuda' in own['random']:
                torch.cuda.set_rng_state(own['random']['cuda'], self.device)
            memory = own['memory']
        else:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_step)     # not what was drawn before
            memories = [state['own']['memory']] + [read_checkpoint(self.beside(number))['memory']
                                                   for number in range(1, state['processes'])]
            memory = memories[0] and split_anew(memories, rank(), world(), self.method.memory.capacity)
        if memory is not None:
            self.method.memory.load_state_dict(memory, self.device)

    def keep_model(self, tasks):
        """models/t.pt: the model after t tasks, for `eval.py`"""
        if rank() == 0:
            folder = self.out / 'models'
            folder.mkdir(exist_ok=True)
            save_atomically(dict(config=dataclasses.asdict(self.cfg), weights=self.weights()), folder / f'{tasks}.pt')
            for file in set(folder.glob('*.pt')) - {folder / f'{tasks}.pt'} if not self.cfg.keep_models else ():
                file.unlink()

    def open_folder(self, checkpoint):
        """The folder as the run goes on in it: options written; what a killed run left half done, taken away."""
        self.out.mkdir(parents=True, exist_ok=True)
        if rank() > 0:
            return
        for file in self.out.rglob('*.tmp'):
            file.unlink()
        write_text(self.out / 'config.json', json.dumps(dataclasses.asdict(self.cfg), indent=1))
        path, reached = self.out / 'log.jsonl', checkpoint['global_step'] if checkpoint else 0
        if path.exists():                              # the steps after the checkpoint are about to be taken again
            whole = [line for line in path.read_text().splitlines() if line.endswith('}')]   # a kill may cut the last
            kept = [line for line in whole if json.loads(line)['global_step'] <= reached]
            write_text(path, ''.join(line + '\n' for line in kept))

    def log(self, **entry):
        if rank() == 0:
            with (self.out / 'log.jsonl').open('a') as file:
                file.write(json.dumps(entry) + '\n')

    def note_bad(self, lines):
        """Name each clip that is left out, once. Whether they are too many was asked before the run (`streams/`)."""
        for line in lines:
            if line and line not in self.bad:
                self.bad[line] = None
                tqdm.write(f'left out: {line}')

    def share_bad(self):
        """Every process met clips of its own."""
        self.bad = {line: None for part in gathered(list(self.bad)) for line in part}


class Steps:
    """The steps of a phase or task while they are taken: counted, shown, logged, and saved now and then."""

    def __init__(self, run, title, total):
        self.run, self.title, self.total, self.waits = run, title, total, []    # seconds that each batch was waited for
        self.asked, self.saved = None, time.monotonic()

    def __enter__(self):
        self.bar = tqdm(total=self.total, initial=self.run.step, desc=self.title, unit='step',
                        disable=None if rank() == 0 else True)
        self.since, self.samples, self.run.stepping = time.perf_counter(), 0, True
        return self

    def __exit__(self, kind, *rest):
        self.bar.close()
        if self.asked and kind is None:
            self.asked[1].wait()
        self.run.stepping = kind is not None           # a stopped step stays stopped

    def count(self, pairs, loss, log):
        """One more, of so many pairs in this process. Raises KeyboardInterrupt where Ctrl-C asked for it."""
        run = self.run
        run.step, run.global_step = run.step + 1, run.global_step + 1
        self.samples += pairs * world()
        if run.step % run.cfg.log_every == 0 or run.step == self.total:
            self.refuse_nan(loss.item())               # only here, for to look at it is to wait for the device
            now = time.perf_counter()
            speed, waited = self.samples / (now - self.since), sum(self.waits) / (now - self.since)
            self.since, self.samples, self.waits[:] = now, 0, []
            run.log(phase=run.phase, task=run.task, step=run.step, global_step=run.global_step, loss=loss.item(),
                    **{n: x.item() for n, x in log.items()}, samples_per_s=round(speed, 2), waited=round(waited, 3),
                    memory_gb=round(peak_memory(run.device), 3))
            waiting = f', waited {100 * waited:.0f} %' if waited >= 0.01 else ''
            self.bar.set_postfix_str(f'loss {loss.item():.3f}, {speed:.1f} samples/s{waiting}')
        self.bar.update()
        stop, save = self.wanted()
        if stop or save:
            run.save()
            self.saved = time.monotonic()
        if stop:
            run.stop = True
            raise KeyboardInterrupt

    def refuse_nan(self, loss):
        """Raises UserError in all processes where the loss of one is not finite."""
        wrong = [value for value in gathered(loss) if not math.isfinite(value)]
        if wrong:
            raise UserError(f'{self.title}, step {self.run.step}: the loss is {wrong[0]}; try a smaller --lr. '
                            f'The last checkpoint is {self.run.out / "last.pt"}')

    def wanted(self):
        """Whether to stop, and whether to save. Of several processes, what any of them wanted a step ago: all know it
        by now, and none waits for the slowest."""
        mine = self.run.stop, rank() == 0 and time.monotonic() - self.saved >= 60 * self.run.cfg.save_every
        if not dist.is_initialized():
            return mine
        before, answers = self.asked, torch.tensor(mine).int()
        self.asked = answers, dist.all_reduce(answers, dist.ReduceOp.MAX, group=patient(), async_op=True)
        if before is None:
            return False, False
        before[1].wait()
        return before[0].bool().tolist()


def open_run(cfg, resume, device):
    """→ (Run, its checkpoint or None). Raises UserError where the folder holds another run."""
    out, checkpoint = Path(cfg.out), None
    if (out / 'last.pt').exists():
        if not resume:
            raise UserError(f'{out} holds a run already: go on with it by --resume, or name another folder by --out')
        checkpoint = read_checkpoint(out / 'last.pt')
        other = changed(checkpoint['config'], dataclasses.asdict(cfg))
        if other:
            raise UserError(f'{out} was started with other options: {"; ".join(other[:3])}')
        edited = (out / 'config.json').exists() and changed(checkpoint['config'], vars(read_config(out)))
        if edited:
            say(f'{out / "config.json"} was edited ({"; ".join(edited[:3])}): that changes nothing, and is undone')
        if checkpoint['processes'] != world():
            before = f'{checkpoint["processes"]} process{"es" * (checkpoint["processes"] > 1)}'
            say(f'{out} was saved by {before} and goes on with {world()}: its memory is dealt out anew, and the '
                'results are as good, but not the same to the bit')
    elif resume:
        say(f'{out} has no checkpoint yet: starting')
    return Run(cfg, device), checkpoint


# -------------------------------------------------------------------------------------- a run, read

class Recorded:
    """A run's folder, or one of its models: what downstream tasks and figures start from. last: of all models only the
    last. Raises UserError where there is no run."""

    def __init__(self, path, workers=-1, device='', last=False):
        path = Path(path)
        if not path.exists():
            raise UserError(f'{path}: there is no such run')
        self.file = None if path.is_dir() else path            # one model instead of all of the run's
        self.folder = path if path.is_dir() else path.parent.parent if path.parent.name == 'models' else path.parent
        self.cfg = read_config(self.folder)
        self.device, self.workers, self.last = open_device(device), count_workers(self.cfg.dataset, workers), last

    @cached_property
    def stream(self):
        return open_stream(dataclasses.replace(self.cfg, batch_size=1, pretrain_steps=0), self.workers)    # no steps

    def models(self):
        """[(t, name, file)]: the model after t tasks, the name being that of the task just learned."""
        if self.file and self.file.parent.name != 'models':    # last.pt, or one of another run
            return [(len(self.stream.names), self.file.stem, self.file)]
        files = sorted((self.folder / 'models').glob('*.pt'), key=lambda file: int(file.stem))
        if not files:
            raise UserError(f'{self.folder / "models"} holds no models: has the run begun?')
        names = ['initial', *self.stream.names]
        found = [(int(file.stem), names[int(file.stem)], file) for file in files]
        if self.cfg.method == 'multitask':                     # its one task is all of them
            found = [(len(self.stream.names), 'all tasks', file) if t else (t, name, file) for t, name, file in found]
        mine = [entry for entry in found if not self.file or entry[2].name == self.file.name]
        return mine[-1:] if self.last else mine

    def load(self, file):
        """→ backbone, avm, on the device, without gradients"""
        saved = read_checkpoint(file)
        theirs = saved.get('config') if isinstance(saved, dict) else None
        edited = theirs and changed(theirs, vars(self.cfg), Sizes.__dataclass_fields__)
        if edited:                                             # of which the shapes of weights need not tell
            raise UserError(f'{self.folder / "config.json"} is not of {file}: {"; ".join(edited[:3])}')
        backbone, avm = AudioVideoMAE(self.cfg), AVM(self.cfg.embed_dim, self.cfg.avm_heads)
        load_weights(file, backbone, avm)
        return tuple(module.to(self.device).eval().requires_grad_(False) for module in (backbone, avm))

    def place(self, name, kind):
        """RUN/eval/name.kind; what is found of one model has a name of its own, beside what was found of all"""
        (self.folder / 'eval').mkdir(exist_ok=True)
        one = f'-{self.file.stem}' if self.file else '-last' if self.last else ''
        return self.folder / 'eval' / f'{name}{one}.{kind}'

    def write(self, name, results, table, figure):
        """RUN/eval/name.json, .md and .png"""
        files = [self.place(name, kind) for kind in ('json', 'md', 'png')]
        files[0].write_text(json.dumps(results, indent=1))
        files[1].write_text(table + '\n')
        figure.savefig(files[2], dpi=130, bbox_inches='tight')
        return files

    def found(self, name, kind):
        """The file of what was found of all models, or else of the last; None where neither is."""
        files = [self.folder / 'eval' / f'{name}{which}.{kind}' for which in ('', '-last')]
        return next(filter(Path.exists, files), None)

    def read(self, name):
        """What `write` left, or None."""
        file = self.found(name, 'json')
        return file and json.loads(file.read_text())

    def tensors(self, name):
        """RUN/eval/name.pt, or None"""
        file = self.found(name, 'pt')
        return file and torch.load(file, weights_only=True)


def read_config(folder):
    """RUN/config.json → Config. What is no option here, and what it lacks, is said. Raises UserError, also where it has
    what no run can have."""
    file, known = Path(folder) / 'config.json', Config.__dataclass_fields__
    try:
        saved = with_older_defaults(dict(json.loads(file.read_text())))
    except (OSError, ValueError, TypeError) as error:
        reason = 'is not there' if isinstance(error, FileNotFoundError) else 'cannot be read'
        raise UserError(f'{folder} is no run of train.py: {file} {reason}')
    for names, means in (([name for name in saved if name not in known], 'no option here, and left aside'),
                         ([name for name in known if name not in {*saved, *FREE_TO_CHANGE}], 'not there: its default')):
        if names and rank() == 0:
            more = f' and {len(names) - 3} more' if names[3:] else ''
            say_once(f'{file}, edited or of another version: {", ".join(names[:3])}{more}: {means}')
    cfg = Config(**{name: value for name, value in saved.items() if name in known})
    try:
        check_config(cfg)
    except UserError as error:
        raise UserError(f'{file}: {error}')
    return cfg
