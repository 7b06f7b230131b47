"""The built-in clips as files, laid out as VGGSound, AudioSet and AVE are distributed, to try what reads them (ours).

In:  the built-in stream (`shapes.py`) and its scenes (`scenes.py`).
Out: a folder of mp4 files, and the lists that come with that data set.
"""
import csv
import json
from fractions import Fraction

import av
import numpy as np
from tqdm import tqdm

from data import SAMPLE_RATE
from streams.ave import AVE_SECONDS
from streams.scenes import KNOT, draw_frames, draw_scene, other_waveform, source_waveform

AUDIOSET_START = 30       # second of its video at which each clip of AudioSet begins; any will do
LISTED = 5                # test clips of a class in the retrieval list, as in CAV-MAE's


def write_clip(path, scene, size=96, fps=10):
    """The scene as an mp4 file: H.264 and AAC."""
    waveform = source_waveform(scene) + other_waveform(scene)
    frames = draw_frames(scene, (np.arange(scene.seconds * fps) + 0.5) / fps, size).permute(0, 2, 3, 1).numpy()
    with av.open(str(path), 'w') as file:
        video = file.add_stream('libx264', rate=fps, options={'crf': '18'})
        video.width = video.height = size
        video.pix_fmt = 'yuv420p'
        audio = file.add_stream('aac', rate=SAMPLE_RATE, layout='mono')
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        file.mux(video.encode())
        for start in range(0, len(waveform), 1024):
            block = av.AudioFrame.from_ndarray(waveform[None, start:start + 1024], format='fltp', layout='mono')
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            file.mux(audio.encode(block))
        file.mux(audio.encode())


def parts(stream):
    """Every scene of a stream once → (task, or 'pretrain'; split; identity; index; scene), with a progress bar"""
    sets = [('pretrain', 'train', stream.pretrain)] + [(n, 'train', d) for n, d in zip(stream.names, stream.train)] \
        + [(n, 'test', d) for n, d in zip(stream.names, stream.test)]
    with tqdm(
            total=sum(len(d) for _, _, d in sets), desc='writing clips', unit='clip', leave=False, disable=None) as bar:
        for name, split, dataset in sets:
            for index in range(len(dataset)):
                yield name, split, f'{name}-{split}-{index:05d}', index, dataset.scene(index)
                bar.update()


def write_tasks(out, stream):
    """tasks.csv: class,task"""
    rows = [(label, name) for name, labels in zip(stream.names, stream.classes) for label in labels]
    write_rows(out / 'tasks.csv', [('class', 'task'), *rows])


def write_rows(path, rows):
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows(rows)


def mids(stream):
    """A made-up mid of AudioSet's form for each class → {class: /m/ash00}, those of tasks first"""
    names = [*zip(stream.names, stream.classes), ('wild', [kind.name for kind in stream.pretrain.classes])]
    return {label: f'/m/{name}{i:02d}' for name, labels in names for i, label in enumerate(labels)}


def write_retrieval_list(path, clips, mid):
    """CAV-MAE's format. clips: (identity, name of the file, class), of which the first five of a class are listed."""
    entries, listed = [], {}
    for identity, stem, label in clips:
        listed[label] = listed.get(label, 0) + 1
        if listed[label] <= LISTED:
            entries.append(dict(video_id=identity, wav=f'audio/{stem}.wav', video_path='video', labels=mid[label]))
    path.write_text(json.dumps({'data': entries}, indent=1))


def write_vggsound(out, stream, size, seed):
    """vggsound.csv, video/<id>_<start>.mp4; and tasks.csv and retrieval.json besides."""
    (out / 'video').mkdir(parents=True, exist_ok=True)
    rows, tested = [], []
    for _, split, identity, _, scene in parts(stream):
        label, stem = scene.tracks[0].kind.name, f'{identity}_000000'
        write_clip(out / 'video' / f'{stem}.mp4', scene, size)
        rows.append((identity, 0, label, split))
        tested += [(stem, stem, label)] if split == 'test' else []
    write_rows(out / 'vggsound.csv', rows)
    write_tasks(out, stream)
    write_retrieval_list(out / 'retrieval.json', tested, mids(stream))
    return f'python train.py --dataset vggsound --data {out} --tasks {out}/tasks.csv --size small'


def write_audioset(out, stream, size, seed):
    """class_labels_indices.csv, balanced_train_segments.csv, eval_segments.csv, video/<id>_<start>.mp4; and tasks.csv
    and retrieval.json besides. Some clips have the label of their silent object too, or one of no task; two have labels
    of two tasks: the first training clip of the first task, and the first test clip of the second."""
    (out / 'video').mkdir(parents=True, exist_ok=True)
    mid, rows, tested = mids(stream), {'train': [], 'test': []}, []
    first, second = stream.names[:2]
    for name, split, identity, index, scene in parts(stream):
        stem, labels = f'{identity}_{AUDIOSET_START:06d}', [track.kind.name for track in scene.tracks]
        write_clip(out / 'video' / f'{stem}.mp4', scene, size)
        labels = labels if index % 3 == 0 else labels[:1]
        labels += [stream.pretrain.classes[0].name] if index % 4 == 1 and name != 'pretrain' else []
        if index == 0 and (name, split) in ((first, 'train'), (second, 'test')):
            labels.append(stream.classes[1 if name == first else 0][0])
        codes = ','.join(mid[label] for label in labels)
        rows[split].append((identity, AUDIOSET_START, AUDIOSET_START + scene.seconds, codes))
        tested += [(identity, stem, labels[0])] if split == 'test' else []
    write_rows(out / 'class_labels_indices.csv', [('index', 'mid', 'display_name')]
               + [(i, code, label) for i, (label, code) in enumerate(mid.items())])
    for split, file in (('train', 'balanced_train_segments.csv'), ('test', 'eval_segments.csv')):
        lines = [f'{identity}, {start:.3f}, {end:.3f}, "{codes}"' for identity, start, end, codes in rows[split]]
        comments = ['# Segments csv of the built-in clips', f'# num_segs={len(lines)}',
                    '# YTID, start_seconds, end_seconds, positive_labels']
        (out / file).write_text('\n'.join(comments + lines) + '\n')
    write_tasks(out, stream)
    write_retrieval_list(out / 'retrieval.json', tested, mid)
    return f'python train.py --dataset audioset --data {out} --tasks {out}/tasks.csv --size small'


def event_scene(kind, others, silent, seed):
    """As AVE's clips: ten seconds, in which the source sounds, flashing, for two seconds or more and is dim and silent
    before and after → scene, start, end (whole seconds)"""
    rng = np.random.default_rng([seed, 3])
    length = rng.integers(2, AVE_SECONDS + 1)
    start = rng.integers(0, AVE_SECONDS - length + 1)
    scene = draw_scene(kind, others, silent, seed, AVE_SECONDS)
    source = scene.tracks[0]
    knots = np.arange(len(source.loudness)) * KNOT
    happening = (knots > start) & (knots < start + length)             # it fades in and out within the event,
    loudness = np.where(happening, np.maximum(source.loudness, 0.55), 0.0)   # and has no rests in it
    source = source._replace(loudness=loudness)
    return scene._replace(tracks=[source, *scene.tracks[1:]]), int(start), int(start + length)


def write_ave(out, stream, size, seed):
    """Annotations.txt, trainSet.txt, valSet.txt, testSet.txt, AVE/<id>.mp4, of the classes of the tasks."""
    (out / 'AVE').mkdir(parents=True, exist_ok=True)
    rows = {'train': [], 'val': [], 'test': []}
    sets = {'train': stream.train, 'val': stream.test, 'test': stream.test}
    plan = [(split, name, task, index) for split, of in sets.items()
            for task, (name, dataset) in enumerate(zip(stream.names, of)) for index in range(len(dataset))]
    for split, name, task, index in tqdm(plan, desc='writing clips', unit='clip', leave=False, disable=None):
        kinds, identity = stream.train[task].classes, f'{name}-{split}-{index:05d}'
        kind = kinds[index % len(kinds)]
        number = (list(rows).index(split) * len(stream.names) + task) * 1_000_003 + index   # no two clips share a seed
        scene, start, end = event_scene(kind, [k for k in kinds if k != kind], stream.train[task].silent,
                                        seed * 100_000_007 + number)
        write_clip(out / 'AVE' / f'{identity}.mp4', scene, size)
        rows[split].append(f'{kind.name}&{identity}&good&{start}&{end}\n')
    header = 'Category&VideoID&Quality&StartTime&EndTime\n'
    (out / 'Annotations.txt').write_text(header + ''.join(sum(rows.values(), [])))
    for split, lines in rows.items():
        (out / f'{split}Set.txt').write_text(''.join(lines))
    return f'python eval.py RUN --task ave --data {out}'


LAYOUTS = {'vggsound': write_vggsound, 'audioset': write_audioset, 'ave': write_ave}


def write(layout, out, stream, size, seed):
    """The clips of a stream of shapes, of size × size pixels, in a layout → the command that reads them.
    seed: the stream's, from which AVE's scenes are drawn, too."""
    return LAYOUTS[layout](out, stream, size, seed)
