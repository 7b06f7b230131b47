"""Files of weights: released names, an image MAE, models of older versions, what is refused."""
import json
import shutil

import pytest
import torch

import eval as evaluation
from avm import AVM
from config import Sizes, UserError
from conftest import ROOT
from downstream.finished_run import FinishedRun
from model import AudioVideoMAE
from utils.weights import load_weights

GOLDEN = ROOT / 'tests' / 'data' / 'golden_tiny.pt'
OLDER_RUN = ROOT / 'tests' / 'data' / 'older_run'


def tiny():
    config = torch.load(GOLDEN, weights_only=True)['config']
    sizes = Sizes(**{k: v for k, v in config.items() if k in Sizes.__dataclass_fields__})
    return AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads)


def test_released_names_with_and_without_prefix(tmp_path):
    weights = torch.load(GOLDEN, weights_only=True)['state_dict']
    torch.save({'module.' + name: value for name, value in weights.items()}, tmp_path / 'prefixed.pt')
    torch.save({'state_dict': weights}, tmp_path / 'plain.pt')
    states = []
    for name in ('prefixed.pt', 'plain.pt'):
        backbone, avm = tiny()
        assert f'loaded {len(weights)} of {len(weights)}' in load_weights(tmp_path / name, backbone, avm)
        states.append({**backbone.state_dict(), **avm.state_dict()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    del weights['avmatching_module.norm_a.weight']
    torch.save(dict(weights, surplus=torch.zeros(1)), tmp_path / 'other.pt')
    line = load_weights(tmp_path / 'other.pt', *tiny())
    assert 'not used: surplus' in line and 'not in the file, so as initialized: avm.norm_a.weight' in line


def test_a_run_of_an_older_version_is_evaluated(tmp_path):
    """Its parameters and options have other names. expected.pt: its embeddings, as that version computed them."""
    folder = tmp_path / 'run'
    shutil.copytree(OLDER_RUN, folder)
    run, expected = FinishedRun(folder, device='cpu'), torch.load(folder / 'expected.pt', weights_only=True)
    assert run.cfg.candidate_sets == 2 and run.cfg.rank_share == 0.125
    (_, _, file), = run.models()
    backbone, avm = run.load_model(file)
    assert not any(weight.requires_grad for module in (backbone, avm) for weight in module.parameters())
    ((c_a, c_v),), task_of, _ = evaluation.embed_clips([backbone], run.stream.retrieval, run.device, 4, 0)
    torch.testing.assert_close(c_a, expected['a'])
    torch.testing.assert_close(c_v, expected['v'])
    torch.testing.assert_close(avm.match(expected['joint_a'], expected['joint_v']), expected['logits'])
    results = json.loads((folder / 'results.json').read_text())
    row = evaluation.retrieval(c_a, c_v, task_of, 6, candidate_sets=run.cfg.candidate_sets)
    for direction in evaluation.DIRECTIONS:
        assert row[direction]['R@5'] == results[direction]['R@5']['acc'][-1]


def test_other_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ('this ran',)
    weights = {'backbone.norm.weight': torch.zeros(49)}
    torch.save(weights, tmp_path / 'size.pt')
    torch.save(dict(weights, x=torch.zeros(9999)), tmp_path / 'cut.pt')
    content = (tmp_path / 'cut.pt').read_bytes()
    (tmp_path / 'cut.pt').write_bytes(content[:len(content) // 2])
    torch.save({'x': Evil()}, tmp_path / 'evil.pt')
    torch.save({'nothing': torch.zeros(1)}, tmp_path / 'strange.pt')
    torch.save([1], tmp_path / 'list.pt')
    for name, reason in (('size.pt', 'another size'), ('cut.pt', 'truncated'), ('evil.pt', 'execute code'),
                         ('strange.pt', 'none of its 1 tensors'), ('list.pt', 'no weights'),
                         ('absent.pt', 'no such file')):
        with pytest.raises(UserError, match=reason):
            load_weights(tmp_path / name, *tiny())


def image_mae(sizes, blocks, grid):
    """A checkpoint of an image MAE, of random numbers"""
    D, Dd, p = sizes.embed_dim, sizes.decoder_embed_dim, sizes.patch_size
    shapes = {'cls_token': (1, 1, D), 'pos_embed': (1, grid + 1, D), 'mask_token': (1, 1, Dd),
              'decoder_pos_embed': (1, grid + 1, Dd), 'patch_embed.proj.weight': (D, 3, p, p),
              'patch_embed.proj.bias': (D,), 'norm.weight': (D,), 'norm.bias': (D,),
              'decoder_embed.weight': (Dd, D), 'decoder_embed.bias': (Dd,), 'decoder_norm.weight': (Dd,),
              'decoder_norm.bias': (Dd,), 'decoder_pred.weight': (p * p * 3, Dd), 'decoder_pred.bias': (p * p * 3,)}
    for prefix, number, dim in (('blocks', blocks, D), ('decoder_blocks', sizes.decoder_depth, Dd)):
        block = {'norm1.weight': (dim,), 'norm1.bias': (dim,), 'norm2.weight': (dim,), 'norm2.bias': (dim,),
                 'attn.qkv.weight': (3 * dim, dim), 'attn.qkv.bias': (3 * dim,), 'attn.proj.weight': (dim, dim),
                 'attn.proj.bias': (dim,), 'mlp.fc1.weight': (4 * dim, dim), 'mlp.fc1.bias': (4 * dim,),
                 'mlp.fc2.weight': (dim, 4 * dim), 'mlp.fc2.bias': (dim,)}
        shapes |= {f'{prefix}.{i}.{name}': shape for i in range(number) for name, shape in block.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_image_mae(sizes, tmp_path):
    weights = image_mae(sizes, blocks=3, grid=16)          # 2 blocks for the encoders, 1 for the fusion
    torch.save({'model': weights}, tmp_path / 'mae.pt')
    backbone, avm = AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads)
    pos_a = backbone.pos['a'].clone()
    line = load_weights(tmp_path / 'mae.pt', backbone, avm)
    assert 'an image MAE' in line and 'not used: cls_token' in line and 'holds no decoder' not in line
    for m in 'av':
        assert torch.equal(backbone.encoder[m][1].attn.qkv.weight, weights['blocks.1.attn.qkv.weight'])
    for name in ('joint', 'a', 'v'):
        assert torch.equal(backbone.fusion[0].norm1[name].weight, weights['blocks.2.norm1.weight'])
        assert torch.equal(backbone.norm[name].bias, weights['norm.bias'])
    kernel = weights['patch_embed.proj.weight']
    assert torch.equal(backbone.patch_embed['a'].proj.weight, kernel.sum(1, keepdim=True))
    assert torch.equal(backbone.head['a'].weight, weights['decoder_pred.weight'][:64])
    assert torch.equal(backbone.pos['v'], weights['pos_embed'][:, 1:].repeat(1, 3, 1))
    assert torch.equal(backbone.pos['a'], pos_a)           # stays sine-cosine
    assert torch.equal(backbone.decoder[0].mlp.fc2.weight, weights['decoder_blocks.0.mlp.fc2.weight'])

    # mae_pretrain_vit_base.pth, without `_full` in its name, holds the encoder alone
    encoder = {name: value for name, value in weights.items() if 'decoder' not in name and name != 'mask_token'}
    torch.save({'model': encoder}, tmp_path / 'encoder.pt')
    line = load_weights(tmp_path / 'encoder.pt', backbone, avm)
    assert 'encoder.pt holds no decoder' in line and 'mae_pretrain_vit_base_full.pth' in line
