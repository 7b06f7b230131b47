"""Whole runs as a user starts them: train.py on AudioSet's layout, each evaluation, the paper's figures; mistakes."""
import json

import pytest

import eval as evaluation
from paper import attention_figures, figures
from paper.groups import group_runs
from running import TINY
from streams import shapes


def load(folder, name):
    return json.loads((folder / f'run/eval/{name}.json').read_text())


def test_audioset_from_pretraining_to_figures(tmp_path, here, capsys):
    """Initial pre-training on VGGSound, a retrieval list, several labels per clip, no known sources, AVE."""
    for layout in ('audioset', 'vggsound', 'ave'):
        shapes.main(['--out', str(tmp_path / layout), '--layout', layout, '--train', '3', '--test', '3', '--pretrain',
                     '3', '--size', '48'])
    lists = tmp_path / 'audioset/tasks.csv'
    lines = [line for line in lists.read_text().splitlines() if line.endswith(('task', 'ash', 'birch'))]
    lists.write_text('\n'.join(lines))
    code, _, err = here(['--dataset', 'audioset', '--data', 'audioset', '--tasks', lists, '--retrieval-list',
                         'audioset/retrieval.json', '--pretrain-data', 'vggsound', *TINY, '--steps', '1',
                         '--pretrain-steps', '1', '--workers', '0', '--out', 'run'], tmp_path)
    assert code == 0, err
    saved = json.loads((tmp_path / 'run/results.json').read_text())
    assert saved['tasks'] == ['ash', 'birch']
    page = (tmp_path / 'run/report.md').read_text()
    assert all(f'](figures/{name}.png)' in page for name in ('attention', 'stream', 'training'))

    # each evaluation
    names = {'retrieval': [], 'classification': ['--epochs', '1'], 'ave': ['--data', 'ave', '--epochs', '1'],
             'localization': [], 'gap': [], 'spurious': []}
    for name, words in names.items():
        evaluation.main(['run', '--eval', name, '--device', 'cpu', '--workers', '0', *words])
        table = (tmp_path / f'run/eval/{name}.md').read_text()
        assert table.strip() in capsys.readouterr().out
        assert (tmp_path / f'run/eval/{name}.png').stat().st_size > 5000
    assert load(tmp_path, 'retrieval')['audio_to_video'] == saved['audio_to_video']    # the saved models are evaluated
    assert load(tmp_path, 'classification')['metric'] == 'mAP' and len(load(tmp_path, 'classification')['acc']) == 2
    assert 0 <= load(tmp_path, 'ave')['accuracy'] <= 100 and len(load(tmp_path, 'ave')['classes']) > 2
    assert load(tmp_path, 'gap')['after'] == ['initial', 'ash', 'birch']
    assert set(load(tmp_path, 'localization')) == {'tasks', 'after'}                   # no known source

    # figures of the paper read these files; a table of several runs, here of one
    for draw in (attention_figures.figure_2, attention_figures.figure_3, attention_figures.figure_12):
        assert draw(group_runs(['run'])).axes
    evaluation.main(['run'])
    assert 'FLAVA (Ours)' in capsys.readouterr().out


def test_evaluations_of_the_last_model_of_one_model_and_of_shapes(tmp_path, here):
    short = ['--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '12']
    code, _, err = here([*TINY, *short, '--out', 'run'], tmp_path)
    assert code == 0, err
    evaluation.main(['run', '--eval', 'classification', '--device', 'cpu', '--last', '--finetune', '--epochs', '1',
                     '--clips', '9'])
    last = load(tmp_path, 'classification-finetuned-last')     # results of the frozen backbones keep their own name
    assert last['finetune'] and last['metric'] == 'accuracy' and len(last['acc']) == 1 and last['F'] is None

    # one model in place of a run; a run without a model for each task
    evaluation.main(['run/models/2.pt', '--task', 'gap', '--device', 'cpu'])           # --task: the alias of --eval
    assert len(load(tmp_path, 'gap-2')['gap']) == 1 and load(tmp_path, 'gap-2')['after'] == ['birch']
    for t in (1, 2):
        (tmp_path / f'run/models/{t}.pt').unlink()
    evaluation.main(['run', '--eval', 'retrieval', '--device', 'cpu'])
    retrieval = load(tmp_path, 'retrieval')
    assert retrieval['after'] == ['cedar', 'elm', 'fir', 'oak'] and retrieval['audio_to_video']['R@10']['F'] is None


@pytest.mark.parametrize('program, words, message', [
    (evaluation, 'empty --eval gap', 'config.json'), (evaluation, 'nowhere --eval gap', 'nowhere'),
    (evaluation, 'empty', 'config.json'), (evaluation, 'empty --eval gab', 'gap'), (figures, 'nowhere', 'nowhere')])
def test_mistakes(program, words, message, tmp_path, monkeypatch, capsys):
    """One line, exit code 2"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit) as stopped:
        program.main(words.split())
    assert stopped.value.code == 2 and message in capsys.readouterr().err
