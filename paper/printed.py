"""The numbers that the paper prints, from `printed/`: a file a table.

In:  printed/*.csv: first the columns that say whose the numbers are, then the numbers; empty is the paper's "–".
Out: {name of a row: its numbers}, for tables that show the paper's beside ours.

The cells that name a row (a method, a selection, a data set) are spelled as the options of `train.py` are.
"""
import csv
import functools
from pathlib import Path

FOLDER = Path(__file__).parent / 'printed'


@functools.cache
def lines(name):
    """printed/NAME.csv → its lines below the header, each a tuple of words"""
    with open(FOLDER / f'{name}.csv', newline='', encoding='utf-8') as file:
        return [tuple(line) for line in csv.reader(file)][1:]


def rows(name, *of):
    """Rows of printed/NAME.csv that begin with `of` → {next cell: (float, or None for "–", …)}, in the paper's order.

    rows('table_1', 'vggsound', 'audio_to_video') → {'finetune': (0.98, 4.16, …), 'er': …}
    Empty where the paper has none such: a data set that it does not use, say.
    """
    return {line[len(of)]: tuple(float(cell) if cell else None for cell in line[len(of) + 1:])
            for line in lines(name) if line[:len(of)] == of}


def by_value(name, *of):
    """`rows` that go by a number, the value of an option (Tables 9, 10) → {float: (float, …)}"""
    return {float(value): numbers for value, numbers in rows(name, *of).items()}


def with_deviations(name, *of):
    """`rows` of numbers that stand each before its deviation (Table 4) → {name: ((mean, deviation), …)}"""
    return {row: tuple(zip(numbers[::2], numbers[1::2])) for row, numbers in rows(name, *of).items()}


def candidates(dataset):
    """Among how many clips retrieval searches (Figure 6 c); None where the paper does not say."""
    found = rows('figure_6c').get(dataset)
    return found and int(found[0])
