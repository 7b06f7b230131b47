"""streams/vggsound.py: its clips as a stream of tasks, and real ones. test_catalogue.py adds AudioSet-20k."""
import pytest

from config import UserError
from folders import REAL, folder, names_of, options
from streams.vggsound import vggsound


def test_stream(folder):
    tasks = dict(tasks=str(folder / 'tasks.csv'), clips_per_class=2)
    stream = vggsound(options(folder, **tasks), 0)
    assert stream.names == ['music', 'pets'] and stream.bad == []
    assert len(stream.notes) == 1 and 'cats' in stream.notes[0] and 'test' in stream.notes[0]
    assert [names_of(d) for d in stream.train] == [['harp1_000007.mkv'], ['-dog1_000003.mp4', 'dog2_000014.webm']]
    assert [names_of(d) for d in stream.test] == [['harp2_000007.mp4'], ['dog4_000000.mp4']]
    assert stream.classes == [['playing harp'], ['dog barking']]
    assert [d.labels for d in stream.train] == [[('playing harp',)], [('dog barking',)] * 2]
    assert [names_of(d) for d in stream.evaluate] == [names_of(d) for d in stream.test]
    assert names_of(stream.pretrain) == ['sea1_000001.mp4']       # test clips of classes of no task are unused
    assert stream.train[0].augment and stream.pretrain.augment
    assert not stream.test[0].augment and not stream.evaluate[0].augment
    assert stream.train[1][1, 0]['video'].shape == (2, 3, 32, 32)
    default = vggsound(options(folder), 0)                         # the paper's tasks have no class 'sea, waves'
    assert 'music' in default.names and len(default.notes) >= 5
    # clips that YouTube has lost do not count
    (folder / 'video' / '-dog1_000003.mp4').unlink()
    stream = vggsound(options(folder, max_bad=0.2, **tasks), 0)
    assert names_of(stream.train[1]) == ['dog2_000014.webm', 'dog3_000000.mp4']
    # cats have no test clips
    (folder / 'tasks.csv').write_text('class,task\ncat purring,cats\n')
    with pytest.raises(UserError, match='no task has both'):
        vggsound(options(folder, max_bad=0.2, **tasks), 0)


@pytest.mark.skipif(not REAL.exists(), reason=f'no real clips at {REAL}')
def test_real_clips(tmp_path):
    stream = vggsound(options(REAL, tasks=str(REAL / 'tasks.csv'), cache=str(tmp_path)), 0)
    assert stream.names == ['music', 'people', 'animals', 'others'] and stream.bad == [] and stream.notes == []
    datasets = [stream.pretrain, *stream.train, *stream.test]
    assert sum(map(len, datasets)) == 22
    for dataset in datasets:
        for index in range(len(dataset)):
            item = dataset[index, index]
            assert item['bad'] == '' and item['audio'].shape == (64, 32) and item['video'].shape == (2, 3, 32, 32)
            assert item['audio'].isfinite().all() and item['video'].float().std() > 5
