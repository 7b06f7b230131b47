"""The tour: one clip through the whole paper, each equation with its lines of code, its numbers and a picture.

    python -m paper.tour                                        a built-in clip, the shipped initial weights
    python -m paper.tour --clip FILE --run RUN --past FILE      any video with sound, a trained model

In:  a clip, a past clip (for Eq. 4), a model.
Out: a folder with README.md and its pictures: `tour_page.md`, with what `tour_step.py` saw filled in. The page of the
     built-in clip is docs/tour/, made by `python -m paper.tour --out docs/tour`.
"""
import argparse
import dataclasses
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from avm import AVM
from config import check_config, exit_politely, parse
from data import BadClip, check_clip, read_clip
from model import AudioVideoMAE
from paper import tour_pictures, tour_words
from paper.looks import PRINT
from paper.tour_step import watch
from patches import UserError
from run import Recorded
from streams.scenes import truth
from streams.shapes import stream
from weights import load_weights

PAIRS = 4        # in the batch: the clip and, for wrong pairs and negatives, three built-in ones
PAGE = Path(__file__).with_name('tour_page.md')


# ------------------------------------------------------------------------------------ what is shown

def open_model(path):
    """A run's folder or one of its models, or None: the shipped initial weights → cfg of a FLAVA step, backbone, AVM,
    and what to call it. Raises UserError."""
    if path is None:
        cfg, _ = parse(['--device', 'cpu'])
        backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
        load_weights(cfg.init, backbone, avm)
        return cfg, backbone, avm, 'the shipped initial weights, `weights/shapes_small.pt`'
    run = Recorded(path, device='cpu')
    # Not `run.models()`, which names the tasks, and for that wants the data to be there.
    files = [run.file] if run.file else sorted((run.folder / 'models').glob('*.pt'), key=lambda file: int(file.stem))
    if not files:
        raise UserError(f'{run.folder / "models"} holds no models: has the run begun?')
    # However it was trained, it is shown a step of FLAVA, with the paper's selection.
    cfg = dataclasses.replace(run.cfg, method='flava', selection='both', audio_selection='time')
    check_config(cfg)
    backbone, avm = (module.requires_grad_(True).train() for module in run.load(files[-1]))
    return cfg, backbone, avm, f'`{files[-1].name}` of the run `{run.folder.resolve().name}`'


def read_file(path, cfg):
    """A video with sound, as evaluation sees it → item. Raises UserError with the words with which training leaves it
    out."""
    try:
        reason, _ = check_clip(path)
        if reason:
            raise BadClip(reason)
        audio, video = read_clip(path, cfg)
    except BadClip as bad:
        raise UserError(f'{Path(path).name}: {bad}')
    return dict(audio=audio, video=video)


def built_in(cfg):
    """Retrieval clips of the first and the second task of the built-in stream."""
    of_stream = stream(cfg, 0, test_clips=12, pretrain_clips=1, clips_per_task=1, silent=(1, 1))
    return of_stream.test[0], of_stream.test[1]


def telling(dataset, cfg):
    """The first clip of a built-in task that has a silent object beside the source, and both seen and heard."""
    for index in range(len(dataset)):
        found = truth(dataset.scene(index), cfg)
        if len(dataset.scene(index).tracks) > 1 and all(x.sum() >= 4 for x in found):
            return index
    return 0


def open_clips(args, cfg):
    """→ batch of PAIRS with the clip first, the past clip as a batch of one, (truth_a, truth_v) or (None, None), and
    what to call both"""
    past_task, task = built_in(cfg)
    index, past_index = telling(task, cfg), telling(past_task, cfg)
    name, past_name = (f'a built-in clip, {"; ".join(describe(d.scene(i)))}'
                       for d, i in ((task, index), (past_task, past_index)))
    clip, past = task[index, 0], past_task[past_index, 0]
    true = truth(task.scene(index), cfg)
    if args.clip:
        clip, true, name = read_file(args.clip, cfg), (None, None), f'`{args.clip.name}`'
    if args.past:
        past, past_name = read_file(args.past, cfg), f'`{args.past.name}`'
    items = [clip] + [task[(index + k) % len(task), 0] for k in range(1, PAIRS)]
    return batch_of(items), batch_of([past]), true, name, past_name


def describe(scene):
    """What sounds in a built-in clip, and what else is to be seen."""
    sounding, *silent = [track.kind.name for track in scene.tracks]
    return f'a {sounding} that sounds', *(f'a {other} that does not' for other in silent)


def batch_of(items):
    return {name: torch.stack([item[name] for item in items]) for name in ('audio', 'video')}


# ----------------------------------------------------------------------------------------- the page

def write(out, seen, true, more):
    """README.md and its pictures into the folder. more: {name: text} for the page, beside the step's own facts"""
    out.mkdir(parents=True, exist_ok=True)
    words, drawn = tour_words.facts(seen) | more, []

    def picture(name):
        drawn.append(name)
        file = f'{len(drawn):02d}-{name.replace("_", "-")}.png'
        with plt.rc_context(PRINT):
            figure = getattr(tour_pictures, name)(seen, true)
            figure.savefig(out / file, dpi=100, metadata={'Software': None}, pil_kwargs={'optimize': True})
            plt.close(figure)
        return f'![{name.replace("_", " ")}]({file})'

    def filled(match):
        word, *rest = match[1].split()
        if word in ('code', 'step'):
            return getattr(tour_words, word)(out, *rest)
        if word in ('tensors', 'stored', 'terms', 'gradients'):
            return getattr(tour_words, word)(seen, *rest)
        return picture(*rest) if word == 'picture' else words[word]
    text = re.sub(r'\{\{([\w.: ]+)\}\}', filled, PAGE.read_text())
    (out / 'README.md').write_text(text)


def main(arguments=None):
    """The command line: a clip → the page of its tour and its pictures."""
    parser = argparse.ArgumentParser(prog='python -m paper.tour', description=__doc__.split('\n')[0])
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--clip', type=Path, help='a video with sound; without it, a built-in clip')
    parser.add_argument('--run', type=Path, help='a run\'s folder, of which the last model is taken, or one of its '
                        'models; without it, the shipped initial weights')
    parser.add_argument('--past', type=Path, help='the past clip; without it, a built-in one of another task')
    parser.add_argument('--out', type=Path, default=Path('tour'), help='folder to write (default tour)')
    args = parser.parse_args(arguments)
    with exit_politely():
        cfg, backbone, avm, model = open_model(args.run)
        batch, past, true, name, past_name = open_clips(args, cfg)
        known = 'Where its source is to be seen and heard is known, and outlined in white in the pictures.'
        write(args.out, watch(cfg, backbone, avm, batch, past), true,
              dict(clip=name, past=past_name, model=model, truth=known if true[0] is not None else
                   'Where its source is, nobody has said, so nothing is outlined.'))
        print(args.out / 'README.md')


if __name__ == '__main__':
    main()
