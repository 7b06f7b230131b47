"""The study's tables, intervals, verdicts and figures, from its records alone (ours).

    python -m study.report [--records results/records.jsonl] [--out results]

In:  records.jsonl, as `runs.py` writes it.
Out: claims.md: tables of each group of runs; each claim of `claims.py` with differences, intervals and verdict.
     log.md: which run was made when. figures/: summary.png, forgetting.png, differences.png, and the paper's tables
     and those of its figures that need no model.
"""
import argparse
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from downstream.heads import options_text
from downstream.selection_stats import PARTNERS
from eval import DIRECTIONS
from paper import figures
from paper.groups import group_runs, text
from paper.plot_style import PRINT, SELECTION_STYLES, STYLES, line_style, ticks_of_tasks
from study import claims
from study.claims import A, F, at_end, field, over_seeds, source_selected, title
from study.runs import FIRST_WITH_COVERAGE, GROUPS, MAIN, PROBE, RECORDS, SEEDS, add_probe_A
from utils.checkpoint import check_writable, write_text
from utils.cli import Parser, cli_errors, parse
from utils.markdown import markdown_table

SELECTION_OF = {'lava': 'importance', 'frs': 'forget-robust', 'flava': 'both', 'excess': 'excess'}   # --selection
STYLE_OF = SELECTION_OF | {name: name for name in ('random', 'mats', 'rank', 'rank-excess')}
P_KINDS = {'on_v': 'frames, on the source', 'beside_v': 'frames, off the source', 'on_a': 'sound, on the source',
           'beside_a': 'sound, off the source', **{kind: f'past pair: {kind}' for kind in PARTNERS}}
P_PAIRS = [('on_v', 'beside_v'), ('on_a', 'beside_a'), ('same class', 'other task'), ('same task', 'other task')]


# ----------------------------------------------------------------------------------------- the tables

def table(words, runs, names, columns):
    """A row a run: title, number of seeds, mean ± standard deviation of each of columns {title: value}"""
    rows = []
    for name in names:
        if name in runs:
            numbers = [text(over_seeds(runs[name], value)) for value in columns.values()]
            rows.append([title(name), len(runs[name]), *numbers])
    return markdown_table([words, 'seeds', *columns], rows)


def claims_table(group, runs):
    """Each claim of a group that has records: differences, verdict, detectable effect; '' without claims"""
    rows = []
    for claim in claims.CLAIMS.get(group, ()):
        differences = {f'{title(a)} − {title(b)}': d for a, b, d in claim.differences(runs)}
        if differences:
            unclear = [f'{words} ±{d.detectable:.2f}' for words, d in differences.items()
                       if d.verdict(claim.margin) == 'inconclusive']
            rows.append([claim.words, '; '.join(f'{words} {d}' for words, d in differences.items()),
                         f'**{claim.verdict(runs)}**', '; '.join(unclear)])
    header = ['claim', 'differences [95 % interval], seeds of that sign', 'verdict',
              'detectable effect where inconclusive']
    return markdown_table(header, rows) if rows else ''


def source_selected_in_training(modality):
    """→ value(record): percent of the source's patches that the run's own selection takes by the last model"""
    def value(record):
        options = record['options'].split()
        selection = options[options.index('--selection') + 1] if '--selection' in options else 'both'
        return source_selected(selection, modality)(record)
    return value


def attention_tables(runs):
    """How well the last AVM finds the source; what each selection would take of it; P of Eq. 5 on and off the source
    and by the past pair, and differences of these with intervals over seeds."""
    columns = {'I_v AUC': at_end('localization', 'avm', 'auc_v'), 'I_a AUC': at_end('localization', 'avm', 'auc_a'),
               'cosine AUC, frames': at_end('localization', 'backbone', 'auc_v')}
    for modality, words in (('v', 'frames'), ('a', 'sound')):
        for name, selection in SELECTION_OF.items():
            columns[f'{words}, {title(name).removesuffix(" (ours)")}'] = source_selected(selection, modality)
    names, rows = [name for name in ('flava', 'flava+', 'lava', 'excess') if name in runs], []
    for name in names:
        by_kind = {}
        for kind in P_KINDS:
            value = at_end('selection', 'P', kind, scale=100)
            by_kind[kind] = {seed: value(record) for seed, record in runs[name].items()}
        rows.append([title(name), *(claims.difference(by_kind[a], by_kind[b], float) for a, b in P_PAIRS)])
    return '\n\n'.join([
        table('source patches selected, %, by the models of', runs, MAIN, columns),
        table('P of Eq. 5, %', runs, names,
              {words: at_end('selection', 'P', kind, scale=100) for kind, words in P_KINDS.items()}),
        markdown_table(['P, %, [95 % interval]', *(f'{P_KINDS[a]} − {P_KINDS[b]}' for a, b in P_PAIRS)], rows)])


def coverage_table(runs):
    """How much of a training clip was never visible or selected; and, within each method, its correlation with A."""
    kinds = {'visible_v': 'visible, frames', 'visible_a': 'visible, sound', 'selected_v': 'selected, frames',
             'selected_a': 'selected, sound'}
    covered = [name for name in runs if min(runs[name]) >= FIRST_WITH_COVERAGE]
    parts = [table('never, % of a clip\'s patches', runs, covered,
                   {words: field('coverage', f'never_{kind}') for kind, words in kinds.items()} | {'R@10 A ↑': A})]
    rows = []
    for name in GROUPS['fresh'].runs:
        records = list(runs.get(name, {}).values())
        if len(records) >= 5:
            rows.append([title(name), len(records), *(correlation(records, f'never_{kind}') for kind in kinds)])
    if rows:
        parts.append(markdown_table(['Spearman correlation with A, over seeds', 'seeds', *kinds.values()], rows))
    return '\n\n'.join(parts)


def correlation(records, name):
    """Spearman correlation of a number of the coverage with A: 'ρ (p)'. '–' where the number is constant"""
    values = [record['coverage'][name] for record in records]
    if len(set(values)) == 1:
        return '–'
    rho, p = stats.spearmanr(values, list(map(A, records)))
    return f'{rho:+.2f} (p = {p:.2g})'


def log(runs):
    """All runs, in the order in which they ended."""
    records = sorted((record for by_seed in runs.values() for record in by_seed.values()), key=lambda r: r['ended'])
    rows = [[record['ended'], f'{record["name"]}-{record["seed"]}', f'`{record["options"]}`', record['commit'],
             record['machine'], record['seconds'], text((A(record), None))] for record in records]
    table = markdown_table(['ended', 'run', 'options', 'commit', 'machine', 'seconds', 'R@10 A'], rows)
    return f'# All runs, in the order in which they ended\n\nWritten by `python -m study.report`; do not edit.\n\n{table}\n'


def agreement_table(runs):
    """How well I of a cheap scorer agrees with the AVM's I, by the last models: a row each (`agreement.py`)"""
    columns = {f'{words}, {modality}': (name, x) for x, modality in (('v', 'frames'), ('a', 'sound'))
               for name, words in (('correlation', 'rank correlation'), ('shared', 'shared top eighth, %'),
                                   ('source_full', 'source in the AVM\'s, %'), ('source_cheap', 'in its own, %'))}
    rows = []
    for run, scorer in (('scorer-full', 'grid'), ('scorer-cheap', 'student')):
        by_seed = runs.get(run, {})
        if by_seed:
            numbers = [text(over_seeds(by_seed, field('agreement', scorer, f'{name}_{x}')))
                       for name, x in columns.values()]
            rows.append([f'{scorer}, on the models of {title(run)}', len(by_seed), *numbers])
    return markdown_table(['scorer', 'seeds', *columns], rows)


def page(runs):
    """All tables, as Markdown."""
    records = [record for by_seed in runs.values() for record in by_seed.values()]
    hours = sum(record['seconds'] for record in records) / 3600
    commits, machines = (sorted({record[name] for record in records}) for name in ('commit', 'machine'))
    parts = ['# Claims, with the numbers behind them', 'Written by `python -m study.report`; do not edit.',
             f'{len(records)} runs, {hours:.1f} hours of training (wall-clock; of resumed runs, the last call); commits '
             f'{", ".join(commits)}; {", ".join(machines)}. Mean ± standard deviation over seeds. A and F are of R@10 in percent, the mean '
             'of both directions.',
             claims.RULE.strip()]
    for group, (words, _, names) in GROUPS.items():
        if not set(names) & set(runs) or group.startswith('tuning'):
            continue
        columns = {'A ↑': A, 'F ↓': F, 'gap': claims.gap, 'probe ↑': claims.probe}
        if group in ('oracles', 'why', 'why-second', 'why-again', 'mixture'):
            columns |= {'source selected, frames, %': source_selected_in_training('v'),
                        'sound, %': source_selected_in_training('a')}
        parts += [f'## {words}', table('', runs, names, columns), claims_table(group, runs)]
        if group == 'scorer':
            parts.append(agreement_table(runs))
    if set(MAIN) & set(runs):
        parts += ['## Where the AVM looks, what is selected, what P is', attention_tables(runs)]
    if set(GROUPS['fresh'].runs) & set(runs):
        parts += ['## Coverage', coverage_table(runs)]
    return '\n\n'.join(filter(None, parts)) + '\n'


# ---------------------------------------------------------------------------------------- the figures

def recall_over_stream(record):
    """R@10 after each task, the mean over the tasks learned so far and both directions"""
    acc = np.mean([record['retrieval'][direction]['R@10']['acc'] for direction in DIRECTIONS], 0)
    return [acc[t, :t + 1].mean() for t in range(len(acc))]


def plot_band(axis, by_seed, **style):
    """R@10 over the stream: the mean over seeds; from three seeds on, with its 95 % interval."""
    lines = np.array([recall_over_stream(record) for record in by_seed.values()])
    x, middle = range(lines.shape[1]), lines.mean(0)
    axis.plot(x, middle, **style)
    if len(lines) > 2:
        half = stats.t.ppf(0.975, len(lines) - 1) * stats.sem(lines)
        axis.fill_between(x, middle - half, middle + half, color=style['color'], alpha=0.12, linewidth=0)


def plot_forgetting(runs):
    """Forgetting curves: left the methods, right the selections."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 4.6), sharey=True, layout='constrained')
    panels = {'methods': [name for name in MAIN if name in STYLES and name != 'multitask'],
              'selections': ['der++', 'random', 'mats', 'lava', 'frs', 'flava', 'excess']}
    for axis, (words, names) in zip(axes, panels.items()):
        plot_recalls(axis, runs, names)
        axis.set_title(words)
        axis.legend(ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.25))
    axes[0].set_ylabel('R@10 of the tasks so far, %')
    return figure


def plot_summary(runs):
    """The README's figure: the bounds, DER++, FLAVA and, once all their seeds are recorded, rank on one axis."""
    fresh = ('fresh-der++', 'fresh-flava', 'fresh-rank')
    recorded = all(set(SEEDS[name]) <= set(runs.get(name, ())) for name in fresh)
    figure, axis = plt.subplots(figsize=(6, 3), layout='constrained')
    plot_recalls(axis, runs, ('finetune', *(fresh if recorded else ('der++', 'flava', 'flava+'))))
    axis.set_ylabel('R@10 of the tasks so far, %')
    axis.legend(loc='center left', bbox_to_anchor=(1.02, 0.5))
    return figure


def plot_recalls(axis, runs, names):
    """Forgetting curves of these runs, and Multitask's A as a line."""
    for name in names:
        if name in runs:
            own = name.removeprefix('fresh-')
            style = SELECTION_STYLES[STYLE_OF[own]] if own in STYLE_OF else STYLES[own]
            plot_band(axis, runs[name], label=title(name), **line_style(style))
    if 'multitask' in runs:
        upper, _ = over_seeds(runs['multitask'], A)
        axis.axhline(upper, color='black', linestyle='--', linewidth=1, label='Multitask')
    record = next(record for by_seed in runs.values() for record in by_seed.values())
    ticks_of_tasks(axis, record['retrieval']['tasks'])


def plot_differences(runs):
    """All differences in A of the claims, with their intervals; without ablations and the first runs with the source.
    Green is above 0, red below, grey neither; light while seeds are missing."""
    rows = []
    for group, group_claims in claims.CLAIMS.items():
        for claim in group_claims if group not in ('ablations', 'oracles') else ():
            for a, b, d in claim.differences(runs) if claim.value is A else ():
                all_seeds = len(set(SEEDS[a]) & set(SEEDS[b]))
                missing = f', {d.seeds} of {all_seeds} seeds' if d.seeds < all_seeds else ''
                rows.append((f'{title(a)} − {title(b)}{missing}', d, 'missing' if missing else d.verdict()))
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.19 * len(rows)), layout='constrained')
    colours = {'supported': '#009E73', 'contradicted': '#D55E00', 'inconclusive': '#666666', 'missing': '#BBBBBB'}
    for place, (_, d, verdict) in enumerate(rows):
        axis.errorbar(d.mean, place, xerr=[[d.mean - d.low], [d.high - d.mean]], fmt='o', color=colours[verdict],
                      capsize=2)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set_yticks(range(len(rows)), [words for words, _, _ in rows])
    axis.margins(y=0.02)
    axis.invert_yaxis()
    axis.grid(alpha=0.25, axis='x')
    axis.set_xlabel('difference in A, points of R@10, with its 95 % interval')
    return figure


def restore_run(record, folder):
    """A record → the folder of its run as `paper.groups` reads it, without models, maps and points of the gap."""
    run = folder / f'{record["name"]}-{record["seed"]}'
    cfg, _ = parse(f'{record["options"]} --seed {record["seed"]} --data-seed {record["seed"]} --out {run}'.split())
    (run / 'eval').mkdir(parents=True)
    options = options_text(argparse.Namespace(**PROBE, batch_size=None))
    probe = add_probe_A(record['classification']) | dict(options=options)
    parts = {'config': vars(cfg), 'results': record['retrieval'], 'eval/gap': record['gap'],
             'eval/classification-last': probe}
    for name, content in parts.items():
        (run / f'{name}.json').write_text(json.dumps(content))
    return run


def write_paper_figures(runs, out):
    """The paper's tables, and its figures that need no model, of the main stream, the second one and the ablations."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {group: {} for group in ('main', 'second', 'ablations')}
        for group, by_seed in paths.items():
            for name in GROUPS[group].runs:
                for seed, record in runs.get(name, {}).items():
                    by_seed.setdefault(seed, []).append(restore_run(record, Path(folder)))
        streams = [path for group in ('main', 'second') for of_seed in paths[group].values() for path in of_seed]
        lines = write_parts(streams, out, (13, 15), (1, 3, 4, 7))
        # ablations are compared with the main stream's runs of the same seeds
        seeds = GROUPS['ablations'].seeds
        same_seeds = [path for group in ('main', 'ablations') for seed in seeds for path in paths[group].get(seed, ())]
        lines += write_parts(same_seeds, out, (9, 10, 11), (9, 10))
    return [line for line in lines if ': needs ' not in line]


def write_parts(paths, out, numbers_of_figures, numbers_of_tables):
    """Some figures and tables of the paper, of these runs → one line each"""
    return figures.write(group_runs(paths), out, {number: figures.FIGURES[number] for number in numbers_of_figures},
                         {number: figures.TABLES[number] for number in numbers_of_tables})


def main(arguments=None):
    """The command line."""
    parser = Parser(prog='python -m study.report', description='Tables and figures of the study\'s records.')
    parser.add_argument('--records', type=Path, default=RECORDS, help='file of records')
    parser.add_argument('--out', type=Path, help='folder to write to (default: the folder of the records)')
    args = parser.parse_args(arguments)
    out = args.out or args.records.parent
    with cli_errors():
        runs = claims.load(args.records)
        check_writable(out / 'figures', '--out')
        write_text(out / 'claims.md', page(runs))
        write_text(out / 'log.md', log(runs))
        print(out / 'claims.md')
        drawn = {'summary': plot_summary, 'forgetting': plot_forgetting, 'differences': plot_differences}
        for name, plot in drawn.items():
            with plt.rc_context(PRINT):
                figure = plot(runs)
            figure.savefig(out / 'figures' / f'{name}.png', dpi=160, bbox_inches='tight')
            plt.close(figure)
            print(out / 'figures' / f'{name}.png')
        print('\n'.join(write_paper_figures(runs, out / 'figures')))


if __name__ == '__main__':
    main()
