"""Markdown tables."""


def format_number(value, digits):
    """A number as text; '–' for None"""
    return '–' if value is None else f'{value:.{digits}f}'


def markdown_table(header, rows):
    """header: a list of cells; rows: lists of cells, of any type → Markdown"""
    rows = [[str(cell).replace('|', r'\|') for cell in row] for row in (header, ['---'] * len(header), *rows)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def table_over_stream(matrix, results, digits):
    """matrix [model][task] of the results' `after` and `tasks` → Markdown"""
    rows = [[name, *(format_number(value, digits) for value in row)] for name, row in zip(results['after'], matrix)]
    return markdown_table(['after learning', *results['tasks']], rows)
