"""streams/folders.py: videos in a folder per class as a stream of tasks, and a whole run on them."""
import json
import os
import shutil
from pathlib import Path

import pytest

from clips import make
from config import UserError
from folders import names_of, options
from running import TINY
from streams.folders import choose_test, folders, read_folders


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    return make(tmp_path_factory.mktemp('one') / 'one.mp4', seconds=2)


def place(folder, video, *names):
    """Copies of a video at these paths below the folder"""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / name)


def test_train_and_test_folders(tmp_path, video):
    place(tmp_path, video, 'train/dog/b.mp4', 'train/dog/a.MOV', 'test/dog/c.mkv', 'train/cat/a.mp4', 'test/cat/d.mp4')
    for extra in ('train/dog/notes.txt', 'train/dog/.hidden.mp4', 'train/.git/x.mp4'):
        place(tmp_path, video, extra)
    stream = folders(options(tmp_path, max_roll=3), 0)
    assert stream.names == ['cat', 'dog'] and stream.classes == [['cat'], ['dog']] and stream.notes == []
    assert [names_of(d) for d in stream.train] == [['a.mp4'], ['a.MOV', 'b.mp4']]
    assert [names_of(d) for d in stream.retrieval] == [['d.mp4'], ['c.mkv']] and len(stream.pretrain) == 0
    assert stream.train[0].augment and stream.train[0].max_roll == 3 and not stream.retrieval[0].augment


def test_one_level_is_split_by_a_fixed_hash(tmp_path, video):
    place(tmp_path, video, *(f'dog/{number}.mp4' for number in range(12)), 'cat/0.mp4', 'cat/1.mp4', 'one/0.mp4')
    stream = folders(options(tmp_path), 0)
    assert stream.names == ['cat', 'dog'] and stream.notes == ['task one is left out: it has no training clips']
    assert names_of(stream.retrieval[1]) == ['7.mp4', '8.mp4'] and len(stream.train[1]) == 10     # the same everywhere
    assert [len(d) for d in (stream.retrieval[0], stream.train[0])] == [1, 1]
    composed, decomposed = (choose_test([Path(f'{letter}{number}.mp4') for number in range(10)])
                            for letter in ('\u00e9', 'e\u0301'))      # é on Linux and on macOS
    assert [sorted(path.name[-5] for path in files) for files in (composed, decomposed)] == [['3', '6']] * 2
    assert len(choose_test([Path(os.fsdecode(b'caf\xe9.mp4'))])) == 1                        # not UTF-8


def test_tasks_group_classes(tmp_path, video):
    """Training clips of classes in no task are the initial pre-training set; their test clips are unused."""
    place(tmp_path, video, *(f'{name}/{number}.mp4' for name in ('dog', 'cat', 'sea') for number in range(5)))
    (tmp_path / 'tasks.csv').write_text('class,task\ndog,pets\ncat,pets\n')
    stream = folders(options(tmp_path, tasks=str(tmp_path / 'tasks.csv')), 0)
    assert stream.names == ['pets'] and stream.classes == [['dog', 'cat']]
    assert [len(stream.train[0]), len(stream.retrieval[0]), len(stream.pretrain)] == [8, 2, 4]


@pytest.mark.parametrize('files', [[], ['a.mp4'], ['train/a.mp4', 'test/b.mp4'], ['dog/notes.txt']])
def test_no_videos(tmp_path, files, video):
    place(tmp_path, video, *files)
    with pytest.raises(UserError, match='no videos in class folders'):
        read_folders(tmp_path)


def test_a_run_on_own_videos(files, tmp_path, here):
    """The opening summary says why there is no initial pre-training."""
    for path in sorted((files / 'video').glob('*.mp4')):
        name = path.name.split('-')[0]                     # of the task
        if name in ('ash', 'oak'):
            place(tmp_path, path, f'videos/{name}/{path.name}')
    words = ['--dataset', 'folders', '--data', 'videos', *TINY, '--epochs', '2', '--workers', '0', '--out', 'run']
    code, out, err = here(words, tmp_path)
    assert code == 0, err
    assert 'pre-training  none: every class belongs to a task' in out and 'audio to video' in out
    assert 'ash: 10 training clips' in out and 'output        run' in out
    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['tasks'] == ['ash', 'oak'] and results['candidates'] == 4
