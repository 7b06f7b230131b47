"""What heads share: schedule and features against literal versions, batches, masking, what cannot be read."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from downstream import heads
from patches import UserError
from untrained import literal_joint, options, uneven


# ------------------------------------------------------------------------------------ schedule

def test_rate_by_hand():
    """Two warm-up epochs of 5 steps, 10 steps of cosine: 1 at its start, half in its middle, and nothing left after the
    end."""
    warmed = [round(heads.rate(step, 20, 10), 9) for step in range(10)]
    assert warmed == [round(0.1 * (step + 1), 9) for step in range(10)]
    assert heads.rate(10, 20, 10) == 1 and math.isclose(heads.rate(15, 20, 10), 0.5)
    assert math.isclose(heads.rate(12, 20, 10), 0.5 * (1 + math.cos(math.pi / 5)))
    assert heads.rate(20, 20, 10) < 1e-12 and heads.rate(0, 4, 0) == 1


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
    plan = heads.Recipe(5e-4, epochs, 48)
    probe = SimpleNamespace(title='a head', learning=lambda: [weight])
    heads.learn([probe], list(range(10 * epochs)), plan, lambda batch: batch,
                lambda probe, batch: (weight.square().sum(), 0.5), 'x')
    assert len(seen) == 10 * epochs
    assert torch.tensor(seen).argmax() in (10 * warmup - 1, 10 * warmup) and math.isclose(max(seen), 5e-4)
    assert math.isclose(seen[0], 5e-4 / (10 * warmup)) and seen[-1] < 0.06 * 5e-4
    with pytest.raises(UserError, match='smaller --lr'):
        heads.learn([probe], [0], heads.Recipe(1, 1, 1), lambda batch: batch,
                    lambda probe, batch: (weight.sum() * math.nan, 0), 'x')


def test_recipe_is_table_6_unless_told_otherwise():
    assert heads.recipe('vggsound', options()) == (5e-4, 15, 48)
    assert heads.recipe('audioset', options()) == (5e-4, 15, 36)
    assert heads.recipe('ave', options()) == (1e-3, 15, 12)
    assert heads.recipe('ave', options(epochs=2, batch_size=5)) == (1e-3, 2, 5)
    assert heads.options(options()) == '' and heads.options(options(lr=0.1, clips=9)) == '--clips 9 --lr 0.1'


def test_batches_visit_each_clip_once_an_epoch_with_a_new_seed():
    batches = heads.draw_batches([13], heads.Recipe(1, 3, 4), seed=5)
    assert [len(batch) for batch in batches] == [4] * 9
    for epoch in range(3):
        assert len({clip for batch in batches[3 * epoch:3 * epoch + 3] for clip, _ in batch}) == 12
    assert len({seed for batch in batches for _, seed in batch}) == 36
    assert batches == heads.draw_batches([13], heads.Recipe(1, 3, 4), seed=5)
    capped = heads.draw_batches([13], heads.Recipe(1, 3, 4), seed=5, cap=3)
    assert [len(batch) for batch in capped] == [3] * 3 and len({clip for batch in capped for clip, _ in batch}) == 3
    of_tasks = heads.draw_batches([5, 13], heads.Recipe(1, 1, 4), seed=5, cap=2)                    # of each task
    assert sorted(clip >= 5 for batch in of_tasks for clip, _ in batch) == [False, False, True, True]


# ------------------------------------------------------------------------------------ features

def test_joint_embedding_is_the_literal_one(sizes):
    backbone = uneven(sizes)
    audio, video = torch.randn(2, 64, 48).double(), torch.randn(2, 3, 3, 32, 32).double()
    found = heads.joint_embedding(backbone, audio, video)
    assert found.shape == (2, 48) and found.dtype == torch.float32
    for i in range(2):
        a, v = literal_joint(backbone, audio[i], video[i], sizes.patch_size)
        assert torch.allclose(found[i].double(), torch.cat([sum(a) / len(a), sum(v) / len(v)]), atol=1e-5)


def test_masking_stays_within_limits_and_differs_between_clips():
    torch.manual_seed(1)
    for t, f, most_t, most_f in ((1024, 128, 192, 48), (256, 64, 48, 24)):
        clean = torch.rand(200, t, f)                                          # never 5.081 / 4.485
        hidden = heads.masked(clean) != clean
        rows, columns = hidden.all(2), hidden.all(1)                           # 200,t and 200,f
        assert torch.equal(hidden, rows[:, :, None] | columns[:, None])        # whole rows and columns, nothing else
        assert 0.9 * most_t < rows.sum(1).max() <= most_t and 0.9 * most_f <= columns.sum(1).max() <= most_f
        assert (rows.int().diff(dim=1) == 1).sum(1).max() <= 1                 # in one run
        assert len({tuple(row.tolist()) for row in rows}) > 100 and len({tuple(row.tolist()) for row in columns}) > 60
    value = heads.masked(clean)
    assert torch.allclose(value[value > 1], torch.tensor(5.081 / 4.485))       # log mel energy 0, as CAV-MAE sets it


# ----------------------------------------------------------------------------------- what is told

class Numbers(torch.utils.data.Dataset):
    """Clips of one number, their own; the broken ones cannot be read."""

    def __init__(self, length, broken):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        bad = f'{key[0]}: gone' if key[0] in self.broken else ''
        return dict(x=torch.tensor([float(key[0])]), clip=key[0], bad=bad)


def test_predict_asks_each_readable_clip_once():
    run, sizes_seen = SimpleNamespace(workers=0), []

    def logits_of(factor, batch):
        sizes_seen.append(len(batch['x']))
        return factor * batch['x']

    tasks, names = [Numbers(9, broken=(3, 4, 5, 7)), Numbers(2, broken=())], ['nine', 'two']
    found, bad = heads.predict(run, [2, 3], tasks, names, logits_of, 3, 'clip')          # by two probes
    for factor, ((logits, clips), (of_two, _)) in zip((2, 3), found):
        assert clips.tolist() == [0, 1, 2, 6, 8] and logits[:, 0].tolist() == [factor * n for n in (0, 1, 2, 6, 8)]
        assert of_two[:, 0].tolist() == [0, factor]
    assert bad == ['3: gone', '4: gone', '5: gone', '7: gone'] and sizes_seen == [3, 3, 2, 2, 2, 2]
    with pytest.raises(UserError, match='two: none of the clips can be read.*0: gone'):
        heads.predict(run, [1], [Numbers(3, broken=()), Numbers(2, broken=(0, 1))], names, logits_of, 3, 'clip')
