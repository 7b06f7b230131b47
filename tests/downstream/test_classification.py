"""Classification: metrics by hand, and whole runs."""
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

import eval as evaluation
from config import parse
from downstream import classification
from run import Recorded
from running import TINY
from untrained import make_run, only_last, options


# ------------------------------------------------------------------------------------- metrics

def test_accuracy_by_hand():
    logits = torch.tensor([[3., 2, 1, 0], [0, 1, 2, 3], [1, 1, 0, 0], [math.nan] * 4])
    target = F.one_hot(torch.tensor([0, 2, 0, 1]), 4).float()
    found = [classification.accuracy(logits, target, k) for k in (1, 2)]
    assert found == [25, 75]                                           # a tie with the best is not the best


def test_map_is_sklearns_and_by_hand():
    # class 0: its two clips come first and third: (1/1 + 2/3) / 2; class 1: its clip comes second: 1/2; class 2: none
    logits = torch.tensor([[4., 3, 0], [3, 4, 9], [2, 0, 0], [1, 1, 0]])
    target = torch.tensor([[1., 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    found = classification.mean_average_precision(logits, target)
    assert math.isclose(found, 100 * (5 / 6 + 1 / 2) / 2, rel_tol=1e-6)
    logits, target = torch.randn(50, 7), (torch.rand(50, 7) < 0.3).float()
    sklearns = 100 * average_precision_score(target, logits)
    assert math.isclose(classification.mean_average_precision(logits, target), sklearns, rel_tol=1e-6)


def test_targets_and_losses():
    target = classification.multi_hot([('b',), ('a', 'c', 'of no task')], ['a', 'b', 'c'])
    assert target.tolist() == [[0, 1, 0], [1, 0, 1]]
    logits = torch.randn(2, 3)
    one = F.one_hot(torch.tensor([2, 0]), 3).float()
    assert torch.allclose(classification.head_loss(logits, one, False), -logits.log_softmax(1)[[0, 1], [2, 0]].mean())
    p = logits.sigmoid()
    each = -(target * p.log() + (1 - target) * (1 - p).log())
    assert torch.allclose(classification.head_loss(logits, target, True), each.mean(), atol=1e-6)


# ------------------------------------------------------------------------------------ whole runs

SMALL = [*TINY, '--clips-per-task', '24', '--test-clips', '12', '--pretrain-steps', '0', '--method', 'finetune']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run that has learned two tasks."""
    folder = tmp_path_factory.mktemp('run')
    return make_run(folder, parse([*SMALL, '--out', str(folder)])[0], range(3)).folder


@pytest.fixture
def run(folder):
    return Recorded(folder, device='cpu')


def test_classification_of_a_run(run):
    args = options(epochs=2, batch_size=8, lr=1e-2)
    results, table, figure = evaluation.answer(run, 'classification', args)
    names = run.stream.names
    assert results['metric'] == 'accuracy' and results['tasks'] == names and results['after'] == names[:2]
    assert [len(row) for row in results['acc']] == [6, 6]      # all tasks, those of which nothing was learned yet too
    assert results['A'] == sum(results['acc'][1]) / 6 and results['F'] is None         # the stream is not at its end
    assert results['chance'] == [100 / 18] * 6 and results['left_out'] == []           # one head: 18 classes, not 3
    top5 = [value for row in results['top5']['acc'] for value in row]
    assert all(own <= five <= 100 for own, five in zip(sum(results['acc'], []), top5))
    assert f'| finetune | {results["A"]:.2f} | – | {results["top5"]["A"]:.2f} | – |' in table
    assert f'| {names[1]} |' in table and 'one for all tasks' in table
    labels = [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith('_')]
    assert labels == [*names, 'chance (mean)']
    run.write('classification', results, table, figure)
    assert run.read('classification') == results and classification.show(run, run.read('classification'))[0] == table

    acc = results['acc']
    assert classification.measure(run, args)['acc'] == acc                  # repeatable
    last = evaluation.answer(only_last(run), 'classification', args)[0]
    assert last['acc'] == acc[1:] and last['F'] is None
    other_seed = options(epochs=2, batch_size=8, lr=1e-2, seed=1)
    assert classification.measure(run, other_seed)['acc'] != last['acc']


@pytest.mark.parametrize('finetune', [False, True])
def test_backbone_is_frozen_unless_fine_tuned(finetune, run, monkeypatch):
    kept, real = [], Recorded.load

    def load(self, file):
        loaded = real(self, file)
        kept.append((file, loaded[0]))
        return loaded

    monkeypatch.setattr(Recorded, 'load', load)
    classification.measure(only_last(run), options(epochs=1, batch_size=8, clips=8, finetune=finetune))
    assert len(kept) == 1                                      # one head a model, for all tasks
    for file, backbone in kept:
        before = real(run, file)[0].state_dict()
        changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
        if finetune:
            assert {'patch_embed_a.proj.weight', 'norm.weight', 'pos_v', 'fusion.0.attn.qkv.weight'} <= changed
            assert not any(name.startswith(('decoder', 'head', 'norm_a')) for name in changed)   # not on the way there
        else:
            assert not changed


class Toy(torch.utils.data.Dataset):
    """A class is loud in the lower or the upper half of the spectrogram, and red or not: whoever looks sees it."""

    def __init__(self, labels, broken=()):
        self.labels, self.broken, self.drawn = labels, broken, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        clip, _ = key
        generator = torch.Generator().manual_seed(clip)
        audio, video = 0.1 * torch.randn(64, 32, generator=generator), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        names = self.drawn[clip]
        audio[:, :16] += 3 * ('low' in names)
        audio[:, 16:] += 3 * ('high' in names)
        video[:, 0] = 255 * ('red' in names)
        return dict(audio=audio, video=video, clip=clip, bad='x: gone' if clip in self.broken else '')


def toy_run(run, *tasks):
    """tasks: (labels of clips, classes) of each"""
    run.stream = run.stream._replace(
        names=['toy', 'other toy'][:len(tasks)], train=[Toy(labels * 16) for labels, _ in tasks],
        evaluate=[Toy(labels * 4, broken=[1]) for labels, _ in tasks], classes=[classes for _, classes in tasks])
    return run


def test_one_head_learns_what_is_there_in_all_tasks(run):
    toy = toy_run(run, ([('low',), ('high',)], ['low', 'high']), ([('red',), ('silence',)], ['red', 'silence']))
    results = evaluation.answer(toy, 'classification', options(epochs=25, lr=0.2, batch_size=6))[0]
    assert results['acc'] == [[100, 100], [100, 100]] and results['F'] == 0 and results['left_out'] == ['x: gone']
    assert results['chance'] == [25, 25]


def test_a_head_is_asked_about_the_classes_of_all_tasks(run):
    """Two tasks whose clips look alike: heads of their own would tell their classes apart, one head for both cannot."""
    toy = toy_run(run, ([('low',), ('high',)], ['low', 'high']),
                  ([('other low',), ('other high',)], ['other low', 'other high']))
    for dataset in (toy.stream.train[1], toy.stream.evaluate[1]):
        dataset.drawn = [(label.removeprefix('other '),) for label, in dataset.labels]
    results = evaluation.answer(toy, 'classification', options(epochs=25, lr=0.2, batch_size=6))[0]
    assert all(40 < sum(row) / 2 < 60 for row in results['acc']), results['acc']


def test_several_labels_a_clip(run):
    labels = [('low',), ('high', 'red'), ('red', 'of no task'), ('low', 'high')]
    toy = toy_run(run, (labels, ['red', 'low', 'high']))
    toy.models = lambda: [(1, 'toy', run.folder / 'models' / '1.pt')]
    results, table, _ = evaluation.answer(toy, 'classification', options(epochs=15, lr=3e-2, batch_size=12))
    assert results['metric'] == 'mAP' and results['A'] > 99.9 and 'top5' not in results and 'mAP A ↑' in table
    assert 45 < results['chance'][0] < 55
