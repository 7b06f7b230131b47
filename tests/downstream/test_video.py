"""The video of where models look: its length, frames and codecs, cursor and sound in step, maps in the right place."""

import av
import numpy as np
import pytest
import torch

import eval as evaluation
from clips import brightness, make, tone
from config import Config
from data import WHOLE, check_clip, opened
from downstream import video
from running import CLIPS
from untrained import LOOKED_AT, make_run

ONSET = 1.6   # seconds: when the tone of `clip` sets in


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('run'), Config(**LOOKED_AT), range(3))


def read(path):
    """A video → streams, times of its frames, frames (n, h, w, 3), sound (samples,), second of its first sample"""
    with av.open(str(path)) as file:
        streams = {stream.type: stream for stream in file.streams}
        frames, sound, start = [], [], None
        for frame in file.decode(video=0):
            frames.append((frame.time, frame.to_ndarray(format='rgb24')))
        facts = {kind: (s.codec_context.name, float(s.duration * s.time_base)) for kind, s in streams.items()}
        facts['format'], facts['rate'] = streams['video'].codec_context.pix_fmt, streams['audio'].rate
    with av.open(str(path)) as file:
        for frame in file.decode(audio=0):
            start = frame.time if start is None else start
            sound.append(frame.to_ndarray().mean(0))
    return facts, [time for time, _ in frames], np.stack([pixels for _, pixels in frames]), np.concatenate(sound), start


def onset(sound, start, rate):
    """The second at which it becomes loud."""
    return start + np.argmax(np.abs(sound) > 0.1) / rate


def cursor(frame, page, seconds):
    """The second at which the cursor stands: where five columns differ most from the page without it."""
    (top, bottom), (left, right) = page.strips[0], page.ends
    apart = np.abs(frame[top:bottom].astype(int) - page.picture[top:bottom]).mean((0, 2))
    return (np.convolve(apart, np.ones(5), 'same').argmax() - left) / (right - left) * seconds


@pytest.mark.parametrize('kind', [
    dict(fps=10), dict(fps=30000 / 1001, size=(48, 96), rate=44100, layout='stereo'), dict(fps=60, seconds=2.2),
    dict(fps=25, seconds=2.5, audio_shift=0.3), dict(fps=15, seconds=2.5, shift=0.4, rate=22050)])
def test_length_frames_codecs_and_step(run, tmp_path, kind, monkeypatch):
    """The tone sets in when it did, in sound and under the cursor, to 50 ms; every frame is there, at its time."""
    kind = dict(dict(seconds=3.0, rate=16000), **kind)
    clip = make(tmp_path / 'clip.mp4', **kind, sound=tone(kind['seconds'], kind['rate'], onset=ONSET))
    pages, page = [], video.page
    monkeypatch.setattr(video, 'page', lambda *given: pages.append(page(*given)) or pages[-1])
    monkeypatch.setattr(run, 'last', True)
    video.make(run, clip, tmp_path / 'out.mp4')
    facts, times, frames, sound, start = read(tmp_path / 'out.mp4')
    with opened(clip, WHOLE) as source:
        shown, length = [t - source.times[0] for t in source.times], video.duration(source)
    assert facts['video'][0] == 'h264' and facts['format'] == 'yuv420p' and facts['audio'][0] == 'aac'
    assert np.allclose(times, shown, atol=1e-3)
    assert abs(facts['video'][1] - length) < length / len(shown) / 2
    sounds = onset(sound, start, facts['rate'])
    assert abs(sounds - ONSET - kind.get('audio_shift', 0)) < 0.05
    for n in (0, len(times) // 3, len(times) - 1):
        assert abs(cursor(frames[n], pages[0], length) - times[n]) < 0.05
        (top, left), middle = pages[0].tiles[0], brightness(n, kind['fps'])
        assert abs(int(frames[n][top + 40, left + 40].mean()) - middle) < 8          # the frame of this time
    assert not list(tmp_path.glob('*.tmp'))


def test_several_models_stand_beside_each_other(run, tmp_path, capsys):
    clip = make(tmp_path / 'clip.mp4', seconds=1.5)
    out = tmp_path / 'three.mp4'
    evaluation.main([str(run.folder), '--task', 'localization', '--video', clip, '--out', str(out), '--device', 'cpu'])
    three = read(out)[2]
    evaluation.main([str(run.folder / 'models' / '1.pt'), '--task', 'localization', '--video', clip, '--device', 'cpu'])
    assert str(run.folder / 'eval' / 'localization-clip-1.mp4') in capsys.readouterr().out
    one = read(run.folder / 'eval' / 'localization-clip-1.mp4')[2]
    assert three.shape[0] == one.shape[0] and three.shape[1] > one.shape[1] and three.shape[2] > one.shape[2]


def test_a_window_has_a_frame_at_its_moment(run, tmp_path):
    """Of brightnesses that tell the time: frames a second apart, the moment's own among them; I_v of that frame."""
    clip = make(tmp_path / 'clip.mp4', seconds=4.0)
    with opened(clip, WHOLE) as source:
        heard = video.listen(source, run.cfg)
    assert len(heard.frames) == 9
    tenths = [round((level - 20) / 5) for level in heard.frames.float().mean((1, 2, 3)).tolist()]
    assert tenths == [0, 5, 10, 15, 20, 25, 30, 35, 39]
    for k, (window, here) in enumerate(zip(heard.windows.tolist(), heard.place)):
        assert window[here] == k and all(b - a == 2 for a, b in zip(window, window[1:]))
    asked = []

    def score(cfg, backbone, avm, patches):
        I_v = torch.arange(cfg.num_patches_v).float()[None]
        asked.append(patches)
        return type('S', (), dict(importance_v=I_v, importance_a=torch.ones(1, cfg.num_patches_a)))
    video.score, real = score, video.score
    try:
        I_v, I_a = video.looked_at(run.cfg, None, None, heard, 'cpu')
    finally:
        video.score = real
    every = torch.arange(run.cfg.num_patches_v).float().reshape(run.cfg.grid_v)
    assert all(torch.equal(I, every[here]) for I, here in zip(I_v, heard.place))
    assert set(I_a[~I_a.isnan()].tolist()) == {1.0}


def test_maps_are_mixed_between_two_moments():
    maps = np.array([[[0.0]], [[1.0]], [[0.5]]])
    assert [float(video.at_time(maps, t)[0, 0]) for t in (0, 0.25, 0.5, 0.75, 1.0, 9)] == [0, 0.5, 1, 0.75, 0.5, 0.5]


def test_the_map_lies_over_the_square_that_the_model_sees():
    pixels = np.full((40, 80, 3), 100, np.uint8)
    shown = video.under(pixels, np.eye(2))
    assert (shown[:, :20] == 100).all() and (shown[:, 60:] == 100).all()
    assert (shown[5, 25] == shown[35, 55]).all() and (shown[5, 25] != shown[5, 55]).any()


def test_users_mistakes_are_one_sentence(run, tmp_path, capsys):
    clip, mute = make(tmp_path / 'clip.mp4', seconds=1), make(tmp_path / 'mute.mp4', seconds=1, acodec=None)
    for words, said in ((['--task', 'gap', '--video', clip], '--video is for --task localization, not gap'),
                        (['--task', 'localization', '--video', clip, '--out', 'x.gif'], 'must end in .mp4'),
                        (['--task', 'localization', '--video', mute], f'mute.mp4: {check_clip(mute)[0]}')):
        with pytest.raises(SystemExit) as stopped:
            evaluation.main([str(run.folder), *words, '--device', 'cpu'])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and said in err and err.count('\n') == 1


@pytest.mark.skipif(not CLIPS.exists(), reason='the real clips are not here')
def test_a_real_clip(run, tmp_path, monkeypatch):
    clip = CLIPS / 'video' / 'vas-dog-02677_000000.mp4'
    monkeypatch.setattr(run, 'last', True)
    video.make(run, clip, tmp_path / 'out.mp4')
    facts, times, _, sound, start = read(tmp_path / 'out.mp4')
    with av.open(str(clip)) as file:
        own = [frame.time for frame in file.decode(video=0)]
        length = float(file.streams.video[0].duration * file.streams.video[0].time_base)
    assert len(times) == len(own) and abs(facts['video'][1] - length) < own[1] - own[0]
    before = read(clip)
    envelope = lambda x, rate: np.abs(x[:len(x) // (rate // 100) * (rate // 100)]).reshape(-1, rate // 100).mean(1)
    a, b = envelope(before[3], before[0]['rate']), envelope(sound, facts['rate'])
    n = min(len(a), len(b))
    lag = np.argmax(np.correlate(a[:n] - a[:n].mean(), b[:n] - b[:n].mean(), 'full')) - (n - 1)
    assert abs(lag) * 0.01 + abs(start - before[4]) < 0.05
