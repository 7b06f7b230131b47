"""paper/understood.py: pairs counted by hand, silent objects where they are drawn, the page of a run."""
import json

import pytest
import torch

from config import parse
from downstream.maps import moments, silent
from paper import understood
from patches import SIZES, Sizes
from running import TINY
from streams.scenes import truth
from streams.shapes import stream


def test_pairs_by_hand():
    m = torch.tensor([[4., 1, 2, 2], [0., 0, 0, 9]])
    these, those = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool(), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    assert understood.won(m, these, those).tolist() == [0.5, 0.5]              # 4 wins twice, 1 loses twice; two ties
    of = [(0, 'x'), (1, 'y'), (2, 'z'), (0, 'w')]                              # whom clips of task 0, class x have met
    P = torch.tensor([.6, .5, .7, .1])
    assert understood.tells(P, ['x'] * 4, 0, of) == 0.5                        # .6 over .5, not over .7; w is of task 0
    assert understood.tells(P, ['q'] * 4, 0, of) is None


def test_silent_objects_are_beside_the_source():
    sizes = Sizes(**SIZES['small'])
    clips = stream(sizes, seed=3, clips_per_task=1, test_clips=12, pretrain_clips=1, silent=(1, 1)).test[0]
    for index in range(12):
        scene = clips.scene(index)
        beside, (_, source) = silent(scene, sizes), truth(scene, sizes)
        assert beside.any() and not (beside & source).any()
        turned = silent(scene._replace(tracks=scene.tracks[::-1]), sizes)
        assert not (turned & beside).any() and (source | ~turned).all()        # what is left of the source is its own


def test_when_the_frames_are_taken():
    cfg, _ = parse([])                                     # 4 s in 16 time steps of patches; frames at 1.5 and 2.5 s
    assert cfg.grid_a[0] == 16 and cfg.num_frames == 2
    steps = moments(cfg).unflatten(0, cfg.grid_a)
    assert steps.all(1).nonzero().flatten().tolist() == [6, 10] and steps.sum() == 2 * cfg.grid_a[1]


def test_the_page_of_a_run(tmp_path, here, capsys):
    code, _, err = here([*TINY, '--method', 'flava', '--steps', '2', '--pretrain-steps', '0', '--clips-per-task', '9',
                         '--test-clips', '6', '--galleries', '1', '--max-silent', '1', '--min-silent', '1',
                         '--out', 'run'], tmp_path)
    assert code == 0, err
    understood.main([str(tmp_path / 'run')])
    results = json.loads((tmp_path / 'run/eval/understood.json').read_text())
    assert [row['after'] for row in results['pruning']][-5:] == ['fir', *['oak'] * 4]
    hot = {row['temperature']: row['far'] for row in results['pruning'] if row['after'] == 'oak'}
    assert hot[1] < hot[1 / 4] < hot[1 / 64] <= 0.5
    assert set(results['maps']['frames']['I']) == {'source', 'silent', 'preferred'}
    assert set(results['maps']['sound']['I']) == {'source', 'moment', 'there'}
    assert set(results['taken']) == {'source', 'silent', 'ground', 'moments', 'other moments', 'again, frames',
                                     'again, sound'}
    assert all(0 < percent < 100 for percent in results['taken'].values())
    assert '| contrast in the patch |' in capsys.readouterr().out


def test_what_it_cannot_take_apart(tmp_path, here):
    code, _, err = here([*TINY, '--steps', '1', '--pretrain-steps', '0', '--clips-per-task', '9', '--test-clips', '3',
                         '--galleries', '1', '--max-silent', '0', '--min-silent', '0', '--out', 'run'], tmp_path)
    assert code == 0, err
    with pytest.raises(SystemExit):
        understood.main([str(tmp_path / 'run')])
