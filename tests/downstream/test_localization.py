"""Localization of a whole run: one cell clip by clip, the saved clips; evaluations without a known source."""
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from downstream import localization
from downstream.maps import compute_maps
from eval import run_evaluation
from streams.scenes import truth
from untrained import only_last, options, shared_run  # noqa: F401


def test_localization_of_a_run(run):
    results, table, _ = run_evaluation(run, 'localization', options())
    assert results['after'] == ['initial', *results['tasks']] and len(results['tasks']) == 6
    for which, metrics in (('avm', ('auc', 'share', 'pointing')), ('backbone', ('auc', 'pointing'))):
        assert set(results[which]) == {f'{name}_{x}' for name in metrics for x in 'av'}
        assert all(len(matrix) == 7 and all(len(row) == 6 for row in matrix) for matrix in results[which].values())

    # one cell, clip by clip
    backbone, avm = run.load_model(run.models()[3][2])
    dataset, share_v, cosine_a = run.stream.test[4], [], []
    for index in range(len(dataset)):
        item = dataset[index, 0]
        m = compute_maps(run.cfg, backbone, avm, {name: item[name][None] for name in ('audio', 'video')})
        source_a, source_v = truth(dataset.scene(index), run.cfg)
        share_v.append(100 * m.I_v[0][source_v].sum().item())
        if source_a.any() and not source_a.all():
            cosine_a.append(roc_auc_score(source_a, m.cosine_a[0]))
    assert math.isclose(results['avm']['share_v'][3][4], sum(share_v) / len(share_v), rel_tol=1e-4)
    assert math.isclose(results['backbone']['auc_a'][3][4], sum(cosine_a) / len(cosine_a), rel_tol=1e-4)

    # the table
    own = sum(results['avm']['auc_v'][i + 1][i] for i in range(6)) / 6
    end = sum(results['avm']['auc_v'][-1]) / 6
    assert f'| I_v: ROC-AUC | {own:.3f} | {end:.3f} | {own - end:.3f} | 0.500 |' in table
    assert '| I_v: ROC-AUC | – | 0.' in localization.table(results, [0, 6])            # Multitask

    # the saved clips: first and last of each task
    clips = run.load_tensors('localization')['clips']
    assert [clip['task'] for clip in clips] == [task for task in range(6) for _ in range(2)]
    assert all(x.untyped_storage().nbytes() == x.nbytes for clip in clips for x in clip.values() if torch.is_tensor(x))
    clip = clips[9]                                                    # the last one of task 4, as of the loop above
    torch.testing.assert_close(clip['I_v'][3], m.I_v[0])
    torch.testing.assert_close(clip['cosine_a'][3], m.cosine_a[0])
    assert torch.equal(clip['frames'], item['video']) and torch.equal(clip['audio'], item['audio'])
    assert torch.equal(clip['truth_v'], source_v) and clip['I_a'].shape == (7, run.cfg.num_patches_a)


class Unknown(torch.utils.data.Dataset):
    """Clips without a known source"""

    def __init__(self, clips):
        self.clips, self.read = clips, set()

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        self.read.add(key[0])
        return self.clips[key]


@pytest.mark.parametrize('name', ['localization', 'spurious', 'selection'])
def test_without_a_known_source_there_is_a_figure_and_no_number(name, run):
    tests = [Unknown(dataset) for dataset in run.stream.test]
    run.stream = run.stream._replace(test=tests)
    results, table, figure = run_evaluation(only_last(run), name, options())
    assert set(results) == {'tasks', 'after'} and 'not known' in table
    clips = torch.load(run.eval_path(name, 'pt'), weights_only=True)['clips']
    assert all(clip['truth_v'] is None for clip in clips)
    assert len([axis for axis in figure.axes if axis.get_ylabel()]) == 6       # one row per task
    assert set.union(*(dataset.read for dataset in tests)) <= {0, 4}           # no clip is decoded that is not shown
