"""The paper's numbers: as printed, and consistent with each other."""
import pytest

from paper.groups import DATASET_TITLES, DIRECTIONS, METHOD_TITLES
from paper.paper_numbers import candidates, rows


@pytest.mark.parametrize('table', ('table_1', 'table_7'))
def test_avg_is_the_mean_of_recalls(table):
    for dataset in DATASET_TITLES:
        for direction in DIRECTIONS:
            found = rows(table, dataset, direction)
            assert list(found) == list(METHOD_TITLES)[:10]
            for method, row in found.items():
                assert len(row) == 8 and row[0] <= row[2] <= row[4]     # A of a larger K is larger
                for start in (0, 1):                                    # A and F
                    *recalls, average = row[start::2]
                    assert (average is None) == (method == 'multitask' and start == 1)
                    assert average is None or abs(sum(recalls) / 3 - average) < 0.0051, (dataset, direction, method)


def test_rows_are_as_printed():
    assert rows('table_1', 'vggsound', 'audio_to_video')['flava'] == (5.34, 2.04, 15.04, 5.20, 22.10, 5.90, 14.16, 4.38)
    assert rows('table_1', 'audioset', 'video_to_audio')['multitask'][-3:] == (None, 23.15, None)
    assert rows('table_7', 'audioset', 'audio_to_video')['lump'][:2] == (4.45, 3.40)
    assert rows('table_2')['gmed'] == (32.03, 5.65) and len(rows('table_2')) == 8
    assert rows('table_3', 'vggsound')['mats'] == (12.91, 6.55, 12.70, 6.80, 21.30, 21.42)
    assert rows('table_4', 'vggsound')['flava'] == (58.65, 0.28, 0.64, 0.27)
    assert rows('table_8', 'vggsound')['er'] == (54.98,) and 'mir' not in rows('table_8', 'vggsound')
    assert rows('table_9', 'vggsound', 'rho_v')['0.625'] == (13.82, 4.50, 13.53, 5.27)
    assert list(rows('table_10', 'vggsound', 'beta')) == ['0.1', '0.4', '0.5']
    assert [candidates(dataset) for dataset in ('vggsound', 'audioset', 'shapes')] == [1353, 802, None]
    assert rows('table_1', 'shapes') == {}
