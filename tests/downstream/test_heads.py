"""Linear probes: schedule, batches, features against a slow reference, masking."""
import math

import pytest
import torch
from torch import nn

from config import UserError
from downstream import heads
from downstream.classification import joint_embedding
from model import AudioVideoMAE
from untrained import options, randomized, reference_joint


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
    assert heads.schedule_for('vggsound', options()) == ((5e-4, 15, 48), '')
    assert heads.schedule_for('audioset', options()) == ((5e-4, 15, 36), '')
    assert heads.schedule_for('ave', options()) == ((1e-3, 15, 12), '')
    changed = heads.schedule_for('ave', options(epochs=2, batch_size=5, clips=9))
    assert changed == ((1e-3, 2, 5), '--clips 9 --epochs 2 --batch-size 5')


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


def test_joint_embedding_equals_the_slow_reference(sizes):
    backbone, = randomized(AudioVideoMAE(sizes).double())
    audio, video = torch.randn(2, 64, 48).double(), torch.randn(2, 3, 3, 32, 32).double()
    fast = joint_embedding(backbone, dict(audio=audio, video=video))
    assert fast.shape == (2, 48) and fast.dtype == torch.float32
    for i in range(2):
        a, v = reference_joint(backbone, audio[i], video[i], sizes.patch_size)
        assert torch.allclose(fast[i].double(), torch.cat([sum(a) / len(a), sum(v) / len(v)]), atol=1e-5)


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
