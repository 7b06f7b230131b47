"""Spurious attention: which modality is swapped for which, and whole runs."""
import math

import pytest
import torch

from avm import attend
from config import UserError
from downstream import localization, spurious
from eval import run_evaluation
from patches import patchify
from untrained import evaluate_without_sources, odd_model, only_last, options, shared_run


@pytest.fixture
def run(tmp_path_factory, monkeypatch):
    return only_last(shared_run(tmp_path_factory, monkeypatch))


def test_swapped_maps_are_those_of_the_swapped_pair():
    cfg, backbone, avm, batch = odd_model()
    batch |= dict(other_audio=torch.randn_like(batch['audio']), other_video=batch['video'].flip(0, 4))
    I_a, I_v, I_a_other, I_v_other = spurious.attend_swapped(cfg, backbone, avm, batch)
    for b in range(5):
        def pair(audio, video):
            return attend(cfg, backbone, avm, patchify(
                dict(audio=batch[audio][b:b + 1], video=batch[video][b:b + 1]), cfg.patch_size))

        torch.testing.assert_close(I_a[b:b + 1], pair('audio', 'video').importance_a)
        torch.testing.assert_close(I_v[b:b + 1], pair('audio', 'video').importance_v)
        torch.testing.assert_close(I_v_other[b:b + 1], pair('other_audio', 'video').importance_v)
        torch.testing.assert_close(I_a_other[b:b + 1], pair('audio', 'other_video').importance_a)
    assert (I_v - I_v_other).abs().max() > 1e-5 and (I_a - I_a_other).abs().max() > 1e-5


def test_partners_come_from_all_other_tasks():
    lengths = [7, 5, 6]
    for task in range(3):
        pairs = spurious.SwappedPairs([range(n) for n in lengths], task)
        partners = [pairs.partner(index) for index in range(len(pairs))]
        assert {other for other, _ in partners} == {0, 1, 2} - {task}
        assert all(clip < lengths[other] for other, clip in partners)


def test_spurious_attention_of_a_run(run):
    results, table, _ = run_evaluation(run, 'spurious', options())
    # with its own modality, the numbers are those of localization
    last = localization.evaluate(run, options())
    assert results['after'] == 'oak' and last['after'] == ['oak'] and 'I_v: ROC-AUC' in table
    for name, value in results['avm'].items():
        if name.endswith('_v'):                                # all clips show their source
            assert math.isclose(value['own'], sum(last['avm'][name][0]) / 6, rel_tol=1e-5)
        assert 0 <= value['other'] <= 100
    assert results['avm']['share_v']['own'] != results['avm']['share_v']['other']
    # the saved clips
    clips = torch.load(run.eval_path('spurious', 'pt'), weights_only=True)['clips']
    backbone, avm = run.load_model(run.models()[-1][2])
    for task, clip in enumerate(clips):
        assert clip['task'] == task != clip['other_task']
        assert torch.equal(clip['frames'], run.stream.test[task][0, 0]['video'])
        batch = dict(audio=clip['other_audio'][None], video=clip['frames'][None])
        out = attend(run.cfg, backbone, avm, patchify(batch, run.cfg.patch_size))
        torch.testing.assert_close(clip['I_v_other'][None], out.importance_v)
    assert len(clips) == 6


def test_without_a_known_source_there_is_a_figure_and_no_number(run):
    results, table, figure, clips, read = evaluate_without_sources(run, 'spurious')
    assert set(results) == {'tasks', 'after'} and 'not known' in table
    assert [clip['task'] for clip in clips] == [0, 1] and all(clip['truth_v'] is None for clip in clips)
    assert len([axis for axis in figure.axes if axis.get_ylabel()]) == 2 and read == {0}


def test_a_single_task_is_refused(run):
    run.stream = run.stream._replace(test=run.stream.test[:1])
    with pytest.raises(UserError, match='two tasks'):
        spurious.evaluate(run, options())
