"""Localization of whole runs: cells worked out clip by clip, the record, streams without a known source."""
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

import eval as evaluation
from config import Config
from downstream import localization
from downstream.maps import maps
from streams.scenes import truth
from untrained import LOOKED_AT, check_without_sources, make_run, options


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, Config(**LOOKED_AT), range(7))


def test_localization_of_a_run(run):
    results, table, figure = evaluation.answer(run, 'localization', options())
    run.write('localization', results, table, figure)
    assert results['after'] == ['initial', *results['tasks']] and len(results['tasks']) == 6
    for which, modalities in (('avm', ('auc', 'share', 'pointing')), ('backbone', ('auc', 'pointing'))):
        assert set(results[which]) == {f'{name}_{x}' for name in modalities for x in 'av'}
        assert all(len(matrix) == 7 and all(len(row) == 6 for row in matrix) for matrix in results[which].values())

    backbone, avm = run.load(run.models()[3][2])                       # one cell, clip by clip
    dataset, found, cosine = run.stream.test[4], [], []
    for index in range(len(dataset)):
        item = dataset[index, 0]
        m = maps(run.cfg, backbone, avm, {name: item[name][None] for name in ('audio', 'video')})
        true_a, true_v = truth(dataset.scene(index), run.cfg)
        assert true_v.any()
        found.append(100 * m.I_v[0][true_v].sum().item())
        cosine += [roc_auc_score(true_a, m.cosine_a[0])] if true_a.any() and not true_a.all() else []
    assert math.isclose(results['avm']['share_v'][3][4], sum(found) / len(found), rel_tol=1e-4)
    assert math.isclose(results['backbone']['auc_a'][3][4], sum(cosine) / len(cosine), rel_tol=1e-4)

    own = sum(results['avm']['auc_v'][i + 1][i] for i in range(6)) / 6
    end = sum(results['avm']['auc_v'][-1]) / 6
    assert f'| I_v: ROC-AUC | {own:.3f} | {end:.3f} | {own - end:.3f} | 0.500 |' in table
    assert localization.show(run, run.read('localization'))[0] == table
    for kind in ('json', 'md', 'png', 'pt'):
        assert (run.folder / 'eval' / f'localization.{kind}').stat().st_size > 0

    record = torch.load(run.folder / 'eval' / 'localization.pt', weights_only=True)
    kept = [(clip['task'], clip['clip']) for clip in record['clips']]
    assert kept == [(task, clip) for task in range(6) for clip in (0, 4)]
    assert all(x.untyped_storage().nbytes() == x.nbytes for clip in record['clips'] for x in clip.values()
               if torch.is_tensor(x))                                  # no batch is written behind its row
    clip = record['clips'][9]                                          # task 4, clip 4, which the loop above ended with
    torch.testing.assert_close(clip['I_v'][3], m.I_v[0])
    torch.testing.assert_close(clip['cosine_a'][3], m.cosine_a[0])
    assert torch.equal(clip['frames'], item['video']) and torch.equal(clip['audio'], item['audio'])
    assert torch.equal(clip['truth_v'], true_v) and clip['I_a'].shape == (7, run.cfg.num_patches_a)


def test_without_a_known_source_there_are_pictures_and_no_numbers(run):
    check_without_sources(run, 'localization')


def test_a_multitask_run_has_no_model_after_each_task(tmp_path):
    run = make_run(tmp_path, Config(**LOOKED_AT, method='multitask'), [0, 6])
    _, table, _ = evaluation.answer(run, 'localization', options())
    assert '| I_v: ROC-AUC | – | 0.' in table
