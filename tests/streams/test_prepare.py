"""streams/prepare.py: prepared clips give the same tensors, and a prepared data set is the same data set."""
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import SMALL, make, prepared, times_of, tone, write_matrix
from config import Sizes, UserError
from conftest import ROOT
from data import read_clip
from folders import audioset_folder, ave_folder, folder, names_of, options
from streams import prepare as module
from streams.ave import ave
from streams.prepare import list_clips, main, prepare, small_clip
from streams.vggsound import vggsound
from utils.video import decode_audio, open_clip


def psnr(video, other):
    return 20 * np.log10(255) - 10 * np.log10(max((video.float() - other.float()).square().mean().item(), 1e-9))


# ---------------------------------------------------------------- one clip

@pytest.mark.parametrize('options', [
    dict(seconds=10.03, fps=30000 / 1001), dict(seconds=5, audio_shift=0.237, shift=1),
    dict(seconds=5, audio_shift=-0.2, shift=1), dict(seconds=3.3, fps=25), dict(seconds=4, fps=3, bframes=0),
    dict(seconds=5, rate=48000, layout='stereo')])
def test_evaluation_reads_the_same(tmp_path, options):
    """The same frames, by their brightness; the same bits of sound."""
    options = dict(sound=tone(options['seconds'], options.get('rate', 16000), onset=1.3), **options)
    path = make(tmp_path / 'clip.mkv', **options)
    small, sizes = prepared(path), Sizes(image_size=32)
    (audio, video), (audio_2, video_2) = read_clip(path, sizes), read_clip(small, sizes)
    assert times_of(video) == times_of(video_2) and torch.equal(audio, audio_2)
    with open_clip(path) as clip, open_clip(small) as other:
        (sound, start), (sound_2, start_2) = decode_audio(clip), decode_audio(other)
        assert torch.equal(sound, sound_2)
        assert abs(start - clip.times[0] - start_2 + other.times[0]) < 0.126                # a grid of 1/8 s


@pytest.mark.parametrize('size, turned', [((160, 120), 0), ((512, 384), 0), ((480, 360), 0), ((160, 120), 1)])
def test_pictures_agree_and_are_upright(tmp_path, size, turned):
    """At 480 × 360, rounding twice would stretch them. A file may store them rotated."""
    y, x = np.mgrid[:size[1], :size[0]]

    def image(n):
        upright = np.stack([(x // 3 + n) % 256, y // 3, 128 + 100 * np.sin((x + y) / 9 + n)], -1).astype(np.uint8)
        return np.ascontiguousarray(np.rot90(upright, turned))
    path = make(tmp_path / 'clip.mp4', seconds=4, size=image(0).shape[1::-1], image=image)
    if turned:
        write_matrix(path, (0, 1, -1, 0))
    small = prepared(path)
    with open_clip(small) as clip:
        context = clip.video.codec_context
        assert context.width / context.height == pytest.approx(size[0] / size[1], 0.01)
    assert psnr(read_clip(path, Sizes())[1], read_clip(small, Sizes())[1]) > (30 if turned else 35)


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
    assert module.SMALL_BYTES / 2 < len(content) <= module.SMALL_BYTES and small_clip(path) == content


# ---------------------------------------------------------------- a folder

@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp('out') / 'small'


def content(out):
    """{name: bytes} of all files, none of which may be temporary"""
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}
    assert not [name for name in files if name.endswith('.tmp')]
    return files


def test_the_stream_is_the_same(files, out):
    prepare(files, out, workers=0)
    one, other = (vggsound(options(d, tasks=str(d / 'tasks.csv')), 0) for d in (files, out))
    assert one.names == other.names and one.classes == other.classes and other.bad == []
    for part in ('train', 'retrieval', 'test'):
        for a, b in zip(getattr(one, part), getattr(other, part)):
            assert a.labels == b.labels and [Path(n).stem for n in names_of(a)] == [Path(n).stem for n in names_of(b)]
            assert all(name.endswith('.mkv') for name in names_of(b))
    a, b = one.test[1][0, 0], other.test[1][0, 0]
    assert psnr(a['video'], b['video']) > 30 and torch.equal(a['audio'], b['audio'])


def test_ave_is_the_same(tmp_path, out):
    folder = ave_folder(tmp_path, clip=make(tmp_path / 'ten.mp4', seconds=10), train='Bark&b_1&bad&3&5\n',
                        test='Bark&b2&good&9&10\n')
    prepare(folder, out, workers=0)
    (one, classes), (other, classes_2) = (ave(d, options(d), 0) for d in (folder, out))
    assert classes == classes_2 and names_of(other['train']) == ['b_1.mkv']
    a, b = one['test'][0, 0], other['test'][0, 0]
    assert torch.equal(a['target'], b['target']) and psnr(a['video'], b['video']) > 30
    assert (a['audio'] - b['audio']).abs().mean() < 0.02 and (a['audio_start'] - b['audio_start']).abs().max() < 0.002


def test_segments_come_from_the_lists(folder, tmp_path_factory):
    audioset = audioset_folder(tmp_path_factory.mktemp('audioset'), ['a, 30.0, 34.0, "/m/dog"'],
                               ['e, 1.000, 11.000, "/m/dog"'])
    segments = [set(list_clips(data).values()) for data in (folder, audioset)]
    assert (14, 10) in segments[0] and segments[1] == {(30, 4), (1, 10)}


def test_a_second_call_prepares_what_is_missing(folder, out, monkeypatch):
    """Several processes write the same files."""
    done = []
    monkeypatch.setattr(module, 'small_clip', lambda path, segment: done.append(path) or small_clip(path, segment))
    assert '9 of 9 clips are prepared' in prepare(folder, out, workers=0)
    first = content(out)
    assert len(done) == len(set(done)) == 9 and len(first) == 9 + 2
    (out / 'video' / 'sea1_000001.mkv').unlink()
    (out / 'vggsound.csv').unlink()
    (out / 'vggsound.csv').symlink_to(folder / 'vggsound.csv')
    (folder / 'broken.txt').symlink_to('nothing')
    assert '9 of 9 clips are prepared, 0 are left out' in prepare(folder, out, workers=0)
    assert [Path(path).name for path in done[9:]] == ['sea1_000001.mp4'] and content(out) == first
    prepare(folder, out.parent / 'whole', workers=2)
    assert content(out.parent / 'whole') == first


def test_killed_and_resumed_it_ends_the_same(files, out):
    """The first process alone is killed, then all of them, then Ctrl-C. The next call goes on."""
    prepare(files, out.parent / 'whole', workers=0)
    command = [sys.executable, 'data.py', 'prepare', '--data', str(files), '--out', str(out), '--workers', '2']

    def run():
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=os.environ | {'OMP_NUM_THREADS': '1'}, start_new_session=True)

    def finished():
        return len(list(out.glob('video/*.mkv')))

    counts = []
    for how in ('first', 'all', 'Ctrl-C'):
        before, process = finished(), run()
        while process.poll() is None and finished() == before:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):            # it may have ended
            if how == 'first':
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL if how == 'all' else signal.SIGINT)
        _, errors = process.communicate(timeout=100)             # returns when all of its processes have ended
        assert 'Traceback' not in errors and process.returncode in (-9, 0, 130), errors
        assert process.returncode != 130 or errors.endswith('interrupted; the same command goes on\n')
        counts.append(finished())
    assert 0 < counts[0] < len(list((files / 'video').iterdir())) and counts == sorted(counts)
    printed, errors = run().communicate(timeout=100)
    assert ' 0 are left out' in printed and 'Traceback' not in errors
    assert content(out) == content(out.parent / 'whole')


# ---------------------------------------------------------------- errors

def test_clips_that_cannot_be_prepared_are_named(folder, out, capsys):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'no video')
    truncated = folder / 'video' / 'dog4_000000.mp4'
    truncated.write_bytes(truncated.read_bytes()[:len(truncated.read_bytes()) // 2])
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    with pytest.raises(UserError, match=r'1 of 9 clips \(11%\) are missing in .*'):
        prepare(folder, out, workers=0)
    assert not out.exists()
    with pytest.raises(UserError, match=r'3 of 9 clips \(33%\) cannot be prepared') as error:
        prepare(folder, out, workers=0, max_bad=0.2)
    assert 'dog3_000000.mp4: cannot be opened' in str(error.value) and '--max-bad' in str(error.value)
    assert len(list((out / 'video').iterdir())) == 6                          # the others are prepared
    capsys.readouterr()
    assert '6 of 9 clips are prepared, 3 are left out' in prepare(folder, out, 0, max_bad=0.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'left out: sea1_000001.mp4: file missing' and len(lines) == 3


def test_originals_are_never_overwritten(folder, out):
    before, link = content(folder), out.parent / 'link'
    link.symlink_to(folder)
    for where in (folder, link):
        with pytest.raises(UserError, match='two folders'):
            prepare(folder, where, workers=0)
    assert content(folder) == before
    with pytest.raises(UserError, match='has no list with clips: vggsound.csv'):
        main(f'prepare --data {out.parent} --out {out}'.split())


def test_a_clip_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    source, target = make(tmp_path / 'a.mp4', seconds=1), tmp_path / 'a.mkv'

    def full(*names):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module.os, 'replace', full)
    with pytest.raises(OSError):
        module.prepare_clip(source, None, target)
    assert not target.exists()
