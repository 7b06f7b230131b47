"""Does a cheap scorer order the patches as the AVM does? (ours, `scorer.py`)

In:  a finished run with `last.pt`, and the test clips of its stream, whose sources are known.
Out: for I of all patches (full) and I of the cheap scorer: how much of the source their top eighth holds, how much the
     two top eighths share, and the rank correlation of both.

The top eighth are the patches that `--selection rank` prefers. An even draw would hold an eighth of the source.
"""
import numpy as np
import torch
from scipy.stats import spearmanr

from avm import attend
from downstream.maps import sources, to_device
from downstream.multi_model import run_loaded
from patches import patchify
from scorer import SparseGrid, Student
from utils.checkpoint import read_checkpoint

SHARE = 1 / 8


def scorer_agreement(run, scorer):
    """run: a FinishedRun of shapes; scorer: grid or student, which needs the run's own `last.pt`
    → {correlation_a, correlation_v, shared_a, shared_v, source_full_a, source_cheap_a, source_full_v, source_cheap_v};
    shares in percent, the mean over clips"""
    backbone, avm = run.load_model(run.models()[-1][2])
    student = load_student(run) if scorer == 'student' else None

    def score(model, task, batch):
        patches = patchify(to_device(batch, run.device), run.cfg.patch_size)
        cheap = student_importance(student, model[0], patches) if student else grid_importance(run.cfg, *model, patches)
        full = attend(run.cfg, *model, patches)
        return tuple(x.cpu() for x in (full.I_a, cheap[0], full.I_v, cheap[1]))

    with torch.random.fork_rng([]):
        torch.manual_seed(0)                                                  # the offsets of the grid
        (tasks,), _ = run_loaded(run, [(backbone, avm)], run.stream.retrieval, run.cfg.batch_size, score, 'agreement')
    source_of_task = [sources(dataset, run.cfg) for dataset in run.stream.retrieval]
    full_a, cheap_a, full_v, cheap_v = (torch.cat(x) for x in zip(*tasks))
    source_a, source_v = (torch.cat(x) for x in zip(*source_of_task))
    return {f'{name}_{modality}': value
            for modality, x in (('a', (full_a, cheap_a, source_a)), ('v', (full_v, cheap_v, source_v)))
            for name, value in compare(*x).items()}


def load_student(run):
    """The student of a run with --scorer student"""
    state = read_checkpoint(run.folder / 'last.pt')['method']
    student = Student(run.cfg)
    student.load_state_dict({name.removeprefix('student.'): x for name, x in state.items()
                             if name.startswith('student.')})
    return student.to(run.device).eval()


def student_importance(student, backbone, patches):
    """Patches of whole clips → I_a (B, M), I_v (B, N)"""
    return [log_I.exp() for log_I in student(backbone, patches)]


def grid_importance(cfg, backbone, avm, patches):
    """Patches of whole clips → I_a (B, M), I_v (B, N), interpolated"""
    grid = SparseGrid(cfg, patches.ids_a.device)
    attention = attend(cfg, backbone, avm, grid.subset(patches))
    return grid.fill(attention.I_a, attention.I_v)


def top_eighth_mask(I):
    """I (B, n) → (B, n) bool: the patches with the highest I, an eighth of all"""
    ids = I.topk(round(SHARE * I.shape[1]), 1).indices
    return torch.zeros_like(I, dtype=torch.bool).scatter(1, ids, True)


def compare(full, cheap, source):
    """Two I (clips, n) and the source (clips, n) bool → {correlation, shared, source_full, source_cheap}"""
    top_full, top_cheap = top_eighth_mask(full), top_eighth_mask(cheap)
    known = source.any(1)

    def held(top):
        return 100 * ((top & source).sum(1) / source.sum(1))[known].mean().item()

    return dict(correlation=float(np.mean([spearmanr(x, y).statistic for x, y in zip(full, cheap)])),
                shared=100 * ((top_full & top_cheap).sum(1) / top_full.sum(1)).mean().item(),
                source_full=held(top_full), source_cheap=held(top_cheap))
