"""On a GPU, a step makes the host wait for nothing: counted on fake CUDA tensors, which need no GPU.

Fake tensors have a device, a shape and a dtype, but no values: whatever asks for one, as `.item()` and boolean masks
do, fails. They also find operations on two devices, and dtypes that do not fit, under bf16 autocast.
"""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import memory
import patches
from avm import AVM
from baselines import METHODS, WITHOUT_ATTENTION, CLSER, build
from config import PRESETS, Config
from flava import InitialPretraining
from conftest import ODD
from model import AudioVideoMAE

B = 6


class Copies(TorchDispatchMode):
    """Copies between host and device: those the host waits for, and those it does not."""

    def __init__(self):
        super().__init__()
        self.waited, self.sent = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        if operation.name() in ('aten::_to_copy', 'aten::copy_'):
            source = args[operation.name() == 'aten::copy_']
            if isinstance(source, torch.Tensor) and source.device.type != out.device.type:
                asynchronous = kwargs.get('non_blocking', args[2] if len(args) > 2 else False)
                if asynchronous and source.device.type == 'cpu' and source.dim() == 1:
                    self.sent += 1
                else:
                    self.waited.append((operation.name(), tuple(source.shape), source.device.type))
        return out


@pytest.fixture
def fake(monkeypatch):
    """A FakeTensorMode, in which the CPU's random numbers, which decide what is replayed, are what a fake cannot be."""
    def slots(self, number):
        self.seen += number
        return list(range(number)), list(range(number))
    monkeypatch.setattr(memory.Memory, 'draw_slots', slots)
    monkeypatch.setattr(CLSER, 'toss', lambda self: (0, 0))
    monkeypatch.setattr('copy.deepcopy', lambda backbone: AudioVideoMAE(backbone.sizes))      # would copy the mode, too
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda self: self)
    monkeypatch.setattr(torch.random, 'fork_rng', lambda *args, **more: nullcontext())
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=2 ** 37))
    # Without a driver, autocast would switch itself off, and …
    monkeypatch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args, **more: True)
    # … autograd's engine does not start: MIR's, GMED's and the AVM's gradients are made up.
    monkeypatch.setattr(torch.autograd, 'grad', lambda loss, inputs, **more: [torch.zeros_like(x) for x in inputs])
    patches.image_statistics.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    patches.image_statistics.cache_clear()


def a_batch(cfg):
    video = torch.zeros(B, cfg.num_frames, 3, cfg.image_size, cfg.image_size, dtype=torch.uint8, device='cuda')
    return dict(audio=torch.randn(B, cfg.audio_frames, cfg.mel_bins, device='cuda'), video=video)


@pytest.mark.parametrize('name', [*METHODS, *WITHOUT_ATTENTION, 'initial'])
def test_a_step_waits_for_nothing(name, fake):
    named = dict(method='flava', selection=name) if name in WITHOUT_ATTENTION else dict(method=name)
    cfg = Config(**{**PRESETS['small'], **(named if name != 'initial' else {}), 'batch_size': B, 'memory_size': 40})
    with torch.device('cuda'):
        backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
        method = InitialPretraining(cfg, backbone, avm) if name == 'initial' else build(cfg, backbone, avm)
    for step in range(3):                                  # the first fills the memory and sends the constants
        with Copies() as copies, torch.autocast('cuda', torch.bfloat16):
            loss, log = method(a_batch(cfg))
            if hasattr(method, 'after_step'):
                method.after_step()
        assert loss.device.type == 'cuda' and loss.dtype == torch.float32 and loss.shape == ()
        assert all(part.device.type == 'cuda' for part in log.values())
    assert copies.waited == []
    assert copies.sent <= 4                                # which rows are drawn, and which replaced: a number a pair
    if method.memory is not None:
        assert method.memory.device.type == 'cuda' and len(method.memory) == 18


def test_a_memory_that_would_take_over_a_quarter_of_the_gpu_lies_beside_it(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=2 ** 10))
    real = torch.empty
    monkeypatch.setattr(torch, 'empty', lambda *args, pin_memory=False, **more: real(*args, **more))
    held = memory.Memory(40)
    held.add(audio=torch.randn(B, 8, 8, device='cuda'))
    assert held.device.type == 'cpu' and held.sample(4, torch.device('cuda'))['audio'].device.type == 'cuda'


def test_nothing_is_copied_where_no_pair_won_a_slot(monkeypatch):
    held = memory.Memory(4)
    held.add(audio=torch.ones(4, 2, 2))
    monkeypatch.setattr(memory.Memory, 'write', None)
    monkeypatch.setattr(memory.Memory, 'draw_slots', lambda self, number: ([], []))
    held.add(audio=torch.zeros(4, 2, 2))
    assert (held.sample(4, 'cpu')['audio'] == 1).all()


@pytest.mark.parametrize('name', [*METHODS, *WITHOUT_ATTENTION, 'initial'])
def test_in_bf16_every_parameter_that_learns_gets_a_gradient(name):
    """Also those that the scoring pass, which needs none, was the first to cast."""
    named = dict(method='flava', selection=name) if name in WITHOUT_ATTENTION else dict(method=name)
    cfg = Config(**{**ODD, **(named if name != 'initial' else {}), 'batch_size': B, 'memory_size': 40})
    backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
    method = InitialPretraining(cfg, backbone, avm) if name == 'initial' else build(cfg, backbone, avm)
    for _ in range(2):                                     # the second replays
        batch = dict(audio=torch.randn(B, cfg.audio_frames, cfg.mel_bins), video=torch.randint(
            0, 256, (B, cfg.num_frames, 3, cfg.image_size, cfg.image_size), dtype=torch.uint8))
        with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
            loss, _ = method(batch)
        method.zero_grad()
        loss.backward()
    without = [name for name, x in method.named_parameters() if x.requires_grad and x.grad is None]
    assert not without
    learns_attention = name in ('flava', 'flava+', 'initial')
    assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in backbone.parameters())
    assert not learns_attention or all(x.grad.abs().sum() > 0 for n, x in avm.named_parameters())
