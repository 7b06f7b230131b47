"""The modality gap: by hand, what it does not depend on, and whole runs."""
import json
import math

import torch
import torch.nn.functional as F

import eval as evaluation
from config import Config
from downstream import gap
from patches import normalize_frames
from untrained import LOOKED_AT, make_run, options


def test_modality_gap_by_hand_and_what_it_does_not_depend_on():
    c_a, c_v = torch.tensor([[2., 0], [0, 5]]), torch.tensor([[0., -3], [0, -1]])
    assert math.isclose(gap.modality_gap(c_a, c_v), math.hypot(0.5, 1.5), rel_tol=1e-6)     # centres (½, ½) and (0, −1)
    c_a, c_v = torch.randn(30, 8).double() + 1, torch.randn(30, 8).double() - 1
    expected = gap.modality_gap(c_a, c_v)
    turn = torch.linalg.qr(torch.randn(8, 8).double())[0]
    lengths = torch.rand(30, 1).double() + 0.1
    assert math.isclose(gap.modality_gap(lengths * c_a @ turn, c_v.flip(0) @ turn), expected, rel_tol=1e-9)
    assert gap.modality_gap(c_a, c_a) == 0 and math.isclose(gap.modality_gap(c_a[:1], -c_a[:1]), 2, rel_tol=1e-9)


def test_difference_by_hand():
    rows = [[9, 9, 9], [1.0, 9, 9], [2, 1.5, 9], [0.7, 1.9, 3]]
    assert math.isclose(gap.difference(rows, [0, 1, 2, 3]), (0.3 + 0.4) / 2)
    assert gap.difference(rows[::3], [0, 3]) is None and gap.difference(rows[:2], [0, 1]) is None


def test_clouds_lie_in_the_plane_of_most_variance():
    c_a, c_v = torch.randn(gap.POINTS + 50, 6), torch.randn(gap.POINTS + 50, 6) + 2
    drawn = gap.clouds(c_a, c_v)
    assert len(drawn['audio']) == len(drawn['video']) == gap.POINTS and len(gap.clouds(c_a[:9], c_v[:9])['audio']) == 9
    few = gap.clouds(c_a[:150], c_v[:150])
    both = F.normalize(torch.cat([c_a[:150], c_v[:150]]), dim=1).double()
    points = torch.tensor(few['audio'] + few['video']).double()
    largest = torch.linalg.eigvalsh(both.T.cov(correction=0))[-2:]
    torch.testing.assert_close(points.T.cov(correction=0), largest.flip(0).diag(), atol=1e-7, rtol=0)
    assert torch.tensor(few['audio'])[:, 0].mean() < torch.tensor(few['video'])[:, 0].mean()


def test_gap_of_a_run(tmp_path):
    run = make_run(tmp_path, Config(**LOOKED_AT), range(7))
    results, table, figure = evaluation.answer(run, 'gap', options())
    run.write('gap', results, table, figure)
    assert len(results['gap']) == 7 and len(results['over_stream']) == 6 and len(results['clouds']) == 6
    assert math.isclose(results['over_stream'][1], sum(results['gap'][2][:2]) / 2)
    ends = [abs(results['gap'][6][i] - results['gap'][i + 1][i]) for i in range(5)]
    assert math.isclose(results['difference'], sum(ends) / 5)
    backbone = run.load(run.models()[2][2])[0]
    items = [run.stream.test[3][index, 0] for index in range(5)]
    c = backbone.embed(torch.stack([item['audio'] for item in items]),
                       normalize_frames(torch.stack([item['video'] for item in items])))
    assert math.isclose(results['gap'][2][3], gap.modality_gap(*c), rel_tol=1e-5)
    assert f'{results["gap"][2][3]:.3f}' in table
    assert json.loads((run.folder / 'eval' / 'gap.json').read_text()) == results
    again, drawn = gap.show(run, run.read('gap'))                      # the record is enough
    assert again == table
    assert [line.get_label() for line in drawn.axes[0].lines] == [*results['tasks'], 'mean of those learned']


def test_the_gap_is_of_the_evaluation_clips_not_of_those_to_retrieve(tmp_path):
    """They are counted apart (Fig. 6 c): the list of clips to retrieve is a part of the evaluation clips."""
    run = make_run(tmp_path, Config(**LOOKED_AT), [6])

    class Few(torch.utils.data.Dataset):
        def __init__(self, whole):
            self.whole = whole

        def __len__(self):
            return 2

        def __getitem__(self, key):
            return self.whole[key]

    both = evaluation.answer(run, 'gap', options())[0]['gap']
    few = [Few(dataset) for dataset in run.stream.test]
    run.stream = run.stream._replace(test=few)
    assert evaluation.answer(run, 'gap', options())[0]['gap'] == both
    run.stream = run.stream._replace(evaluate=few)
    assert evaluation.answer(run, 'gap', options())[0]['gap'] != both


def test_clips_that_cannot_be_read_are_left_out(tmp_path):
    run = make_run(tmp_path, Config(**LOOKED_AT), [6])

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, key):
            return run.stream.test[3][key] | {'bad': 'gone' if key[0] in (0, 4) else ''}

    whole = gap.embeddings(run, run.models())[0][3]
    run.stream = run.stream._replace(evaluate=[*run.stream.evaluate[:3], Broken(), *run.stream.evaluate[4:]])
    some = gap.embeddings(run, run.models())[0][3]
    for c, kept in zip(whole, some):
        torch.testing.assert_close(c[1:4], kept)


def test_a_multitask_run_has_no_model_after_each_task(tmp_path):
    run = make_run(tmp_path, Config(**LOOKED_AT, method='multitask'), [0, 6])
    results, table, _ = evaluation.answer(run, 'gap', options())
    assert results['difference'] is None and results['after'] == ['initial', 'all tasks'] and 'difference' not in table
    assert results['over_stream'] == [sum(results['gap'][1]) / 6]
