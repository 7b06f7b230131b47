"""study/runs.py: every run can be trained, records are kept, the tuning chooses by its rule."""
import json

import pytest

from config import UserError
from study import claims, oracle, runs
from utils.cli import parse


def tuning_records(A_of):
    """Records of the runs of the tuning with A = A_of(name, seed)"""
    def record(name, seed):
        return dict(retrieval={direction: {'R@10': dict(A=A_of(name, seed))} for direction in runs.DIRECTIONS})
    return {name: {seed: record(name, seed) for seed in range(200, 204)} for name in runs.TUNING_RANK}


def test_every_run_can_be_trained():
    for name, options in runs.RUNS.items():
        assert runs.parse_run(f'{name}-100') == (name, 100)
        if options:
            parse(oracle.parse_options(options.split())[1])
    for wrong in ('lava', 'nothing-100', 'lava-x'):
        with pytest.raises(UserError, match='NAME-SEED'):
            runs.parse_run(wrong)
    assert runs.expand(['why-second', 'lava-7'], [100]) == ['why-second-frames-100', 'lava-7']
    assert len(runs.expand(['main'])) == 150 and all(len(tried) == 4 for tried in runs.TRIED.values())


def test_runs_of_rank_wait_for_the_tuning(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(runs.RUNS, 'fresh-rank', None)
    with pytest.raises(SystemExit):
        runs.main(['fresh-rank-300', '--records', str(tmp_path / 'r.jsonl'), '--folders', str(tmp_path)])
    assert 'tuning is not finished' in capsys.readouterr().err


def test_options_of_rank(monkeypatch):
    monkeypatch.setattr(runs, 'RANK', None)
    assert runs.by_rank() is None
    monkeypatch.setattr(runs, 'RANK', runs.Rank(0.125, 16.0))
    assert runs.by_rank() is None and runs.by_rank(sound='even') is None
    assert '--draw-a even --draw-v rank --pruning none' in runs.by_rank(sound='even', pruning='none')
    monkeypatch.setattr(runs, 'RANK', runs.Rank(0.125, 16.0, 'importance', 'none'))
    assert runs.by_rank(area=2, more='--object-area 2').startswith(
        '--object-area 2 --selection rank --rank-share 0.25 --rank-weight 16 --alpha 0.5')
    assert '--selection rank-excess' in runs.by_rank(pruning='excess')
    for options in (runs.by_rank(more='--method flava+'), runs.by_rank(pruning='printed'), runs.by_rank(area=0.5)):
        parse(oracle.parse_options(options.split())[1])


def test_the_tuning_takes_the_highest_mean_and_of_equals_the_first():
    assert runs.tuned_rank({}) is None
    records = tuning_records(lambda name, seed: seed - 200 + 5 * (name in ('tune-rank-1-8-16', 'tune-rank-1-4-4')))
    del records['tune-sound-even']
    assert runs.tuned_rank(records) == runs.Rank(1 / 8, 16)
    records = tuning_records(lambda name, seed: {'tune-rank-1-4-64': 3, 'tune-sound-even': 4}.get(name, 0))
    del records['tune-pruning-excess'][203]
    assert runs.tuned_rank(records) == runs.Rank(1 / 4, 64, 'even', None)
    records = tuning_records(lambda name, seed: {'tune-pruning-excess': 4, 'tune-pruning-printed': 4}.get(name, 0))
    assert runs.tuned_rank(records) == runs.Rank(1 / 16, 4, 'importance', 'excess')


def test_what_was_chosen_is_the_best_of_what_was_tried():
    """On the committed records. Where it fails for RANK: set RANK to tuned_rank of the records."""
    records = claims.load(runs.RECORDS)
    for name, number in runs.CHOSEN.items():
        tried = [runs.retrieval_A(records[f'tune-{name}-{k}'][0]) for k in range(4)]
        assert number == tried.index(max(tried))
    assert runs.RANK == runs.tuned_rank(records)
    for by_seed in records.values():
        for record in by_seed.values():
            runs.check_options(record)
    with pytest.raises(UserError, match='remove the record'):
        runs.check_options(dict(name='lava', seed=100, options='--method er'))


def test_what_is_left_is_printed(tmp_path, capsys):
    file = tmp_path / 'records.jsonl'
    record = dict(name='er', seed=100, options='--method er', seconds=36)
    file.write_text(json.dumps(record) + '\n')
    runs.main(['er-100', 'mir-100', 'mir-101', '--left', '--records', str(file)])
    out, err = capsys.readouterr()
    assert out.split() == ['mir-100', 'mir-101'] and err.startswith('1 of 3 runs have a record')


@pytest.mark.slow
def test_a_run_is_made_and_recorded(monkeypatch, tmp_path):
    """A tiny LAVA run of the new seeds: trained with coverage, evaluated, recorded once, its weights deleted."""
    from running import TINY
    options = (f'--selection importance --max-silent 1 --min-silent 1 --cache {tmp_path}/cache --clips-per-task 9 '
               f'--steps 2 --pretrain-steps 0 {" ".join(TINY)}')
    monkeypatch.setitem(runs.RUNS, 'fresh-lava', ' '.join(options.split()))
    monkeypatch.setattr(runs, 'PROBE', dict(clips=3, epochs=1, lr=0.02))
    monkeypatch.setattr(runs, 'EVALUATED_CLIPS', dict(test_clips=6, candidate_sets=1))
    file = tmp_path / 'records.jsonl'
    for _ in range(2):
        runs.make_run('fresh-lava-300', file, tmp_path / 'runs')
    [record] = runs.read_records(file).values()
    assert set(record) >= {'retrieval', 'gap', 'localization', 'selection', 'classification', 'coverage', 'mismatch'}
    assert record['mismatch']['0'] == pytest.approx(runs.retrieval_A(record), abs=0.1)
    assert record['coverage']['never_selected_v'] < record['coverage']['never_visible_v'] < 100
    assert not [*(tmp_path / 'runs').glob('*/last.pt'), *(tmp_path / 'runs').glob('*/models/*.pt')]
