"""streams/shapes.py and streams/shapes_files.py: the built-in stream, the clips it keeps, and the files it writes."""
import pytest
import torch

from config import Sizes, UserError
from data import read_clip
from folders import BENCHMARK, SMALL, options
from streams import scenes, shapes, shapes_files
from streams.catalogue import open_stream
from streams.vggsound import vggsound


@pytest.fixture(scope='module')
def stream():
    return shapes.stream(BENCHMARK, seed=3)


def test_classes_labels_and_shapes(stream):
    kinds = scenes.kinds()
    assert len({k.name for k in kinds}) == len({k.voice for k in kinds}) == 36
    used = [kind for dataset in [stream.pretrain, *stream.train] for kind in dataset.classes]
    assert len(used) == len(set(used)) == 36                       # tasks are disjoint
    assert [d.classes for d in stream.train] == [d.classes for d in stream.test] and stream.evaluate == stream.test
    for dataset, classes in zip(stream.train, stream.classes):
        assert {name for names in dataset.labels for name in names} == set(classes)
        assert all(dataset.labels[i] == (dataset.scene(i).tracks[0].kind.name,) for i in range(4))
    item = stream.train[0][0, 0]
    assert item['audio'].shape == (256, 64) and item['audio'].dtype == torch.float32
    assert item['video'].shape == (2, 3, 96, 96) and item['video'].dtype == torch.uint8
    a, v = scenes.truth(stream.train[0].scene(0), BENCHMARK)
    assert a.shape == (BENCHMARK.num_patches_a,) and v.shape == (BENCHMARK.num_patches_v,)


def clips_of(stream, number=4):
    return [dataset[index, 0] for dataset in (stream.train[1], stream.test[2]) for index in range(number)]


def alike(first, second):
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second) for name in ('audio', 'video'))


def test_a_seed_fixes_the_clips_and_test_clips_differ():
    first = clips_of(shapes.stream(SMALL, 3))
    assert alike(first, clips_of(shapes.stream(SMALL, 3))) and not alike(first, clips_of(shapes.stream(SMALL, 4)))
    assert not torch.equal(first[0]['video'], shapes.stream(SMALL, 3).test[1][0, 0]['video'])


@pytest.mark.parametrize('threads', [1, 4])
def test_the_number_of_threads_changes_no_bit(threads, stream):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        clips = shapes.stream(BENCHMARK, seed=3).train[1]
        assert alike([clips[index, 0] for index in range(6)], [stream.train[1][index, 0] for index in range(6)])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------- clips that are kept

@pytest.fixture
def drawn(monkeypatch):
    """List that grows with every clip that is drawn"""
    render, drawn = shapes.render, []
    monkeypatch.setattr(shapes, 'render', lambda scene, sizes: drawn.append(scene.seed) or render(scene, sizes))
    return drawn


def test_clips_are_drawn_once_for_all_runs(tmp_path, drawn):
    expected = clips_of(shapes.stream(SMALL, 3))
    both = [shapes.stream(SMALL, 3, folder=tmp_path) for _ in range(2)]          # at the same time
    for first, second in ((0, 1), (1, 0)):
        assert alike(clips_of(both[first], 2), clips_of(both[second], 2))
    assert len(drawn) == 8 + 4 and alike(clips_of(both[0]), expected) and len(drawn) == 8 + 8
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), expected) and len(drawn) == 8 + 8
    assert len(list(tmp_path.iterdir())) == 2                                    # a file for each of the two data sets
    workers = torch.utils.data.DataLoader(shapes.stream(SMALL, 3, folder=tmp_path).test[2], sampler=[(0, 0), (3, 0)],
                                          num_workers=1, multiprocessing_context='spawn')
    assert alike([{name: batch[name][0] for name in ('audio', 'video')} for batch in workers],
                 [expected[4], expected[7]])


def test_other_options_or_code_draw_anew(tmp_path, drawn, monkeypatch):
    expected = clips_of(shapes.stream(SMALL, 3, folder=tmp_path))
    larger = Sizes(**vars(SMALL) | dict(image_size=48))
    for other in (dict(seed=4), dict(silent=(1, 2)), dict(area=2.0), dict(sizes=larger)):
        drawn.clear()
        clips_of(shapes.stream(**dict(sizes=SMALL, seed=3, folder=tmp_path) | other))
        assert len(drawn) == 8
    files = len(list(tmp_path.iterdir()))
    for file in tmp_path.iterdir():
        with file.open('r+b') as cut:
            cut.truncate(1000)
    drawn.clear()
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), expected) and len(drawn) == 8
    (tmp_path / 'scenes.py').write_text('# draws otherwise\n')
    monkeypatch.setattr(shapes.scenes, '__file__', str(tmp_path / 'scenes.py'))
    clips_of(shapes.stream(SMALL, 3, folder=tmp_path))
    assert len(drawn) == 16 and len(list(tmp_path.glob('*.clips'))) == files     # the old files are gone


def test_clips_that_cannot_be_kept_are_drawn_for_this_run(tmp_path, monkeypatch, capsys):
    def no_space(*arguments):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', no_space)
    assert alike(clips_of(shapes.stream(SMALL, 3, folder=tmp_path)), clips_of(shapes.stream(SMALL, 3)))
    assert 'cannot be kept (No space left on device)' in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_data_seed_is_the_seed_of_the_clips():
    plain, same, other = (clips_of(open_stream(options('', dataset='shapes', cache='', **seeds), 0)) for seeds in (
        dict(seed=3), dict(seed=7, data_seed=3), dict(seed=7)))
    assert alike(plain, same) and not alike(plain, other)


# ----------------------------------------------------------------------------- clips as files

def test_the_command_line_writes_files(tmp_path, capsys):
    out = tmp_path / 'new'
    shapes.main(f'--out {out} --train 3 --test 3 --pretrain 1 --size 32'.split())
    command = f'python train.py --dataset vggsound --data {out} --tasks {out}/tasks.csv --size small'
    assert capsys.readouterr().out == command + '\n'
    stream = vggsound(options(out, tasks=str(out / 'tasks.csv')), 0)
    assert stream.names == list(shapes.NAMES) and stream.bad == [] and len(stream.pretrain) == 1
    assert [len(d) for d in (*stream.train, *stream.test)] == [3] * 12
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--out .*file/below cannot be written'):
        shapes.main(['--out', str(tmp_path / 'file' / 'below')])


def test_a_written_file_contains_its_clip(tmp_path, stream):
    scene = stream.test[2].scene(1)
    shapes_files.write_clip(tmp_path / 'clip.mp4', scene)
    audio, video = read_clip(tmp_path / 'clip.mp4', BENCHMARK)
    drawn_audio, drawn_video = scenes.render(scene, BENCHMARK)
    assert (video.float() - drawn_video.float()).abs().mean() < 12          # H.264 halves the colours' resolution
    both = torch.stack([(s[:250] - s[:250].mean()).flatten() for s in (audio, drawn_audio)])
    assert torch.corrcoef(both)[0, 1] > 0.9
