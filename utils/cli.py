"""The command line of train.py, made from Config; and what every command line here shares.

In:  the words of a command line.
Out: a Config; or one line that says what is wrong, and exit code 2.
"""
import argparse
import contextlib
import dataclasses
import difflib
import errno
import multiprocessing
import os
import signal
import sys

from config import (BENCHMARK, DATASET_PRESETS, PRESETS, PRETRAINED, Config, Sizes, UserError, bounds_text, in_bounds,
                    preset, reads_option)
from utils.distributed import get_world_size

GROUPS = {'image_size': 'sizes', 'dataset': 'data', 'method': 'method', 'lr': 'training', 'size': 'run'}   # first fields


def flag_name(field):
    """'batch_size' → '--batch-size'"""
    return '--' + field.replace('_', '-')


def did_you_mean(name, known):
    """'; did you mean …?' if a known name is similar, else '.'"""
    similar = ' or '.join(map(repr, difflib.get_close_matches(name, known, 3, 0.6)))
    return f'; did you mean {similar}?' if similar else '.'


def number(kind, **bounds):
    """An argparse type: int or float within bounds (min, max, over, under)"""
    def read(word):
        try:
            value = kind(word)
        except ValueError:
            value = float('nan')
        if not in_bounds(value, bounds):
            raise argparse.ArgumentTypeError(f'{word} must be {bounds_text(kind, bounds)}')
        return value
    return read


def one_of(names):
    """An argparse type: one of these names"""
    def read(word):
        if word not in names:
            raise argparse.ArgumentTypeError(f'unknown name {word!r}{did_you_mean(word, names)} Known: '
                                             f'{", ".join(names)}')
        return word
    return read


class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f'error: {message.rstrip(".")}; see --help\n')


# -------------------------------------------------------------------------------------- train.py

def make_parser():
    """The parser of train.py: an option for each field of Config."""
    parser = Parser(prog='train.py', usage='python train.py [--OPTION VALUE ...] [--resume]',
                    description='Train on a stream of audio-video tasks (Algorithm 1).',
                    epilog='N1, N2, … are notes of docs/paper-notes.md.')
    group = None
    for field in dataclasses.fields(Config):
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        bounds, choices = field.metadata['bounds'], field.metadata['choices']
        names = [flag_name(field.name)] + (['--galleries'] if field.name == 'candidate_sets' else [])   # its old name
        group.add_argument(
            *names, metavar=field.name.upper(), default=argparse.SUPPRESS, help=help_text(field).replace('%', '%%'),
            type=str if field.type is str and not choices else one_of(choices) if choices else
            number(field.type, **bounds))
    group.add_argument('--resume', action='store_true', help='continue from the last checkpoint of this run')
    return parser


def help_text(field):
    """Meaning, choices or range, and the defaults of a field"""
    parts = [field.metadata['help']]
    if field.metadata['choices']:
        parts.append(f'one of {", ".join(field.metadata["choices"])}')
    elif field.type is not str:
        parts.append(bounds_text(field.type, field.metadata['bounds']))
    presets = {'small': PRESETS['small'], 'small shapes': BENCHMARK, **DATASET_PRESETS}
    defaults = [f'default {field.default}'] if field.default != '' else []
    defaults += [f'{name}: {options[field.name]}' for name, options in presets.items() if field.name in options]
    return '; '.join(parts) + (f' ({"; ".join(defaults)})' if defaults else '')


def parse(arguments=None):
    """The words of a command line → Config, whether to resume. Raises UserError."""
    parser = make_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        parser.error(f'unknown option {unknown[0]}{did_you_mean(unknown[0].split("=")[0], known)}')
    given = vars(given)
    resume = given.pop('resume')
    options = preset(given.get('dataset', 'shapes'), given.get('size', '')) | given

    # small shapes start from the weights in weights/, unless an option asks for other ones
    own_weights = any(name == 'init' or name.startswith('pretrain_') or name in Sizes.__dataclass_fields__
                      for name in given)
    if (options['dataset'], options['size']) == ('shapes', 'small') and not own_weights and PRETRAINED.exists():
        options |= dict(init=str(PRETRAINED), pretrain_steps=0)
    if options['dataset'] != 'shapes':
        options.setdefault('data', f'data/{options["dataset"]}')
    cfg = Config(**options)
    cfg.out = cfg.out or f'runs/{cfg.dataset}-{cfg.size}-{cfg.method}-{cfg.seed}'
    return cfg, resume


def unused_flags(arguments, cfg):
    """The words of a command line → a sentence for each option that this run does not read"""
    given = vars(make_parser().parse_args(arguments))
    return [f'{flag_name(field.name)} has no effect here: it applies to {field.metadata["applies_to"]}'
            for field in dataclasses.fields(Config) if field.name in given and not reads_option(cfg, field.name)]


# ------------------------------------------------------------------------------------------ errors

def loading_error(error):
    """A RuntimeError of a data loader → a sentence for the user; None for any other error. Ends the workers."""
    text = str(error)
    # "Caught …" is an error in the code of a data set: its traceback is useful
    failed_worker = 'DataLoader' in text and not text.startswith('Caught ')
    if not failed_worker and 'shared memory' not in text:
        return None
    # kill the workers, or this process would wait for them at its end; torch need not report that they died
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
    return (f'{text.splitlines()[0].strip()} A clip cannot be read, or there is too little (shared) memory: use fewer '
            '--workers, or start a container with --shm-size 8g')


@contextlib.contextmanager
def cli_errors(advice=''):
    """A user's mistake ends with one line and exit code 2, Ctrl-C with 130. advice: how to continue"""
    advice = f'; {advice}' if advice else ''
    with contextlib.suppress(AttributeError):          # a locale may lack ↑ and ℓ; a notebook's output is no file
        sys.stdout.reconfigure(encoding='utf-8', errors='replace')
        sys.stderr.reconfigure(encoding='utf-8', errors='replace')
    try:
        yield
        sys.stdout.flush()
        return
    except UserError as error:
        message, code = f'error: {error}', 2
    except KeyboardInterrupt:
        message, code = f'interrupted{advice}', 130
    except RuntimeError as error:
        reason = loading_error(error)
        if reason is None:
            raise
        message, code = f'error: {reason}{advice}', 2
    except BrokenPipeError:                            # `| head` has read enough; 141: as a shell reports SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, code = advice and f'the output was closed{advice}', 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message, code = f'error: the disk is full ({error.filename or "while writing"}). Make room{advice}', 2
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if get_world_size() > 1:
        os._exit(code)                                 # a normal exit would wait for ranks that wait for this one
    sys.exit(code)
