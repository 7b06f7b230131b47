"""Why are the results what they are? P of Eq. 5, the cosine maps and I_a of one run on shapes, taken apart (ours).

    python -m paper.understood RUN

In:  a run of FLAVA on sounding shapes, with its models.
Out: RUN/eval/understood.json and .md.

    P       by the model after each task, and by the last with its two logits scaled: the pair's softmax at a
            temperature. How far it is from ½, of one head and of their mean; whether it tells a past pair of the clip's
            class from one of another task; how much of the source is left selected. The past pair's query is of the
            same model, and so fresher than those in a memory.
    maps    of the last model, and of what needs no model (contrast, energy): do they find the source, do they find the
            silent objects just as well, and which of the two do they prefer? In sound: do they find when the frames
            were taken, and the source at those moments?
    taken   what the last model's I alone selects (LAVA): of the source, of silent objects, of the ground; of the sound
            when the frames were taken, and of the rest; how much of one draw is in another of the same clip.
"""
import argparse
import json

import torch
import torch.nn.functional as F

from avm import score
from config import exit_politely
from downstream.maps import mean, moments, moved, silent, sources
from downstream.selected import PARTNERS, Past, attended, by_partner, class_of, covered
from downstream.together import groups
from patches import UserError, normalized, whole
from run import Recorded
from selection import prune_probability, select_audio, select_video
from streams.common import clips_in_order

TEMPERATURES = (1, 1 / 4, 1 / 16, 1 / 64)


# ------------------------------------------------------------------------------------- P of Eq. 5

def pruning(run):
    """→ [{after, temperature, …}], one for the model after each task, and for the last one at every temperature"""
    tests, models = run.stream.test, [model for model in run.models() if model[0] > 0]
    true, classes, rows = [sources(dataset, run.cfg) for dataset in tests], [class_of(d) for d in tests], []
    for group in groups(run, models):
        for (t, name, _), found in zip(group, attended(run, group)):
            for temperature in TEMPERATURES if t == models[-1][0] else TEMPERATURES[:1]:
                rows.append(dict(after=name, temperature=temperature,
                                 **of_model(run.cfg, found, true, classes, t, temperature)))
    return rows


def of_model(cfg, found, true, classes, t, temperature):
    """The means over all tasks' clips. found[task]: I_a, I_v, k_a, k_v, q̂_a, q̂_v of its clips; t: tasks learned"""
    past, cells = Past(found[:t], classes[:t]), []
    for task, (I_a, I_v, k_a, k_v, query_a, query_v) in enumerate(found):
        with torch.random.fork_rng([]):
            torch.manual_seed(task)
            past_a, past_v, of = past.draw(len(I_a))
            P_a = prune_probability(I_a, k_a / temperature, query_v, past_v, cfg.kappa_a)     # logits are linear in k̂
            P_v = prune_probability(I_v, k_v / temperature, query_a, past_a, cfg.kappa_v)
            kept_a = select_audio(I_a, P_a, cfg.kappa_a, cfg.grid_a, cfg.chunk)
            kept_v = select_video(I_v, P_v, cfg.kappa_v)
        asked = torch.cat([P.gather(1, I.topk(kappa, dim=1).indices).flatten() for P, I, kappa in (
            (P_a, I_a, cfg.kappa_a), (P_v, I_v, cfg.kappa_v))])
        most = (P_a.sum(1) / cfg.kappa_a + P_v.sum(1) / cfg.kappa_v) / 2
        one = prune_probability(I_v, k_v[:, :1] / temperature, query_a[:, :1], past_a[:, :1], cfg.kappa_v)
        one = one.gather(1, I_v.topk(cfg.kappa_v, dim=1).indices)
        cells.append(dict(P=asked.mean().item(), far=(asked - 0.5).abs().mean().item(),
                          far_one=(one - 0.5).abs().mean().item(),
                          selected_v=covered(kept_v, true[task][1]), selected_a=covered(kept_a, true[task][0]),
                          tells=tells(most, classes[task], task, of), **by_partner(most, classes[task], task, of)))
    return {name: mean([cell[name] for cell in cells]) for name in cells[0]}


def tells(P, classes, task, of):
    """ROC-AUC of each clip's mean P (n,): how often a clip that met a past pair of its own class has more than one that
    met another task's. None where none of its class was met."""
    same = torch.tensor([theirs == own for own, (_, theirs) in zip(classes, of)])
    other = torch.tensor([number != task for number, _ in of])
    return won(P[None], same[None], other[None]).item() if same.any() and other.any() else None


def won(m, these, those):
    """Of all pairs of one of these and one of those, the share in which the first has more; a tie is half a pair.
    m, these, those (B, n) → (B,)"""
    pairs = these[:, :, None] & those[:, None, :]
    more = (m[:, :, None] - m[:, None, :]).sign().add(1).div(2)
    return (more * pairs).sum((1, 2)) / pairs.sum((1, 2))


# ------------------------------------------------------------------------------------------- maps

@torch.no_grad()
def maps(cfg, backbone, avm, batch):
    """A batch → {name: (B, N)} of frames, {name: (B, M)} of sound"""
    patches = whole(batch, cfg.patch_size)
    s, x = score(cfg, backbone, avm, patches), normalized(patches, cfg.patch_size)
    a, v = backbone.tokens(s.o_a, s.o_v, patches.kept_a, patches.kept_v)              # B,M,D and B,N,D
    near = lambda tokens, query: F.cosine_similarity(tokens, query.mean(1, keepdim=True), dim=-1)
    apart = lambda tokens: tokens - tokens.mean(1, keepdim=True)                      # without what all patches share
    both = lambda own, other, I: {
        'I': I, 'cosine to the other\'s mean (Fig. 12)': near(own, other), 'cosine to its own mean': near(own, own),
        'cosine, what all patches share taken away': near(apart(own), other), 'norm of the token': own.norm(dim=-1)}
    contrast = x.x_v.unflatten(-1, (-1, 3)).std(-2).mean(-1)                          # over pixels, in each colour
    return (both(v, a, s.importance_v) | {'contrast in the patch': contrast},
            both(a, v, s.importance_a) | {'energy of the patch': x.x_a.mean(-1)})


def found_by_maps(run):
    """→ {'frames': {map: {source, silent, preferred}}, 'sound': {map: {source, moment, there}}}, ROC-AUC, means over
    all clips: the source against all else; silent objects against the ground; the source against silent objects; the
    moments of the frames against others; the source against all else at those moments"""
    cells = {'frames': {}, 'sound': {}}
    keep = lambda kind, name, asked, m, these, those: cells[kind].setdefault(name, {}).setdefault(asked, []).extend(
        won(m, these, those)[these.any(1) & those.any(1)].tolist())
    model = run.load(run.models()[-1][2])
    for dataset in run.stream.test:
        true_a, true_v = sources(dataset, run.cfg)
        beside = torch.stack([silent(dataset.scene(index), run.cfg) for index in range(len(dataset))])
        for batch in clips_in_order(dataset, 16, run.workers, []):
            a, v, others = (x[batch['clip']] for x in (true_a, true_v, beside))
            of_v, of_a = maps(run.cfg, *model, moved(batch, run.device))
            for name, m in of_v.items():
                for asked, these, those in (('source', v, ~v), ('silent', others, ~others & ~v),
                                            ('preferred', v, others)):
                    keep('frames', name, asked, m.float().cpu(), these, those)
            at = moments(run.cfg).expand_as(a)
            for name, m in of_a.items():
                for asked, these, those in (('source', a, ~a), ('moment', at, ~at), ('there', a & at, ~a & at)):
                    keep('sound', name, asked, m.float().cpu(), these, those)
    return {kind: {name: {asked: mean(values) for asked, values in of.items()} for name, of in by_name.items()}
            for kind, by_name in cells.items()}


def taken(run):
    """→ {source, silent, ground, moments, other moments: percent that LAVA selects; again, frames, and again, sound:
    percent of one draw that is in another of the same clip}, means over tasks; for all of them ρ is chance"""
    cfg, cells = run.cfg, []
    for dataset, (I_a, I_v, *_) in zip(run.stream.test, attended(run, run.models()[-1:])[0]):
        beside = torch.stack([silent(dataset.scene(index), cfg) for index in range(len(dataset))])
        (_, source), at = sources(dataset, cfg), moments(cfg).expand_as(I_a)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            kept_a, again_a = (select_audio(I_a, torch.zeros_like(I_a), cfg.kappa_a, cfg.grid_a, cfg.chunk)
                               for _ in range(2))
            kept_v, again_v = (select_video(I_v, torch.zeros_like(I_v), cfg.kappa_v) for _ in range(2))
        places = lambda kept, I: torch.zeros_like(I, dtype=torch.bool).scatter(1, kept, True)
        cells.append({'source': covered(kept_v, source), 'silent': covered(kept_v, beside),
                      'ground': covered(kept_v, ~source & ~beside), 'moments': covered(kept_a, at),
                      'other moments': covered(kept_a, ~at), 'again, frames': covered(again_v, places(kept_v, I_v)),
                      'again, sound': covered(again_a, places(kept_a, I_a))})
    return {name: mean([cell[name] for cell in cells]) for name in cells[0]}


# ------------------------------------------------------------------------------- table, command line

def table(results):
    """Markdown"""
    text = lambda value: '–' if value is None else f'{value:.3f}'
    names = {'P': 'mean P', 'far': 'distance from ½', 'far_one': 'of one head, frames',
             **{kind: kind for kind in PARTNERS}, 'tells': 'tells, AUC',
             'selected_v': 'source selected, frames, %', 'selected_a': 'sound, %'}
    lines = ['| after | temperature | ' + ' | '.join(names.values()) + ' |', '| --- ' * (2 + len(names)) + '|']
    for row in results['pruning']:
        lines.append(f'| {row["after"]} | {row["temperature"]:.3g} | ' + ' | '.join(text(row[n]) for n in names) + ' |')
    for kind, asked in (('frames', {'source': 'source', 'silent': 'silent objects',
                                    'preferred': 'source before silent objects'}),
                        ('sound', {'source': 'source', 'moment': 'moments of the frames',
                                   'there': 'source at those moments'})):
        lines += ['', f'| AUC in {kind} | ' + ' | '.join(asked.values()) + ' |', '| --- ' * 4 + '|']
        lines += [f'| {name} | ' + ' | '.join(text(of.get(n)) for n in asked) + ' |'
                  for name, of in results['maps'][kind].items()]
    lines += ['', '| selected by I alone, % of the | ' + ' | '.join(results['taken']) + ' |',
              '| --- ' * (1 + len(results['taken'])) + '|',
              f'| {results["pruning"][-1]["after"]} | ' + ' | '.join(map(text, results['taken'].values())) + ' |']
    return '\n'.join(lines)


def main(arguments=None):
    """The command line: a run → RUN/eval/understood.json, .md"""
    parser = argparse.ArgumentParser(prog='python -m paper.understood', allow_abbrev=False,
                                     description='P of Eq. 5, cosine maps and I_a of a run on shapes, taken apart.')
    parser.error = lambda message: parser.exit(2, f'error: {message}; see --help\n')
    parser.add_argument('run', help='its folder')
    args = parser.parse_args(arguments)
    with exit_politely():
        run = Recorded(args.run)
        if run.cfg.dataset != 'shapes' or run.cfg.max_silent == 0:
            raise UserError(f'{args.run}: it needs shapes, whose source is known, with silent objects')
        results = dict(pruning=pruning(run), maps=found_by_maps(run), taken=taken(run))
        run.place('understood', 'json').write_text(json.dumps(results, indent=1))
        run.place('understood', 'md').write_text(table(results) + '\n')
        print(table(results))


if __name__ == '__main__':
    main()
