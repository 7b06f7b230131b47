"""Files of weights: the released names, an ImageNet MAE's, what is refused; written whole or not at all."""
import pytest
import torch

from avm import AVM
from conftest import ROOT
from model import AudioVideoMAE
from patches import Sizes, UserError
from weights import load_weights, read_checkpoint, save_atomically, write_text

GOLDEN = ROOT / 'tests' / 'data' / 'golden_tiny.pt'


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
        assert f'took {len(weights)} of {len(weights)}' in load_weights(tmp_path / name, backbone, avm)
        states.append({**backbone.state_dict(), **avm.state_dict()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    del weights['avmatching_module.norm_a.weight']
    torch.save(dict(weights, surplus=torch.zeros(1)), tmp_path / 'other.pt')
    backbone, avm = tiny()
    said = load_weights(tmp_path / 'other.pt', backbone, avm)
    assert 'left in the file: surplus' in said and 'not in the file, so as initialized: avm.norm_a.weight' in said


def test_refused_checkpoints(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ('this ran',)
    backbone, avm = tiny()
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
    shapes = {'cls_token': (1, 1, D), 'pos_embed': (1, grid + 1, D), 'mask_token': (1, 1, Dd),
              'decoder_pos_embed': (1, grid + 1, Dd), 'patch_embed.proj.weight': (D, 3, p, p),
              'patch_embed.proj.bias': (D,), 'norm.weight': (D,), 'norm.bias': (D,),
              'decoder_embed.weight': (Dd, D), 'decoder_embed.bias': (Dd,), 'decoder_norm.weight': (Dd,),
              'decoder_norm.bias': (Dd,), 'decoder_pred.weight': (p * p * 3, Dd), 'decoder_pred.bias': (p * p * 3,)}
    for prefix, count, dim in (('blocks', blocks, D), ('decoder_blocks', sizes.decoder_depth, Dd)):
        block = {'norm1.weight': (dim,), 'norm1.bias': (dim,), 'norm2.weight': (dim,), 'norm2.bias': (dim,),
                 'attn.qkv.weight': (3 * dim, dim), 'attn.qkv.bias': (3 * dim,), 'attn.proj.weight': (dim, dim),
                 'attn.proj.bias': (dim,), 'mlp.fc1.weight': (4 * dim, dim), 'mlp.fc1.bias': (4 * dim,),
                 'mlp.fc2.weight': (dim, 4 * dim), 'mlp.fc2.bias': (dim,)}
        shapes |= {f'{prefix}.{i}.{name}': shape for i in range(count) for name, shape in block.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


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
    assert torch.equal(backbone.decoder[0].mlp.fc2.weight, weights['decoder_blocks.0.mlp.fc2.weight'])


def test_a_file_without_the_decoder_is_said_in_a_line_of_its_own(sizes, tmp_path):
    """The file of the ImageNet MAE without `_full` in its name is the encoder alone."""
    weights = image_mae(sizes, blocks=3, grid=16)
    torch.save({'model': weights}, tmp_path / 'full.pt')
    encoder = {name: value for name, value in weights.items() if 'decoder' not in name and name != 'mask_token'}
    torch.save({'model': encoder}, tmp_path / 'encoder.pt')
    said = {name: load_weights(tmp_path / name, AudioVideoMAE(sizes), AVM(sizes.embed_dim, sizes.avm_heads))
            for name in ('full.pt', 'encoder.pt')}
    assert 'no decoder' not in said['full.pt']
    assert f'\n{tmp_path / "encoder.pt"} holds no decoder: it starts at random' in said['encoder.pt']
    assert 'mae_pretrain_vit_base_full.pth' in said['encoder.pt']


def test_what_fails_half_way_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / 'last.pt'
    save_atomically(dict(x=torch.ones(3)), path)
    real = torch.save

    def full(content, file):
        real(content, file)
        raise RuntimeError('the write failed')                     # as torch reports a full disk
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(UserError, match=f'{path}, is intact.*--resume'):
        save_atomically(dict(x=torch.zeros(3)), path)
    with pytest.raises(UserError) as refused:
        save_atomically(dict(x=torch.zeros(3)), tmp_path / 'first.pt')
    assert 'intact' not in str(refused.value)                      # there is none
    assert torch.equal(read_checkpoint(path)['x'], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ['last.pt']


def test_text_is_replaced_as_a_whole(tmp_path):
    for text in ('a longer first\n', 'second'):
        write_text(tmp_path / 'config.json', text)
        assert (tmp_path / 'config.json').read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ['config.json']
