"""From files in each data set's own layout, as a user would: train.py, every task of eval.py, the figures."""
import json
import subprocess
import sys

import pytest

import eval as evaluation
from conftest import ROOT
from paper import figures
from running import TINY


@pytest.fixture(scope='module')
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp('layouts')
    for layout in ('audioset', 'vggsound', 'ave'):
        subprocess.run([sys.executable, '-m', 'streams.shapes', '--out', str(folder / layout), '--layout', layout,
                        '--train', '6', '--test', '6', '--pretrain', '6', '--size', '48'],
                       cwd=ROOT, check=True, capture_output=True)
    return folder


def test_audioset_from_pretraining_to_figures(layouts, tmp_path, here, capsys):
    """Initial pre-training on VGGSound, a retrieval list, a shuffled stream, clips of several labels, AVE."""
    code, out, err = here(
        ['--dataset', 'audioset', '--data', layouts / 'audioset', '--tasks', layouts / 'audioset/tasks.csv',
         '--retrieval-list', layouts / 'audioset/retrieval.json', '--pretrain-data', layouts / 'vggsound',
         '--order', 'shuffled', *TINY, '--epochs', '2', '--pretrain-epochs', '1', '--workers', '0',
         '--out', 'run'], tmp_path)
    assert code == 0, err
    assert 'labels of two tasks' in out and 'initial pre-training is kept' in out
    saved = json.loads((tmp_path / 'run/results.json').read_text())
    assert saved['tasks'] == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir']

    tasks = {'retrieval': [], 'classification': ['--epochs', '2', '--batch-size', '6'],
             'ave': ['--data', str(layouts / 'ave'), '--epochs', '2'], 'localization': [], 'gap': [], 'spurious': []}
    for task, options in tasks.items():
        evaluation.main(['run', '--task', task, '--device', 'cpu', *options])
        said = capsys.readouterr().out
        table = (tmp_path / f'run/eval/{task}.md').read_text()
        assert table.strip() in said and (tmp_path / f'run/eval/{task}.png').stat().st_size > 5000
    read = lambda task: json.loads((tmp_path / f'run/eval/{task}.json').read_text())
    assert read('retrieval')['audio_to_video'] == saved['audio_to_video']      # the models kept are the ones evaluated
    assert read('classification')['metric'] == 'mAP' and len(read('classification')['acc']) == 6
    assert 0 <= read('ave')['accuracy'] <= 100 and len(read('ave')['classes']) > 2
    assert read('gap')['after'] == ['initial', *saved['tasks']] and len(read('gap')['over_stream']) == 6
    unknown = {'tasks': saved['tasks'], 'after': ['initial', *saved['tasks']]}
    assert read('localization') == unknown                                     # nobody knows the truth

    figures.main(['run', '--out', 'drawn'])
    lines = capsys.readouterr().out.splitlines()
    for number in (2, 3, 5, 12, 13, 14, 16, 17):
        assert f'figure {number}: drawn/figure_{number:02d}.png' in lines
    for number in (4, 7, 8):
        assert f'table {number}: drawn/table_{number:02d}.md' in lines
    assert any(line.startswith('figure 10: needs `python train.py') for line in lines)
    table_7 = (tmp_path / 'drawn/table_07.md').read_text()
    assert 'AudioSet' in table_7 and 'left out' in table_7 and '13.06' not in table_7      # the paper's FLAVA

    evaluation.main(['run'])                                                   # the table of several runs, here of one
    assert 'FLAVA (Ours)' in capsys.readouterr().out


def test_shapes_are_measured_and_fine_tuning_is_an_option(tmp_path, here):
    short = ['--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '12']
    code, _, err = here([*TINY, *short, '--out', 'run'], tmp_path)
    assert code == 0, err
    finetune = ['--last', '--finetune', '--epochs', '1', '--clips', '9']
    for task, options in (('localization', []), ('spurious', []), ('classification', finetune)):
        evaluation.main(['run', '--task', task, '--device', 'cpu', *options])
    read = lambda task: json.loads((tmp_path / f'run/eval/{task}.json').read_text())
    last = read('classification-finetuned-last')               # beside what all models would give, not in its place
    assert last['finetune'] and last['metric'] == 'accuracy' and len(last['acc']) == 1 and last['F'] is None
    found = read('localization')
    assert len(found['avm']['auc_v']) == 7 and all(0 <= x <= 1 for row in found['avm']['auc_v'] for x in row)
    assert set(read('spurious')['avm']['auc_v']) == {'own', 'other'}
    evaluation.main(['run/models/2.pt', '--task', 'gap', '--device', 'cpu'])       # one model in place of a run
    assert len(read('gap-2')['gap']) == 1 and read('gap-2')['after'] == ['birch']
    for t in (1, 2):
        (tmp_path / f'run/models/{t}.pt').unlink()
    evaluation.main(['run', '--task', 'retrieval', '--device', 'cpu'])             # without a model of each task there
    retrieval = read('retrieval')                                                  # is no F
    assert retrieval['after'] == ['cedar', 'elm', 'fir', 'oak'] and retrieval['audio_to_video']['R@10']['F'] is None


def test_mistakes(tmp_path, monkeypatch, capsys):
    """One line, exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    for command, words in (([evaluation, 'empty', '--task', 'gap'], 'config.json'),
                           ([evaluation, 'nowhere', '--task', 'gap'], 'nowhere'),
                           ([evaluation, 'empty'], 'config.json'), ([figures, 'nowhere'], 'nowhere'),
                           ([evaluation, 'empty', '--task', 'gab'], 'gap'),
                           ([evaluation, 'empty', '--task', 'gap', '--device', 'qpu'], 'config.json')):
        with pytest.raises(SystemExit) as stopped:
            command[0].main(command[1:])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and words in err, err
