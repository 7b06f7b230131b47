"""What if the AVM knew the source, or P of Eq. 5 were of all patches? FLAVA on shapes, changed in one place (ours).

    python -m paper.what_if --of frames --odds 16 [options of train.py]
    python -m paper.what_if --prune all [options of train.py]
    python -m paper.what_if --draw-v mixture --mixture 0.5 --pruning none [options of train.py]

In:  --of, --odds: what is put in place of I, and how many times as readily as any other patch one of it is drawn:
     `frames`, `sound`, `both`: the true source, there; `objects`: in frames the source and the silent objects, as if
     I_v knew objects but not which of them sounds; `moments`: in sound, all that is heard when the frames are taken;
     `seen`: the source in frames, the moments in sound; `part`: in frames the source but for 36 % of its patches,
     the same at every draw, so that as much of it is drawn as by the AVM's I_v; `top`: in frames the eighth of the
     patches that has most of the AVM's own I_v, as many as a source has.
     --prune all: P where Eq. 5 leaves it open, outside the κ most important patches.
     --draw-a, --draw-v: the weights of Algorithm 2 and Eq. 6: `importance` I, as printed; `rank`; `even`; `mixture`,
     (1 − m)·I + m/n of n patches, with m of --mixture. --pruning: `printed` P, its `excess`, or `none`.
     Then train.py's options, of a method that selects by I.
Out: the run that train.py makes, but for that. Its config.json does not know of it; what_if.json beside it does.

At odds of 1 any patch is drawn, over 1 more of what is put there, under 1 less of it. Sound is drawn in chunks of
time, by the mean of a chunk (Algorithm 2): the source is in nearly all of them, and odds change little; a moment is in
one, and 16 becomes 8.5. The queries and keys of Eq. 4 are the AVM's, which learns as ever; which κ are asked of the
past, and how q̂ weighs them, goes by the I that is put there.
"""
import argparse
import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

import avm
from baselines import WITHOUT_ATTENTION
from config import exit_politely, parse
from downstream.maps import moments, silent
from patches import SHARE, Range, UserError, whole
from selection import SELECTIONS, prune_probability, rank_weights, select_audio, select_video
from streams.catalogue import open_stream
from streams.common import clips_in_order
from streams.scenes import truth

OF = ('frames', 'sound', 'both', 'objects', 'moments', 'seen', 'part', 'top')


def put(scene, sizes, of):
    """What is put in place of I of a scene: {'importance_a': (M,), 'importance_v': (N,)} bool, or one of the two; of
    `top`, which is no scene's, nothing."""
    source_a, source_v = truth(scene, sizes)
    left_out = torch.from_numpy(np.random.default_rng([scene.seed, 3]).random(len(source_v)) < 0.36)
    return {'frames': dict(importance_v=source_v), 'sound': dict(importance_a=source_a),
            'both': dict(importance_a=source_a, importance_v=source_v),
            'objects': dict(importance_v=source_v | silent(scene, sizes)),
            'moments': dict(importance_a=moments(sizes)),
            'seen': dict(importance_a=moments(sizes), importance_v=source_v),
            'part': dict(importance_v=source_v & ~left_out), 'top': {}}[of]


class Oracle:
    """In place of `avm.score`: the same Scores, with another I.  datasets: of shapes, those whose clips it meets"""

    def __init__(self, cfg, datasets, of, odds):
        self.of, self.odds, self.known = of, odds, {}
        for dataset in datasets:
            for batch in clips_in_order(dataset, 64, 0, []):
                for index, frames in zip(batch['clip'].tolist(), whole(batch, cfg.patch_size).x_v):
                    self.known[mark(frames)] = put(dataset.scene(index), cfg, of)

    def __call__(self, cfg, backbone, matching, patches):
        s = avm.score(cfg, backbone, matching, patches)
        own = [self.known[mark(frames)] for frames in patches.x_v]
        true = {name: torch.stack([one[name] for one in own]) for name in own[0]}
        if self.of == 'top':
            I = s.importance_v.cpu()
            true = dict(importance_v=torch.zeros_like(I, dtype=torch.bool).scatter(
                1, I.topk(I.shape[1] // 8, dim=1).indices, True))
        return s._replace(**{name: self.importance(places).to(s.importance_a) for name, places in true.items()})

    def importance(self, true):
        """true (B, n) bool → I (B, n), each row summing to 1: the odds where it is true, 1 elsewhere, and a thousandth
        of chance, since Eq. 4 asks for the κ most important and would else find equals."""
        weight = torch.where(true, float(self.odds), 1.0) * (1 + 1e-3 * torch.rand(true.shape))
        return weight / weight.sum(1, keepdim=True)


def mark(frames):
    """x_v (N, p·p·3) of one clip, by which it is known again"""
    return hashlib.sha256(frames.cpu().numpy().tobytes()).digest()


def prune_among_all(I, k, query, past_query, kappa):
    """In place of `selection.prune_probability`: P (B, n) of all n patches.  I (B, n), k (B, H, n, d), q̂ (B, H, d)"""
    return prune_probability(I, k, query, past_query, I.shape[1])


DRAWS, PRUNINGS = ('importance', 'rank', 'even', 'mixture'), {'printed': 'both', 'excess': 'excess', 'none': 'importance'}


def draw_weights(cfg, args, draw, I):
    """I (B, n) → the weights (B, n) that patches are drawn by."""
    if draw == 'rank':
        return rank_weights(I, cfg.rank_share, cfg.rank_weight)
    m = {'importance': 0, 'even': 1, 'mixture': args.mixture}[draw]
    return (1 - m) * I + m / I.shape[1]


def select_as(args):
    """In place of `selection.select`: with the weights of --draw-a and --draw-v, and the P of --pruning"""
    def select(cfg, I_a, I_v, P_a, P_v):
        prune = SELECTIONS[PRUNINGS[args.pruning]]
        w_a, w_v = draw_weights(cfg, args, args.draw_a, I_a), draw_weights(cfg, args, args.draw_v, I_v)
        P_a, P_v = prune(I_a, P_a)[1], prune(I_v, P_v)[1]
        return select_audio(w_a, P_a, cfg.kappa_a, cfg.grid_a, cfg.chunk), select_video(w_v, P_v, cfg.kappa_v)
    return select


@contextlib.contextmanager
def changed(module, args, cfg, datasets):
    """Within, `score` and `prune_probability` are what args say, where a module of ours looks them up."""
    before = module.score, module.prune_probability, module.select
    if args.of:
        module.score = Oracle(cfg, datasets, args.of, args.odds)
    if args.prune == 'all':
        module.prune_probability = prune_among_all
    if args.draw_v:
        module.select = select_as(args)
    try:
        yield
    finally:
        module.score, module.prune_probability, module.select = before


def options(arguments=None):
    """The words of a command line → ours, those for train.py"""
    parser = argparse.ArgumentParser(prog='python -m paper.what_if', allow_abbrev=False,
                                     description='train.py on shapes, with FLAVA changed in one place.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--of', choices=OF, help='what is put in place of I: the source, in frames, sound or both; '
                        'objects; moments; part of the source; the top of the AVM\'s own')
    parser.add_argument('--odds', default=16,
                        **Range(float, 1e-3, 1e3).asked('of a patch of it to be drawn, to any other\'s'))
    parser.add_argument('--prune', choices=['important', 'all'], default='important',
                        help='P of the κ most important patches, the others\' being 0, or of all')
    parser.add_argument('--draw-a', choices=DRAWS, default='importance', help='weights that audio is drawn by')
    parser.add_argument('--draw-v', choices=DRAWS, help='weights that video is drawn by')
    parser.add_argument('--mixture', default=0.5, **SHARE.asked('m of the weights `mixture`'))
    parser.add_argument('--pruning', choices=list(PRUNINGS), default='none', help='P that prunes, with --draw-v')
    return parser.parse_known_args(arguments)


def main(train, arguments=None):
    """train: the program that is begun."""
    import flava

    with exit_politely():
        args, words = options(arguments)
        cfg, _ = parse(words)
        if cfg.dataset != 'shapes' or not cfg.method.startswith('flava') or cfg.selection in WITHOUT_ATTENTION:
            raise UserError('what is changed is how FLAVA selects on shapes: --method flava or flava+')
        if not args.of and args.prune == 'important' and not args.draw_v:
            raise UserError('nothing is changed: --of, --prune all, --draw-v')
        if cfg.pretrain_steps:
            raise UserError('the initial pre-training selects nothing: say --pretrain-steps 0')
        file = Path(cfg.out) / 'what_if.json'
        if file.exists() and json.loads(file.read_text()) != vars(args):
            raise UserError(f'{cfg.out} was started with {file.read_text()}: name another folder by --out')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(vars(args)))
        with changed(flava, args, cfg, open_stream(cfg, 0).train):
            train.main(words)


if __name__ == '__main__':                       # not when imported: what this wing reads needs no training
    import train

    main(train)
