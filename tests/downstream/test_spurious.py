"""Spurious attention: whose modality is swapped for whose, and whole runs."""
import math

import pytest
import torch

import eval as evaluation
from avm import score
from config import Config
from downstream import localization, spurious
from patches import Patches, UserError, all_positions, patchify_a, patchify_v, whole
from untrained import LOOKED_AT, check_without_sources, make_run, odd_model, only_last, options


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, Config(**LOOKED_AT), range(7))


def test_swapping_a_modality_gives_the_scores_of_that_very_pair():
    cfg, backbone, avm, batch = odd_model()
    batch |= dict(other_audio=torch.randn_like(batch['audio']), other_video=batch['video'].flip(0, 4))
    I_a, I_v, I_a_other, I_v_other = spurious.swapped(cfg, backbone, avm, batch)
    p = cfg.patch_size
    for b in range(5):
        def pair(audio, video):
            x_a, x_v = patchify_a(batch[audio][b:b + 1], p), patchify_v(batch[video][b:b + 1], p)
            return score(cfg, backbone, avm, Patches(x_a, x_v, all_positions(x_a), all_positions(x_v)))

        torch.testing.assert_close(I_a[b:b + 1], pair('audio', 'video').importance_a)
        torch.testing.assert_close(I_v[b:b + 1], pair('audio', 'video').importance_v)
        torch.testing.assert_close(I_v_other[b:b + 1], pair('other_audio', 'video').importance_v)
        torch.testing.assert_close(I_a_other[b:b + 1], pair('audio', 'other_video').importance_a)
    assert (I_v - I_v_other).abs().max() > 1e-5 and (I_a - I_a_other).abs().max() > 1e-5


def test_partners_are_of_every_other_task_and_never_of_the_own():
    lengths = [7, 5, 6]
    for task in range(3):
        pairs = spurious.Pairs([range(n) for n in lengths], task)
        partners = [pairs.partner(index) for index in range(len(pairs))]
        assert {other for other, _ in partners} == {0, 1, 2} - {task}
        assert all(clip < lengths[other] for other, clip in partners)


def test_spurious_attention_of_a_run(run):
    results, table, figure = evaluation.answer(run, 'spurious', options())
    run.write('spurious', results, table, figure)
    assert spurious.show(run, run.read('spurious'))[0] == table
    record = torch.load(run.folder / 'eval' / 'spurious.pt', weights_only=True)
    again = localization.measure(only_last(run), options())
    assert results['after'] == 'oak' and again['after'] == ['oak']
    for name, value in results['avm'].items():                         # the last model's own pairs, as localization has
        if name.endswith('_v'):                                        # them: every clip shows its source, so a mean of
            assert math.isclose(value['own'], sum(again['avm'][name][0]) / 6, rel_tol=1e-5)       # means is the mean
        assert 0 <= value['other'] <= 100
    assert results['avm']['share_v']['own'] != results['avm']['share_v']['other']
    for task, clip in enumerate(record['clips']):
        backbone, avm = run.load(run.models()[-1][2])
        assert clip['task'] == task != clip['other_task']
        assert torch.equal(clip['frames'], run.stream.test[task][0, 0]['video'])
        batch = dict(audio=clip['other_audio'][None], video=clip['frames'][None])
        s = score(run.cfg, backbone, avm, whole(batch, run.cfg.patch_size))
        torch.testing.assert_close(clip['I_v_other'][None], s.importance_v)
    assert len(record['clips']) == 6 and (run.folder / 'eval' / 'spurious.png').exists()


def test_without_a_known_source_there_are_pictures_and_no_numbers(run):
    check_without_sources(run, 'spurious')


def test_one_task_has_no_other(run):
    run.stream = run.stream._replace(test=run.stream.test[:1])
    with pytest.raises(UserError, match='two tasks'):
        spurious.measure(only_last(run), options())
