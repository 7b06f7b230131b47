"""GPU checks in at most eight minutes: the same losses as on the CPU, resume, two processes, speed.

    python -m paper.gpu_check                       all parts (`make gpu`)
    python -m paper.gpu_check --parts methods run   these parts
    python -m paper.gpu_check --device cpu --smoke  all parts, tiny, on a CPU: a test of this command

In:  one GPU or more.
Out: results/gpu/NAME.json and NAME.md, written again after every step of every part.

    methods    three steps of every method, the CPU against the GPU
    tests      the tests of the equations with CUDA as the default device
    run        one run of the built-in stream beside the recorded runs on CPUs
    resume     SIGTERM and --resume give the results of an uninterrupted run
    processes  two processes; they share the GPU by gloo where there is only one
    speed      samples/s, memory, operations, share of the matrix rate, share of a step outside the backbone

The parts run in this order. A part that fails is recorded with its traceback, and the next part runs. A process that
takes more than half of the time that is left is killed. Speed gets what the others leave.
"""
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

from config import UserError
from paper import bench
from study import runs
from utils.checkpoint import check_writable, write_text
from utils.cli import Parser, cli_errors, number
from utils.distributed import get_device, print_rank0
from utils.markdown import markdown_table

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-3                                       # relative, of losses in float32
SMOKE = 'der++ flava flava-grid lava-student'
# options of paper.bench; with --compile each of its rounds compiles again, so there is one
EAGER = '--rounds 4 --steps 8 --methods der++ flava random finetune flava-grid lava lava-student'
COMPILED = '--compile --rounds 1 --steps 32 --methods der++ flava lava-student random'
SETTINGS = {'eager, batch 48': f'--batch 48 {EAGER}', 'eager, batch 9': f'--batch 9 {EAGER}',
            'compiled, batch 48': f'--batch 48 {COMPILED}', 'compiled, batch 9': f'--batch 9 {COMPILED}'}
SMOKE_SETTINGS = {'eager, batch 3': f'--batch 3 --rounds 2 --steps 1 --methods {SMOKE}'}
# options of train.py
SHORT_RUN = ('--method flava --clips-per-task 64 --test-clips 6 --candidate-sets 1 --epochs 2 --pretrain-steps 0 '
             '--memory-size 20 --log-every 1 --save-every 1000').split()
TINY = ('--image-size 32 --num-frames 2 --audio-frames 64 --mel-bins 32 --frame-shift 62 --embed-dim 16 --num-heads 2 '
        '--encoder-depth 1 --decoder-embed-dim 16 --decoder-num-heads 2 --avm-heads 2 --batch-size 8').split()   # smoke


class Check:
    """The options, the deadline, and what has been found so far.  report: {'header': {}, 'parts': {name: {}}}"""

    def __init__(self, args, device, scratch):
        self.device, self.smoke, self.scratch = device, args.smoke, scratch      # scratch: folder of runs
        self.deadline = time.monotonic() + 60 * args.minutes
        self.report = dict(header=header(device), parts={})
        self.file = Path(args.out) / self.report['header']['device'].lower().replace(' ', '-')

    def left(self):
        """Seconds until the deadline"""
        return self.deadline - time.monotonic()

    def save(self):
        write_text(f'{self.file}.json', json.dumps(self.report, indent=1))
        write_text(f'{self.file}.md', to_markdown(self.report))


def header(device):
    """Device, versions, commit, date and command → {name: value}"""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'
    return dict(device=name, gpus=torch.cuda.device_count(), processor=runs.processor(), cores=os.cpu_count(),
                torch=torch.__version__, commit=runs.commit(), date=time.strftime('%Y-%m-%d %H:%M'),
                command=' '.join(['python -m paper.gpu_check', *sys.argv[1:]]))


@contextlib.contextmanager
def recorded(found, name):
    """Record and print an exception. What comes next is still worth its time."""
    try:
        yield
    except Exception as error:
        found.update(error=f'{type(error).__name__}: {error}', traceback=traceback.format_exc())
        print_rank0(f'{name} failed: {found["error"][:600]}')


# -------------------------------------------------------------------------------------- subprocesses

def start(words, **environment):
    """Start a Python program in a process group of its own → Popen"""
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True,
                            env={**os.environ, **environment})


def finish(process, check, codes=(0,)):
    """Wait for a process → all that it has printed. Kills its process group when half of the time that is left is over.
    Raises RuntimeError with its last lines if its exit code is not one of these."""
    try:
        text, _ = process.communicate(timeout=check.left() / 2)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text = process.communicate()[0] + 'timed out'
    if process.returncode not in codes:
        raise RuntimeError(f'exit code {process.returncode}: {text[-600:]}')
    return text


def read_log(folder):
    """log.jsonl of a run's folder → list of its lines; [] before it exists"""
    file = folder / 'log.jsonl'
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith('}')] if file.exists() else []


# ------------------------------------------------------------------------------------------ methods

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
    importance scores can select another patch on the GPU: then FLAVA's losses differ. MATS's differ with two frames,
    where both frames have the same motion: probably because of these exact ties.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch, names = (3, SMOKE.split()) if check.smoke else (8, bench.VARIANTS)
    for name in names:
        found[name] = {}
        with recorded(found[name], name):
            on_cpu, gradient = three_steps(name, batch, torch.device('cpu'))
            on_gpu, other = three_steps(name, batch, check.device)
            difference = max(abs(x - y) / abs(x) for x, y in zip(on_cpu, on_gpu))
            distance = ((gradient - other).norm() / gradient.norm()).item()
            found[name] |= dict(cpu=on_cpu, gpu=on_gpu, loss_difference=difference, gradient_distance=distance,
                                agree=difference <= TOLERANCE)
            print_rank0(f'{name:<16}losses differ by {difference:.1e}, gradients by {distance:.1e}')
        check.save()


# ------------------------------------------------------------------------------------------- tests

def tests(check, found):
    """The tests of the equations on the device, four at a time → pytest's last line; a line for each failure"""
    names = re.search(r'^EQUATIONS := (.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1].split()
    files = [f'tests/test_{name}.py' for name in (names[:1] if check.smoke else names)]
    parallel = [] if check.smoke else ['-n', '4']
    process = start(['-m', 'pytest', '-q', '-rfE', '--tb=short', '-p', 'no:cacheprovider', '-m', 'not slow', *parallel,
                     *files], FLAVA_TEST_DEVICE=check.device.type, OMP_NUM_THREADS='1', COLUMNS='300')
    text = finish(process, check, codes=(0, 1))        # 1: a test has failed
    lines = text.splitlines()
    found['summary'] = lines[-1]
    found['failures'] = [line for line in lines if line.startswith(('FAILED ', 'ERROR '))]
    found['log'] = text[-60_000:] if found['failures'] else ''


# --------------------------------------------------------------------------------------------- run

def run(check, found):
    """The study's run flava-100 on the device: its R@10 A beside the recorded runs flava-100 … 109 on CPUs"""
    records = runs.read_records()
    recorded_A = [runs.retrieval_A(records['flava', seed]) for seed in range(100, 110)]
    found |= dict(cpu_mean=statistics.mean(recorded_A), cpu_min=min(recorded_A), cpu_max=max(recorded_A),
                  cpu_seed_100=recorded_A[0])
    words = [*SHORT_RUN, *TINY, '--steps', '2'] if check.smoke else runs.RUNS['flava'].split()
    out, begin = check.scratch / 'run', time.monotonic()
    finish(start(['train.py', *words, '--seed', 100, '--data-seed', 100, '--out', out, '--cache', out / 'cache',
                  '--device', check.device.type, '--workers', 4]), check)
    lines = read_log(out)
    found |= dict(run_seconds=round(time.monotonic() - begin, 1), steps=lines[-1]['global_step'],
                  memory_gb=max(line['memory_gb'] for line in lines),
                  samples_per_s=statistics.median(line['samples_per_s'] for line in lines),
                  A=runs.retrieval_A(dict(retrieval=json.loads((out / 'results.json').read_text()))))


# ------------------------------------------------------------------------------------------ resume

def resume(check, found):
    """A short run, and the same run stopped by SIGTERM and resumed: the same results.json, to the bit?"""
    words = [*SHORT_RUN, *(TINY if check.smoke else []), '--device', check.device.type]
    whole, stopped = check.scratch / 'whole', check.scratch / 'stopped'
    command = ['train.py', *words, '--cache', check.scratch / 'cache', '--out']
    finish(start([*command, whole]), check)

    # wait for five steps, then stop
    process, limit = start([*command, stopped]), check.left() / 2
    while len(read_log(stopped)) < 5 and process.poll() is None and check.left() > limit:
        time.sleep(0.01)
    process.terminate()
    finish(process, check, codes=(130,))
    found['stopped_after_steps'] = len(read_log(stopped))
    finish(start([*command, stopped, '--resume']), check)

    found['steps'] = len(read_log(whole))
    found['same_results'] = (whole / 'results.json').read_bytes() == (stopped / 'results.json').read_bytes()


# --------------------------------------------------------------------------------------- processes

def processes(check, found):
    """A short run of two processes. NCCL refuses two processes on one GPU, so there gloo connects them."""
    found['backend'] = 'nccl' if check.device.type == 'cuda' and torch.cuda.device_count() > 1 else 'gloo'
    words = [*SHORT_RUN, *(TINY if check.smoke else []), '--steps', '2', '--device', check.device.type]
    out = check.scratch / 'two'
    process = start(['-m', 'torch.distributed.run', '--nproc_per_node', 2, '--standalone', 'train.py', *words,
                     '--out', out, '--cache', out / 'cache'], FLAVA_BACKEND=found['backend'], OMP_NUM_THREADS='1')
    finish(process, check)
    lines = read_log(out)
    found |= dict(steps=len(lines), last_loss=lines[-1]['loss'], finished=(out / 'results.json').exists())


# ------------------------------------------------------------------------------------------- speed

def matrix_rate(device, n, dtype):
    """Operations per second of n×n matrix products"""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(5):
        a @ b
    bench.synchronize(device)
    begin = time.perf_counter()
    for _ in range(20):
        a @ b
    bench.synchronize(device)
    return 20 * 2 * n ** 3 / (time.perf_counter() - begin)


def outside_share(method, steps=8):
    """Share of the time of a Bench's steps outside the backbone's calls, the backward pass and the optimizer: patches,
    AVM, selection, memory. Waits for the device around each call."""
    device, backbone, inside = method.device, method.method.backbone, []

    def timed(function):
        """function, whose seconds are appended to `inside` when the forward pass calls it"""
        def call(*args):
            bench.synchronize(device)
            begin = time.perf_counter()
            out = function(*args)
            bench.synchronize(device)
            if in_forward:                             # the backward pass may call the fusion again
                inside.append(time.perf_counter() - begin)
            return out
        return call

    first = time.perf_counter()
    calls = {name: timed(getattr(backbone, name)) for name in ('encode', 'fuse', 'decode', 'pool')}
    for _ in range(steps):
        method.optimizer.zero_grad(set_to_none=True)
        in_forward = True
        with patch.multiple(backbone, **calls):
            loss = method.forward()
        bench.synchronize(device)
        begin, in_forward = time.perf_counter(), False
        loss.backward()
        method.optimizer.step()
        method.method.after_step()
        bench.synchronize(device)
        inside.append(time.perf_counter() - begin)
    return 1 - sum(inside) / (time.perf_counter() - first)


def speed(check, found):
    """The numbers of `python -m paper.bench` at the paper's size in bf16, a method at a time; and the rate of matrix
    products, the upper limit of a method's operations per second."""
    n, dtype = (256, torch.float32) if check.smoke else (8192, torch.bfloat16)
    found |= dict(matrix_rate=matrix_rate(check.device, n, dtype), operations={})
    for setting, words in (SMOKE_SETTINGS if check.smoke else SETTINGS).items():
        words += ' --size small --precision fp32' if check.smoke else ' --size base --precision bf16'
        args = bench.read_options(words.split())
        costs = found[setting] = {name: {} for name in args.methods}
        for name, own in costs.items():
            if check.left() < 45:                      # a compilation takes long and cannot be stopped
                own['error'] = 'skipped: no time left'
                continue
            args.methods = [name]
            torch.compiler.reset()
            with recorded(own, f'{setting}: {name}'):
                own |= bench.measure(args, check.device, args.precision)[name]
                own['peak_gb'] = max(own['peak_gb'])
                if not args.compile:
                    method = bench.Bench(name, args.size, args.batch, check.device, args.precision, init=check.device)
                    own['outside'] = outside_share(method)
                    method = None                      # frees its memory before the next one
                found['operations'][name], = own['operations']
                median = statistics.median(own['samples_per_s'])
                print_rank0(f'{setting}: {name:<16}{median:.1f} samples/s, {own["peak_gb"]:.1f} GB')
            check.save()


# -------------------------------------------------------------------------------------- the report

def listed(found):
    """All that is in no table, a line each"""
    return '\n'.join(f'- {key}: {str(value)[:600]}'.replace('\n', ' ') for key, value in found.items()
                     if key not in ('traceback', 'log') and not isinstance(value, dict))


def to_markdown(report):
    """The report → Markdown: a section for each part"""
    sections = ['# GPU check', listed(report['header'])]
    for name, found in report['parts'].items():
        sections.append(f'## {name}')
        if name == 'methods':
            sections.append(methods_table(found))
        sections += [f'{key}\n\n{speed_table(found, key)}' for key in found if ', batch ' in key]
        sections.append(listed(found))
    return '\n\n'.join(sections) + '\n'


def methods_table(found):
    """Three losses of each method on both devices, their difference, and the distance of the gradients"""
    rows = []
    for name, own in found.items():
        if not isinstance(own, dict):
            continue
        if 'cpu' not in own:
            rows.append([name, own.get('error', '')[:120], *4 * '–'])
            continue
        losses = [' '.join(f'{loss:.4f}' for loss in own[device]) for device in ('cpu', 'gpu')]
        rows.append([name, *losses, f'{own["loss_difference"]:.1e}', f'{own["gradient_distance"]:.1e}',
                     'yes' if own['agree'] else 'NO'])
    return markdown_table(['method', 'losses CPU', 'GPU', 'difference', 'gradient', 'agree'], rows)


def speed_table(found, setting):
    """Samples/s as median (minimum … maximum), its ratio to DER++'s, peak memory, share of the matrix rate, share of a
    step outside the backbone"""
    rows, medians = [], {}
    for name, own in found[setting].items():
        if 'peak_gb' not in own:
            rows.append([name, own.get('error', '')[:120], *4 * '–'])
            continue
        speeds = own['samples_per_s']
        medians[name] = median = statistics.median(speeds)
        ratio = f'{median / medians["der++"]:.2f}' if 'der++' in medians else '–'
        share = found['operations'][name] * median / found['matrix_rate']
        outside = own.get('outside', own.get('shares', {}).get('outside'))            # `shares`: in older reports
        rows.append([name, f'{median:.1f} ({min(speeds):.1f} … {max(speeds):.1f})', ratio, f'{own["peak_gb"]:.1f}',
                     f'{share:.1%}', '–' if outside is None else f'{outside:.0%}'])
    return markdown_table(['method', 'samples/s', '÷ DER++', 'peak GB', 'of matrix rate', 'outside the backbone'], rows)


# ------------------------------------------------------------------------------- the command line

PARTS = dict(methods=methods, tests=tests, run=run, resume=resume, processes=processes, speed=speed)


def main(arguments=None):
    """The command line."""
    parser = Parser(prog='python -m paper.gpu_check', description='GPU checks.')
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS), metavar='PART',
                        help=f'default: all. Of {", ".join(PARTS)}')
    parser.add_argument('--minutes', type=number(float, over=0), default=8, help='default 8')
    parser.add_argument('--device', default='cuda', help='cuda, or cpu with --smoke')
    parser.add_argument('--smoke', action='store_true', help='all parts, tiny')
    parser.add_argument('--out', default=str(ROOT / 'results' / 'gpu'), help='folder of the report')
    args = parser.parse_args(arguments)
    with cli_errors(), tempfile.TemporaryDirectory() as scratch:
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise UserError('this check needs a GPU, and torch sees none. --device cpu --smoke tests the command')
        if args.device == 'cpu' and not args.smoke:
            raise UserError('--device cpu needs --smoke')
        check_writable(args.out, '--out')
        check = Check(args, get_device(args.device), Path(scratch))
        for name, part in PARTS.items():
            if name in args.parts:
                found = check.report['parts'][name] = {}
                begin = time.monotonic()
                print_rank0(f'\n{name}, {check.left():.0f} s left')
                with recorded(found, name):
                    part(check, found)
                found['seconds'] = round(time.monotonic() - begin, 1)
                print_rank0(listed(found))
                check.save()
        print_rank0(f'\nreport: {check.file}.md')


if __name__ == '__main__':
    main()
