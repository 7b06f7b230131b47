"""The paper's numbers: read as printed, and against themselves."""
import pytest

from paper import printed
from paper.groups import DATASETS, DIRECTIONS, NAMES, SELECTIONS


@pytest.mark.parametrize('table', ('table_1', 'table_7'))
def test_printed_retrieval_averages_its_recalls(table):
    """Avg is the mean of R@1, 5, 10, to rounding, in every row as printed."""
    checked = 0
    for dataset in DATASETS:
        for direction in DIRECTIONS:
            rows = printed.rows(table, dataset, direction)
            assert list(rows) == [name for name in NAMES if name in rows] and len(rows) == 10
            for method, row in rows.items():
                assert len(row) == 8
                for start in (0, 1):                                    # A and F
                    *recalls, average = row[start::2]
                    assert (average is None) == (method == 'multitask' and start == 1)
                    if average is not None:
                        assert abs(sum(recalls) / 3 - average) < 0.0051, (dataset, direction, method, start)
                        checked += 1
                    if start == 0:
                        assert recalls == sorted(recalls)               # A of a larger K is larger
    assert checked == 2 * 2 * (10 * 2 - 1)


def test_rows_are_as_printed():
    flava = printed.rows('table_1', 'vggsound', 'audio_to_video')['flava']
    assert flava == (5.34, 2.04, 15.04, 5.20, 22.10, 5.90, 14.16, 4.38)
    assert printed.rows('table_1', 'audioset', 'video_to_audio')['multitask'][-3:] == (None, 23.15, None)
    assert printed.rows('table_7', 'audioset', 'audio_to_video')['lump'][:2] == (4.45, 3.40)
    assert printed.rows('table_2')['gmed'] == (32.03, 5.65) and len(printed.rows('table_2')) == 8
    assert printed.rows('table_3', 'vggsound')['mats'] == (12.91, 6.55, 12.70, 6.80, 21.30, 21.42)
    assert printed.with_deviations('table_4', 'vggsound')['flava'] == ((58.65, 0.28), (0.64, 0.27))
    assert printed.with_deviations('table_4', 'audioset')['multitask'] == ((67.81, 0.12), (None, None))
    assert printed.rows('table_8', 'vggsound')['er'] == (54.98,) and 'mir' not in printed.rows('table_8', 'vggsound')
    assert printed.by_value('table_9', 'vggsound', 'rho_v')[0.625] == (13.82, 4.50, 13.53, 5.27)
    assert list(printed.by_value('table_10', 'vggsound', 'beta')) == [0.1, 0.4, 0.5]
    assert [printed.candidates(dataset) for dataset in ('vggsound', 'audioset', 'shapes')] == [1353, 802, None]


def test_of_other_data_the_paper_prints_nothing():
    for number in (1, 3, 4, 7, 8, 9, 10):
        assert printed.rows(f'table_{number}', 'shapes') == {}
    assert printed.rows('table_8', 'audioset') == printed.by_value('table_9', 'shapes', 'rho_a') == {}


def test_every_cell_is_a_number_and_every_row_is_named_as_the_options_are():
    files = sorted(printed.FOLDER.glob('*.csv'))
    assert len(files) == 9
    named = {*NAMES, *SELECTIONS, *DATASETS, *DIRECTIONS, 'rho_a', 'rho_v', 'beta'}
    for file in files:
        header, *rows = [line.split(',') for line in file.read_text().splitlines()]
        words = [name in ('dataset', 'direction', 'method', 'selection', 'option') for name in header]
        assert rows and {len(row) for row in rows} == {len(header)}
        keys = {tuple(row[:sum(words) + ('value' in header)]) for row in rows}
        assert len(keys) == len(rows), f'{file}: a row twice'
        for row in rows:
            for cell, word in zip(row, words):
                assert cell in named if word else cell == '' or float(cell) >= 0, (file, row)


def test_printed_tables_agree_with_each_other():
    """Numbers that the paper prints in several tables; and where its text or tables disagree, as printed."""
    table_1 = {direction: printed.rows('table_1', 'vggsound', direction) for direction in DIRECTIONS}
    averages = lambda method: tuple(number for direction in DIRECTIONS for number in table_1[direction][method][-2:])
    table_2, table_3 = printed.rows('table_2'), printed.rows('table_3', 'vggsound')
    flava = averages('flava')
    assert flava == table_3['both'][:4] == printed.by_value('table_10', 'vggsound', 'beta')[0.4]
    assert all(flava == printed.by_value('table_9', 'vggsound', option)[0.5] for option in ('rho_a', 'rho_v'))
    assert averages('der++') == table_3['der++'][:4]
    for dataset in DATASETS:
        shuffled = printed.rows('table_7', dataset, 'audio_to_video')
        assert printed.rows('table_1', dataset, 'audio_to_video')['multitask'] == shuffled['multitask']
    assert table_2['flava'] == table_3['both'][4:] and table_2['der++'][0] == table_3['der++'][4]
    # Inconsistent in print: audio to video the text claims gains of 1.52 and 2.80, the table gives 1.42 and 2.70 (over
    # CLS-ER's 12.74); DER++'s throughput is 17.01 in Table 2 and 14.13 in Table 3.
    assert round(flava[0] - averages('cls-er')[0], 2) == 1.42
    assert (table_2['der++'][1], table_3['der++'][5]) == (17.01, 14.13)


def test_printed_gains_are_those_of_the_text():
    """Gains that §1 and §5.2 claim over the best of the others."""
    ours = ('flava', 'flava+')
    others = [m for m in printed.rows('table_1', 'vggsound', 'audio_to_video') if m not in (*ours, 'multitask')]
    gain = lambda rows, method, k: round(rows[method][k] - max(rows[other][k] for other in others), 2)
    average = -2                                                        # A of Avg, the last but F
    rows = printed.rows('table_1', 'vggsound', 'video_to_audio')
    assert [gain(rows, method, average) for method in ours] == [1.80, 3.26]
    parts = [printed.rows('table_1', 'audioset', direction) for direction in DIRECTIONS]
    assert [gain(rows, method, average) for rows in parts for method in ours] == [0.03, 2.94, 0.58, 3.76]
    parts = [printed.rows('table_4', dataset) for dataset in DATASETS]
    assert [gain(rows, method, 0) for rows in parts for method in ours] == [0.31, 0.73, 0.28, 0.67]
