"""Linear probes, classification and events in AVE: schedules, embeddings against slow references, runs on toys."""
import math

import pytest
import torch
from torch import nn

from config import UserError
from conftest import render_once
from downstream import classification, events, heads
from eval import run_evaluation
from model import AudioVideoMAE
from running import TINY
from untrained import make_run, only_last, options, randomized, reference_joint
from utils.cli import parse


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that has learned two tasks"""
    render_once(monkeypatch)
    small = ['--clips-per-task', '12', '--test-clips', '6', '--pretrain-steps', '0', '--method', 'finetune']
    return make_run(tmp_path, parse([*TINY, *small, '--cache', str(tmp_path), '--out', str(tmp_path)])[0], range(3))


# ---------------------------------------------------------------------------------- training a head

@pytest.mark.parametrize('epochs, warmup', [(15, 2), (1, 0.2)])
def test_training_follows_the_schedule(epochs, warmup, monkeypatch):
    """The learning rates of AdamW's steps, 10 steps per epoch"""
    rates, real = [], torch.optim.AdamW.step

    def step(self, *more):
        (group,) = self.param_groups
        assert group['betas'] == (0.95, 0.999) and group['weight_decay'] == 5e-6
        rates.append(group['lr'])
        return real(self, *more)

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    probe = heads.Probe(nn.Identity(), nn.Linear(3, 1), lambda backbone, batch: batch['audio'])
    batch = dict(audio=torch.ones(2, 3), video=torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8))
    heads.train_probes([probe], [batch] * 10 * epochs, 10 * epochs, heads.Schedule(5e-4, epochs, 48),
                       lambda logits, batch: logits.square().mean())
    assert len(rates) == 10 * epochs
    assert torch.tensor(rates).argmax() in (10 * warmup - 1, 10 * warmup) and math.isclose(max(rates), 5e-4)
    assert math.isclose(rates[0], 5e-4 / (10 * warmup)) and rates[-1] < 0.06 * 5e-4
    with pytest.raises(UserError, match='smaller --lr'):
        heads.train_probes([probe], [batch], 1, heads.Schedule(1, 1, 1), lambda logits, batch: logits.sum() * math.nan)


def test_the_schedule_is_table_6_unless_options_change_it():
    for name, schedule in (('vggsound', (5e-4, 15, 48)), ('audioset', (5e-4, 15, 36)), ('ave', (1e-3, 15, 12))):
        assert heads.schedule_for(name, options()) == schedule
    changed = options(epochs=2, batch_size=5, clips=9)
    assert heads.schedule_for('ave', changed) == (1e-3, 2, 5)
    assert heads.options_text(changed) == '--clips 9 --epochs 2 --batch-size 5'


def test_batches_visit_each_clip_once_per_epoch_with_a_new_seed():
    schedule = heads.Schedule(1, 3, 4)
    batches = heads.probe_batches([13], schedule, seed=5)
    assert [len(batch) for batch in batches] == [4] * 9
    for epoch in range(3):
        assert len({clip for batch in batches[3 * epoch:3 * epoch + 3] for clip, _ in batch}) == 12
    assert len({seed for batch in batches for _, seed in batch}) == 36
    assert batches == heads.probe_batches([13], schedule, seed=5)
    capped = heads.probe_batches([13], schedule, seed=5, cap=3)
    assert [len(batch) for batch in capped] == [3] * 3 and len({clip for batch in capped for clip, _ in batch}) == 3
    two_tasks = heads.probe_batches([5, 13], heads.Schedule(1, 1, 4), seed=5, cap=2)                 # two of each
    assert sorted(clip >= 5 for batch in two_tasks for clip, _ in batch) == [False, False, True, True]


def test_spec_augment_stays_within_limits_and_differs_between_clips():
    torch.manual_seed(1)
    for t, f, most_t, most_f in ((1024, 128, 192, 48), (256, 64, 48, 24)):
        clean = torch.rand(200, t, f)                                          # never 5.081 / 4.485
        masked = heads.spec_augment(clean) != clean
        rows, columns = masked.all(2), masked.all(1)                           # 200,t and 200,f
        assert torch.equal(masked, rows[:, :, None] | columns[:, None])        # whole rows and columns, nothing else
        assert 0.9 * most_t < rows.sum(1).max() <= most_t and 0.9 * most_f <= columns.sum(1).max() <= most_f
        assert (rows.int().diff(dim=1) == 1).sum(1).max() <= 1                 # one run
        assert len({tuple(row.tolist()) for row in rows}) > 100                # each clip has its own
    values = heads.spec_augment(clean)
    assert torch.allclose(values[values > 1], torch.tensor(5.081 / 4.485))     # log mel energy 0, as in CAV-MAE


# -------------------------------------------------------------------------------------- embeddings

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


def test_embeddings_equal_the_slow_references(sizes):
    """Of a clip; and of seconds, from windows of three seconds with 1.28 s of sound: some seconds have sound, others
    take the nearest patch."""
    backbone, = randomized(AudioVideoMAE(sizes).double())
    audio, video = torch.randn(2, 4, 64, 48).double(), torch.randn(2, 4, 3, 3, 32, 32).double()
    audio_start = torch.tensor([[0.87, 3.87, 6.87, 7.87], [0.0, 3.63, 6.13, 8.71]])
    clips = classification.joint_embedding(backbone, dict(audio=audio[:, 0], video=video[:, 0]))
    seconds = events.second_embedding(backbone, dict(audio=audio, video=video, audio_start=audio_start))
    assert clips.shape == (2, 48) and seconds.shape == (2, 10, 48) and clips.dtype == seconds.dtype == torch.float32
    for clip in range(2):
        a, v = reference_joint(backbone, audio[clip, 0], video[clip, 0], sizes.patch_size)
        assert torch.allclose(clips[clip].double(), torch.cat([sum(a) / len(a), sum(v) / len(v)]), atol=1e-5)
        for second in range(10):
            slow = reference_second(backbone, audio[clip], video[clip], audio_start[clip], second)
            assert torch.allclose(seconds[clip, second].double(), slow, atol=1e-5), (clip, second)


# ---------------------------------------------------------------------------------- classification

def test_mean_average_precision_by_hand():
    # class 0: its two clips are first and third: (1/1 + 2/3) / 2; class 1: its clip is second: 1/2; class 2: no clip
    logits = torch.tensor([[4., 3, 0], [3, 4, 9], [2, 0, 0], [1, 1, 0]])
    target = torch.tensor([[1., 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    scores = classification.task_scores(logits, target, True)
    assert math.isclose(scores['metric'], 100 * (5 / 6 + 1 / 2) / 2, rel_tol=1e-6) and scores['chance'] == 37.5


def test_classification_of_a_run(run):
    args = options(epochs=1, batch_size=8, lr=1e-2)
    results, table, figure = run_evaluation(run, 'classification', args)
    names = run.stream.names
    assert results['metric'] == 'accuracy' and results['tasks'] == names and results['after'] == names[:2]
    assert [len(row) for row in results['acc']] == [6, 6]      # also of tasks that are not learned yet
    assert results['A'] == sum(results['acc'][1]) / 6 and results['F'] is None         # the stream has not ended
    assert results['chance'] == [100 / 18] * 6 and results['left_out'] == []           # one head: 18 classes, not 3
    assert f'| finetune | {results["A"]:.2f} | – |' in table
    assert 'chance' in [line.get_label() for line in figure.axes[0].lines]

    # the numbers do not depend on the other models, but on the seed
    last = classification.evaluate(only_last(run), args)
    assert last['acc'] == results['acc'][1:]
    assert classification.evaluate(run, options(epochs=1, batch_size=8, lr=1e-2, seed=1))['acc'] != last['acc']


@pytest.mark.parametrize('finetune', [False, True])
def test_the_backbone_is_frozen_unless_fine_tuned(finetune, run):
    (_, _, file), = only_last(run).models()
    backbone, avm = run.load_model(file)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    run.load_model = lambda file: (backbone, avm)
    classification.evaluate(run, options(epochs=1, batch_size=8, clips=8, finetune=finetune))
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    if finetune:
        assert {'patch_embed.a.proj.weight', 'norm.joint.weight', 'pos.v', 'fusion.0.attn.qkv.weight'} <= changed
        assert not any(name.startswith(('decoder', 'head', 'norm.a')) for name in changed)       # not used
    else:
        assert not changed


class Toy(torch.utils.data.Dataset):
    """A clip is loud in the lower or the upper half of the spectrogram, and red or not, as its labels say."""

    def __init__(self, labels, broken=()):
        self.labels, self.broken = labels, broken

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        clip, _ = key
        generator = torch.Generator().manual_seed(clip)
        audio, video = 0.1 * torch.randn(64, 32, generator=generator), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        names = self.labels[clip]
        audio[:, :16] += 3 * ('low' in names)
        audio[:, 16:] += 3 * ('high' in names)
        video[:, 0] = 255 * ('red' in names)
        return dict(audio=audio, video=video, clip=clip, bad='x: gone' if clip in self.broken else '')


def toy_run(run, *tasks):
    """tasks: (labels of the clips, classes) of each"""
    run.stream = run.stream._replace(
        names=['toy', 'other toy'][:len(tasks)], train=[Toy(labels * 6) for labels, _ in tasks],
        test=[Toy(labels * 4, broken=[1]) for labels, _ in tasks], classes=[classes for _, classes in tasks])
    return run


def test_one_head_learns_the_classes_of_all_tasks(run):
    toy = toy_run(run, ([('low',), ('high',)], ['low', 'high']), ([('red',), ('silence',)], ['red', 'silence']))
    results = run_evaluation(toy, 'classification', options(epochs=25, lr=0.2, batch_size=6))[0]
    assert results['acc'] == [[100, 100], [100, 100]] and results['F'] == 0 and results['left_out'] == ['x: gone']
    assert results['chance'] == [25, 25]
    toy.stream.test[1].broken = range(8)
    with pytest.raises(UserError, match='none of the clips of task 2 can be read.*x: gone'):
        classification.evaluate(toy, options(epochs=1))


def test_several_labels_per_clip(run):
    labels = [('low',), ('high', 'red'), ('red', 'in no task'), ('low', 'high')]
    toy = toy_run(run, (labels, ['red', 'low', 'high']))
    toy.models = lambda: [(1, 'toy', run.folder / 'models' / '1.pt')]
    results, table, _ = run_evaluation(toy, 'classification', options(epochs=25, lr=3e-2, batch_size=6))
    assert results['metric'] == 'mAP' and results['A'] > 99.9 and 'mAP A ↑' in table
    assert 45 < results['chance'][0] < 55


# ------------------------------------------------------------------------------------------ events

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
    results, table, figure = run_evaluation(run, 'ave', options(data='toy', lr=3e-2, epochs=15))
    target = torch.stack([sets['test'][i, 0]['target'] for i in range(12) if i != 5])
    assert math.isclose(results['majority'], 100 * max((target == c).double().mean().item() for c in range(3)))
    assert results['accuracy'] > 90 > results['majority'] and min(results['per_class']) > 80
    assert results['after'] == run.stream.names[1] and results['classes'] == ['background', 'loud', 'red']
    assert results['left_out'] == ['y: gone', 'z: no audio stream']
    assert f'| finetune | {results["accuracy"]:.2f} |' in table and f'| {results["majority"]:.2f} |' in table
    assert sorted(bar.get_width() for bar in figure.axes[0].patches) == sorted(results['per_class'])
    with pytest.raises(UserError, match='--data'):
        events.evaluate(run, options(data=''))
