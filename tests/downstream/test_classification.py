"""Classification: metrics by hand, and whole runs."""
import math

import pytest
import torch

from config import UserError
from conftest import render_once
from downstream import classification
from eval import run_evaluation
from running import TINY
from untrained import make_run, only_last, options
from utils.cli import parse


def test_mean_average_precision_by_hand():
    # class 0: its two clips are first and third: (1/1 + 2/3) / 2; class 1: its clip is second: 1/2; class 2: no clip
    logits = torch.tensor([[4., 3, 0], [3, 4, 9], [2, 0, 0], [1, 1, 0]])
    target = torch.tensor([[1., 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    scores = classification.task_scores(logits, target, True)
    assert math.isclose(scores['metric'], 100 * (5 / 6 + 1 / 2) / 2, rel_tol=1e-6) and scores['chance'] == 37.5


# ------------------------------------------------------------------------------------ whole runs

@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that has learned two tasks"""
    render_once(monkeypatch)
    small = ['--clips-per-task', '12', '--test-clips', '6', '--pretrain-steps', '0', '--method', 'finetune']
    return make_run(tmp_path, parse([*TINY, *small, '--cache', str(tmp_path), '--out', str(tmp_path)])[0], range(3))


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
        evaluate=[Toy(labels * 4, broken=[1]) for labels, _ in tasks], classes=[classes for _, classes in tasks])
    return run


def test_one_head_learns_the_classes_of_all_tasks(run):
    toy = toy_run(run, ([('low',), ('high',)], ['low', 'high']), ([('red',), ('silence',)], ['red', 'silence']))
    results = run_evaluation(toy, 'classification', options(epochs=25, lr=0.2, batch_size=6))[0]
    assert results['acc'] == [[100, 100], [100, 100]] and results['F'] == 0 and results['left_out'] == ['x: gone']
    assert results['chance'] == [25, 25]


def test_a_task_without_readable_clips_is_an_error(run):
    toy = toy_run(run, ([('low',), ('high',)], ['low', 'high']), ([('red',), ('silence',)], ['red', 'silence']))
    toy.stream.evaluate[1].broken = range(8)
    with pytest.raises(UserError, match='none of the clips of task 2 can be read.*x: gone'):
        classification.evaluate(toy, options(epochs=1))


def test_several_labels_per_clip(run):
    labels = [('low',), ('high', 'red'), ('red', 'in no task'), ('low', 'high')]
    toy = toy_run(run, (labels, ['red', 'low', 'high']))
    toy.models = lambda: [(1, 'toy', run.folder / 'models' / '1.pt')]
    results, table, _ = run_evaluation(toy, 'classification', options(epochs=25, lr=3e-2, batch_size=6))
    assert results['metric'] == 'mAP' and results['A'] > 99.9 and 'mAP A ↑' in table
    assert 45 < results['chance'][0] < 55
