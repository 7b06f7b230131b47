"""Preparing a data set: its clips written again, small and quick to read, so that training need not wait (ours).

In:  a folder laid out as VGGSound, AudioSet or AVE.
Out: another folder with the same lists and names. A clip is a Matroska file of eight frames a second, each an image of
     its own, the shorter side at most 256; and of uncompressed sound at 16 kHz. It gives nearly the same tensors.

    python data.py prepare --data DIR --out SMALL
"""
import io
import math
import os
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from config import Sizes, UserError
from streams.audioset import BALANCED, MIDS, read_audioset
from streams.ave import read_ave
from streams.common import check_share, names_there, show_progress
from streams.loading import count_workers, run_jobs
from streams.vggsound import read_vggsound
from utils.cli import Parser, number
from utils.video import (SAMPLE_RATE, TOLERANCE, BadClip, decode_audio, display_size, frames_at, is_upright, open_clip,
                         upright)

FPS, SHORTER_SIDE, MAX_PIXELS = 8, 256, 2 ** 18  # frames a second; their shorter side and number of pixels, at most
QUANTIZERS = (5, 6, 7, 9, 12, 16, 22, 31)        # of MJPEG; at 5, no difference is visible
MAX_BYTES, PER_SECONDS = 1_500_000, 10           # of a prepared clip, for each ten seconds
LONGEST = 120                                    # seconds of a clip
COMMENT = 'prepared clip: 8 frames a second, 16 kHz'          # in the file: marks it as prepared
DECODER_CRASH = 'crashes the decoder, or takes too long'      # a result of prepare_clip
MANY_CLIPS = 1000                                # from this number on, preparing is suggested


# ----------------------------------------------------------------------------------- one clip

def small_clip(path, segment=None):
    """A clip, or a segment (start, seconds) of a whole video → the bytes of its prepared file. Raises BadClip."""
    with open_clip(path, segment) as clip:
        waveform, audio_start = decode_audio(clip)
        targets = frame_grid(clip.start, clip.end)
        pictures = _pictures(clip, targets)
    delay = round(1000 * (audio_start - targets[0]))           # ms; below 0, the sound starts before the picture
    limit = MAX_BYTES * max(1, len(targets) / FPS / PER_SECONDS)
    for quantizer in QUANTIZERS:
        content = _matroska(pictures, max(0, -delay), waveform, max(0, delay), quantizer)
        if len(content) <= limit:
            break
    return content


def frame_grid(start, end):
    """The seconds from start to end of a clip → the seconds whose frames are kept, 1/8 s apart. Raises BadClip for a
    long clip.

    The grid is centred on the middle of the clip: `read_clip` takes its frames at half seconds from there in
    evaluation, and finds the same ones. Of a clip shorter than its window it takes them from the start, and holds the
    last frame."""
    span = end - start
    if span > LONGEST:
        raise BadClip(f'{span:.0f} s, more than {LONGEST}, where a clip should be')
    n = max(2, 2 * round(span * FPS / 2))                          # even: as many before the middle as after it
    if span >= Sizes().num_frames:
        first = start + (span - n / FPS) / 2
        return [first + k / FPS for k in range(n)]
    targets = [start + k / FPS for k in range(n)]
    return [*targets[:-1], max(targets[-1], end - TOLERANCE)]


def _pictures(clip, targets):
    """The frames at the targets → list of small ones, upright, in JPEG's colours"""
    pictures, previous, size = [], None, None
    jpeg = dict(format='yuvj420p', dst_colorspace='ITU601', dst_color_range='JPEG', threads=1)
    for frame in frames_at(clip, targets):
        size = size or _small_size(*display_size(clip, frame))     # the first frame's: a video may change its size
        if frame is not previous:
            if is_upright(frame):
                picture = frame.reformat(*size, interpolation='BICUBIC', **jpeg)
            else:
                pixels = np.ascontiguousarray(upright(frame, size, 'BICUBIC'))
                picture = av.VideoFrame.from_ndarray(pixels, 'rgb24').reformat(**jpeg)
        pictures.append(picture)
        previous = frame
    return pictures


def _small_size(width, height):
    """Width and height of a picture whose shorter side is at most 256.

    read_clip rounds the longer side, and rounding twice can differ: 480 × 360 is read as 299 × 224, but as 298 × 224 if
    it was 341 × 256 in between. That costs 7 dB at the edges. So 299 × 224 is enlarged, to 342 × 256."""
    shorter = min(width, height)
    scale = min(1, SHORTER_SIDE / shorter, math.sqrt(MAX_PIXELS / (width * height)))
    if scale == 1:
        return round(width), round(height)
    return [max(2, round(round(side * 224 / shorter) * shorter * scale / 224)) for side in (width, height)]


def _matroska(pictures, video_start, waveform, audio_start, quantizer):
    """Pictures and sound → the bytes of a file, the same for the same clip. The starts are in ms."""
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='matroska', options={'fflags': 'bitexact'}) as file:    # else with random numbers
        file.metadata['comment'] = COMMENT
        video = file.add_stream('mjpeg', rate=FPS, options={'qmin': str(quantizer), 'qmax': str(quantizer)})
        video.width, video.height, video.pix_fmt = pictures[0].width, pictures[0].height, 'yuvj420p'
        video.codec_context.time_base, video.codec_context.thread_count = Fraction(1, 1000), 1
        audio = file.add_stream('pcm_s16le', rate=SAMPLE_RATE, layout='mono')

        packets = []
        for k, picture in enumerate(pictures):
            picture.pts, picture.time_base = video_start + 1000 * k // FPS, Fraction(1, 1000)
            packets += video.encode(picture)
        packets += video.encode(None)
        samples = (waveform * 32768).short().numpy()[None]
        for start in range(0, samples.shape[1], SAMPLE_RATE):      # one packet a second: few are quick to read
            block = av.AudioFrame.from_ndarray(samples[:, start:start + SAMPLE_RATE], 's16', 'mono')
            block.sample_rate, block.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            block.pts = audio_start * SAMPLE_RATE // 1000 + start
            packets += audio.encode(block)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):
            file.mux(packet)
    return buffer.getvalue()


def is_prepared(path):
    """Whether the file was written by `small_clip`"""
    try:
        with av.open(str(path)) as file:
            return COMMENT in file.metadata.values()
    except (av.FFmpegError, OSError, ValueError):
        return False


# ------------------------------------------------------------------------------- a folder of clips

def list_clips(folder):
    """The clips in the lists of a folder → {path: (start, seconds) of its segment, or None}. Raises UserError."""
    if (folder / 'vggsound.csv').is_file():
        clips = read_vggsound(folder)
    elif (folder / MIDS).is_file():
        clips = read_audioset(folder, sorted(path.name for path in folder.glob('*_segments.csv')) or [BALANCED])
    elif (folder / 'Annotations.txt').is_file():
        events, _, notes = read_ave(folder)
        clips = [event for part in events.values() for event in part]
        for note in notes:
            print(note)
    else:
        raise UserError(f'{folder} is no known data set: it has neither vggsound.csv nor {MIDS} nor Annotations.txt '
                        '(streams/README.md)')
    if not clips:
        raise UserError(f'{folder}: its lists name no clips')
    return {clip.path: clip.segment for clip in clips}


def find_jobs(clips, out):
    """{path: segment} → jobs (source, segment, target), the number of finished clips, and 'name: reason' of missing
    ones. Raises UserError.

    A prepared file has the time stamp of its source, so a source that was replaced is prepared again. A prepared clip
    whose source is gone stays."""
    jobs, done, missing = [], 0, []
    folder = Path(next(iter(clips), '')).parent
    present, prepared = (set(os.listdir(path)) if path.is_dir() else set() for path in (folder, out / folder.name))
    for source, segment in clips.items():
        source = Path(source)
        target = out / folder.name / f'{source.stem}.mkv'
        if source.name not in present:
            done += target.name in prepared
            missing += [] if target.name in prepared else [f'{source.name}: file missing']
        elif target.name not in prepared:
            jobs.append((source, segment, target))
        elif abs(source.stat().st_mtime_ns - target.stat().st_mtime_ns) < 2e9:                 # FAT rounds to 2 s
            done += 1
        elif is_prepared(target):
            jobs.append((source, segment, target))
        else:
            raise UserError(f'{target} exists and is no prepared clip: --out must be a folder of its own')
    return jobs, done, missing


def prepare_clip(job):
    """Write a prepared clip → '', or why it failed."""
    source, segment, target = job
    try:
        changed = source.stat().st_mtime_ns
        write_file(target, small_clip(source, segment), changed)
    except BadClip as error:
        return str(error)
    return ''


def write_file(path, content, changed=None):
    """Write a file atomically. A killed call leaves a .tmp file, which the next call replaces. changed: its time stamp,
    in ns. Raises OSError."""
    temporary = Path(f'{path}.tmp')
    try:
        temporary.write_bytes(content)
        if changed is not None:
            os.utime(temporary, ns=(changed, changed))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def prepare(data, out, workers=-1, max_bad=0.1, shard=(1, 1)):
    """Prepare the missing and changed clips of a shard (number, total) → a sentence about the result. The first shard
    also copies the lists. Raises UserError."""
    data, out = Path(data), Path(out)
    clips = list_clips(data)
    folder = Path(next(iter(clips))).parent.name                       # video, or AVE
    if (data / folder).resolve() == (out / folder).resolve():          # either may be a link
        raise UserError(f'--data {data} and --out {out} must be two folders')
    clips = dict(list(clips.items())[shard[0] - 1::shard[1]])
    jobs, done, bad = find_jobs(clips, out)
    check_share(bad, len(clips), max_bad, f'are missing in {data}: is the copy complete?', names_there(list(clips)))

    try:
        (out / folder).mkdir(parents=True, exist_ok=True)
        if shard[0] == 1:
            for path in sorted(data.iterdir()):
                if path.suffix in ('.csv', '.txt', '.json') and path.is_file():
                    write_file(out / path.name, path.read_bytes())
        results = run_jobs(prepare_clip, jobs, count_workers('clips', workers), DECODER_CRASH)
        results = show_progress(results, 'preparing clips', len(jobs))
        failed = [f'{source.name}: {reason}' for (source, _, _), reason in zip(jobs, results) if reason]
    except OSError as error:
        raise UserError(f'{error.filename or out}: {error.strerror}. Finished clips stay: the same command goes on')

    for line in bad + failed:
        print(f'left out: {line}')
    check_share(bad + failed, len(clips), max_bad, f'cannot be prepared; the others are in {out}')
    return f'{out}: {len(jobs) - len(failed)} clips prepared, {done} already there, {len(bad + failed)} left out'


def advice(datasets):
    """A list with a sentence that suggests to prepare the clips, if there are many and the first is not prepared."""
    clips = [clip for dataset in datasets for clip in getattr(dataset, 'clips', ())]       # shapes have no files
    if len(clips) < MANY_CLIPS or is_prepared(clips[0].path):
        return []
    return ['If training waits for the data loader, prepare the clips: `python data.py prepare --data '
            f'{Path(clips[0].path).parent.parent} --out SMALL`']


def main(arguments=None):
    """The command line `python data.py`. Raises UserError."""
    parser = Parser(prog='python data.py', description='Prepare the clips of a data set.')
    command = parser.add_subparsers(required=True, metavar='prepare').add_parser(
        'prepare', help='write them again, small and quick to read',
        description='Write the clips of VGGSound, AudioSet or AVE again, small and quick to read, with the same lists '
                    'and names. The same command again prepares what is missing or changed.')
    command.add_argument('--data', type=Path, required=True, help='folder of the data set, see streams/README.md')
    command.add_argument('--out', type=Path, required=True, help='folder to write: then --data of train.py and eval.py')
    command.add_argument('--workers', type=number(int, min=-1, max=1000), default=-1,
                         help='processes; -1: as for training (default -1)')
    command.add_argument('--max-bad', type=number(float, min=0, max=1), default=0.1,
                         help='share of clips that may be left out (default 0.1)')
    command.add_argument('--shard', default='1/1', help='part to prepare, for n machines: 1/n, 2/n … n/n (default 1/1)')
    args = parser.parse_args(arguments)
    shard = re.fullmatch('([0-9]{1,6})/([0-9]{1,6})', args.shard)
    if not shard or not 1 <= int(shard[1]) <= int(shard[2]):
        raise UserError(f'--shard {args.shard}: of four shards, the names are 1/4, 2/4, 3/4 and 4/4')
    print(prepare(args.data, args.out, args.workers, args.max_bad, (int(shard[1]), int(shard[2]))))
