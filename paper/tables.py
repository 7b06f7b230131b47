"""Tables 1, 3, 4, 7, 8, 9 and 10 as Markdown, from the results of finished runs.

In:  groups of finished runs (`groups.py`) and the paper's numbers (`paper_numbers.py`).
Out: Markdown: mean ± standard deviation over seeds. For runs of the paper's size on its datasets, its numbers follow in
     brackets, and a line lists the options that differ from the paper's.
"""
from paper import paper_numbers
from paper.groups import (DIRECTION_TITLES, METHOD_TITLES, SELECTION_TITLES, Missing, arrow, classification, comparable,
                          dataset_title, labels, over_seeds, retrieval, text, with_evaluation, with_value)
from utils.markdown import markdown_table

RECALLS = [(recall, which) for recall in ('R@1', 'R@5', 'R@10', 'Avg') for which in 'AF']      # columns of Tables 1, 7
# columns of Tables 3, 9, 10
AVERAGES = [retrieval(direction, 'Avg', which) for direction in DIRECTION_TITLES for which in 'AF']
AVERAGES_HEADER = ['seeds', 'A→V A ↑', 'A→V F ↓', 'V→A A ↑', 'V→A F ↓']


# ------------------------------------------------------------------------------- what tables share

def heading(table, title, groups, paper, *varied, **own):
    """The lines above a table. groups share a dataset; paper: the paper's rows, or {} where they are not shown.

    varied: options that the table varies; own: the paper's options for this table alone
    """
    brackets = '; the paper\'s numbers in brackets' if paper else ''
    note = paper_numbers.differences(groups, *varied, **own) if paper else ''
    line = f'**Table {table}.** {title}; dataset {dataset_title(groups)}; percent{brackets}.\n'
    return line + (f'\n{note}' if note else '')


def candidates(groups):
    """A line with the number of candidates that retrieval searches."""
    ours = sorted({run.results['candidates'] for group in groups for run in group.runs})
    theirs = paper_numbers.candidates(groups[0].cfg.dataset)
    return f'Candidates: {", ".join(map(str, ours))}' + (f' (paper: {theirs}).\n' if theirs else '.\n')


def probe_options(groups, name):
    """A line with the options that the linear heads of an evaluation were trained with."""
    found = {run.load(name).get('options', 'not recorded') or 'Table 6' for group in groups for run in group.runs}
    return f'Options of the linear heads: {"; ".join(sorted(found))}.\n'


def by_method(groups, paper):
    """[(label, group or None, the paper's row or ())], in the order of Table 1, with the paper's rows that we lack.

    paper: {method: row}
    """
    names, found = labels(groups), []
    for method, title in METHOD_TITLES.items():
        own = [(label, group) for label, group in zip(names, groups) if group.cfg.method == method]
        # FLAVA with another selection is not the paper's FLAVA
        found += [(label, group, paper.get(method, ()) if group.title == title else ()) for label, group in own]
        if method in paper and not any(group.title == title for _, group in own):
            found.append((title, None, paper[method]))
    return found


def cells(group, columns, row):
    """Number of seeds, then each column's number. columns: [value(run)]; group may be None; row: the paper's or ()"""
    if group is None:
        ours, seeds = [(None, None)] * len(columns), 0
    else:
        ours = [over_seeds(group, value) for value in columns]
        seeds = sum(columns[0](run) is not None for run in group.runs)
    paper = [*row, *[None] * (len(columns) - len(row))]
    return [seeds, *map(text, ours, paper)]


# ------------------------------------------------------------------------ retrieval: Tables 1 and 7

def retrieval_table(table, title, groups, **own):
    """Tables 1 and 7: a table for each direction. own: the paper's options for this table alone"""
    chosen = comparable(groups, 'method', 'selection')
    paper = {direction: paper_numbers.rows_for(chosen, f'table_{table}', direction) for direction in DIRECTION_TITLES}
    parts = [heading(table, title, chosen, any(paper.values()), 'selection', **own)]
    for direction, name in DIRECTION_TITLES.items():
        columns = [retrieval(direction, *column) for column in RECALLS]
        rows = [[label, *cells(group, columns, row)] for label, group, row in by_method(chosen, paper[direction])]
        header = [name, 'seeds'] + [f'{recall} {arrow(which)}' for recall, which in RECALLS]
        parts.append(markdown_table(header, rows) + '\n')
    return '\n'.join([*parts, candidates(chosen)])


def table_1(groups):
    """Zero-shot retrieval, tasks in the paper's order."""
    chosen = [group for group in groups if not group.cfg.order]
    if not chosen:
        raise Missing('runs of `python train.py` without --order')
    return retrieval_table(1, 'Zero-shot retrieval', chosen)


def table_7(groups):
    """Zero-shot retrieval, tasks in shuffled order."""
    chosen = [group for group in groups if group.cfg.order == 'shuffled']
    if not chosen:
        raise Missing('runs of `python train.py --order shuffled` (VGGSound: with --batch-size 36)')
    own = dict(batch_size=36) if chosen[0].cfg.dataset == 'vggsound' else {}                      # App. E
    return retrieval_table(7, 'Zero-shot retrieval, shuffled tasks', chosen, order='shuffled', **own)


# ------------------------------------------------------------------------ downstream: Tables 4 and 8

def table_4(groups):
    """Classification by a linear head on the frozen backbone."""
    chosen = comparable(with_value(with_evaluation(groups, 'classification'), classification('A')), 'method',
                        'selection')
    paper = paper_numbers.rows_for(chosen, 'table_4')
    # the paper's numbers come with deviations: A, ±, F, ±
    paper = {method: tuple(zip(row[::2], row[1::2])) for method, row in paper.items()}
    columns = [classification('A'), classification('F')]
    rows = [[label, *cells(group, columns, row)] for label, group, row in by_method(chosen, paper)]
    metric = chosen[0].runs[0].load('classification')['metric']
    head = heading(4, f'Classification ({metric})', chosen, paper, 'selection')
    head += '\n' + probe_options(chosen, 'classification')
    return head + '\n' + markdown_table(['Method', 'seeds', 'A ↑', 'F ↓'], rows) + '\n'


def table_8(groups):
    """AVE event localization by the last model."""
    def accuracy(run):
        return run.load('ave')['accuracy']
    chosen = comparable(with_evaluation(groups, 'ave'), 'method', 'selection')
    paper = paper_numbers.rows_for(chosen, 'table_8')
    rows = [[label, *cells(group, [accuracy], row)] for label, group, row in by_method(chosen, paper)]
    head = heading(8, 'Event localization on AVE', chosen, paper, 'selection')
    head += '\n' + probe_options(chosen, 'ave')
    return head + '\n' + markdown_table(['Method', 'seeds', 'Acc ↑'], rows) + '\n'


# ---------------------------------------------------------------------- ablations: Tables 3, 9 and 10

def table_3(groups):
    """Selections: Random, MATS, DER++ (all patches), LAVA, FRS and both. `bench.py` measures memory and throughput."""
    chosen = comparable([g for g in groups if g.cfg.method in ('flava', 'der++')], 'method', 'selection')
    own = {}
    for group in chosen:
        own.setdefault('der++' if group.cfg.method == 'der++' else group.cfg.selection, []).append(group)
    if set(own) <= {'both', 'der++'}:
        raise Missing('runs of `python train.py --method flava --selection importance`, forget-robust, random or mats')
    paper, rows = paper_numbers.rows_for(chosen, 'table_3'), []
    for selection, title in SELECTION_TITLES.items():
        row = paper.get(selection, ())[:len(AVERAGES)]          # memory and throughput follow
        for group in own.get(selection, [None] if row else []):
            rows.append([title, *cells(group, AVERAGES, row)])
    head = heading(3, 'Selections, mean over R@1, 5, 10', chosen, paper, 'selection')
    return '\n'.join([head, markdown_table(['Method', *AVERAGES_HEADER], rows) + '\n', candidates(chosen)])


def option_table(table, title, symbol, option, groups):
    """Tables 9 and 10: FLAVA by the values of one option. '' where there is one value only."""
    chosen = comparable([group for group in groups if group.title == METHOD_TITLES['flava']], option)
    if len(chosen) < 2:
        return ''
    paper = {float(value): row for value, row in paper_numbers.rows_for(chosen, f'table_{table}', option).items()}
    own = {group.options[option]: group for group in chosen}
    rows = [[f'{value:g}', *cells(own.get(value), AVERAGES, paper.get(value, ()))] for value in sorted({*own, *paper})]
    head = heading(table, f'{title} {symbol}, mean over R@1, 5, 10', chosen, paper, option)
    return '\n'.join([head, markdown_table([symbol, *AVERAGES_HEADER], rows) + '\n', candidates(chosen)])


def table_9(groups):
    """Sampling ratios: ρ_a at the default ρ_v, and ρ_v at the default ρ_a."""
    parts = [option_table(9, 'Sampling ratio', symbol, option, groups)
             for option, symbol in (('rho_a', 'ρ_a'), ('rho_v', 'ρ_v'))]
    if not any(parts):
        raise Missing('runs of `python train.py --method flava --rho-a 0.375`, 0.625, or --rho-v')
    return '\n'.join(filter(None, parts))


def table_10(groups):
    """The temperature β of Eq. 2."""
    table = option_table(10, 'Temperature', 'β', 'beta', groups)
    if not table:
        raise Missing('runs of `python train.py --method flava --beta 0.1` or 0.5')
    return table


TABLES = {1: table_1, 3: table_3, 4: table_4, 7: table_7, 8: table_8, 9: table_9, 10: table_10}
