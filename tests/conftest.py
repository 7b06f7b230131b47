"""Fixtures for all tests: odd sizes, fixed seeds and masks, clips that are drawn once."""
import dataclasses
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / 'tests'))
torch.set_num_threads(1)      # tiny models do not gain from threads, and lose on busy cores

from config import Sizes                               # after the path is set

# No two sizes are alike, so a swapped axis fails.
ODD = dict(image_size=32, num_frames=3, audio_frames=64, mel_bins=48, frame_shift=20.0, patch_size=8, embed_dim=24,
           num_heads=3, encoder_depth=2, fusion_depth=1, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
           avm_heads=6)

# FLAVA_TEST_DEVICE=cuda: the tests of the equations on a GPU (paper/gpu_check.py)
DEVICE = torch.device(os.environ.get('FLAVA_TEST_DEVICE', 'cpu'))
on_cpu = partial(pytest.mark.skipif, DEVICE.type != 'cpu')                     # @on_cpu(reason=…): CPU by nature


class SeededDraws(TorchFunctionMode):
    """Draws from a generator of the CPU move to the default device, which could not use the generator itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_default = function in (torch.rand, torch.randn, torch.randint, torch.randperm) and 'device' not in kwargs
        if on_default and kwargs.get('generator') is not None:
            return function(*args, **kwargs, device=kwargs['generator'].device).to(torch.get_default_device())
        return function(*args, **kwargs)


if DEVICE.type != 'cpu':
    torch.set_default_device(DEVICE)
    torch.backends.cudnn.allow_tf32 = False            # float32 as on a CPU
    SeededDraws().__enter__()          # for the whole session

RENDERED = {}


def render_once(monkeypatch):
    """Clips of shapes are the same in every run: draw each one once."""
    from streams import shapes
    render = shapes.render

    def cached(scene, sizes):
        numbers = (getattr(sizes, field.name) for field in dataclasses.fields(Sizes))
        key = repr(scene), *numbers
        if key not in RENDERED:
            RENDERED[key] = render(scene, sizes)
        return RENDERED[key]
    monkeypatch.setattr(shapes, 'render', cached)


@pytest.fixture
def sizes():
    return Sizes(**ODD)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope='session')
def files(tmp_path_factory, worker_id):
    """Clips of shapes as mp4 files in VGGSound's layout. Do not change them: all pytest-xdist workers share them."""
    shared = tmp_path_factory.getbasetemp() if worker_id == 'master' else tmp_path_factory.getbasetemp().parent
    folder = shared / 'files'
    with FileLock(shared / 'files.lock'):
        if not folder.exists():
            subprocess.run([sys.executable, '-m', 'streams.shapes', '--out', str(folder), '--train', '9', '--test', '3',
                            '--pretrain', '12', '--size', '48'], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def here(monkeypatch, capsys):
    """here(options, folder): train.py's main in this process, which saves the seconds of imports → exit code, stdout,
    stderr"""
    import train
    render_once(monkeypatch)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(options, folder):
        monkeypatch.chdir(folder)
        code = 0
        try:
            train.main([str(word) for word in options])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs draw no figures and write no report: these take seconds, and other tests draw them."""
    monkeypatch.setattr('downstream.pictures.draw', lambda *run: [])
    monkeypatch.setattr('downstream.report.write_report', lambda folder: [])


@pytest.fixture
def fixed_masks(monkeypatch):
    """The same mask for every call of the same size, so that two computations can be compared."""
    import baselines
    import model
    from one_step import fixed_random_masks
    monkeypatch.setattr(model, 'random_masks', fixed_random_masks)         # `run_backbone` looks it up there
    monkeypatch.setattr(baselines, 'random_masks', fixed_random_masks)
    return fixed_random_masks
