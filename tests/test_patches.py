"""Patches: cutting, selecting and masking against slow, literal versions."""
import math

import torch

from config import Sizes, num_kept
from one_step import batch, config
from patches import (Patches, all_ids, concat_patches, gather_patches, gather_rows, normalize_frames, patchify,
                     patchify_a, patchify_v, random_masking, random_masks, to_float)


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


def test_frames_are_normalized_once():
    """Before or after patchify; float patches stay as they are."""
    frames, p = batch(0)['video'], 8
    result = normalize_frames(frames)
    assert result.dtype == torch.float32 and result.shape == frames.shape
    assert math.isclose(result[1, 2, 1, 3, 4], (frames[1, 2, 1, 3, 4].item() / 255 - 0.456) / 0.224, abs_tol=1e-5)
    patches = patchify(batch(0), p)
    assert patches.x_v.dtype == torch.uint8
    once = to_float(patches, p)
    assert torch.equal(once.x_v, patchify_v(result, p)) and torch.equal(once.x_a, patches.x_a)
    assert torch.equal(to_float(once, p).x_v, once.x_v)


def test_gather_and_concat_literally():
    x, index = torch.randn(3, 7, 2, 4), torch.randint(0, 7, (3, 5))
    assert torch.equal(gather_rows(x, index), torch.stack([x[b, index[b]] for b in range(3)]))
    patches = patchify(batch(0), 8)                                # B = 4, M = 48, N = 48
    assert torch.equal(patches.ids_v, torch.arange(48).expand(4, -1))
    assert torch.equal(all_ids(x), torch.arange(7).expand(3, -1))
    ids_a, ids_v = torch.rand(4, 48).argsort(1)[:, :11], torch.rand(4, 48).argsort(1)[:, :13]
    some = gather_patches(patches, ids_a, ids_v)
    for got, expected in zip(some, (gather_rows(patches.x_a, ids_a), gather_rows(patches.x_v, ids_v), ids_a, ids_v)):
        assert torch.equal(got, expected)
    both = concat_patches(some, Patches(*(x[:2] for x in some)))
    for together, part in zip(both, some):
        assert torch.equal(together[:4], part) and torch.equal(together[4:], part[:2])


def test_a_mask_is_a_uniform_subset():
    keep, mask = random_masking(torch.zeros(4000, 10).long(), 3)
    assert torch.equal(torch.cat([keep, mask], 1).sort(1).values, torch.arange(10).expand(4000, -1))
    frequency = torch.bincount(keep.flatten(), minlength=10) / 4000
    assert (frequency - 0.3).abs().max() < 4.5 * math.sqrt(0.3 * 0.7 / 4000)


def test_the_mask_ratio_is_of_all_patches():
    """A ratio of 0.7 of 48 patches leaves 14 visible, with all patches and with half of them."""
    patches = patchify(batch(0), 8)
    half = gather_patches(patches, patches.ids_a[:, :24], patches.ids_v[:, :30])
    for these, masked in ((patches, (34, 34)), (half, (10, 16))):
        for mask, number in zip(random_masks(config(mask_ratio=0.7), these), masked):
            assert mask.keep.shape == (4, 14) and mask.masked.shape == (4, number)


def test_num_kept_rounds_as_exact_arithmetic_does():
    assert 0.2 * 40 == 8 and (1 - 0.8) * 40 < 8                    # float64 is slightly too small
    assert num_kept(1 - 0.8, 40) == 8 and num_kept(0.5, 7) == 3 and num_kept(1.0, 784) == 784
