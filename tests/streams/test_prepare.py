"""streams/prepare.py: a prepared data set is the same data set; kills, changes, what goes wrong."""
import contextlib
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clips import make, times_of
from conftest import ROOT
from data import opened, read_clip
from folders import SMALL, folder, names_of, written
from patches import SIZES, Sizes, UserError
from streams import prepare as module, shapes, shapes_files
from streams.audioset import audioset
from streams.ave import ave
from streams.common import Clip, VideoClips
from streams.prepare import advice, listed, main, prepare, small_clip
from streams.vggsound import vggsound
from streams.workers import in_processes
from test_small import prepared, psnr


# ---------------------------------------------------------------- folders

@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp('out') / 'small'


def content(out):
    """{name: bytes, when it was changed} of all files; and of temporary ones there is none."""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob('*')) if path.is_file()}
    assert not [name for name in files if name.endswith('.tmp')]
    return {name: (path.read_bytes(), path.stat().st_mtime_ns if name.endswith('.mkv') else 0)
            for name, path in files.items()}


@pytest.fixture(scope='module')
def ave_written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ave')
    stream = shapes.stream(Sizes(**SIZES['small']), seed=1, clips_per_task=2, test_clips=1, pretrain_clips=1)
    shapes_files.write('ave', folder, stream, size=32, seed=1)
    return folder


@pytest.mark.parametrize('layout', ['vggsound', 'audioset'])
def test_a_prepared_stream_is_the_same_stream(written, out, layout):
    data = written[layout]
    said = prepare(data, out, workers=0)
    clips = len(list((data / 'video').iterdir()))
    assert said.startswith(f'{out}: {clips} clips prepared, 0 were there already, 0 left out')
    for path in data.iterdir():
        assert path.is_dir() or (out / path.name).read_bytes() == path.read_bytes()
    assert {p.stem for p in (data / 'video').iterdir()} == {p.stem for p in (out / 'video').iterdir()}
    open_one = dict(vggsound=vggsound, audioset=audioset)[layout]
    one, other = (open_one(f, SMALL, f / 'tasks.csv', retrieval_list=f / 'retrieval.json') for f in (data, out))
    assert one.names == other.names and one.notes == other.notes and other.bad == []
    for a, b in zip(one.train + one.test, other.train + other.test):
        assert a.labels == b.labels and [Path(n).stem for n in names_of(a)] == [Path(n).stem for n in names_of(b)]
    a, b = one.test[2][1, 0], other.test[2][1, 0]
    assert psnr(a['video'], b['video']) > 30 and (a['audio'] - b['audio']).abs().mean() < 0.02


def test_ave_is_prepared(ave_written, out):
    prepare(ave_written, out, workers=0)
    (one, classes), (other, classes_2) = ave(ave_written, SMALL), ave(out, SMALL)
    assert classes == classes_2 and all(Path(event.path).suffix == '.mkv' for event in other['train'].events)
    a, b = one['test'][3, 0], other['test'][3, 0]
    assert torch.equal(a['target'], b['target']) and psnr(a['video'], b['video']) > 30
    assert (a['audio'] - b['audio']).abs().mean() < 0.02 and (a['audio_start'] - b['audio_start']).abs().max() < 0.002


def test_of_a_whole_video_its_segment_is_prepared(folder, written, ave_written, out):
    video = folder / 'video' / 'harp2_000007.mp4'
    make(video, seconds=25, fps=5)
    prepare(folder, out, workers=0)
    with opened(out / 'video' / 'harp2_000007.mkv') as clip:
        assert 9.8 < clip.times[-1] - clip.times[0] < 10
    assert times_of(read_clip(out / 'video' / video.with_suffix('.mkv').name, SMALL)[1]) == times_of(
        read_clip(video, SMALL, segment=(7, 10))[1])
    segments = [set(listed(data).values()) for data in (folder, written['audioset'], ave_written)]
    assert (14, 10) in segments[0] and segments[1] == {(30, 4)} and segments[2] == {(0, 10)}


def test_a_second_call_does_what_is_missing_or_changed(folder, out, monkeypatch):
    done = []
    monkeypatch.setattr(module, 'small_clip', lambda path, segment: done.append(Path(path).name)
                        or small_clip(path, segment))
    prepare(folder, out, workers=0)
    assert len(done) == 9 and len(set(done)) == 9
    first = content(out)
    assert '0 clips prepared, 9 were there already, 0 left out' in prepare(folder, out, workers=0)
    assert len(done) == 9 and content(out) == first
    (out / 'video' / 'sea1_000001.mkv').unlink()
    (out / 'vggsound.csv').unlink()
    make(folder / 'video' / 'cat1_000001.mp4', seconds=3)
    os.utime(folder / 'video' / 'cat1_000001.mp4', (1e9, 1e9))                   # older: it is another one all the same
    (folder / 'video' / 'dog1_000003.mp4').unlink(missing_ok=True)
    (folder / 'video' / '-dog1_000003.mp4').unlink()                             # what is prepared stays
    assert '2 clips prepared, 7 were there already, 0 left out' in prepare(folder, out, workers=0)
    assert sorted(done[9:]) == ['cat1_000001.mp4', 'sea1_000001.mp4']
    again = content(out)
    assert {name for name in first if first[name] != again[name]} == {'video/cat1_000001.mkv'}
    assert prepare(folder, out, workers=0).count('0 clips prepared') == 1


def test_shards_make_the_whole(folder, out):
    """And whether one process or several prepare a clip, its file is the same."""
    for i in (3, 1, 2):
        assert f'3 clips of shard {i} of 3 prepared' in prepare(folder, out, workers=0, shard=(i, 3))
    prepare(folder, out.parent / 'whole', workers=2)
    assert content(out) == content(out.parent / 'whole') and len(content(out)) == 9 + 2


def run(data, out, *more):
    command = [sys.executable, 'data.py', 'prepare', '--data', str(data), '--out', str(out), '--workers', '2', *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {'OMP_NUM_THREADS': '1'}, start_new_session=True)


def test_killed_and_resumed_it_ends_the_same(written, out):
    data = written['vggsound']
    prepare(data, out.parent / 'whole', workers=0)
    generator, counts = random.Random(5), []
    prepared_now = lambda: len(list(out.glob('video/*.mkv')))
    for what in ('first', 'all', 'Ctrl-C'):                      # the first process alone, all of them, politely
        before, process = prepared_now(), run(data, out)
        while process.poll() is None and prepared_now() == before:
            time.sleep(0.01)
        time.sleep(generator.random() / 20)
        with contextlib.suppress(ProcessLookupError):            # it was done already
            if what == 'first':
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL if what == 'all' else signal.SIGINT)
        _, errors = process.communicate(timeout=100)             # ends only when no process holds its pipes any more
        assert 'Traceback' not in errors and process.returncode in (-9, 0, 130), errors
        assert process.returncode != 130 or errors.endswith('interrupted; the same command goes on\n')
        counts.append(prepared_now())
        (out / 'video' / f'left.mkv.1-of-1.{process.pid}.tmp').write_bytes(b'half')
    assert 0 < counts[0] < len(list((data / 'video').iterdir())) and counts == sorted(counts)
    process = run(data, out)
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 0 and ' 0 left out' in said and 'Traceback' not in errors
    assert content(out) == content(out.parent / 'whole')


def test_only_ones_own_leftovers_go(folder, out):
    video = out / 'video'
    video.mkdir(parents=True)
    names = ['a.mkv.1-of-2.7.tmp', 'a.mkv.2-of-2.7.tmp', 'mine.tmp']
    for name in names:
        (video / name).touch()
    prepare(folder, out, workers=0, shard=(1, 2))
    assert [name for name in names if (video / name).exists()] == names[1:]


# ---------------------------------------------------------------- what goes wrong

def test_what_cannot_be_prepared_is_named(folder, out, capsys):
    (folder / 'video' / 'dog3_000000.mp4').write_bytes(b'no video')
    whole = (folder / 'video' / 'dog4_000000.mp4').read_bytes()
    (folder / 'video' / 'dog4_000000.mp4').write_bytes(whole[:len(whole) // 2])
    (folder / 'video' / 'sea1_000001.mp4').unlink()
    with pytest.raises(UserError) as error:
        prepare(folder, out, workers=0, max_bad=0.2)
    for word in ('3 of 9', '33%', 'dog3_000000.mp4: cannot be opened', '--max-bad', str(out)):
        assert word in str(error.value)
    assert len(list((out / 'video').iterdir())) == 6                          # the others all the same
    capsys.readouterr()
    assert '0 clips prepared, 6 were there already, 3 left out' in prepare(folder, out, 0, max_bad=0.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'left out: sea1_000001.mp4: file missing' and len(lines) == 3
    assert all(line.startswith('left out: dog') for line in lines[1:])


def test_an_interrupted_copy_is_refused_before_the_work(folder, out):
    for name in ('sea1_000001', 'sea2_000001', 'cat1_000001'):
        (folder / 'video' / f'{name}.mp4').unlink()
    with pytest.raises(UserError) as error:
        prepare(folder, out, workers=0)
    for word in ('3 of 9 clips (33%)', 'are not in', 'copied whole', 'sea1_000001.mp4: file missing', '--max-bad'):
        assert word in str(error.value)
    assert not list((out / 'video').iterdir())


def test_folders_that_are_not_two_are_refused(folder, out):
    before, link, linked = content(folder), out.parent / 'link', out.parent / 'linked'
    link.symlink_to(folder)
    linked.mkdir()
    (linked / 'video').symlink_to(folder / 'video')
    for where in (folder, folder / 'video', folder / 'small', folder.parent, link, linked):
        with pytest.raises(UserError, match='two folders'):
            prepare(folder, where, workers=0)
    assert content(folder) == before


def test_nothing_but_prepared_clips_is_written_over(folder, out):
    (out / 'video').mkdir(parents=True)
    original = make(out / 'video' / 'harp2_000007.mkv', seconds=2)
    os.utime(original, (1e9, 1e9))
    before = Path(original).read_bytes()
    with pytest.raises(UserError, match='no prepared clip'):
        prepare(folder, out, workers=0)
    assert Path(original).read_bytes() == before


@pytest.mark.parametrize('shard', ['0/2', '3/2', '1', 'a/b', '1/0', '-1/2'])
def test_a_shard_that_does_not_exist_is_refused(folder, shard):
    with pytest.raises(UserError, match='--shard .* there is no such part'):
        main(f'prepare --data {folder} --out {folder}-small --shard={shard}'.split())


def test_what_is_no_data_set_is_refused(tmp_path):
    for data in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(UserError, match='no data set known here'):
            prepare(data, tmp_path / 'small', workers=0)
    assert not (tmp_path / 'small').exists()


def test_a_full_disk_loses_nothing(folder, out, monkeypatch):
    replace, count = os.replace, []

    def full(temporary, path):
        count.append(path)
        if len(count) > 5:
            raise OSError(errno.ENOSPC, 'No space left on device', str(temporary))
        replace(temporary, path)
    monkeypatch.setattr(module.os, 'replace', full)
    with pytest.raises(UserError, match='the disk is full. Make room.* the same command goes on'):
        prepare(folder, out, workers=0)
    monkeypatch.undo()
    assert len(content(out)) == 5
    prepare(folder, out, workers=0)
    prepare(folder, out.parent / 'whole', workers=0)
    assert content(out) == content(out.parent / 'whole')


def fall(job):
    """One clip fells its process, as a decoder with a fault would."""
    if job == 13:
        os._exit(1)
    return job


def test_a_clip_that_fells_its_process_is_known_and_the_others_done():
    assert list(in_processes(fall, list(range(20)), 2, 'felled')) == [*range(13), 'felled', *range(14, 20)]
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------- what it would bring

def test_advice(tmp_path, monkeypatch):
    """Of many clips that are not prepared, a sentence; it takes no more than a moment, and leaves nothing behind."""
    path = make(tmp_path / 'a.mp4', seconds=2)
    of = lambda path, count: [VideoClips([Clip(path, ('x',), n)], SMALL, augment=True) for n in range(count)]
    monkeypatch.setattr(module, '_seconds', lambda path, sizes, segment: 0.01 if str(path).endswith('.mkv') else 0.21)
    monkeypatch.setattr(module, 'ENOUGH', 7)
    assert advice(of(path, 7), SMALL) == [
        'a clip takes 0.21 s to read here, 0.01 s once prepared: `python data.py prepare --data '
        f'{tmp_path.parent} --out SMALL` makes loading 21 times as fast']
    assert advice(of(path, 6), SMALL) == advice(of(prepared(path), 7), SMALL) == []
    assert advice([torch.utils.data.TensorDataset(torch.zeros(9))], SMALL) == []       # as shapes: without files
    (tmp_path / 'a.mp4').write_bytes(b'broken since')
    assert advice(of(path, 7), SMALL) == []
    monkeypatch.undo()
    assert module._seconds(prepared(make(tmp_path / 'b.mp4', seconds=2)), SMALL, None) > 0
