"""Whole runs as a user starts them, on files in each data set's layout: train.py, each evaluation, the figures."""
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
                        '--train', '4', '--test', '3', '--pretrain', '4', '--size', '48'],
                       cwd=ROOT, check=True, capture_output=True)
    return folder


def load(folder, name):
    return json.loads((folder / f'run/eval/{name}.json').read_text())


def test_audioset_from_pretraining_to_figures(layouts, tmp_path, here, capsys):
    """Initial pre-training on VGGSound, a retrieval list, a shuffled stream, several labels per clip, AVE."""
    code, out, err = here(
        ['--dataset', 'audioset', '--data', layouts / 'audioset', '--tasks', layouts / 'audioset/tasks.csv',
         '--retrieval-list', layouts / 'audioset/retrieval.json', '--pretrain-data', layouts / 'vggsound',
         '--order', 'shuffled', *TINY, '--epochs', '2', '--pretrain-epochs', '1', '--workers', '0',
         '--out', 'run'], tmp_path)
    assert code == 0, err
    saved = json.loads((tmp_path / 'run/results.json').read_text())
    assert saved['tasks'] == ['birch', 'elm', 'oak', 'ash', 'cedar', 'fir']

    # each evaluation
    names = {'retrieval': [], 'classification': ['--epochs', '2', '--batch-size', '6'],
             'ave': ['--data', str(layouts / 'ave'), '--epochs', '2'], 'localization': [], 'gap': [], 'spurious': []}
    for name, words in names.items():
        evaluation.main(['run', '--eval', name, '--device', 'cpu', *words])
        table = (tmp_path / f'run/eval/{name}.md').read_text()
        assert table.strip() in capsys.readouterr().out
        assert (tmp_path / f'run/eval/{name}.png').stat().st_size > 5000
    assert load(tmp_path, 'retrieval')['audio_to_video'] == saved['audio_to_video']    # the saved models are evaluated
    classification, gap = load(tmp_path, 'classification'), load(tmp_path, 'gap')
    assert classification['metric'] == 'mAP' and len(classification['acc']) == 6
    assert 0 <= load(tmp_path, 'ave')['accuracy'] <= 100 and len(load(tmp_path, 'ave')['classes']) > 2
    assert gap['after'] == ['initial', *saved['tasks']] and len(gap['over_stream']) == 6
    assert load(tmp_path, 'localization') == {'tasks': saved['tasks'], 'after': gap['after']}   # no known source

    # the paper's figures and tables
    figures.main(['run', '--out', 'drawn'])
    lines = capsys.readouterr().out.splitlines()
    for number in (2, 3, 5, 12, 13, 14, 16, 17):
        assert f'figure {number}: drawn/figure_{number:02d}.png' in lines
    for number in (4, 7, 8):
        assert f'table {number}: drawn/table_{number:02d}.md' in lines

    evaluation.main(['run'])                                                   # a table of several runs, here of one
    assert 'FLAVA (Ours)' in capsys.readouterr().out


def test_evaluations_of_the_last_model_of_one_model_and_of_shapes(tmp_path, here):
    short = ['--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '12']
    code, _, err = here([*TINY, *short, '--out', 'run'], tmp_path)
    assert code == 0, err
    finetune = ['--last', '--finetune', '--epochs', '1', '--clips', '9']
    for name, words in (('localization', []), ('spurious', []), ('classification', finetune)):
        evaluation.main(['run', '--eval', name, '--device', 'cpu', *words])
    last = load(tmp_path, 'classification-finetuned-last')     # results of the frozen backbones keep their own name
    assert last['finetune'] and last['metric'] == 'accuracy' and len(last['acc']) == 1 and last['F'] is None
    auc_v = load(tmp_path, 'localization')['avm']['auc_v']
    assert len(auc_v) == 7 and all(0 <= x <= 1 for row in auc_v for x in row)
    assert set(load(tmp_path, 'spurious')['avm']['auc_v']) == {'own', 'other'}

    # one model in place of a run; a run without a model for each task
    evaluation.main(['run/models/2.pt', '--task', 'gap', '--device', 'cpu'])           # --task: the alias of --eval
    assert len(load(tmp_path, 'gap-2')['gap']) == 1 and load(tmp_path, 'gap-2')['after'] == ['birch']
    for t in (1, 2):
        (tmp_path / f'run/models/{t}.pt').unlink()
    evaluation.main(['run', '--eval', 'retrieval', '--device', 'cpu'])
    retrieval = load(tmp_path, 'retrieval')
    assert retrieval['after'] == ['cedar', 'elm', 'fir', 'oak'] and retrieval['audio_to_video']['R@10']['F'] is None


def test_mistakes(tmp_path, monkeypatch, capsys):
    """One line, exit code 2"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    for command, message in (([evaluation, 'empty', '--eval', 'gap'], 'config.json'),
                             ([evaluation, 'nowhere', '--eval', 'gap'], 'nowhere'),
                             ([evaluation, 'empty'], 'config.json'), ([figures, 'nowhere'], 'nowhere'),
                             ([evaluation, 'empty', '--eval', 'gab'], 'gap')):
        with pytest.raises(SystemExit) as stopped:
            command[0].main(command[1:])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and message in err, err
