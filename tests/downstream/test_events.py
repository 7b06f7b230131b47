"""Events in AVE: the embedding of a second against a slow reference, and a whole run on toys."""
import math

import pytest
import torch

from config import UserError
from downstream import events
from eval import run_evaluation
from model import AudioVideoMAE
from running import TINY
from untrained import make_run, options, randomized, reference_joint
from utils.cli import parse


def reference_second(model, audio, video, audio_start, second):
    """The embedding of one second of one clip, token by token. audio (W, t, f), video (W, T, 3, H, W)"""
    s = model.sizes
    starts = [min(start, 10 - s.num_frames) for start in range(0, 10, s.num_frames)]
    w = next(w for w, start in enumerate(starts) if start <= second < start + s.num_frames)
    a, v = reference_joint(model, audio[w], video[w], s.patch_size)
    per_frame, per_step = len(v) // s.num_frames, s.mel_bins // s.patch_size
    own_v = v[(second - starts[w]) * per_frame:(second - starts[w] + 1) * per_frame]
    step = s.patch_size * s.frame_shift / 1000
    times = [audio_start[w].item() + (i // per_step + 0.5) * step for i in range(len(a))]
    own_a = [token for token, time in zip(a, times) if second <= time < second + 1]
    if not own_a:
        nearest = min(times, key=lambda time: abs(time - second - 0.5))
        own_a = [token for token, time in zip(a, times) if time == nearest]
    return torch.cat([sum(own_a) / len(own_a), sum(own_v) / len(own_v)])


def test_second_embedding_equals_the_slow_reference(sizes):
    """Windows of three seconds with 1.28 s of sound: some seconds have sound, others take the nearest patch."""
    backbone, = randomized(AudioVideoMAE(sizes).double())
    audio, video = torch.randn(2, 4, 64, 48).double(), torch.randn(2, 4, 3, 3, 32, 32).double()
    audio_start = torch.tensor([[0.87, 3.87, 6.87, 7.87], [0.0, 3.63, 6.13, 8.71]])
    fast = events.second_embedding(backbone, dict(audio=audio, video=video, audio_start=audio_start))
    assert fast.shape == (2, 10, 48) and fast.dtype == torch.float32
    for clip in range(2):
        for second in range(10):
            slow = reference_second(backbone, audio[clip], video[clip], audio_start[clip], second)
            assert torch.allclose(fast[clip, second].double(), slow, atol=1e-5), (clip, second)


@pytest.fixture
def run(tmp_path):
    """A run that has learned two tasks"""
    words = ['--clips-per-task', '3', '--method', 'finetune', '--out', str(tmp_path)]
    return make_run(tmp_path, parse([*TINY, *words])[0], range(3))


class ToyAVE(torch.utils.data.Dataset):
    """Ten seconds with one of two events, loud or red. Windows of two seconds, with all of their sound."""

    def __init__(self, length):
        self.length, self.bad = length, ['z: no audio stream']

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        clip, _ = key
        event, begin, end = 1 + clip % 2, clip % 3, 6 + clip % 4
        audio, video = torch.zeros(5, 64, 32), torch.zeros(5, 2, 3, 32, 32, dtype=torch.uint8)
        target = torch.tensor([event if begin <= second < end else 0 for second in range(10)])
        times = torch.arange(5)[:, None] * 2 + (torch.arange(64) + 0.5) * 0.062 - 1            # 4 s per window
        audio[(begin <= times) & (times < end)] = 3.0 * (event == 1)
        video[:, :, 0] = 255 * (target.reshape(5, 2) == 2)[..., None, None]
        return dict(audio=audio, video=video, audio_start=torch.arange(5) * 2.0 - 1, target=target, clip=clip,
                    bad='y: gone' if self.length == 12 and clip == 5 else '')


def test_a_probe_finds_the_events(run, monkeypatch):
    sets = dict(train=ToyAVE(48), test=ToyAVE(12))
    monkeypatch.setattr(events, 'ave', lambda folder, cfg, workers: (sets, ['loud', 'red']))
    args = options(data='toy', lr=3e-2, epochs=15)
    results, table, figure = run_evaluation(run, 'ave', args)
    target = torch.stack([sets['test'][i, 0]['target'] for i in range(12) if i != 5])
    assert math.isclose(results['majority'], 100 * max((target == c).double().mean().item() for c in range(3)))
    assert results['accuracy'] > 90 > results['majority'] and min(results['per_class']) > 80
    assert results['after'] == run.stream.names[1] and results['classes'] == ['background', 'loud', 'red']
    assert results['left_out'] == ['y: gone', 'z: no audio stream']
    assert f'| finetune | {results["accuracy"]:.2f} |' in table and f'| {results["majority"]:.2f} |' in table
    assert sorted(bar.get_width() for bar in figure.axes[0].patches) == sorted(results['per_class'])


@pytest.mark.parametrize('folder, message', [('', '--data'), ('nowhere', 'Annotations.txt')])
def test_mistakes(folder, message, run):
    with pytest.raises(UserError, match=message):
        events.evaluate(run, options(data=folder))
