"""paper/study.py and paper/evidence.py: every run can be trained, intervals by hand, the verdict's rule."""
import json
import math

import pytest

from config import parse
from paper import claims, evidence, study
from paper.groups import Finished
from patches import UserError


def test_every_run_of_the_study_can_be_trained():
    for name, words in study.RUNS.items():
        parse(study.options(words.split())[1] if name in study.WHAT_IFS | study.WHY else words.split())
        assert study.parsed(f'{name}-100') == (name, 100)
    for wrong in ('lava', 'nothing-100', 'lava-x'):
        with pytest.raises(UserError, match='NAME-SEED'):
            study.parsed(wrong)
    made = next(line for line in (study.ROOT / "Makefile").read_text().splitlines() if line.startswith("MAIN := "))
    assert made.split()[2:] == list(study.MAIN)
    assert list(study.SEEDS) == [name for name in study.RUNS if name not in study.TUNING]
    assert all(len(tried) == 4 for tried in study.TRIED.values()) and set(study.TUNED) == set(study.TRIED)


def test_a_paired_difference_by_hand():
    first, second = {100: 5.0, 101: 7.0, 102: 6.0, 103: 1.0}, {100: 4.0, 101: 4.0, 102: 4.0, 104: 9.0}
    d = claims.difference(first, second, lambda value: value)          # 1, 3, 2: mean 2, deviation 1, three pairs
    half = 4.302652729911275 / math.sqrt(3)                              # Student's t of 2 degrees, two-sided 95 %
    assert (d.mean, d.alike, d.seeds) == (2.0, 3, 3)
    assert math.isclose(d.low, 2 - half) and math.isclose(d.high, 2 + half)
    assert d.verdict == 'cannot be told here'
    assert d._replace(low=0.1).verdict == 'holds' and d._replace(high=-0.1).verdict == 'does not'
    assert claims.difference(first, {104: 1.0}, lambda value: value) is None


def test_of_several_differences_each_must_hold():
    claim = claims.Claim('a before b and c', [('a', 'b'), ('a', 'c')], lambda value: value)
    found = {'a': {1: 5.0, 2: 5.1}, 'b': {1: 1.0, 2: 1.1}, 'c': {1: 9.0, 2: 9.1}}
    assert claims.verdict(claim, claims.answers(claim, found)) == 'does not'
    assert claims.verdict(claim, claims.answers(claim, {**found, 'c': {1: 2.0, 2: 2.1}})) == 'holds'
    turned = claims.answers(claim._replace(less=True), found)
    assert turned[0][2].high < 0 < turned[1][2].low
    assert claims.verdict(claim, claims.answers(claim, {**found, 'c': {}})) == 'not all seeds are there'


def test_what_was_chosen_is_the_best_of_what_was_tried():
    found, A = claims.read(study.ROOT / 'results' / 'runs'), claims.recall('A')
    for name, tried in study.TRIED.items():
        of = [A(found[f'tune-{name}-{number}'][0]) for number in range(4)]
        assert study.TUNED[name] == tried[of.index(max(of))]                   # of equals, the first


def test_the_main_row_of_the_results_page_is_that_of_the_records():
    found = claims.read(study.ROOT / 'results' / 'runs')
    lines = (study.ROOT / 'results' / 'README.md').read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith('| Multitask | ') and 'MATS' in line)
    names, _, means, deviations = ([cell.strip() for cell in line.split('|')[1:-1]] for line in lines[start:start + 4])
    by_title = {claims.title(name).removesuffix(' (ours)'): name for name in study.MAIN}
    assert set(names) == set(by_title)
    for title, mean, deviation in zip(names, means, deviations):
        A = claims.over_seeds(found[by_title[title]], claims.recall('A'))
        assert (mean, deviation) == (f'{A[0]:.1f}', f'±{A[1]:.1f}'), title
        assert len(found[by_title[title]]) == 10


def test_how_far_attention_has_fallen_by_hand():
    auc = [[.5, .5, .5], [.9, .5, .5], [.8, .7, .5], [.6, .6, .9]]             # of the initial model; after 1, 2, 3
    record = dict(localization=dict(avm=dict(auc_v=auc)))
    assert math.isclose(claims.fallen(record), ((.9 - .6) + (.7 - .6)) / 2)


def test_a_record_of_other_options_is_not_taken_for_this_run(tmp_path):
    (tmp_path / 'lava-100.json').write_text(json.dumps(dict(options='--method er')))
    with pytest.raises(UserError, match='move it away'):
        study.do('lava-100', tmp_path, tmp_path / 'runs')


def test_seeds_that_are_not_asked_with_are_left_out(tmp_path):
    for name, seed in (('lava', 0), ('lava', 101), ('beta-0.1', 104), ('tune-lump-0', 0)):
        (tmp_path / f'{name}-{seed}.json').write_text(json.dumps(dict(name=name, seed=seed)))
    assert {name: list(runs) for name, runs in claims.read(tmp_path).items()} == {'lava': [101], 'tune-lump-0': [0]}


def test_a_claim_of_less_is_printed_the_way_it_is_turned():
    claim = claims.Claim('a forgets less', [('a', 'b')], float, less=True)
    page = evidence.claims_table([claim], {'a': {1: 1., 2: 2.}, 'b': {1: 3., 2: 5.}})             # 2 and 3 less
    assert '| a forgets less | b − a +2.50 [-3.85, +8.85], 2 of 2 | **cannot be told here** |' in page


def test_a_record_is_brief():
    assert study.brief({'gap': (1.2345678, [2]), 'clouds': 9}) == {'gap': [1.2346, [2]]}


def test_the_page_and_its_figures_are_drawn_of_records(tmp_path):
    """Records as a run left them, with numbers set by hand: the page has them, and every figure is there."""
    one = json.loads((study.ROOT / 'results' / 'runs' / 'tune-flava-0-0.json').read_text())
    for number, name in enumerate([*study.MAIN, *study.SECOND, *study.ABLATIONS, *study.WHAT_IFS, *study.WHY]):
        for seed in (100, 101, 102):
            for direction in ('audio_to_video', 'video_to_audio'):
                one['retrieval'][direction]['R@10'] |= dict(A=20. - number + 0.1 * (seed % 2), F=None if name ==
                                                            'multitask' else 2.)
            record = json.dumps(one | dict(name=name, seed=seed, options=study.RUNS[name]))
            (tmp_path / f'{name}-{seed}.json').write_text(record)
    evidence.main(['--records', str(tmp_path)])
    page = (tmp_path / 'evidence.md').read_text()
    assert '| FLAVA | 13.03 ± 0.06 | 2.00 ± 0.00 |' in page and '| Multitask | 11.03 ± 0.06 | – |' in page
    assert 'LAVA − Random -2.00' in page and '## Second stream' in page and '## Ablations' in page
    assert '| oracle-lava-odds-4 | `--of both --odds 4 --selection' in page and '**not all seeds are there**' in page
    for name in evidence.FIGURES:
        assert (tmp_path / f'{name}.png').stat().st_size > 10_000
    made = {file.name for file in (tmp_path / 'figures').iterdir()}
    assert made == {*(f'figure_{number:02d}.png' for number in evidence.OF_NUMBERS),
                    *(f'table_{number:02d}.md' for number in (1, 3, 4, 7, 9, 10))}


def test_a_run_is_restored_from_its_record(tmp_path):
    records = study.ROOT / 'results' / 'runs'
    for run in ('flava-100', 'second-er-101', 'er-no-mae-102'):
        record = json.loads((records / f'{run}.json').read_text())
        found = Finished(study.restored(record, tmp_path))
        acc = found.read('classification')['acc'][-1]
        assert (found.cfg.seed, found.cfg.data_seed) == (record['seed'], record['seed'])
        assert found.results == record['retrieval'] and found.read('gap') == record['gap']
        assert found.read('classification')['A'] == sum(acc) / len(acc) == pytest.approx(claims.probe(record))
        assert found.read('classification')['options'] == '--clips 60 --lr 0.02 --epochs 10'
    assert (found.cfg.method, found.cfg.mae_weight) == ('er', 0)


def test_of_no_records_it_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evidence.main(['--records', str(tmp_path)])
    assert 'make table' in capsys.readouterr().err
