"""Tables 1, 3, 4, 7, 8, 9 and 10 as Markdown, from what finished runs recorded.

In:  groups of finished runs (`groups.py`) and the paper's own numbers (`printed.py`).
Out: Markdown: mean ± standard deviation over seeds, and where the setting is the paper's or nearly so (`setting.py`),
     its values in brackets.
"""
from paper import printed
from paper.groups import (DIRECTIONS, NAMES, SELECTIONS, Missing, arrow, classified, command, compared, dataset_name,
                          evaluated, labels, markdown, over_seeds, retrieval, text, with_value)
from paper.setting import beside

RECALLS = [(recall, which) for recall in ('R@1', 'R@5', 'R@10', 'Avg') for which in 'AF']      # columns of Tables 1, 7
AVERAGES = [retrieval(direction, 'Avg', which) for direction in DIRECTIONS for which in 'AF']   # of Tables 3, 9, 10
AVERAGES_HEADER = ['seeds', 'A→V A ↑', 'A→V F ↓', 'V→A A ↑', 'V→A F ↓']


# ------------------------------------------------------------------------------- what tables share

def heading(number, title, groups, *varied):
    """What stands above a table of these groups, which share a data set, and whether the paper's values may stand in
    it. varied: options that the table sweeps"""
    dataset, names = groups[0].cfg.dataset, dict(zip(map(id, groups), labels(groups)))
    shown, note = beside(number, groups, varied, lambda group: names[id(group)])
    brackets = '; in brackets the paper\'s' if shown else ''
    return f'**Table {number}.** {title}; stream of {dataset_name(dataset)}; in percent{brackets}.\n' + note, shown


def candidates(groups):
    """The number of clips among which retrieval searches, as a line."""
    ours = sorted({run.results['candidates'] for g in groups for run in g.runs})
    theirs = printed.candidates(groups[0].cfg.dataset)
    return f'\nCandidates: {", ".join(map(str, ours))}' + (f'; the paper\'s: {theirs}.\n' if theirs else '.\n')


def by_method(groups, paper):
    """Rows of a table: [(label, group or None, the paper's row or ())], in the order of Table 1, the paper's rows that
    we have not run included. paper: {method: row}, empty where the data set is another."""
    rows = []
    for method, name in NAMES.items():
        own = [(label, g) for label, g in zip(labels(groups), groups) if g.cfg.method == method]
        rows += [(label, g, paper.get(method, ()) if g.name == name else ()) for label, g in own]
        if method in paper and not any(g.name == name for _, g in own):
            rows.append((name, None, paper[method]))
    return rows


def cells(group, columns, row):
    """Number of seeds, then ours and the paper's for each column. columns: [value(run)]; group may be None, row ()"""
    seeds = sum(columns[0](run) is not None for run in group.runs) if group else 0
    ours = [over_seeds(group, value) if group else (None, None) for value in columns]
    return [seeds, *(text(number, row[k] if k < len(row) else None) for k, number in enumerate(ours))]


# ------------------------------------------------------------------------ retrieval: Tables 1 and 7

def retrieval_table(number, title, groups):
    """The form of Tables 1 and 7: a part for each data set, and in it one for each direction."""
    parts = []
    for dataset in dict.fromkeys(g.cfg.dataset for g in groups):
        chosen = compared([g for g in groups if g.cfg.dataset == dataset], 'method')
        head, shown = heading(number, title, chosen)
        parts.append(head)
        for direction, name in DIRECTIONS.items():
            columns = [retrieval(direction, *column) for column in RECALLS]
            paper = printed.rows(f'table_{number}', dataset, direction) if shown else {}
            rows = [[label, *cells(group, columns, row)] for label, group, row in by_method(chosen, paper)]
            header = [name, 'seeds'] + [f'{recall} {arrow(which)}' for recall, which in RECALLS]
            parts.append(markdown(header, rows) + '\n')
        parts.append(candidates(chosen)[1:])
    return '\n'.join(parts)


def table_1(groups):
    """Zero-shot retrieval, the tasks in the paper's order."""
    chosen = [g for g in groups if not g.cfg.order]
    if not chosen:
        raise Missing(command(groups[0] if groups else None, order=''))
    return retrieval_table(1, 'Audiovisual zero-shot retrieval', chosen)


def table_7(groups):
    """Zero-shot retrieval, the tasks in shuffled order."""
    chosen = [g for g in groups if g.cfg.order == 'shuffled']
    if not chosen:
        size = {'batch_size': 36} if groups and groups[0].cfg.dataset == 'vggsound' else {}        # App. E
        raise Missing(command(groups[0] if groups else None, order='shuffled', **size))
    return retrieval_table(7, 'Audiovisual zero-shot retrieval, shuffled tasks', chosen)


# ------------------------------------------------------------------------ downstream: Tables 4 and 8

def table_4(groups):
    """Classification by a linear head on the frozen backbone."""
    parts, found = [], with_value(evaluated(groups, 'classification'), classified('A'))
    if not found:
        raise Missing(f'`python eval.py {groups[0].runs[0].folder} --task classification` without --finetune')
    for dataset in dict.fromkeys(g.cfg.dataset for g in found):
        chosen = compared([g for g in found if g.cfg.dataset == dataset], 'method')
        metric = chosen[0].runs[0].read('classification')['metric']
        head, shown = heading(4, f'Audiovisual classification ({metric})', chosen)
        paper = printed.with_deviations('table_4', dataset) if shown else {}
        rows = [[label, *cells(g, [classified('A'), classified('F')], row)]
                for label, g, row in by_method(chosen, paper)]
        parts += [head, markdown(['Method', 'seeds', 'A ↑', 'F ↓'], rows) + '\n']
    return '\n'.join(parts)


def table_8(groups):
    """AVE event localization by the last model."""
    chosen = compared(evaluated(groups, 'ave'), 'method')
    head, shown = heading(8, 'Event localization on AVE', chosen)
    paper = printed.rows('table_8', chosen[0].cfg.dataset) if shown else {}
    rows = [[label, *cells(g, [lambda run: run.read('ave')['accuracy']], row)]
            for label, g, row in by_method(chosen, paper)]
    return head + '\n' + markdown(['Method', 'seeds', 'Acc ↑'], rows) + '\n'


# ---------------------------------------------------------------------- ablations: Tables 3, 9 and 10

def table_3(groups):
    """Sampling methods: Random, MATS, DER++ (which learns from all patches), LAVA, FRS, and both. GPU memory and
    samples/s are not a run's but `bench.py`'s."""
    chosen = compared([g for g in groups if g.cfg.method in ('flava', 'der++')], 'method', 'selection')
    kind = lambda g: 'der++' if g.cfg.method == 'der++' else g.cfg.selection
    if {kind(g) for g in chosen} <= {'both', 'der++'}:
        raise Missing(command(chosen[0] if chosen else None, method='flava', selection='importance')
                      + ', likewise forget-robust, random and mats')
    head, shown = heading(3, 'Sampling methods, mean over R@1, 5, 10', chosen, 'selection')
    paper = printed.rows('table_3', chosen[0].cfg.dataset) if shown else {}
    rows = []
    for key, name in SELECTIONS.items():
        own = [g for g in chosen if kind(g) == key]
        for g in own or [None] * (key in paper):
            row = paper.get(key, ())
            rows.append([name, *cells(g, AVERAGES, row), *(f'– ({number:.2f})' for number in row[len(AVERAGES):])])
    header = ['Method', *AVERAGES_HEADER] + (['GPU M. ↓', 'T.P. ↑'] if paper else [])
    note = ('\nGPU memory (GB) and throughput (samples/s) are the paper\'s alone; `python -m paper.bench` measures '
            'them here.\n')
    return head + '\n' + markdown(header, rows) + '\n' + (note if paper else '') + candidates(chosen)


def swept(option, groups):
    """The groups of Tables 9 and 10: FLAVA by the values of an option."""
    return compared([g for g in groups if g.cfg.method == 'flava'], option)


def swept_table(number, title, symbol, option, chosen):
    """Their table, with the paper's values of the option where its setting is theirs."""
    head, shown = heading(number, f'{title}, mean over R@1, 5, 10', chosen, option)
    paper = printed.by_value(f'table_{number}', chosen[0].cfg.dataset, option) if shown else {}
    own = {g.options[option]: g for g in chosen}
    rows = [[f'{value:g}', *cells(own.get(value), AVERAGES, paper.get(value, ()))] for value in sorted({*own, *paper})]
    return head + '\n' + markdown([symbol, *AVERAGES_HEADER], rows) + '\n' + candidates(chosen)


def table_9(groups):
    """Sampling ratios: ρ_a at the usual ρ_v, and ρ_v at the usual ρ_a."""
    parts = []
    for option, symbol in (('rho_a', 'ρ_a'), ('rho_v', 'ρ_v')):
        chosen = swept(option, groups)
        if len(chosen) > 1:
            parts.append(swept_table(9, f'Sampling ratio {symbol}', symbol, option, chosen))
    if not parts:
        raise Missing(command((chosen or [None])[0], method='flava', rho_a=0.375) + ', likewise 0.625, and --rho-v')
    return '\n'.join(parts)


def table_10(groups):
    """The temperature β of Eq. 2."""
    chosen = swept('beta', groups)
    if len(chosen) < 2:
        raise Missing(command((chosen or [None])[0], method='flava', beta=0.1) + ', likewise 0.5')
    return swept_table(10, 'Temperature', 'β', 'beta', chosen)


TABLES = {1: table_1, 3: table_3, 4: table_4, 7: table_7, 8: table_8, 9: table_9, 10: table_10}
