"""What may stand beside the paper's numbers: for each table a run that has its setting, and one for each way of not
having it."""
import json
import re

import pytest

from fake_runs import fake_run, paper_run
from paper import setting, tables
from paper.groups import groups

BRACKETS = re.compile(r'^\|.*\(\d+\.\d+.*\)', re.M)         # a printed value, in a row
OWN = {     # for each table, on each data set, the runs that have the paper's setting
    (1, 'vggsound'): [{}], (1, 'audioset'): [{}],
    (3, 'vggsound'): [{}, {'selection': 'random'}], (4, 'vggsound'): [{}], (4, 'audioset'): [{}],
    (7, 'vggsound'): [{'order': 'shuffled', 'batch_size': 36}], (7, 'audioset'): [{'order': 'shuffled'}],
    (8, 'vggsound'): [{}], (9, 'vggsound'): [{}, {'rho_v': 0.375}], (10, 'vggsound'): [{}, {'beta': 0.1}]}
DECISIVE = [{'size': 'small'}, {'steps': 5}, {'epochs': 2}, {'clips_per_class': 10}, {'pretrain_steps': 0},
            {'image_size': 112}, {'embed_dim': 384}]
OTHER = [{'init': ''}, {'pretrain_data': ''}, {'memory_size': 500}, {'lam': 0.5}, {'tau': 0.1}, {'mask_ratio': 0.7},
         {'lr': 1e-3}, {'weight_decay': 0.1}, {'batch_size': 40}, {'max_roll': 10}, {'chunk': 8}, {'mae_weight': 0.0}]
OPEN = [{'alpha': 0.1}, {'pretrain_epochs': 3}, {'pretrain_batch_size': 96}, {'mir_candidates': 2}, {'seed': 5}]


def table(number, folder, dataset, **options):
    """Of runs that have the paper's setting but for these options."""
    own = [paper_run(folder / str(k), 0, dataset, **{**given, **options})
           for k, given in enumerate(OWN[number, dataset])]
    return tables.TABLES[number](groups(own))


@pytest.mark.parametrize('number, dataset', OWN)
def test_a_run_as_the_paper_has_it_stands_beside_its_numbers_without_a_note(number, dataset, tmp_path):
    found = table(number, tmp_path, dataset)
    assert BRACKETS.search(found) and 'in brackets the paper\'s' in found
    assert 'Not as' not in found and 'left out' not in found
    assert ('Candidates: ' in found) == (number in setting.OF_RETRIEVAL)
    for k, options in enumerate(OPEN):                               # of which the paper does not say what it has
        assert 'Not as' not in table(number, tmp_path / f'open{k}', dataset, **options)


@pytest.mark.parametrize('number, dataset', OWN)
def test_each_other_way_is_said_beside_the_papers_numbers(number, dataset, tmp_path):
    for k, options in enumerate(OTHER):
        (name, value), = options.items()
        found = table(number, tmp_path / str(k), dataset, **options)
        line = next((line for line in found.splitlines() if line.startswith('Not as in the paper')), '')
        assert f'no {name} (' in line if value == '' else f'{name} {value} (' in line, (options, found)
        assert line.count(' (') == 2 and BRACKETS.search(found)      # that alone is said, and the numbers are there
        assert found.index(line) < found.index('| ---')              # above them


@pytest.mark.parametrize('number, dataset', OWN)
def test_where_what_decides_the_numbers_differs_the_papers_are_left_out(number, dataset, tmp_path):
    for k, options in enumerate(DECISIVE):
        (name, value), = options.items()
        found = table(number, tmp_path / str(k), dataset, **options)
        assert f'are left out: what decides the numbers differs: {name} {value} (' in found, found
        assert not BRACKETS.search(found) and 'in brackets the paper' not in found.split('.')[0]


@pytest.mark.parametrize('number, dataset', [key for key in OWN if key[0] not in (1, 7)])
def test_the_order_of_the_tasks_decides_too(number, dataset, tmp_path):
    found = table(number, tmp_path, dataset, order='shuffled')
    assert 'left out' in found and 'order shuffled (as by default)' in found and not BRACKETS.search(found)


def test_tasks_of_ones_own_decide_too(tmp_path):
    run, = groups([paper_run(tmp_path / 'a')])[0].runs
    run.cfg.tasks = 'mine.csv'
    assert setting.differences(1, run.cfg) == {'tasks': 'tasks mine.csv (as by default)'}
    assert 'tasks' in setting.DECISIVE


@pytest.mark.parametrize('number, dataset', [key for key in OWN if key[0] in setting.OF_RETRIEVAL])
def test_candidates(number, dataset, tmp_path):
    """Among fewer clips a recall is higher: a few may be gone, not more than a tenth."""
    theirs = {'vggsound': 1353, 'audioset': 802}[dataset]
    few = table(number, tmp_path / 'few', dataset, candidates=theirs - 5)
    assert f'Not as in the paper (in brackets, what it has): {theirs - 5} candidates ({theirs}).' in few
    assert BRACKETS.search(few) and f'Candidates: {theirs - 5}; the paper\'s: {theirs}.' in few
    many = table(number, tmp_path / 'many', dataset, candidates=10 * theirs, retrieval_list='')
    assert f'{10 * theirs} candidates ({theirs})' in many and not BRACKETS.search(many)
    assert 'no retrieval_list (CAV-MAE\'s list)' in many


@pytest.mark.parametrize('number, task', [(4, 'classification'), (8, 'ave')])
def test_heads(number, task, tmp_path):
    run = paper_run(tmp_path / 'a', retrieval_list='')               # which is no matter to a head
    file = run / 'eval' / f'{task}.json'
    whole = json.loads(file.read_text())
    found = tables.TABLES[number](groups([run]))
    assert BRACKETS.search(found) and 'Not as' not in found
    file.write_text(json.dumps(whole | {'options': '--clips 300'}))
    found = tables.TABLES[number](groups([run]))
    assert 'left out: what decides the numbers differs: heads trained with --clips 300 (a)' in found
    assert not BRACKETS.search(found)


def test_a_head_for_each_task_is_not_the_papers(tmp_path):
    run = paper_run(tmp_path / 'a')
    file = run / 'eval' / 'classification.json'
    record = json.loads(file.read_text())
    record['acc'][0][1:] = [None] * (len(record['tasks']) - 1)       # as it was before one head was for all
    file.write_text(json.dumps(record))
    found = tables.table_4(groups([run]))
    assert 'a head for each task (a; one for all)' in found and not BRACKETS.search(found)


def test_table_7_has_a_batch_of_36_on_vggsound(tmp_path):
    found = tables.table_7(groups([paper_run(tmp_path / 'a', order='shuffled')]))
    assert 'Not as in the paper (in brackets, what it has): batch_size 48 (36).' in found


def test_what_one_group_alone_does_otherwise_is_said_of_it(tmp_path):
    runs = [paper_run(tmp_path / 'er', method='er', init=''), fake_run(tmp_path / 'other')]
    runs += [paper_run(tmp_path / 'flava', method='flava', init='', candidates=1340)]
    found = tables.table_1(groups(runs))
    assert 'what it has): no init (an ImageNet MAE with its decoder); 1340 candidates (1353) in FLAVA (Ours).' in found
    assert 'stream of shapes; in percent.' in found and 'The paper\'s values are of another data set' in found


def test_every_option_is_open_or_the_papers():
    """So that a new option is one or the other."""
    from config import Config
    names = set(Config.__dataclass_fields__)
    assert setting.OPEN | setting.OF_NO_RESULT | setting.DECISIVE | set(setting.GIVEN) <= names
    assert set(setting.setting(1, 'vggsound')) == names - setting.OPEN - setting.OF_NO_RESULT
