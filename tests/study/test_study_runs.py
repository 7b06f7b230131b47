"""study/runs.py: every run can be trained, and records are kept. study/agreement.py: two I, against plain loops."""
import json

import pytest
import torch
from filelock import FileLock

from config import UserError
from running import TINY
from study import claims, oracle, runs
from study.agreement import compare, top_eighth_mask
from utils.cli import parse


def test_every_run_can_be_trained():
    for name, options in runs.RUNS.items():
        assert runs.parse_run(f'{name}-100') == (name, 100)
        parse(oracle.parse_options(options.split())[1])
    for wrong in ('lava', 'nothing-100', 'lava-x'):
        with pytest.raises(UserError, match='NAME-SEED'):
            runs.parse_run(wrong)
    assert runs.expand(['why-second', 'lava-7'], [100]) == ['why-second-frames-100', 'lava-7']
    assert len(runs.expand(['main'])) == 150 and all(len(tried) == 4 for tried in runs.TRIED.values())


def test_the_committed_records():
    """What was chosen is the best of what was tried, and each record has the options of its name."""
    records = claims.load(runs.RECORDS)
    for name, number in runs.CHOSEN.items():
        tried = [runs.retrieval_A(records[f'tune-{name}-{k}'][0]) for k in range(4)]
        assert number == tried.index(max(tried))

    # rank: first share and weight, then the weights of audio, then P
    def best(choices):
        means = {choice: sum(runs.retrieval_A(records[name][seed]) for seed in range(200, 204))
                 for choice, name in choices.items()}
        return max(means, key=means.get)

    settings = {(1 / share, weight): f'tune-rank-1-{share}-{weight}' for share in (16, 8, 4) for weight in (4, 16, 64)}
    assert (runs.RANK_SHARE, runs.RANK_WEIGHT) == best(settings)
    sounds = {'importance': 'tune-rank-1-8-16', 'rank': 'tune-sound-rank', 'even': 'tune-sound-even'}
    assert runs.RANK_SOUND == best(sounds)
    prunings = {'none': 'tune-rank-1-8-16', 'excess': 'tune-pruning-excess', 'printed': 'tune-pruning-printed'}
    assert runs.RANK_PRUNING == best(prunings)

    for by_seed in records.values():
        for record in by_seed.values():
            runs.check_options(record)
    with pytest.raises(UserError, match='remove the record'):
        runs.check_options(dict(name='lava', seed=100, options='--method er'))


def test_what_is_left_is_printed(tmp_path, capsys):
    file = tmp_path / 'records.jsonl'
    file.write_text(json.dumps(dict(name='er', seed=100, options='--method er', seconds=36)) + '\n')
    runs.main(['er-100', 'mir-100', 'mir-101', '--left', '--records', str(file)])
    out, err = capsys.readouterr()
    assert out.split() == ['mir-100', 'mir-101'] and err.startswith('1 of 3 runs have a record')


@pytest.mark.slow
def test_a_run_is_made_and_recorded(monkeypatch, tmp_path, capsys):
    """A tiny LAVA run of the new seeds: trained with coverage, evaluated, recorded once, its weights deleted."""
    options = (f'--selection importance --max-silent 1 --min-silent 1 --cache {tmp_path}/cache --clips-per-task 9 '
               f'--steps 2 --pretrain-steps 0 {" ".join(TINY)}')
    monkeypatch.setitem(runs.RUNS, 'fresh-lava', ' '.join(options.split()))
    monkeypatch.setattr(runs, 'PROBE', dict(clips=3, epochs=1, lr=0.02))
    monkeypatch.setattr(runs, 'EVALUATED_CLIPS', dict(test_clips=6, candidate_sets=1))
    file = tmp_path / 'records.jsonl'
    (tmp_path / 'runs').mkdir()
    with FileLock(tmp_path / 'runs' / 'fresh-lava-300.lock'):
        runs.make_run('fresh-lava-300', file, tmp_path / 'runs')
    assert capsys.readouterr().out == 'fresh-lava-300: another process makes it\n' and not file.exists()
    for _ in range(2):
        runs.make_run('fresh-lava-300', file, tmp_path / 'runs')
    [record] = runs.read_records(file).values()
    assert set(record) >= {'retrieval', 'gap', 'localization', 'selection', 'classification', 'coverage', 'mismatch'}
    assert record['mismatch']['0'] == pytest.approx(runs.retrieval_A(record), abs=0.1)
    assert record['coverage']['never_selected_v'] < record['coverage']['never_visible_v'] < 100
    assert not [*(tmp_path / 'runs').glob('*/last.pt'), *(tmp_path / 'runs').glob('*/models/*.pt')]


def test_agreement_against_loops():
    full, cheap, source = torch.rand(5, 16), torch.rand(5, 16), torch.rand(5, 16) < 0.3
    shared, held = [], []
    for x, y, marked in zip(full, cheap, source):
        best_x, best_y = set(x.argsort()[-2:].tolist()), set(y.argsort()[-2:].tolist())      # an eighth of 16
        shared.append(len(best_x & best_y) / 2)
        held.append(sum(marked[i].item() for i in best_y) / marked.sum().item())
    found = compare(full, cheap, source)
    assert found['shared'] == pytest.approx(100 * sum(shared) / 5)
    assert found['source_cheap'] == pytest.approx(100 * sum(held) / 5)

    # equal and reversed orders
    same, opposite = compare(full, 2 * full, top_eighth_mask(full)), compare(full, -full, top_eighth_mask(full))
    assert (same['correlation'], same['shared'], same['source_full']) == pytest.approx((1, 100, 100))
    assert (opposite['correlation'], opposite['shared'], opposite['source_cheap']) == pytest.approx((-1, 0, 0))
