"""Run by torchrun with two processes, in an empty folder: gradients, embeddings, mistakes, every method.

    two_processes.py OPTION ...     options of train.py
"""
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
import baselines
import downstream.pictures
import downstream.report
import eval as evaluation
import model
import train
from config import METHODS, UserError
from one_step import batch, fixed_random_masks, make
from patches import Mask, Patches, patchify
from running import assert_same_state
from streams.common import Clip, check_same_on_all_ranks
from utils.checkpoint import read_checkpoint, run_lock
from utils.distributed import barrier, cleanup, get_rank, init_distributed
from utils.logging import Progress


def same_masks(cfg, patches):
    """One mask for all pairs, so that it does not matter how they are split"""
    first = Patches(*(x[:1] for x in patches))
    return [Mask(*(ids.expand(len(patches.x_a), -1) for ids in mask)) for mask in fixed_random_masks(cfg, first)]


def check_gradients(method, expected_loss, expected):
    """Loss and gradients of two processes on half of a batch each equal those of one process on all of it."""
    half = {name: x.chunk(2)[get_rank()] for name, x in batch(0, pairs=8).items()}
    parallel = DistributedDataParallel(method)
    loss, _ = parallel(half)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)

    # the virtual step of MIR and GMED uses the same gradient
    trained = [parameter.grad for parameter in method.parameters()]
    virtual = baselines.batch_gradient(method.cfg, method.backbone, patchify(half, method.cfg.patch_size))
    error = max((g - e).abs().max().item() for gradients in (trained, virtual) for g, e in zip(gradients, expected))
    assert max(e.abs().max().item() for e in expected) > 1e-2, 'gradients too small to compare'
    assert max(error, (mean / 2 - expected_loss).abs().item()) < 1e-5, error


class Clips(torch.utils.data.Dataset):
    """Seven random clips, of which one cannot be read"""
    labels = [('x',)] * 7

    def __len__(self):
        return 7

    def __getitem__(self, key):
        torch.manual_seed(key[0])
        return dict(audio=torch.randn(4, 4), video=torch.zeros(1, 3, 2, 2, dtype=torch.uint8), clip=key[0],
                    bad='gone' if key[0] == 2 else '')


def embed():
    """Two tasks, the last batch of each smaller → embeddings, the task of each clip, clips that were skipped"""
    backbone = SimpleNamespace(embed=lambda audio, video: (audio.flatten(1), 2 * audio.flatten(1)))
    (embeddings,), task_of, skipped = evaluation.embed_clips([backbone], [Clips(), Clips()], torch.device('cpu'), 3, 0)
    assert task_of.tolist() == [0] * 6 + [1] * 6 and skipped == ['gone'] * 2
    return embeddings


def check_mistakes():
    """They are reported on all ranks, also on those that have no problem themselves."""
    folder = 'locked' if get_rank() == 0 else 'free'
    if get_rank() == 0:
        Path('locked').write_text('a file')
    with pytest.raises(UserError, match='--out locked cannot be written'), run_lock(folder, 'cache'):
        pass
    clips = [Clip(f'{n}.mp4', ('x',)) for n in range(3) if n != get_rank()]
    with pytest.raises(UserError, match='the ranks see different clips in data'):
        check_same_on_all_ranks('data', clips)


def stop_and_resume(options, method):
    """A signal to one process stops both. The resumed run ends as the one that was not stopped."""
    whole, stopped, update = Path('whole', method), Path('stopped', method), Progress.update
    options = [*options, '--method', method, '--out', str(stopped)]

    def update_and_stop(progress, *step):
        if get_rank() == 1 and progress.run.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        update(progress, *step)
    with mock.patch.object(Progress, 'update', update_and_stop), pytest.raises(SystemExit) as end:
        train.main(options)
    assert end.value.code == 130
    step = read_checkpoint(stopped / 'last.pt')['global_step']
    assert step == 3 and (stopped / 'last.process1.stream.step3.pt').exists(), step
    barrier()                                      # a fast rank must not resume and save before the other has looked
    train.main([*options, '--resume'])
    barrier()                                      # rank 0 has written the results
    assert (whole / 'results.json').read_bytes() == (stopped / 'results.json').read_bytes()
    assert_same_state(whole / 'last.pt', stopped / 'last.pt')


def main(options):
    method = make('finetune')
    with mock.patch.object(model, 'random_masks', same_masks):
        loss, _ = method(batch(0, pairs=8))
        gradients, embeddings = torch.autograd.grad(loss, list(method.parameters())), embed()
        device = init_distributed(SimpleNamespace(device='cpu'))
        check_gradients(method, loss.detach(), gradients)
    torch.testing.assert_close(embed(), embeddings, rtol=0, atol=0)        # in the same order
    check_mistakes()

    # one process group for all runs; os._exit is how several processes end
    train.init_distributed, train.cleanup, os._exit = lambda cfg: device, lambda: None, sys.exit
    downstream.pictures.draw, downstream.report.write_report = lambda *run: [], lambda folder: []
    for method in METHODS:
        train.main([*options, '--method', method, '--out', f'whole/{method}'])
    for method in ('flava+', 'gmed', 'cls-er'):
        stop_and_resume(options, method)
    # a student: most steps leave the AVM without a gradient
    train.main([*options, *'--selection rank --scorer student --scorer-every 2 --steps 3 --out whole/student'.split()])
    cleanup()


if __name__ == '__main__':
    main(sys.argv[1:])
