"""Variants of FLAVA on the built-in data: the true source in place of I, other draws; and coverage (ours).

    python -m study.oracle --of frames --odds 16 [options of train.py]
    python -m study.oracle --draw-v mixture --mixture 0.5 [options of train.py]
    python -m study.oracle --coverage [options of train.py]

In:  options of this file, then options of train.py for a method that selects by I.
Out: the run that train.py makes. The variant is in oracle.json, not in config.json.

    --of, --odds    Replace I: at each draw, a marked patch is `odds` times as likely as any other patch. Marked are
                      frames, sound, both    the patches of the true source
                      objects                in frames, the source and the silent objects
                      moments                in sound, the time steps at which the frames are taken
                      seen                   the source in frames, the moments in sound
                      part                   in frames, 64 % of the source's patches, the same ones at every draw
                      top                    in frames, the eighth of the patches with the highest I_v (no truth)
                    Sound is drawn in chunks of time by their mean I (Algorithm 2), so odds change less there.
    --prune all     P of Eq. 5 for all patches. As printed it is 0 outside the κ most important ones.
    --draw-a, -v    Weights of Algorithm 2 and Eq. 6: importance (I, as printed), rank, even, or mixture:
                    (1 − m)·I + m/N with m of --mixture. --pruning: P as printed, its excess, or none.
    --coverage      Write coverage.json: how much of each training clip the encoders never saw.
"""
import contextlib
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import baselines
import flava
import model
import selection
from avm import attend
from config import UserError
from downstream.maps import frame_moments, silent_objects
from patches import patchify, random_masks
from selection import excess, prune_probability, rank_weights
from streams.catalogue import open_stream
from streams.common import batches_by_task
from streams.scenes import truth
from utils.checkpoint import write_text
from utils.cli import Parser, cli_errors, number, parse

MARKS = ('frames', 'sound', 'both', 'objects', 'moments', 'seen', 'part', 'top')
DRAWS, PRUNINGS = ('importance', 'rank', 'even', 'mixture'), ('printed', 'excess', 'none')


# ------------------------------------------------------------------------------- which clip is it?

class ClipIndex:
    """Finds the clip that a row of Patches was cut from, by the bytes of its video patches. Draws no random numbers."""

    def __init__(self, cfg, datasets):
        self.scenes, self.clip_of = [], {}             # scene of each clip; {key of a patch: number of its clip}
        for dataset in datasets:
            for _, batch in batches_by_task([dataset], 64, 0, []):
                for index, x_v in zip(batch['clip'].tolist(), patchify(batch, cfg.patch_size).x_v):
                    for key in map(patch_key, range(len(x_v)), x_v):
                        # a patch that two clips share identifies neither
                        self.clip_of[key] = None if key in self.clip_of else len(self.scenes)
                    self.scenes.append(dataset.scene(index))

    def find(self, patches):
        """Patches → the number of each row's clip; None for a clip of none of the data sets"""
        clips = []
        for ids, x_v in zip(patches.ids_v.tolist(), patches.x_v):
            numbers = (self.clip_of.get(key) for key in map(patch_key, ids, x_v))
            clips.append(next((clip for clip in numbers if clip is not None), None))
        return clips


def patch_key(position, x):
    """A video patch x (p·p·3,) uint8 and its position → a key"""
    return hash((position, x.cpu().numpy().tobytes()))


# ------------------------------------------------------------------------------- I is replaced: --of

def marked_patches(scene, cfg, of):
    """A scene → {'I_a': (M,), 'I_v': (N,)} bool: the patches that --of marks; empty for `top`"""
    source_a, source_v = truth(scene, cfg)
    left_out = torch.from_numpy(np.random.default_rng([scene.seed, 3]).random(len(source_v)) < 0.36)
    return {'frames': dict(I_v=source_v), 'sound': dict(I_a=source_a),
            'both': dict(I_a=source_a, I_v=source_v),
            'objects': dict(I_v=source_v | silent_objects(scene, cfg)),
            'moments': dict(I_a=frame_moments(cfg)),
            'seen': dict(I_a=frame_moments(cfg), I_v=source_v),
            'part': dict(I_v=source_v & ~left_out), 'top': {}}[of]


def oracle_importance(weights):
    """weights (B, n) → I (B, n) with rows that sum to 1. A little noise breaks ties: Eq. 4 takes the κ highest."""
    weights = weights * (1 + 1e-3 * torch.rand(weights.shape))
    return weights / weights.sum(1, keepdim=True)


class Oracle:
    """Takes the place of `avm.attend`: its AVMOutput with another I."""

    def __init__(self, cfg, datasets, of, odds):
        self.of, self.odds, self.clips = of, float(odds), ClipIndex(cfg, datasets)
        self.marked = [marked_patches(scene, cfg, of) for scene in self.clips.scenes]

    def __call__(self, cfg, backbone, matching, patches):
        out = attend(cfg, backbone, matching, patches)
        if self.of == 'top':
            weights = {'I_v': rank_weights(out.I_v.cpu(), 1 / 8, self.odds)}
        else:
            marked = [self.marked[clip] for clip in self.clips.find(patches)]
            weights = {name: torch.where(torch.stack([clip[name] for clip in marked]), self.odds, 1.0)
                       for name in marked[0]}
        return out._replace(**{name: oracle_importance(w).to(out.I_a) for name, w in weights.items()})


# ------------------------------------------------------------- P of all patches, and other weights

def prune_among_all(I, k, query, past_query, kappa):
    """Takes the place of `selection.prune_probability`: κ is the number of all patches."""
    return prune_probability(I, k, query, past_query, I.shape[1])


def weights_of(draw, cfg, I, mixture):
    """I (B, n) → weights (B, n)"""
    if draw == 'rank':
        return rank_weights(I, cfg.rank_share, cfg.rank_weight)
    m = {'importance': 0, 'even': 1, 'mixture': mixture}[draw]
    return (1 - m) * I + m / I.shape[1]


@contextlib.contextmanager
def patched(module, args, cfg, datasets):
    """Within, a module that calls attend, prune_probability and select_patches gets the variant."""
    def sampling_weights(cfg, I_a, I_v, P_a, P_v):
        prune = {'printed': torch.clone, 'excess': excess, 'none': torch.zeros_like}[args.pruning]
        return (weights_of(args.draw_a, cfg, I_a, args.mixture), weights_of(args.draw_v, cfg, I_v, args.mixture),
                prune(P_a), prune(P_v))

    with contextlib.ExitStack() as stack:
        if args.of:
            stack.enter_context(patch.object(module, 'attend', Oracle(cfg, datasets, args.of, args.odds)))
        if args.prune == 'all':
            stack.enter_context(patch.object(module, 'prune_probability', prune_among_all))
        if args.draw_v:                                # select_patches looks sampling_weights up in its own module
            stack.enter_context(patch.object(selection, 'sampling_weights', sampling_weights))
        yield


# ---------------------------------------------------------------------------------------- coverage

class Coverage:
    """Takes the place of `patches.random_masks`: the same masks, and a record of what each training clip showed.

    A patch is selected when a method learns from it, and visible when the encoders see it.
    """

    def __init__(self, cfg, datasets):
        self.clips = ClipIndex(cfg, datasets)
        clips, sizes = len(self.clips.scenes), {'a': cfg.num_patches_a, 'v': cfg.num_patches_v}
        self.steps = torch.zeros(clips)                # in how many batches each clip was, current or replayed
        self.seen = {f'{kind}_{x}': torch.zeros(clips, n, dtype=torch.bool)
                     for kind in ('visible', 'selected') for x, n in sizes.items()}

    def __call__(self, cfg, patches):
        masks = random_masks(cfg, patches)
        for row, clip in enumerate(self.clips.find(patches)):
            if clip is None:
                continue
            self.steps[clip] += 1
            for x, ids, mask in (('a', patches.ids_a[row], masks[0]), ('v', patches.ids_v[row], masks[1])):
                self.seen[f'selected_{x}'][clip, ids] = True
                self.seen[f'visible_{x}'][clip, ids[mask.keep[row]]] = True
        return masks

    def summary(self):
        """→ {clips, steps: mean per clip, never_visible_v …: percent of a clip's patches, the mean over clips}"""
        trained = self.steps > 0
        shares = {f'never_{name}': 100 * (~seen[trained]).double().mean().item() for name, seen in self.seen.items()}
        return dict(clips=int(trained.sum()), steps=self.steps[trained].mean().item(), **shares)


# ------------------------------------------------------------------------------------ command line

def parse_options(arguments=None):
    """Words → options of this file, and the words for train.py"""
    parser = Parser(prog='python -m study.oracle', description='train.py on shapes, with a variant of FLAVA.')
    option = parser.add_argument
    option('--of', choices=MARKS, help='the patches that a new I marks')
    option('--odds', type=number(float, min=1e-3, max=1e3), default=16, help='how much likelier a marked patch is')
    option('--prune', choices=('important', 'all'), default='important', help='the patches that have a P')
    option('--draw-a', choices=DRAWS, default='importance', help='weights of audio patches, with --draw-v')
    option('--draw-v', choices=DRAWS, help='weights of video patches')
    option('--mixture', type=number(float, min=0, max=1), default=0.5, help='m of the weights `mixture`')
    option('--pruning', choices=PRUNINGS, default='none', help='P, with --draw-v')
    option('--coverage', action='store_true', help='write coverage.json')
    return parser.parse_known_args(arguments)


def main(train, arguments=None):
    """The command line. train: `main` of train.py"""
    with cli_errors():
        args, words = parse_options(arguments)
        cfg, resume = parse(words)
        if cfg.dataset != 'shapes':
            raise UserError('study.oracle needs --dataset shapes: it uses the true sources')
        selects = cfg.method in ('flava', 'flava+') and cfg.selection not in ('random', 'mats')
        if (args.of or args.prune == 'all' or args.draw_v) and (not selects or cfg.pretrain_steps):
            raise UserError('variants change how FLAVA selects: use --method flava or flava+, and --pretrain-steps 0')
        if (args.of or args.prune == 'all') and cfg.scorer != 'full':
            raise UserError('--of and --prune all replace the scores of all patches: use --scorer full')
        if args.coverage and resume:
            raise UserError('--coverage counts from the first step: it cannot --resume')
        Path(cfg.out).mkdir(parents=True, exist_ok=True)
        file = Path(cfg.out) / 'oracle.json'
        if (Path(cfg.out) / 'last.pt').exists():       # a run, of train.py if it has no oracle.json
            known = json.loads(file.read_text('utf-8')) if file.exists() else {}
            if vars(parse_options([])[0]) | known != vars(args):
                raise UserError(f'{cfg.out} holds a run of another variant: choose another folder with --out')
        write_text(file, json.dumps(vars(args)))
        datasets = open_stream(cfg, 0).train
        masks = Coverage(cfg, datasets) if args.coverage else random_masks
        with patched(flava, args, cfg, datasets), patch.object(model, 'random_masks', masks), \
                patch.object(baselines, 'random_masks', masks):
            train(words)
        if args.coverage:
            write_text(Path(cfg.out) / 'coverage.json', json.dumps(masks.summary()))


if __name__ == '__main__':                             # not when imported: only the program trains
    import train

    main(train.main)
