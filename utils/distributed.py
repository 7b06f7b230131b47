"""Process groups and devices: one process per GPU, started by torchrun.

In:  torchrun's environment variables and `--device`.
Out: this process's device; collective operations that are no-ops in a single process.
"""
import datetime
import functools
import gc
import os
import resource
import sys

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from tqdm import tqdm

from config import UserError


def get_rank():
    """Rank of this process; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size():
    """Number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


@functools.cache
def cpu_group():
    """A gloo group for slow CPU-side waits, such as a scan of the clips. NCCL keeps its short timeout."""
    return dist.new_group(backend='gloo', timeout=datetime.timedelta(hours=6))


def all_gather_object(x):
    """A picklable x of each rank → list of all, in order of rank"""
    objects = [x] * get_world_size()
    if dist.is_initialized():
        dist.all_gather_object(objects, x, group=cpu_group())
    return objects


def all_gather_with_grad(x):
    """x (B, ...) of each rank → (world size · B, ...) in order of rank, with gradients. The backward pass sums gradients
    over ranks, and DDP then averages them: together, the gradient of the mean loss."""
    return torch.cat(dist_nn.all_gather(x.contiguous())) if dist.is_initialized() else x


def broadcast_object(x):
    """Rank 0's x, for all ranks."""
    objects = [x]
    if dist.is_initialized():
        dist.broadcast_object_list(objects, group=cpu_group())
    return objects[0]


def barrier():
    if dist.is_initialized():
        dist.barrier(group=cpu_group())


def print_rank0(line):
    """Print a line from rank 0, above any progress bar."""
    if get_rank() == 0:
        tqdm.write(line)
        sys.stdout.flush()                             # a file or a pipe would keep the line for a long time


@functools.cache
def print_once(line):
    """Print a line the first time that it comes up in this process."""
    tqdm.write(line)


# ------------------------------------------------------------------------------- start and end

def get_device(name):
    """'' (a GPU if there is one), 'cpu', 'cuda' or 'cuda:1' → torch.device. Raises UserError."""
    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except RuntimeError:
        raise UserError(f'--device {name}: unknown device; use cuda, cuda:1 or cpu')
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device {name}: only cuda and cpu are supported')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {name}: torch sees {torch.cuda.device_count()} GPUs')
    return device


def init_distributed(cfg):
    """Join the process group if torchrun started this process → this rank's device. Raises UserError."""
    device, distributed = get_device(cfg.device), 'RANK' in os.environ
    # gloo lets several processes share a GPU, to test them; NCCL does not
    backend = os.environ.get('FLAVA_BACKEND') or ('nccl' if device.type == 'cuda' else 'gloo')
    if distributed and device.index is not None:
        raise UserError(f'--device {cfg.device}: under torchrun each process has its own GPU; use --device cuda')
    if device.type == 'cuda':
        index = device.index if device.index is not None else int(os.environ.get('LOCAL_RANK', 0))
        if backend == 'gloo':
            index %= torch.cuda.device_count()
        if index >= torch.cuda.device_count():
            raise UserError(f'torchrun started more processes than the {torch.cuda.device_count()} GPUs here')
        torch.cuda.set_device(index)
        device = torch.device('cuda', torch.cuda.current_device())
    if distributed:
        missing = [name for name in ('WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if not os.environ.get(name)]
        if missing:
            raise UserError(f'RANK is set, but not {", ".join(missing)}: start with torchrun, or unset RANK')
        try:
            dist.init_process_group(backend, device_id=device if backend == 'nccl' else None)
        except (ValueError, RuntimeError) as error:    # RANK is no number, or nobody answers
            raise UserError(f'the process group cannot start ({error}): start with torchrun, or unset RANK')
    return device


def cleanup():
    """Leave the process group. Its threads must end before Python does, or they abort the process."""
    barrier()
    if dist.is_initialized():
        gc.collect()                                   # DDP objects refer to themselves and keep the group alive
        dist.destroy_process_group()
        cpu_group.cache_clear()


# ------------------------------------------------------------------------------------- devices

def uses_bf16(device, precision='auto'):
    """`--precision` auto: bf16 on GPUs that support it, float32 elsewhere"""
    on_gpu = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == 'bf16' or precision == 'auto' and on_gpu


def autocast(device, precision='auto'):
    """bf16 autocast, or none. The weight cache is off: a weight that is cast in a no-grad pass (`avm.attend`) would have
    no gradient in a later pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision), cache_enabled=False)


def uses_checkpointing(cfg, device):
    """`--activation-checkpointing` -1: on GPUs"""
    return cfg.activation_checkpointing == 1 or cfg.activation_checkpointing == -1 and device.type == 'cuda'


def peak_memory(device):
    """Peak memory of this process in GB: GPU memory on CUDA, else resident memory. On Linux a process
    inherits the peak of the process that started it."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == 'darwin' else 1024     # bytes per unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
