"""Run by torchrun: losses and gradients of two processes on halves of a batch, against one on the whole."""
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
import baselines
from conftest import ODD
from model import AudioVideoMAE
from patches import Sizes, draw_visible

sizes, B, kept = Sizes(**ODD), 8, 20
torch.manual_seed(0)
model = AudioVideoMAE(sizes)
p = sizes.patch_size
x_a, x_v = torch.randn(B, kept, p * p), torch.randn(B, kept, p * p * 3)
kept_a = torch.rand(B, sizes.num_patches_a).argsort(1)[:, :kept]
kept_v = torch.rand(B, sizes.num_patches_v).argsort(1)[:, :kept]
inputs = (x_a, x_v, kept_a, kept_v, *draw_visible(kept_a, 7), *draw_visible(kept_v, 9))


class Loss(nn.Module):
    """What a method's forward does, with the masks given."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x_a, x_v, kept_a, kept_v, see_a, hide_a, see_v, hide_v):
        losses = self.model.losses(x_a, x_v, kept_a, kept_v, (see_a, hide_a), (see_v, hide_v), 0.05)
        return losses.each(0.7).mean()


whole = Loss(model)(*inputs)
whole.backward()
expected = [parameter.grad.clone() for parameter in model.parameters()]
model.zero_grad()

dist.init_process_group('gloo')
half = [x.chunk(2)[dist.get_rank()] for x in inputs]
parallel = DistributedDataParallel(Loss(model))     # to be kept: with it go the hooks that average gradients
loss = parallel(*half)
loss.backward()
mean = loss.detach().clone()
dist.all_reduce(mean)
mean /= 2

# MIR's and GMED's virtual step goes along the same gradient
baselines.autoencode = lambda cfg, backbone, patches: backbone.losses(*patches[:4], patches[4:6], patches[6:], 0.05)
virtual = baselines.gradient_of_batch(SimpleNamespace(lam=0.7, mae_weight=1.0), model, half)

own = [parameter.grad for parameter in model.parameters()]
difference = max([(mean - whole).abs().item()] + [(g - e).abs().max().item() for gradients in (own, virtual)
                                                  for g, e in zip(gradients, expected)])
largest = max(e.abs().max().item() for e in expected)
assert largest > 1e-2, 'gradients too small to compare'
assert difference < 1e-5, difference
if dist.get_rank() == 0:
    print(f'largest difference {difference:.1e}, largest gradient {largest:.1e}')
del parallel, loss                     # they hold the group: its threads must be gone before Python is
dist.barrier()
dist.destroy_process_group()
