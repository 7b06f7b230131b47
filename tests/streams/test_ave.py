"""streams/ave.py: ten seconds as windows, and clips with a label per second."""
import numpy as np
import pytest
import torch

from clips import MIDDLE, SMALL, make, seeded, tone
from config import Sizes, UserError
from folders import ave_folder, options
from streams.ave import ave, read_windows, window_of_second, window_starts


def grey(n):
    """Brightness encodes tenths of a second, 2 levels each."""
    return np.full((48, 64, 3), 20 + 2 * n, np.uint8)


def tenths(video):
    return (video.float().mean((2, 3, 4)) - 20) / 2


# ---------------------------------------------------------------- windows

@pytest.mark.parametrize('T, starts', [
    (1, list(range(10))), (2, [0, 2, 4, 6, 8]), (3, [0, 3, 6, 7]), (4, [0, 4, 6]), (7, [0, 3]), (10, [0]), (12, [0])])
def test_windows_cover_ten_seconds(T, starts):
    sizes = Sizes(num_frames=T)
    assert window_starts(sizes) == starts
    places = window_of_second(sizes)
    assert len(places) == 10 and all(starts[w] + frame == s and 0 <= frame < T for s, (w, frame) in enumerate(places))
    assert all(starts[w - 1] + T <= s for s, (w, _) in enumerate(places) if w)     # the first window that shows it


@pytest.mark.parametrize('T, options', [(3, {}), (4, dict(shift=1.3))])
def test_windows_show_the_middle_of_their_seconds(tmp_path, T, options):
    """A file whose first frame comes late begins with that frame."""
    path = make(tmp_path / 'ten.mkv', seconds=10, bframes=0, sound=tone(10, 16000), image=grey, **options)
    audio, video, audio_start = read_windows(path, Sizes(**{**vars(MIDDLE), 'num_frames': T}))
    starts = window_starts(Sizes(num_frames=T))
    W = len(starts)
    assert audio.shape == (W, 400, 128) and audio.dtype == torch.float32 and audio_start.dtype == torch.float32
    assert video.shape == (W, T, 3, 32, 32) and video.dtype == torch.uint8
    expected = torch.tensor([[10 * (start + i) + 5 for i in range(T)] for start in starts])
    assert (tenths(video) - expected).abs().max() < 1
    middles = [start + T / 2 - 2.0075 for start in starts]                 # of windows of 400 steps: 3.99 s and 25 ms
    assert audio_start.tolist() == pytest.approx([min(max(m, 0), 10 - 4.015) for m in middles], abs=0.08)


@pytest.mark.parametrize('onset, late', [(1.0, 0.0), (5.0, 0.5)])
def test_audio_start_is_the_time_of_the_sound(tmp_path, onset, late):
    """A tone starts (onset + late) s into the clip: each window has it at that time minus its audio_start."""
    path = make(tmp_path / 'onset.mkv', seconds=10, sound=tone(10, 16000, 1000, onset=onset), audio_shift=late,
                bframes=0)
    audio, _, audio_start = read_windows(path, MIDDLE)
    tested = 0
    for window, start in zip(audio, audio_start.tolist()):
        frame, loud = 100 * (onset + late - start), window.amax(1)
        if 10 < frame < 390:
            tested += 1
            assert abs((loud > loud.max() - 1).float().argmax().item() - frame) <= 4
        else:
            assert (loud[10:390] > 0).all() if frame <= 10 else not (loud[10:390] > 0).any()
    assert tested


def test_training_crops_all_windows_alike_and_adds_no_noise(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = make(tmp_path / 'still.mp4', seconds=10, image=lambda n: picture, gop=1, bframes=0, sound=tone(10, 16000))
    plain = read_windows(path, SMALL)
    crops = set()
    for seed in range(4):
        first, second = (read_windows(path, SMALL, seeded(seed)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second)) and torch.equal(first[0], plain[0])
        frames = first[1].flatten(0, 1).float()                      # W·T, 3, S, S
        assert (frames - frames[0]).abs().max() < 12                 # a still picture, encoded anew in each frame
        crops.add(tuple(frames[0, :, ::8, ::8].flatten().tolist()))
    assert len(crops) > 2


def test_short_clips_hold_their_last_frame(tmp_path):
    path = make(tmp_path / 'six.mp4', seconds=6.2, image=grey)
    _, video, audio_start = read_windows(path, MIDDLE)
    assert tenths(video).round().flatten().tolist() == pytest.approx(
        [5, 15, 25, 35, 45, 55, 61, 61, 61, 61, 61, 61], abs=1)
    assert audio_start[-1] < 2.4


# ---------------------------------------------------------------- clips

def test_clips_and_their_labels(tmp_path):
    """A clip that fails the test is left out and named. One that is lost later is replaced, with its own labels."""
    folder = ave_folder(tmp_path, clip=make(tmp_path / 'ten.mp4', seconds=10),
                        train='Bark&b_1&bad&3&5\nViolin, fiddle&-v1&good&0&10\n',
                        test='Bark&b2&good&9&10\nBark&b3&good&2&4\n')
    (folder / 'AVE' / 'b2.mp4').write_bytes(b'no video')
    with pytest.raises(UserError, match='1 of 2 clips'):
        ave(folder, options(folder), 0)
    sets, classes = ave(folder, options(folder, max_bad=0.5), 0)
    assert classes == ['Bark', 'Violin, fiddle'] and list(sets) == ['train', 'test']
    assert [d.augment for d in sets.values()] == [True, False] and sets['train'].labels == [('Bark',), (classes[1],)]
    assert sets['train'].bad == [] and len(sets['test']) == 1 and sets['test'].bad[0].startswith('AVE/b2.mp4: cannot be')

    item = sets['train'][0, 4]
    assert item['target'].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0] and item['target'].dtype == torch.int64
    read = read_windows(folder / 'AVE' / 'b_1.mp4', SMALL, seeded(4))
    assert all(torch.equal(item[key], value) for key, value in zip(('audio', 'video', 'audio_start'), read))
    (folder / 'AVE' / 'b_1.mp4').unlink()
    item = sets['train'][0, 4]
    assert item['target'].tolist() == [2] * 10 and item['clip'] == 1 and item['bad'] == 'AVE/b_1.mp4: file missing'
