"""What makes each method the method it is, against slow literal versions; and that virtual steps leave no trace."""
import copy

import pytest
import torch
import torch.nn.functional as F

import baselines
import patches
from baselines import METHODS, RANGE_OF_AUDIO, gradient_of_batch, virtual_step
from one_step import B, batch, loss_each, losses_of, make, rows_of, whole
from patches import IMAGE_MEAN, IMAGE_STD, Patches, all_positions, joined, normalized
from selection import select_motion


def fingerprint(method):
    return [w.detach().clone() for w in method.state_dict().values()]


def noted(monkeypatch, name, which):
    """Notes the argument of that number in every call of a function that baselines.py imports → the list of them"""
    seen, function = [], getattr(baselines, name)
    monkeypatch.setattr(baselines, name, lambda *given: seen.append(given[which]) or function(*given))
    return seen


# ----------------------------------------------------------------------------- all of them

NAMES = [name for name in METHODS if name != 'multitask']


@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('name', [*NAMES, 'random', 'mats'])
def test_learns_and_replays(name, bf16):
    """Two batches: a finite loss, a gradient for every weight that is trained, the memory filled; autocast too."""
    method = make(name) if name in NAMES else make('flava', selection=name)
    for seed in range(2):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            loss, log = method(batch(seed))
        assert torch.isfinite(loss) and all(torch.isfinite(x) for x in log.values())
        method.zero_grad()
        loss.backward()
        if hasattr(method, 'after_step'):
            method.after_step()
    trained = [n for n, w in method.named_parameters() if w.requires_grad]
    assert len(trained) >= len(list(method.backbone.parameters()))
    assert [n for n, w in method.named_parameters() if w.requires_grad and (w.grad is None or not w.grad.any())] == []
    assert method.memory is None or len(method.memory) == 2 * B


@pytest.mark.parametrize('name', ['er', 'der++', 'cls-er'])
def test_the_loss_is_on_current_and_replayed_pairs(name, fixed_masks):
    method = make(name, alpha=0.5)
    method(batch(0))
    loss, _ = method(batch(1))
    drawn = method.memory.drawn
    losses = losses_of(method, joined(whole(method, 1), whole(method, rows_of(0, drawn))))
    expected = losses.each(0.7).mean()
    if name != 'er':
        # DER++: where the pairs were when they were stored; CLS-ER: where the copies, equal as yet, see them, under
        # these masks
        was = [method.memory.rows[f'pooled_{n}'][drawn].float() for n in 'av'] if name == 'der++' else \
            [losses.pooled_a[B:].detach(), losses.pooled_v[B:].detach()]
        drift = F.mse_loss(losses.pooled_a[B:], was[0]) + F.mse_loss(losses.pooled_v[B:], was[1])
        assert name == 'cls-er' or drift > 0
        expected = expected + 0.5 * drift if name == 'der++' else expected
    torch.testing.assert_close(loss, expected)
    assert abs(loss - loss_each(method, whole(method, 1)).mean()) > 1e-3           # replay matters


def test_what_der_stores_is_where_the_current_pairs_are_now(fixed_masks):
    method = make('der++')
    method(batch(0))
    first = losses_of(method, whole(method, 0)).pooled_a
    torch.testing.assert_close(method.memory.rows['pooled_a'][:B].float(), first, rtol=2e-3, atol=1e-3)     # float16
    method.memory.capacity = 100                                   # room for all
    method.memory.rows = {n: torch.cat([x, x]) for n, x in method.memory.rows.items()}
    method(batch(1))
    second = losses_of(method, whole(method, 1)).pooled_v
    torch.testing.assert_close(method.memory.rows['pooled_v'][B:2 * B].float(), second, rtol=2e-3, atol=1e-3)


def test_without_the_mae_loss():
    """Fig. 11: ℓ^r out of the stream's loss, and no gradient in the decoder."""
    method = make('finetune', mae_weight=0.0)
    loss, log = method(batch(0))
    torch.testing.assert_close(loss.detach(), 0.7 * log['contrastive'])
    loss.backward()
    assert not any(w.grad.any() for w in method.backbone.decoder.parameters())
    assert method.backbone.encoder_a[0].attn.qkv.weight.grad.any()


# ------------------------------------------------------------------------------- virtual steps

@pytest.mark.parametrize('name', ['mir', 'gmed'])
def test_virtual_steps_leave_no_trace(name):
    """Weights, gradients, optimizer and random states after the virtual part are, to the bit, what they were before."""
    method = make(name)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for seed in range(2):
        loss, _ = method(batch(seed))
        loss.backward()
        optimizer.step()
    before, random, state = fingerprint(method), torch.get_rng_state(), copy.deepcopy(optimizer.state_dict())
    gradients = [w.grad.clone() for w in method.parameters()]
    tried = method.rise if name == 'mir' else method.edited
    first = tried(whole(method, 2), whole(method, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, fingerprint(method)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, w.grad) for a, w in zip(gradients, method.parameters()))
    assert str(state) == str(optimizer.state_dict())
    second = tried(whole(method, 2), whole(method, 3))             # nothing left behind: the same again
    first, second = ((first,), (second,)) if name == 'mir' else (first, second)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_virtual_step_is_undone_when_something_fails():
    method = make('mir')
    before = fingerprint(method)
    gradient = gradient_of_batch(method.cfg, method.backbone, whole(method, 0))
    with pytest.raises(ZeroDivisionError):
        with virtual_step(method.backbone, gradient, 0.1):
            assert not all(torch.equal(a, b) for a, b in zip(before, fingerprint(method)))
            1 / 0
    assert all(torch.equal(a, b) for a, b in zip(before, fingerprint(method)))


def stepped_copy(method, current):
    """θᵛ the slow way: a copy, SGD."""
    virtual = copy.deepcopy(method.backbone)
    optimizer = torch.optim.SGD(virtual.parameters(), lr=method.cfg.lr)
    loss_each(method, current, virtual).mean().backward()
    optimizer.step()
    return virtual


def test_mir_measures_the_step_and_nothing_else():
    """A step of length 0 raises no loss: not even by another mask. And bf16 autocast around it changes nothing."""
    assert not make('mir', lr=0.0).rise(whole(make('mir'), 0), whole(make('mir'), 1)).any()
    method = make('mir')
    torch.manual_seed(3)
    alone = method.rise(whole(method, 0), whole(method, 1))
    with torch.autocast('cpu', torch.bfloat16):
        torch.manual_seed(3)
        assert torch.equal(method.rise(whole(method, 0), whole(method, 1)), alone)


def test_mir_replays_what_would_suffer_most(fixed_masks, monkeypatch):
    method = make('mir', mir_candidates=2, memory_size=20)
    for seed in range(3):
        method(batch(seed))                                        # 12 pairs in the memory
    seen = noted(monkeypatch, 'joined', 1)
    method(batch(7))
    drawn = method.memory.drawn
    assert len(drawn) == 2 * B
    audio, video = (method.memory.rows[n][drawn] for n in ('audio', 'video'))
    candidates = whole(method, dict(audio=audio.float(), video=video))
    virtual = stepped_copy(method, whole(method, 7))
    rise = loss_each(method, candidates, virtual) - loss_each(method, candidates)
    torch.testing.assert_close(method.rise(whole(method, 7), candidates), rise.detach(), rtol=1e-3, atol=1e-4)
    expected = rise.argsort(descending=True)[:B]
    assert rise.std() > 1e-3                       # far more than float32's noise: the order means something
    torch.testing.assert_close(normalized(seen[0], method.cfg.patch_size).x_v, candidates.x_v[expected])
    assert len(seen[0].x_a) == B


def test_gmed_edits_as_its_formula_says(fixed_masks):
    method = make('gmed', gmed_alpha=3.0, gmed_beta=0.2, gmed_gamma=0.9)
    past, current = whole(method, 3), whole(method, 2)
    got = method.edited(current, past)
    virtual = stepped_copy(method, current)
    x_a, x_v = past.x_a.clone().requires_grad_(), past.x_v.clone().requires_grad_()
    x = past._replace(x_a=x_a, x_v=x_v)
    gain = (loss_each(method, x, virtual) - loss_each(method, x)) - 0.2 * loss_each(method, x)
    step_a, step_v = torch.autograd.grad(gain.sum(), (x_a, x_v))
    assert step_v.abs().max() > 1e-3
    expected_a, expected_v = 0.9 * past.x_a + 3 * step_a, 0.9 * past.x_v + 3 * step_v
    low = torch.tensor([-m / s for m, s in zip(IMAGE_MEAN, IMAGE_STD)]).repeat(64)
    high = torch.tensor([(1 - m) / s for m, s in zip(IMAGE_MEAN, IMAGE_STD)]).repeat(64)
    torch.testing.assert_close(got.x_a, expected_a.clamp(*RANGE_OF_AUDIO), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.x_v, torch.minimum(torch.maximum(expected_v, low), high), rtol=1e-4, atol=1e-4)


def test_gmed_clips_replays_and_writes_back(monkeypatch):
    method = make('gmed', gmed_alpha=1e5)
    method(batch(0))
    stored = method.memory.rows['edited_v'][:B].clone()
    torch.testing.assert_close(stored, whole(method, 0).x_v)       # float32: as it was
    torch.testing.assert_close(method.memory.rows['edited_a'][:B], whole(method, 0).x_a)
    seen = noted(monkeypatch, 'joined', 1)
    method(batch(1))
    drawn = method.memory.drawn
    assert torch.equal(method.memory.rows['edited_v'][drawn], seen[0].x_v)
    assert torch.equal(method.memory.rows['edited_a'][drawn], seen[0].x_a)
    assert not torch.equal(method.memory.rows['edited_v'][:B], stored)
    frames = seen[0].x_v.unflatten(-1, (-1, 3)) * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN)
    assert frames.min() >= -1e-6 and frames.max() <= 1 + 1e-6      # colours still
    assert seen[0].x_a.min() >= RANGE_OF_AUDIO[0] and seen[0].x_a.max() <= RANGE_OF_AUDIO[1]


def test_small_edits_are_not_lost():
    """A byte's step would swallow them."""
    method = make('gmed', lr=1e-4)
    method(batch(0))
    before = method.memory.rows['edited_v'].clone()
    method(batch(1))
    change = (method.memory.rows['edited_v'][:B] - before[:B]).abs()
    assert 0 < change.max() < 1 / 255 / 0.225


# -------------------------------------------------------------------------------------- CLS-ER

def test_averaged_copies_follow_their_formula():
    """θ ← aθ + (1 − a)θ', a = min(1 − 1/(step + 1), α), when the coin says so: in float64, over 100 updates."""
    method = make('cls-er', cls_er_alpha_p=0.9, cls_er_alpha_s=0.97, cls_er_r_p=0.8, cls_er_r_s=0.5).double()
    weights = [w.detach().clone() for w in method.backbone.parameters()]
    expected = {'plastic': [w.clone() for w in weights], 'stable': [w.clone() for w in weights]}
    taken = {'plastic': 0, 'stable': 0}
    for step in range(1, 101):
        with torch.no_grad():
            for w in method.backbone.parameters():
                w += 0.1 * torch.randn_like(w)
        before = {n: next(getattr(method, n).parameters()).clone() for n in taken}
        method.after_step()
        for name, alpha in (('plastic', 0.9), ('stable', 0.97)):
            if torch.equal(before[name], next(getattr(method, name).parameters())):
                continue
            taken[name] += 1
            a = min(1 - 1 / (step + 1), alpha)
            expected[name] = [a * old + (1 - a) * new.detach()
                              for old, new in zip(expected[name], method.backbone.parameters())]
    for name in taken:
        assert max((e - w).abs().max() for e, w in zip(expected[name], getattr(method, name).parameters())) < 1e-6
    assert abs(taken['plastic'] - 80) < 18 and abs(taken['stable'] - 50) < 22      # 4.5 deviations of a coin
    assert taken['plastic'] != taken['stable']


def test_cls_er_holds_each_pair_to_the_better_copy(fixed_masks):
    method = make('cls-er', cls_er_lam=2.0)
    torch.manual_seed(5)
    for copy_ in (method.plastic, method.stable):      # two that differ from the working one, and are better by turns
        with torch.no_grad():
            for w in copy_.parameters():
                w += 0.05 * torch.randn_like(w)
    method(batch(0))
    loss, log = method(batch(1))
    both = joined(whole(method, 1), whole(method, rows_of(0, method.memory.drawn)))
    masks = fixed_masks(method.cfg, both)
    past, past_masks = Patches(*(x[B:] for x in both)), [[m[B:] for m in pair] for pair in masks]
    working = losses_of(method, both, masks=masks)
    seen = [losses_of(method, past, copy_, past_masks) for copy_ in (method.plastic, method.stable)]
    each = [s.each(0.7) for s in seen]
    total, winners = 0, []
    for i in range(B):
        winner = 0 if each[0][i] < each[1][i] else 1
        winners.append(winner)
        total += ((working.pooled_a[B + i] - seen[winner].pooled_a[i]) ** 2).mean() / B
        total += ((working.pooled_v[B + i] - seen[winner].pooled_v[i]) ** 2).mean() / B
    assert set(winners) == {0, 1}, 'both copies should win somewhere, or the test says nothing'
    torch.testing.assert_close(log['consistency'], total.detach())
    torch.testing.assert_close(loss, working.each(0.7).mean() + 2 * total)


def test_the_stable_copy_is_no_part_of_what_is_trained():
    method = make('cls-er')
    assert not any(w.requires_grad for c in (method.plastic, method.stable) for w in c.parameters())
    assert method.stable is not method.backbone and torch.equal(method.stable.pos_a, method.backbone.pos_a)


# ---------------------------------------------------------------------------------------- LUMP

def test_lump_at_ratio_one_is_finetune_and_at_zero_learns_from_memory_alone(fixed_masks, monkeypatch):
    method = make('lump')
    method(batch(0))
    monkeypatch.setattr(method, 'ratio', lambda n: torch.ones(n))
    loss, _ = method(batch(1))
    finetune = make('finetune')
    torch.testing.assert_close(loss, finetune(batch(1))[0])
    method = make('lump')
    method(batch(0))
    monkeypatch.setattr(method, 'ratio', lambda n: torch.zeros(n))
    loss, _ = method(batch(1))
    torch.testing.assert_close(loss, finetune(rows_of(0, method.memory.drawn))[0])


def test_lump_mixes_both_modalities_of_a_pair_by_one_ratio(monkeypatch):
    method = make('lump')
    method(batch(0))
    ratios = torch.tensor([0.2, 0.9, 0.5, 0.0])
    monkeypatch.setattr(method, 'ratio', lambda n: ratios)
    seen = noted(monkeypatch, 'autoencode', 2)
    method(batch(1))
    now, past = whole(method, 1), whole(method, rows_of(0, method.memory.drawn))
    for i, m in enumerate(ratios):
        for x, current, replayed in zip(seen[0][:2], now[:2], past[:2]):
            torch.testing.assert_close(x[i], m * current[i] + (1 - m) * replayed[i])
    assert torch.equal(seen[0].kept_v, all_positions(seen[0].x_v))
    stored = method.memory.rows['video'][B:2 * B]
    assert torch.equal(stored, batch(1)['video'])                  # unmixed


def test_mixing_ratios_are_beta():
    m = make('lump').ratio(40_000)
    assert torch.isfinite(m).all() and m.min() >= 0 and m.max() <= 1
    assert abs(m.mean() - 0.5) < 0.02 and abs(m.var() - 0.25 / 1.1) < 0.005     # Beta(a, a): 1/(4(2a + 1))
    assert abs(make('lump', lump_beta=2.0).ratio(40_000).var() - 0.05) < 0.003


# ----------------------------------------------------------------------------------- ablations

@pytest.mark.parametrize('selection', ['random', 'mats'])
def test_selections_without_attention(selection, monkeypatch):
    method = make('flava', selection=selection)
    cfg, seen = method.cfg, noted(monkeypatch, 'autoencode', 2)
    method(batch(0))
    method(batch(1))
    kappa_a, kappa_v = cfg.num_patches_a // 2, cfg.num_patches_v // 2
    assert seen[1].x_a.shape[:2] == (2 * B, kappa_a) and seen[1].x_v.shape[:2] == (2 * B, kappa_v)
    for kept in (seen[1].kept_a, seen[1].kept_v):
        assert all(len(set(row.tolist())) == len(row) for row in kept)
    everything = patches.whole(batch(0), cfg.patch_size)
    for i in range(B):
        assert torch.equal(seen[0].x_v[i], everything.x_v[i, seen[0].kept_v[i]])
    many = torch.cat([method.pick(whole(method, 0)).kept_a.flatten() for _ in range(250)])
    often = many.bincount(minlength=cfg.num_patches_a)
    assert (often - 500).abs().max() < 5 * 500 ** 0.5              # audio: each patch in half of 1,000 draws
    if selection == 'mats':                                        # literally in test_selection.py
        v = method.backbone.patch_embed_v(whole(method, 0).x_v)
        assert torch.equal(seen[0].kept_v, select_motion(v, kappa_v, cfg.grid_v))
