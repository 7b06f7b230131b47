"""Retrieval, A and F against values worked out by hand."""
import math

import torch
import torch.nn.functional as F

import eval as evaluation


def test_ranks_by_hand_and_ties_count_against_the_model():
    query = torch.eye(3)
    candidates = torch.tensor([[0.9, 0.1, 0.0], [0.95, 0.5, 0.0], [0.0, 0.5, 0.2]])
    # query 0 likes candidate 1 (0.95) before its own (0.9): rank 2; query 1's own ties with candidate 2: rank 2;
    # query 2: rank 1
    assert evaluation.ranks(query, candidates).tolist() == [2, 2, 1]
    same = torch.ones(7, 4)
    assert evaluation.ranks(same, same).tolist() == [7] * 7
    assert evaluation.ranks(same * float('nan'), same).tolist() == [7] * 7


def test_random_embeddings_are_at_chance():
    n = 2000
    c_a, c_v = F.normalize(torch.randn(n, 16), dim=1), F.normalize(torch.randn(n, 16), dim=1)
    result = evaluation.retrieval(c_a, c_v, torch.arange(n) % 4, 4)
    for direction in evaluation.DIRECTIONS:
        for k in evaluation.K:
            share = k / n
            assert abs(sum(result[direction][f'R@{k}']) / 4 / 100 - share) < 4.5 * math.sqrt(share / n)


def test_candidates_are_those_of_all_tasks():
    """Perfect within its task, and always second to a clip of another task."""
    c_a = torch.eye(4)
    c_v = torch.tensor([[.5, 0, 0, 0], [0, .5, 0, 0], [.9, 0, 1, 0], [0, .9, 0, 1]])
    result = evaluation.retrieval(c_a, c_v, torch.tensor([0, 0, 1, 1]), 2)
    assert result['audio_to_video']['R@1'] == [0.0, 100.0] and result['audio_to_video']['R@5'] == [100.0, 100.0]
    assert result['audio_to_video']['median_rank'] == [2.0, 1.0]


def test_accuracy_and_forgetting_by_hand():
    acc = [[50, 1, 2], [30, 60, 3], [20, 45, 70]]
    assert evaluation.average_accuracy(acc) == 45
    assert evaluation.average_forgetting(acc) == ((50 - 20) + (60 - 45)) / 2
    # A task that improves later: its maximum is over t < T only, so F may be negative
    assert evaluation.average_forgetting([[10, 0], [25, 30]]) == -15
    assert evaluation.average_forgetting([[10, 0]]) is None


def test_A_and_F_are_added_wherever_acc_is():
    whole, begun = [[50, 1, 2], [30, 60, 3], [20, 45, 70]], [[50, 1, 2], [30, 60, 3]]
    results = evaluation.add_A_and_F({
        'tasks': ['x', 'y', 'z'], 'top': {'acc': whole, 'of': 'clips'}, 'deep': {'er': {'acc': begun}, 'epochs': 3},
        'counted': {'acc': whole, 'A': 'as it was'},
        'last': {'acc': [[20, 45, 70]]}})
    assert results['top'] == {'acc': whole, 'of': 'clips', 'A': 45, 'F': ((50 - 20) + (60 - 45)) / 2}
    assert results['deep'] == {'er': {'acc': begun, 'A': 31, 'F': None}, 'epochs': 3}     # the stream is not at its end
    assert results['counted'] == {'acc': whole, 'A': 'as it was'}
    assert results['last'] == {'acc': [[20, 45, 70]], 'A': 45, 'F': None}          # a row for t = 3 alone
    assert evaluation.add_A_and_F({'acc': [[10, 0], [25, 30]]})['F'] == -15        # and at the top


def test_summary_and_table():
    row = lambda a, b: {d: {f'R@{k}': [a + k, b + k] for k in evaluation.K} | {'median_rank': [a, 3]}
                        for d in evaluation.DIRECTIONS}
    results = evaluation.summarize([row(20, 0), row(10, 30)], ['x', 'y'], 40)
    assert results['chance'] == {'R@1': 2.5, 'R@5': 12.5, 'R@10': 25.0}
    assert results['video_to_audio']['R@5'] == {'acc': [[25, 5], [15, 35]], 'A': 25, 'F': 10}
    assert math.isclose(results['audio_to_video']['Avg']['A'], 20 + 16 / 3)
    assert results['audio_to_video']['Avg']['F'] == 10
    assert results['audio_to_video']['median_rank'] == {'acc': [[20, 3], [10, 3]], 'A': 6.5}
    assert '| 21.00 | 10.00 | 25.00 | 10.00 | 30.00 | 10.00 | 25.33 | 10.00 | 6.5 |' in evaluation.table('m', results)


def test_a_query_searches_its_own_gallery_alone():
    """Against retrieval of each gallery by itself; the clips of a task are dealt out one by one."""
    torch.manual_seed(0)
    n, task_of = 24, torch.tensor([0] * 12 + [1] * 12)
    c_a, c_v = (F.normalize(torch.randn(n, 8), dim=1) for _ in range(2))
    gallery = evaluation.dealt(task_of, 3)
    assert gallery.tolist() == [0, 1, 2] * 8
    assert evaluation.dealt(torch.tensor([1, 0, 1, 0, 1]), 2).tolist() == [0, 0, 1, 1, 0]
    whole = evaluation.retrieval(c_a, c_v, task_of, 2, galleries=3)
    parts = [evaluation.retrieval(c_a[own], c_v[own], task_of[own], 2) for own in (gallery == g for g in range(3))]
    for direction in evaluation.DIRECTIONS:
        for k in ('R@1', 'R@5'):
            for task in range(2):
                mean = sum(part[direction][k][task] for part in parts) / 3
                assert math.isclose(whole[direction][k][task], mean, abs_tol=1e-9)
