"""Folders laid out as the data sets are, for the tests of their streams."""
import csv
import shutil
from pathlib import Path

import pytest

from clips import SMALL, make, vggsound_folder
from config import SIZES, Config, Sizes

BENCHMARK = Sizes(**SIZES['small'])                    # of the built-in data


def options(folder, **given):
    """Options of a run on the clips of a folder"""
    return Config(**vars(SMALL) | dict(method='finetune', data=str(folder), cache=f'{folder}.cache') | given)


def names_of(dataset):
    return [Path(clip.path).name for clip in dataset.clips]


ROWS = ['-dog1,3,dog barking,train', 'dog2,14,dog barking,train', 'dog3,0,dog barking,train',
        'dog4,0,dog barking,test', 'harp1,7,playing harp,train', 'harp2,7,playing harp,test',
        'sea1,1,"sea, waves",train', 'sea2,1,"sea, waves",test', 'cat1,1,cat purring,train']


@pytest.fixture
def folder(tmp_path):
    """Nine clips of VGGSound, of four classes, in three formats. `sea, waves` has no task; cats have no test clips."""
    vggsound_folder(tmp_path, ROWS)
    (tmp_path / 'tasks.csv').write_text('class,task\nplaying harp,music\ndog barking,pets\ncat purring,cats\n')
    whole = Path(make(tmp_path / 'whole.mp4', seconds=2)).read_bytes()
    for name, start, *_ in csv.reader(ROWS):
        stem = tmp_path / 'video' / f'{name}_{int(start):06d}'
        if name == 'dog2':
            make(f'{stem}.webm', seconds=2, vcodec='libvpx', acodec='libopus', rate=48000)
        else:
            Path(f'{stem}{".mkv" if name == "harp1" else ".mp4"}').write_bytes(whole)
    return tmp_path


MIDS = 'index,mid,display_name\n0,/m/dog,Dog\n1,/m/waves,"Waves, surf"\n2,/t/cat,Cat\n'
COMMENTS = ('# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2\n'
            '# YTID, start_seconds, end_seconds, labels\n')


def audioset_folder(folder, train, test=(), mids=MIDS, videos=()):
    """AudioSet's lists with these rows, and empty files as videos → the folder"""
    (folder / 'video').mkdir(parents=True, exist_ok=True)
    (folder / 'class_labels_indices.csv').write_text(mids)
    for name, rows in (('balanced_train', train), ('eval', test)):
        (folder / f'{name}_segments.csv').write_text(COMMENTS + ''.join(row + '\n' for row in rows))
    for name in videos:
        (folder / 'video' / name).touch()
    return folder


ANNOTATIONS = ('Category&VideoID&Quality&StartTime&EndTime\n'
               'Violin, fiddle&-v1&good&0&10\nBark&b_1&bad&3&5\nBark&b2&good&9&10\n')


def ave_folder(folder, annotations=ANNOTATIONS, clip=None, **lists):
    """AVE's lists with these rows; clip: the file of each of their clips, None: no files → the folder"""
    (folder / 'AVE').mkdir()
    (folder / 'Annotations.txt').write_text(annotations)
    for name, rows in lists.items():
        (folder / f'{name}Set.txt').write_text(rows)
        for row in rows.splitlines() if clip else ():
            shutil.copy(clip, folder / 'AVE' / f'{row.split("&")[1]}.mp4')
    return folder
