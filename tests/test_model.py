"""Eq. 1, 8 and 9 against slow, literal versions; parameter counts; dropped patches have no influence."""
import math
import re
from functools import partial

import pytest
import torch

from model import AudioVideoMAE, compile_blocks, contrastive_loss, print_parameters, reconstruction_loss
from one_step import all_patches, batch, make
from patches import patchify_a, patchify_v, random_masking


def test_parameter_counts(capsys):
    """`python model.py`: its parts add up. App. D: 707.8 MB, and 3.18 % more for the AVM."""
    with torch.device('meta'):                             # shapes without values
        print_parameters('base')
    printed = capsys.readouterr().out
    parts = re.findall(r'^  .* ([\d,]+)$', printed, re.MULTILINE)
    wholes = [int(number.replace(',', '')) for number in re.findall(r'^\w+ +([\d,]+)  =', printed, re.MULTILINE)]
    assert wholes == [185_534_976, 5_904_385]
    assert sum(int(number.replace(',', '')) for number in parts) == sum(wholes)
    assert '= 707.8 MiB' in printed and 'The AVM adds 3.18%' in printed and 'M = 512, N = 784' in printed


def test_patch_embedding_is_the_convolution_of_eq_1(sizes):
    model = AudioVideoMAE(sizes)
    audio, video = torch.randn(2, 64, 48), torch.randn(2, 3, 3, 32, 32)
    embed_a, embed_v = model.patch_embed['a'], model.patch_embed['v']
    convolved = embed_a.proj(audio[:, None]).flatten(2).transpose(1, 2)
    assert torch.allclose(embed_a(patchify_a(audio, 8)), convolved, atol=1e-5)
    frames = embed_v.proj(video.flatten(0, 1)).flatten(2).transpose(1, 2)          # B·T, patches, D
    assert torch.allclose(embed_v(patchify_v(video, 8)), frames.reshape(2, -1, 24), atol=1e-5)


def test_reconstruction_loss_literally():
    pred, x = torch.randn(3, 5, 12).double(), torch.randn(3, 5, 12).double()
    for i in range(3):
        total = 0.0
        for j in range(5):
            mean = sum(x[i, j].tolist()) / 12
            variance = sum((value - mean) ** 2 for value in x[i, j].tolist()) / 11
            for k in range(12):
                total += (pred[i, j, k].item() - (x[i, j, k].item() - mean) / math.sqrt(variance + 1e-6)) ** 2
        assert math.isclose(reconstruction_loss(pred, x)[i].item(), total / 60, rel_tol=1e-12)


def unit(row):
    """A list of numbers, scaled to length 1"""
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def test_contrastive_loss_literally():
    c_a, c_v, tau = torch.randn(4, 6).double(), torch.randn(4, 6).double(), 0.07
    similarity = [[sum(x * y for x, y in zip(unit(a), unit(v))) for v in c_v.tolist()] for a in c_a.tolist()]
    e = [[math.exp(s / tau) for s in row] for row in similarity]
    loss = contrastive_loss(c_a, c_v, tau)
    for i in range(4):
        audio_to_video = math.log(e[i][i] / sum(e[i][j] for j in range(4)))
        video_to_audio = math.log(e[i][i] / sum(e[j][i] for j in range(4)))
        assert math.isclose(loss[i].item(), -(audio_to_video + video_to_audio) / 2, rel_tol=1e-9)


def test_masked_patches_do_not_reach_the_encoders():
    """They are dropped, not set to zero, and count as targets only."""
    method = make('finetune')
    model, patches = method.backbone, all_patches(method, 0)
    masks, lengths = (random_masking(patches.ids_a, 7), random_masking(patches.ids_v, 9)), []
    hook = model.encoder['v'][0].register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    losses = model(patches, masks, 0.1)
    hook.remove()
    assert lengths == [9]
    changed = patches.x_v.scatter(1, masks[1].masked[..., None].expand(-1, -1, 192), 5.0)
    again = model(patches._replace(x_v=changed), masks, 0.1)
    assert torch.equal(losses.contrastive, again.contrastive) and torch.equal(losses.mae_a, again.mae_a)
    assert not torch.allclose(losses.mae_v, again.mae_v)


def loss_and_gradients(method, pairs):
    torch.manual_seed(pairs)
    loss, _ = method(batch(0, pairs))
    return [loss, *torch.autograd.grad(loss, list(method.parameters()))]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_loss_and_gradients(monkeypatch):
    """For two batch sizes, under the same parameter names. Without inductor, which takes half a minute."""
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    method = make('finetune', encoder_depth=1)
    names, before = list(method.state_dict()), [loss_and_gradients(method, pairs) for pairs in (3, 5)]
    assert compile_blocks(method.backbone) == '--compile: 4 blocks are compiled'
    assert list(method.state_dict()) == names
    for pairs, expected in zip((3, 5), before):
        assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(loss_and_gradients(method, pairs), expected))


def test_without_a_compiler_blocks_run_in_eager_mode(monkeypatch):
    def fails(block):
        raise RuntimeError('no compiler\nat all')
    method = make('finetune')
    before = loss_and_gradients(method, 3)
    monkeypatch.setattr(torch, 'compile', fails)
    assert 'eager mode' in (line := compile_blocks(method.backbone)) and 'no compiler' in line
    assert all(torch.equal(x, y) for x, y in zip(loss_and_gradients(method, 3), before))
