"""Run by torchrun with two processes, in an empty folder: gradients, the lock, different clips, every method.

    two_processes.py METHOD ... -- OPTION ...
"""
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
import baselines
import downstream.pictures
import downstream.report
import train
from config import Sizes, UserError
from conftest import ODD
from model import AudioVideoMAE, loss_per_pair
from patches import Mask, Patches, random_masking
from streams.common import Clip, check_same_on_all_ranks
from utils.checkpoint import read_checkpoint, run_lock
from utils.distributed import cleanup, get_rank, init_distributed
from utils.logging import Progress

CFG = SimpleNamespace(lam=0.7, mae_weight=1.0)


class Loss(nn.Module):
    """What a method's forward does, with given masks"""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return loss_per_pair(CFG, losses(self.model, inputs)).mean()


def losses(model, inputs):
    """inputs: the four tensors of Patches, and the two of each Mask"""
    return model(Patches(*inputs[:4]), (Mask(*inputs[4:6]), Mask(*inputs[6:])), 0.05)


def random_inputs(sizes, B=8, kept=20):
    p2 = sizes.patch_size ** 2
    ids_a = torch.rand(B, sizes.num_patches_a).argsort(1)[:, :kept]
    ids_v = torch.rand(B, sizes.num_patches_v).argsort(1)[:, :kept]
    return (torch.randn(B, kept, p2), torch.randn(B, kept, 3 * p2), ids_a, ids_v, *random_masking(ids_a, 7),
            *random_masking(ids_v, 9))


def check_gradients(model, inputs, expected_loss, expected):
    """Loss and gradients of two processes on half of a batch each equal those of one process on all of it."""
    half = [x.chunk(2)[get_rank()] for x in inputs]
    parallel = DistributedDataParallel(Loss(model))
    loss = parallel(*half)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)

    # the virtual step of MIR and GMED uses the same gradient
    baselines.run_backbone, original = lambda cfg, backbone, patches: losses(backbone, patches), baselines.run_backbone
    virtual = baselines.batch_gradient(CFG, model, half)
    baselines.run_backbone = original

    trained = [parameter.grad for parameter in model.parameters()]
    error = max((g - e).abs().max().item() for gradients in (trained, virtual) for g, e in zip(gradients, expected))
    assert max(e.abs().max().item() for e in expected) > 1e-2, 'gradients too small to compare'
    assert max(error, (mean / 2 - expected_loss).abs().item()) < 1e-5, error


def raises_on_all_ranks(message, function, *arguments):
    """Also on the ranks that have no problem themselves"""
    try:
        function(*arguments)
    except UserError as error:
        assert message in str(error), error
        return
    raise AssertionError(f'rank {get_rank()} did not raise')


def lock_while_rank_0_cannot():
    folder = 'locked' if get_rank() == 0 else 'free'
    if get_rank() == 0:
        Path('locked').write_text('a file')
    with run_lock(folder, 'cache'):
        pass


def see_different_clips():
    clips = [Clip(f'{n}.mp4', ('x',)) for n in range(3) if n != get_rank()]
    check_same_on_all_ranks('data', clips)


def run_methods(methods, stopped, options):
    """Each method to its end; some of them also stopped, by a signal to one process, and resumed."""
    update = Progress.update

    def update_and_stop(progress, *step):
        if get_rank() == 1 and progress.run.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        update(progress, *step)
    for method in methods:
        own = [*options, '--method', method]
        train.main([*own, '--out', f'whole/{method}'])
        if method not in stopped:
            continue
        Progress.update = update_and_stop
        try:
            train.main([*own, '--out', f'stopped/{method}'])
            raise AssertionError('was not stopped')
        except SystemExit as end:
            assert end.code == 130
        Progress.update = update
        step = read_checkpoint(f'stopped/{method}/last.pt')['global_step']
        assert step == 3 and Path(f'stopped/{method}/last.process1.stream.step3.pt').exists(), step
        dist.barrier()                             # a fast rank must not resume and save before the other has looked
        train.main([*own, '--out', f'stopped/{method}', '--resume'])


def main():
    torch.manual_seed(0)
    model, inputs = AudioVideoMAE(Sizes(**ODD)), random_inputs(Sizes(**ODD))
    loss = Loss(model)(*inputs)
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    device = init_distributed(SimpleNamespace(device='cpu'))
    check_gradients(model, inputs, loss.detach(), gradients)
    raises_on_all_ranks('--out locked cannot be written', lock_while_rank_0_cannot)
    raises_on_all_ranks('the ranks see different clips in data', see_different_clips)
    raises_on_all_ranks('under torchrun each process has its own GPU', check_device_index)

    # one process group for all runs; os._exit is how several processes end
    train.init_distributed, train.cleanup, os._exit = lambda cfg: device, lambda: None, sys.exit
    downstream.pictures.draw, downstream.report.write = lambda *run: [], lambda folder: []
    split = sys.argv.index('--')
    options = sys.argv[split + 1:]
    run_methods(sys.argv[1:split], ('flava+', 'gmed', 'cls-er'), options)
    # a student: most steps leave the AVM without a gradient
    train.main([*options, *'--selection rank --scorer student --scorer-every 2 --steps 3 --out whole/student'.split()])
    cleanup()


def check_device_index():
    import utils.distributed as distributed
    get_device, distributed.get_device = distributed.get_device, torch.device
    try:
        init_distributed(SimpleNamespace(device='cuda:1'))
    finally:
        distributed.get_device = get_device


if __name__ == '__main__':
    main()
