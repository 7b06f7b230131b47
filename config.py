"""Every option of `train.py`, with its meaning, its default and where the paper has it (Tables 5, 6, App. F).

In:  the words of a command line.
Out: a Config, whole and checked; what cannot be trained is refused with the reason.
"""
import argparse
import contextlib
import dataclasses
import difflib
import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from baselines import METHODS, WITHOUT_ATTENTION
from patches import (AT_LEAST_0, CAP, COUNT, MANY, PART, POSITIVE, SEED, SHARE, SIZES, SWITCH, WORKERS, Names, Range,
                     Sizes, UserError, check_ranges, count, option, spelled, world)
from selection import AUDIO_SELECTIONS, SELECTIONS
from streams.catalogue import DATASETS
from streams.workers import why_loading_failed

FILES, REPLAY, PRETRAINING = 'clips of files', 'methods with a memory', 'initial pre-training'    # see `circumstances`
SELECTS, SCORES = 'flava, flava+, random, mats', 'flava, flava+'


@dataclass
class Config(Sizes):
    """Every option. Defaults are the paper's for VGGSound, where it names one; `--size small` has its own (PRESETS)."""
    dataset: str = option('shapes', 'shapes are built in', Names(DATASETS))
    data: str = option('', 'folder of the clips, see streams/README.md; without it, data/DATASET', of=FILES)
    tasks: str = option('', 'CSV "class,task"; without it, the paper\'s 8 or 7 tasks (App. B)', of=FILES)
    order: str = option('', 'of the tasks: names with commas between, or "shuffled" for that of Table 7')
    retrieval_list: str = option('', 'JSON list of retrieval clips, in CAV-MAE\'s format; without it, the whole '
                                 'test split', of=FILES)
    pretrain_data: str = option('', 'a second folder for the initial pre-training (App. B): for vggsound that of '
                                'AudioSet, whose balanced clips join it; for audioset that of VGGSound, all of it',
                                of=FILES)
    clips_per_class: int = option(400, 'at most so many training clips of a class; App. B', COUNT, of='vggsound')
    clips_per_task: int = option(1000, 'training clips of a task of shapes', MANY, of='shapes')
    test_clips: int = option(60, 'retrieval clips of a task of shapes', MANY, of='shapes')
    max_roll: int = option(-1, 'the noise of training clips rolls their spectrogram in time by at most so many frames '
                           'either way; -1: by any number, as released; 10 keeps sound in step with the picture',
                           Range(int, -1, 10 ** 6), of=FILES)
    galleries: int = option(1, 'into so many parts the retrieval clips of shapes are dealt, each with as many of every '
                            'task; a query searches its own', MANY, of='shapes')
    min_silent: int = option(0, 'silent objects in a clip of shapes, at least', Range(int, 0, 2), of='shapes')
    max_silent: int = option(1, 'and at most: its task has two classes beside its own', Range(int, 0, 2), of='shapes')
    object_area: float = option(1.0, 'area of the objects in a clip of shapes, relative to the benchmark\'s',
                                Range(float, 0.1, 4), of='shapes')
    data_seed: int = option(-1, 'of the clips of shapes, so that methods and seeds can share them; -1: as --seed',
                            SEED._replace(low=-1), of='shapes')
    max_bad: float = option(0.1, 'stop when more than this share of the clips cannot be used', SHARE, of=FILES)
    workers: int = option(-1, 'processes that load clips; -1: by the cores that may be used, and none for shapes',
                          WORKERS)

    method: str = option('flava', 'App. A; FLAVA is of §4', Names(METHODS))
    mask_ratio: float = option(0.8, 'share of all patches that is masked; App. C', Range(float, 0, 1, (0, 1)))
    lam: float = option(0.1, 'λ, weight of the contrastive loss ℓ^c; as released', AT_LEAST_0)
    tau: float = option(0.05, 'τ of Eq. 9; as released', POSITIVE)
    mae_weight: float = option(1.0, 'weight of ℓ^r in the stream; 0 leaves it out (Fig. 11); the initial pre-training '
                               'keeps it', AT_LEAST_0)
    memory_size: int = option(2000, 'pairs in the rehearsal memory, over all processes; §5.2', COUNT, of=REPLAY)
    alpha: float = option(0.5, 'α, weight of the penalty ℓ^p, for DER++ and FLAVA; Table 5, damaged', AT_LEAST_0,
                          of='der++, ' + SELECTS)
    beta: float = option(0.4, 'β of Eq. 2, for the scores that select; Table 10', POSITIVE,
                         of=f'{SCORES}, {PRETRAINING}')
    rho_a: float = option(0.5, 'ρ_a, share of audio patches that is selected; Table 9', PART, of=SELECTS)
    rho_v: float = option(0.5, 'ρ_v, share of video patches that is selected; Table 9', PART, of=SELECTS)
    chunk: int = option(4, 'L_c of Algorithm 2, in audio patches along time; §4.3', COUNT, of=SCORES)
    selection: str = option('both', 'of patches, for flava; Table 3', Names([*SELECTIONS, *WITHOUT_ATTENTION]),
                            of=SELECTS)
    rank_share: float = option(0.125, 'selections rank and rank-excess (ours): share of video patches that are drawn '
                               'with the weight', Range(float, 0, 1, (0, 1)), of=SCORES)
    rank_weight: float = option(16.0, 'and that weight; the other patches have weight 1', POSITIVE, of=SCORES)
    audio_selection: str = option('time', 'of audio patches: chunks of time, of frequency, or no constraint; Fig. 10 b',
                                  Names(AUDIO_SELECTIONS), of=SCORES)
    mir_candidates: int = option(5, 'MIR: pairs drawn from the memory to choose from, in batches; the paper does not '
                                 'say', COUNT, of='mir')
    gmed_alpha: float = option(0.1, 'GMED: α, edit step; Table 5, damaged', AT_LEAST_0, of='gmed')
    gmed_beta: float = option(0.05, 'GMED: β, regularizer of the edit; Table 5, damaged', AT_LEAST_0, of='gmed')
    gmed_gamma: float = option(1.0, 'GMED: γ, decay of the edited clip; Table 5', SHARE, of='gmed')
    cls_er_alpha_p: float = option(0.999, 'CLS-ER: α_P, decay of the plastic copy; Table 5', SHARE, of='cls-er')
    cls_er_alpha_s: float = option(0.999, 'CLS-ER: α_S, decay of the stable copy; Table 5, damaged', SHARE, of='cls-er')
    cls_er_r_p: float = option(0.8, 'CLS-ER: r_P, share of the steps that update the plastic copy; Table 5', SHARE,
                               of='cls-er')
    cls_er_r_s: float = option(0.6, 'CLS-ER: r_S, share of the steps that update the stable copy; Table 5', SHARE,
                               of='cls-er')
    cls_er_lam: float = option(0.1, 'CLS-ER: λ, weight of the consistency; Table 5, damaged', AT_LEAST_0, of='cls-er')
    lump_beta: float = option(0.05, 'LUMP: mixing ratios come from Beta(this, this); Table 5, damaged', POSITIVE,
                              of='lump')

    lr: float = option(1e-4, 'constant; Table 6', POSITIVE)
    beta1: float = option(0.95, 'Adam; Table 6', Range(float, 0, 1, (1,)))
    beta2: float = option(0.999, 'Adam; Table 6', Range(float, 0, 1, (1,)))
    weight_decay: float = option(5e-7, 'Table 6', AT_LEAST_0)
    batch_size: int = option(48, 'current pairs a step, over all processes; as many are replayed; Table 6', COUNT)
    epochs: int = option(10, 'of each task; Table 6', MANY)
    steps: int = option(-1, 'at most so many steps a task; -1: no cap', CAP)
    seed: int = option(0, 'of weights, data order, masks and selection', SEED)
    init: str = option('', 'weights to start from: the authors\', an ImageNet MAE ViT-B, or one of this project\'s')
    pretrain_epochs: int = option(10, 'of the initial pre-training (App. B); the paper does not say how many', MANY,
                                  of=PRETRAINING)
    pretrain_steps: int = option(-1, 'at most so many steps of initial pre-training; 0 leaves it out, -1: no cap. '
                                 'Small shapes start from weights/shapes_small.pt where no option of the pre-training '
                                 'is given', CAP)
    pretrain_lr: float = option(1e-4, 'in the initial pre-training', POSITIVE, of=PRETRAINING)
    pretrain_batch_size: int = option(48, 'in the initial pre-training', COUNT, of=PRETRAINING)
    pretrain_mask_ratio: float = option(0.8, 'in the initial pre-training', Range(float, 0, 1, (0, 1)), of=PRETRAINING)

    size: str = option('', 'base is the paper\'s; the following can change either; without it, small for shapes and '
                       'base otherwise', Names(SIZES))

    out: str = option('', 'folder of the run; without it, runs/DATASET-SIZE-METHOD-SEED')
    cache: str = option('cache', 'folder for what several runs share: initial pre-training, checked clips, clips of '
                                 'shapes')
    keep_models: int = option(1, '1: keep the model after each task, for eval.py; 0: only the last', SWITCH)
    save_every: float = option(10., 'minutes between two checkpoints; 0: after every step', AT_LEAST_0)
    log_every: int = option(10, 'steps between two lines of log.jsonl', COUNT)
    device: str = option('', 'cuda or cpu; without it, cuda where there is one')
    compile: int = option(0, '1: the backbone\'s blocks go through torch.compile, which takes a minute or two at the '
                          'start; where it cannot be had, it is said', SWITCH)

    @property
    def kappa_a(self):
        """κ_a = ρ_a·M, rounded down: how many audio patches are selected"""
        return count(self.rho_a, self.num_patches_a)

    @property
    def kappa_v(self):
        """κ_v = ρ_v·N"""
        return count(self.rho_v, self.num_patches_v)


FIRST_OF_GROUP = {'dataset': 'data', 'method': 'method', 'lr': 'training', 'size': 'sizes', 'out': 'run'}   # of --help
PRESETS = {   # what --size changes beside the sizes themselves
    'base': {},
    'small': dict(SIZES['small'], lr=1e-3, batch_size=16, mask_ratio=0.7, lam=1.0, tau=0.1, chunk=2,
                  pretrain_lr=2e-3, pretrain_batch_size=64, pretrain_mask_ratio=0.5),
}
# The benchmark: `--dataset shapes --size small` alone. results/README.md says how it was chosen, by Finetune and
# Multitask alone.
BENCHMARK = dict(epochs=4, memory_size=160, clips_per_task=500, min_silent=1, max_silent=1, test_clips=300, galleries=5,
                 pretrain_epochs=40)
OF_DATASET = {   # what differs from VGGSound's numbers (§5.2, Table 6); --size small has its own
    'audioset': dict(batch_size=36, epochs=15, memory_size=5000),
}
SHIPPED = Path(__file__).parent / 'weights' / 'shapes_small.pt'   # initial pre-training on shapes: weights/README.md
OF_PRETRAINING = set(Sizes.__dataclass_fields__) | {   # what the result of the initial pre-training depends on
    'dataset', 'data', 'tasks', 'init', 'seed', 'beta1', 'beta2', 'weight_decay', 'pretrain_epochs', 'pretrain_steps',
    'pretrain_lr', 'pretrain_batch_size', 'pretrain_data', 'pretrain_mask_ratio', 'lam', 'tau', 'beta', 'min_silent',
    'max_silent', 'object_area', 'data_seed', 'clips_per_class', 'max_roll'}
FREE_TO_CHANGE = {   # when a run is resumed
    'workers', 'keep_models', 'save_every', 'log_every', 'device', 'compile', 'out', 'cache', 'max_bad'}


# ------------------------------------------------------------------------- from words to a Config

def one_of(names):
    """An argparse type: one of these names, or else a message that names the nearest."""
    def check(name):
        if name not in names:
            near = difflib.get_close_matches(name, names, 3, 0.4)
            meant = f'did you mean {" or ".join(near)}? ' if near else ''
            raise argparse.ArgumentTypeError(f'there is no {name!r}; {meant}there are: {", ".join(names)}')
        return name
    return check


def shown_default(field):
    """' (default 3; small: 2)'; nothing for an option that is empty unless given, whose meaning says what that means"""
    presets = {'small': PRESETS['small'], 'small shapes': BENCHMARK, **OF_DATASET}
    shown = [f'default {field.default}'] if field.default != '' else []
    shown += [f'{kind}: {preset[field.name]}' for kind, preset in presets.items() if field.name in preset]
    return f' ({"; ".join(shown)})' if shown else ''


def make_parser():
    """An option for each field of Config, in groups."""
    parser = argparse.ArgumentParser(prog='train.py', allow_abbrev=False,
                                     description='Train on a stream of audio-video tasks (Algorithm 1).',
                                     usage='python train.py [--OPTION VALUE ...] [--resume]')
    parser.error = lambda message: parser.exit(2, f'error: {message}\n')
    groups = {first: parser.add_argument_group(title) for first, title in FIRST_OF_GROUP.items()}
    group = groups['size']                                     # dataclasses put the fields of Sizes first
    for field in sorted(dataclasses.fields(Config), key=lambda field: field.name != 'size'):     # --size before them
        group = groups.get(field.name, group)
        name, can_be = spelled(field.name), field.metadata['allowed']
        meaning = field.metadata['help'] + (f'; {can_be}' if can_be else '') + shown_default(field)
        group.add_argument(name, type=one_of(can_be) if isinstance(can_be, Names) else field.type,
                           default=argparse.SUPPRESS, metavar=name[2:].upper(), help=meaning.replace('%', '%%'))
    groups['out'].add_argument('--resume', action='store_true', help='go on from the last checkpoint of this run')
    return parser


def parse(arguments):
    """Words → (Config, whether to resume). What is not given comes from the presets. Raises UserError."""
    parser = make_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = [o for action in parser._actions for o in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split('=')[0], options, 3, 0.5)
        advice = f'did you mean {" or ".join(near)}?' if near else 'see --help'
        parser.error(f'unknown option {unknown[0]}; {advice}')
    given = vars(given)
    resume = given.pop('resume')

    dataset = given.get('dataset', 'shapes')
    size = given.get('size') or ('small' if dataset == 'shapes' else 'base')
    benchmark = BENCHMARK if (dataset, size) == ('shapes', 'small') else {}
    cfg = Config(**{**OF_DATASET.get(dataset, {}), **PRESETS[size], **benchmark, **given, 'dataset': dataset,
                    'size': size})
    own_start = [name for name in given
                 if name == 'init' or name.startswith('pretrain_') or name in Sizes.__dataclass_fields__]
    if dataset == 'shapes' and size == 'small' and not own_start and SHIPPED.exists():
        cfg.init, cfg.pretrain_steps = str(SHIPPED), 0          # its initial pre-training has been done
    if dataset != 'shapes' and not cfg.data:
        cfg.data = 'data/' + dataset
    cfg.out = cfg.out or f'runs/{dataset}-{size}-{cfg.method}-{cfg.seed}'
    check_config(cfg)
    return cfg, resume


def circumstances(cfg):
    """All that an option can be `of`: the data set, the method (or the selection that takes its place), and more."""
    found = {cfg.dataset: True, cfg.selection if cfg.selection in WITHOUT_ATTENTION else cfg.method: True,
             FILES: cfg.dataset != 'shapes', PRETRAINING: cfg.pretrain_steps != 0,
             REPLAY: getattr(METHODS[cfg.method], 'memory', True) is not None}
    return {name for name, there in found.items() if there}


def without_effect(arguments, cfg):
    """The words of a command line → a sentence for each option of it that does nothing in the run that they ask for."""
    given = vars(make_parser().parse_args(arguments))
    return [f'{spelled(field.name)} has no effect here: it is for {field.metadata["of"]}'
            for field in dataclasses.fields(Config) if field.name in given and field.metadata['of']
            and not circumstances(cfg) & set(field.metadata['of'].split(', '))]


def with_older_defaults(saved):
    """Options as a run saved them → the same, with those that were not options yet, as things were then."""
    shapes, most = saved.get('dataset', 'shapes') == 'shapes', saved.get('max_silent', 1)
    older = {'max_roll': -1 if shapes else 10, 'data_seed': -1, 'galleries': 1, 'object_area': 1.0,
             'rank_share': 0.125, 'rank_weight': 16.0, 'min_silent': max(most - 1, 0) if shapes else 0}
    return older | saved | ({} if shapes else {'galleries': 1})      # candidate sets are of the built-in data alone


def changed(was, now, names=None):
    """Two dicts of options, as runs save them → in words, in which of these names they differ, or of all that matter to
    the results."""
    was, now = ({**with_older_defaults(of), 'init': Path(of.get('init', '')).name} for of in (was, now))   # may move
    value = lambda options, name: repr(options[name]) if name in options else 'not there'
    return [f'{spelled(name)} was {value(was, name)}, now {value(now, name)}' for name in names or {**now, **was}
            if name not in FREE_TO_CHANGE and value(was, name) != value(now, name)]


# --------------------------------------------------------------------- what cannot be trained, and why

def check_config(cfg):
    """Refuse what cannot be trained, with the reason. Raises UserError."""
    check_ranges(cfg)
    check_sizes(cfg)
    if cfg.dataset != 'shapes' and cfg.galleries != 1:
        raise UserError(f'--galleries {cfg.galleries} is for --dataset shapes: other clips are one set of candidates')
    by_attention = cfg.selection not in WITHOUT_ATTENTION
    if cfg.selection != 'both' and not (cfg.method == 'flava' or cfg.method == 'flava+' and by_attention):
        raise UserError(f'--selection {cfg.selection} is for --method flava; {cfg.method} does not select so')
    if cfg.selection == 'mats' and cfg.num_frames < 2:
        raise UserError('--selection mats needs two frames at least, to see what moves')
    if cfg.min_silent > cfg.max_silent:
        raise UserError(f'--min-silent {cfg.min_silent} is over --max-silent {cfg.max_silent}')
    if cfg.test_clips % cfg.galleries:
        raise UserError(f'--test-clips {cfg.test_clips} cannot be dealt evenly into --galleries {cfg.galleries}')
    check_masks(cfg)


def check_sizes(cfg):
    """Patches must fill the clip, and heads the width."""
    p = cfg.patch_size
    if cfg.image_size % p or cfg.audio_frames % p or cfg.mel_bins % p:
        raise UserError(f'--image-size, --audio-frames and --mel-bins must be multiples of --patch-size {p}')
    if cfg.embed_dim % 4 or cfg.decoder_embed_dim % 4:
        raise UserError('--embed-dim and --decoder-embed-dim must be multiples of 4, for positions in two dimensions')
    for heads, dim in (('num_heads', cfg.embed_dim), ('avm_heads', cfg.embed_dim),
                       ('decoder_num_heads', cfg.decoder_embed_dim)):
        if dim % getattr(cfg, heads):
            raise UserError(f'{spelled(heads)} {getattr(cfg, heads)} does not divide the width {dim}')


def check_masks(cfg):
    """Of the patches, and of those that are selected, some must be seen and some predicted."""
    for mask in (cfg.mask_ratio, cfg.pretrain_mask_ratio):
        for patches in (cfg.num_patches_a, cfg.num_patches_v):
            if not 1 <= count(1 - mask, patches) < patches:
                raise UserError(f'a mask ratio of {mask} leaves {count(1 - mask, patches)} of {patches} patches '
                                'visible: some must be seen and some predicted')
    if not cfg.method.startswith('flava'):
        return
    if cfg.audio_selection == 'time' and cfg.grid_a[0] % cfg.chunk:
        raise UserError(f'--chunk {cfg.chunk} must divide the {cfg.grid_a[0]} time steps of the spectrogram\'s patches')
    for name, rho, patches in (('a', cfg.rho_a, cfg.num_patches_a), ('v', cfg.rho_v, cfg.num_patches_v)):
        if count(rho, patches) <= count(1 - cfg.mask_ratio, patches):
            raise UserError(f'--rho-{name} {rho} with --mask-ratio {cfg.mask_ratio} leaves nothing to predict: of the '
                            'share ρ that is selected, 1 − mask is seen, so mask must be over 1 − ρ')


# ------------------------------------------------------------------------- what every command needs

def open_device(name):
    """'' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:1' → torch.device. Raises UserError."""
    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except RuntimeError:
        raise UserError(f'--device {name}: there is no such kind of device; cuda, cuda:1 or cpu')
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device {name}: only cuda and cpu are known here')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {name}: torch sees {torch.cuda.device_count()} GPUs here')
    return device


def autocast(device):
    """bf16 where a GPU computes in it; float32 elsewhere. No cast of a weight is kept: it might be of a pass without
    gradient (`avm.score`), and a later pass through it would have none."""
    bf16 = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


@contextlib.contextmanager
def exit_politely(advice=''):
    """A user's mistake ends with one message and exit code 2, Ctrl-C with 130; neither with a traceback. advice: how to
    go on."""
    code = 0
    try:
        yield
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print('interrupted' + (f'; {advice}' if advice else ''), file=sys.stderr)
        code = 130
    except RuntimeError as error:
        reason = why_loading_failed(error)
        if reason is None:
            raise
        print(f'error: {reason}' + (f'; {advice}' if advice else ''), file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f'error: the disk is full ({error.filename or "while writing"}). Make room'
              + (f'; the last checkpoint is intact, and {advice}' if advice else ' and try again'), file=sys.stderr)
        code = 2
    if code:
        sys.stdout.flush(), sys.stderr.flush()
        if world() > 1:
            os._exit(code)             # or this process would wait, at its end, for answers of those that wait for it
        sys.exit(code)
