"""A run as it lies on disk: its options, its data, and the model as it was after each task.

In:  the folder of a run that `train.py` made.
Out: what the downstream tasks (§5, App. E, G) and the figures start from; and, in RUN/eval, what they found.
"""
import json
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import torch

from avm import AVM
from config import Config
from datasets import open_stream
from model import AudioVideoMAE, UserError
from weights import load_weights


class Recorded:
    """path: a run's folder, or a file in it. Raises UserError where there is no run."""

    def __init__(self, path, workers=0, device=''):
        path = Path(path)
        if not path.exists():
            raise UserError(f'{path}: there is no such run')
        self.file = None if path.is_dir() else path            # one model instead of all of the run's
        self.folder = path if path.is_dir() else path.parent.parent if path.parent.name == 'models' else path.parent
        self.cfg = read_config(self.folder)
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        self.workers = workers

    @cached_property
    def stream(self):
        return open_stream(self.cfg, self.cfg, self.workers)

    def models(self):
        """[(t, name, file)]: the model after t tasks, the name being that of the task just learned."""
        if self.file:
            return [(len(self.stream.names), self.file.stem, self.file)]
        files = sorted((self.folder / 'models').glob('*.pt'), key=lambda file: int(file.stem))
        if not files:
            raise UserError(f'{self.folder / "models"} holds no models: has the run begun?')
        names = ['initial', *self.stream.names]
        if self.cfg.method == 'multitask':                     # its one task is all of them
            return [(0, 'initial', files[0])] + [(len(self.stream.names), 'all tasks', file) for file in files[1:]]
        return [(int(file.stem), names[int(file.stem)], file) for file in files]

    def load(self, file):
        """→ backbone, avm, on the device, without gradients"""
        backbone, avm = AudioVideoMAE(self.cfg), AVM(self.cfg.embed_dim, self.cfg.avm_heads)
        load_weights(file, backbone, avm)
        return tuple(module.to(self.device).eval().requires_grad_(False) for module in (backbone, avm))

    def write(self, name, results, table, figure):
        """RUN/eval/name.json, .md and .png"""
        folder = self.folder / 'eval'
        folder.mkdir(exist_ok=True)
        (folder / f'{name}.json').write_text(json.dumps(results, indent=1))
        (folder / f'{name}.md').write_text(table + '\n')
        figure.savefig(folder / f'{name}.png', dpi=130, bbox_inches='tight')
        return [folder / f'{name}.{kind}' for kind in ('json', 'md', 'png')]

    def read(self, name):
        """What `write` left, or None."""
        file = self.folder / 'eval' / f'{name}.json'
        return json.loads(file.read_text()) if file.exists() else None


def read_config(folder):
    """RUN/config.json → Config. Raises UserError."""
    file = Path(folder) / 'config.json'
    try:
        saved = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{folder} is no run of train.py: {file} '
                        + ('is not there' if isinstance(error, FileNotFoundError) else 'cannot be read'))
    known = {field.name for field in fields(Config)}
    return Config(**{name: value for name, value in saved.items() if name in known})
