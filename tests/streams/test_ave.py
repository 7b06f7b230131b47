"""streams/ave.py: its lists, right and wrong, where no clip is opened; its clips with a label a second."""
import pytest
import torch

from folders import SMALL
from patches import SIZES, Sizes, UserError
from streams import shapes, shapes_files
from streams.ave import AVE, Event, ave, read_ave, read_windows


# ---------------------------------------------------------------- the lists

ANNOTATIONS = ('Category&VideoID&Quality&StartTime&EndTime\n'
               'Violin, fiddle&-v1&good&0&10\nBark&b_1&bad&3&5\nBark&b2&good&9&10\n')


def ave_folder(folder, annotations=ANNOTATIONS, **lists):
    (folder / 'AVE').mkdir()
    (folder / 'Annotations.txt').write_text(annotations)
    for name, rows in lists.items():
        (folder / f'{name}Set.txt').write_text(rows)
    return folder


def test_ave_rows(tmp_path):
    folder = ave_folder(tmp_path, train='Bark&b_1&bad&3&5\nViolin, fiddle&-v1&good&0&10\n', test='Bark&b2&good&9&10\n')
    video = folder / 'AVE'
    assert read_ave(folder) == ({'train': [Event(str(video / 'b_1.mp4'), 'Bark', 3, 5),
                                           Event(str(video / '-v1.mp4'), 'Violin, fiddle', 0, 10)],
                                 'test': [Event(str(video / 'b2.mp4'), 'Bark', 9, 10)]}, ['Bark', 'Violin, fiddle'])


@pytest.mark.parametrize('row, reason', [
    ('Bark&b2&good&9', '4 columns'),
    ('Bark&b2&good&nine&10', "from 'nine' to '10'"),
    ('Bark&b2&good&-1&10', "from '-1'"),
    ('Bark&b2&good&9&11', "to '11'"),
    ('Bark&b2&good&9&9', "from '9' to '9'"),
    ('Barks&b2&good&9&10', "did you mean 'Bark'?"),
    ('&b2&good&9&10', 'category is empty'),
    ('Bark&&good&9&10', 'id is empty'),
    ('Bark&../b2&good&9&10', 'out of the folder'),
])
def test_ave_errors_name_the_line(tmp_path, row, reason):
    folder = ave_folder(tmp_path, train=f'Bark&b2&good&9&10\n{row}\n')
    with pytest.raises(UserError) as error:
        read_ave(folder)
    assert str(error.value).startswith(f'{folder / "trainSet.txt"}:2: ') and reason in str(error.value)


@pytest.mark.parametrize('annotations, line, reason', [('', 1, 'header'), ('Bark&b2&good&9&10\n', 1, 'header'),
                                                       (ANNOTATIONS + 'Bark&b3&good&9\n', 5, '4 columns')])
def test_annotation_errors_name_the_line(tmp_path, annotations, line, reason):
    folder = ave_folder(tmp_path, annotations, train='Bark&b2&good&9&10\n')
    with pytest.raises(UserError) as error:
        read_ave(folder)
    assert str(error.value).startswith(f'{folder / "Annotations.txt"}:{line}: ') and reason in str(error.value)


@pytest.mark.parametrize('lacks', ['Annotations.txt', 'AVE', 'trainSet.txt'])
def test_missing_ave_says_what_to_download(tmp_path, lacks):
    folder = ave_folder(tmp_path, train='')
    (folder / lacks).rmdir() if lacks == 'AVE' else (folder / lacks).unlink()
    with pytest.raises(UserError) as error:
        read_ave(folder)
    for word in (f'{folder / lacks} is missing', 'AVE-ECCV18', 'AVE/<id>.mp4'):
        assert word in str(error.value)


# ---------------------------------------------------------------- the clips

@pytest.fixture(scope='module')
def ave_written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ave')
    stream = shapes.stream(Sizes(**SIZES['small']), seed=1, clips_per_task=2, test_clips=1, pretrain_clips=1)
    command = shapes_files.write('ave', folder, stream, size=32, seed=1)
    assert command.startswith('python eval.py') and str(folder) in command
    return folder


def test_ave_items(ave_written):
    sets, classes = ave(ave_written, SMALL)
    assert {split: len(d) for split, d in sets.items()} == {'train': 12, 'val': 6, 'test': 6}
    annotated = (ave_written / 'Annotations.txt').read_text().splitlines()[1:]
    assert classes == sorted({line.split('&')[0] for line in annotated})
    assert [d.augment for d in sets.values()] == [True, False, False] and all(d.bad == [] for d in sets.values())
    lines = (ave_written / 'trainSet.txt').read_text().splitlines()
    for index in (0, 5, 11):
        label, name, _, start, end = lines[index].split('&')
        item = sets['train'][index, 4]
        own = 1 + classes.index(label)
        assert item['target'].tolist() == [own if int(start) <= s < int(end) else 0 for s in range(10)]
        assert item['target'].dtype == torch.int64 and item['clip'] == index and item['bad'] == ''
        read = read_windows(ave_written / 'AVE' / f'{name}.mp4', SMALL, torch.Generator().manual_seed(4))
        assert all(torch.equal(item[key], value) for key, value in zip(('audio', 'video', 'audio_start'), read))
        assert item['audio'].shape == (5, 64, 32) and item['video'].shape == (5, 2, 3, 32, 32)
        assert item['audio_start'].shape == (5,)
        assert sets['train'].labels[index] == (label,)
    assert torch.equal(sets['test'][0, 1]['video'], sets['test'][0, 2]['video'])


def test_ave_stand_in_brings_its_own_labels(ave_written, tmp_path):
    """And a list without a clip that is there: what cannot be used is left out, by name; too many are refused."""
    video = ave_written / 'AVE'
    events = [Event(str(tmp_path / 'gone.mp4'), 'b', 0, 10), Event(str(video / 'ash-train-00000.mp4'), 'a', 2, 4)]
    item = AVE(events, ['a', 'b'], SMALL, augment=False)[0, 0]
    assert item['target'].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0] and item['clip'] == 1
    assert item['bad'] == 'gone.mp4: file missing'
    (tmp_path / 'AVE').symlink_to(video)
    (tmp_path / 'Annotations.txt').write_text((ave_written / 'Annotations.txt').read_text())
    (tmp_path / 'testSet.txt').write_text((ave_written / 'testSet.txt').read_text() + 'red disc&gone&good&0&10\n')
    sets, _ = ave(tmp_path, SMALL, max_bad=0.2)
    assert list(sets) == ['test'] and len(sets['test']) == 6 and sets['test'].bad == ['gone.mp4: file missing']
    with pytest.raises(UserError, match='1 of 7 clips'):
        ave(tmp_path, SMALL)
