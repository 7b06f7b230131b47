"""The video of where models look: length, frames, codecs, synchronization, and the place of the maps."""
import av
import numpy as np
import pytest
import torch

import eval as evaluation
from clips import brightness, make, tone
from config import Config
from data import check_clip
from downstream import video
from untrained import SMALL, make_run
from utils.video import WHOLE, open_clip

ONSET = 1.6   # seconds: when the tone starts


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('run'), Config(**SMALL), range(3))


@pytest.fixture
def last(run, monkeypatch):
    monkeypatch.setattr(run, 'last', True)
    return run


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


def to_pixels(axis, x, y, height):
    """A point in an axis's data coordinates → (row, column) of the picture"""
    column, from_bottom = axis.transData.transform((x, y))
    return round(height - from_bottom), round(column)


@pytest.mark.parametrize('kind', [
    dict(fps=30000 / 1001, size=(48, 96), rate=44100, layout='stereo'), dict(fps=25, audio_shift=0.3),
    dict(fps=10, shift=0.4, rate=22050)])
def test_length_frames_codecs_and_synchronization(last, tmp_path, kind, monkeypatch):
    """The tone starts on time in the sound and under the cursor, within 50 ms. Each frame is there, at its time."""
    kind = dict(seconds=2.5, rate=16000) | kind
    clip = make(tmp_path / 'clip.mp4', **kind, sound=tone(kind['seconds'], kind['rate'], onset=ONSET))
    screens, real = [], video.Screen
    monkeypatch.setattr(video, 'Screen', lambda *args: screens.append(real(*args)) or screens[-1])
    video.make(last, clip, tmp_path / 'out.mp4')
    facts, times, frames, sound, start = read(tmp_path / 'out.mp4')
    with open_clip(clip, WHOLE) as source:
        own_times = [t - source.times[0] for t in source.times]
        seconds = video.read_windows(source, last.cfg).seconds
    assert facts['video'][0] == 'h264' and facts['format'] == 'yuv420p' and facts['audio'][0] == 'aac'
    assert np.allclose(times, own_times, atol=1e-3)
    assert abs(facts['video'][1] - seconds) < seconds / len(own_times) / 2
    onset = start + np.argmax(np.abs(sound) > 0.1) / facts['rate']
    assert abs(onset - ONSET - kind.get('audio_shift', 0)) < 0.05
    strip, tile, height = screens[0].strips[0], screens[0].tiles[0], frames.shape[1]
    for n in (0, len(times) // 3, len(times) - 1):
        row, column = to_pixels(strip, times[n], 0.5, height)
        assert frames[n][row, column - 1:column + 2].min() > 200                        # the cursor is white
        row, column = to_pixels(tile, 40, 40, height)
        assert abs(int(frames[n][row, column].mean()) - brightness(n, kind['fps'])) < 8        # the frame of this time
    assert not list(tmp_path.glob('*.tmp'))


def test_several_models_are_side_by_side(run, tmp_path, capsys):
    clip = make(tmp_path / 'clip.mp4', seconds=1.5)
    out = tmp_path / 'three.mp4'
    words = ['--eval', 'localization', '--video', clip, '--device', 'cpu']
    evaluation.main([str(run.folder), *words, '--out', str(out)])
    three = read(out)[2]
    evaluation.main([str(run.folder / 'models' / '1.pt'), *words])
    assert str(run.folder / 'eval' / 'localization-clip-1.mp4') in capsys.readouterr().out
    one = read(run.folder / 'eval' / 'localization-clip-1.mp4')[2]
    assert three.shape[0] == one.shape[0] and three.shape[1] > one.shape[1] and three.shape[2] > one.shape[2]


def test_each_window_has_a_frame_at_its_moment(run, tmp_path, monkeypatch):
    """The brightness of a frame tells its time. Frames of a window are a second apart; I_v is that of the own frame."""
    with open_clip(make(tmp_path / 'clip.mp4', seconds=4.0), WHOLE) as source:
        windows = video.read_windows(source, run.cfg)
    tenths = [round((level - 20) / 5) for level in windows.frames.float().mean((1, 2, 3)).tolist()]
    assert tenths == [0, 5, 10, 15, 20, 25, 30, 35, 39]
    for k, (ids, own) in enumerate(zip(windows.ids.tolist(), windows.own)):
        assert ids[own] == k and all(b - a == 2 for a, b in zip(ids, ids[1:]))

    def attend(cfg, backbone, avm, patches):
        I_v = torch.arange(cfg.num_patches_v).float()[None]
        return type('Out', (), dict(importance_v=I_v, importance_a=torch.ones(1, cfg.num_patches_a)))

    monkeypatch.setattr(video, 'attend', attend)
    I_v, I_a = video.attend_windows(run.cfg, None, None, windows, 'cpu')
    frames = torch.arange(run.cfg.num_patches_v).float().reshape(run.cfg.grid_v)
    assert all(torch.equal(I, frames[own]) for I, own in zip(I_v, windows.own))
    assert set(I_a[~I_a.isnan()].tolist()) == {1.0}


def test_maps_are_interpolated_between_windows():
    maps = np.array([[[0.0]], [[1.0]], [[0.5]]])
    assert [float(video.map_at(maps, t)[0, 0]) for t in (0, 0.25, 0.5, 0.75, 1.0, 9)] == [0, 0.5, 1, 0.75, 0.5, 0.5]


def test_a_map_covers_the_square_that_the_model_sees(run, tmp_path):
    with open_clip(make(tmp_path / 'clip.mp4', seconds=1), WHOLE) as source:
        windows = video.read_windows(source, run.cfg)
    screen = video.Screen(['a model'], (160, 320), windows, [np.zeros((len(windows.spectrogram), 2))])
    picture = screen.draw(0, np.full((160, 320, 3), 100, np.uint8), [np.eye(2)]).astype(int)

    def colour(x, y):
        return picture[to_pixels(screen.tiles[1], x, y, len(picture))]

    assert colour(40, 20).tolist() == colour(280, 140).tolist() == [100] * 3              # beside the square
    assert (colour(90, 20) == colour(230, 140)).all() and abs(colour(90, 20) - colour(90, 140)).max() > 50


def test_mistakes_are_one_sentence(run, tmp_path, capsys):
    clip, mute = make(tmp_path / 'clip.mp4', seconds=1), make(tmp_path / 'mute.mp4', seconds=1, acodec=None)
    for words, message in ((['gap', '--video', clip], '--video'),
                           (['localization', '--video', clip, '--out', 'x.gif'], 'must end in .mp4'),
                           (['localization', '--video', mute], f'mute.mp4: {check_clip(mute)[0]}')):
        with pytest.raises(SystemExit) as stopped:
            evaluation.main([str(run.folder), '--device', 'cpu', '--eval', *words])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and message in err and err.count('\n') == 1
