"""A closer look at one run on shapes: P of Eq. 5, and the maps of the last model (ours).

    python -m study.analysis RUN        → RUN/eval/analysis.md

In:  a FLAVA run on sounding shapes with silent objects, and its models.
Out: two tables.

    P       for the model after each task, and for the last one with both logits of Eq. 5 divided by a temperature: how
            far P is from ½, for one head and for their mean; whether it tells a past pair of the clip's own class from
            one of another task (AUC). The past queries are of the same model, so they are newer than a memory's.
            `eval.py RUN --eval selection` has P by the past pair, and what each selection takes of the source.
    maps    AUC of the last model's maps, and of contrast and energy, which need no model: of the source, of silent
            objects, of the source against silent objects; in sound, of the moments of the frames.
"""
import json

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from avm import attend
from config import UserError
from downstream.maps import frame_moments, mean, silent_objects, sources, to_device
from downstream.markdown import markdown_table, number
from downstream.multi_model import group_models
from downstream.selection_stats import PastQueries, attend_clips, class_labels
from eval import FinishedRun
from patches import patchify, to_float
from selection import prune_probability
from streams.common import clips_in_order
from utils.cli import Parser, cli_errors

TEMPERATURES = (1, 1 / 4, 1 / 16, 1 / 64)
P_COLUMNS = {'P': 'mean P', 'far': 'distance from ½', 'far_one': 'of one head, frames', 'auc': 'AUC, own class'}
MAP_COLUMNS = {'frames': ('source', 'silent objects', 'source before silent objects'),
               'sound': ('source', 'moments of the frames', 'source at those moments')}


# ------------------------------------------------------------------------------------- P of Eq. 5

def analyse_P(run):
    """→ rows of the first table, {column of P_COLUMNS: value}"""
    tests, models, rows = run.stream.test, [model for model in run.models() if model[0] > 0], []
    classes = [class_labels(dataset) for dataset in tests]
    for group in group_models(run, models):
        for (t, name, _), attention in zip(group, attend_clips(run, group)):
            past = PastQueries(attention[:t], classes[:t])
            for temperature in TEMPERATURES if t == models[-1][0] else TEMPERATURES[:1]:
                cells = [P_of_task(run.cfg, clips, classes[task], task, past, temperature)
                         for task, clips in enumerate(attention)]
                rows.append(dict(after=name, temperature=temperature,
                                 **{column: mean([cell[column] for cell in cells]) for column in cells[0]}))
    return rows


def P_of_task(cfg, attention, classes, task, past, temperature):
    """One model on one task's clips → {column of P_COLUMNS: mean}"""
    I_a, I_v, k_a, k_v, query_a, query_v = attention
    with torch.random.fork_rng([]):
        torch.manual_seed(task)
        past_a, past_v, partners = past.draw(len(I_a))
    # the logits are linear in the keys
    P_a = prune_probability(I_a, k_a / temperature, query_v, past_v, cfg.kappa_a)
    P_v = prune_probability(I_v, k_v / temperature, query_a, past_a, cfg.kappa_v)
    one_head = prune_probability(I_v, k_v[:, :1] / temperature, query_a[:, :1], past_a[:, :1], cfg.kappa_v)
    # of the κ most important patches; P is 0 elsewhere
    top_a, top_v = I_a.topk(cfg.kappa_a, dim=1).indices, I_v.topk(cfg.kappa_v, dim=1).indices
    P = torch.cat([P_a.gather(1, top_a).flatten(), P_v.gather(1, top_v).flatten()])
    P_of_clip = (P_a.sum(1) / cfg.kappa_a + P_v.sum(1) / cfg.kappa_v) / 2
    return dict(P=P.mean().item(), far=(P - 0.5).abs().mean().item(),
                far_one=(one_head.gather(1, top_v) - 0.5).abs().mean().item(),
                auc=auc_own_class(P_of_clip, classes, task, partners))


def auc_own_class(P, classes, task, partners):
    """How often P (n,) is higher for a past pair of the clip's own class than for one of another task; None without"""
    own = torch.tensor([other == label for label, (_, other) in zip(classes, partners)])
    other = torch.tensor([number != task for number, _ in partners])
    return mean(row_aucs(P[None], own[None], other[None]))


def row_aucs(m, first, second):
    """m, first, second (B, n) → for each row with both: of all pairs of a `first` and a `second` patch, the share in
    which the first is higher. A tie counts half."""
    rows = [row for row in range(len(m)) if first[row].any() and second[row].any()]
    return [roc_auc_score(first[row][first[row] | second[row]], m[row][first[row] | second[row]]) for row in rows]


# ------------------------------------------------------------------------------------------- maps

@torch.no_grad()
def compute_maps(cfg, backbone, avm, batch):
    """A batch → {name: (B, N)} of frames, {name: (B, M)} of sound"""
    patches = patchify(batch, cfg.patch_size)
    out, x = attend(cfg, backbone, avm, patches), to_float(patches, cfg.patch_size)
    a, v = backbone.unimodal_tokens(out.o_a, out.o_v, patches.ids_a, patches.ids_v)   # B,M,D and B,N,D

    def maps_of(own, other, I):
        mean_own, mean_other = own.mean(1, keepdim=True), other.mean(1, keepdim=True)
        return {'I': I, 'cosine to the other modality\'s mean (Fig. 12)': F.cosine_similarity(own, mean_other, dim=-1),
                'cosine to its own mean': F.cosine_similarity(own, mean_own, dim=-1)}

    contrast = x.x_v.unflatten(-1, (-1, 3)).std(-2).mean(-1)                          # over pixels, in each colour
    return (maps_of(v, a, out.importance_v) | {'contrast of the patch': contrast},
            maps_of(a, v, out.importance_a) | {'energy of the patch': x.x_a.mean(-1)})


def analyse_maps(run):
    """→ {'frames' or 'sound': {map: {column of MAP_COLUMNS: AUC, the mean over all clips}}}"""
    areas, model, cfg = {'frames': {}, 'sound': {}}, run.load_model(run.models()[-1][2]), run.cfg
    for dataset in run.stream.test:
        true_a, true_v = sources(dataset, cfg)
        silent = torch.stack([silent_objects(dataset.scene(index), cfg) for index in range(len(dataset))])
        for batch in clips_in_order(dataset, 16, run.workers, []):
            a, v, others = (x[batch['clip']] for x in (true_a, true_v, silent))
            at = frame_moments(cfg).expand_as(a)
            pairs = {'frames': ((v, ~v), (others, ~others & ~v), (v, others)),
                     'sound': ((a, ~a), (at, ~at), (a & at, ~a & at))}
            for kind, maps in zip(areas, compute_maps(cfg, *model, to_device(batch, run.device))):
                for name, m in maps.items():
                    for column, (first, second) in zip(MAP_COLUMNS[kind], pairs[kind]):
                        values = areas[kind].setdefault(name, {}).setdefault(column, [])
                        values.extend(row_aucs(m.float().cpu(), first, second))
    return {kind: {name: {column: mean(values) for column, values in columns.items()} for name, columns in maps.items()}
            for kind, maps in areas.items()}


# ------------------------------------------------------------------------------- table, command line

def report(results):
    """→ Markdown"""
    rows = [[row['after'], f'{row["temperature"]:.3g}', *(number(row[name], 3) for name in P_COLUMNS)]
            for row in results['P']]
    tables = [markdown_table(['after', 'temperature', *P_COLUMNS.values()], rows)]
    for kind, maps in results['maps'].items():
        rows = [[name, *(number(columns[column], 3) for column in MAP_COLUMNS[kind])] for name, columns in maps.items()]
        tables.append(markdown_table([f'AUC in {kind}', *MAP_COLUMNS[kind]], rows))
    return '\n\n'.join(tables)


def main(arguments=None):
    """The command line."""
    parser = Parser(prog='python -m study.analysis', description='P, maps and selection of a run on shapes.')
    parser.add_argument('run', help='folder of the run')
    args = parser.parse_args(arguments)
    with cli_errors():
        run = FinishedRun(args.run)
        if run.cfg.dataset != 'shapes' or run.cfg.max_silent == 0:
            raise UserError(f'{args.run}: the analysis needs shapes with silent objects, whose sources are known')
        results = dict(P=analyse_P(run), maps=analyse_maps(run))
        run.eval_path('analysis', 'json').write_text(json.dumps(results, indent=1))
        run.eval_path('analysis', 'md').write_text(report(results) + '\n')
        print(report(results))


if __name__ == '__main__':
    main()
