"""Retrieval, A and F against values computed by hand; a finished run's folder."""
import dataclasses
import json
import math
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

import eval as evaluation
from avm import AVM
from config import Config, UserError
from conftest import ODD, ROOT, on_cpu
from downstream.finished_run import FinishedRun, read_config
from eval import DIRECTIONS, K
from model import AudioVideoMAE

pytestmark = on_cpu(reason='evaluation takes clips and embeddings from the CPU')


# ------------------------------------------------------------------------------------- retrieval

def test_ranks_by_hand_and_ties_count_against_the_model():
    query = torch.eye(3)
    candidates = torch.tensor([[0.9, 0.1, 0.0], [0.95, 0.5, 0.0], [0.0, 0.5, 0.2]])
    # query 0: candidate 1 (0.95) is nearer than its own (0.9), rank 2; query 1: a tie with candidate 2, rank 2
    assert evaluation.ranks(query, candidates).tolist() == [2, 2, 1]
    same = torch.ones(7, 4)
    assert evaluation.ranks(same, same).tolist() == [7] * 7
    assert evaluation.ranks(same * float('nan'), same).tolist() == [7] * 7
    query, candidates = torch.randn(50, 8).double(), torch.randn(50, 8).double()
    for chunk in (1, 7):
        assert torch.equal(evaluation.ranks(query, candidates, chunk), evaluation.ranks(query, candidates))


def test_candidates_are_the_clips_of_all_tasks():
    """Perfect within its task, and always second to a clip of another task."""
    c_a = torch.eye(4)
    c_v = torch.tensor([[.5, 0, 0, 0], [0, .5, 0, 0], [.9, 0, 1, 0], [0, .9, 0, 1]])
    result = evaluation.retrieval(c_a, c_v, torch.tensor([0, 0, 1, 1]), 2)
    assert result['audio_to_video']['R@1'] == [0.0, 100.0] and result['audio_to_video']['R@5'] == [100.0, 100.0]
    assert result['audio_to_video']['median_rank'] == [2.0, 1.0]


def test_a_query_searches_its_own_candidate_set():
    """Equal to the retrieval of each set alone. Each set gets as many clips of every task."""
    n, task_of = 24, torch.tensor([0] * 12 + [1] * 12)
    c_a, c_v = (F.normalize(torch.randn(n, 8), dim=1) for _ in range(2))
    set_of = evaluation.assign_candidate_sets(task_of, 3)
    assert set_of.tolist() == [0, 1, 2] * 8
    assert evaluation.assign_candidate_sets(torch.tensor([1, 0, 1, 0, 1]), 2).tolist() == [0, 0, 1, 1, 0]
    together = evaluation.retrieval(c_a, c_v, task_of, 2, candidate_sets=3)
    parts = [evaluation.retrieval(c_a[own], c_v[own], task_of[own], 2) for own in (set_of == i for i in range(3))]
    for direction in DIRECTIONS:
        for k in ('R@1', 'R@5'):
            for task in range(2):
                mean = sum(part[direction][k][task] for part in parts) / 3
                assert math.isclose(together[direction][k][task], mean, abs_tol=1e-9)


# --------------------------------------------------------------------------------------- A and F

def test_A_and_F_by_hand_are_added_to_each_acc():
    acc, unfinished = [[50, 1, 2], [30, 60, 3], [20, 45, 70]], [[50, 1, 2], [30, 60, 3]]
    results = evaluation.add_A_and_F({
        'tasks': ['x', 'y', 'z'], 'top': {'acc': acc, 'of': 'clips'}, 'deep': {'er': {'acc': unfinished}, 'epochs': 3},
        'done': {'acc': acc, 'A': 'unchanged'}, 'last': {'acc': [[20, 45, 70]]}})
    assert results['top'] == {'acc': acc, 'of': 'clips', 'A': 45, 'F': ((50 - 20) + (60 - 45)) / 2}
    assert results['deep'] == {'er': {'acc': unfinished, 'A': 31, 'F': None}, 'epochs': 3}
    assert results['done'] == {'acc': acc, 'A': 'unchanged'}
    assert results['last'] == {'acc': [[20, 45, 70]], 'A': 45, 'F': None}          # one row, for t = 3
    # the maximum is over t < T only, so F is negative if a task improves later
    assert evaluation.average_forgetting([[10, 0], [25, 30]]) == -15
    assert evaluation.average_forgetting([[10]]) is None


def test_summary_and_table():
    rows = [{d: {f'R@{k}': [a + k, b + k] for k in K} | {'median_rank': [a, 3]} for d in DIRECTIONS}
            for a, b in ((20, 0), (10, 30))]
    results = evaluation.summarize(rows, ['x', 'y'], 40)
    assert results['chance'] == {'R@1': 2.5, 'R@5': 12.5, 'R@10': 25.0}
    assert results['video_to_audio']['R@5'] == {'acc': [[25, 5], [15, 35]], 'A': 25, 'F': 10}
    assert math.isclose(results['audio_to_video']['Avg']['A'], 20 + 16 / 3)
    assert results['audio_to_video']['Avg']['F'] == 10
    assert results['audio_to_video']['median_rank'] == {'acc': [[20, 3], [10, 3]], 'A': 6.5}
    assert '| 21.00 | 10.00 | 25.00 | 10.00 | 30.00 | 10.00 | 25.33 | 10.00 | 6.5 |' \
        in evaluation.results_table('m', results)


# ----------------------------------------------------------------------------------- a finished run

@pytest.fixture
def folder(tmp_path):
    """A run's folder, with the models before the stream and after two of its six tasks"""
    (tmp_path / 'models').mkdir()
    cfg = Config(**ODD, clips_per_task=4, test_clips=2)
    (tmp_path / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    for t in (0, 1, 2):
        modules = torch.nn.ModuleDict({'backbone': AudioVideoMAE(cfg), 'avm': AVM(cfg.embed_dim, cfg.avm_heads)})
        torch.save(dict(weights=modules.state_dict()), tmp_path / f'models/{t}.pt')
    return tmp_path


def test_results_are_written_and_loaded(folder):
    """Results of all models come before those of the last one. Those of another single model are not the run's."""
    run, last = FinishedRun(folder), FinishedRun(folder, last=True)
    assert run.load('gap') is None and run.load_tensors('gap') is None
    for writer, loaded in ((FinishedRun(folder / 'models/1.pt'), None), (last, 1), (run, 2)):
        figure = plt.figure()
        files = writer.write('gap', {'number': loaded}, '| a table |', figure)
        plt.close(figure)
        assert [file.suffix for file in files] == ['.json', '.md', '.png'] and all(f.stat().st_size for f in files)
        assert run.load('gap') == (loaded and {'number': loaded})
    assert sorted(file.name for file in (folder / 'eval').glob('*.md')) == ['gap-1.md', 'gap-last.md', 'gap.md']
    (folder / 'eval/gap.json').write_text('{"tasks": ["x", "y"], "after": ["x"]}')      # made before the last task
    assert run.load('gap') == {'number': 1}
    for writer in (run, last):
        torch.save({'x': torch.tensor(writer.last)}, writer.eval_path('gap', 'pt'))
    assert run.load_tensors('gap')['x']                                    # of the same evaluation


def test_last_pt_of_a_run_in_mid_stream(folder):
    names = FinishedRun(folder, workers=0, device='cpu').names
    torch.save(dict(task=1), folder / 'last.pt')
    assert FinishedRun(folder / 'last.pt', 0, 'cpu').models() == [(1, names[0], folder / 'last.pt')]
    torch.save(dict(backbone={}), folder / 'weights.pt')
    assert FinishedRun(folder / 'weights.pt', 0, 'cpu').models() == [(len(names), names[-1], folder / 'weights.pt')]


def test_options_that_an_evaluation_does_not_read_are_named():
    args = evaluation.make_parser().parse_args(['run', '--eval', 'gap', '--lr', '1', '--out', 'x.mp4'])
    assert evaluation.unused_options(args) == ['--lr has no effect on --eval gap', '--out has no effect on --eval gap']


def test_a_closed_pipe_ends_without_a_traceback():
    code = 'from utils.cli import cli_errors\nwith cli_errors():\n    while True: print("line")'
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b'', 141)


def test_an_edited_config(folder, capsys):
    """Unknown options are ignored with a warning, impossible ones and other models are refused. test_downstream.py has
    folders that are no run, test_weights.py a run of an older version."""
    file = folder / 'config.json'
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | dict(option_of_tomorrow=1)))
    assert read_config(folder).clips_per_task == 4
    assert 'unknown options are ignored: option_of_tomorrow' in capsys.readouterr().out
    for change, reason in ((dict(tau=float('nan')), 'config.json: --tau nan must be'),
                           (dict(patch_size=7), 'multiples'), (dict(out=7), '--out 7 must be of type str')):
        file.write_text(json.dumps(saved | change))
        with pytest.raises(UserError, match=reason):
            read_config(folder)
    file.write_text('{')
    with pytest.raises(UserError, match='cannot be read'):
        read_config(folder)
    torch.save(dict(config=saved, weights={}), folder / 'models/1.pt')
    file.write_text(json.dumps(saved | dict(num_heads=4)))             # which fits the weights' shapes
    with pytest.raises(UserError, match='--num-heads was 3, now 4'):
        FinishedRun(folder, device='cpu').load_model(folder / 'models/1.pt')
    for model in (folder / 'models').iterdir():
        model.unlink()
    with pytest.raises(UserError, match='holds no models'):
        FinishedRun(folder, workers=0, device='cpu').models()
