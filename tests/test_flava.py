"""One step of FLAVA and of FLAVA+, every part of it recomputed; the initial pre-training."""
import ast
import inspect

import pytest
import torch
import torch.nn.functional as F

import baselines
import flava
from avm import AVM, score
from model import AudioVideoMAE
from one_step import B, batch, config, losses_of, make, rows_of, whole
from patches import Patches, chosen, joined, normalized
from selection import discriminative_query, prune_probability


@pytest.fixture
def matching_is_a_quarter(monkeypatch):
    """L^avm, which draws who is matched with whom, stands aside."""
    monkeypatch.setattr(flava, 'matching_loss', lambda *given: torch.tensor(0.25))


def test_initial_pretraining_trains_the_avm(fixed_masks, matching_is_a_quarter):
    cfg = config()
    method = flava.InitialPretraining(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))
    loss, log = method(batch(0))
    torch.testing.assert_close(loss, losses_of(method, whole(method, 0)).each(0.7).mean() + 0.25)


def queries(method, s):
    """q̂_a, q̂_v of Eq. 4 from Scores"""
    cfg = method.cfg
    return (discriminative_query(s.importance_a, s.q_a, cfg.num_patches_a // 2),
            discriminative_query(s.importance_v, s.q_v, cfg.num_patches_v // 2))


@pytest.mark.parametrize('name', ['flava', 'flava+'])
def test_flava_is_algorithm_1(name, fixed_masks, matching_is_a_quarter, monkeypatch):
    """One step with a memory, every part of it recomputed from what was stored: I, q̂ and c of the past; P of Eq. 5
    from them; which patches are selected from which I and P; L = ℓ^r + λℓ^c + αℓ^p + L^avm."""
    method = make(name, alpha=0.5, memory_size=8)
    cfg = method.cfg
    method(batch(0))
    selected, select = [], flava.select

    def noted(its_cfg, *given):
        assert its_cfg is cfg
        selected.append((given, select(its_cfg, *given)))
        return selected[-1][1]
    monkeypatch.setattr(flava, 'select', noted)
    stored = {n: rows.clone() for n, rows in method.memory.rows.items()}
    loss, log = method(batch(1))
    drawn = method.memory.drawn

    # the first batch met an empty memory: nothing to prune; its I and q̂ are those of the model as it was
    s0 = score(cfg, method.backbone, method.avm, whole(method, 0))
    for n, query in zip('av', queries(method, s0)):
        torch.testing.assert_close(stored[f'query_{n}'][:B].float(), query, rtol=2e-3, atol=1e-3)
    if name == 'flava':
        torch.testing.assert_close(stored['importance_a'][:B], s0.importance_a)
        torch.testing.assert_close(stored['importance_v'][:B], s0.importance_v)
        assert not stored['prune_a'][:B].any() and not stored['prune_v'][:B].any()

    # Eq. 5: the other modality's query, now and past
    s = score(cfg, method.backbone, method.avm, whole(method, 1))
    query_a, query_v = queries(method, s)
    past_a, past_v = (stored[f'query_{n}'][drawn].float() for n in 'av')
    P_a = prune_probability(s.importance_a, s.k_a, query_v, past_v, cfg.num_patches_a // 2)
    P_v = prune_probability(s.importance_v, s.k_v, query_a, past_a, cfg.num_patches_v // 2)
    assert P_a.max() > 0.1
    assert not torch.allclose(P_a[P_a > 0], torch.tensor(0.5), atol=1e-4)          # the past is not the present
    (given, now), replays = selected[0], selected[1:]
    for got, expected in zip(given, (s.importance_a, s.importance_v, P_a, P_v)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)

    if name == 'flava':                                # replayed pairs are selected anew, from the I and P stored
        (given, again), = replays
        for got, key in zip(given, ('importance_a', 'importance_v', 'prune_a', 'prune_v')):
            assert torch.equal(got, stored[key][drawn])
        past = chosen(whole(method, rows_of(0, drawn)), *again)
        for n, P in (('a', P_a), ('v', P_v)):
            torch.testing.assert_close(method.memory.rows[f'prune_{n}'][B:], P, rtol=1e-4, atol=1e-6)
    else:                                              # stored patches are replayed as they are
        assert not replays
        past = normalized(Patches(stored['patches_a'][drawn].float(), stored['patches_v'][drawn],
                                  stored['kept_a'][drawn].long(), stored['kept_v'][drawn].long()), cfg.patch_size)
        everything = whole(method, 0)
        for i, n in enumerate(drawn):
            torch.testing.assert_close(past.x_v[i], everything.x_v[n, past.kept_v[i]])

    losses = losses_of(method, joined(chosen(whole(method, 1), *now), past))
    drift = sum(F.mse_loss(x[B:], stored[f'pooled_{n}'][drawn].float())
                for n, x in (('a', losses.pooled_a), ('v', losses.pooled_v)))
    assert drift > 1e-4
    torch.testing.assert_close(loss, losses.each(0.7).mean() + 0.5 * drift + 0.25, rtol=1e-4, atol=1e-5)


def test_each_current_pair_meets_one_replayed_pair():
    """Four current pairs, and three in the memory: the fourth meets the first of them again."""
    method = make('flava')
    method(batch(0, pairs=3))
    past = method.memory.sample(B, 'cpu')
    s = score(method.cfg, method.backbone, method.avm, whole(method, 1))
    query_a, query_v = queries(method, s)
    P_a, P_v = method.prune(s, query_a, query_v, past)
    for i, partner in enumerate((0, 1, 2, 0)):
        one = slice(i, i + 1)
        for P, I, k, query, past_query in ((P_a, s.importance_a, s.k_a, query_v, past['query_v']),
                                           (P_v, s.importance_v, s.k_v, query_a, past['query_a'])):
            expected = prune_probability(I[one], k[one], query[one], past_query[partner:partner + 1], I.shape[1] // 2)
            torch.testing.assert_close(P[one], expected)


@pytest.mark.parametrize('module, lines', [(flava, 70), (baselines, 67)])
def test_classes_are_short(module, lines):
    """The idea of a method is seen at once, and methods can be read side by side."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            length = node.end_lineno - node.lineno + 1
            assert length < lines, f'{node.name} has {length} lines'
