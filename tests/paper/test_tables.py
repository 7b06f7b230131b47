"""Tables: ours against what fake runs recorded, the paper's beside them."""
import statistics

import pytest

from fake_runs import cells_of, fake_run, paper_run, results_of
from paper import tables
from paper.groups import SELECTIONS, Missing, groups


def test_the_paper_stands_beside_its_own_method_only(tmp_path):
    """FLAVA with another selection goes by another name; other options than the paper's are named."""
    runs = [paper_run(tmp_path / 'lava', method='flava', selection='importance', memory_size=50, evaluated=())]
    table = tables.table_1(groups(runs))
    assert cells_of(table, 'FLAVA (Ours)')[2] == '– (5.34)' and '(' not in cells_of(table, SELECTIONS['importance'])[2]
    assert 'Not as in the paper (in brackets, what it has): ' in table and 'memory_size 50 (2000)' in table


def test_tables_of_an_order_need_runs_of_it(tmp_path):
    usual = fake_run(tmp_path / 'usual', 0, dataset='vggsound', evaluated=())
    with pytest.raises(Missing, match='--batch-size 36'):
        tables.table_7(groups([usual]))
    shuffled = fake_run(tmp_path / 'shuffled', 0, dataset='vggsound', order='shuffled', evaluated=())
    with pytest.raises(Missing) as missing:
        tables.table_1(groups([shuffled]))
    assert '--order' not in str(missing.value)


def test_retrieval_tables_put_the_papers_values_beside_ours(tmp_path):
    paths = [paper_run(tmp_path / f'{m}{s}', s, method=m, evaluated=()) for m in ('er', 'flava') for s in (0, 1)]
    paths += [paper_run(tmp_path / 'as', 5, 'audioset', method='flava+', order='shuffled', evaluated=())]
    table = tables.table_1(groups(paths))
    part = table[table.index('| Video-to-Audio'):]
    own = [results_of(path)['video_to_audio']['R@5']['F'] for path in paths[2:4]]
    assert cells_of(part, 'FLAVA (Ours)')[:2] == ['FLAVA (Ours)', '2']
    assert cells_of(part, 'FLAVA (Ours)')[5] == f'{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f} (4.84)'
    assert cells_of(part, 'LUMP')[1:4] == ['0', '– (3.24)', '– (3.30)']
    assert cells_of(part, 'Multitask')[-2:] == ['– (19.80)', '–']
    assert 'AudioSet' not in table and 'Candidates: 1353; the paper\'s: 1353.' in table
    shuffled = tables.table_7(groups(paths))
    own = results_of(paths[-1])['audio_to_video']['Avg']['A']
    assert cells_of(shuffled, 'FLAVA+ (Ours)')[8] == f'{own:.2f} (15.67)' and 'VGGSound' not in shuffled


def test_tables_of_other_data_show_only_ours_and_say_so(tmp_path):
    table = tables.table_1(groups([fake_run(tmp_path / 'a')]))
    assert 'of another data set' in table and '(14.16)' not in table and 'LUMP' not in table
    with pytest.raises(Missing, match='python train.py --dataset shapes --method flava --order shuffled --out'):
        tables.table_7(groups([tmp_path / 'a']))


def test_ablation_tables(tmp_path):
    paths = [paper_run(tmp_path / s, k, selection=s) for k, s in enumerate(('both', 'importance', 'mats'))]
    paths += [paper_run(tmp_path / 'derpp', 4, method='der++')]
    paths += [paper_run(tmp_path / f'a{r}', 5, rho_a=r) for r in (0.375, 0.7)]
    paths += [paper_run(tmp_path / 'beta', 6, beta=0.1)]
    found = groups(paths)
    average = lambda path, d, which: results_of(path)[d]['Avg'][which]
    table = tables.table_3(found)
    assert cells_of(table, 'LAVA')[2] == f'{average(paths[1], "audio_to_video", "A"):.2f} (13.44)'
    assert cells_of(table, 'DER++')[5] == f'{average(paths[3], "video_to_audio", "F"):.2f} (6.66)'
    assert cells_of(table, 'FRS')[1:3] == ['0', '– (13.40)'] and cells_of(table, 'MATS')[-1] == '– (21.42)'
    table = tables.table_9(found)
    assert cells_of(table, '0.375')[2] == f'{average(paths[4], "audio_to_video", "A"):.2f} (13.76)'
    assert cells_of(table, '0.7')[2] == f'{average(paths[5], "audio_to_video", "A"):.2f}' and 'ρ_v' not in table
    assert cells_of(tables.table_10(found), '0.1')[4] == f'{average(paths[6], "video_to_audio", "A"):.2f} (14.23)'
    for table in (tables.table_3, tables.table_9, tables.table_10):
        with pytest.raises(Missing, match='python train.py'):
            table(groups(paths[:1]))


def test_downstream_tables(tmp_path):
    paths = [paper_run(tmp_path / f'{s}', s, method='cls-er') for s in range(2)]
    own = [results_of(path, 'eval/classification')['A'] for path in paths]
    expected = f'{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f} (58.34 ± 0.14)'
    assert cells_of(tables.table_4(groups(paths)), 'CLS-ER')[2] == expected
    ave = statistics.mean(results_of(path, 'eval/ave')['accuracy'] for path in paths)
    assert cells_of(tables.table_8(groups(paths)), 'CLS-ER')[2].startswith(f'{ave:.2f} ± ')
    assert cells_of(tables.table_8(groups(paths)), 'ER')[2] == '– (54.98)'
    (paths[0] / 'eval' / 'classification.json').unlink()
    assert cells_of(tables.table_4(groups(paths)), 'CLS-ER')[1:3] == ['1', f'{own[1]:.2f} (58.34 ± 0.14)']
