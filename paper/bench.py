"""Table 2: the cost of each method in samples/s, peak memory, operations, kept activations, and bytes of its memory.

    python -m paper.bench                        the paper's size on a GPU, the small size on a CPU
    python -m paper.bench --size base --batch 9  Table 2's setting
    python -m paper.bench --data DIR             also: how fast a folder's clips load

In:  a model size, a batch size, a device, a precision.
Out: a Markdown table. Each number also as a ratio to DER++'s, beside the paper's ratio where the setting is Table 2's:
     base size, batches of 9, a GPU.

All methods run in one process, in turn, round after round: what slows the machine down slows all of them. Ratios are
within a round; the table has medians over rounds. Batches are random and stay on the device, so loading is not timed. A
sample is a current pair; replayed pairs are work done for it, as in the paper. Operations and kept activations are
counted in batches of at most 9. On a CPU, peak memory is the resident memory above that of Python and torch, with the
rehearsal memory.
"""
import contextlib
import ctypes
import gc
import itertools
import platform
import statistics
import time
import weakref
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401. Loaded by a first step, it would count as the memory of a method
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from avm import AVM, attend
from config import DATASETS, METHODS, Config, preset
from flava import FLAVA, build_method
from model import AudioVideoMAE, compile_blocks
from paper import paper_numbers
from patches import patchify
from scorer import SparseGrid
from streams.catalogue import open_stream
from streams.common import ConcatClips
from streams.loading import Loader, count_workers
from utils.cli import cli_errors, Parser, number
from utils.distributed import autocast, get_device, peak_memory, uses_bf16, uses_checkpointing
from utils.markdown import markdown_table

# name: the options of Config that make it. Multitask costs as Finetune does.
VARIANTS = {**{name: dict(method=name) for name in METHODS if name != 'multitask'},
            'random': dict(selection='random'), 'mats': dict(selection='mats'), 'lava': dict(selection='importance'),
            'flava-grid': dict(scorer='grid'), 'lava-student': dict(selection='importance', scorer='student')}


# ------------------------------------------------------------------------------------ one method

class OperationCounter(TorchDispatchMode):
    """Counts floating-point operations. Not torch's FlopCounterMode: its hooks on modules break GMED's gradient."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in flop_registry:
            self.total += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class Bench:
    """One method, ready to step: its memory is full, and its optimizer has its moments.

    name: one of VARIANTS. precision: of `--precision`. init: the device that draws the initial weights. A CPU draws the
    same weights for every device, a GPU draws them faster.
    """

    def __init__(self, name, size, batch, device, precision, compiled=False, init='cpu'):
        self.cfg = cfg = Config(**{**preset('shapes', size), **VARIANTS[name], 'batch_size': batch})
        # the memory holds only what one step can draw; `memory_bytes` scales its bytes up
        self.memory_size = cfg.memory_size
        cfg.memory_size = cfg.mir_candidates * batch
        self.device, self.precision = device, precision

        torch.manual_seed(0)
        with torch.device(init):
            backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
        backbone.activation_checkpointing = uses_checkpointing(cfg, device)
        self.method = build_method(cfg, backbone, avm).to(device)
        self.note = compile_blocks(backbone) if compiled else ''
        self.optimizer = torch.optim.Adam(self.method.parameters(), lr=1e-5, fused=device.type == 'cuda')
        frames = (batch, cfg.num_frames, 3, cfg.image_size, cfg.image_size)
        self.batch = dict(audio=torch.randn(batch, cfg.audio_frames, cfg.mel_bins, device=device),
                          video=torch.randint(0, 256, frames, dtype=torch.uint8, device=device))

        # fill the memory with copies of the first batch
        self.step()
        memory = self.method.memory
        while memory is not None and memory.seen < memory.capacity:
            memory.add(**memory.sample(batch, device))
        self.step()

    def forward(self):
        with autocast(self.device, self.precision):
            return self.method(self.batch)[0]

    def step(self):
        """One training step → its loss, detached"""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        self.method.after_step()
        return loss.detach()

    def samples_per_s(self, steps):
        steps = -(-steps // self.cycle) * self.cycle    # whole cycles: the steps of a cycle take different times
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize(self.device)
        return steps * self.cfg.batch_size / (time.perf_counter() - start)

    @property
    def cycle(self):
        """Number of steps after which costs repeat: the student learns in one step of several."""
        return self.cfg.scorer_every if self.cfg.scorer == 'student' else 1

    def operations(self, part):
        """Floating-point operations per sample of part(), the mean over a cycle. Attention counts as plain matrix
        products, because the counter does not know every fused kernel."""
        with sdpa_kernel(SDPBackend.MATH), OperationCounter() as counter:
            for _ in range(self.cycle):
                part()
        return counter.total / self.cycle / self.cfg.batch_size

    def score(self):
        """The AVM's scoring pass, on all patches or on the grid's. Nothing in methods without it."""
        if isinstance(self.method, FLAVA):
            patches = patchify(self.batch, self.cfg.patch_size)
            if self.cfg.scorer == 'grid':
                patches = SparseGrid(self.cfg, self.device).subset(patches)
            attend(self.cfg, self.method.backbone, self.method.avm, patches)

    def kept_bytes(self):
        """Bytes per sample that autograd keeps after the forward pass, without the weights; with a student, of a step
        in which the AVM does not teach it."""
        saved = []

        def pack(x):
            x = x.detach()
            saved.append(weakref.ref(x))               # dead once the graph releases the tensor
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            loss = self.forward()                      # holds the graph
        gc.collect()
        storages = [x().untyped_storage() for x in saved if x() is not None]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        del loss
        for parameter in self.method.parameters():
            sizes.pop(parameter.untyped_storage().data_ptr(), None)
        return sum(sizes.values()) / self.cfg.batch_size

    def memory_bytes(self):
        """Bytes of the rehearsal memory, at the size of the options."""
        memory = self.method.memory
        return 0 if memory is None else memory.bytes * self.memory_size / self.cfg.memory_size


# -------------------------------------------------------------------------------- time and memory

def synchronize(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def reset_peak(device):
    """Start a new measurement of peak memory, after releasing what the previous method used."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):              # not Linux: the peak is that of all methods so far
            ctypes.CDLL('libc.so.6').malloc_trim(0)
            Path('/proc/self/clear_refs').write_text('5')


def measure(args, device, precision):
    """→ {method: {samples_per_s: [per round], peak_gb: [per round], operations: [one], kept: [one], …, note}}"""
    found = {name: dict(samples_per_s=[], peak_gb=[]) for name in args.methods}
    reset_peak(device)
    idle = peak_memory(device)                          # on a CPU: Python and torch
    jobs = [(round_number, name) for round_number in range(args.rounds) for name in args.methods]
    for round_number, name in tqdm(jobs, unit='method', leave=False, disable=None):
        # timed: in every round
        reset_peak(device)
        bench = Bench(name, args.size, args.batch, device, precision, args.compile, init=device)
        if args.compile:
            bench.samples_per_s(8)                      # not counted: the compiler may still meet new shapes
        found[name]['samples_per_s'].append(bench.samples_per_s(args.steps))
        found[name]['peak_gb'].append(peak_memory(device) - idle)
        found[name]['note'] = bench.note
        del bench
        if round_number > 0:
            continue
        # counted, the same on every machine: once. Plain attention, which can be counted, needs much memory
        bench = Bench(name, args.size, min(args.batch, 9), device, precision, init=device)
        found[name] |= dict(operations=[bench.operations(bench.step)],
                            scoring=[bench.operations(bench.score) / bench.cycle],
                            kept=[bench.kept_bytes()], memory_bytes=[bench.memory_bytes()])
        del bench
    return found


def loading_speed(args, pin):
    """Samples/s of loading a folder's training clips in random order, without training. Raises UserError."""
    cfg = Config(**{**preset(args.dataset, args.size), 'data': args.data, 'tasks': args.tasks,
                    'batch_size': args.batch, 'pretrain_steps': 0})
    stream = open_stream(cfg, args.workers)
    clips = ConcatClips(stream.train)
    print('\n'.join([*stream.notes, f'{len(clips)} training clips']))

    # keys are (clip, seed of its augmentation); each worker starts with one batch and ends with two that are not timed
    steps, workers = args.rounds * args.steps, max(args.workers, 1)
    order = itertools.cycle(torch.randperm(len(clips), generator=torch.Generator().manual_seed(0)).tolist())
    seeds = itertools.count()
    batches = [[(next(order), next(seeds)) for _ in range(args.batch)] for _ in range(steps + 3 * workers)]
    loaded = iter(Loader(clips, batches, args.workers, pin))
    for _ in range(workers):
        next(loaded)
    start = time.perf_counter()
    for _ in range(steps):
        next(loaded)
    return steps * args.batch / (time.perf_counter() - start)


# -------------------------------------------------------------------------------------- the report

def paper_ratio(name, key):
    """The paper's ratio to DER++: in Table 2, or in Table 3 for its selections"""
    column = {'peak_gb': -2, 'samples_per_s': -1}[key]  # the last two of both tables
    name = 'importance' if name == 'lava' else name     # its --selection
    for costs in (paper_numbers.rows('table_2'), paper_numbers.rows('table_3', 'vggsound')):
        if name in costs:
            return f'{costs[name][column] / costs["der++"][column]:.2f}'
    return '–'


COLUMNS = {   # quantity: (title, unit, digits)
    'samples_per_s': ('samples/s', 1, 2), 'peak_gb': ('peak GB', 1, 2), 'operations': ('Gop/sample', 1e9, 3),
    'kept': ('kept for backward, MB/sample', 1e6, 1), 'memory_bytes': ('rehearsal memory, GB', 1e9, 3)}


def table(found, paper):
    """Markdown: medians over rounds (minimum … maximum), and ratios to DER++. paper: whether to show its ratios"""
    header, rows = ['method'], [[name] for name in found]
    for key, (title, unit, digits) in COLUMNS.items():
        timed = key in ('samples_per_s', 'peak_gb')     # one value a round; the others are counted once
        header += [title, '÷ DER++'] + (['paper'] if paper and timed else [])
        for row, (name, costs) in zip(rows, found.items()):
            middle, low, high = (f'{pick(costs[key]) / unit:.{digits}f}' for pick in (statistics.median, min, max))
            row.append(f'{middle} ({low} … {high})' if timed else middle)
            ratios = [own / other for own, other in zip(costs[key], found.get('der++', {}).get(key, ()))]
            row.append(f'{statistics.median(ratios):.2f}' if ratios else '–')
            row += [paper_ratio(name, key)] if paper and timed else []
    for row, costs in zip(rows, found.values()):
        row.append(f'{costs["scoring"][0] / 1e9:.3f}')
    note = '\n\npaper: the ratio in Table 2, or in Table 3 for a selection; one V100, batches of 9.' if paper else ''
    return markdown_table([*header, 'of Gop/sample: scoring'], rows) + note


# ------------------------------------------------------------------------------- the command line

def read_options(arguments):
    """The words of the command line → the options of the bench"""
    parser = Parser(prog='python -m paper.bench', description='The cost of each method (Table 2).')
    positive = number(int, min=1)
    parser.add_argument('--size', choices=('base', 'small'), help='default: base (the paper\'s) on a GPU, else small')
    parser.add_argument('--batch', type=positive, default=9, help='current pairs per step (default 9, as in Table 2)')
    parser.add_argument('--device', default='', help='cuda or cpu; default: cuda if available')
    parser.add_argument('--precision', choices=('auto', 'fp32', 'bf16'), default='auto', help='as train.py\'s')
    parser.add_argument('--compile', action='store_true', help='compile the transformer blocks with torch.compile')
    parser.add_argument('--methods', nargs='+', choices=list(VARIANTS), metavar='NAME',
                        help=f'default: all; with --data: flava. Of {", ".join(VARIANTS)}')
    parser.add_argument('--rounds', type=positive, default=5, help='rounds, each with all methods (default 5)')
    parser.add_argument('--steps', type=positive, default=10, help='timed steps per round (default 10)')
    parser.add_argument('--data', help='folder of clips (streams/README.md): measure how fast they load')
    parser.add_argument('--dataset', choices=[name for name in DATASETS if name != 'shapes'], default='vggsound')
    parser.add_argument('--tasks', default='', help='CSV file with the columns class,task; default: the paper\'s tasks')
    parser.add_argument('--workers', type=number(int, min=-1), default=-1, help='data loader processes')
    return parser.parse_args(arguments)


def main(arguments=None):
    """The command line."""
    args = read_options(arguments)
    with cli_errors():
        device = get_device(args.device)
        gpu = device.type == 'cuda'
        args.size = args.size or ('base' if gpu else 'small')
        args.methods = args.methods or (['flava'] if args.data else list(VARIANTS))
        precision = 'bf16' if uses_bf16(device, args.precision) else 'fp32'
        machine = (torch.cuda.get_device_name(device) if gpu
                   else f'{platform.machine()}, {torch.get_num_threads()} threads')
        kind = precision + (', compiled' if args.compile else '')
        print(f'size {args.size}, batches of {args.batch}, {kind}, {machine}, torch {torch.__version__}; '
              f'{args.rounds} rounds of {args.steps} steps\n')

        if args.data:
            args.workers = count_workers(args.dataset, args.workers)
            speed = loading_speed(args, pin=gpu)
            print(f'loading: {speed:.2f} samples/s, {args.workers} workers. Loading is the bottleneck of methods with '
                  'more samples/s.\n')
        found = measure(args, device, precision)
        for name, costs in found.items() if args.compile else ():
            print(f'{name}: {costs["note"]}')
        print(table(found, args.size == 'base' and args.batch == 9 and gpu))


if __name__ == '__main__':
    main()
