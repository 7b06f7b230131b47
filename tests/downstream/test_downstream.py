"""Whole runs as a user starts them: train.py on AudioSet's layout, each evaluation, the paper's figures; mistakes."""
import csv
import json

import pytest

import eval as evaluation
from paper import attention_figures, figures
from paper.groups import group_runs
from running import TINY


def load(folder, name):
    return json.loads((folder / f'run/eval/{name}.json').read_text())


@pytest.fixture
def data(files, tmp_path):
    """files: clips in VGGSound's layout → a folder with them in the layouts of VGGSound, AudioSet and AVE"""
    rows = [row for row in csv.reader((files / 'vggsound.csv').open()) if row[0].startswith(('ash', 'birch'))]
    labels = sorted({label for _, _, label, _ in rows})
    (tmp_path / 'vggsound').symlink_to(files)
    for name, videos in (('audioset', 'video'), ('ave', 'AVE')):
        (tmp_path / name).mkdir()
        (tmp_path / name / videos).symlink_to(files / 'video')

    def write(name, lines):
        (tmp_path / name).write_text(''.join(line + '\n' for line in lines))

    write('audioset/class_labels_indices.csv', ['index,mid,display_name', *(f'0,/m/{x},{x}' for x in labels)])
    write('audioset/retrieval.json', [json.dumps({'data': [dict(video_id=row[0]) for row in rows]})])
    write('ave/Annotations.txt', [f'{label}&x&good&0&4' for label in labels])
    for split, segments in (('train', 'balanced_train'), ('test', 'eval')):
        own = [row for row in rows if row[3] == split]
        write(f'audioset/{segments}_segments.csv', [f'{name}, 0.0, 4.0, "/m/{label}"' for name, _, label, _ in own])
        write(f'ave/{split}Set.txt', [f'{label}&{name}_000000&good&0&2' for name, _, label, _ in own])
    write('tasks.csv', ['class,task', *dict.fromkeys(f'{label},{name.split("-")[0]}' for name, _, label, _ in rows)])
    return tmp_path


def test_audioset_from_pretraining_to_figures(data, here, capsys):
    """Initial pre-training on VGGSound, a retrieval list, mAP, no known sources, AVE."""
    code, _, err = here(['--dataset', 'audioset', '--data', 'audioset', '--tasks', 'tasks.csv', '--retrieval-list',
                         'audioset/retrieval.json', '--pretrain-data', 'vggsound', *TINY, '--steps', '1',
                         '--pretrain-steps', '1', '--workers', '0', '--out', 'run'], data)
    assert code == 0, err
    saved = json.loads((data / 'run/results.json').read_text())
    assert saved['tasks'] == ['ash', 'birch']
    page = (data / 'run/report.md').read_text()
    assert all(f'](figures/{name}.png)' in page for name in ('attention', 'stream', 'training'))

    # each evaluation; without the clips of the initial pre-training
    (data / 'vggsound').rename(data / 'moved')
    names = {'retrieval': [], 'classification': ['--epochs', '1'], 'ave': ['--data', 'ave', '--epochs', '1'],
             'localization': [], 'gap': [], 'spurious': [], 'selection': []}
    for name, words in names.items():
        evaluation.main(['run', '--eval', name, '--device', 'cpu', '--workers', '0', *words])
        table = (data / f'run/eval/{name}.md').read_text()
        assert table.strip() in capsys.readouterr().out
        assert (data / f'run/eval/{name}.png').stat().st_size > 5000
    assert load(data, 'retrieval')['audio_to_video'] == saved['audio_to_video']        # the saved models are evaluated
    assert load(data, 'classification')['metric'] == 'mAP' and len(load(data, 'classification')['acc']) == 2
    assert 0 <= load(data, 'ave')['accuracy'] <= 100 and len(load(data, 'ave')['classes']) > 2
    assert load(data, 'gap')['after'] == ['initial', 'ash', 'birch']
    for name in ('localization', 'spurious', 'selection'):                             # no known source
        assert set(load(data, name)) == {'tasks', 'after'}

    # figures of the paper read these files; a table of several runs, here of one, and of a folder that is none
    for draw in (attention_figures.figure_2, attention_figures.figure_3, attention_figures.figure_12):
        assert draw(group_runs(['run'])).axes
    evaluation.main(['run', 'ave'])
    out = capsys.readouterr().out
    assert '| FLAVA | 1 |' in out and 'left out: ave is not a run of train.py' in out


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
    (evaluation, 'empty --eval gap', 'config.json'), (evaluation, 'nowhere', 'nowhere'),
    (evaluation, 'empty --eval gab', 'gap'), (figures, 'nowhere', 'nowhere')])
def test_mistakes(program, words, message, tmp_path, monkeypatch, capsys):
    """One line, exit code 2"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit) as stopped:
        program.main(words.split())
    assert stopped.value.code == 2 and message in capsys.readouterr().err
