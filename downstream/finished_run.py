"""The folder of a run of train.py, finished or not: what evaluations and figures start from.

In:  a run's folder, or one of its models.
Out: its options, its stream, its models, and the results of its evaluations.
"""
import dataclasses
import json
from functools import cached_property
from pathlib import Path

from avm import AVM
from config import Config, Sizes, UserError
from model import AudioVideoMAE
from streams.catalogue import open_stream
from streams.common import data_changes, describe
from streams.loading import count_workers
from utils.checkpoint import config_changes, read_checkpoint, with_older_defaults, write_text
from utils.distributed import get_device, print_once
from utils.weights import load_weights


class FinishedRun:
    """A run's folder, or one of its models: what evaluations and figures start from. Raises UserError if there is none.

    last: only the model after the last task; data: where the clips lie now, if they have moved
    """

    def __init__(self, path, workers=-1, device='', last=False, data=None):
        path = Path(path)
        if not path.exists():
            raise UserError(f'{path}: no such run')
        self.file = None if path.is_dir() else path                    # one model instead of all
        self.folder = path.parent if self.file else path
        if self.file and self.folder.name == 'models':
            self.folder = self.folder.parent
        self.cfg = read_config(self.folder)
        if data:                                       # lists in the old folder have moved, too
            for name in ('tasks', 'retrieval_list'):
                path = Path(getattr(self.cfg, name))
                if path.name and path.is_relative_to(self.cfg.data):
                    setattr(self.cfg, name, str(data / path.relative_to(self.cfg.data)))
            self.cfg.data = str(data)
        self.device, self.workers, self.last = get_device(device), count_workers(self.cfg.dataset, workers), last

    @cached_property
    def stream(self):
        """The Stream that the run was trained on. Raises UserError if its clips have changed."""
        # without the clips of the initial pre-training, so the share of bad ones may be above the training's --max-bad
        options = dict(pretrain_steps=0, pretrain_data='', max_bad=max(0.5, self.cfg.max_bad))
        stream = open_stream(dataclasses.replace(self.cfg, **options), self.workers)
        file = self.folder / 'data.json'
        changes = data_changes(json.loads(file.read_text('utf-8')) if file.exists() else {}, describe(stream))
        if changes:
            raise UserError(f'{self.folder} was trained on other data than {self.cfg.data}: {changes}')
        return stream

    @cached_property
    def results(self):
        """results.json. Raises UserError where the run has not finished."""
        try:
            return json.loads((self.folder / 'results.json').read_text('utf-8'))
        except (OSError, ValueError):
            raise UserError(f'{self.folder} has no readable results.json: finish it with `python train.py … --resume`')

    @cached_property
    def names(self):
        """The names of the tasks; of a finished run without scanning its clips"""
        finished = (self.folder / 'results.json').exists()
        return self.results['tasks'] if finished else self.stream.names

    def model_files(self):
        """The files of all models, in order. Raises UserError if there are none."""
        files = sorted((self.folder / 'models').glob('[0-9]*.pt'), key=lambda file: int(file.stem))
        if not files:
            raise UserError(f'{self.folder / "models"} holds no models: the run has not finished its first step')
        return files

    def models(self):
        """[(t, name, file)]: the model after t tasks; name: the task just learned"""
        num_tasks, names = len(self.names), ['initial', *self.names]
        if self.file and self.file.parent.name != 'models':            # last.pt, or weights
            saved = read_checkpoint(self.file)
            learned = saved.get('task', num_tasks) if isinstance(saved, dict) else num_tasks   # last.pt in mid-stream
            models = [(learned, names[learned], self.file)]
        else:
            models = [(int(file.stem), names[int(file.stem)], file) for file in self.model_files()]
            models = [model for model in models if not self.file or model[2].name == self.file.name]
        if self.cfg.method == 'multitask':                             # its one task is all tasks
            models = [(num_tasks, 'all tasks', file) if t else (t, name, file) for t, name, file in models]
        return models[-1:] if self.last else models

    def load_model(self, file):
        """→ backbone, avm, on the device, without gradients"""
        saved = read_checkpoint(file)
        options = saved.get('config') if isinstance(saved, dict) else None
        changes = config_changes(options, dataclasses.asdict(self.cfg), Sizes.__dataclass_fields__) if options else []
        if changes:
            raise UserError(f'{self.folder / "config.json"} does not belong to {file}: {"; ".join(changes[:3])}')
        backbone, avm = AudioVideoMAE(self.cfg), AVM(self.cfg.embed_dim, self.cfg.avm_heads)
        load_weights(file, backbone, avm)
        return tuple(module.to(self.device).eval().requires_grad_(False) for module in (backbone, avm))

    def eval_path(self, name, kind):
        """RUN/eval/NAME.KIND; the results of a single model have a suffix"""
        (self.folder / 'eval').mkdir(exist_ok=True)
        suffix = '-last' if self.last else ''
        if self.file:
            suffix = f'-{self.file.stem}'
        return self.folder / 'eval' / f'{name}{suffix}.{kind}'

    def write(self, name, results, table, figure):
        """RUN/eval/NAME.json, .md and .png → their paths"""
        files = [self.eval_path(name, kind) for kind in ('json', 'md', 'png')]
        write_text(files[0], json.dumps(results, indent=1))
        write_text(files[1], table + '\n')
        figure.savefig(files[2], dpi=130, bbox_inches='tight')
        return files

    def find(self, name):
        """The JSON file of the results of all models, or else of the last one; those of the whole stream first. None if
        there is neither"""
        files = [self.folder / 'eval' / f'{name}{suffix}.json' for suffix in ('', '-last')]
        files = [file for file in files if file.exists()]
        complete = [file for file in files if not ended_early(json.loads(file.read_text('utf-8')))]
        return next(iter(complete + files), None)

    def load(self, name):
        """The results that `write` left, or None"""
        file = self.find(name)
        return file and json.loads(file.read_text('utf-8'))

    def load_tensors(self, name):
        """RUN/eval/NAME.pt of the same evaluation, or None"""
        file = self.find(name)
        file = file and file.with_suffix('.pt')
        return read_checkpoint(file) if file and file.exists() else None


def read_config(folder):
    """RUN/config.json → Config. Unknown options are ignored with a warning. Raises UserError."""
    folder = Path(folder)
    file = folder / 'config.json'
    try:
        saved = with_older_defaults(json.loads(file.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError) as error:
        reason = 'does not exist' if isinstance(error, FileNotFoundError) else 'cannot be read'
        raise UserError(f'{folder if folder.name else folder.resolve()} is not a run of train.py: {file} {reason}')
    return config_from(saved, file)


def config_from(saved, file):
    """Options that a file holds → Config. Unknown options are ignored with a warning. Raises UserError."""
    unknown = sorted(set(saved) - set(Config.__dataclass_fields__))
    if unknown:
        print_once(f'{file}: unknown options are ignored: {", ".join(unknown[:3])}')
    try:
        return Config(**{name: value for name, value in saved.items() if name not in unknown})
    except UserError as error:
        raise UserError(f'{file}: {error}')


# ------------------------------------------------------------------- where an evaluation ends

def last_task(results):
    """results of an evaluation → the task that its last model has just learned"""
    after = results.get('after', [])
    return after[-1] if isinstance(after, list) and after else after


def ended_early(results):
    """Whether an evaluation ends before the last task, because the run had not finished."""
    return last_task(results) in ['initial', *results.get('tasks', [])][:-1]
