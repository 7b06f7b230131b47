"""One step of FLAVA and of FLAVA+, every part of it recomputed; the initial pre-training."""
import pytest
import torch
import torch.nn.functional as F

import flava
from avm import AVM, attend
from conftest import DEVICE
from model import AudioVideoMAE, loss_per_pair
from one_step import B, all_patches, batch, config, losses_of, make, record_calls, rows_of
from patches import Patches, concat_patches, gather_patches, to_float
from selection import discriminative_query, prune_probability


@pytest.fixture
def fixed_matching_loss(monkeypatch):
    """L^avm = 0.25: the real one draws who is matched with whom."""
    monkeypatch.setattr(flava, 'matching_loss', lambda *given: torch.tensor(0.25))


def test_initial_pretraining_trains_the_avm(fixed_masks, fixed_matching_loss):
    cfg = config()
    method = flava.InitialPretraining(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))
    loss, log = method(batch(0))
    torch.testing.assert_close(loss, loss_per_pair(cfg, losses_of(method, all_patches(method, 0))).mean() + 0.25)
    assert log['avm'] == 0.25


def queries(method, out):
    """q̂_a, q̂_v of Eq. 4"""
    cfg = method.cfg
    return (discriminative_query(out.I_a, out.q_a, cfg.kappa_a),
            discriminative_query(out.I_v, out.q_v, cfg.kappa_v))


@pytest.mark.parametrize('name', ['flava', 'flava+'])
def test_a_step_is_algorithm_1(name, fixed_masks, fixed_matching_loss, monkeypatch):
    """A step with a memory, recomputed from what was stored: I, q̂ and c of the past; P of Eq. 5 from them; the patches
    selected from I and P; L = ℓ^r + λℓ^c + αℓ^p + L^avm."""
    method = make(name, alpha=0.5, memory_size=8)
    cfg = method.cfg
    first = method.step(batch(0))
    selected = record_calls(monkeypatch, flava, 'select_patches')
    stored = {n: rows.clone() for n, rows in method.memory.rows.items()}
    step = method.step(batch(1))
    slots = method.memory.sampled

    # the first batch meets an empty memory: nothing is pruned; its I and q̂ are those of the model
    out = attend(cfg, method.backbone, method.avm, all_patches(method, 0))
    assert not first.past and not first.scores.P_a.any() and not first.scores.P_v.any()
    for m, query in zip('av', queries(method, out)):
        torch.testing.assert_close(stored[f'query_{m}'][:B].float(), query, rtol=2e-3, atol=1e-3)
    if name == 'flava':
        torch.testing.assert_close(stored['importance_a'][:B], out.I_a)
        torch.testing.assert_close(stored['importance_v'][:B], out.I_v)
        assert not stored['prune_a'][:B].any() and not stored['prune_v'][:B].any()

    # Eq. 5: the other modality's query, now and past
    out = attend(cfg, method.backbone, method.avm, all_patches(method, 1))
    query_a, query_v = queries(method, out)
    past_a, past_v = (stored[f'query_{m}'][slots].float() for m in 'av')
    P_a = prune_probability(out.I_a, out.k_a, query_v, past_v, cfg.kappa_a)
    P_v = prune_probability(out.I_v, out.k_v, query_a, past_a, cfg.kappa_v)
    assert P_a.max() > 0.1 and not torch.allclose(P_a[P_a > 0], torch.tensor(0.5), atol=1e-4)
    ((_, *given), now), replays = selected[0], selected[1:]
    expected = out.I_a, out.I_v, P_a, P_v, P_v, query_v
    for got, other in zip((*given, step.scores.P_v, step.scores.queries['query_v']), expected, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-6)

    # FLAVA selects replayed pairs anew, from the stored I and P; FLAVA+ replays the stored patches
    if name == 'flava':
        ((_, *given), ids), = replays
        for got, key in zip(given, ('importance_a', 'importance_v', 'prune_a', 'prune_v')):
            assert torch.equal(got, stored[key][slots])
        past = gather_patches(all_patches(method, rows_of(0, slots)), *ids)
        for m, P in (('a', P_a), ('v', P_v)):
            torch.testing.assert_close(method.memory.rows[f'prune_{m}'][B:], P, rtol=1e-4, atol=1e-6)
    else:
        assert not replays
        past = to_float(Patches(stored['patches_a'][slots].float(), stored['patches_v'][slots],
                                stored['ids_a'][slots].long(), stored['ids_v'][slots].long()), cfg.patch_size)
        patches = all_patches(method, 0)
        for i, n in enumerate(slots):
            torch.testing.assert_close(past.x_v[i], patches.x_v[n, past.ids_v[i]])

    losses = losses_of(method, concat_patches(gather_patches(all_patches(method, 1), *now), past))
    drift = sum(F.mse_loss(pooled[B:], stored[f'pooled_{m}'][slots].float())
                for m, pooled in (('a', losses.pooled_a), ('v', losses.pooled_v)))
    assert drift > 1e-4
    expected = loss_per_pair(cfg, losses).mean() + 0.5 * drift + 0.25
    torch.testing.assert_close(step.loss, expected, rtol=1e-4, atol=1e-5)


def test_each_current_pair_meets_one_replayed_pair():
    """Four current pairs, three in the memory: the fourth meets the first one again."""
    method = make('flava')
    method(batch(0, pairs=3))
    past = method.memory.sample(B, DEVICE)
    out = attend(method.cfg, method.backbone, method.avm, all_patches(method, 1))
    query_a, query_v = queries(method, out)
    P_a, P_v = method.prune_probabilities(out, query_a, query_v, past)
    for i, partner in enumerate((0, 1, 2, 0)):
        one = slice(i, i + 1)
        for P, I, k, query, past_query in ((P_a, out.I_a, out.k_a, query_v, past['query_v']),
                                           (P_v, out.I_v, out.k_v, query_a, past['query_a'])):
            expected = prune_probability(I[one], k[one], query[one], past_query[partner:partner + 1], I.shape[1] // 2)
            torch.testing.assert_close(P[one], expected)
