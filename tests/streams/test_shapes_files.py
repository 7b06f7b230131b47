"""streams/shapes_files.py: the built-in clips as files, and the lists beside them."""
import json
from collections import Counter

import numpy as np
import torch

from data import read_clip
from patches import SIZES, Sizes
from streams import scenes, shapes, shapes_files


def test_written_files_hold_the_same_clip(tmp_path):
    small = Sizes(**SIZES['small'])
    scene = shapes.stream(small, seed=3).test[2].scene(1)
    shapes_files.write_clip(tmp_path / 'clip.mp4', scene)
    audio, video = read_clip(tmp_path / 'clip.mp4', small)
    made_audio, made_video = scenes.render(scene, small)
    assert (video.float() - made_video.float()).abs().mean() < 12           # H.264 halves the colours' resolution
    shift = lambda s: s[:250] - s[:250].mean()
    assert torch.corrcoef(torch.stack([shift(audio).flatten(), shift(made_audio).flatten()]))[0, 1] > 0.9


def test_written_retrieval_lists_hold_five_clips_a_class(tmp_path):
    clips = [(f'id{i}', f'id{i}_000000', 'ab'[i % 2]) for i in range(14)]
    shapes_files.write_retrieval_list(tmp_path / 'list.json', clips, {'a': '/m/a', 'b': '/m/b'})
    entries = json.loads((tmp_path / 'list.json').read_text())['data']
    assert Counter(entry['labels'] for entry in entries) == {'/m/a': 5, '/m/b': 5}
    assert set(entries[0]) == {'video_id', 'wav', 'video_path', 'labels'}
    assert entries[0]['wav'].endswith('/id0_000000.wav')


def test_ave_scenes_sound_in_their_event_alone():
    kinds = scenes.kinds()[:3]
    lengths, starts = set(), set()
    for seed in range(30):
        scene, start, end = shapes_files.event_scene(kinds[0], kinds[1:], (0, 1), seed)
        lengths.add(end - start), starts.add(start)
        assert scene.seconds == 10 and 0 <= start < end <= 10 and end - start >= 2
        loud = np.abs(scenes.source_waveform(scene)).reshape(10, -1).max(1)
        assert (loud[start:end] > 0.02).all() and not loud[:start].any() and not loud[end:].any()
        assert np.abs(scenes.other_waveform(scene)).reshape(10, -1).max(1).min() > 0
    assert len(lengths) > 4 and len(starts) > 4
