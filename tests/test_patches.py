"""A clip as patches: cutting, choosing and masking against slow, literal versions."""
import math

import torch

from one_step import batch, config
from patches import (Patches, Sizes, all_positions, chosen, count, draw_masks, draw_visible, gather, joined,
                     normalize_frames, normalized, patchify_a, patchify_v, whole)


def test_the_papers_numbers_of_patches():
    assert (Sizes().num_patches_a, Sizes().num_patches_v) == (512, 784)
    assert Sizes().grid_a == (64, 8) and Sizes().grid_v == (4, 14, 14)


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


def test_normalize_frames():
    frames = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    result = normalize_frames(frames)
    assert result.dtype == torch.float32 and result.shape == frames.shape
    assert math.isclose(result[1, 2, 1, 3, 4], (frames[1, 2, 1, 3, 4].item() / 255 - 0.456) / 0.224, abs_tol=1e-5)


def test_patches_of_bytes_are_normalized_once():
    """Cutting and normalizing may change places; what is normalized already stays as it is."""
    frames, p = batch(0)['video'], 8
    patches = whole(batch(0), p)
    assert patches.x_v.dtype == torch.uint8
    assert torch.equal(normalized(patches, p).x_v, patchify_v(normalize_frames(frames), p))
    assert torch.equal(normalized(patches, p).x_a, patches.x_a)
    assert normalized(normalized(patches, p), p).x_v.equal(normalized(patches, p).x_v)


def test_choosing_and_joining_literally():
    x, index = torch.randn(3, 7, 2, 4), torch.randint(0, 7, (3, 5))
    assert torch.equal(gather(x, index), torch.stack([x[b, index[b]] for b in range(3)]))
    everything = whole(batch(0), 8)                                # B = 4, M = 48, N = 48
    assert torch.equal(everything.kept_v, torch.arange(48).expand(4, -1))
    assert torch.equal(all_positions(x), torch.arange(7).expand(3, -1))
    kept_a, kept_v = torch.rand(4, 48).argsort(1)[:, :11], torch.rand(4, 48).argsort(1)[:, :13]
    some = chosen(everything, kept_a, kept_v)
    assert some.x_a.shape == (4, 11, 64) and some.x_v.shape == (4, 13, 192)
    for b in range(4):
        for i in range(11):
            assert torch.equal(some.x_a[b, i], everything.x_a[b, kept_a[b, i]])
            assert torch.equal(some.x_v[b, i], everything.x_v[b, kept_v[b, i]])
    assert some.kept_a is kept_a and some.kept_v is kept_v
    both = joined(some, Patches(*(x[:2] for x in some)))
    for one, two in zip(both, some):
        assert torch.equal(one[:4], two) and torch.equal(one[4:], two[:2])


def test_mask_is_a_uniform_subset():
    kept = torch.zeros(4000, 10).long()
    visible, hidden = draw_visible(kept, 3)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(10).expand(4000, -1))
    often = torch.bincount(visible.flatten(), minlength=10) / 4000
    assert (often - 0.3).abs().max() < 4.5 * math.sqrt(0.3 * 0.7 / 4000)


def test_the_masked_share_is_of_all_patches():
    """Of 48 patches a share of 0.7 is masked: 14 are seen, whether all were kept or half of them were."""
    everything = whole(batch(0), 8)
    half = chosen(everything, everything.kept_a[:, :24], everything.kept_v[:, :30])
    for patches, hidden in ((everything, (34, 34)), (half, (10, 16))):
        for (visible, target), rest in zip(draw_masks(config(mask_ratio=0.7), patches), hidden):
            assert visible.shape == (4, 14) and target.shape == (4, rest)


def test_counts_of_patches():
    assert 0.2 * 40 == 8 and (1 - 0.8) * 40 < 8                    # float64 falls short of it
    assert count(1 - 0.8, 40) == 8 and count(0.5, 7) == 3 and count(1.0, 784) == 784 and count(0.375, 512) == 192
