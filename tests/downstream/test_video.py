"""The video of where models look: length, frames, codecs, synchronization, and the place of the maps."""
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from clips import brightness, make, tone
from downstream import video
from untrained import only_last, shared_run  # noqa: F401
from utils.video import WHOLE, open_clip

ONSET = 1.6   # seconds: when the tone starts


def read(path):
    """→ facts about the streams, times of the frames, frames (n, h, w, 3), sound (samples,), start of the sound"""
    with av.open(str(path)) as file:
        frames = [(frame.time, frame.to_ndarray(format='rgb24')) for frame in file.decode(video=0)]
        streams = {stream.type: stream for stream in file.streams}
        facts = {kind: (s.codec_context.name, float(s.duration * s.time_base)) for kind, s in streams.items()}
        facts['format'], facts['rate'] = streams['video'].codec_context.pix_fmt, streams['audio'].rate
    with av.open(str(path)) as file:
        sound = [(frame.time, frame.to_ndarray().mean(0)) for frame in file.decode(audio=0)]
    times, pixels = zip(*frames)
    return facts, list(times), np.stack(pixels), np.concatenate([block for _, block in sound]), sound[0][0]


@pytest.mark.parametrize('kind', [
    dict(fps=30000 / 1001, size=(48, 96), rate=44100, layout='stereo'), dict(fps=25, audio_shift=0.3),
    dict(fps=10, shift=0.4, rate=22050)])
def test_length_frames_codecs_and_synchronization(run, tmp_path, kind):
    """The tone starts on time in the sound, within 50 ms. Each frame is there, at its time."""
    kind = dict(seconds=2.0, rate=16000) | kind
    clip = make(tmp_path / 'clip.mp4', **kind, sound=tone(kind['seconds'], kind['rate'], onset=ONSET))
    video.make_video(only_last(run), clip, tmp_path / 'out.mp4')
    facts, times, frames, sound, start = read(tmp_path / 'out.mp4')
    with open_clip(clip, WHOLE) as source:
        own_times, seconds = [t - source.times[0] for t in source.times], source.end - source.start
    assert facts['video'][0] == 'h264' and facts['format'] == 'yuv420p' and facts['audio'][0] == 'aac'
    assert np.allclose(times, own_times, atol=1e-3)
    assert abs(facts['video'][1] - seconds) < seconds / len(own_times) / 2
    onset = start + np.argmax(np.abs(sound) > 0.1) / facts['rate']
    assert abs(onset - ONSET - kind.get('audio_shift', 0)) < 0.05
    for n in (0, len(times) // 3, len(times) - 1):
        assert abs(int(frames[n][video.TITLE + 40, 40].mean()) - brightness(n, kind['fps'])) < 8     # of this time
    assert not list(tmp_path.glob('*.tmp'))


def test_several_models_are_side_by_side(run, tmp_path, capsys):
    clip = make(tmp_path / 'clip.mp4', seconds=1.0)
    words = ['--eval', 'localization', '--video', clip, '--device', 'cpu']
    evaluation.main([str(run.folder), *words, '--out', str(tmp_path / 'seven.mp4')])
    seven = read(tmp_path / 'seven.mp4')[2]
    evaluation.main([str(run.folder / 'models' / '1.pt'), *words])
    assert str(run.folder / 'eval' / 'localization-clip-1.mp4') in capsys.readouterr().out
    one = read(run.folder / 'eval' / 'localization-clip-1.mp4')[2]
    with pytest.raises(SystemExit):                        # the clip is never overwritten
        evaluation.main([str(run.folder), *words, '--out', clip])
    assert 'is the video itself' in capsys.readouterr().err
    assert seven.shape[0] == one.shape[0] and seven.shape[1] > one.shape[1] and seven.shape[2] > one.shape[2]


def test_each_window_has_a_frame_at_its_moment(run, tmp_path, monkeypatch):
    """The brightness of a frame tells its time. Frames of a window are a second apart; I_v is that of the own frame."""
    with open_clip(make(tmp_path / 'clip.mp4', seconds=4.0), WHOLE) as source:
        windows = video.read_windows(source, run.cfg)
    tenths = [round((level - 20) / 5) for level in windows.frames.float().mean((1, 2, 3)).tolist()]
    assert tenths == [0, 5, 10, 15, 20, 25, 30, 35, 39]
    for k, (ids, own) in enumerate(zip(windows.ids.tolist(), windows.own_index)):
        assert ids[own] == k and all(b - a == 2 for a, b in zip(ids, ids[1:]))

    def attend(cfg, backbone, avm, patches):
        return SimpleNamespace(I_v=torch.arange(cfg.num_patches_v).float()[None])

    monkeypatch.setattr(video, 'attend', attend)
    I_v = video.attend_windows(run.cfg, None, None, windows, 'cpu')
    frames = np.linspace(0, 1, run.cfg.num_patches_v).reshape(run.cfg.grid_v)
    assert all(np.allclose(I, frames[index]) for I, index in zip(I_v, windows.own_index))
    assert I_v.min() == 0 and I_v.max() == 1


def test_maps_are_interpolated_between_windows():
    maps = np.array([[[0.0]], [[1.0]], [[0.5]]])
    assert [float(video.map_at(maps, t)[0, 0]) for t in (0, 0.25, 0.5, 0.75, 1.0, 9)] == [0, 0.5, 1, 0.75, 0.5, 0.5]


def test_a_map_covers_the_square_that_the_model_sees():
    frame = Image.fromarray(np.full((160, 320, 3), 100, np.uint8))
    page = video.draw_page(['the clip', 'a model'], frame, [np.eye(2)])

    def colour(x, y):
        return page.getpixel((320 + video.GAP + x, video.TITLE + y))

    assert colour(40, 20) == colour(280, 140) == (100, 100, 100)                          # beside the square
    assert colour(90, 20) == colour(230, 140) != colour(90, 140) == colour(230, 20)


@pytest.mark.parametrize('words, message', [
    ('gap --video clip.mp4', '--video'), ('localization --video clip.mp4 --out x.gif', 'must end in .mp4'),
    ('localization --video mute.mp4', 'mute.mp4: ')])
def test_mistakes_are_one_sentence(words, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make('clip.mp4', seconds=1), make('mute.mp4', seconds=1, acodec=None)
    with pytest.raises(SystemExit) as stopped:
        evaluation.main([str(run.folder), '--device', 'cpu', '--eval', *words.split()])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and err.count('\n') == 1
