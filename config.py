"""Every option of `train.py`, with its meaning, its default and where the paper has it (Table 5, 6, App. F).

In:  the words of a command line.
Out: a Config, whole and checked; what cannot be trained is refused with the reason.
"""
import argparse
import contextlib
import dataclasses
import difflib
import errno
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from methods import METHODS, WITHOUT_ATTENTION
from model import SIZES, Sizes, UserError, option
from steps import count


@dataclass
class Config(Sizes):
    """Every option. Defaults are the paper's for VGGSound, where it names one; `--size small` has its own (PRESETS)."""
    dataset: str = option('shapes', 'shapes (built in), vggsound or audioset')
    data: str = option('', 'folder of the clips, see README; without it, data/DATASET')
    tasks: str = option('', 'CSV "class,task"; without it, the paper\'s 8 or 7 tasks (App. B)')
    order: str = option('', 'of the tasks: names with commas between, or "shuffled" for that of Table 7')
    retrieval_list: str = option('', 'JSON list of retrieval clips, in CAV-MAE\'s format; without it, the whole test split')
    pretrain_data: str = option('', 'a second folder for the initial pre-training (App. B): for vggsound that of AudioSet, whose '
                                'balanced clips join it; for audioset that of VGGSound, all of which it is')
    method: str = option('flava', ', '.join(METHODS))
    size: str = option('', 'base (the paper\'s) or small; without it, small for shapes and base otherwise')
    init: str = option('', 'weights to start from: the authors\', an ImageNet MAE ViT-B, or one of this project\'s')
    out: str = option('', 'folder of the run; without it, runs/DATASET-SIZE-METHOD-SEED')
    cache: str = option('cache', 'folder for what several runs share: initial pre-training, checked clips')
    seed: int = option(0, 'of weights, data order, masks and selection; and of the clips of shapes')

    lr: float = option(1e-4, 'constant; Table 6')
    beta1: float = option(0.95, 'Adam; Table 6')
    beta2: float = option(0.999, 'Adam; Table 6')
    weight_decay: float = option(5e-7, 'Table 6')
    batch_size: int = option(48, 'current pairs a step, over all processes; as many are replayed; Table 6')
    epochs: int = option(10, 'of each task; Table 6')
    steps: int = option(-1, 'at most so many steps a task; -1: no cap')

    pretrain_epochs: int = option(10, 'of the initial pre-training (App. B); the paper does not say how many')
    pretrain_steps: int = option(-1, 'at most so many steps of initial pre-training; 0 leaves it out, -1: no cap. Small shapes start '
                                 'from weights/shapes_small.pt where no option of the pre-training is given')
    pretrain_lr: float = option(1e-4, 'in the initial pre-training')
    pretrain_batch_size: int = option(48, 'in the initial pre-training')
    pretrain_mask_ratio: float = option(0.8, 'in the initial pre-training')

    mask_ratio: float = option(0.8, 'share of all patches that is masked; App. C')
    lam: float = option(0.1, 'λ, weight of the contrastive loss; as released')
    tau: float = option(0.05, 'τ of Eq. 9; as released')
    alpha: float = option(0.5, 'α, weight of the penalty ℓ^p, for DER++ and FLAVA; Table 5')
    beta: float = option(0.4, 'β of Eq. 2, for the scores that select; Table 10')
    rho_a: float = option(0.5, 'ρ_a, share of audio patches that is selected; Table 9')
    rho_v: float = option(0.5, 'ρ_v, share of video patches that is selected; Table 9')
    selection: str = option('both', 'of patches, for flava (Table 3): both, importance (LAVA), forget-robust (FRS), random, mats')
    audio_selection: str = option('time', 'of audio patches (Fig. 10 b): time (chunks), frequency, none (no constraint)')
    mae_weight: float = option(1.0, 'weight of ℓ^r in the stream; 0 leaves it out (Fig. 11)')
    chunk: int = option(4, 'L_c of Algorithm 2, in audio patches along time; §4.3')
    memory_size: int = option(2000, 'pairs in the rehearsal memory, over all processes; §5.2')

    mir_candidates: int = option(5, 'MIR: pairs drawn from the memory to choose from, in batches; the paper does not say')
    gmed_alpha: float = option(0.1, 'GMED: α, edit step; Table 5, damaged')
    gmed_beta: float = option(0.05, 'GMED: β, regularizer of the edit; Table 5, damaged')
    gmed_gamma: float = option(1.0, 'GMED: γ, decay of the edited clip; Table 5')
    cls_er_alpha_p: float = option(0.999, 'CLS-ER: α_P, decay of the plastic copy; Table 5')
    cls_er_alpha_s: float = option(0.999, 'CLS-ER: α_S, decay of the stable copy; Table 5, damaged')
    cls_er_r_p: float = option(0.8, 'CLS-ER: r_P, share of the steps that update the plastic copy; Table 5')
    cls_er_r_s: float = option(0.6, 'CLS-ER: r_S, share of the steps that update the stable copy; Table 5')
    cls_er_lam: float = option(0.1, 'CLS-ER: λ, weight of the consistency; Table 5, damaged')
    lump_beta: float = option(0.05, 'LUMP: mixing ratios come from Beta(this, this); Table 5, damaged')

    clips_per_class: int = option(400, 'at most so many training clips of a class; App. B')
    clips_per_task: int = option(1000, 'training clips of a task of shapes')
    test_clips: int = option(60, 'retrieval clips of a task of shapes')
    max_silent: int = option(1, 'silent objects in a clip of shapes, at most')
    max_bad: float = option(0.1, 'stop when more than this share of the clips cannot be used')
    workers: int = option(-1, 'processes that load clips; -1: one per core, and none for shapes')
    keep_models: int = option(1, '1: keep the model after each task, for eval.py; 0: only the last')
    save_every: int = option(100, 'steps between two checkpoints')
    log_every: int = option(10, 'steps between two lines of log.jsonl')
    device: str = option('', 'cuda or cpu; without it, cuda where there is one')


PRESETS = {   # what --size changes beside the sizes themselves
    'base': {},
    'small': dict(SIZES['small'], lr=1e-3, batch_size=32, epochs=3, mask_ratio=0.7, lam=1.0, tau=0.1, chunk=2,
                  memory_size=160, pretrain_lr=2e-3, pretrain_batch_size=64, pretrain_mask_ratio=0.5,
                  pretrain_epochs=40),
}
OF_DATASET = {   # what differs from VGGSound's numbers (§5.2, Table 6); --size small has its own
    'audioset': dict(batch_size=36, epochs=15, memory_size=5000),
}
SHIPPED = Path(__file__).parent / 'weights' / 'shapes_small.pt'   # initial pre-training on shapes; README has its command
FREE_TO_CHANGE = {'workers', 'keep_models', 'save_every', 'log_every', 'device', 'out', 'cache', 'max_bad'}   # when a run is resumed


def one_of(names):
    def check(name):
        if name not in names:
            near = difflib.get_close_matches(name, names, 3, 0.4)
            raise argparse.ArgumentTypeError(f'there is no {name!r}; ' + (f'did you mean {" or ".join(near)}? ' if near else '')
                                             + f'there are: {", ".join(names)}')
        return name
    return check


def parse(arguments):
    """Options → (Config, whether to resume). A field of Config is an option; what is not given comes from the preset."""
    parser = argparse.ArgumentParser(prog='train.py', description='Train on a stream of audio-video tasks (Algorithm 1).',
                                     usage='python train.py [--OPTION VALUE ...] [--resume]', allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f'error: {message}\n')
    choices = {'method': list(METHODS), 'dataset': ['shapes', 'vggsound', 'audioset'], 'size': list(PRESETS),
               'selection': ['both', 'importance', 'forget-robust', *WITHOUT_ATTENTION],
               'audio_selection': ['time', 'frequency', 'none']}
    shapes_of_tensors = {field.name for field in dataclasses.fields(Sizes)}
    for field in sorted(dataclasses.fields(Config), key=lambda field: field.name in shapes_of_tensors):   # those last
        name, meaning = '--' + field.name.replace('_', '-'), field.metadata['help'].replace('%', '%%')
        shown = f'{field.default}' if field.default != '' else 'none'
        for kind, preset in (('small', PRESETS['small']), ('audioset', OF_DATASET['audioset'])):
            shown += f'; {kind}: {preset[field.name]}' if field.name in preset else ''
        read = one_of(choices[field.name]) if field.name in choices else field.type
        parser.add_argument(name, type=read, default=argparse.SUPPRESS, metavar=name[2:].upper(),
                            help=f'{meaning} (default {shown})')
    parser.add_argument('--resume', action='store_true', help='go on from the last checkpoint of this run')
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = [o for action in parser._actions for o in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split('=')[0], options, 3, 0.5)
        parser.error(f'unknown option {unknown[0]}' + (f'; did you mean {" or ".join(near)}?' if near else '; see --help'))
    given = vars(given)
    resume = given.pop('resume')

    dataset = given.get('dataset', 'shapes')
    size = given.get('size') or ('small' if dataset == 'shapes' else 'base')
    cfg = Config(**{**OF_DATASET.get(dataset, {}), **PRESETS[size], **given, 'dataset': dataset, 'size': size})
    own_start = [name for name in given if name == 'init' or name.startswith('pretrain_') or name in Sizes.__dataclass_fields__]
    if dataset == 'shapes' and size == 'small' and not own_start and SHIPPED.exists():
        cfg.init, cfg.pretrain_steps = str(SHIPPED), 0          # its initial pre-training has been done
    cfg.out = cfg.out or f'runs/{dataset}-{size}-{cfg.method}-{cfg.seed}'
    check_config(cfg)
    return cfg, resume


def check_config(cfg):
    """Refuse what cannot be trained, with the reason."""
    p = cfg.patch_size
    if cfg.image_size % p or cfg.audio_frames % p or cfg.mel_bins % p:
        raise UserError(f'--image-size, --audio-frames and --mel-bins must be multiples of --patch-size {p}')
    if cfg.embed_dim % 4 or cfg.decoder_embed_dim % 4:
        raise UserError('--embed-dim and --decoder-embed-dim must be multiples of 4, for positions in two dimensions')
    for heads, dim in (('num_heads', cfg.embed_dim), ('avm_heads', cfg.embed_dim), ('decoder_num_heads', cfg.decoder_embed_dim)):
        if dim % getattr(cfg, heads):
            raise UserError(f'--{heads.replace("_", "-")} {getattr(cfg, heads)} does not divide the width {dim}')
    if min(cfg.batch_size, cfg.pretrain_batch_size, cfg.epochs, cfg.memory_size, cfg.save_every, cfg.log_every, cfg.mir_candidates) < 1:
        raise UserError('batch sizes, --epochs, --memory-size, --save-every, --log-every and --mir-candidates must be at least 1')
    if cfg.selection != 'both' and not (cfg.method == 'flava' or cfg.method == 'flava+' and cfg.selection not in WITHOUT_ATTENTION):
        raise UserError(f'--selection {cfg.selection} is for --method flava; {cfg.method} does not select so')
    if cfg.selection == 'mats' and cfg.num_frames < 2:
        raise UserError('--selection mats needs two frames at least, to see what moves')
    if cfg.lump_beta <= 0:
        raise UserError('--lump-beta must be over 0')
    for mask in (cfg.mask_ratio, cfg.pretrain_mask_ratio):
        for patches in (cfg.num_patches_a, cfg.num_patches_v):
            if not 1 <= count(1 - mask, patches) < patches:
                raise UserError(f'a mask ratio of {mask} leaves {count(1 - mask, patches)} of {patches} patches visible: '
                                'some must be seen and some predicted')
    if cfg.method.startswith('flava'):
        if cfg.audio_selection == 'time' and cfg.grid_a[0] % cfg.chunk:
            raise UserError(f'--chunk {cfg.chunk} must divide the {cfg.grid_a[0]} time steps of the spectrogram\'s patches')
        for name, rho, patches in (('a', cfg.rho_a, cfg.num_patches_a), ('v', cfg.rho_v, cfg.num_patches_v)):
            if not 0 < rho <= 1 or count(rho, patches) <= count(1 - cfg.mask_ratio, patches):
                raise UserError(f'--rho-{name} {rho} with --mask-ratio {cfg.mask_ratio} leaves nothing to predict: of the share ρ '
                                f'that is selected, 1 − mask is seen, so mask must be over 1 − ρ, and ρ at most 1')
    if not 0 <= cfg.max_silent <= 2:
        raise UserError('--max-silent must be 0, 1 or 2: a task of shapes has two classes beside the one that sounds')
    if cfg.dataset != 'shapes' and not cfg.data:
        cfg.data = 'data/' + cfg.dataset


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


@contextlib.contextmanager
def exit_politely(advice=''):
    """A user's mistake ends with one message and exit code 2, Ctrl-C with 130; neither with a traceback. advice: how to go on."""
    code = 0
    try:
        yield
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print('interrupted' + (f'; {advice}' if advice else ''), file=sys.stderr)
        code = 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f'error: the disk is full ({error.filename or "while writing"}). Make room'
              + (f'; the last checkpoint is intact, and {advice}' if advice else ' and try again'), file=sys.stderr)
        code = 2
    if code:
        sys.stderr.flush()
        sys.exit(code)
