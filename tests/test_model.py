"""Eq. 1, 8, 9 against slow, literal versions; parameters; reading weights."""
import math

import pytest
import torch

from avm import AVM
from conftest import ROOT
from model import (AudioVideoMAE, Sizes, UserError, all_positions, contrastive_loss, draw_visible, gather, patchify_a,
                   patchify_v, reconstruction_loss)
from weights import load_weights

GOLDEN = ROOT / 'tests' / 'data' / 'golden_tiny.pt'


def test_parameter_counts_are_the_papers():
    avm, backbone = AVM(768, 12), AudioVideoMAE(Sizes())
    assert sum(p.numel() for p in backbone.parameters()) == 185_534_976
    assert sum(p.numel() for p in avm.parameters()) == 5_904_385
    assert (Sizes().num_patches_a, Sizes().num_patches_v, Sizes().grid_a) == (512, 784, (64, 8))


def test_patchify_literally():
    audio, video, p = torch.randn(2, 24, 16), torch.randn(2, 3, 3, 16, 24), 8
    x_a, x_v = patchify_a(audio, p), patchify_v(video, p)
    assert x_a.shape == (2, 6, 64) and x_v.shape == (2, 18, 192)
    for i in range(3):
        for j in range(2):
            assert torch.equal(x_a[1, i * 2 + j].view(p, p), audio[1, i * p:(i + 1) * p, j * p:(j + 1) * p])
    for t in range(3):
        for i in range(2):
            for j in range(3):
                patch = video[0, t, :, i * p:(i + 1) * p, j * p:(j + 1) * p]      # channel, row, column
                assert torch.equal(x_v[0, t * 6 + i * 3 + j].view(p, p, 3), patch.permute(1, 2, 0))


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


def test_mask_is_a_uniform_subset():
    kept = torch.zeros(4000, 10).long()
    visible, hidden = draw_visible(kept, 3)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(10).expand(4000, -1))
    often = torch.bincount(visible.flatten(), minlength=10) / 4000
    assert (often - 0.3).abs().max() < 4.5 * math.sqrt(0.3 * 0.7 / 4000)


def tiny():
    config = torch.load(GOLDEN, weights_only=True)['config']
    sizes = Sizes(**{k: v for k, v in config.items() if k in Sizes.__dataclass_fields__})
    return sizes, AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads)


def test_released_names_with_and_without_prefix(tmp_path):
    weights = torch.load(GOLDEN, weights_only=True)['state_dict']
    torch.save({'module.' + name: value for name, value in weights.items()}, tmp_path / 'prefixed.pt')
    torch.save({'state_dict': weights}, tmp_path / 'plain.pt')
    states = []
    for name in ('prefixed.pt', 'plain.pt'):
        _, backbone, avm = tiny()
        assert f'took {len(weights)} of {len(weights)}' in load_weights(tmp_path / name, backbone, avm)
        states.append({**backbone.state_dict(), **avm.state_dict()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    del weights['avmatching_module.norm_a.weight']
    torch.save(dict(weights, surplus=torch.zeros(1)), tmp_path / 'other.pt')
    _, backbone, avm = tiny()
    said = load_weights(tmp_path / 'other.pt', backbone, avm)
    assert 'left in the file: surplus' in said and 'not in the file, so as initialized: avm.norm_a.weight' in said


def test_refused_checkpoints(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ('this ran',)
    _, backbone, avm = tiny()
    whole = {'backbone.norm.weight': torch.zeros(49)}
    torch.save(whole, tmp_path / 'size.pt')
    torch.save(dict(whole, x=torch.zeros(9999)), tmp_path / 'cut.pt')
    cut = (tmp_path / 'cut.pt').read_bytes()
    (tmp_path / 'cut.pt').write_bytes(cut[:len(cut) // 2])
    torch.save({'x': Evil()}, tmp_path / 'evil.pt')
    torch.save({'nothing': torch.zeros(1)}, tmp_path / 'strange.pt')
    for name, reason in (('size.pt', 'another size'), ('cut.pt', 'truncated'), ('evil.pt', 'execute code'),
                         ('strange.pt', 'none of its 1 tensors'), ('absent.pt', 'no such file')):
        with pytest.raises(UserError, match=reason):
            load_weights(tmp_path / name, backbone, avm)


def image_mae(sizes, blocks, grid):
    """An image MAE's checkpoint of random numbers, in its names."""
    D, Dd, p = sizes.embed_dim, sizes.decoder_embed_dim, sizes.patch_size
    w = {'cls_token': torch.randn(1, 1, D), 'pos_embed': torch.randn(1, grid + 1, D), 'mask_token': torch.randn(1, 1, Dd),
         'decoder_pos_embed': torch.randn(1, grid + 1, Dd), 'patch_embed.proj.weight': torch.randn(D, 3, p, p),
         'patch_embed.proj.bias': torch.randn(D), 'norm.weight': torch.randn(D), 'norm.bias': torch.randn(D),
         'decoder_embed.weight': torch.randn(Dd, D), 'decoder_embed.bias': torch.randn(Dd), 'decoder_norm.weight': torch.randn(Dd),
         'decoder_norm.bias': torch.randn(Dd), 'decoder_pred.weight': torch.randn(p * p * 3, Dd), 'decoder_pred.bias': torch.randn(p * p * 3)}
    for prefix, count, dim in (('blocks', blocks, D), ('decoder_blocks', sizes.decoder_depth, Dd)):
        for i in range(count):
            for name, shape in (('norm1.weight', (dim,)), ('norm1.bias', (dim,)), ('norm2.weight', (dim,)), ('norm2.bias', (dim,)),
                                ('attn.qkv.weight', (3 * dim, dim)), ('attn.qkv.bias', (3 * dim,)), ('attn.proj.weight', (dim, dim)),
                                ('attn.proj.bias', (dim,)), ('mlp.fc1.weight', (4 * dim, dim)), ('mlp.fc1.bias', (4 * dim,)),
                                ('mlp.fc2.weight', (dim, 4 * dim)), ('mlp.fc2.bias', (dim,))):
                w[f'{prefix}.{i}.{name}'] = torch.randn(shape)
    return w


def test_image_mae_mapping(sizes, tmp_path):
    weights = image_mae(sizes, blocks=3, grid=16)          # 2 blocks for the encoders, 1 for the fusion
    torch.save({'model': weights}, tmp_path / 'mae.pt')
    backbone, avm = AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads)
    positions_a = backbone.pos_a.clone()
    said = load_weights(tmp_path / 'mae.pt', backbone, avm)
    assert 'an image MAE' in said and 'left in the file: cls_token' in said
    state = backbone.state_dict()
    for side in 'av':
        assert torch.equal(state[f'encoder_{side}.1.attn.qkv.weight'], weights['blocks.1.attn.qkv.weight'])
    for suffix in ('', '_a', '_v'):
        assert torch.equal(state[f'fusion.0.norm1{suffix}.weight'], weights['blocks.2.norm1.weight'])
        assert torch.equal(state[f'norm{suffix}.bias'], weights['norm.bias'])
    assert torch.equal(state['patch_embed_a.proj.weight'], weights['patch_embed.proj.weight'].sum(1, keepdim=True))
    assert torch.equal(state['head_a.weight'], weights['decoder_pred.weight'][:64])
    assert torch.equal(state['pos_v'], weights['pos_embed'][:, 1:].repeat(1, 3, 1))
    assert torch.equal(state['pos_a'], positions_a)        # stays sine-cosine
    assert torch.equal(backbone.decoder[0].mlp.fc2.weight, weights["decoder_blocks.0.mlp.fc2.weight"])
