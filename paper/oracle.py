"""What would FLAVA gain if its AVM knew the source? The true source in place of I, on sounding shapes (ours).

    python -m paper.oracle --of frames --odds 16 [options of train.py]

In:  the modality whose I is replaced; how many times as readily as any other patch one of the source is drawn; and
     train.py's options, of a method that selects by I.
Out: the run that train.py makes, but for that. Its config.json does not know of it.

What is drawn by such an I is the source and a share of the rest that the odds decide: at 1 any patch, over 1 more of
the source, under 1 less of it. The AVM learns as ever; its queries and keys stay, and P of Eq. 5 is of them.
"""
import argparse
import hashlib

import torch

import avm
from baselines import WITHOUT_ATTENTION
from config import exit_politely, parse
from downstream.maps import sources
from patches import Range, UserError, whole
from streams.catalogue import open_stream
from streams.common import clips_in_order

OF = {'frames': ('importance_v',), 'sound': ('importance_a',), 'both': ('importance_a', 'importance_v')}


class Oracle:
    """In place of `avm.score`: the same Scores, with another I.  datasets: of shapes, those whose clips it will meet"""

    def __init__(self, cfg, datasets, of, odds):
        self.of, self.odds, self.known = OF[of], odds, {}
        for dataset in datasets:
            truth_a, truth_v = sources(dataset, cfg)
            if truth_a is None:
                raise UserError('the source is known for shapes alone')
            for batch in clips_in_order(dataset, 64, 0, []):
                for index, frames in zip(batch['clip'].tolist(), whole(batch, cfg.patch_size).x_v):
                    self.known[mark(frames)] = dict(importance_a=truth_a[index], importance_v=truth_v[index])

    def __call__(self, cfg, backbone, matching, patches):
        s = avm.score(cfg, backbone, matching, patches)
        true = [self.known[mark(frames)] for frames in patches.x_v]
        return s._replace(**{name: self.importance(torch.stack([one[name] for one in true])).to(s.importance_a)
                             for name in self.of})

    def importance(self, true):
        """true (B, n) bool → I (B, n), each row summing to 1: the odds on the source, 1 beside it, and a thousandth of
        chance, since Eq. 4 asks for the κ most important and would else find equals."""
        weight = torch.where(true, float(self.odds), 1.0) * (1 + 1e-3 * torch.rand(true.shape))
        return weight / weight.sum(1, keepdim=True)


def mark(frames):
    """x_v (N, p·p·3) of one clip, by which it is known again"""
    return hashlib.sha256(frames.cpu().numpy().tobytes()).digest()


def options(arguments=None):
    """The words of a command line → (of, odds), those for train.py"""
    parser = argparse.ArgumentParser(prog='python -m paper.oracle', allow_abbrev=False,
                                     description='train.py on shapes, with the true source in place of I.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('--of', choices=list(OF), required=True, help='the modality whose I is replaced')
    parser.add_argument('--odds', required=True,
                        **Range(float, 1e-3, 1e3).asked('of a patch of the source to be drawn, to any other\'s'))
    args, words = parser.parse_known_args(arguments)
    return args, words


def main(train, arguments=None):
    """train: the program that is begun, with flava.score replaced."""
    import flava

    with exit_politely():
        args, words = options(arguments)
        cfg, _ = parse(words)
        if cfg.dataset != 'shapes' or not cfg.method.startswith('flava') or cfg.selection in WITHOUT_ATTENTION:
            raise UserError('the true source can stand in place of I where there is an I: shapes, FLAVA or FLAVA+')
        if cfg.pretrain_steps:
            raise UserError('the initial pre-training selects nothing: say --pretrain-steps 0')
        flava.score = Oracle(cfg, open_stream(cfg, 0).train, args.of, args.odds)
    train.main(words)


if __name__ == '__main__':                       # not when imported: what this wing reads needs no training
    import train

    main(train)
