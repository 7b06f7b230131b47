"""Eq. 1, 8, 9 against slow, literal versions; parameters; what was dropped has no influence."""
import math
import re
from functools import partial

import torch

from model import AudioVideoMAE, compile_blocks, contrastive_loss, print_parameters, reconstruction_loss
from patches import all_positions, draw_visible, gather, patchify_a, patchify_v


def test_parameter_counts_are_the_papers(capsys):
    """`python model.py`, whose parts add up to the whole: App. D has 707.8 MB, and 3.18 % more for the AVM."""
    print_parameters('base')
    said = capsys.readouterr().out
    numbers = lambda pattern: [int(n.replace(',', '')) for n in re.findall(pattern, said, re.MULTILINE)]
    parts, wholes = numbers(r'^  .* ([\d,]+)$'), numbers(r'^\w+ +([\d,]+)  =')
    assert wholes == [185_534_976, 5_904_385] and sum(parts) == sum(wholes)
    assert '= 707.8 MiB' in said and 'The AVM adds 3.18%' in said and 'M = 512, N = 784' in said


def test_patch_embedding_is_the_convolution_of_eq_1(sizes):
    model = AudioVideoMAE(sizes)
    audio, video = torch.randn(2, 64, 48), torch.randn(2, 3, 3, 32, 32)
    by_convolution = model.patch_embed_a.proj(audio[:, None]).flatten(2).transpose(1, 2)
    assert torch.allclose(model.patch_embed_a(patchify_a(audio, 8)), by_convolution, atol=1e-5)
    frames = model.patch_embed_v.proj(video.flatten(0, 1)).flatten(2).transpose(1, 2)       # B·T, patches, D
    assert torch.allclose(model.patch_embed_v(patchify_v(video, 8)), frames.reshape(2, -1, 24), atol=1e-5)


def test_reconstruction_loss_literally():
    guess, x = torch.randn(3, 5, 12).double(), torch.randn(3, 5, 12).double()
    for i in range(3):
        total = 0.0
        for j in range(5):
            mean = sum(x[i, j].tolist()) / 12
            variance = sum((value - mean) ** 2 for value in x[i, j].tolist()) / 11
            for k in range(12):
                total += (guess[i, j, k].item() - (x[i, j, k].item() - mean) / math.sqrt(variance + 1e-6)) ** 2
        assert math.isclose(reconstruction_loss(guess, x)[i].item(), total / 60, rel_tol=1e-12)


def test_contrastive_loss_literally():
    c_a, c_v, tau = torch.randn(4, 6).double(), torch.randn(4, 6).double(), 0.07
    unit = lambda c: [[value / math.sqrt(sum(w * w for w in row)) for value in row] for row in c.tolist()]
    a, v = unit(c_a), unit(c_v)
    dot = lambda x, y: sum(p * q for p, q in zip(x, y))
    got = contrastive_loss(c_a, c_v, tau)
    for i in range(4):
        to_video = math.log(math.exp(dot(a[i], v[i]) / tau) / sum(math.exp(dot(a[i], v[j]) / tau) for j in range(4)))
        to_audio = math.log(math.exp(dot(v[i], a[i]) / tau) / sum(math.exp(dot(v[i], a[j]) / tau) for j in range(4)))
        assert math.isclose(got[i].item(), -(to_video + to_audio) / 2, rel_tol=1e-9)


def test_what_is_dropped_has_no_influence(sizes):
    """Patches that are hidden, or were not selected, must not reach the encoders or the decoder."""
    model, kept = AudioVideoMAE(sizes), 20
    x_a, x_v = torch.randn(2, sizes.num_patches_a, 64), torch.randn(2, sizes.num_patches_v, 192)
    kept_a = torch.rand(2, sizes.num_patches_a).argsort(1)[:, :kept]
    kept_v = torch.rand(2, sizes.num_patches_v).argsort(1)[:, :kept]
    slots_a, slots_v = draw_visible(kept_a, 7), draw_visible(kept_v, 9)
    seen = []
    hook = model.encoder_v[0].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    losses = model.losses(gather(x_a, kept_a), gather(x_v, kept_v), kept_a, kept_v, slots_a, slots_v, 0.1)
    hook.remove()
    assert seen == [9]                                                # truly fewer tokens, not masked ones
    changed = gather(x_v, kept_v)
    changed.scatter_(1, slots_v[1][..., None].expand(-1, -1, 192), 5.0)
    again = model.losses(gather(x_a, kept_a), changed, kept_a, kept_v, slots_a, slots_v, 0.1)
    assert torch.equal(losses.contrastive, again.contrastive) and torch.equal(losses.mae_a, again.mae_a)
    assert not torch.allclose(losses.mae_v, again.mae_v)              # only as a target


def test_losses_do_not_depend_on_the_order_of_kept_patches(sizes):
    model = AudioVideoMAE(sizes).double()
    x_a, x_v = torch.randn(2, sizes.num_patches_a, 64).double(), torch.randn(2, sizes.num_patches_v, 192).double()
    kept_a, kept_v = all_positions(x_a), all_positions(x_v)
    slots_a, slots_v = draw_visible(kept_a, 9), draw_visible(kept_v, 9)
    first = model.losses(x_a, x_v, kept_a, kept_v, slots_a, slots_v, 0.1)
    order = torch.randperm(sizes.num_patches_v).expand(2, -1)
    place = order.argsort(1)
    moved = model.losses(x_a, gather(x_v, order), kept_a, kept_v.gather(1, order), slots_a,
                         tuple(place.gather(1, s) for s in slots_v), 0.1)
    assert torch.allclose(first.mae_v, moved.mae_v) and torch.allclose(first.pooled_v, moved.pooled_v)


def test_embeddings_are_the_means_of_each_modalitys_own_tokens(sizes):
    model, audio, video = AudioVideoMAE(sizes), torch.randn(2, 64, 48), torch.randn(2, 3, 3, 32, 32)
    x_a, x_v = patchify_a(audio, 8), patchify_v(video, 8)
    at_a, at_v = all_positions(x_a), all_positions(x_v)
    o_a, o_v = model.encode(x_a, x_v, at_a, at_v)
    tokens_a, tokens_v = model.tokens(o_a, o_v, at_a, at_v)
    assert tokens_a.shape == (2, sizes.num_patches_a, 24) and tokens_v.shape == (2, sizes.num_patches_v, 24)
    for c, tokens in zip(model.embed(audio, video), (tokens_a, tokens_v)):
        mean = tokens.mean(1)
        torch.testing.assert_close(c, mean / mean.norm(dim=1, keepdim=True))
    alone = model.tokens(o_a, torch.randn_like(o_v), at_a, at_v)
    assert torch.equal(alone[0], tokens_a) and not torch.allclose(alone[1], tokens_v)      # neither sees the other


def test_compiled_blocks_give_the_same_losses_and_gradients(sizes, monkeypatch):
    """Of more than one shape of a batch; and weights keep their names. All but the last stage of the compiler, which
    takes half a minute."""
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    model = AudioVideoMAE(sizes)
    names, before = list(model.state_dict()), [losses_and_gradients(model, pairs) for pairs in (3, 5)]
    said = compile_blocks(model)
    assert said == '--compile: 6 blocks are compiled' and list(model.state_dict()) == names
    for pairs, expected in zip((3, 5), before):
        assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(losses_and_gradients(model, pairs), expected))


def test_where_blocks_cannot_be_compiled_they_run_as_they_are(sizes, monkeypatch):
    def fails(block):
        raise RuntimeError('no compiler\nat all')
    model = AudioVideoMAE(sizes)
    before = losses_and_gradients(model, 3)
    monkeypatch.setattr(torch, 'compile', fails)
    said = '--compile: the blocks cannot be compiled here, and run as they are (RuntimeError: no compiler)'
    assert compile_blocks(model) == said
    assert all(torch.equal(x, y) for x, y in zip(losses_and_gradients(model, 3), before))


def losses_and_gradients(model, pairs):
    generator = torch.Generator().manual_seed(pairs)
    random = lambda *shape: torch.randn(pairs, *shape, generator=generator)
    order = lambda n, k: torch.rand(pairs, n, generator=generator).argsort(1)[:, :k]
    kept_a, kept_v = order(model.sizes.num_patches_a, 20), order(model.sizes.num_patches_v, 20)
    slots = [(seen[:, :7], seen[:, 7:]) for seen in (order(20, 20), order(20, 20))]
    p2 = model.sizes.patch_size ** 2
    losses = model.losses(random(20, p2), random(20, 3 * p2), kept_a, kept_v, *slots, 0.05)
    total = losses.each(0.7).mean()
    return [*losses, *torch.autograd.grad(total, list(model.parameters()))]
