"""streams/prepare.py: prepared clips give the same tensors, and a prepared data set is the same data set."""
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import make, times_of, tone
from config import SIZES, Sizes, UserError
from conftest import ROOT
from data import read_clip
from folders import SMALL, folder, names_of, written
from streams import prepare as module
from streams.audioset import audioset
from streams.ave import ave
from streams.common import Clip, VideoClips
from streams.prepare import advice, is_prepared, list_clips, main, prepare, small_clip
from streams.vggsound import vggsound
from test_data import turn
from utils.video import decode_audio, open_clip


def prepared(path, segment=None):
    """The prepared clip as a file next to the original"""
    small = Path(path).with_suffix('.small.mkv')
    small.write_bytes(small_clip(path, segment))
    return str(small)


def psnr(video, other):
    return 20 * np.log10(255) - 10 * np.log10(max((video.float() - other.float()).square().mean().item(), 1e-9))


# ---------------------------------------------------------------- one clip

@pytest.mark.parametrize('options', [
    dict(seconds=10), dict(seconds=10.03, fps=30000 / 1001), dict(seconds=7.1, fps=24), dict(seconds=5, shift=1.5),
    dict(seconds=5, audio_shift=0.237, shift=1), dict(seconds=5, audio_shift=-0.2, shift=1), dict(seconds=3.3, fps=25),
    dict(seconds=4, fps=3, bframes=0), dict(seconds=5, rate=48000, layout='stereo')])
def test_evaluation_reads_the_same(tmp_path, options):
    """The same frames, by their brightness; the same bits of sound."""
    options = dict(sound=tone(options['seconds'], options.get('rate', 16000), onset=1.3), **options)
    path = make(tmp_path / 'clip.mkv', **options)
    small, sizes = prepared(path), Sizes(image_size=32)
    (audio, video), (audio_2, video_2) = read_clip(path, sizes), read_clip(small, sizes)
    assert times_of(video) == times_of(video_2) and torch.equal(audio, audio_2)
    with open_clip(path) as clip, open_clip(small) as other:
        (sound, start), (sound_2, start_2) = decode_audio(clip), decode_audio(other)
        assert torch.equal(sound, sound_2) and is_prepared(small) and not is_prepared(path)
        assert abs(start - clip.times[0] - start_2 + other.times[0]) < 0.126                # a grid of 1/8 s


def test_training_reads_the_same_window(tmp_path):
    path = make(tmp_path / 'clip.mp4', seconds=10)
    small = prepared(path)
    for seed in range(4):
        (_, video), (_, other) = (read_clip(p, SMALL, torch.Generator().manual_seed(seed)) for p in (path, small))
        assert all((a - b) % 40 in (0, 1, 2, 39, 38) for a, b in zip(times_of(video), times_of(other)))


@pytest.mark.parametrize('size, degrees', [((160, 120), 0), ((512, 384), 0), ((480, 360), 0), ((300, 534), 0),
                                           ((160, 120), 90), ((160, 120), 180), ((160, 120), 270)])
def test_pictures_agree_and_are_upright(tmp_path, size, degrees):
    """At 480 × 360, rounding twice would stretch them. A file may store them rotated."""
    y, x = np.mgrid[:size[1], :size[0]]

    def image(n):
        upright = np.stack([(x // 3 + n) % 256, y // 3, 128 + 100 * np.sin((x + y) / 9 + n)], -1).astype(np.uint8)
        return np.ascontiguousarray(np.rot90(upright, degrees // 90))
    path = make(tmp_path / 'clip.mp4', seconds=4, size=image(0).shape[1::-1], image=image)
    turn(path, degrees)
    small = prepared(path)
    with open_clip(small) as clip:
        context = clip.video.codec_context
        assert context.width / context.height == pytest.approx(size[0] / size[1], 0.01)
    assert psnr(read_clip(path, Sizes())[1], read_clip(small, Sizes())[1]) > (30 if degrees else 35)


def test_a_segment_of_a_whole_video(tmp_path):
    path = make(tmp_path / 'whole.mp4', seconds=40, fps=5, sound=tone(40, 16000, onset=18))
    small = prepared(path, (12, 10))
    (audio, video), (audio_2, video_2) = read_clip(path, SMALL, segment=(12, 10)), read_clip(small, SMALL)
    assert times_of(video) == times_of(video_2) and (audio - audio_2).abs().mean() < 0.02
    with open_clip(small) as clip:
        assert 9.9 < clip.times[-1] - clip.times[0] + 1 / 8 < 10.1


def test_no_clip_is_larger_than_its_limit(tmp_path):
    """Noise is the worst case. The file of a clip is always the same, though Matroska has random numbers."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 384, 512, 3), dtype=np.uint8)
    path = make(tmp_path / 'noise.mp4', seconds=10, fps=4, size=(512, 384), image=lambda n: noise[n % 4])
    content = small_clip(path)
    assert module.MAX_BYTES / 2 < len(content) <= module.MAX_BYTES and small_clip(path) == content


# ---------------------------------------------------------------- a folder

@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp('out') / 'small'


def content(out):
    """{name: bytes, time of change} of all files, none of which may be temporary; lists without the time"""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob('*')) if path.is_file()}
    assert not [name for name in files if name.endswith('.tmp')]
    return {name: (path.read_bytes(), path.suffix == '.mkv' and path.stat().st_mtime_ns)
            for name, path in files.items()}


@pytest.mark.parametrize('layout, read', [('vggsound', vggsound), ('audioset', audioset)])
def test_the_stream_is_the_same(written, out, layout, read):
    data, sizes = written[layout], Sizes(**SIZES['small'])
    prepare(data, out, workers=0)
    one, other = (read(d, sizes, d / 'tasks.csv', retrieval_list=d / 'retrieval.json') for d in (data, out))
    assert one.names == other.names and one.classes == other.classes and other.bad == []
    for part in ('train', 'test', 'evaluate'):
        for a, b in zip(getattr(one, part), getattr(other, part)):
            assert a.labels == b.labels and [Path(n).stem for n in names_of(a)] == [Path(n).stem for n in names_of(b)]
            assert all(name.endswith('.mkv') for name in names_of(b))
    a, b = one.test[1][0, 0], other.test[1][0, 0]
    assert psnr(a['video'], b['video']) > 30 and torch.equal(a['audio'], b['audio'])


def test_ave_is_the_same(written, out):
    prepare(written['ave'], out, workers=0)
    (one, classes), (other, classes_2) = ave(written['ave'], SMALL), ave(out, SMALL)
    assert classes == classes_2 and all(name.endswith('.mkv') for name in names_of(other['train']))
    a, b = one['test'][3, 0], other['test'][3, 0]
    assert torch.equal(a['target'], b['target']) and psnr(a['video'], b['video']) > 30
    assert (a['audio'] - b['audio']).abs().mean() < 0.02 and (a['audio_start'] - b['audio_start']).abs().max() < 0.002


def test_segments_come_from_the_lists(folder, written):
    segments = [set(list_clips(data).values()) for data in (folder, written['audioset'], written['ave'])]
    assert (14, 10) in segments[0] and segments[1] == {(30, 4)} and segments[2] == {(0, 10)}


def test_a_second_call_prepares_what_is_missing_or_changed(folder, out, monkeypatch):
    done = []
    monkeypatch.setattr(module, 'small_clip', lambda path, segment: done.append(path.name) or small_clip(path, segment))
    prepare(folder, out, workers=0)
    first = content(out)
    assert len(done) == len(set(done)) == 9
    assert '0 clips prepared, 9 already there, 0 left out' in prepare(folder, out, workers=0)
    assert len(done) == 9 and content(out) == first
    (out / 'video' / 'sea1_000001.mkv').unlink()
    (out / 'vggsound.csv').unlink()
    make(folder / 'video' / 'cat1_000001.mp4', seconds=3)
    os.utime(folder / 'video' / 'cat1_000001.mp4', (1e9, 1e9))                   # another file, though an older one
    (folder / 'video' / '-dog1_000003.mp4').unlink()                             # its prepared clip stays
    assert '2 clips prepared, 7 already there, 0 left out' in prepare(folder, out, workers=0)
    assert sorted(done[9:]) == ['cat1_000001.mp4', 'sea1_000001.mp4']
    again = content(out)
    assert {name for name in first if first[name] != again[name]} == {'video/cat1_000001.mkv'}


def test_shards_make_the_whole(folder, out):
    """Also if several processes prepare the clips."""
    for i in (3, 1, 2):
        assert '3 clips prepared' in prepare(folder, out, workers=0, shard=(i, 3))
    prepare(folder, out.parent / 'whole', workers=2)
    assert content(out) == content(out.parent / 'whole') and len(content(out)) == 9 + 2


def test_killed_and_resumed_it_ends_the_same(written, out):
    """The first process alone is killed, then all of them, then Ctrl-C. The next call goes on."""
    data = written['vggsound']
    prepare(data, out.parent / 'whole', workers=0)
    command = [sys.executable, 'data.py', 'prepare', '--data', str(data), '--out', str(out), '--workers', '2']

    def run():
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=os.environ | {'OMP_NUM_THREADS': '1'}, start_new_session=True)

    def finished():
        return len(list(out.glob('video/*.mkv')))

    counts, generator = [], random.Random(5)
    for how in ('first', 'all', 'Ctrl-C'):
        before, process = finished(), run()
        while process.poll() is None and finished() == before:
            time.sleep(0.01)
        time.sleep(generator.random() / 20)
        with contextlib.suppress(ProcessLookupError):            # it may have ended
            if how == 'first':
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL if how == 'all' else signal.SIGINT)
        _, errors = process.communicate(timeout=100)             # returns when all of its processes have ended
        assert 'Traceback' not in errors and process.returncode in (-9, 0, 130), errors
        assert process.returncode != 130 or errors.endswith('interrupted; the same command goes on\n')
        counts.append(finished())
    assert 0 < counts[0] < len(list((data / 'video').iterdir())) and counts == sorted(counts)
    printed, errors = run().communicate(timeout=100)
    assert ' 0 left out' in printed and 'Traceback' not in errors
    assert content(out) == content(out.parent / 'whole')


# ---------------------------------------------------------------- errors

def test_clips_that_cannot_be_prepared_are_named(folder, out, capsys):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'no video')
    truncated = folder / 'video' / 'dog4_000000.mp4'
    truncated.write_bytes(truncated.read_bytes()[:len(truncated.read_bytes()) // 2])
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    with pytest.raises(UserError, match=r'3 of 9 clips \(33%\) cannot be prepared') as error:
        prepare(folder, out, workers=0, max_bad=0.2)
    assert 'dog3_000000.mp4: cannot be opened' in str(error.value) and '--max-bad' in str(error.value)
    assert len(list((out / 'video').iterdir())) == 6                          # the others are prepared
    capsys.readouterr()
    assert '0 clips prepared, 6 already there, 3 left out' in prepare(folder, out, 0, max_bad=0.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'left out: sea1_000001.mp4: file missing' and len(lines) == 3


def test_an_incomplete_copy_is_refused_first(folder, out):
    for name in ('sea1_000001', 'sea2_000001', 'cat1_000001'):
        (folder / 'video' / f'{name}.mp4').unlink()
    with pytest.raises(UserError, match=r'3 of 9 clips \(33%\) are missing in .*sea1_000001.mp4: file missing'.replace(
            '.*', r'[\s\S]*')):
        prepare(folder, out, workers=0)
    assert not out.exists()


def test_originals_are_never_overwritten(folder, out):
    before, link = content(folder), out.parent / 'link'
    link.symlink_to(folder)
    for where in (folder, link):
        with pytest.raises(UserError, match='two folders'):
            prepare(folder, where, workers=0)
    assert content(folder) == before
    (out / 'video').mkdir(parents=True)
    original = Path(make(out / 'video' / 'harp2_000007.mkv', seconds=2))
    os.utime(original, (1e9, 1e9))
    before = original.read_bytes()
    with pytest.raises(UserError, match='no prepared clip'):
        prepare(folder, out, workers=0)
    assert original.read_bytes() == before


@pytest.mark.parametrize('words, message', [
    ('--shard=0/2', '--shard'), ('--shard=3/2', '--shard'), ('--shard=a/b', '--shard'), ('--shard=-1/2', '--shard'),
    ('--max-bad 3', '--max-bad: 3 must be'), ('--max-bad nan', '--max-bad: nan must be'), ('--workers -2', '--workers'),
    ('', 'no known data set')])
def test_command_line_errors_are_one_line(words, message, tmp_path, capsys):
    from utils.cli import cli_errors
    with pytest.raises(SystemExit) as end, cli_errors():
        main(f'prepare --data {tmp_path} --out {tmp_path}/small {words}'.split())
    err = capsys.readouterr().err
    assert end.value.code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / 'small').exists()


def test_a_full_disk_loses_nothing(folder, out, monkeypatch):
    replace, count = os.replace, []

    def full(temporary, path):
        count.append(path)
        if len(count) > 5:
            raise OSError(errno.ENOSPC, 'No space left on device', str(temporary))
        replace(temporary, path)
    monkeypatch.setattr(module.os, 'replace', full)
    with pytest.raises(UserError, match='No space left on device.* the same command goes on'):
        prepare(folder, out, workers=0)
    monkeypatch.undo()
    assert len(content(out)) == 5
    prepare(folder, out, workers=0)
    prepare(folder, out.parent / 'whole', workers=0)
    assert content(out) == content(out.parent / 'whole')


def test_advice(tmp_path, monkeypatch):
    path = make(tmp_path / 'a.mp4', seconds=2)
    monkeypatch.setattr(module, 'MANY_CLIPS', 7)

    def datasets(path, count):
        return [VideoClips([Clip(path, ('x',))], SMALL, augment=True) for _ in range(count)]
    assert f'--data {tmp_path.parent} --out SMALL' in advice(datasets(path, 7))[0]
    assert advice(datasets(path, 6)) == advice(datasets(prepared(path), 7)) == []
    assert advice([torch.utils.data.TensorDataset(torch.zeros(9))]) == []              # no files
