"""Preparing a data set: its clips written again, small and quick to read, so that training need not wait (ours).

In:  a folder laid out as VGGSound, AudioSet or AVE.
Out: another folder with the same lists and names. A clip is a Matroska file of eight frames a second, each an image of
     its own, the shorter side at most 256; and of uncompressed sound at 16 kHz. It gives nearly the same tensors.

    python data.py prepare --data DIR --out SMALL
"""
import io
import math
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from config import Sizes, UserError
from streams.audioset import BALANCED, MIDS, read_audioset
from streams.ave import read_ave
from streams.common import DECODER_CRASH, check_share, progress_bar
from streams.loading import count_workers, run_jobs
from streams.vggsound import read_vggsound
from utils.checkpoint import atomic_file, check_writable
from utils.cli import Parser, number
from utils.video import (SAMPLE_RATE, TOLERANCE, BadClip, decode_audio, display_size, frames_at, is_upright, open_clip,
                         upright)

FPS, SHORTER_SIDE, SMALL_PIXELS = 8, 256, 2 ** 18  # frames a second; their shorter side and number of pixels, at most
QUANTIZERS = (5, 6, 7, 9, 12, 16, 22, 31)        # of MJPEG; at 5, no difference is visible
SMALL_BYTES, PER_SECONDS = 1_500_000, 10         # of a prepared clip, for each ten seconds, where QUANTIZERS suffice
COMMENT = 'prepared clip: 8 frames a second, 16 kHz'          # in the file


# ----------------------------------------------------------------------------------- one clip

def small_clip(path, segment=None):
    """A clip, or a segment (start, seconds) of a whole video → the bytes of its prepared file. Raises BadClip."""
    with open_clip(path, segment) as clip:
        waveform, audio_start = decode_audio(clip)
        targets = frame_grid(clip.start, clip.end)
        pictures = _pictures(clip, targets)
    delay = round(1000 * (audio_start - targets[0]))           # ms; below 0, the sound starts before the picture
    limit = SMALL_BYTES * max(1, len(targets) / FPS / PER_SECONDS)
    for quantizer in QUANTIZERS:
        content = _matroska(pictures, max(0, -delay), waveform, max(0, delay), quantizer)
        if len(content) <= limit:
            break
    return content


def frame_grid(start, end):
    """The seconds from start to end of a clip → the seconds whose frames are kept, 1/8 s apart.

    The grid is centred on the middle of the clip: `read_clip` takes its frames at half seconds from there in
    evaluation, and finds the same ones. Of a clip shorter than its window it takes them from the start, and holds the
    last frame. The window is that of the paper's size: four seconds."""
    span = end - start
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
            if is_upright(frame):                                  # not by way of RGB: that costs 0.7 dB
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
    scale = min(1, SHORTER_SIDE / shorter, math.sqrt(SMALL_PIXELS / (width * height)))
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


# ------------------------------------------------------------------------------- a folder of clips

def list_clips(folder):
    """The clips in the lists of a folder → {path: (start, seconds) of its segment, or None}. Raises UserError."""
    if (folder / 'vggsound.csv').is_file():
        clips = read_vggsound(folder)
    elif (folder / MIDS).is_file():
        clips = read_audioset(folder, sorted(path.name for path in folder.glob('[!.]*segments.csv')) or [BALANCED])
    elif (folder / 'Annotations.txt').is_file():
        events, _, notes = read_ave(folder)
        clips = [event for part in events.values() for event in part]
        for note in notes:
            print(note)
    else:
        clips = []
    if not clips:
        raise UserError(f'{folder} has no list with clips: vggsound.csv, {MIDS} or Annotations.txt '
                        '(streams/README.md). Folders of classes cannot be prepared')
    return {clip.path: clip.segment for clip in clips}


def prepare_clip(source, segment, target):
    """Write a prepared clip atomically → None, or why it cannot be prepared."""
    try:
        content = small_clip(source, segment)
    except BadClip as error:
        return str(error)
    with atomic_file(target) as temporary:                     # two calls may write into one folder
        temporary.write_bytes(content)


def prepare(data, out, workers=-1, max_bad=0.1):
    """Copy the lists and prepare the clips that are not in the folder `out` → a sentence about the result. Raises
    UserError."""
    data, out = Path(data), Path(out)
    clips = list_clips(data)
    folder = Path(next(iter(clips))).parent.name                       # video, or AVE
    if (data / folder).resolve() == (out / folder).resolve():          # either may be a link
        raise UserError(f'--data {data} and --out {out} must be two folders')

    # which clips are missing
    reasons = {path: None if os.path.exists(path) else 'file missing' for path in clips}
    check_share(reasons, max_bad, f'are missing in {data}')
    check_writable(out / folder, '--out')
    jobs = [(path, segment, out / folder / f'{Path(path).stem}.mkv') for path, segment in clips.items()]
    jobs = [job for job in jobs if not reasons[job[0]] and not job[2].exists()]

    # copy the lists, and prepare these clips
    for path in data.iterdir():
        if path.suffix in ('.csv', '.txt', '.json') and path.is_file():
            with atomic_file(out / path.name) as temporary:
                shutil.copyfile(path, temporary)
    results = run_jobs(prepare_clip, jobs, count_workers('clips', workers), DECODER_CRASH)
    for (path, _, _), reason in zip(jobs, progress_bar(results, 'preparing clips', len(jobs))):
        reasons[path] = reason
    for path, reason in sorted(reasons.items(), key=lambda item: item[1] != 'file missing'):
        if reason:
            print(f'left out: {Path(path).name}: {reason}')
    bad = check_share(reasons, max_bad, f'cannot be prepared; the others are in {out}')
    return f'{out}: {len(clips) - len(bad)} of {len(clips)} clips are prepared, {len(bad)} are left out'


def main(arguments=None):
    """The command line `python data.py`. Raises UserError."""
    parser = Parser(prog='python data.py', description='Prepare the clips of a data set.')
    command = parser.add_subparsers(required=True, metavar='prepare').add_parser(
        'prepare', help='write them again, small and quick to read',
        description='Write the clips of VGGSound, AudioSet or AVE again, small and quick to read, with the same lists '
                    'and names. The same command again prepares the clips that are missing.')
    command.add_argument('--data', type=Path, required=True, help='folder of the data set, see streams/README.md')
    command.add_argument('--out', type=Path, required=True, help='folder to write: then --data of train.py and eval.py')
    command.add_argument('--workers', type=number(int, min=-1, max=1000), default=-1,
                         help='processes; -1: as for training (default -1)')
    command.add_argument('--max-bad', type=number(float, min=0, max=1), default=0.1,
                         help='share of clips that may be left out (default 0.1)')
    args = parser.parse_args(arguments)
    print(prepare(args.data, args.out, args.workers, args.max_bad))
