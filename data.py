"""Real clips: App. B and Table 6. VGGSound's files -> a stream of tasks whose items are audio and video tensors.

Shapes: t, f  spectrogram frames and mel bins;  T, H, W  video frames, height, width;  S  the model's image size.
"""
import csv
import difflib
import io
import json
import multiprocessing
import os
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from tqdm import tqdm

from model import Sizes, UserError

SAMPLE_RATE = 16000
AUDIO_MEAN, AUDIO_STD = -5.081, 4.485                                   # Table 6, of log mel energies
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # Table 6, of red, green, blue in [0, 1]

SUFFIXES = ('.mp4', '.mkv', '.webm', '.avi')
TASKS = Path(__file__).parent / 'tasks' / 'vggsound.csv'


# ---------------------------------------------------------------- tensors

def normalize_frames(frames):
    """(..., 3, H, W) uint8, a quarter of the bytes in a memory and on the way to a device -> float32, normalized."""
    mean = torch.tensor(IMAGE_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=frames.device).view(3, 1, 1)
    return (frames.float() / 255 - mean) / std


def spectrogram(waveform, sizes: Sizes):
    """Log mel energies, as CAV-MAE computes them (App. B).

    waveform  (samples,)  float in [-1, 1], mono, 16 kHz, of any length
    returns   (t, f)      float32, normalized; low frequencies first

    A trap: the end is padded with 0 before normalization, as in CAV-MAE. That is a fairly loud sound, not silence
    (about -16), and 1.13 after normalization.
    """
    length = max(25, sizes.frame_shift)   # ms that one spectrogram frame sees; never less than the step to the next
    waveform = waveform - waveform.mean()
    waveform = F.pad(waveform, (0, max(0, int(SAMPLE_RATE * length * 0.001) - len(waveform))))   # one frame at least
    bank = torchaudio.compliance.kaldi.fbank(
        waveform[None], htk_compat=True, sample_frequency=SAMPLE_RATE, use_energy=False, window_type='hanning',
        num_mel_bins=sizes.mel_bins, dither=0.0, frame_shift=sizes.frame_shift, frame_length=length)
    bank = bank[:sizes.audio_frames]
    bank = F.pad(bank, (0, 0, 0, sizes.audio_frames - len(bank)))
    return (bank - AUDIO_MEAN) / AUDIO_STD


def augment_audio(spec, generator):
    """Training noise and time shift (Table 6). spec (t, f) -> (t, f). The strengths, which the paper does not
    give, are CAV-MAE's: uniform noise up to 0.1 at most, and a roll by up to 10 frames either way."""
    strength = 0.1 * torch.rand((), generator=generator)
    spec = spec + strength * torch.rand(spec.shape, generator=generator)
    return torch.roll(spec, _pick(range(-10, 11), generator), dims=0)


def multi_scale_crop(frames, size, generator):
    """MultiScaleCrop of TSN (Wang et al. 2016; Table 6): a random size, place and slight change of aspect ratio.

    frames   (T, 3, H, W)        uint8, shorter side = size
    returns  (T, 3, size, size)  uint8; the same crop for all frames, or motion would come from the crop
    """
    H, W = frames.shape[-2:]
    scales = (1, 0.875, 0.75)
    shapes = [(h, w) for i, h in enumerate(scales) for j, w in enumerate(scales) if abs(i - j) <= 1]   # 7 of 9
    h, w = (int(min(H, W) * scale) for scale in _pick(shapes, generator))
    # 13 places: of a 5×5 grid from corner to corner, those whose row and column are both even or both odd
    places = [(row, column) for row in range(5) for column in range(5) if (row - column) % 2 == 0]
    row, column = _pick(places, generator)
    top, left = row * (H - h) // 4, column * (W - w) // 4
    crop = frames[..., top:top + h, left:left + w]
    return F.interpolate(crop, (size, size), mode='bilinear', antialias=True)


def centre_crop(frames, size):
    """frames (T, 3, H, W) uint8 -> their middle, (T, 3, size, size)."""
    top, left = (frames.shape[-2] - size) // 2, (frames.shape[-1] - size) // 2
    return frames[..., top:top + size, left:left + size]


def _pick(choices, generator):
    return choices[torch.randint(len(choices), (), generator=generator).item()]


# ---------------------------------------------------------------- one clip

class BadClip(Exception):
    """A clip that cannot be used. The message is the reason, in a few words."""


class Demuxed(NamedTuple):
    """What a file holds, still compressed."""
    video: av.VideoStream
    audio: av.AudioStream
    video_packets: list
    audio_packets: list
    times: list          # second at which each video packet's frame is shown, sorted: frames' times without decoding


def read_clip(path, sizes: Sizes, generator=None):
    """One clip -> audio (t, f) float32, video (T, 3, S, S) uint8. Raises BadClip.

    With a generator, as in training: a random window of T seconds, MultiScaleCrop, noise. Without, as in
    evaluation: the middle of the clip, nothing random. The same generator state gives the same bits.
    """
    T = sizes.num_frames
    with _opened(path) as clip:
        waveform, audio_start = _decode_audio(clip)
        gap = (clip.times[-1] - clip.times[0]) / (len(clip.times) - 1)             # between two frames, on average
        spare = max(0.0, clip.times[-1] + gap - clip.times[0] - T)                 # seconds the window can move by
        where = 0.5 if generator is None else torch.rand((), generator=generator).item()
        start = clip.times[0] + where * spare
        # The paper does not say where in its second a frame lies; here in the middle.
        video = _decode_frames(clip, [start + i + 0.5 for i in range(T)], sizes.image_size)   # T, 3, H, W

    # The audio window: t steps, and what the last spectrogram frame sees beyond its step. Around the middle of the
    # video's window as far as the clip's ends allow; at the paper's size, 10 s fit in whole.
    milliseconds = (sizes.audio_frames - 1) * sizes.frame_shift + max(25, sizes.frame_shift)
    window = int(SAMPLE_RATE * milliseconds * 0.001)                                       # samples
    first = round((start + T / 2 - audio_start) * SAMPLE_RATE) - window // 2
    first = max(0, min(first, len(waveform) - window))
    audio = spectrogram(waveform[first:first + window], sizes)
    if generator is None:
        return audio, centre_crop(video, sizes.image_size)
    return augment_audio(audio, generator), multi_scale_crop(video, sizes.image_size, generator)


def check_clip(path):
    """Why read_clip would refuse the clip, or None. Decodes the audio, but of the video only two frames, so that a
    whole data set can be tested before training."""
    try:
        with _opened(path) as clip:
            _decode_audio(clip)
            frames = 0
            for packet in [*clip.video_packets, None]:   # None: the decoder gives what it still holds
                frames += len(clip.video.codec_context.decode(packet))
                if frames >= 2:
                    return None
            return 'only one frame' if frames else 'no frame can be decoded'
    except BadClip as bad:
        return str(bad)


@contextmanager
def _opened(path):
    """The file as a Demuxed, while it is open. Whatever goes wrong with it meanwhile becomes a BadClip."""
    path = os.path.abspath(path)   # so that ffmpeg cannot take a name with a colon for a protocol
    if not os.path.isfile(path):
        raise BadClip('file missing')
    if not os.path.getsize(path):
        raise BadClip('empty file')
    doing = 'opened as a video'
    try:
        with av.open(path, metadata_errors='replace') as container:   # titles are not always UTF-8
            doing = 'decoded: damaged or truncated'
            yield _demux(container)
    except (av.FFmpegError, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:   # PyAV raises them all
        raise BadClip(f'cannot be {doing} ({getattr(error, "strerror", None) or type(error).__name__})') from error


def _demux(container):
    """Reads all packets at once: clips are short, and only the packets tell reliably when each frame is shown, where
    decoding can start, and whether the file ends too early. Seeking would rely on an index that may be missing."""
    video, audio = container.streams.best('video'), container.streams.best('audio')
    for stream, kind in ((video, 'video'), (audio, 'audio')):
        if stream is None:
            raise BadClip(f'no {kind} stream')
        if stream.codec_context is None:
            raise BadClip(f'unknown {kind} codec')
    video.codec_context.thread_count = 1   # clips are read in parallel, by as many workers as there are cores
    packets = {video.index: [], audio.index: []}
    for packet in container.demux(video, audio):
        if packet.size and not packet.is_corrupt:
            packets[packet.stream_index].append(packet)
    clip = Demuxed(video, audio, packets[video.index], packets[audio.index], [])
    # is_discard: before the cut of a file that was cut without re-encoding; decoded for what follows, never shown.
    clip.times.extend(sorted(_time(packet, video) for packet in clip.video_packets if not packet.is_discard))
    if len(clip.times) < 2:
        raise BadClip('only one frame' if clip.times else 'no video frames')
    if _truncated(container, clip):
        raise BadClip('truncated')
    return clip


def _truncated(container, clip):
    """Does the file hold clearly less than its header announces? By duration, or by frames in AVI, whose duration is
    corrected to what is there. Half a second is granted: headers are a little off, and a last packet has a length."""
    if container.format.name == 'avi':
        return len(clip.video_packets) < 0.9 * clip.video.frames
    last, short = 0.0, False
    for stream, packets in ((clip.video, clip.video_packets), (clip.audio, clip.audio_packets)):
        times = [_time(packet, stream) for packet in packets] or [0.0]
        last = max(last, *times)
        if stream.duration is not None:
            short |= max(times) - min(times) < 0.95 * float(stream.duration * stream.time_base) - 0.5
    if clip.video.duration is None and container.duration is not None:   # Matroska and WebM: only that of the whole
        short |= last < 0.95 * container.duration / av.time_base - 0.5
    return short


def _time(item, stream):
    """Second at which a packet or frame is shown; AVI knows only when it is decoded. Not frame.time: that is nan for
    the frames that a decoder gives at the very end."""
    ticks = item.dts if item.pts is None else item.pts
    if ticks is None:
        raise BadClip('a frame without a time')
    return float(ticks * stream.time_base)


def _decode_audio(clip):
    """All of the audio -> waveform (samples,) float32 in [-1, 1], mono, 16 kHz; and the second at which it starts."""
    resampler = av.AudioResampler('s16', 'mono', SAMPLE_RATE)
    start, chunks = None, []
    for packet in [*clip.audio_packets, None]:
        for frame in clip.audio.codec_context.decode(packet):
            if start is None:
                start = _time(frame, clip.audio)
            chunks += resampler.resample(frame)
    if chunks:
        chunks += resampler.resample(None)
    waveform = np.concatenate([chunk.to_ndarray()[0] for chunk in chunks] or [np.zeros(0, np.int16)])
    if len(waveform) == 0 or np.abs(waveform.astype(np.int32)).max() <= 3:   # of 32767: what a codec makes of silence
        raise BadClip('silent audio')
    return torch.from_numpy(waveform).float() / 32768, start


def _decode_frames(clip, targets, size):
    """The frame on the screen at each of the targets (seconds, ascending), the shorter side resized to size.
    Past the end, the last frame is held. Returns (len(targets), 3, H, W) uint8, the right way up."""
    context = clip.video.codec_context
    first = max((i for i, packet in enumerate(clip.video_packets)
                 if packet.is_keyframe and _time(packet, clip.video) <= targets[0] + 1e-4), default=0)
    wanted = {max((time for time in clip.times if time <= target + 1e-4), default=clip.times[0]) for target in targets}
    shown, last = [], None                                       # a frame per target; the frame decoded before
    for packet in [*clip.video_packets[first:], None]:
        if packet and packet.pts is not None and context.name in ('h264', 'hevc'):
            # Frames that no other frame refers to need not be decoded unless wanted: 1.5 times as fast, same pixels.
            context.skip_frame = 'DEFAULT' if _time(packet, clip.video) in wanted else 'NONREF'
        for frame in context.decode(packet):
            time = _time(frame, clip.video)
            while len(shown) < len(targets) and time > targets[len(shown)] + 1e-4:   # 1e-4: times are rounded
                shown.append(last or frame)
            last = frame
        if len(shown) == len(targets):
            break
    if last is None:
        raise BadClip('no frame can be decoded')
    shown += [last] * (len(targets) - len(shown))

    scale = size / min(last.width, last.height)
    width, height = round(last.width * scale), round(last.height * scale)
    pixels = [frame.reformat(width, height, 'rgb24', interpolation='BILINEAR').to_ndarray() for frame in shown]
    # Phones store a turned picture and how to turn it back: counterclockwise, as rot90 counts.
    frames = np.rot90(np.stack(pixels), round(last.rotation / 90), axes=(1, 2))    # T, H, W, 3
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())


# ---------------------------------------------------------------- many clips

class Clip(NamedTuple):
    path: str
    label: str
    line: int      # of the CSV file


class VideoClips(torch.utils.data.Dataset):
    """Clips as tensors. An item's key is (index, seed): what is random about it follows from the seed alone, so
    neither the number of workers nor a restart in the middle of a run changes what the model sees."""

    def __init__(self, clips, sizes: Sizes, augment):
        self.clips, self.sizes, self.augment = clips, sizes, augment

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        """audio (t, f) float32, video (T, 3, S, S) uint8, clip (the index asked for) and bad: '' or 'name: reason'.

        For a clip that fails although it was tested (deleted since), the next one stands in: of several processes,
        each needs a full batch, or the others wait for it forever."""
        index, seed = key
        bad = []
        for step in range(len(self.clips)):
            path = self.clips[(index + step) % len(self.clips)].path
            generator = torch.Generator().manual_seed(seed) if self.augment else None
            try:
                audio, video = read_clip(path, self.sizes, generator)
            except BadClip as error:
                bad.append(f'{os.path.basename(path)}: {error}')
                continue
            return dict(audio=audio, video=video, clip=index, bad='; '.join(bad))
        raise UserError(f'None of the {len(self.clips)} clips can be read any more:\n  ' + '\n  '.join(bad[:5]))


class Stream(NamedTuple):
    """What a model is trained and evaluated on (§3.2): tasks one after another, after an initial pre-training."""
    names: list      # of the tasks, in order
    pretrain: torch.utils.data.Dataset   # training clips of the classes that no task has
    train: list      # a Dataset per task
    test: list       # a Dataset per task, not augmented
    bad: list        # 'name: reason' of each clip left out
    notes: list      # sentences to show to the user


def vggsound(folder, sizes: Sizes, tasks_csv=None, workers=0, clips_per_class=400, max_bad=0.1, cache=None,
             progress=None):
    """VGGSound as a Stream (App. B): eight tasks of up to 20 classes, the other classes for the pre-training.

    tasks_csv  class -> task, in the order of the tasks; None: the paper's
    workers    processes that test the clips; 0: this one
    max_bad    share of clips that may be unusable: some always are, but many point to a mistake
    cache      file that remembers which clips were tested
    progress   a progress bar? None: if it goes to a terminal
    """
    folder = Path(folder)
    clips = _read_vggsound(folder)                                              # list of (Clip, split)
    labels = {clip.label for clip, _ in clips}
    tasks = read_tasks(tasks_csv or TASKS, labels | set(read_tasks(TASKS, None)))

    used, per_class = [], Counter()
    for clip, split in clips:
        per_class[clip.label, split] += 1
        if split == 'test':
            wanted = clip.label in tasks
        else:
            wanted = clip.label not in tasks or per_class[clip.label, split] <= clips_per_class
        if wanted:
            used.append((clip, split))
    reasons, notes = _scan([clip.path for clip, _ in used], workers, cache, progress)
    bad = [f'{os.path.basename(path)}: {reason}' for path, reason in reasons.items() if reason]
    if len(bad) > max_bad * len(used):
        raise UserError(f'{len(bad)} of {len(used)} clips ({len(bad) / len(used):.0%}) in {folder / "video"} cannot be '
                        f'used, more than {max_bad:.0%}. The first of them:\n  ' + '\n  '.join(bad[:5]) +
                        '\nRaise --max-bad to train without them.')

    def dataset(task, split):
        return VideoClips([clip for clip, its_split in used if not reasons[clip.path]
                           and tasks.get(clip.label) == task and its_split == split], sizes, augment=split == 'train')

    names, train, test = [], [], []
    for name in dict.fromkeys(tasks.values()):
        ours = dataset(name, 'train'), dataset(name, 'test')
        lacks = ' and no '.join(kind for kind, clips in zip(('training clips', 'test clips'), ours) if not len(clips))
        if lacks:
            notes.append(f'task {name} has no {lacks} and is left out')
        else:
            names.append(name), train.append(ours[0]), test.append(ours[1])
    if not names:
        raise UserError(f'{tasks_csv or TASKS}: no task has both training and test clips in {folder}')
    return Stream(names, dataset(None, 'train'), train, test, bad, notes)


def _read_vggsound(folder):
    """folder/vggsound.csv (id, start second, label, split; no header) -> list of (Clip, split), in its order."""
    table, videos = folder / 'vggsound.csv', folder / 'video'
    for needed, there in ((table, table.is_file()), (videos, videos.is_dir())):
        if not there:
            raise UserError(
                f'{needed} is missing. Download vggsound.csv from https://www.robots.ox.ac.uk/~vgg/data/vggsound, and '
                f'the clips it lists (10 s of a YouTube video each), so that they lie like this:\n'
                f'  {table}\n  {videos}/<id>_<start second, six digits>.mp4   (or .mkv, .webm, .avi)\n'
                f'`--dataset shapes` needs no download.')
    present = set(os.listdir(videos))   # one look, not one per clip: the folder may be far away
    clips, lines = [], {}
    for line, row in _rows(table):
        _require(len(row) == 4, table, line, f'{len(row)} columns, not 4 (id, start second, label, split)')
        name, start, label, split = row
        _require(name, table, line, 'the id is empty')
        _require(not re.search(r'[/\\\0]|\.\.', name), table, line, f'the id {name!r} would lead out of the folder')
        _require(re.fullmatch('[0-9]{1,9}', start), table, line, f'the start {start!r} is not a whole number')
        _require(label, table, line, 'the label is empty')
        _require(split in ('train', 'test'), table, line, f'the split is {split!r}, not train or test')
        stem = f'{name}_{int(start):06d}'
        _require(stem not in lines, table, line, f'the same clip as in line {lines.get(stem)}')
        lines[stem] = line
        file = next((stem + suffix for suffix in SUFFIXES if stem + suffix in present), stem + SUFFIXES[0])
        clips.append((Clip(str(videos / file), label, line), split))
    if not clips:
        raise UserError(f'{table}: lists no clips')
    return clips


def read_tasks(csv_path, known_classes):
    """A file with the header `class,task` -> dict class -> task, in the file's order. A class that is not known is
    refused, for a misspelt one would silently have no clips; with known_classes=None, every class is accepted."""
    tasks, header = {}, None
    for line, row in _rows(csv_path):
        if header is None:
            header = row
            _require(row == ['class', 'task'], csv_path, line, 'the first line must be the header: class,task')
            continue
        _require(len(row) == 2, csv_path, line, f'{len(row)} columns, not 2; a class with a comma needs "quotes"')
        name, task = row
        _require(name and task, csv_path, line, 'the class or the task is empty')
        _require(name not in tasks, csv_path, line, f'the class {name!r} is there twice')
        if known_classes is not None and name not in known_classes:
            near = ' or '.join(map(repr, difflib.get_close_matches(name, known_classes, 3)))
            _require(False, csv_path, line, f'unknown class {name!r}' + (f'; did you mean {near}?' if near else ''))
        tasks[name] = task
    if not tasks:
        raise UserError(f'{csv_path}: has no rows; needed are the header class,task and a line for each class')
    return tasks


def _require(condition, path, line, reason):
    if not condition:
        raise UserError(f'{path}:{line}: {reason}')


def _rows(path):
    """(line number, cells) of a CSV file, empty lines left out."""
    try:
        data = Path(path).read_bytes()
        text = data.decode('utf-8-sig')   # -sig: some spreadsheets start a file with a mark
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path}:{data[:error.start].count(10) + 1}: not UTF-8 text') from error
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f'{path}:{reader.line_num}: {error}') from error


def _scan(paths, workers, cache, progress):
    """check_clip on each path -> dict path -> reason or None, and notes for the user."""
    try:
        known = dict(json.loads(Path(cache).read_text()))
    except (TypeError, OSError, ValueError):    # no cache wanted, none there yet, or one that was damaged
        known = {}
    stamps = {path: _stamp(path) for path in paths}
    reasons = {path: known.get(stamp) for path, stamp in stamps.items()}
    todo, notes = [path for path in paths if stamps[path] not in known], []
    # Spawned processes, for a forked copy of a process that has threads or a GPU may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn')) if workers and todo else nullcontext()
    try:
        with pool as processes, tqdm(total=len(todo), desc='testing clips', unit=' clips',
                                     disable=None if progress is None else not progress) as bar:
            results = processes.map(check_clip, todo, chunksize=8) if processes else map(check_clip, todo)
            for path, reason in zip(todo, results):
                reasons[path] = reason
                if stamps[path]:
                    known[stamps[path]] = reason
                bar.update()
    finally:   # also when interrupted: what was tested stays tested
        if cache is not None and todo:
            try:
                Path(cache).parent.mkdir(parents=True, exist_ok=True)
                temporary = Path(f'{cache}.{os.getpid()}.tmp')
                temporary.write_text(json.dumps(known, indent=0))
                os.replace(temporary, cache)   # whole or not at all
            except OSError as error:
                notes.append(f'{cache} cannot be written ({error.strerror}): the clips are tested again next time')
    return reasons, notes


def _stamp(path):
    """Says which file was tested, and when it was written; '' without a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ''
    return f'{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}'


def open_stream(cfg, sizes, workers):
    """The data that a run's options name -> Stream"""
    if cfg.dataset == 'shapes':
        import shapes   # which imports this module for its spectrogram
        return shapes.stream(sizes, cfg.seed, cfg.clips_per_task, cfg.test_clips, max_silent=cfg.max_silent)
    return vggsound(cfg.data, sizes, cfg.tasks or None, workers, cfg.clips_per_class, cfg.max_bad,
                    cache=Path(cfg.cache) / 'checked-clips.json', progress=True)

