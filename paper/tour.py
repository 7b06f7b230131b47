"""The tour: one clip through the whole paper. Each equation with its code, its numbers and a picture.

    python -m paper.tour --out docs/tour                        the built-in clip: the page of the documentation
    python -m paper.tour --clip FILE --run RUN --past FILE      any video with sound, a trained model

In:  a clip, a past clip (for Eq. 4), a model.
Out: a folder with README.md, its pictures, and tour.ipynb: the same stops as a notebook.

Both come from `tour_page.md`: text, and the code of each stop. This module runs the code, one block after the other.
Then it replaces each {{expression}} in the text by its value.
"""
import ast
import dataclasses
import json
import os
import re
from pathlib import Path

import torch

from avm import AVM
from config import Config, UserError, preset
from data import check_clip, read_clip
from downstream.finished_run import FinishedRun
from downstream.maps import source_of_clip
from model import AudioVideoMAE
from paper.tour_pictures import png
from streams import shapes
from utils.checkpoint import check_writable, write_text
from utils.cli import cli_errors, Parser
from utils.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_name('tour_page.md')
WEIGHTS = 'weights/shapes_flava.pt'
PAIRS = 4        # of the batch: the clip, and three built-in clips as negatives and mismatched pairs


# ------------------------------------------------------------------------ what the page's code calls

def open_model(path=None):
    """A run's folder, one of its models, or None for the weights in `weights/` → Config of a FLAVA step, backbone, AVM.
    Raises UserError."""
    if path is None:
        cfg = Config(**preset('shapes'), data_seed=1)
        backbone, avm = AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)
        load_weights(ROOT / WEIGHTS, backbone, avm)
        return cfg, backbone, avm
    run = FinishedRun(path, device='cpu')
    file = run.file or run.model_files()[-1]
    backbone, avm = (module.requires_grad_(True).train() for module in run.load_model(file))
    # the tour shows FLAVA's step, whatever method trained the model
    cfg = dataclasses.replace(run.cfg, method='flava', selection='both', audio_selection='time', scorer='full',
                              memory_size=2 * PAIRS)
    return cfg, backbone, avm


def open_clips(cfg, clip=None, past=None):
    """→ batch of PAIRS, the clip first; batch of one past clip; (source_a, source_v) of the clip, or (None, None);
    names of both clips.

    clip, past: files of videos with sound. The built-in ones are retrieval clips of the last task and of the first. In
    each of these, one object sounds and one is silent.
    """
    seed = cfg.seed if cfg.data_seed < 0 else cfg.data_seed
    first, *_, last = shapes.stream(cfg, seed, clips_per_task=1, test_clips=60, pretrain_clips=1).test
    items, past_item, source = [last[k, 0] for k in range(PAIRS)], first[0, 0], source_of_clip(last, cfg)
    names = [f'built-in: {sounding.kind.name} (with sound) and {silent.kind.name} (silent)'
             for sounding, silent in (last.scene(0).tracks, first.scene(0).tracks)]
    if clip:
        items[0], source, names[0] = read_file(clip, cfg), (None, None), f'`{Path(clip).name}`'
    if past:
        past_item, names[1] = read_file(past, cfg), f'`{Path(past).name}`'
    batch = {key: torch.stack([item[key] for item in items]) for key in ('audio', 'video')}
    return batch, {key: past_item[key][None] for key in batch}, source, names


def read_file(path, cfg):
    """A video with sound, as evaluation reads it → {audio, video}. Raises UserError where training would skip it."""
    reason, _ = check_clip(path)
    if reason:
        raise UserError(f'{path}: {reason}')
    audio, video = read_clip(path, cfg)
    return dict(audio=audio, video=video)


def gradient_length(loss, module):
    """Length of the gradient of a loss in a module's parameters; 0 where no gradient arrives"""
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    lengths = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(lengths).norm().item() if lengths else 0.


# ------------------------------------------------------------------------- what the page's text calls

def digits(x):
    """A number with three digits; any other value as it is"""
    number = x.item() if torch.is_tensor(x) else x
    return f'{number:.3g}' if isinstance(number, float) else str(number)


def tensor(x):
    """A tensor (B, ...) → its shape, and its range on the clip, as two cells"""
    low, high = digits(x[0].min()), digits(x[0].max())
    return f'{" × ".join(map(str, x.shape))} | {low if x[0].numel() == 1 else f"{low} … {high}"}'


def relative(path, out):
    """A path as seen from the folder of the page"""
    return Path(os.path.relpath(path, Path(out).resolve())).as_posix()


def links_from(out):
    """→ link('file.py:name', …): links from the page to these files"""
    def link(*places):
        found = []
        for file, name in (place.split(':') for place in places):
            found.append(f'[`{file}`]({relative(ROOT / file, out)}), `{name}`')
        return 'Code: ' + '; '.join(found) + '.'
    return link


# ------------------------------------------------------------------------------- page and notebook

def split_page(text):
    """→ [(text, code)] in turn: blocks "```python" are code"""
    parts = re.split(r'^```python\n(.*?)^```\n', text, flags=re.M | re.S)
    return list(zip(parts[::2], [*parts[1::2], '']))


def run_code(code, names):
    """Run a block → the code without a last line that makes a figure, and that figure or None"""
    last = ast.parse(code).body[-1]
    if not isinstance(last, ast.Expr):
        exec(code, names)
        return code, None
    shown = ''.join(code.splitlines(keepends=True)[:last.lineno - 1])
    exec(shown, names)
    return shown, eval(ast.unparse(last), names)


def write(out, run=None, clip=None, past=None):
    """Write README.md, its pictures and tour.ipynb → the names that the page's code has defined"""
    files = [path and str(Path(path).resolve()) for path in (run, clip, past)]
    page = PAGE.read_text('utf-8').replace('None, None, None', ', '.join(map(repr, files)))
    page = page.replace("'../..'", repr(relative(ROOT, out)))
    # run the code of all stops
    names = {}
    parts = [(text, code, *(run_code(code, names) if code else ('', None))) for text, code in split_page(page)]

    # README: the text, with the code of each stop and its picture
    check_writable(out, '--out')
    model = f'`{run}`' if run else f'`{WEIGHTS}`, FLAVA after the six tasks of the built-in stream'
    values = names | dict(tensor=tensor, link=links_from(out), model=model, digits=digits)
    readme, cells = '', []
    for text, code, shown, figure in parts:
        text = re.sub(r'\{\{(.+?)\}\}', lambda match: digits(eval(match[1], values)), text)
        readme += text
        cells.append(dict(cell_type='markdown', metadata={}, source=text.strip()))
        if code:
            cells.append(dict(cell_type='code', metadata={}, source=code.strip(), outputs=[], execution_count=None))
            readme += f'```python\n{shown}```\n'
        if figure:
            stop = int(re.findall(r'^## (\d+)\.', text, re.M)[-1])
            file = f'stop-{stop:02d}.png'
            (out / file).write_bytes(png(figure))
            readme += f'\n![picture of stop {stop}]({file})\n'
    write_text(out / 'README.md', readme.replace('\n\n\n', '\n\n'))

    # the same stops as a notebook
    kernel = dict(display_name='Python 3', language='python', name='python3')
    notebook = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=4)
    write_text(out / 'tour.ipynb', json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')
    return names


def main(arguments=None):
    """The command line: a clip → its page, pictures and notebook."""
    parser = Parser(prog='python -m paper.tour', description=__doc__.split('\n')[0])
    parser.add_argument('--clip', type=Path, help='a video with sound; default: a built-in clip')
    parser.add_argument('--past', type=Path, help='the past clip; default: a built-in clip of another task')
    parser.add_argument('--run', type=Path, help=f'a run, for its last model, or one of its models; default: {WEIGHTS}')
    parser.add_argument('--out', type=Path, default=Path('tour'), help='folder to write to (default tour)')
    args = parser.parse_args(arguments)
    with cli_errors():
        write(args.out, args.run, args.clip, args.past)
        print(args.out / 'README.md')


if __name__ == '__main__':
    main()
