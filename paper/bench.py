"""Table 2: what each method costs: samples/s, memory while training, operations, bytes in the rehearsal memory.

In:  a size of the model, a batch size, a device, a precision.
Out: a Markdown table, and with --out a JSON file; each figure also as a ratio to DER++'s. Where the setting is
     Table 2's (base size, batches of 9, a GPU), the paper's ratio stands beside it.

    python -m paper.bench                        the paper's size on a GPU, a small one without
    python -m paper.bench --size base --batch 9
    python -m paper.bench --data DIR             instead: FLAVA beside the loading of clips (`loading.py`)

Peak memory is what the process takes beyond Python and torch: weights, gradients, moments, activations; on a CPU also
the rehearsal memory of some batches, which otherwise lies beside the GPU's. All methods run in one process, in turn,
round after round, so that what disturbs the machine disturbs all; a ratio is taken within a round, and medians are over
rounds. Batches are random and lie on the device: steps are timed, loading is not. What is kept for the backward pass,
and how often a step waits for the device, is counted, and the same on every machine. A sample is a pair of the current
stream; the replayed ones beside it are work done for it, as in the paper.
"""
import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
import weakref
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from avm import AVM, score
from baselines import METHODS, WITHOUT_ATTENTION, build
from config import PRESETS, Config, check_config, exit_politely, one_of, open_device
from memory import Memory
from model import AudioVideoMAE, compile_blocks
from paper import loading, printed
from patches import COUNT, WORKERS, UserError, whole
from run import write_text
from streams.catalogue import DATASETS
from streams.workers import count_workers
from weights import check_writable

NAMES = [name for name in METHODS if name != 'multitask'] + list(WITHOUT_ATTENTION)   # Multitask costs as Finetune does
CLIPS, EPOCHS = {'VGGSound': 58_573, 'AudioSet': 155_643}, 10      # the tasks' training clips, Fig. 6 (c)
ON_DISK = [name for name in DATASETS if name != 'shapes']


# ------------------------------------------------------------------------------------ one method

def options_of(name, size, batch):
    """→ Config of one method, and --memory-size: the memory holds only what a step can draw, its bytes are scaled up
    later."""
    chosen = dict(method='flava', selection=name) if name in WITHOUT_ATTENTION else dict(method=name)
    cfg = Config(**{**PRESETS[size], **chosen, 'size': size, 'batch_size': batch})
    full = cfg.memory_size
    cfg.memory_size = cfg.mir_candidates * batch
    check_config(cfg)
    return cfg, full


def random_batch(s, batch, device):
    """{audio (B, t, f), video (B, T, 3, H, W) uint8} of the sizes s, on the device"""
    shape = batch, s.num_frames, 3, s.image_size, s.image_size
    return dict(audio=torch.randn(batch, s.audio_frames, s.mel_bins, device=device),
                video=torch.randint(0, 256, shape, dtype=torch.uint8, device=device))


class Training:
    """One method, ready to step: its memory is full and its optimizer has its moments."""

    def __init__(self, name, size, batch, device, precision, compiled=False):
        self.cfg, self.full_memory = options_of(name, size, batch)
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        backbone, avm = AudioVideoMAE(self.cfg), AVM(self.cfg.embed_dim, self.cfg.avm_heads)
        self.method = build(self.cfg, backbone, avm).to(device)
        self.said = compile_blocks(backbone) if compiled else ''
        self.optimizer = torch.optim.Adam(self.method.parameters(), lr=1e-5, betas=(self.cfg.beta1, self.cfg.beta2),
                                          fused=device.type == 'cuda')
        self.batch = random_batch(self.cfg, batch, device)
        self.step()                                            # fills a first batch's rows of the memory …
        memory = self.method.memory
        while memory is not None and len(memory) < memory.capacity:
            memory.add(**{key: rows[:batch] for key, rows in memory.rows.items()})   # … of which the others are copies
        self.step()

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss, _ = self.method(self.batch)
        loss.backward()
        self.optimizer.step()
        if hasattr(self.method, 'after_step'):
            self.method.after_step()

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16', cache_enabled=False)

    def learn(self, batch):
        """A step, to its end, on loaded clips {audio (B, t, f), video (B, T, 3, H, W)}"""
        self.batch = {name: batch[name].to(self.device, non_blocking=True) for name in ('audio', 'video')}
        self.step()
        wait(self.device)

    def operations(self, part):
        """Floating-point operations per sample of what `part` does. Attention as plain products: not every fused kernel
        is known to the counter."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            part()
        return counter.get_total_flops() / self.cfg.batch_size

    def score(self):
        """What scores all patches, where a method does."""
        if hasattr(self.method, 'avm'):
            score(self.cfg, self.method.backbone, self.method.avm, whole(self.batch, self.cfg.patch_size))

    def kept(self):
        """Bytes per sample that autograd holds for the backward pass when the forward pass is done, weights aside."""
        weights = {x.untyped_storage().data_ptr() for x in self.method.parameters()}
        held = weakref.WeakSet()                               # what the graph lets go of leaves it

        def pack(x):
            one = lambda x=x.detach(): x                       # not x, which would hold the graph that holds it
            held.add(one)
            return one

        with saved_tensors_hooks(pack, lambda one: one()), self.autocast():
            loss, _ = self.method(self.batch)
        gc.collect()
        storages = {(part := one().untyped_storage()).data_ptr(): part.nbytes() for one in held}
        return sum(size for at, size in storages.items() if at not in weights) / self.cfg.batch_size

    def waits(self):
        """How often a step makes the host wait for the device; the optimizer's, which is torch's, aside."""
        with Waits() as counted, self.autocast():
            self.method(self.batch)[0].backward()
        return counted.number

    def profile(self):
        """The five operations that take most of a step: (name, share of the device's time)"""
        gpu = self.device.type == 'cuda'
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * gpu
        with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
            self.step()
            wait(self.device)
        own = lambda event: event.self_device_time_total if gpu else event.self_cpu_time_total
        events = sorted(profiler.key_averages(), key=own, reverse=True)
        return [(event.key, own(event) / max(1, sum(map(own, events)))) for event in events[:5]]

    @torch.compiler.set_stance('force_eager')
    def counts(self):
        """What need not be timed, of blocks that are not compiled."""
        return dict(operations=self.operations(self.step), scoring=self.operations(self.score), kept=self.kept(),
                    waits=self.waits(), memory_bytes=self.bytes_in_memory(), profile=self.profile())

    def bytes_in_memory(self):
        """Of the rehearsal memory at full size (--memory-size pairs; FLAVA+: as many more as fit)"""
        memory = self.method.memory or Memory(1)
        return memory.bytes * self.full_memory / self.cfg.memory_size


class Waits(TorchDispatchMode):
    """Counts what makes the host wait: numbers that it asks for, choices by a mask, copies that it stands by."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation.name()
        out = operation(*args, **kwargs)
        self.number += name in ('aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select', 'aten::equal')
        if name.startswith('aten::index') and isinstance(args[1], (list, tuple)):
            self.number += any(getattr(index, 'dtype', None) is torch.bool for index in args[1])
        if name in ('aten::_to_copy', 'aten::copy_'):
            elsewhere = getattr(args[name == 'aten::copy_'], 'device', out.device).type != out.device.type
            self.number += elsewhere and not kwargs.get('non_blocking', args[2] if len(args) > 2 else False)
        return out


# -------------------------------------------------------------------------------- time and memory

def timed(training, steps):
    """samples/s over so many steps"""
    wait(training.device)
    start = time.perf_counter()
    for _ in range(steps):
        training.step()
    wait(training.device)
    return steps * training.cfg.batch_size / (time.perf_counter() - start)


def wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def forget_peak(device):
    """From here on the peak is counted anew. What Python and the allocator keep of the method before is given back.
    Raises UserError where that cannot be had."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')          # Linux: the peak resident size is now the present one
    except OSError as error:
        raise UserError('on a CPU, peak memory is read from Linux\'s /proc/self, which is not to be had here '
                        f'({error})')


def peak(device):
    """GB: CUDA's allocator's, or this process's resident size"""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024 / 1e9


def measure(names, size, batch, device, precision, rounds, steps, compiled=False):
    """→ {method: {samples_per_s: [per round], peak_gb: [per round], and what `Training.counts` finds}}"""
    found = {name: dict(samples_per_s=[], peak_gb=[]) for name in names}
    forget_peak(device)
    idle = peak(device)                                        # on a CPU: Python and torch themselves
    with tqdm(total=rounds * len(names), unit='method', leave=False, disable=None) as bar:
        for number in range(rounds):
            for name in names:
                bar.set_description(f'round {number + 1}/{rounds}: {name}')
                forget_peak(device)
                training = Training(name, size, batch, device, precision, compiled)
                if compiled and number == 0:
                    tqdm.write(f'{name}: {training.said}')
                found[name]['samples_per_s'].append(timed(training, steps))
                found[name]['peak_gb'].append(peak(device) - idle)
                if number == 0:
                    found[name] |= training.counts()
                del training
                bar.update()
    return found


# -------------------------------------------------------------------------------------- the table

def printed_ratio(name, key):
    """What the paper's own figure is of DER++'s, in Table 2, or in Table 3 for its selections"""
    column = {'peak_gb': -2, 'samples_per_s': -1}[key]         # the last two of either table
    for costs in (printed.rows('table_2'), printed.rows('table_3', 'vggsound')):
        if name in costs:
            return f'{costs[name][column] / costs["der++"][column]:.2f}'
    return '–'


PRINTED = ('paper: the ratio in Table 2, or for a selection in Table 3; on one V100, in batches of 9, in a precision '
           'that it does not say.')
NOT_PRINTED = 'The paper\'s ratios are left out: they are of the base size, batches of 9, on a GPU (V100).'


def as_in_table_2(size, batch, device):
    """Is it what Table 2 measured, the kind of GPU aside?"""
    return size == 'base' and batch == 9 and device.type == 'cuda'


def table(found, beside_paper):
    """Markdown: medians over rounds (lowest … highest), and ratios to DER++, beside the paper's where it may be."""
    reference = found.get('der++')
    paper = ' | paper' if beside_paper else ''
    header = (f'| method | samples/s | ÷ DER++{paper} | peak GB | ÷ DER++{paper} | Gop/sample | ÷ DER++ '
              '| of which scoring | kept for backward, MB/sample | ÷ DER++ | waits/step '
              '| rehearsal memory, GB | ÷ DER++ |')
    lines = [header, '| --- ' * (header.count('|') - 1) + '|']
    for name, of in found.items():
        cells = [name]
        for key in ('samples_per_s', 'peak_gb'):
            values = of[key]
            cells.append(f'{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})')
            ratios = [v / r for v, r in zip(values, reference[key])] if reference else []
            cells.append(f'{statistics.median(ratios):.2f}' if reference else '–')
            if beside_paper:
                cells.append(printed_ratio(name, key))
        ratio = lambda key: f'{of[key] / reference[key]:.2f}' if reference and reference[key] else '–'
        cells += [f'{of["operations"] / 1e9:.3f}', ratio('operations'), f'{of["scoring"] / 1e9:.3f}']
        cells += [f'{of["kept"] / 1e6:.1f}', ratio('kept'), str(of['waits'])]
        cells += [f'{of["memory_bytes"] / 1e9:.3f}', ratio('memory_bytes')]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n\n' + (PRINTED if beside_paper else NOT_PRINTED)


def largest_costs(found):
    """A line a method: its five largest operations."""
    return '\n'.join(f'{name}: ' + ', '.join(f'{100 * share:.0f} % {key}' for key, share in of['profile'])
                     for name, of in found.items())


# ------------------------------------------------------------------------------ the paper's schedule

def schedule(found):
    """How long training by the paper's schedule would take here: (clips that the tasks train on × 10 epochs) samples;
    without the initial pre-training, evaluation and loading."""
    lines = []
    for name, clips in CLIPS.items():
        hours = ', '.join(f'{method} {clips * EPOCHS / statistics.median(of["samples_per_s"]) / 3600:.0f}'
                          for method, of in found.items())
        lines.append(f'{name}, {clips * EPOCHS:,} samples ({clips:,} clips, {EPOCHS} epochs), hours: {hours}')
    return '\n'.join(lines)


# -------------------------------------------------------------------------------- beside loading

def beside_loading(args, device, precision):
    """→ what `loading.measure` finds of the folder's clips"""
    ready = lambda name: Training(name, args.size, args.batch, device, precision, args.compile)
    return loading.measure(loading.clips_of(args), args.batch, args.workers, args.methods, ready, args.rounds,
                           args.steps, pin=device.type == 'cuda')


# ------------------------------------------------------------------------------- the command line

def options(arguments):
    """Words → what is asked for."""
    parser = argparse.ArgumentParser(prog='python -m paper.bench', allow_abbrev=False,
                                     description='What each method costs (Table 2).')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--size', type=one_of(list(PRESETS)),
                        help='base (the paper\'s) or small; default: base on a GPU, small without')
    parser.add_argument('--batch', default=9, **COUNT.asked('current pairs a step (default 9, as in Table 2)'))
    parser.add_argument('--device', default='', help='cuda or cpu; without it, cuda where there is one')
    parser.add_argument('--precision', choices=['fp32', 'bf16'], help='default: bf16 on GPUs that have it, else fp32')
    parser.add_argument('--compile', action='store_true', help='the backbone\'s blocks go through torch.compile')
    parser.add_argument('--methods', nargs='+', type=one_of(NAMES), metavar='NAME',
                        help='default: all; with --data, flava')
    parser.add_argument('--profile', action='store_true', help='name the five largest costs of a step')
    parser.add_argument('--rounds', default=5, **COUNT.asked('how often each method has its turn (default 5)'))
    parser.add_argument('--steps', default=10, **COUNT.asked('timed steps a turn (default 10)'))
    parser.add_argument('--out', type=Path, help='write the figures to this JSON file')
    group = parser.add_argument_group('loading', 'with --data: loading clips and training beside it, not Table 2')
    group.add_argument('--data', help='folder of the clips, see streams/README.md')
    group.add_argument('--dataset', type=one_of(ON_DISK), help=' or '.join(ON_DISK) + ' (default vggsound)')
    group.add_argument('--tasks', help='CSV "class,task"; without it, the paper\'s tasks')
    group.add_argument('--workers', **WORKERS.asked('processes that load; without it, as many as for training'))
    args = parser.parse_args(arguments)
    if args.data is not None:
        args.dataset, args.methods = args.dataset or 'vggsound', args.methods or ['flava']
        args.workers = count_workers(args.dataset, -1 if args.workers is None else args.workers)
    elif args.dataset or args.tasks or args.workers is not None:
        parser.error('--dataset, --tasks and --workers are of the clips that --data DIR names')
    args.methods = args.methods or NAMES
    return args


def main(arguments=None):
    """The command line."""
    args = options(arguments)
    with exit_politely():
        if args.out:
            check_writable(args.out.parent, '--out ')
            if args.out.is_dir():
                raise UserError(f'--out {args.out} is a folder, where a file is to be')
        device, threads = open_device(args.device), torch.get_num_threads()
        args.size = args.size or ('base' if device.type == 'cuda' else 'small')
        bf16 = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = args.precision or ('bf16' if bf16 else 'fp32')
        machine = (torch.cuda.get_device_name(device) if device.type == 'cuda'
                   else f'{platform.machine()}, {threads} threads')
        kind = precision + ', compiled' * args.compile
        print(f'size {args.size}, batches of {args.batch}, {kind}, {machine}, torch {torch.__version__}; '
              f'{args.rounds} rounds of {args.steps} steps\n')
        if args.data is not None:
            found = dict(loading=beside_loading(args, device, precision))
            print(loading.table(found['loading']), loading.limits(found['loading']), sep='\n\n')
        else:
            found = dict(found=measure(args.methods, args.size, args.batch, device, precision, args.rounds, args.steps,
                                       args.compile))
            print(table(found['found'], as_in_table_2(args.size, args.batch, device)))
            if args.profile:
                print('\nLargest costs of a step:', largest_costs(found['found']), sep='\n')
            if args.size == 'base':
                print('\nAt this rate:', schedule(found['found']), sep='\n')
            if precision == 'bf16' and {'mir', 'gmed'} & set(args.methods):
                print("\nMIR's and GMED's virtual steps stay in float32: --precision fp32 compares like with like")
        if args.out:
            given = {name: value for name, value in vars(args).items() if value is not None}
            said = dict(given, out=str(args.out), device=str(device), precision=precision, machine=machine)
            write_text(args.out, json.dumps(dict(said, torch=torch.__version__, **found), indent=1))


if __name__ == '__main__':
    main()
