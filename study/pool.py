"""Does retrieval improve if patches of low I are left out of the mean of Eq. 9? (ours)

    python -m study.pool RUN ...

In:  folders of finished runs.
Out: R@10 A of each run's last model, with a share of the patches dropped before the mean of Eq. 9. Which patches:

    own      those of lowest I, by the AVM on the clip's own pair. c_a and c_v of a pair then know of each other: this is
             no result of retrieval
    other    those of lowest I, by the AVM on the clip and the partner of another clip of its batch, of the same task
    random   any
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from avm import attend
from config import num_kept
from downstream.finished_run import FinishedRun
from eval import DIRECTIONS, embed_clips, retrieval
from patches import gather_rows, patchify
from utils.cli import Parser, cli_errors
from utils.markdown import markdown_table

DROPPED = (0, 0.25, 0.5)             # shares of the patches
PARTNERS = ('own', 'other', 'random')


class PartialPool:
    """A backbone whose c_a, c_v are means over a part of the patches."""

    def __init__(self, cfg, backbone, avm, dropped, partner='own'):
        self.cfg, self.backbone, self.avm, self.dropped, self.partner = cfg, backbone, avm, dropped, partner

    def embed(self, audio, video):
        """audio (B, t, f), video (B, T, 3, H, W) → c_a, c_v (B, D), L2-normalized"""
        patches = patchify(dict(audio=audio, video=video), self.cfg.patch_size)
        out = attend(self.cfg, self.backbone, self.avm, patches)
        tokens = self.backbone.unimodal_tokens(out.tokens.o_a, out.tokens.o_v, patches.ids_a, patches.ids_v)
        pooled = []
        for x, I in zip(tokens, self.scores(audio, video, out)):
            kept = I.topk(num_kept(1 - self.dropped, I.shape[1]), dim=1).indices
            pooled.append(F.normalize(gather_rows(x, kept).mean(1), dim=-1))
        return pooled

    def scores(self, audio, video, out):
        """What patches are kept by: (B, M), (B, N). out: AVMOutput of the clips' own pairs"""
        if self.partner == 'own':
            return out.I_a, out.I_v
        if self.partner == 'random':
            return torch.rand_like(out.I_a), torch.rand_like(out.I_v)
        # audio i with video i − 1: I_a of audio i, and I_v of video i − 1
        swapped = attend(self.cfg, self.backbone, self.avm,
                         patchify(dict(audio=audio, video=video.roll(1, 0)), self.cfg.patch_size))
        return swapped.I_a, swapped.I_v.roll(-1, 0)


def retrieval_by_share(run, partner='own'):
    """The last model of a run → {share dropped: R@10 A}, the mean of both directions, percent"""
    backbone, avm = run.load_model(run.models()[-1][2])
    backbones = [PartialPool(run.cfg, backbone, avm, dropped, partner) for dropped in DROPPED]
    embeddings, task_of, _ = embed_clips(backbones, run.stream.retrieval, run.device, run.cfg.batch_size, run.workers,
                                         run.cfg.precision)
    results = {}
    for dropped, (c_a, c_v) in zip(DROPPED, embeddings):
        row = retrieval(c_a, c_v, task_of, len(run.stream.names), run.device, run.cfg.candidate_sets)
        results[str(dropped)] = float(np.mean([row[direction]['R@10'] for direction in DIRECTIONS]))
    return results


def main(arguments=None):
    """The command line."""
    parser = Parser(prog='python -m study.pool', description='Retrieval with embeddings of a part of the patches.')
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='folders of finished runs')
    parser.add_argument('--device', default='', help='cuda or cpu; default: cuda if available')
    args = parser.parse_args(arguments)
    with cli_errors():
        rows = []
        for path in args.runs:
            run = FinishedRun(path, device=args.device, last=True)
            torch.manual_seed(0)
            found = {partner: retrieval_by_share(run, partner) for partner in PARTNERS}
            rows.append([path.name, f'{found["own"]["0"]:.2f}', *(f'{found[partner][str(dropped)]:.2f}'
                                                                  for partner in PARTNERS for dropped in DROPPED[1:])])
        header = ['run', 'all patches', *(f'{partner}, without {dropped:.0%}'
                                          for partner in PARTNERS for dropped in DROPPED[1:])]
        print(markdown_table(header, rows))


if __name__ == '__main__':
    main()
