"""What makes each method the method that it is, against slow literal versions; virtual steps leave no trace."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector

import baselines
from baselines import MAX_AUDIO, MIN_AUDIO, batch_gradient, virtual_step
from config import METHODS
from conftest import DEVICE
from flava import SELECTION_BASELINES
from model import loss_per_pair
from one_step import B, all_patches, batch, loss_each, losses_of, make, record_calls, rows_of
from patches import IMAGE_MEAN, IMAGE_STD, Mask, Patches, concat_patches, gather_patches, to_float
from selection import select_motion


def vector(parameters):
    """All values of the parameters, as one vector"""
    return parameters_to_vector(parameters).detach().clone()


# ----------------------------------------------------------------------------- all of them

@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('name', [*(name for name in METHODS if name != 'multitask'), *SELECTION_BASELINES])
def test_learns_and_replays(name, bf16):
    """Two batches: a finite loss, a gradient for every trained weight, the memory filled; under bf16 autocast too, as
    training does it: a weight that a pass without gradient casts must still get its gradient."""
    method = make('flava', selection=name) if name in SELECTION_BASELINES else make(name)
    with torch.no_grad():
        for weight in method.parameters():                 # a layer that starts at zero would block the gradient
            weight.add_(0.01 * torch.randn_like(weight))
    for seed in range(2):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss, log = method(batch(seed))
        assert torch.isfinite(loss) and all(torch.isfinite(x) for x in log.values())
        method.zero_grad()
        loss.backward()
        method.after_step()
    trained = {n: w for n, w in method.named_parameters() if w.requires_grad}
    assert len(trained) >= len(list(method.backbone.parameters()))
    assert not [n for n, w in trained.items() if w.grad is None or not w.grad.any() or not w.grad.isfinite().all()]
    assert method.memory is None or len(method.memory) == 2 * B


@pytest.mark.parametrize('name', ['er', 'der++', 'cls-er'])
def test_the_loss_is_on_current_and_replayed_pairs(name, fixed_masks):
    """DER++ stores the embeddings of current pairs in float16, and holds replayed ones to them: ℓ^p."""
    method = make(name, alpha=0.5)
    method(batch(0))
    loss, _ = method(batch(1))
    slots = method.memory.sampled
    losses = losses_of(method, concat_patches(all_patches(method, 1), all_patches(method, rows_of(0, slots))))
    expected = loss_per_pair(method.cfg, losses).mean()
    if name == 'der++':
        for m, pooled in (('a', losses.pooled_a), ('v', losses.pooled_v)):
            first, second = method.memory.rows[f'pooled_{m}'][:2 * B].float().split(B)
            before = getattr(losses_of(method, all_patches(method, 0)), f'pooled_{m}')
            torch.testing.assert_close(first, before, rtol=2e-3, atol=1e-3)
            torch.testing.assert_close(second, pooled[:B], rtol=2e-3, atol=1e-3)
            drift = F.mse_loss(pooled[B:], first[slots])
            assert drift > 0
            expected = expected + 0.5 * drift
    torch.testing.assert_close(loss, expected)             # CLS-ER: the copies still equal the backbone
    assert abs(loss - loss_each(method, all_patches(method, 1)).mean()) > 1e-3           # replay matters


def test_without_the_reconstruction_loss():
    """Fig. 11: ℓ^r removed from the stream's loss, and no gradient in the decoder."""
    method = make('finetune', mae_weight=0.0)
    loss, log = method(batch(0))
    torch.testing.assert_close(loss.detach(), 0.7 * log['contrastive'])
    loss.backward()
    assert not any(w.grad.any() for w in method.backbone.decoder.parameters())
    assert method.backbone.encoder['a'][0].attn.qkv.weight.grad.any()


# ------------------------------------------------------------------------------- virtual steps

@pytest.mark.parametrize('name', ['mir', 'gmed'])
def test_virtual_steps_leave_no_trace(name):
    """Weights, gradients, optimizer and random states are the same afterwards, bit for bit; the weights after an error,
    too."""
    method = make(name)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for seed in range(2):
        method(batch(seed))[0].backward()
        optimizer.step()

    def state():
        return [vector(method.parameters()), vector(w.grad for w in method.parameters()), torch.get_rng_state(),
                copy.deepcopy(optimizer.state_dict())]

    def virtual_part():
        if name == 'mir':
            return method.interference(all_patches(method, 2), all_patches(method, 3))
        return tuple(method.edit(all_patches(method, 2), all_patches(method, 3)))
    before, first = state(), virtual_part()
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    torch.testing.assert_close(virtual_part(), first, rtol=0, atol=0)      # so it can be repeated
    gradient = batch_gradient(method.cfg, method.backbone, all_patches(method, 0))
    with pytest.raises(KeyError), virtual_step(method.backbone, gradient, 0.1):
        raise KeyError
    assert torch.equal(vector(method.parameters()), before[0])


def stepped_copy(method, current):
    """θᵛ the slow way: a copy and SGD"""
    virtual = copy.deepcopy(method.backbone)
    optimizer = torch.optim.SGD(virtual.parameters(), lr=method.cfg.lr)
    loss_each(method, current, virtual).mean().backward()
    optimizer.step()
    return virtual


def test_interference_is_that_of_the_step_alone():
    """A step of no length raises no loss, so both losses use one mask. bf16 autocast around it changes nothing."""
    assert not make('mir', lr=1e-30).interference(all_patches(make('mir'), 0), all_patches(make('mir'), 1)).any()
    method = make('mir')
    torch.manual_seed(3)
    expected = method.interference(all_patches(method, 0), all_patches(method, 1))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        torch.manual_seed(3)
        assert torch.equal(method.interference(all_patches(method, 0), all_patches(method, 1)), expected)


def test_mir_replays_the_most_interfered_candidates(fixed_masks, monkeypatch):
    method = make('mir', mir_candidates=2, memory_size=20)
    for seed in range(3):
        method(batch(seed))                                        # 12 pairs in the memory
    calls = record_calls(monkeypatch, baselines, 'concat_patches')
    method(batch(7))
    (_, replayed), _ = calls[0]
    slots = method.memory.sampled
    assert len(slots) == 2 * B
    candidates = all_patches(method, dict(audio=method.memory.rows['audio'][slots].float(),
                                    video=method.memory.rows['video'][slots]))
    virtual = stepped_copy(method, all_patches(method, 7))
    rise = (loss_each(method, candidates, virtual) - loss_each(method, candidates)).detach()
    interference = method.interference(all_patches(method, 7), candidates)
    torch.testing.assert_close(interference, rise, rtol=1e-3, atol=1e-4)
    assert rise.std() > 1e-3                       # far above rounding errors
    expected = candidates.x_v[rise.argsort(descending=True)[:B]]
    torch.testing.assert_close(to_float(replayed, method.cfg.patch_size).x_v, expected)


def test_gmed_edits_by_its_formula(fixed_masks):
    method = make('gmed', gmed_alpha=3.0, gmed_beta=0.2, gmed_gamma=0.9)
    past, current = all_patches(method, 3), all_patches(method, 2)
    edited = method.edit(current, past)
    virtual = stepped_copy(method, current)
    x_a, x_v = past.x_a.clone().requires_grad_(), past.x_v.clone().requires_grad_()
    x = past._replace(x_a=x_a, x_v=x_v)
    gain = (loss_each(method, x, virtual) - loss_each(method, x)) - 0.2 * loss_each(method, x)
    step_a, step_v = torch.autograd.grad(gain.sum(), (x_a, x_v))
    assert step_v.abs().max() > 1e-3
    low = torch.tensor([-m / s for m, s in zip(IMAGE_MEAN, IMAGE_STD)]).repeat(64)
    high = torch.tensor([(1 - m) / s for m, s in zip(IMAGE_MEAN, IMAGE_STD)]).repeat(64)
    expected_a = (0.9 * past.x_a + 3 * step_a).clamp(MIN_AUDIO, MAX_AUDIO)
    expected_v = torch.minimum(torch.maximum(0.9 * past.x_v + 3 * step_v, low), high)
    torch.testing.assert_close(edited.x_a, expected_a, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edited.x_v, expected_v, rtol=1e-4, atol=1e-4)


def test_gmed_clips_replays_and_writes_back(monkeypatch):
    method = make('gmed', gmed_alpha=1e5)
    method(batch(0))
    stored = method.memory.rows['edited_v'][:B].clone()
    torch.testing.assert_close(stored, all_patches(method, 0).x_v)       # float32, unchanged
    calls = record_calls(monkeypatch, baselines, 'concat_patches')
    method(batch(1))
    (_, replayed), _ = calls[0]
    slots = method.memory.sampled
    assert torch.equal(method.memory.rows['edited_v'][slots], replayed.x_v)
    assert torch.equal(method.memory.rows['edited_a'][slots], replayed.x_a)
    assert not torch.equal(method.memory.rows['edited_v'][:B], stored)
    frames = replayed.x_v.unflatten(-1, (-1, 3)) * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN)
    assert frames.min() >= -1e-6 and frames.max() <= 1 + 1e-6      # still colours
    assert replayed.x_a.min() >= MIN_AUDIO and replayed.x_a.max() <= MAX_AUDIO


# -------------------------------------------------------------------------------------- CLS-ER

def test_averaged_copies_follow_their_formula():
    """θ_P ← aθ_P + (1 − a)θ, a = min(1 − 1/(step + 1), α), with probability r; in float64, over 100 updates."""
    method = make('cls-er', cls_er_alpha_p=0.9, cls_er_alpha_s=0.97, cls_er_r_p=0.8, cls_er_r_s=0.5).double()
    assert not any(w.requires_grad for c in (method.plastic, method.stable) for w in c.parameters())
    assert method.eval_model is method.stable
    updates = {'plastic': 0, 'stable': 0}
    for step in range(1, 101):
        with torch.no_grad():
            for w in method.backbone.parameters():
                w += 0.1 * torch.randn_like(w)
        before = {name: vector(getattr(method, name).parameters()) for name in updates}
        method.after_step()
        for name, alpha in (('plastic', 0.9), ('stable', 0.97)):
            after, a = vector(getattr(method, name).parameters()), min(1 - 1 / (step + 1), alpha)
            if not torch.equal(after, before[name]):
                updates[name] += 1
                torch.testing.assert_close(after, a * before[name] + (1 - a) * vector(method.backbone.parameters()))
    assert abs(updates['plastic'] - 80) < 18 and abs(updates['stable'] - 50) < 22      # 4.5 standard deviations


def test_cls_er_holds_each_pair_to_the_better_copy(fixed_masks):
    method = make('cls-er', cls_er_lam=2.0)
    torch.manual_seed(5)
    for copy_ in (method.plastic, method.stable):      # each is the better one for some pairs
        with torch.no_grad():
            for w in copy_.parameters():
                w += 0.05 * torch.randn_like(w)
    method(batch(0))
    loss, log = method(batch(1))
    both = concat_patches(all_patches(method, 1), all_patches(method, rows_of(0, method.memory.sampled)))
    masks = fixed_masks(method.cfg, both)
    past = Patches(*(x[B:] for x in both))
    past_masks = [Mask(mask.keep[B:], mask.masked[B:]) for mask in masks]
    student = losses_of(method, both, masks=masks)
    teachers = [losses_of(method, past, copy_, past_masks) for copy_ in (method.plastic, method.stable)]
    plastic, stable = (loss_per_pair(method.cfg, losses) for losses in teachers)
    total, winners = 0, set()
    for i in range(B):
        winner = 0 if plastic[i] < stable[i] else 1
        winners.add(winner)
        total += ((student.pooled_a[B + i] - teachers[winner].pooled_a[i]) ** 2).mean() / B
        total += ((student.pooled_v[B + i] - teachers[winner].pooled_v[i]) ** 2).mean() / B
    assert winners == {0, 1}
    torch.testing.assert_close(log['consistency'], total.detach())
    torch.testing.assert_close(loss, loss_per_pair(method.cfg, student).mean() + 2 * total)


# ---------------------------------------------------------------------------------------- LUMP

def test_lump_mixes_both_modalities_of_a_pair_by_one_ratio(fixed_masks, monkeypatch):
    method = make('lump')
    method(batch(0))
    ratios = torch.tensor([0.2, 0.9, 0.5, 0.0])
    monkeypatch.setattr(method, 'mixing_ratio', lambda n: ratios)
    loss, _ = method(batch(1))
    now, past = all_patches(method, 1), all_patches(method, rows_of(0, method.memory.sampled))
    m = ratios[:, None, None]
    mixed = now._replace(x_a=m * now.x_a + (1 - m) * past.x_a, x_v=m * now.x_v + (1 - m) * past.x_v)
    torch.testing.assert_close(loss, loss_each(method, mixed).mean())
    assert torch.equal(method.memory.rows['video'][B:2 * B], batch(1)['video'])    # unmixed


def test_mixing_ratios_are_beta():
    m = make('lump').mixing_ratio(40_000)
    assert torch.isfinite(m).all() and m.min() >= 0 and m.max() <= 1
    assert abs(m.mean() - 0.5) < 0.02 and abs(m.var() - 0.25 / 1.1) < 0.005        # Beta(a, a): 1/(4(2a + 1))
    assert abs(make('lump', lump_beta=2.0).mixing_ratio(40_000).var() - 0.05) < 0.003


# ----------------------------------------------------------------------------------- ablations

@pytest.mark.parametrize('selection', SELECTION_BASELINES)
def test_selections_without_avm(selection, monkeypatch):
    """DER++ on half of the patches, current and replayed; random audio patches."""
    method = make('flava', selection=selection)
    cfg, calls = method.cfg, record_calls(monkeypatch, baselines, 'run_backbone')
    method(batch(0))
    method(batch(1))
    first, second = (given[2] for given, _ in calls)
    assert second.x_a.shape[:2] == (2 * B, cfg.kappa_a) and second.x_v.shape[:2] == (2 * B, cfg.kappa_v)
    assert all((ids.sort(1).values.diff(dim=1) > 0).all() for ids in (second.ids_a, second.ids_v))
    patches = all_patches(method, 0)
    assert torch.equal(to_float(first, cfg.patch_size).x_v, gather_patches(patches, first.ids_a, first.ids_v).x_v)
    many = torch.cat([method.select(patches).ids_a.flatten() for _ in range(250)])
    assert (many.bincount(minlength=cfg.num_patches_a) - 500).abs().max() < 5 * 500 ** 0.5     # half of 1,000 draws
    if selection == 'mats':                                        # literally in test_selection.py
        v = method.backbone.patch_embed['v'](patches.x_v)
        assert torch.equal(first.ids_v, select_motion(v, cfg.kappa_v, cfg.grid_v))
