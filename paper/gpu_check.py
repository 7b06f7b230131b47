"""What only a GPU shows: one command of at most eight minutes, for a machine that is there for a quarter of an hour.

    python -m paper.gpu_check                       all parts (`make gpu`)
    python -m paper.gpu_check --parts 3 4           these parts
    python -m paper.gpu_check --device cpu --smoke  all parts, tiny, on a CPU: a test of this command

In:  one GPU or more.
Out: results/gpu/NAME.json and NAME.md, written again after every step of every part.

    1 tests      the tests of the equations with CUDA as the default device
    2 methods    three steps of every method, the CPU against the GPU
    3 speed      samples/s, memory, share of the matrix rate, where the time of a step goes
    4 run        one run of the built-in stream beside the recorded runs on CPUs
    5 resume     SIGTERM and --resume give the results of an uninterrupted run
    6 processes  two processes; they share the GPU by gloo where there is only one

A part that fails is recorded with its traceback, and the next part runs. The time that a part saves goes to later ones.

Where the time of a step goes (part 2), as shares of a few steps, by CUDA events around
    backbone   the calls of encode, fuse, decode and pool in the forward pass with gradient
    scoring    the same calls without gradient
    backward   loss.backward(), with the fusion that it recomputes
    optimizer  optimizer.step and after_step
    outside    the rest: patches, AVM, selection, memory, zero_grad
If the CPU is slower than the GPU, each share includes the time that the GPU waits for the CPU there.
"""
import collections
import json
import logging
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from config import UserError
from paper import bench
from paper.groups import markdown
from study import runs
from utils.checkpoint import write_text
from utils.cli import Parser, cli_errors, number
from utils.distributed import get_device

ROOT = Path(__file__).parent.parent
MINUTES = 8
BUDGET = dict(methods=20, speed=280, together=180)     # seconds, in MINUTES minutes
TOLERANCE = 1e-3                                       # relative, of losses in float32
SETTINGS = [(False, 48), (False, 9), (True, 48), (True, 9)]            # part 2: (compiled, batch size), in this order
TIMED = ['der++', 'flava', 'random', 'finetune', 'flava-grid', 'lava', 'lava-student']
COMPILED = ['der++', 'flava', 'lava-student', 'random']         # a compilation takes long
SMOKE = ['der++', 'flava', 'flava-grid', 'lava-student']
SHORT_RUN = ('--method flava --clips-per-task 64 --test-clips 6 --candidate-sets 1 --epochs 2 --pretrain-steps 0 '
             '--memory-size 20 --log-every 1 --save-every 1000').split()
TINY = ('--image-size 32 --num-frames 2 --audio-frames 64 --mel-bins 32 --frame-shift 62 --embed-dim 16 --num-heads 2 '
        '--encoder-depth 1 --decoder-embed-dim 16 --decoder-num-heads 2 --avm-heads 2 --batch-size 8').split()   # smoke


class Check:
    """The options, the clock, and what has been found so far.  report: {'header': {}, 'parts': {name: {}}}"""

    def __init__(self, args, device):
        self.args, self.device, self.smoke = args, device, args.smoke
        self.start = self.deadline = time.monotonic()
        self.report, self.lock = dict(header=header(device), parts={}), threading.Lock()
        self.file = Path(args.out) / re.sub('[^a-z0-9]+', '-', self.report['header']['device'].lower()).strip('-')
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def left(self):
        """Seconds until the deadline of this part."""
        return self.deadline - time.monotonic()

    def save(self):
        write_text(f'{self.file}.json', json.dumps(self.report, indent=1))
        write_text(f'{self.file}.md', to_markdown(self.report))

    def start_budget(self, name):
        """Add the seconds of BUDGET to what earlier parts left."""
        self.deadline = max(self.deadline, time.monotonic()) + BUDGET[name] * self.args.minutes / MINUTES
        show(f'\n{name}: {self.left():.0f} s')

    def run_part(self, name):
        """Run a part until the deadline. An exception is recorded and printed, and does not leave this function."""
        part, begin = PARTS[name], time.monotonic()
        found = self.report['parts'][name] = {}
        try:
            part(self, found)
        except Exception as error:                     # whatever fails here: the other parts are still worth their time
            found |= dict(error=f'{type(error).__name__}: {error}'.strip(), traceback=traceback.format_exc())
            show(f'{name} failed: {found["error"]}')
        found['seconds'] = round(time.monotonic() - begin, 1)
        with self.lock:
            self.save()


def show(line):
    print(line, flush=True)


def header(device):
    """Device, versions, commit, date and command → {name: text}"""
    gpu = device.type == 'cuda'
    driver = ''
    if gpu:
        try:
            query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
            driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split('\n')[0]
        except (OSError, subprocess.TimeoutExpired):
            driver = 'unknown'
    return dict(device=torch.cuda.get_device_name(device) if gpu else 'cpu', gpus=torch.cuda.device_count(),
                processor=runs.processor(), cores=os.cpu_count(), torch=torch.__version__,
                cuda=torch.version.cuda or '', driver=driver, commit=runs.commit(),
                date=time.strftime('%Y-%m-%d %H:%M'),
                command=' '.join(['python -m paper.gpu_check', *sys.argv[1:]]))


# -------------------------------------------------------------------------------------- subprocesses

def start(command, log, **environment):
    """Start a Python process in a process group of its own; all that it prints goes to the file `log` → Popen"""
    with open(log, 'w') as file:
        return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=file,
                                start_new_session=True, env={**os.environ, **environment})


def finish(process, seconds):
    """Wait for a process; when the time is up, end its process group → exit code, or None"""
    try:
        return process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def check_code(code, log):
    """Raises RuntimeError with the last errors in the log, or its last lines, if a process failed or was stopped."""
    if code != 0:
        lines = log.read_text(errors='replace').strip().splitlines()
        errors = [line for line in lines if re.search(r'^(\[rank\d+\]: )?(error|[\w.]*Error): ', line)]
        last = ' | '.join((errors or lines)[-4:])
        raise RuntimeError(f'{"its time was up" if code is None else f"exit code {code}"}: {last[-600:]}')


def read_log(folder):
    """log.jsonl of a run's folder → list of its lines; [] before it exists"""
    file = folder / 'log.jsonl'
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith('}')] if file.exists() else []


# ------------------------------------------------------------------------------------ 3: equations

def tests(check, found):
    """The tests of the equations on the device, four at a time → passed, failed, skipped; a line for each failure"""
    names = re.search(r'^EQUATIONS := (.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1].split()
    files = [f'tests/test_{name}.py' for name in (names[:1] if check.smoke else names)]
    parallel = [] if check.smoke else ['-n', '4']
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / 'log'
        process = start(['-m', 'pytest', '-v', '-rfE', '--tb=short', '-p', 'no:cacheprovider', '-m', 'not slow',
                         *parallel, *files], log,
                        FLAVA_TEST_DEVICE=check.device.type, OMP_NUM_THREADS='1', COLUMNS='300')
        code = finish(process, check.left())
        text = log.read_text(errors='replace')

    # counted from the lines of each test, so that a stopped session counts too
    for word in ('PASSED', 'FAILED', 'ERROR', 'SKIPPED'):
        lines = rf'^tests/\S+.* {word}\b|^\[gw\d+\].* {word} tests/'                # of one process, of several
        found[word.lower()] = len(re.findall(lines, text, re.MULTILINE))
    found['failures'] = re.findall(r'^(?:FAILED|ERROR) (tests/.*)$', text, re.MULTILINE)
    found['log'] = text[-60_000:] if code else ''
    show(f'{found["passed"]} passed, {found["failed"]} failed, {found["error"]} errors, {found["skipped"]} skipped')
    for line in found['failures']:
        show(f'  {line}')
    found['errors'] = found.pop('error')               # `error` is the exception of a part
    if code not in (0, 1):
        raise RuntimeError('its time was up' if code is None else f'pytest: exit code {code}: {text[-300:]}')


# -------------------------------------------------------------------------------------- 1: methods

class DrawOnCPU(TorchFunctionMode):
    """Draw every random number on the CPU and move it to the device: the same numbers on both."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.rand, torch.randn, torch.randint, torch.randperm):
            return function(*args, **{**kwargs, 'device': 'cpu'}).to(kwargs.get('device') or 'cpu')
        if function is torch.bernoulli:
            return function(args[0].cpu()).to(args[0].device)
        if function is torch.Tensor.exponential_:
            return args[0].copy_(torch.empty(args[0].shape, dtype=args[0].dtype).exponential_())
        return function(*args, **kwargs)


def three_steps(name, batch, device):
    """→ the losses of three steps; the gradient of the third, flat, on the CPU"""
    with DrawOnCPU():
        method = bench.Bench(name, 'small', batch, device, 'fp32')
        torch.manual_seed(1)
        losses = [method.step().item() for _ in range(3)]
    gradients = [weight.grad.flatten() for weight in method.method.parameters() if weight.grad is not None]
    return losses, torch.cat(gradients).cpu()


def methods(check, found):
    """Losses of three steps in float32, without TF32, from the same weights and random numbers, on the CPU and the GPU.
    The largest relative difference of the losses, and the relative distance of the last gradients. A near tie of two
    importance scores can select another patch on the GPU: then FLAVA's losses differ. MATS's differ with two frames, where
    both frames have the same motion: probably because of these exact ties."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch, names = (3, SMOKE) if check.smoke else (8, list(bench.VARIANTS))
    for label in names:
        if check.left() < 2:
            found[label] = dict(skipped='its time was up')
            continue
        try:
            on_cpu, gradient = three_steps(label, batch, torch.device('cpu'))
            on_gpu, other = three_steps(label, batch, check.device)
            difference = max(abs(x - y) / abs(x) for x, y in zip(on_cpu, on_gpu))
            distance = ((gradient - other).norm() / gradient.norm()).item()
            found[label] = dict(cpu=on_cpu, gpu=on_gpu, loss_difference=difference, gradient_distance=distance,
                                agree=difference <= TOLERANCE)
            show(f'{label:<16}{"agrees" if found[label]["agree"] else "DIFFERS":<9}losses {difference:.1e}, '
                 f'gradient {distance:.1e}')
        except Exception as error:
            found[label] = dict(error=f'{type(error).__name__}: {error}', traceback=traceback.format_exc())
            show(f'{label:<16}failed: {found[label]["error"][:300]}')
        check.save()


# ---------------------------------------------------------------------------------------- 2: speed

def stamp(device):
    """A point in time on the device's stream; on a CPU, of its clock"""
    if device.type != 'cuda':
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first, second):
    """Seconds between two stamps, after a synchronization"""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1000


def matrix_rate(device, n, dtype):
    """Operations per second of n×n matrix products"""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(5):
        a @ b
    begin = stamp(device)
    for _ in range(20):
        a @ b
    end = stamp(device)
    bench.synchronize(device)
    return 20 * 2 * n ** 3 / between(begin, end)


def time_shares(method, steps=8):
    """Where the time of a Bench's steps goes → {part: share}. The parts are defined at the top of this file."""
    backbone, device, intervals, in_forward = method.method.backbone, method.device, [], True

    def record(kind, function):
        def call(*args):
            begin = stamp(device)
            out = function(*args)
            if in_forward:                             # the backward pass calls fuse and pool again
                intervals.append((kind or ('backbone' if torch.is_grad_enabled() else 'scoring'), begin, stamp(device)))
            return out
        return call
    names = ('encode', 'fuse', 'decode', 'pool')
    for name in names:
        setattr(backbone, name, record('', getattr(backbone, name)))

    # the same as Bench.step, with stamps
    first = stamp(device)
    for _ in range(steps):
        method.optimizer.zero_grad(set_to_none=True)
        in_forward = True
        loss = method.forward()
        in_forward = False
        points = [stamp(device)]
        loss.backward()
        points.append(stamp(device))
        method.optimizer.step()
        method.method.after_step()
        points.append(stamp(device))
        intervals += [('backward', *points[:2]), ('optimizer', *points[1:])]
    last = stamp(device)
    bench.synchronize(device)
    for name in names:
        delattr(backbone, name)

    seconds = collections.Counter(backbone=0, scoring=0, backward=0, optimizer=0)
    for kind, begin, end in intervals:
        seconds[kind] += between(begin, end)
    shares = {kind: value / between(first, last) for kind, value in seconds.items()}
    return {**shares, 'outside': 1 - sum(shares.values())}


def prepare(check, found, name, size, batch, precision, compiled):
    """→ a Bench, or None. Records its peak memory alone, its compilation, and an error such as too little memory."""
    device, gpu = check.device, check.device.type == 'cuda'
    try:
        bench.reset_peak(device)
        before = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if gpu else (0, 0)
        begin = time.monotonic()
        method = bench.Bench(name, size, batch, device, precision, compiled, init=device)
        for _ in range(2):
            method.step()
        bench.synchronize(device)
        found['prepare_seconds'] = round(time.monotonic() - begin, 1)
        if gpu:                                        # other methods wait on the GPU; they use nothing meanwhile
            found['peak_gb'] = (torch.cuda.max_memory_allocated() - before[0]) / 1e9
            found['reserved_gb'] = (torch.cuda.max_memory_reserved() - before[1]) / 1e9
        method.optimizer.zero_grad(set_to_none=True)
        found |= dict(note=method.note, others_gb=before[0] / 1e9)
        return method
    except Exception as error:                         # torch.OutOfMemoryError, or a compiler
        found |= dict(error=f'{type(error).__name__}: {str(error)[:500]}', traceback=traceback.format_exc())
        show(f'  {found["error"][:300]}')
        return None


def time_group(check, costs, group, rounds, steps):
    """Samples/s of some Benches, round after round over all of them; then where their time goes.
    costs: {label: {}}, group: {label: Bench}"""
    for _ in range(rounds):
        if check.left() < 5:
            break
        for label, method in group.items():
            costs[label].setdefault('samples_per_s', []).append(method.samples_per_s(steps))
    for label, method in group.items():
        costs[label]['shares'] = time_shares(method)


def count_operations(check, found, size, precision, chosen):
    """Operations per sample of each method, the mean over a cycle, in batches of 4: plain attention, which can be
    counted, would not fit at 48."""
    found['operations'] = {}
    for label in chosen:
        try:
            method = bench.Bench(label, size, 4, check.device, precision, init=check.device)
            found['operations'][label] = method.operations(method.step)
        except Exception as error:
            show(f'  {label}: operations are not counted ({type(error).__name__}: {str(error)[:200]})')
        method = None


def speed(check, found):
    """Samples/s, peak memory, shares of time and of the matrix rate at the paper's size in bf16. Methods in eager mode
    are timed round after round; compiled ones one after the other, each with an empty cache of the compiler."""
    device, smoke = check.device, check.smoke
    size, precision, rounds, steps = ('small', 'fp32', 2, 1) if smoke else ('base', 'bf16', 4, 8)
    settings = [(False, 3)] if smoke else SETTINGS
    chosen = SMOKE if smoke else TIMED
    found['matrix_rate'] = rate = matrix_rate(device, *((256, torch.float32) if smoke else (8192, torch.bfloat16)))
    show(f'matrix products: {rate / 1e12:.1f} Tflop/s')
    count_operations(check, found, size, precision, chosen)

    # warnings of the compiler, such as a recompilation limit
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage().strip().splitlines()[0][:300])
    logging.getLogger('torch._dynamo').addHandler(handler)

    for compiled, batch in settings:
        groups = [[label] for label in COMPILED] if compiled else [list(chosen)]
        costs = {label: {} for labels in groups for label in labels}
        found[f'{"compiled" if compiled else "eager"}, batch {batch}'] = costs
        for labels in groups:
            if compiled:
                torch.compiler.reset()
                warnings.clear()
            group = {}
            for label in labels:
                if check.left() < (45 if compiled else 10):        # a compilation takes long and cannot be stopped
                    costs[label]['error'] = 'skipped: its time was up'
                    continue
                method = prepare(check, costs[label], label, size, batch, precision, compiled)
                group |= {label: method} if method else {}
            method = None
            time_group(check, costs, group, rounds, steps)
            for label in labels:
                summarize(costs, label, found['operations'].get(label), rate, device.type, compiled, batch)
                costs[label]['compiler_warnings'] = list(warnings)
            group.clear()
            check.save()


def summarize(costs, label, operations, rate, kind, compiled, batch):
    """Add the share of the matrix rate and the ratio to DER++ to a method's costs, and print a line."""
    own, other = costs[label], costs['der++'].get('samples_per_s', [])
    speeds = own.get('samples_per_s')
    if not speeds:
        return show(f'{label}: {own.get("error", "not timed")[:200]}')
    own['median'] = statistics.median(speeds)
    if other:                                          # within a round where rounds are shared
        own['ratio'] = statistics.median(x / y for x, y in zip(speeds, other))
    if operations:
        own['matrix_share'] = operations * own['median'] / rate
    shares = ', '.join(f'{name} {share:.0%}' for name, share in own['shares'].items())
    show(f'{label:<16}{kind}, {"compiled" if compiled else "eager"}, batch {batch}: {own["median"]:.1f} samples/s, '
         f'{own.get("ratio", 0):.2f} of DER++, {own.get("peak_gb", 0):.1f} GB, '
         f'{own.get("matrix_share", 0):.0%} of the matrix rate; {shares}')


# ------------------------------------------------------------------------------------------ 4: run

def run(check, found):
    """The study's run flava-100 on the device: its R@10 A beside the recorded runs flava-100 … 109 on CPUs"""
    recorded = [runs.retrieval_A(record) for (name, seed), record in runs.read_records().items()
                if name == 'flava' and seed in range(100, 110)]
    if recorded:
        found |= dict(cpu_mean=statistics.mean(recorded), cpu_min=min(recorded), cpu_max=max(recorded))
        own = runs.read_records().get(('flava', 100))
        found['cpu_seed_100'] = runs.retrieval_A(own) if own else None
    words = [*SHORT_RUN, *TINY, '--steps', '2'] if check.smoke else runs.options_of('flava').split()
    with tempfile.TemporaryDirectory() as folder:
        out, log, begin = Path(folder) / 'run', Path(folder) / 'log', time.monotonic()
        process = start(['train.py', *words, '--seed', 100, '--data-seed', 100, '--out', out,
                         '--cache', f'{folder}/cache', '--device', check.device.type, '--workers', 4], log)
        code, lines = finish(process, check.left()), read_log(out)
        found['run_seconds'] = round(time.monotonic() - begin, 1)
        if lines:
            found |= dict(steps=lines[-1]['global_step'], memory_gb=max(line['memory_gb'] for line in lines),
                          samples_per_s=statistics.median(line['samples_per_s'] for line in lines))
        check_code(code, log)
        found['A'] = runs.retrieval_A(dict(retrieval=json.loads((out / 'results.json').read_text())))
    on_cpus = f'on CPUs {found["cpu_mean"]:.1f} ({found["cpu_min"]:.1f} … {found["cpu_max"]:.1f})' if recorded else ''
    show(f'R@10 A {found["A"]:.1f}, {on_cpus}; {found["run_seconds"]} s, {found["samples_per_s"]:.1f} samples/s')


# --------------------------------------------------------------------------------------- 5: resume

def resume(check, found):
    """A short run, and the same run stopped by SIGTERM and resumed: the same results.json, to the bit?"""
    words = [*SHORT_RUN, *(TINY if check.smoke else []), '--device', check.device.type]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        whole, stopped, logs = folder / 'whole', folder / 'stopped', [folder / f'log{i}' for i in range(3)]
        commands = [['train.py', *words, '--out', out, '--cache', out / 'cache'] for out in (whole, stopped)]
        processes = [start(command, log) for command, log in zip(commands, logs)]
        try:
            # wait for five steps, then stop
            while len(read_log(stopped)) < 5 and processes[1].poll() is None and check.left() > 5:
                time.sleep(0.01)
            if processes[1].poll() is None:
                os.kill(processes[1].pid, signal.SIGTERM)
            found['stop_code'] = finish(processes[1], check.left())
            found['stopped_after_steps'] = len(read_log(stopped))
            show(f'stopped with exit code {found["stop_code"]} after {found["stopped_after_steps"]} steps')
            processes.append(start([*commands[1], '--resume'], logs[2]))
            check_code(finish(processes[2], check.left()), logs[2])
        finally:
            codes = [finish(process, check.left()) for process in processes]
        check_code(codes[0], logs[0])

        # compare
        losses = [{line['global_step']: line['loss'] for line in read_log(out)} for out in (whole, stopped)]
        found['steps'] = len(losses[0])
        found['same_results'] = (whole / 'results.json').read_bytes() == (stopped / 'results.json').read_bytes()
        found['same_steps'] = losses[0].keys() == losses[1].keys()
        found['loss_difference'] = max(abs(losses[0][step] - losses[1].get(step, float('nan'))) for step in losses[0])
    show(f'results.json {"equal to the bit" if found["same_results"] else "DIFFERS"}; largest difference of a loss '
         f'{found["loss_difference"]:.1e} in {found["steps"]} steps')


# ------------------------------------------------------------------------------------ 6: processes

def processes(check, found):
    """A short run of two processes. NCCL refuses two processes on one GPU, so there gloo connects them."""
    backend = 'nccl' if torch.cuda.device_count() > 1 and check.device.type == 'cuda' else 'gloo'
    words = [*SHORT_RUN, *(TINY if check.smoke else []), '--steps', '2', '--device', check.device.type]
    found['backend'] = backend
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / 'run', Path(folder) / 'log'
        process = start(['-m', 'torch.distributed.run', '--nproc_per_node', 2, '--standalone', 'train.py', *words,
                         '--out', out, '--cache', f'{folder}/cache'], log, FLAVA_BACKEND=backend, OMP_NUM_THREADS='1')
        code = finish(process, check.left())
        check_code(code, log)
        lines = read_log(out)
        found |= dict(steps=len(lines), last_loss=lines[-1]['loss'], finished=(out / 'results.json').exists())
    show(f'two processes, {backend}: {found["steps"]} steps, last loss {found["last_loss"]:.3f}')


# -------------------------------------------------------------------------------------- the report

def to_markdown(report):
    """The report → Markdown: a section for each part"""
    sections = ['# GPU check', '\n'.join(f'- {name}: {value}' for name, value in report['header'].items())]
    for name, found in report['parts'].items():
        sections.append(f'## {name}')
        rows = [(key, *cells(costs)) for key, costs in found.items() if isinstance(costs, dict) and 'cpu' in costs]
        if rows:
            sections.append(markdown(['method', 'losses CPU', 'GPU', 'difference', 'gradient', 'agree'], rows))
        for setting, costs in found.items():
            if ', batch ' in setting:
                sections.append(f'{setting}\n\n{speed_table(costs)}')
        plain = {key: value for key, value in found.items() if key not in ('traceback', 'log', 'failures', 'operations')
                 and not (isinstance(value, dict) and ('cpu' in value or ', batch ' in key))}
        plain = {key: value.get('error', value) if isinstance(value, dict) else value for key, value in plain.items()}
        lines = [f'- {key}: {str(value)[:400]}'.replace('\n', ' ') for key, value in plain.items()]
        lines += [f'- {line}' for line in found.get('failures', [])]
        sections.append('\n'.join(lines))
    return '\n\n'.join(section for section in sections if section) + '\n'


def cells(costs):
    """A row of part 1"""
    return (*(' '.join(f'{loss:.4f}' for loss in costs[place]) for place in ('cpu', 'gpu')),
            f'{costs["loss_difference"]:.1e}', f'{costs["gradient_distance"]:.1e}', 'yes' if costs['agree'] else 'NO')


def speed_table(costs):
    """A table of part 2: samples/s as median (minimum … maximum)"""
    kinds = ('backbone', 'scoring', 'backward', 'optimizer', 'outside')
    rows = []
    for label, own in costs.items():
        if 'median' not in own:
            rows.append([label, str(own.get('error', 'not timed'))[:120]] + ['–'] * (4 + len(kinds)))
            continue
        speeds = own['samples_per_s']
        rows.append([label, f'{own["median"]:.1f} ({min(speeds):.1f} … {max(speeds):.1f})',
                     f'{own.get("ratio", 0):.2f}', f'{own.get("peak_gb", 0):.1f}', f'{own.get("reserved_gb", 0):.1f}',
                     f'{own.get("matrix_share", 0):.1%}', *(f'{own["shares"][kind]:.0%}' for kind in kinds)])
    return markdown(['method', 'samples/s', '÷ DER++', 'peak GB', 'reserved GB', 'of matrix rate', *kinds], rows)


# ------------------------------------------------------------------------------- the command line

PARTS = dict(methods=methods, speed=speed, tests=tests, run=run, resume=resume, processes=processes)


def main(arguments=None):
    """The command line."""
    parser = Parser(prog='python -m paper.gpu_check', description='What only a GPU shows.')
    parser.add_argument('--parts', nargs='+', type=number(int, min=1, max=len(PARTS)), default=range(1, len(PARTS) + 1),
                        help='numbers of parts; default: all')
    parser.add_argument('--minutes', type=number(float, over=0), default=MINUTES, help=f'default {MINUTES}')
    parser.add_argument('--device', default='cuda', help='cuda, or cpu with --smoke')
    parser.add_argument('--smoke', action='store_true', help='all parts, tiny')
    parser.add_argument('--out', default=str(ROOT / 'results' / 'gpu'), help='folder of the report')
    args = parser.parse_args(arguments)
    with cli_errors():
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise UserError('this check needs a GPU, and torch sees none. --device cpu --smoke tests the command')
        if args.device == 'cpu' and not args.smoke:
            raise UserError('--device cpu needs --smoke')
        check = Check(args, get_device(args.device))
        for name, value in check.report['header'].items():
            show(f'{name:<10}{value}')
        names = [name for place, name in enumerate(PARTS, 1) if place in args.parts]
        for name in names:
            if name in BUDGET:                         # alone, because it uses this process, and speed is timed
                check.start_budget(name)
                check.run_part(name)
        check.start_budget('together')
        with ThreadPoolExecutor() as threads:
            list(threads.map(check.run_part, [name for name in names if name not in BUDGET]))
        show(f'\n{time.monotonic() - check.start:.0f} s; report: {check.file}.md')


if __name__ == '__main__':
    main()
