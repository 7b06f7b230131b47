"""A run as it lies on disk: its options, its data, and the model as it was after each task.

In:  the folder of a run that `train.py` made.
Out: what the downstream tasks (§5, App. E, G) and the figures start from; and, in RUN/eval, what they found.
"""
import json
from dataclasses import fields
from functools import cached_property
from pathlib import Path

from avm import AVM
from config import Config, open_device
from datasets import count_workers, open_stream
from model import AudioVideoMAE, UserError
from weights import load_weights


class Recorded:
    """path: a run's folder, or one of its models. last: of all models only the last. Raises UserError where there is no run."""

    def __init__(self, path, workers=-1, device='', last=False):
        path = Path(path)
        if not path.exists():
            raise UserError(f'{path}: there is no such run')
        self.file = None if path.is_dir() else path            # one model instead of all of the run's
        self.folder = path if path.is_dir() else path.parent.parent if path.parent.name == 'models' else path.parent
        self.cfg = read_config(self.folder)
        self.device, self.workers, self.last = open_device(device), count_workers(self.cfg.dataset, workers), last

    @cached_property
    def stream(self):
        return open_stream(self.cfg, self.cfg, self.workers)

    def models(self):
        """[(t, name, file)]: the model after t tasks, the name being that of the task just learned."""
        if self.file and self.file.parent.name != 'models':    # last.pt, or one of another run
            return [(len(self.stream.names), self.file.stem, self.file)]
        files = sorted((self.folder / 'models').glob('*.pt'), key=lambda file: int(file.stem))
        if not files:
            raise UserError(f'{self.folder / "models"} holds no models: has the run begun?')
        names = ['initial', *self.stream.names]
        found = [(int(file.stem), names[int(file.stem)], file) for file in files]
        if self.cfg.method == 'multitask':                     # its one task is all of them
            found = [(len(self.stream.names), 'all tasks', file) if t else (t, name, file) for t, name, file in found]
        return [entry for entry in found if entry[2].name == self.file.name] if self.file else found[-1 if self.last else 0:]

    def load(self, file):
        """→ backbone, avm, on the device, without gradients"""
        backbone, avm = AudioVideoMAE(self.cfg), AVM(self.cfg.embed_dim, self.cfg.avm_heads)
        load_weights(file, backbone, avm)
        return tuple(module.to(self.device).eval().requires_grad_(False) for module in (backbone, avm))

    def write(self, name, results, table, figure):
        """RUN/eval/name.json, .md and .png"""
        files = [self.place(name, kind) for kind in ('json', 'md', 'png')]
        files[0].write_text(json.dumps(results, indent=1))
        files[1].write_text(table + '\n')
        figure.savefig(files[2], dpi=130, bbox_inches='tight')
        return files

    def place(self, name, kind):
        """RUN/eval/name.kind; what is found of one model has its own name, so as not to replace what was found of all"""
        (self.folder / 'eval').mkdir(exist_ok=True)
        one = f'-{self.file.stem}' if self.file else '-last' if self.last else ''
        return self.folder / 'eval' / f'{name}{one}.{kind}'

    def found(self, name, kind):
        """The file of what was found of all models, or else of the last; None where neither is."""
        files = (self.folder / 'eval' / f'{name}{which}.{kind}' for which in ('', '-last'))
        return next((file for file in files if file.exists()), None)

    def read(self, name):
        """What `write` left, or None."""
        file = self.found(name, 'json')
        return file and json.loads(file.read_text())


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
