"""The built-in clips as files, laid out as VGGSound, AudioSet and AVE are distributed, to test what reads them (ours).

In:  the built-in stream (`shapes.py`) and its scenes (`scenes.py`).
Out: a folder of mp4 files, and the lists of that data set.
"""
import csv
import json
from collections import Counter
from fractions import Fraction

import av
import numpy as np
from tqdm import tqdm

from data import SAMPLE_RATE
from streams.ave import AVE_SECONDS, COLUMNS
from streams.scenes import KNOT, draw_frames, draw_scene, other_waveform, source_waveform

AUDIOSET_START = 30       # second of its video at which each clip of AudioSet starts; any will do
RETRIEVAL_CLIPS = 5       # test clips per class in the retrieval list, as in CAV-MAE's


def write_clip(path, scene, size=96, fps=10):
    """Write the scene as an mp4 file: H.264 and AAC."""
    waveform = source_waveform(scene) + other_waveform(scene)
    frames = draw_frames(scene, (np.arange(scene.seconds * fps) + 0.5) / fps, size).permute(0, 2, 3, 1).numpy()
    with av.open(str(path), 'w') as file:
        video = file.add_stream('libx264', rate=fps, options={'crf': '18'})
        video.width, video.height, video.pix_fmt = size, size, 'yuv420p'
        audio = file.add_stream('aac', rate=SAMPLE_RATE, layout='mono')
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        file.mux(video.encode())
        for start in range(0, len(waveform), 1024):
            block = av.AudioFrame.from_ndarray(waveform[None, start:start + 1024], format='fltp', layout='mono')
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            file.mux(audio.encode(block))
        file.mux(audio.encode())


def all_clips(stream):
    """Iterate over the clips of a stream, with a progress bar: (task or 'pretrain', split, index, id, scene)"""
    sets = [('pretrain', 'train', stream.pretrain)]
    sets += [(task, 'train', dataset) for task, dataset in zip(stream.names, stream.train)]
    sets += [(task, 'test', dataset) for task, dataset in zip(stream.names, stream.test)]
    clips = [(task, split, index, dataset) for task, split, dataset in sets for index in range(len(dataset))]
    for task, split, index, dataset in progress(clips):
        yield task, split, index, f'{task}-{split}-{index:05d}', dataset.scene(index)


def progress(items):
    return tqdm(items, desc='writing clips', unit='clip', leave=False, disable=None)


def write_rows(path, rows):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(rows)


def make_mids(stream):
    """A made-up mid of AudioSet's form for each class → {class: /m/ash00}, those of tasks first"""
    names = [*zip(stream.names, stream.classes), ('wild', [kind.name for kind in stream.pretrain.classes])]
    return {label: f'/m/{name}{i:02d}' for name, labels in names for i, label in enumerate(labels)}


def write_tasks(out, stream, tested):
    """tasks.csv (class,task) and retrieval.json (CAV-MAE's format). tested: (id, name of the file, class) of the test
    clips, of which the first five per class are listed"""
    rows = [(label, name) for name, labels in zip(stream.names, stream.classes) for label in labels]
    write_rows(out / 'tasks.csv', [('class', 'task'), *rows])
    mids, entries, listed = make_mids(stream), [], Counter()
    for name, stem, label in tested:
        listed[label] += 1
        if listed[label] <= RETRIEVAL_CLIPS:
            entries.append(dict(video_id=name, wav=f'audio/{stem}.wav', video_path='video', labels=mids[label]))
    (out / 'retrieval.json').write_text(json.dumps({'data': entries}, indent=1), encoding='utf-8')


def write_vggsound(out, stream, size, seed):
    """vggsound.csv and video/<id>_<start>.mp4, with tasks.csv and retrieval.json → the command that reads them"""
    (out / 'video').mkdir(parents=True, exist_ok=True)
    rows, tested = [], []
    for _, split, _, name, scene in all_clips(stream):
        label, stem = scene.tracks[0].kind.name, f'{name}_000000'
        write_clip(out / 'video' / f'{stem}.mp4', scene, size)
        rows.append((name, 0, label, split))
        if split == 'test':
            tested.append((stem, stem, label))
    write_rows(out / 'vggsound.csv', rows)
    write_tasks(out, stream, tested)
    return f'python train.py --dataset vggsound --data {out} --tasks {out}/tasks.csv --size small'


def write_audioset(out, stream, size, seed):
    """class_labels_indices.csv, balanced_train_segments.csv, eval_segments.csv and video/<id>_<start>.mp4, with
    tasks.csv and retrieval.json → the command that reads them. Some clips have further labels, see `several_labels`."""
    (out / 'video').mkdir(parents=True, exist_ok=True)
    mids, rows, tested = make_mids(stream), {'train': [], 'test': []}, []
    for task, split, index, name, scene in all_clips(stream):
        stem, labels = f'{name}_{AUDIOSET_START:06d}', several_labels(stream, task, split, index, scene)
        write_clip(out / 'video' / f'{stem}.mp4', scene, size)
        codes = ','.join(mids[label] for label in labels)
        rows[split].append(f'{name}, {AUDIOSET_START:.3f}, {AUDIOSET_START + scene.seconds:.3f}, "{codes}"\n')
        if split == 'test':
            tested.append((name, stem, labels[0]))
    write_rows(out / 'class_labels_indices.csv', [('index', 'mid', 'display_name')]
               + [(i, code, label) for i, (label, code) in enumerate(mids.items())])
    for split, file in (('train', 'balanced_train_segments.csv'), ('test', 'eval_segments.csv')):
        comments = (f'# Segments csv of the built-in clips\n# num_segs={len(rows[split])}\n'
                    '# YTID, start_seconds, end_seconds, positive_labels\n')
        (out / file).write_text(comments + ''.join(rows[split]), encoding='utf-8')
    write_tasks(out, stream, tested)
    return f'python train.py --dataset audioset --data {out} --tasks {out}/tasks.csv --size small'


def several_labels(stream, task, split, index, scene):
    """The class of a scene; for some also that of its silent object, or one of no task. Two clips get a label of a
    second task: the first training clip of the first task, and the first test clip of the second."""
    labels = [track.kind.name for track in scene.tracks]
    if index % 3:
        labels = labels[:1]
    if index % 4 == 1 and task != 'pretrain':
        labels.append(stream.pretrain.classes[0].name)
    if index == 0 and (task, split) == (stream.names[0], 'train'):
        labels.append(stream.classes[1][0])
    if index == 0 and (task, split) == (stream.names[1], 'test'):
        labels.append(stream.classes[0][0])
    return labels


def event_scene(kind, others, silent, seed):
    """A scene of ten seconds, as in AVE: the source sounds and flashes for two seconds or more, and is dim and silent
    before and after → scene, start, end (whole seconds)"""
    rng = np.random.default_rng([seed, 3])
    length = rng.integers(2, AVE_SECONDS + 1)
    start = rng.integers(0, AVE_SECONDS - length + 1)
    scene = draw_scene(kind, others, silent, seed, AVE_SECONDS)
    source = scene.tracks[0]
    knots = np.arange(len(source.loudness)) * KNOT
    during = (knots > start) & (knots < start + length)                      # it fades in and out within the event,
    loudness = np.where(during, np.maximum(source.loudness, 0.55), 0.0)      # and has no rests in it
    source = source._replace(loudness=loudness)
    return scene._replace(tracks=[source, *scene.tracks[1:]]), int(start), int(start + length)


def write_ave(out, stream, size, seed):
    """Annotations.txt, trainSet.txt, valSet.txt, testSet.txt and AVE/<id>.mp4, of the classes of the tasks, with scenes
    that are drawn from the seed → the command that reads them"""
    (out / 'AVE').mkdir(parents=True, exist_ok=True)
    sets = {'train': stream.train, 'val': stream.test, 'test': stream.test}
    rows = {split: [] for split in sets}
    clips = [(split, task, index) for split, datasets in sets.items()
             for task, dataset in enumerate(datasets) for index in range(len(dataset))]
    for split, task, index in progress(clips):
        kinds, name = stream.train[task].classes, f'{stream.names[task]}-{split}-{index:05d}'
        kind = kinds[index % len(kinds)]
        number = (list(sets).index(split) * len(stream.names) + task) * 1_000_003 + index   # a seed per clip
        scene, start, end = event_scene(kind, [k for k in kinds if k != kind], stream.train[task].silent,
                                        seed * 100_000_007 + number)
        write_clip(out / 'AVE' / f'{name}.mp4', scene, size)
        rows[split].append(f'{kind.name}&{name}&good&{start}&{end}\n')
    annotations = '&'.join(COLUMNS) + '\n' + ''.join(rows['train'] + rows['val'] + rows['test'])
    (out / 'Annotations.txt').write_text(annotations, encoding='utf-8')
    for split, lines in rows.items():
        (out / f'{split}Set.txt').write_text(''.join(lines), encoding='utf-8')
    return f'python eval.py RUN --eval ave --data {out}'


LAYOUTS = {'vggsound': write_vggsound, 'audioset': write_audioset, 'ave': write_ave}
