"""What makes each method the method it is, against slow literal versions; and that virtual steps leave no trace."""
import copy

import pytest
import torch
import torch.nn.functional as F

import methods
import steps
from avm import AVM
from config import Config
from conftest import ODD
from data import IMAGE_MEAN, IMAGE_STD
from model import AudioVideoMAE, all_positions

B = 4


def config(**more):
    return Config(**{**ODD, 'mask_ratio': 0.7, 'chunk': 2, 'memory_size': 10, 'lam': 0.7, 'lr': 0.05, **more})


def make(name, **more):
    torch.manual_seed(1)
    cfg = config(method=name, **more)
    return methods.build(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))


def batch(seed, pairs=B):
    generator = torch.Generator().manual_seed(seed)
    return dict(audio=torch.randn(pairs, 64, 48, generator=generator).half().float(),      # as the memory will give it back
                video=torch.randint(0, 256, (pairs, 3, 3, 32, 32), dtype=torch.uint8, generator=generator))


@pytest.fixture
def fixed_masks(monkeypatch):
    """The same mask for every call of the same size, so that two computations can be compared."""
    def draw(cfg, patches):
        def one(kept, patches):
            generator = torch.Generator().manual_seed(kept.shape[1])
            order = torch.rand(64, kept.shape[1], generator=generator)[:len(kept)].argsort(1)
            seen = steps.count(1 - cfg.mask_ratio, patches)
            return order[:, :seen], order[:, seen:]
        return one(patches.kept_a, cfg.num_patches_a), one(patches.kept_v, cfg.num_patches_v)
    monkeypatch.setattr(steps, 'draw_masks', draw)
    monkeypatch.setattr(methods, 'draw_masks', draw)
    return draw


def whole(method, seed_or_batch):
    b = batch(seed_or_batch) if isinstance(seed_or_batch, int) else seed_or_batch
    p = method.cfg.patch_size
    return steps.normalized(steps.whole(b, p), p)


def loss_each(method, patches, backbone=None, masks=None):
    return steps.objective(method.cfg, steps.autoencode(method.cfg, backbone or method.backbone, patches, masks))


def fingerprint(method):
    return [w.detach().clone() for w in method.state_dict().values()]


# ----------------------------------------------------------------------------- all of them

NAMES = [name for name in methods.METHODS if name != 'multitask']


@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('name', [*NAMES, 'random', 'mats'])
def test_learns_and_replays(name, bf16):
    """Two batches: a finite loss, a gradient for every weight that is trained, and the memory filled; under autocast too."""
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
    past = {n: batch(0)[n][drawn] for n in ('audio', 'video')}
    both = steps.joined(whole(method, 1), whole(method, past))
    losses = steps.autoencode(method.cfg, method.backbone, both)
    expected = losses.total(0.7)
    if name != 'er':
        # DER++: where the pairs were when they were stored; CLS-ER: where the copies, equal as yet, see them, under these masks
        was = [method.memory.rows[f'pooled_{n}'][drawn].float() for n in 'av'] if name == 'der++' else \
            [losses.pooled_a[B:].detach(), losses.pooled_v[B:].detach()]
        drift = F.mse_loss(losses.pooled_a[B:], was[0]) + F.mse_loss(losses.pooled_v[B:], was[1])
        assert name == 'cls-er' or drift > 0
        expected = expected + 0.5 * drift if name == 'der++' else expected
    torch.testing.assert_close(loss, expected)
    assert abs(loss - steps.autoencode(method.cfg, method.backbone, whole(method, 1)).total(0.7)) > 1e-3     # replay matters


def test_what_der_stores_is_where_the_current_pairs_are_now(fixed_masks):
    method = make('der++')
    method(batch(0))
    first = steps.autoencode(method.cfg, method.backbone, whole(method, 0))
    torch.testing.assert_close(method.memory.rows['pooled_a'][:B].float(), first.pooled_a, rtol=2e-3, atol=1e-3)      # float16
    method.memory.capacity, method.memory.rows = 100, {n: torch.cat([x, x]) for n, x in method.memory.rows.items()}   # room for all
    method(batch(1))
    second = steps.autoencode(method.cfg, method.backbone, whole(method, 1))
    torch.testing.assert_close(method.memory.rows['pooled_v'][B:2 * B].float(), second.pooled_v, rtol=2e-3, atol=1e-3)


def test_initial_pretraining_trains_the_avm(fixed_masks, monkeypatch):
    cfg = config()
    method = methods.InitialPretraining(cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads))
    monkeypatch.setattr(methods, 'matching_loss', lambda *given: torch.tensor(0.25))
    loss, log = method(batch(0))
    torch.testing.assert_close(loss, steps.autoencode(cfg, method.backbone, whole(method, 0)).total(0.7) + 0.25)


# --------------------------------------------------------------------------------------- FLAVA

@pytest.mark.parametrize('name', ['flava', 'flava+'])
def test_flava_is_algorithm_1(name, fixed_masks, monkeypatch):
    """One step with a memory, every part of it recomputed from what was stored: I, q̂ and c of the past; P of Eq. 5 from them;
    which patches are selected from which I and P; L = ℓ^r + λℓ^c + αℓ^p + L^avm."""
    from selection import prune_probability
    method = make(name, alpha=0.5, memory_size=8)
    cfg = method.cfg
    method(batch(0))
    selected = []
    select = method.select
    monkeypatch.setattr(method, 'select', lambda *given: selected.append((given, select(*given))) or selected[-1][1])
    monkeypatch.setattr(methods, 'matching_loss', lambda *given: torch.tensor(0.25))
    stored = {n: rows.clone() for n, rows in method.memory.rows.items()}
    loss, log = method(batch(1))
    drawn = method.memory.drawn

    # the first batch met an empty memory: nothing to prune; its I and q̂ are those of the model as it was
    s0 = steps.score(cfg, method.backbone, method.avm, whole(method, 0))
    torch.testing.assert_close(stored['query_a'][:B].float(), s0.query_a, rtol=2e-3, atol=1e-3)
    if name == 'flava':
        torch.testing.assert_close(stored['importance_v'][:B], s0.importance_v)
        assert not stored['prune_a'][:B].any() and not stored['prune_v'][:B].any()

    # Eq. 5: the other modality's query, now and past
    s = steps.score(cfg, method.backbone, method.avm, whole(method, 1))
    past_a, past_v = (stored[f'query_{n}'][drawn].float() for n in 'av')
    P_a = prune_probability(s.importance_a, s.key_a, s.query_v, past_v, cfg.num_patches_a // 2)
    P_v = prune_probability(s.importance_v, s.key_v, s.query_a, past_a, cfg.num_patches_v // 2)
    assert P_a.max() > 0.1 and not torch.allclose(P_a[P_a > 0], torch.tensor(0.5), atol=1e-4)      # the past is not the present
    (given, now), replays = selected[0], selected[1:]
    for got, expected in zip(given, (s.importance_a, s.importance_v, P_a, P_v)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    if name == 'flava':                                        # replayed pairs are selected anew, from the I and P that were stored
        (given, again), = replays
        for got, key in zip(given, ('importance_a', 'importance_v', 'prune_a', 'prune_v')):
            assert torch.equal(got, stored[key][drawn])
        past = steps.chosen(whole(method, {n: batch(0)[n][drawn] for n in ('audio', 'video')}), *again)
        torch.testing.assert_close(method.memory.rows['prune_v'][B:], P_v, rtol=1e-4, atol=1e-6)
    else:                                                      # stored patches are replayed as they are
        assert not replays
        past = steps.normalized(steps.Patches(stored['patches_a'][drawn].float(), stored['patches_v'][drawn],
                                              stored['kept_a'][drawn].long(), stored['kept_v'][drawn].long()), cfg.patch_size)
        everything = whole(method, 0)
        for i, n in enumerate(drawn):
            torch.testing.assert_close(past.x_v[i], everything.x_v[n, past.kept_v[i]])
    both = steps.joined(steps.chosen(whole(method, 1), *now), past)
    losses = steps.autoencode(cfg, method.backbone, both)
    drift = sum(F.mse_loss(x[B:], stored[f'pooled_{n}'][drawn].float()) for n, x in (('a', losses.pooled_a), ('v', losses.pooled_v)))
    assert drift > 1e-4
    torch.testing.assert_close(loss, losses.total(0.7) + 0.5 * drift + 0.25, rtol=1e-4, atol=1e-5)


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
    gradient = steps.gradient_of_batch(method.cfg, method.backbone, whole(method, 0))
    with pytest.raises(ZeroDivisionError):
        with steps.virtual_step(method.backbone, gradient, 0.1):
            assert not all(torch.equal(a, b) for a, b in zip(before, fingerprint(method)))
            1 / 0
    assert all(torch.equal(a, b) for a, b in zip(before, fingerprint(method)))


def stepped_copy(method, current, masks=None):
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
    seen = []
    monkeypatch.setattr(methods, 'joined', lambda now, past: seen.append(past) or steps.joined(now, past))
    method(batch(7))
    drawn = method.memory.drawn
    assert len(drawn) == 2 * B
    candidates = steps.whole({n: method.memory.rows[n][drawn] for n in ('audio', 'video')}, method.cfg.patch_size)
    candidates = steps.normalized(candidates._replace(x_a=candidates.x_a.float()), method.cfg.patch_size)
    with torch.enable_grad():
        virtual = stepped_copy(method, whole(method, 7))
    rise = loss_each(method, candidates, virtual) - loss_each(method, candidates)
    torch.testing.assert_close(method.rise(whole(method, 7), candidates), rise.detach(), rtol=1e-3, atol=1e-4)
    expected = rise.argsort(descending=True)[:B]
    assert rise.std() > 1e-3                                       # far more than float32's noise: the order means something
    torch.testing.assert_close(steps.normalized(seen[0], method.cfg.patch_size).x_v, candidates.x_v[expected])
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
    torch.testing.assert_close(got.x_a, expected_a.clamp(*steps.RANGE_OF_AUDIO), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.x_v, torch.minimum(torch.maximum(expected_v, low), high), rtol=1e-4, atol=1e-4)


def test_gmed_clips_replays_and_writes_back(monkeypatch):
    method = make('gmed', gmed_alpha=1e5)
    method(batch(0))
    stored = method.memory.rows['edited_v'][:B].clone()
    torch.testing.assert_close(stored, whole(method, 0).x_v)       # float32: as it was
    torch.testing.assert_close(method.memory.rows['edited_a'][:B], whole(method, 0).x_a)
    seen = []
    monkeypatch.setattr(methods, 'joined', lambda now, past: seen.append(past) or steps.joined(now, past))
    method(batch(1))
    drawn = method.memory.drawn
    assert torch.equal(method.memory.rows['edited_v'][drawn], seen[0].x_v) and torch.equal(method.memory.rows['edited_a'][drawn], seen[0].x_a)
    assert not torch.equal(method.memory.rows['edited_v'][:B], stored)
    frames = seen[0].x_v.unflatten(-1, (-1, 3)) * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN)
    assert frames.min() >= -1e-6 and frames.max() <= 1 + 1e-6      # colours still
    assert seen[0].x_a.min() >= steps.RANGE_OF_AUDIO[0] and seen[0].x_a.max() <= steps.RANGE_OF_AUDIO[1]


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
            expected[name] = [a * old + (1 - a) * new.detach() for old, new in zip(expected[name], method.backbone.parameters())]
    for name in taken:
        assert max((e - w).abs().max() for e, w in zip(expected[name], getattr(method, name).parameters())) < 1e-6
    assert abs(taken['plastic'] - 80) < 18 and abs(taken['stable'] - 50) < 22      # 4.5 deviations of a coin
    assert taken['plastic'] != taken['stable']


def test_cls_er_holds_each_pair_to_the_better_copy(fixed_masks):
    method = make('cls-er', cls_er_lam=2.0)
    torch.manual_seed(5)
    for copy_ in (method.plastic, method.stable):                  # two that differ from the working one, and are better by turns
        with torch.no_grad():
            for w in copy_.parameters():
                w += 0.05 * torch.randn_like(w)
    method(batch(0))
    loss, log = method(batch(1))
    drawn = method.memory.drawn
    both = steps.joined(whole(method, 1), whole(method, {n: batch(0)[n][drawn] for n in ('audio', 'video')}))
    masks = fixed_masks(method.cfg, both)
    past, past_masks = steps.Patches(*(x[B:] for x in both)), [[m[B:] for m in pair] for pair in masks]
    working = steps.autoencode(method.cfg, method.backbone, both, masks)
    seen = [steps.autoencode(method.cfg, c, past, past_masks) for c in (method.plastic, method.stable)]
    each = [s.each(0.7) for s in seen]
    total, winners = 0, []
    for i in range(B):
        winner = 0 if each[0][i] < each[1][i] else 1
        winners.append(winner)
        total += ((working.pooled_a[B + i] - seen[winner].pooled_a[i]) ** 2).mean() / B
        total += ((working.pooled_v[B + i] - seen[winner].pooled_v[i]) ** 2).mean() / B
    assert set(winners) == {0, 1}, 'both copies should win somewhere, or the test says nothing'
    torch.testing.assert_close(log['consistency'], total.detach())
    torch.testing.assert_close(loss, working.total(0.7) + 2 * total)


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
    past = {n: batch(0)[n][method.memory.drawn] for n in ('audio', 'video')}
    torch.testing.assert_close(loss, finetune(past)[0])


def test_lump_mixes_both_modalities_of_a_pair_by_one_ratio(monkeypatch):
    method = make('lump')
    method(batch(0))
    ratios = torch.tensor([0.2, 0.9, 0.5, 0.0])
    monkeypatch.setattr(method, 'ratio', lambda n: ratios)
    seen = []
    monkeypatch.setattr(methods, 'autoencode', lambda cfg, backbone, patches: seen.append(patches) or steps.autoencode(cfg, backbone, patches))
    method(batch(1))
    now, past = whole(method, 1), whole(method, {n: batch(0)[n][method.memory.drawn] for n in ('audio', 'video')})
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
    cfg = method.cfg
    seen = []
    monkeypatch.setattr(methods, 'autoencode', lambda c, b, patches: seen.append(patches) or steps.autoencode(c, b, patches))
    method(batch(0))
    method(batch(1))
    kappa_a, kappa_v = cfg.num_patches_a // 2, cfg.num_patches_v // 2
    assert seen[1].x_a.shape[:2] == (2 * B, kappa_a) and seen[1].x_v.shape[:2] == (2 * B, kappa_v)
    for kept in (seen[1].kept_a, seen[1].kept_v):
        assert all(len(set(row.tolist())) == len(row) for row in kept)
    everything = steps.whole(batch(0), cfg.patch_size)
    for i in range(B):
        assert torch.equal(seen[0].x_v[i], everything.x_v[i, seen[0].kept_v[i]])
    many = torch.cat([method.pick(whole(method, 0)).kept_a.flatten() for _ in range(250)]).bincount(minlength=cfg.num_patches_a)
    assert (many - 500).abs().max() < 5 * 500 ** 0.5               # audio: each patch in half of 1,000 draws
    if selection == 'mats':                                        # the literal version
        v = method.backbone.patch_embed_v(whole(method, 0).x_v)
        per_frame = cfg.num_patches_v // cfg.num_frames
        for i in range(B):
            change = []
            for n in range(cfg.num_patches_v):
                before = n - per_frame if n >= per_frame else n + per_frame
                change.append((v[i, n] - v[i, before]).norm().item())
            top = sorted(range(len(change)), key=lambda n: -change[n])[:kappa_v]
            # the first frame and the second tie; which of two equals comes in at the border is no matter
            assert sorted(round(change[n], 4) for n in seen[0].kept_v[i].tolist()) == sorted(round(change[n], 4) for n in top)


def test_importance_only_and_forget_robust_only(monkeypatch):
    I_a, I_v = torch.rand(B, 48), torch.rand(B, 48)
    P_a, P_v = torch.rand(B, 48), torch.rand(B, 48)
    given = {}
    monkeypatch.setattr(methods, 'select_audio', lambda I, P, *rest: given.update(a=(I, P)))
    monkeypatch.setattr(methods, 'select_video', lambda I, P, kappa: given.update(v=(I, P)))
    for selection, uses_I, uses_P in (('both', True, True), ('importance', True, False), ('forget-robust', False, True)):
        make('flava', selection=selection).select(I_a, I_v, P_a, P_v)
        for (I, P), mine, prune in ((given['a'], I_a, P_a), (given['v'], I_v, P_v)):
            assert torch.equal(I, mine if uses_I else torch.ones_like(mine))
            assert torch.equal(P, prune if uses_P else torch.zeros_like(prune))


@pytest.mark.parametrize('how', ['frequency', 'none'])
def test_audio_selection(how):
    method = make('flava', audio_selection=how)
    time, freq = method.cfg.grid_a                                 # 8, 6
    I, P = torch.rand(200, time * freq), torch.zeros(200, time * freq)
    kept, _ = method.select(I, torch.rand(200, method.cfg.num_patches_v), P, torch.zeros(200, method.cfg.num_patches_v))
    assert kept.shape == (200, time * freq // 2) and all(len(set(row.tolist())) == len(row) for row in kept)
    whole_bands = [sorted(row.tolist()) == sorted(t * freq + f for f in {n % freq for n in row.tolist()} for t in range(time)) for row in kept]
    assert all(whole_bands) == (how == 'frequency')
    # what matters is drawn more often
    loud = torch.full((2000, time * freq), 0.01)
    loud[:, 2::freq] = 1.0                                         # the third band
    kept, _ = method.select(loud, torch.rand(2000, method.cfg.num_patches_v), loud * 0, torch.zeros(2000, method.cfg.num_patches_v))
    share = ((kept % freq == 2).sum(1) == time).float().mean()
    assert share > (0.95 if how == 'frequency' else 0.6)


def test_classes_are_short():
    import ast
    import inspect
    for node in ast.parse(inspect.getsource(methods)).body:
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 66, f'{node.name} has {node.end_lineno - node.lineno + 1} lines'
