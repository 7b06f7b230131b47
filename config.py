"""Every hyperparameter: its default, its range, and the source of the default (Tables 5 and 6, App. B, C, F; notes).

In:  values for some fields, by name.
Out: a Config. An impossible value or combination raises UserError.

This file imports nothing of the project. `utils/cli.py` makes the command line from it: every field is an option.
"""
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

# Names that options accept. A test compares them with the classes and functions behind them.
DATASETS = ('shapes', 'vggsound', 'audioset', 'folders')
METHODS = ('finetune', 'er', 'mir', 'der++', 'gmed', 'cls-er', 'lump', 'flava', 'flava+', 'multitask')
SELECTIONS = ('both', 'importance', 'forget-robust', 'excess', 'rank', 'rank-excess', 'random', 'mats')
AUDIO_SELECTIONS = ('time', 'frequency', 'none')
PRECISIONS = ('auto', 'fp32', 'bf16')
SCORERS = ('full', 'grid', 'student')


class UserError(Exception):
    """A mistake that the user can fix. It is printed without a traceback, and the exit code is 2."""


def option(default, help, *, min=None, max=None, over=None, under=None, choices=None, applies_to=''):
    """A dataclass field that is also a command line option.

    min, max: inclusive bounds; over, under: exclusive bounds; choices: the names it accepts.
    applies_to: the methods, selections, scorers, datasets or features that read it, comma-separated; '' for all.
    """
    bounds = dict(min=min, max=max, over=over, under=under)
    return field(default=default, metadata=dict(help=help, bounds=bounds, choices=choices, applies_to=applies_to))


def bounds_text(kind, bounds):
    """{'min': 0, 'under': 1, …} → 'a number at least 0 and below 1'"""
    words = dict(min='at least', over='above', max='at most', under='below')
    limits = [f'{words[name]} {limit}' for name, limit in bounds.items() if limit is not None]
    return ('a whole number ' if kind is int else 'a number ') + ' and '.join(limits)


def in_bounds(value, bounds):
    """Whether a number is finite and lies within its bounds."""
    checks = dict(min=lambda limit: value >= limit, max=lambda limit: value <= limit,
                  over=lambda limit: value > limit, under=lambda limit: value < limit)
    return math.isfinite(value) and all(checks[name](limit) for name, limit in bounds.items() if limit is not None)


def num_kept(ratio, n):
    """⌊ratio · n⌋ (N18). The small term keeps (1 − 0.8) · 40 = 7.999… at 8."""
    return int(ratio * n + 1e-6)


# ------------------------------------------------------------------------------------------- sizes

@dataclass
class Sizes:
    """Every number that a tensor's shape depends on. The defaults are those of the released code (N1, N2)."""
    image_size: int = option(224, 'H = W in pixels', min=1)
    num_frames: int = option(4, 'T, frames one second apart', min=1)
    audio_frames: int = option(1024, 't, spectrogram frames: ten seconds', min=1)
    mel_bins: int = option(128, 'f, mel bins of the spectrogram', min=4)
    frame_shift: float = option(10.0, 'milliseconds between two spectrogram frames', min=0.0625, max=10_000)
    patch_size: int = option(16, 'p, side of a patch', min=1)
    embed_dim: int = option(768, 'D, embedding dimension of ViT-B', min=1)
    num_heads: int = option(12, 'attention heads of E_a, E_v and E_f', min=1)
    encoder_depth: int = option(10, 'blocks of E_a, and of E_v', min=1)
    fusion_depth: int = option(2, 'blocks of E_f', min=1)
    decoder_embed_dim: int = option(512, 'embedding dimension of the decoder D', min=1)
    decoder_depth: int = option(8, 'blocks of the decoder', min=1)
    decoder_num_heads: int = option(16, 'attention heads of the decoder', min=1)
    avm_heads: int = option(12, 'H, attention heads of the AVM', min=1)

    @property
    def grid_a(self):
        """(time, frequency) in patches. Audio patches are time-major: one time step is a run of ⌊f/p⌋ patches."""
        return self.audio_frames // self.patch_size, self.mel_bins // self.patch_size

    @property
    def grid_v(self):
        """(T, rows, columns) in patches"""
        return self.num_frames, self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def num_patches_a(self):
        """M"""
        return math.prod(self.grid_a)

    @property
    def num_patches_v(self):
        """N"""
        return math.prod(self.grid_v)


# ------------------------------------------------------------------------------------- all options

# Tags of a run: its dataset and method, with FLAVA its selection and scorer, and these where they hold. An option
# applies to a run if its `applies_to` names one of the run's tags (`reads_option`).
FILES, REPLAY, PRETRAINING = 'video files', 'methods with a memory', 'initial pre-training'
SELECTING, SCORING = 'flava, flava+, random, mats', 'flava, flava+'     # those that select patches; that score them


@dataclass
class Config(Sizes):
    """Every option. The defaults are the paper's for VGGSound; `preset` has those of other sizes and datasets."""
    # Data
    dataset: str = option('shapes', 'shapes are built in; folders: own videos, a folder per class', choices=DATASETS)
    data: str = option('', 'folder of the clips (streams/README.md); default data/DATASET', applies_to=FILES)
    tasks: str = option('', 'CSV file with the columns class,task; default: the paper\'s tasks (App. B); with '
                        'folders, each class', applies_to=FILES)
    order: str = option('', 'order of the tasks: names separated by commas, or "shuffled" for Table 7 '
                        '(VGGSound: with --batch-size 36)')
    retrieval_list: str = option('', 'JSON list of retrieval clips in CAV-MAE\'s format; default: the whole test split',
                                 applies_to=FILES)
    pretrain_data: str = option('', 'second dataset for the initial pre-training (App. B): AudioSet\'s folder for '
                                'vggsound, VGGSound\'s folder for audioset', applies_to='vggsound, audioset')
    clips_per_class: int = option(400, 'maximum number of training clips per class; N34', min=1,
                                  applies_to='vggsound')
    clips_per_task: int = option(1000, 'training clips per task of shapes', min=1, max=10 ** 6, applies_to='shapes')
    test_clips: int = option(60, 'retrieval clips per task of shapes', min=1, max=10 ** 6, applies_to='shapes')
    max_roll: int = option(-1, 'maximum roll in time of training spectrograms, in frames; -1: any roll, as released; '
                           '10 keeps audio and video in step', min=-1, max=10 ** 6, applies_to=FILES)
    candidate_sets: int = option(1, 'number of candidate sets that the retrieval clips of shapes are split into; a '
                                 'query is compared with its own set', min=1, max=10 ** 6, applies_to='shapes')
    min_silent: int = option(0, 'minimum number of silent objects in a clip of shapes', min=0, max=2,
                             applies_to='shapes')
    max_silent: int = option(1, 'maximum number of silent objects', min=0, max=2, applies_to='shapes')
    object_area: float = option(1.0, 'area of the objects in a clip of shapes, relative to the benchmark\'s', min=0.1,
                                max=4, applies_to='shapes')
    data_seed: int = option(-1, 'seed of the clips of shapes; -1: the same as --seed', min=-1, max=2 ** 32 - 1,
                            applies_to='shapes')
    max_bad: float = option(0.1, 'stop if more than this share of the clips is unusable', min=0, max=1,
                            applies_to=FILES)
    workers: int = option(-1, 'data loader processes; -1: one per available core but one, none for shapes', min=-1,
                          max=1000)

    # Method
    method: str = option('flava', 'App. A; FLAVA is §4', choices=METHODS)
    mask_ratio: float = option(0.8, 'share of all patches that is hidden from the encoders; App. C, N7', over=0,
                               under=1)
    lam: float = option(0.1, 'λ, weight of the contrastive loss ℓ^c; as released', min=0)
    tau: float = option(0.05, 'τ, temperature of Eq. 9; as released', over=0)
    mae_weight: float = option(1.0, 'weight of ℓ^r in the stream; 0 removes it (Fig. 11)', min=0)
    memory_size: int = option(2000, 'pairs in the rehearsal memory, over all GPUs; §5.2', min=1, applies_to=REPLAY)
    alpha: float = option(0.5, 'α, weight of the penalty ℓ^p; N25', min=0, applies_to='der++, ' + SELECTING)
    beta: float = option(0.4, 'β of Eq. 2 for the importance scores; Table 10', over=0,
                         applies_to=SCORING)
    rho_a: float = option(0.5, 'ρ_a, share of audio patches that is selected; Table 9', over=0, max=1,
                          applies_to=SELECTING)
    rho_v: float = option(0.5, 'ρ_v, share of video patches that is selected; Table 9', over=0, max=1,
                          applies_to=SELECTING)
    chunk: int = option(4, 'L_c of Algorithm 2, in audio patches along time; §4.3', min=1, applies_to=SCORING)
    selection: str = option('both', 'how patches are selected; both: by I and P; importance: LAVA, forget-robust: FRS '
                            'of Table 3; excess, rank and rank-excess are ours',
                            choices=SELECTIONS, applies_to=SELECTING)
    rank_share: float = option(0.125, 'rank, rank-excess: share of the video patches with the higher weight', over=0,
                               under=1, applies_to='rank, rank-excess')
    rank_weight: float = option(16.0, 'rank, rank-excess: weight of these patches; the others have weight 1', over=0,
                                applies_to='rank, rank-excess')
    audio_selection: str = option('time', 'audio chunks along time, along frequency, or no chunks; Fig. 10 b',
                                  choices=AUDIO_SELECTIONS, applies_to=SCORING)
    scorer: str = option('full', 'how patches are scored: by the AVM, all of them; or cheaper, ours: a sparse grid, or '
                         'a distilled student (scorer.py)', choices=SCORERS, applies_to=SCORING)
    scorer_stride: int = option(2, 'grid: the AVM scores one patch of this many along each side', min=2,
                                applies_to='grid')
    scorer_every: int = option(4, 'student: the AVM scores, and teaches it, in one step of this many', min=1,
                               applies_to='student')
    # Hyperparameters of the compared methods. N25 marks those that cannot be read in Table 5: they are our choices.
    mir_candidates: int = option(5, 'MIR: candidates drawn from the memory, in batches', min=1, applies_to='mir')
    gmed_alpha: float = option(0.1, 'GMED: α, step size of the edit; N25', min=0, applies_to='gmed')
    gmed_beta: float = option(0.05, 'GMED: β, regularizer of the edit; N25', min=0, applies_to='gmed')
    gmed_gamma: float = option(1.0, 'GMED: γ, decay of the edited clip; Table 5', min=0, max=1, applies_to='gmed')
    cls_er_alpha_p: float = option(0.999, 'CLS-ER: α_P, decay of the plastic copy; Table 5', min=0, max=1,
                                   applies_to='cls-er')
    cls_er_alpha_s: float = option(0.999, 'CLS-ER: α_S, decay of the stable copy; N25', min=0, max=1,
                                   applies_to='cls-er')
    cls_er_r_p: float = option(0.8, 'CLS-ER: r_P, update rate of the plastic copy; Table 5', min=0, max=1,
                               applies_to='cls-er')
    cls_er_r_s: float = option(0.6, 'CLS-ER: r_S, update rate of the stable copy; Table 5', min=0, max=1,
                               applies_to='cls-er')
    cls_er_lam: float = option(0.1, 'CLS-ER: λ, weight of the consistency loss; N25', min=0, applies_to='cls-er')
    lump_beta: float = option(0.05, 'LUMP: mixing ratios come from Beta(this, this); N25', over=0,
                              applies_to='lump')

    # Training
    lr: float = option(1e-4, 'constant learning rate; Table 6', over=0)
    beta1: float = option(0.95, 'Adam; Table 6', min=0, under=1)
    beta2: float = option(0.999, 'Adam; Table 6', min=0, under=1)
    weight_decay: float = option(5e-7, 'Table 6', min=0)
    batch_size: int = option(48, 'current pairs per step, over all GPUs; as many are replayed; Table 6', min=1)
    epochs: int = option(10, 'epochs per task; Table 6', min=1, max=10 ** 6)
    steps: int = option(-1, 'maximum number of steps per task; -1: no maximum', min=-1)
    seed: int = option(0, 'seed of weights, data order, masks and selection', min=0, max=2 ** 32 - 1)
    init: str = option('', 'initial weights: the authors\', an ImageNet MAE ViT-B, or this project\'s')
    pretrain_epochs: int = option(10, 'epochs of the initial pre-training; N36', min=1, max=10 ** 6,
                                  applies_to=PRETRAINING)
    pretrain_steps: int = option(-1, 'maximum number of steps of the initial pre-training; 0: none, -1: no maximum. '
                                 'Small shapes start from weights/shapes_small.pt, unless --init, a pre-training '
                                 'option or a model size is given', min=-1)
    pretrain_lr: float = option(1e-4, 'learning rate of the initial pre-training', over=0, applies_to=PRETRAINING)
    pretrain_batch_size: int = option(48, 'batch size of the initial pre-training', min=1, applies_to=PRETRAINING)
    pretrain_mask_ratio: float = option(0.8, 'mask ratio of the initial pre-training', over=0, under=1,
                                        applies_to=PRETRAINING)

    # Run
    size: str = option('', 'base is the paper\'s model; default: small for shapes, base otherwise',
                       choices=('base', 'small'))
    out: str = option('', 'folder of the run; default runs/DATASET-SIZE-METHOD-SEED')
    cache: str = option('cache', 'folder that runs and ranks share: initial pre-training, scanned clips, clips of '
                        'shapes')
    keep_models: int = option(1, '1: keep the model after each task, for eval.py; 0: keep the last one', min=0, max=1)
    save_every: float = option(10., 'minutes between two checkpoints; 0: after every step', min=0)
    log_every: int = option(10, 'steps between two lines of log.jsonl', min=1)
    tensorboard: int = option(0, '1: also write the log as event files for TensorBoard, beside log.jsonl; needs the '
                              'package tensorboard', min=0, max=1)
    device: str = option('', 'cuda or cpu; default: cuda if available')
    precision: str = option('auto', 'auto: bf16 autocast on GPUs that support it, else fp32; bf16 on a CPU is faster '
                            'if it has AVX512-BF16 or AMX', choices=PRECISIONS)
    activation_checkpointing: int = option(-1, 'activation checkpointing of the fusion and the AVM, less memory for '
                                           'more time; 1: on, 0: off, -1: on GPUs only', min=-1, max=1)
    compile: int = option(0, '1: compile the transformer blocks with torch.compile', min=0, max=1)

    def __post_init__(self):
        check_ranges(self)
        check_sizes(self)
        check_combinations(self)
        check_masks(self)

    @property
    def scores_patches(self):
        """Whether this is FLAVA or FLAVA+, and not DER++ on other patches (`--selection random` or `mats`)"""
        return self.method in ('flava', 'flava+') and self.selection not in ('random', 'mats')

    @property
    def kappa_a(self):
        """κ_a = ⌊ρ_a·M⌋: number of selected audio patches"""
        return num_kept(self.rho_a, self.num_patches_a)

    @property
    def kappa_v(self):
        """κ_v = ⌊ρ_v·N⌋: number of selected video patches"""
        return num_kept(self.rho_v, self.num_patches_v)


# ----------------------------------------------------------------------------------------- presets

SIZES = {   # shapes of tensors: Sizes(**SIZES[name])
    'base': {},
    'small': dict(image_size=96, num_frames=2, audio_frames=256, mel_bins=64, frame_shift=15.5,
                  embed_dim=64, num_heads=4, encoder_depth=3, fusion_depth=1,
                  decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4, avm_heads=4),
}
PRESETS = {   # what --size changes: SIZES, and options of training
    'base': {},
    'small': dict(SIZES['small'], lr=1e-3, batch_size=16, mask_ratio=0.7, lam=1.0, tau=0.1, chunk=2,
                  pretrain_lr=2e-3, pretrain_batch_size=64, pretrain_mask_ratio=0.5),
}
# The benchmark: small shapes. It was chosen with Finetune and Multitask alone (results/details-benchmark.md).
BENCHMARK = dict(epochs=4, memory_size=160, clips_per_task=500, min_silent=1, max_silent=1, test_clips=300,
                 candidate_sets=5, pretrain_epochs=40)
DATASET_PRESETS = {   # what differs from VGGSound (§5.2, Table 6)
    'audioset': dict(batch_size=36, epochs=15, memory_size=5000),
}
PRETRAINED = Path(__file__).parent / 'weights' / 'shapes_small.pt'   # initial pre-training on shapes: weights/README.md
RUNTIME_FIELDS = {   # may differ with --resume; device, compile and activation_checkpointing change the rounding, and
    # device also the random numbers
    'workers', 'keep_models', 'save_every', 'log_every', 'tensorboard', 'device', 'activation_checkpointing', 'compile',
    'out', 'cache', 'max_bad'}
PATH_FIELDS = {'data', 'pretrain_data', 'tasks', 'retrieval_list'}   # may change too: the clips are compared instead
STREAM_FIELDS = {   # options of the stream: the initial pre-training does not depend on them
    'order', 'retrieval_list', 'clips_per_task', 'test_clips', 'candidate_sets', 'method', 'mask_ratio', 'mae_weight',
    'memory_size', 'alpha', 'beta', 'rho_a', 'rho_v', 'chunk', 'selection', 'rank_share', 'rank_weight',
    'audio_selection', 'scorer', 'scorer_stride', 'scorer_every',
    'mir_candidates', 'gmed_alpha', 'gmed_beta', 'gmed_gamma', 'cls_er_alpha_p', 'cls_er_alpha_s', 'cls_er_r_p',
    'cls_er_r_s', 'cls_er_lam', 'lump_beta', 'lr', 'batch_size', 'epochs', 'steps'}


def preset(dataset='shapes', size=''):
    """The options that --dataset and --size set → {name: value}"""
    size = size or ('small' if dataset == 'shapes' else 'base')
    benchmark = BENCHMARK if (dataset, size) == ('shapes', 'small') else {}
    return {**DATASET_PRESETS.get(dataset, {}), **PRESETS[size], **benchmark, 'dataset': dataset, 'size': size}


def reads_option(cfg, name):
    """Whether a run with these options reads the option: its `applies_to` names one of the run's tags."""
    applies_to = Config.__dataclass_fields__[name].metadata['applies_to']
    if cfg.scores_patches:
        tags = {cfg.dataset, cfg.method, cfg.selection, cfg.scorer}
    else:                                              # random and mats replace FLAVA, and have none of its options
        tags = {cfg.dataset, cfg.selection if cfg.selection in ('random', 'mats') else cfg.method}
    tags |= {FILES} if cfg.dataset != 'shapes' else set()
    tags |= {REPLAY} if cfg.method not in ('finetune', 'multitask') else set()
    tags |= {PRETRAINING} if cfg.pretrain_steps != 0 else set()
    return not applies_to or bool(tags & set(applies_to.split(', ')))


# ------------------------------------------------------------------------------------------ checks

def check_ranges(cfg):
    """Every field has its type and lies in its range. Raises UserError."""
    for f in dataclasses.fields(cfg):
        value, bounds, choices = getattr(cfg, f.name), f.metadata['bounds'], f.metadata['choices']
        flag = '--' + f.name.replace('_', '-')
        if f.type is float and type(value) is int:
            value = float(value)
        if type(value) is not f.type:
            raise UserError(f'{flag} {value!r} must be of type {f.type.__name__}')
        if choices and value not in (f.default, *choices):
            raise UserError(f'{flag} {value} must be one of {", ".join(choices)}')
        if f.type is not str and not in_bounds(value, bounds):
            raise UserError(f'{flag} {value} must be {bounds_text(f.type, bounds)}')


def check_sizes(cfg):
    """Patches must fill the clip, and heads must divide the embedding dimension. Raises UserError."""
    p = cfg.patch_size
    if cfg.image_size % p or cfg.audio_frames % p or cfg.mel_bins % p:
        raise UserError(f'--image-size, --audio-frames and --mel-bins must be multiples of --patch-size {p}')
    if cfg.embed_dim % 4 or cfg.decoder_embed_dim % 4:
        raise UserError('--embed-dim and --decoder-embed-dim must be multiples of 4, for 2-D sine-cosine positions')
    for heads, dim in (('num_heads', cfg.embed_dim), ('avm_heads', cfg.embed_dim),
                       ('decoder_num_heads', cfg.decoder_embed_dim)):
        if dim % getattr(cfg, heads):
            raise UserError(f'--{heads.replace("_", "-")} {getattr(cfg, heads)} does not divide the dimension {dim}')


def check_combinations(cfg):
    """Selections and scorers belong to FLAVA; options of shapes must fit each other. Raises UserError."""
    needed = ('flava',) if cfg.selection in ('random', 'mats') else ('flava', 'flava+')
    if cfg.selection != 'both' and cfg.method not in needed:
        raise UserError(f'--selection {cfg.selection} needs --method {" or ".join(needed)}')
    if cfg.scorer != 'full' and not cfg.scores_patches:
        raise UserError(f'--scorer {cfg.scorer} needs --method flava or flava+, and a selection by importance')
    if cfg.scorer == 'student' and cfg.selection not in ('importance', 'rank'):
        raise UserError('--scorer student needs --selection rank or importance: it has no queries and keys for P, '
                        f'which --selection {cfg.selection} needs')
    if cfg.selection == 'mats' and cfg.num_frames < 2:
        raise UserError('--selection mats needs --num-frames 2 or more: it compares a frame with the one before')
    if cfg.min_silent > cfg.max_silent:
        raise UserError(f'--min-silent {cfg.min_silent} is larger than --max-silent {cfg.max_silent}')
    if cfg.dataset != 'shapes' and cfg.candidate_sets != 1:
        raise UserError(f'--candidate-sets {cfg.candidate_sets} needs --dataset shapes: other datasets have one')
    if cfg.test_clips % cfg.candidate_sets:
        raise UserError(f'--test-clips {cfg.test_clips} is not a multiple of --candidate-sets {cfg.candidate_sets}')


def check_masks(cfg):
    """Of all patches, and of the selected ones, some must be visible and some predicted. Raises UserError."""
    for ratio in (cfg.mask_ratio, cfg.pretrain_mask_ratio):
        for n in (cfg.num_patches_a, cfg.num_patches_v):
            if not 1 <= num_kept(1 - ratio, n) < n:
                raise UserError(f'a mask ratio of {ratio} leaves {num_kept(1 - ratio, n)} of {n} patches visible: '
                                'at least one must be visible and one masked')
    if cfg.method not in ('flava', 'flava+'):
        return
    if cfg.scores_patches and cfg.audio_selection == 'time' and cfg.grid_a[0] % cfg.chunk:
        raise UserError(f'--chunk {cfg.chunk} must divide the {cfg.grid_a[0]} time steps of audio patches')
    for name, rho, n in (('a', cfg.rho_a, cfg.num_patches_a), ('v', cfg.rho_v, cfg.num_patches_v)):
        if num_kept(rho, n) <= num_kept(1 - cfg.mask_ratio, n):
            raise UserError(f'--rho-{name} {rho} with --mask-ratio {cfg.mask_ratio} leaves no selected patch to '
                            'predict: ρ must be larger than 1 − mask ratio')
