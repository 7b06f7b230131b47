"""The built-in clips as mp4 files, laid out as VGGSound is distributed, to try what reads files (ours).

In:  the built-in stream (`shapes.py`) and its scenes (`scenes.py`).
Out: a folder of mp4 files, vggsound.csv and tasks.csv.
"""
import csv
import shlex
from fractions import Fraction

import av
import numpy as np
from tqdm import tqdm

from data import SAMPLE_RATE
from streams.scenes import SECONDS, draw_frames, other_waveform, source_waveform


def write_clip(path, scene, size=96, fps=10):
    """Write the scene as an mp4 file: H.264 and AAC."""
    waveform = source_waveform(scene) + other_waveform(scene)
    frames = draw_frames(scene, (np.arange(SECONDS * fps) + 0.5) / fps, size).permute(0, 2, 3, 1).numpy()
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


def write_vggsound(out, stream, size):
    """vggsound.csv and video/<id>_<start>.mp4, with tasks.csv → the command that reads them"""
    (out / 'video').mkdir(parents=True, exist_ok=True)
    sets = [('pretrain', 'train', stream.pretrain)]
    sets += [(task, 'train', dataset) for task, dataset in zip(stream.names, stream.train)]
    sets += [(task, 'test', dataset) for task, dataset in zip(stream.names, stream.retrieval)]
    clips = [(task, split, index, dataset) for task, split, dataset in sets for index in range(len(dataset))]
    rows = []
    for task, split, index, dataset in tqdm(clips, desc='writing clips', unit='clip', leave=False, disable=None):
        name = f'{task}-{split}-{index:05d}'
        write_clip(out / 'video' / f'{name}_000000.mp4', dataset.scene(index), size)
        rows.append((name, 0, dataset.labels[index][0], split))
    write_rows(out / 'vggsound.csv', rows)
    tasks = [(label, name) for name, labels in zip(stream.names, stream.classes) for label in labels]
    write_rows(out / 'tasks.csv', [('class', 'task'), *tasks])
    return shlex.join(['python', 'train.py', '--dataset', 'vggsound', '--data', str(out), '--tasks', f'{out}/tasks.csv',
                       '--size', 'small'])


def write_rows(path, rows):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(rows)
