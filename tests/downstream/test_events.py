"""Events in AVE: what a second is made of against a literal version, and whole runs, on toys and on files."""
import math

import numpy as np
import pytest
import torch

import clips
import eval as evaluation
from config import parse
from downstream import events
from patches import UserError
from running import TINY
from untrained import literal_joint, make_run, options, uneven


def literal_second(model, audio, video, audio_start, second):
    """What `events` makes of one second of one clip, token after token. audio (W, t, f), video (W, T, 3, H, W)"""
    s = model.sizes
    starts = [min(start, 10 - s.num_frames) for start in range(0, 10, s.num_frames)]
    w = next(w for w, start in enumerate(starts) if start <= second < start + s.num_frames)
    a, v = literal_joint(model, audio[w], video[w], s.patch_size)
    per_frame, per_step = len(v) // s.num_frames, s.mel_bins // s.patch_size
    own_v = v[(second - starts[w]) * per_frame:(second - starts[w] + 1) * per_frame]
    step = s.patch_size * s.frame_shift / 1000
    times = [audio_start[w].item() + (i // per_step + 0.5) * step for i in range(len(a))]
    own_a = [token for token, time in zip(a, times) if second <= time < second + 1]
    if not own_a:
        nearest = min(times, key=lambda time: abs(time - second - 0.5))
        own_a = [token for token, time in zip(a, times) if time == nearest]
    return torch.cat([sum(own_a) / len(own_a), sum(own_v) / len(own_v)]), len(own_a)


def test_second_embedding_is_the_literal_one(sizes):
    """Windows of three seconds, of which 1.28 are heard: most seconds hear some of it, some must take the nearest."""
    backbone = uneven(sizes)
    audio, video = torch.randn(2, 4, 64, 48).double(), torch.randn(2, 4, 3, 3, 32, 32).double()
    audio_start = torch.tensor([[0.87, 3.87, 6.87, 7.87], [0.0, 3.63, 6.13, 8.71]])
    found = events.second_embedding(backbone, audio, video, audio_start)
    assert found.shape == (2, 10, 48) and found.dtype == torch.float32
    counts = set()
    for clip in range(2):
        for second in range(10):
            slow, count = literal_second(backbone, audio[clip], video[clip], audio_start[clip], second)
            assert torch.allclose(found[clip, second].double(), slow, atol=1e-5), (clip, second)
            counts.add(count)
    assert len(counts) > 3 and min(counts) == 6                                # six patches are one step in time


def test_clips_that_tell_something_are_shown():
    still, begins = torch.ones(10), torch.arange(10)
    assert events.telling(torch.stack([still, begins, still, begins])) == [1, 3]
    assert events.telling(torch.stack([still] * 3)) == [0, 1, 2]
    assert events.telling(torch.stack([begins] * 20)) == list(range(events.SHOWN))


# ------------------------------------------------------------------------------------ whole runs

SMALL = [*TINY, '--clips-per-task', '24', '--test-clips', '12', '--pretrain-steps', '0', '--method', 'finetune']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run that has learned two tasks."""
    folder = tmp_path_factory.mktemp('run')
    return make_run(folder, parse([*SMALL, '--out', str(folder)])[0], range(3))


class ToyAVE(torch.utils.data.Dataset):
    """Ten seconds of two events, one loud and one red, that begin and end; windows of two seconds, each heard whole."""

    def __init__(self, length):
        self.length, self.bad = length, ['z: no audio stream']

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        clip, _ = key
        event, begin, end = 1 + clip % 2, clip % 3, 6 + clip % 4
        audio, video = torch.zeros(5, 64, 32), torch.zeros(5, 2, 3, 32, 32, dtype=torch.uint8)
        target = torch.tensor([event if begin <= second < end else 0 for second in range(10)])
        times = torch.arange(5)[:, None] * 2 + (torch.arange(64) + 0.5) * 0.062 - 1            # each window hears 4 s
        audio[(begin <= times) & (times < end)] = 3.0 * (event == 1)
        video[:, :, 0] = 255 * (target.reshape(5, 2) == 2)[..., None, None]
        return dict(audio=audio, video=video, audio_start=torch.arange(5) * 2.0 - 1, target=target, clip=clip,
                    bad='y: gone' if self.length == 12 and clip == 5 else '')


def test_events_are_found(run, monkeypatch):
    sets = dict(train=ToyAVE(48), test=ToyAVE(12))
    monkeypatch.setattr(events, 'ave', lambda folder, sizes, **scan: (sets, ['loud', 'red']))
    args = options(data='there', lr=3e-2, epochs=15)
    results, table, figure = evaluation.answer(run, 'ave', args)
    truth = torch.stack([sets['test'][i, 0]['target'] for i in range(12) if i != 5])
    assert math.isclose(results['majority'], 100 * max((truth == c).double().mean().item() for c in range(3)))
    assert results['accuracy'] > 90 > results['majority'] and min(results['per_class']) > 80
    assert results['after'] == run.stream.names[1] and results['classes'] == ['background', 'loud', 'red']
    assert results['left_out'] == ['y: gone', 'z: no audio stream']
    assert f'| finetune | {results["accuracy"]:.2f} |' in table and f'| {results["majority"]:.2f} |' in table
    assert [clip['target'] for clip in results['shown']] == truth[:8].tolist()
    run.write('ave', results, table, figure)
    assert run.read('ave') == results
    assert events.measure(run, args) == results                                # repeatable

    right = events.show(run, run.read('ave'))[1].axes[1]                       # the record is enough to draw it
    event = 'loud red loud red loud loud red loud'.split()
    assert [label.get_text() for label in right.get_yticklabels()] == event
    drawn = [bar.get_facecolor() for bar in right.patches]                     # clip, second, what is and what is found
    assert len(drawn) == 8 * 10 * 2
    for clip, colours in zip(results['shown'], (drawn[i:i + 20] for i in range(0, 160, 20))):
        same = [is_ == found for is_, found in zip(colours[::2], colours[1::2])]
        assert same == [is_ == found for is_, found in zip(clip['target'], clip['guess'])]


def write_ave(folder, train, test):
    """AVE's layout: ten seconds each, in which either a tone sounds or the picture turns red for a while."""
    (folder / 'AVE').mkdir()
    rows = []
    for n in range(train + test):
        label, begin, end = ('Church bell', 'Red light')[n % 2], n % 3, 6 + n % 4
        times = np.arange(160000) / 16000
        bell = (label == 'Church bell') * (begin <= times) * (times < end) * clips.tone(10, 16000)
        sound = bell + clips.tone(10, 16000, hertz=300, level=0.02)

        def image(frame):
            red = 200 if label == 'Red light' and begin <= frame / 4 < end else 20
            return np.tile(np.array([red, 20, 20], np.uint8), (48, 48, 1))

        clips.make(folder / 'AVE' / f'video{n:02d}.mp4', 10, fps=4, size=(48, 48), sound=sound, image=image)
        rows.append(f'{label}&video{n:02d}&good&{begin}&{end}\n')
    (folder / 'Annotations.txt').write_text('Category&VideoID&Quality&StartTime&EndTime\n' + ''.join(rows))
    (folder / 'trainSet.txt').write_text(''.join(rows[:train]))
    (folder / 'testSet.txt').write_text(''.join(rows[train:]))


def test_events_in_files(run, tmp_path, monkeypatch):
    write_ave(tmp_path, 12, 4)
    monkeypatch.chdir(tmp_path)                                                # where the list of tested clips goes
    results = events.measure(run, options(data=str(tmp_path), lr=0.1, batch_size=4, epochs=8))
    assert results['classes'] == ['background', 'Church bell', 'Red light'] and results['left_out'] == []
    assert results['accuracy'] > 85 > 50 > results['majority']
    (tmp_path / 'testSet.txt').unlink()
    with pytest.raises(UserError, match='testSet.txt'):
        events.measure(run, options(data=str(tmp_path)))


def test_events_without_ave(run):
    with pytest.raises(UserError, match='--data'):
        events.measure(run, options())
    with pytest.raises(UserError, match='Annotations.txt is missing'):
        events.measure(run, options(data='nowhere'))
