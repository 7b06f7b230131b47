"""streams/audioset.py: its clips as a stream of tasks. No clip is opened."""
from folders import audioset_folder, names_of, options
from streams import common
from streams.audioset import audioset


def test_stream(tmp_path, monkeypatch):
    """Clips with labels of two tasks are left out. The others keep the labels of their task."""
    monkeypatch.setattr(common, 'check_clip', lambda path, segment: (None, True))
    folder = audioset_folder(
        tmp_path, ['a, 0, 9, "/m/dog"', 'b, 0, 9, "/m/waves,/m/dog"', 'c, 0, 9, "/m/waves"', 'd, 0, 9, "/t/cat"'],
        ['e, 0, 9, "/m/dog,/m/wolf,/t/cat"', 'f, 0, 9, "/m/waves"'],
        mids='index,mid,display_name\n0,/m/dog,Dog\n1,/m/waves,"Waves, surf"\n2,/t/cat,Cat\n3,/m/wolf,Wolf\n',
        videos=[f'{name}_000000.mp4' for name in 'abcdef'])
    (folder / 'tasks.csv').write_text('class,task\nDog,pets\n"Waves, surf",sea\nWolf,pets\n')
    stream = audioset(options(folder, tasks=str(folder / 'tasks.csv')), 0)
    assert stream.names == ['pets', 'sea'] and stream.classes == [['Dog', 'Wolf'], ['Waves, surf']]
    assert stream.notes == ['1 clips with labels of several tasks are left out'] and len(stream.pretrain) == 0
    assert [d.labels for d in stream.train] == [[('Dog',)], [('Waves, surf',)]]
    assert [d.labels for d in stream.evaluate] == [[('Dog', 'Wolf')], [('Waves, surf',)]]
    assert [names_of(d) for d in stream.test] == [['e_000000.mp4'], ['f_000000.mp4']]
    assert stream.train[0].augment and not stream.test[0].augment and not stream.evaluate[0].augment
