"""The numbers that the paper prints, from `numbers/`: one CSV file a table.

In:  numbers/*.csv: first the columns that name a row (dataset, direction, method …), then the numbers. An empty cell is
     the paper's "–". Names are those of `train.py`'s options.
Out: {name of a row: its numbers}, for tables that show the paper's numbers beside ours; and how a run's options differ
     from the paper's.
"""
import csv
import dataclasses
import functools
from pathlib import Path

from config import RUNTIME_FIELDS, Config, preset, reads_option

FOLDER = Path(__file__).parent / 'numbers'
# options that the user must give, with the paper's values (App. B)
GIVEN = {'init': 'an ImageNet MAE with its decoder', 'pretrain_data': 'the other dataset',
         'retrieval_list': 'CAV-MAE\'s'}
NOT_COMPARED = {*RUNTIME_FIELDS, 'method', 'data', 'seed', 'data_seed'}


@functools.cache
def lines(table):
    """numbers/TABLE.csv → its lines below the header, each a tuple of cells"""
    with open(FOLDER / f'{table}.csv', newline='', encoding='utf-8') as file:
        return [tuple(line) for line in csv.reader(file)][1:]


def rows(table, *key):
    """The rows whose first cells are `key` → {next cell: (float, or None for "–", …)}, in the paper's order.

    rows('table_1', 'vggsound', 'audio_to_video') → {'finetune': (0.98, 4.16, …), 'er': …}
    Empty where the paper has no such rows, for example for other datasets.
    """
    return {line[len(key)]: tuple(float(cell) if cell else None for cell in line[len(key) + 1:])
            for line in lines(table) if line[:len(key)] == key}


def rows_for(groups, table, *key):
    """`rows` of these groups' dataset; empty unless all runs have the paper's size."""
    if any(group.cfg.size != 'base' for group in groups):
        return {}
    return rows(table, groups[0].cfg.dataset, *key)


def candidates(dataset):
    """How many clips retrieval searches (Figure 6 c); None where the paper does not say."""
    row = rows('figure_6c').get(dataset)
    return row and int(row[0])


def differences(groups, *varied, **own):
    """One line that names the options of these groups that differ from the paper's; '' where none does.

    varied: options that the table itself varies; own: the paper's values for this table alone
    """
    dataset = groups[0].cfg.dataset
    paper = Config(**{**preset(dataset, 'base'), **own})
    found = []
    for name, theirs in dataclasses.asdict(paper).items():
        values = sorted({getattr(group.cfg, name) for group in groups if reads_option(group.cfg, name)})
        if name in GIVEN:
            found += [f'no {name} ({GIVEN[name]})'] if '' in values else []
        elif name not in {*NOT_COMPARED, *varied} and values not in ([], [theirs]):
            found.append(f'{name} {", ".join(map(str, values))} ({theirs})')
    return f'Options that differ from the paper\'s (in brackets): {"; ".join(found)}.\n' if found else ''
