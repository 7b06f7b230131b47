"""Heads on a trained backbone: features and schedule against literal versions, metrics by hand, and whole runs."""
import argparse
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import nn

import classify
import clips
from avm import AVM
from config import parse
from model import AudioVideoMAE, UserError
from recorded import Recorded
from test_train import TINY


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """Models this small only lose by sharing their work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(**given):
    return argparse.Namespace(**dict(dict(data='', epochs=None, lr=None, batch_size=None, clips=None, finetune=False,
                                          seed=0), **given))


# ------------------------------------------------------------------------------------ schedule

def test_rate_by_hand():
    """Two warm-up epochs of 5 steps, 10 steps of cosine: 1 at its start, half in its middle, and nothing left after the end."""
    assert [round(classify.rate(step, 20, 10), 9) for step in range(10)] == [round(0.1 * (step + 1), 9) for step in range(10)]
    assert classify.rate(10, 20, 10) == 1 and math.isclose(classify.rate(15, 20, 10), 0.5)
    assert math.isclose(classify.rate(12, 20, 10), 0.5 * (1 + math.cos(math.pi / 5)))
    assert classify.rate(20, 20, 10) < 1e-12 and classify.rate(0, 4, 0) == 1


@pytest.mark.parametrize('epochs, warmup', [(15, 2), (10, 2), (5, 1), (1, 0.2)])
def test_learn_follows_the_schedule(epochs, warmup, monkeypatch):
    """The rates that AdamW really steps with, 10 steps an epoch."""
    seen, real = [], torch.optim.AdamW.step

    def step(self, *more):
        (group,) = self.param_groups
        assert group['betas'] == (0.95, 0.999) and group['weight_decay'] == 5e-6
        seen.append(group['lr'])
        return real(self, *more)

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    weight = nn.Parameter(torch.ones(3))
    plan = classify.Recipe(5e-4, epochs, 48)
    classify.learn([weight], list(range(10 * epochs)), plan, lambda batch: (weight.square().sum(), 0.5), 'x')
    assert len(seen) == 10 * epochs
    assert torch.tensor(seen).argmax() in (10 * warmup - 1, 10 * warmup) and math.isclose(max(seen), 5e-4)
    assert math.isclose(seen[0], 5e-4 / (10 * warmup)) and seen[-1] < 0.06 * 5e-4
    with pytest.raises(UserError, match='smaller --lr'):
        classify.learn([weight], [0], classify.Recipe(1, 1, 1), lambda batch: (weight.sum() * math.nan, 0), 'x')


def test_recipe_is_table_6_unless_told_otherwise():
    assert classify.recipe('vggsound', options()) == (5e-4, 15, 48) and classify.recipe('audioset', options()) == (5e-4, 15, 36)
    assert classify.recipe('ave', options()) == (1e-3, 15, 12)
    assert classify.recipe('ave', options(epochs=2, batch_size=5)) == (1e-3, 2, 5)
    for wrong in (dict(epochs=0), dict(lr=-1.0), dict(clips=0)):
        with pytest.raises(UserError, match='above 0'):
            classify.recipe('ave', options(**wrong))


def test_batches_visit_each_clip_once_an_epoch_with_a_new_seed():
    batches = classify.draw_batches(13, classify.Recipe(1, 3, 4), seed=5)
    assert [len(batch) for batch in batches] == [4] * 9
    for epoch in range(3):
        assert len({clip for batch in batches[3 * epoch:3 * epoch + 3] for clip, _ in batch}) == 12
    assert len({seed for batch in batches for _, seed in batch}) == 36
    assert batches == classify.draw_batches(13, classify.Recipe(1, 3, 4), seed=5)
    capped = classify.draw_batches(13, classify.Recipe(1, 3, 4), seed=5, cap=3)
    assert [len(batch) for batch in capped] == [3] * 3 and len({clip for batch in capped for clip, _ in batch}) == 3


# ------------------------------------------------------------------------------------ features

def literal_joint(model, audio, video, p):
    """One clip, patch after patch: audio (t, f), video (T, 3, H, W) → lists of joint vectors (D,) after `norm`."""
    def patches(image, embed):                                                 # image (channels, rows, columns)
        return [(embed.proj.weight * image[:, y:y + p, x:x + p]).sum((1, 2, 3)) + embed.proj.bias
                for y in range(0, image.shape[1], p) for x in range(0, image.shape[2], p)]

    a, v = patches(audio[None], model.patch_embed_a), [x for frame in video for x in patches(frame, model.patch_embed_v)]
    a, v = torch.stack(a) + model.pos_a[0] + model.modality_a[0], torch.stack(v) + model.pos_v[0] + model.modality_v[0]
    for block in model.encoder_a:
        a = block(a[None])[0]
    for block in model.encoder_v:
        v = block(v[None])[0]
    x = torch.cat([a + model.fusion_pos_a[0], v + model.fusion_pos_v[0]])[None]
    for block in model.fusion:
        x = block(x)
    x = F.layer_norm(x[0], x.shape[-1:], model.norm.weight, model.norm.bias, 1e-5)
    return list(x[:len(a)]), list(x[len(a):])


@pytest.fixture
def backbone(sizes):
    model = AudioVideoMAE(sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))      # so that no LayerNorm is the same as another
    return model


def test_joint_embedding_is_the_literal_one(backbone, sizes):
    audio, video = torch.randn(2, 64, 48).double(), torch.randn(2, 3, 3, 32, 32).double()
    found = classify.joint_embedding(backbone, audio, video)
    assert found.shape == (2, 48) and found.dtype == torch.float32
    for i in range(2):
        a, v = literal_joint(backbone, audio[i], video[i], sizes.patch_size)
        assert torch.allclose(found[i].double(), torch.cat([sum(a) / len(a), sum(v) / len(v)]), atol=1e-5)


def literal_second(model, audio, video, audio_start, second):
    """What `events` makes of one second of one clip, token after token. audio (W, t, f), video (W, T, 3, H, W)"""
    s = model.sizes
    starts = [min(start, 10 - s.num_frames) for start in range(0, 10, s.num_frames)]
    w = next(w for w, start in enumerate(starts) if start <= second < start + s.num_frames)
    a, v = literal_joint(model, audio[w], video[w], s.patch_size)
    per_frame, per_step = len(v) // s.num_frames, s.mel_bins // s.patch_size
    own_v = v[(second - starts[w]) * per_frame:(second - starts[w] + 1) * per_frame]
    times = [audio_start[w].item() + (i // per_step + 0.5) * s.patch_size * s.frame_shift / 1000 for i in range(len(a))]
    own_a = [token for token, time in zip(a, times) if second <= time < second + 1]
    if not own_a:
        nearest = min(times, key=lambda time: abs(time - second - 0.5))
        own_a = [token for token, time in zip(a, times) if time == nearest]
    return torch.cat([sum(own_a) / len(own_a), sum(own_v) / len(own_v)]), len(own_a)


def test_second_embedding_is_the_literal_one(backbone):
    """Windows of three seconds, of which 1.28 are heard: most seconds hear some of it, some must take the nearest."""
    audio, video = torch.randn(2, 4, 64, 48).double(), torch.randn(2, 4, 3, 3, 32, 32).double()
    audio_start = torch.tensor([[0.87, 3.87, 6.87, 7.87], [0.0, 3.63, 6.13, 8.71]])
    found = classify.second_embedding(backbone, audio, video, audio_start)
    assert found.shape == (2, 10, 48) and found.dtype == torch.float32
    counts = set()
    for clip in range(2):
        for second in range(10):
            slow, count = literal_second(backbone, audio[clip], video[clip], audio_start[clip], second)
            assert torch.allclose(found[clip, second].double(), slow, atol=1e-5), (clip, second)
            counts.add(count)
    assert len(counts) > 3 and min(counts) == 6                                # six patches are one step in time


def test_masking_stays_within_limits_and_differs_between_clips():
    torch.manual_seed(1)
    for t, f, most_t, most_f in ((1024, 128, 192, 48), (256, 64, 48, 24)):
        clean = torch.rand(200, t, f)                                          # never 5.081 / 4.485
        hidden = classify.masked(clean) != clean
        rows, columns = hidden.all(2), hidden.all(1)                           # 200,t and 200,f
        assert torch.equal(hidden, rows[:, :, None] | columns[:, None])        # whole rows and columns, nothing else
        assert 0.9 * most_t < rows.sum(1).max() <= most_t and 0.9 * most_f <= columns.sum(1).max() <= most_f
        assert (rows.int().diff(dim=1) == 1).sum(1).max() <= 1                 # in one run
        assert len({tuple(row.tolist()) for row in rows}) > 100 and len({tuple(row.tolist()) for row in columns}) > 60
    value = classify.masked(clean)
    assert torch.allclose(value[value > 1], torch.tensor(5.081 / 4.485))       # log mel energy 0, as CAV-MAE sets it


# ------------------------------------------------------------------------------------- metrics

def test_accuracy_by_hand():
    logits = torch.tensor([[3., 2, 1, 0], [0, 1, 2, 3], [1, 1, 0, 0], [math.nan] * 4])
    target = F.one_hot(torch.tensor([0, 2, 0, 1]), 4).float()
    assert [classify.accuracy(logits, target, k) for k in (1, 2)] == [25, 75]  # a tie with the best is not the best


def test_map_is_sklearns_and_by_hand():
    # class 0: its two clips come first and third: (1/1 + 2/3) / 2; class 1: its clip comes second: 1/2; class 2 has no clip
    logits = torch.tensor([[4., 3, 0], [3, 4, 9], [2, 0, 0], [1, 1, 0]])
    target = torch.tensor([[1., 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert math.isclose(classify.mean_average_precision(logits, target), 100 * (5 / 6 + 1 / 2) / 2, rel_tol=1e-6)
    logits, target = torch.randn(50, 7), (torch.rand(50, 7) < 0.3).float()
    sklearns = 100 * average_precision_score(target, logits)
    assert math.isclose(classify.mean_average_precision(logits, target), sklearns, rel_tol=1e-6)


def test_targets_and_losses():
    target = classify.multi_hot([('b',), ('a', 'c', 'of no task')], ['a', 'b', 'c'])
    assert target.tolist() == [[0, 1, 0], [1, 0, 1]]
    logits = torch.randn(2, 3)
    one = F.one_hot(torch.tensor([2, 0]), 3).float()
    assert torch.allclose(classify.head_loss(logits, one, False), -logits.log_softmax(1)[[0, 1], [2, 0]].mean())
    p = logits.sigmoid()
    each = -(target * p.log() + (1 - target) * (1 - p).log())
    assert torch.allclose(classify.head_loss(logits, target, True), each.mean(), atol=1e-6)


def test_forgetting_over_the_tasks_learned_so_far():
    found = classify.over_stream([[80, None, None], [70, 60, None]])
    assert found['A'] == 65 and found['F'] == 10
    assert classify.over_stream([[80, 60]]) == dict(acc=[[80, 60]], A=70, F=None)


# ------------------------------------------------------------------------------------ whole runs

SMALL = [*TINY, '--clips-per-task', '24', '--test-clips', '12', '--pretrain-steps', '0', '--method', 'finetune']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run's folder with three models, as train.py leaves one when it has learned two tasks."""
    folder = tmp_path_factory.mktemp('run')
    cfg, _ = parse([*SMALL, '--out', str(folder)])
    (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    (folder / 'models').mkdir()
    torch.manual_seed(3)
    for t in range(3):
        parts = {'backbone': AudioVideoMAE(cfg), 'avm': AVM(cfg.embed_dim, cfg.avm_heads)}
        torch.save(dict(config=dataclasses.asdict(cfg), weights=nn.ModuleDict(parts).state_dict()), folder / 'models' / f'{t}.pt')
    return Recorded(folder, device='cpu')


def test_classification_of_a_run(run):
    args = options(epochs=2, batch_size=8, lr=1e-2)
    results, table, figure = classify.classification(run, args)
    names = run.stream.names
    assert results['metric'] == 'accuracy' and results['tasks'] == names and results['after'] == names[:2]
    assert [[value is None for value in row] for row in results['acc']] == [[False] + [True] * 5, [False] * 2 + [True] * 4]
    assert results['A'] == sum(results['acc'][1][:2]) / 2 and results['F'] == results['acc'][0][0] - results['acc'][1][0]
    assert results['top5']['A'] == 100 and results['chance'][0] == 100 / 3 and results['left_out'] == []
    assert f'| finetune | {results["A"]:.2f} | {results["F"]:.2f} | 100.00 | 0.00 |' in table and f'| {names[1]} |' in table
    assert [line.get_label() for line in figure.axes[0].lines] == [*names[:2], 'chance (mean)']
    run.write('classification', results, table, figure)
    assert run.read('classification') == results
    assert classify.classification(run, args)[0] == results                # repeatable
    run.last = True
    last = classify.classification(run, options(epochs=2, batch_size=8, lr=1e-2))[0]
    assert last['acc'] == results['acc'][1:] and last['F'] is None
    assert classify.classification(run, options(epochs=2, batch_size=8, lr=1e-2, seed=1))[0] != last


@pytest.mark.parametrize('finetune', [False, True])
def test_backbone_is_frozen_unless_fine_tuned(finetune, run, monkeypatch):
    kept, real = [], Recorded.load

    def load(self, file):
        loaded = real(self, file)
        kept.append((file, loaded[0]))
        return loaded

    monkeypatch.setattr(Recorded, 'load', load)
    run.last = True
    classify.classification(run, options(epochs=1, batch_size=8, clips=8, finetune=finetune))
    assert len(kept) == 2
    for file, backbone in kept:
        before = real(run, file)[0].state_dict()
        changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
        if finetune:
            assert {'patch_embed_a.proj.weight', 'norm.weight', 'pos_v', 'fusion.0.attn.qkv.weight'} <= changed
            assert not any(name.startswith(('decoder', 'head', 'norm_a')) for name in changed)   # not on the way to the head
        else:
            assert not changed


class Toy(torch.utils.data.Dataset):
    """A class is loud in the lower or the upper half of the spectrogram, and red or not: whoever looks sees it."""

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


def toy_run(run, labels, classes):
    stream = run.stream._replace(names=['toy', 'toy again'], train=[Toy(labels * 16)] * 2,
                                 evaluate=[Toy(labels * 4, broken=[1])] * 2, classes=[classes] * 2)
    toy = Recorded(run.folder, device='cpu')
    toy.stream = stream
    return toy


def test_a_head_learns_what_is_there(run):
    toy = toy_run(run, [('low',), ('high',), ('red',)], ['red', 'low', 'high'])
    results = classify.classification(toy, options(epochs=25, lr=0.2, batch_size=6))[0]
    assert results['acc'] == [[100, None], [100, 100]] and results['F'] == 0 and results['left_out'] == ['x: gone']


def test_several_labels_a_clip(run):
    toy = toy_run(run, [('low',), ('high', 'red'), ('red', 'of no task'), ('low', 'high')], ['red', 'low', 'high'])
    toy.last = True
    results, table, _ = classify.classification(toy, options(epochs=15, lr=3e-2, batch_size=12))
    assert results['metric'] == 'mAP' and results['A'] > 99.9 and 'top5' not in results and 'mAP A ↑' in table
    assert 45 < results['chance'][0] < 55


# ---------------------------------------------------------------------------------------- AVE

class ToyAVE(torch.utils.data.Dataset):
    """Ten seconds of two events, one loud and one red, that begin and end; windows of two seconds, each heard in whole."""

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
    monkeypatch.setattr(classify.datasets, 'ave', lambda folder, sizes, **scan: (sets, ['loud', 'red']))
    results, table, figure = classify.events(run, options(data='there', lr=3e-2, epochs=15))
    truth = torch.stack([sets['test'][i, 0]['target'] for i in range(12) if i != 5])
    assert math.isclose(results['majority'], 100 * max((truth == c).double().mean().item() for c in range(3)))
    assert results['accuracy'] > 90 > results['majority'] and min(results['per_class']) > 80
    assert results['after'] == run.stream.names[1] and results['classes'] == ['background', 'loud', 'red']
    assert results['left_out'] == ['y: gone', 'z: no audio stream']
    assert f'| finetune | {results["accuracy"]:.2f} |' in table and f'| {results["majority"]:.2f} |' in table
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == 'loud red loud red loud loud red loud'.split()
    run.write('ave', results, table, figure)
    assert run.read('ave') == results
    assert classify.events(run, options(data='there', lr=3e-2, epochs=15))[0] == results


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
    results = classify.events(run, options(data=str(tmp_path), lr=0.1, batch_size=4, epochs=8))[0]
    assert results['classes'] == ['background', 'Church bell', 'Red light'] and results['left_out'] == []
    assert results['accuracy'] > 85 > 50 > results['majority']
    (tmp_path / 'testSet.txt').unlink()
    with pytest.raises(UserError, match='testSet.txt'):
        classify.events(run, options(data=str(tmp_path)))


def test_events_without_ave(run):
    with pytest.raises(UserError, match='--data'):
        classify.events(run, options())
    with pytest.raises(UserError, match='Annotations.txt is missing'):
        classify.events(run, options(data='nowhere'))
