"""Markdown tables."""


def number(value, digits):
    """A number as text; '–' for None"""
    return '–' if value is None else f'{value:.{digits}f}'


def markdown_table(header, rows):
    """header: a list of cells; rows: lists of cells → Markdown"""
    lines = ['| ' + ' | '.join(cells) + ' |' for cells in [header, *rows]]
    lines.insert(1, '| --- ' * len(header) + '|')
    return '\n'.join(lines)


def table_over_stream(matrix, results, digits):
    """matrix [model][task] of the results' `after` and `tasks` → Markdown"""
    rows = [[name, *(number(value, digits) for value in row)] for name, row in zip(results['after'], matrix)]
    return markdown_table(['after learning', *results['tasks']], rows)
