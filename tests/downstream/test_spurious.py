"""Spurious attention: which modality is swapped for which, and whole runs."""
import math

import pytest
import torch

from avm import attend
from config import UserError
from downstream import localization, spurious
from eval import run_evaluation
from patches import patchify
from untrained import odd_model, only_last, options, shared_run  # noqa: F401


def test_swapped_maps_are_those_of_the_swapped_pair():
    cfg, backbone, avm, batch = odd_model()
    batch |= dict(other_audio=torch.randn_like(batch['audio']), other_video=batch['video'].flip(0, 4))
    maps = spurious.attend_swapped(cfg, backbone, avm, batch)
    for b in range(5):
        def pair(audio, video):
            clip = dict(audio=batch[audio][b:b + 1], video=batch[video][b:b + 1])
            return attend(cfg, backbone, avm, patchify(clip, cfg.patch_size))

        own = pair('audio', 'video')
        expected = (own.importance_a, own.importance_v, pair('audio', 'other_video').importance_a,
                    pair('other_audio', 'video').importance_v)
        for I, slow in zip(maps, expected):
            torch.testing.assert_close(I[b:b + 1], slow)


def test_partners_come_from_all_other_tasks():
    lengths = [7, 5, 6]
    for task in range(3):
        pairs = spurious.SwappedPairs([range(n) for n in lengths], task)
        partners = [pairs.partner(index) for index in range(len(pairs))]
        assert {other for other, _ in partners} == {0, 1, 2} - {task}
        assert all(clip < lengths[other] for other, clip in partners)


def test_spurious_attention_of_a_run(run):
    results, table, _ = run_evaluation(only_last(run), 'spurious', options())
    # with its own modality, the numbers are those of localization
    last = localization.evaluate(run, options())
    assert results['after'] == 'oak' and 'I_v: ROC-AUC' in table
    for name, value in results['avm'].items():
        if name.endswith('_v'):                                # all clips show their source
            assert math.isclose(value['own'], sum(last['avm'][name][0]) / 6, rel_tol=1e-5)
    assert results['avm']['share_v']['own'] != results['avm']['share_v']['other']

    # the saved clips
    clips = torch.load(run.eval_path('spurious', 'pt'), weights_only=True)['clips']
    backbone, avm = run.load_model(run.models()[-1][2])
    assert [clip['task'] for clip in clips] == list(range(6))
    for clip in clips:
        other = run.stream.test[clip['other_task']][0, 0]
        batch = dict(audio=other['audio'][None], video=clip['frames'][None])
        out = attend(run.cfg, backbone, avm, patchify(batch, run.cfg.patch_size))
        torch.testing.assert_close(clip['I_v_other'][None], out.importance_v)


def test_a_single_task_is_refused(run):
    run.stream = run.stream._replace(test=run.stream.test[:1])
    with pytest.raises(UserError, match='two tasks'):
        spurious.evaluate(run, options())
