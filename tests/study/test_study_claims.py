"""study/claims.py and study/report.py: intervals by hand, the rule of the verdict, the page and its figures."""
import json
import math

import pytest

from downstream.finished_run import FinishedRun
from study import claims, report, runs
from study.claims import Claim, Difference


def test_a_paired_difference_by_hand():
    first, second = {100: 5.0, 101: 7.0, 102: 6.0, 103: 1.0}, {100: 4.0, 101: 4.0, 102: 4.0, 104: 9.0}
    d = claims.difference(first, second, float)                # 1, 3, 2: mean 2, deviation 1, three pairs
    half = 4.302652729911275 / math.sqrt(3)                       # Student's t with 2 degrees of freedom, 95 %
    assert (d.mean, d.same_sign, d.seeds) == (2.0, 3, 3)
    assert math.isclose(d.low, 2 - half) and math.isclose(d.high, 2 + half) and math.isclose(d.detectable, half)
    assert claims.difference(first, {104: 1.0}, float) is None


def test_the_rule_of_a_verdict():
    d = Difference(0.5, -1.0, 2.0, 3, 4)
    assert d.verdict() == 'inconclusive' and d.verdict(margin=1.5) == 'supported'
    assert d._replace(low=0.1).verdict() == 'supported' and d._replace(high=-0.1).verdict() == 'contradicted'
    assert d._replace(low=-3.0, high=-0.1).verdict(margin=2) == 'inconclusive'
    assert d._replace(low=-3.0, high=-2.5).verdict(margin=2) == 'contradicted'


def test_of_several_differences_the_worst_decides(monkeypatch):
    monkeypatch.setattr(claims, 'SEEDS', dict.fromkeys('abc', (1, 2)))
    claim = Claim('a above b and c', [('a', 'b'), ('a', 'c')], float)
    by_seed = {'a': {1: 5.0, 2: 5.1}, 'b': {1: 1.0, 2: 1.2}, 'c': {1: 9.0, 2: 9.2}}
    assert claim.verdict(by_seed) == 'contradicted'
    assert claim.verdict(by_seed | {'c': {1: 2.0, 2: 2.2}}) == 'supported'
    assert claim.verdict(by_seed | {'c': {1: 9.0}}) == claim.verdict(by_seed | {'c': {}}) == 'seeds missing'


def test_every_claim_is_about_runs_of_the_study():
    for group, group_claims in claims.CLAIMS.items():
        for claim in group_claims:
            assert all(name in runs.RUNS for pair in claim.pairs for name in pair), claim.words
            assert all(runs.SEEDS[a] and set(runs.SEEDS[a]) & set(runs.SEEDS[b]) for a, b in claim.pairs), claim.words
            fresh = [min(runs.SEEDS[name]) >= 300 for pair in claim.pairs for name in pair]
            assert all(fresh) == any(fresh) == (runs.GROUPS[group].title.startswith('Pre-registered'))
    assert claims.title('fresh-second-rank') == 'rank (ours), second stream' and claims.title('beta-0.1') == 'beta-0.1'


def test_attention_lost_by_hand():
    auc = [[.5, .5, .5], [.9, .5, .5], [.8, .7, .5], [.6, .6, .9]]         # initial model; after 1, 2, 3 tasks
    record = dict(localization=dict(avm=dict(auc_v=auc)))
    assert math.isclose(claims.auc_v_lost(record), 100 * ((.9 - .6) + (.7 - .6)) / 2)


def test_records_of_other_seeds_are_left_out(tmp_path):
    file = tmp_path / 'records.jsonl'
    seeds = (('lava', 0), ('lava', 101), ('beta-0.1', 104), ('tune-lump-0', 0))
    file.write_text(''.join(json.dumps(dict(name=name, seed=seed)) + '\n' for name, seed in seeds))
    assert {name: list(by_seed) for name, by_seed in claims.load(file).items()} == {'lava': [101], 'tune-lump-0': [0]}


@pytest.mark.slow
def test_the_page_and_its_figures(tmp_path):
    """Records with numbers set by hand: the page has them, and every figure is drawn."""
    record, lines = runs.read_records()['tune-flava-0', 0], []
    coverage = {f'never_{kind}_{x}': 5. for kind in ('visible', 'selected') for x in 'av'}
    agreement = {f'{name}_{x}': 0.5 for name in ('correlation', 'shared', 'source_full', 'source_cheap') for x in 'av'}
    for number, (name, options) in enumerate(runs.RUNS.items()):
        for k, seed in enumerate(runs.SEEDS[name][:5 if name == 'fresh-rank' else 3]):
            A, F = 20. - number + 0.1 * (k % 2), None if name == 'multitask' else 2.
            for direction in runs.DIRECTIONS:
                record['retrieval'][direction]['R@10'] |= dict(A=A, F=F)
            more = dict(mismatch={'0': A, '0.5': A}, coverage={kind: share + A for kind, share in coverage.items()},
                        agreement={'grid': agreement, 'student': agreement})
            lines.append(json.dumps(record | dict(name=name, seed=seed, options=options or '') | more))
    (tmp_path / 'records.jsonl').write_text('\n'.join(lines) + '\n')
    report.main(['--records', str(tmp_path / 'records.jsonl')])
    page = (tmp_path / 'claims.md').read_text()
    assert '| FLAVA | 3 | 13.03 ± 0.06 | 2.00 ± 0.00 |' in page and '| Multitask | 3 | 11.03 ± 0.06 | – |' in page
    assert 'LAVA − Random -2.00' in page and '**seeds missing**' in page and '| rank (ours) | 5 | +1.00 (p = 0' in page
    assert '| student, on the models of rank, cheap scorer | 3 | 0.50 ± 0.00 |' in page
    for group in runs.GROUPS.values():
        assert (f'## {group.title}' in page) != group.title.startswith('Tuning')
    drawn = {file.name for file in (tmp_path / 'figures').iterdir()}
    assert drawn == {'summary.png', 'forgetting.png', 'differences.png',
                     *(f'figure_{number:02d}.png' for number in (9, 10, 11, 13, 15)),
                     *(f'table_{number:02d}.md' for number in (1, 3, 4, 7, 9, 10))}


def test_the_committed_page_is_that_of_the_records():
    assert (runs.ROOT / 'results' / 'claims.md').read_text() == report.page(claims.load(runs.RECORDS))


def test_the_table_of_the_readme_is_that_of_the_records():
    found, rows = claims.load(runs.RECORDS), {}
    for line in (runs.ROOT / 'results' / 'README.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.replace('−', '-').split('|')]
        rows[cells[1] if len(cells) == 7 else ''] = cells
    words = {'supported': 'above', 'contradicted': 'below', 'inconclusive': 'no difference found'}
    for name in runs.MAIN:
        A, d = claims.over_seeds(found[name], claims.A), claims.difference(found[name], found['der++'], claims.A)
        _, _, _, mean, difference, verdict, _ = rows[claims.title(name)]
        assert mean == f'{A[0]:.1f} ± {A[1]:.1f}' and len(found[name]) == 10
        if name != 'der++':
            assert difference == f'{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]', name
            assert verdict == words[d.verdict()]


def test_a_run_is_restored_from_its_record(tmp_path):
    records = runs.read_records()
    for name, seed in (('flava', 100), ('second-er', 101), ('er-no-mae', 102)):
        record = records[name, seed]
        run = FinishedRun(report.restore_run(record, tmp_path), device='cpu')
        assert (run.cfg.seed, run.cfg.data_seed, run.results) == (seed, seed, record['retrieval'])
        assert run.load('gap') == record['gap']
        assert run.load('classification')['A'] == pytest.approx(claims.probe(record))
    assert (run.cfg.method, run.cfg.mae_weight) == ('er', 0)
