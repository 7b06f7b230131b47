"""The paper's setting (§5, App. A to F), once for each data set and table: which runs may stand beside its numbers.

In:  groups of finished runs that stand in one table.
Out: `beside`: whether the paper's printed values may stand beside theirs, and the sentences that say how the settings
     differ.

Where a run differs in what decides the numbers (size, data, steps, heads, candidates), the printed values are left out;
where it differs in anything else that the paper or the released configuration says, they stand with a note.
"""
from pathlib import Path

from config import PRESETS, Config, parse
from paper import printed
from patches import Sizes

OF_RETRIEVAL = (1, 3, 7, 9, 10)                  # the tables of retrieval; 4 and 8 are of a head on a frozen backbone
OF_AUDIOSET = (1, 4, 7)                          # those with numbers of AudioSet too; all have VGGSound's
GIVEN = {                                        # what the user must name, and what the paper has there
    'init': 'an ImageNet MAE with its decoder', 'pretrain_data': {'vggsound': 'AudioSet-20k', 'audioset': 'VGGSound'},
    'retrieval_list': 'CAV-MAE\'s list'}
OPEN = {                                         # the paper does not say, or Table 5 is damaged there
    'alpha', 'mir_candidates', 'gmed_alpha', 'gmed_beta', 'cls_er_alpha_s', 'cls_er_lam', 'lump_beta',
    'pretrain_epochs', 'pretrain_lr', 'pretrain_batch_size', 'pretrain_mask_ratio'}
OF_NO_RESULT = {                                 # where a run lies, how it is made, what is random; and what shapes are
    'method', 'data', 'seed', 'workers', 'max_bad', 'out', 'cache', 'keep_models', 'save_every', 'log_every', 'device',
    'clips_per_task', 'test_clips', 'galleries', 'min_silent', 'max_silent', 'data_seed'}
DECISIVE = {'size', *Sizes.__dataclass_fields__, 'tasks', 'order', 'clips_per_class', 'epochs', 'steps',
            'pretrain_steps'}
NEAR = 0.1                                       # of the paper's candidates: clips vanish, and chance goes with them


def setting(number, dataset):
    """→ {option: the paper's value} of a table's runs on a data set, FLAVA's where methods have their own."""
    cfg, _ = parse(['--dataset', dataset, '--size', 'base'])
    wanted = {name: value for name, value in vars(cfg).items() if name not in OPEN | OF_NO_RESULT}
    if number not in OF_RETRIEVAL:
        del wanted['retrieval_list']
    if number == 7:
        wanted['order'] = 'shuffled'
        if dataset == 'vggsound':
            wanted['batch_size'] = 36                                    # App. E
    return wanted


def differences(number, cfg: Config, varied=()):
    """{option: in words how a run's differs from the paper's}. varied: options that the table itself sweeps.

    With another preset than the paper's, what that preset brings along is not named again.
    """
    found, brought = {}, {} if cfg.size == 'base' else PRESETS[cfg.size]
    for name, theirs in setting(number, cfg.dataset).items():
        ours = getattr(cfg, name)
        if name in varied or name in brought and ours == brought[name]:
            continue
        if name in GIVEN and not ours:
            what = GIVEN[name][cfg.dataset] if name == 'pretrain_data' else GIVEN[name]
            found[name] = f'no {name} ({what})'
        elif name not in GIVEN and ours != theirs:
            found[name] = f'{name} {_said(ours)} ({_said(theirs)})'
    return found


def _said(value):
    return {'': 'as by default', -1: 'no limit'}.get(value, value)


def beside(number, groups, varied=(), name_of=str):
    """May the paper's values of a table stand beside these groups of runs, which share a data set?

    → whether; Markdown that says how the settings differ, '' where they do not. name_of(group) → what it is called
    """
    dataset = groups[0].cfg.dataset
    if dataset != 'vggsound' and not (dataset == 'audioset' and number in OF_AUDIOSET):
        return False, '\nThe paper\'s values are of another data set, so only ours are shown.\n'
    decisive, other = [], []
    for group in groups:
        words = differences(number, group.cfg, varied)
        for name, text in words.items():
            (decisive if name in DECISIVE else other).append((name_of(group), text))
        of_results = of_candidates if number in OF_RETRIEVAL else of_heads
        for text, decides in of_results(number, group):
            (decisive if decides else other).append((name_of(group), text))
    lines = [_sentence('The paper\'s values are left out: what decides the numbers differs', decisive, len(groups)),
             _sentence('Not as in the paper (in brackets, what it has)', other, len(groups))]
    return not decisive, ''.join(lines)


def of_candidates(number, group):
    """[(in words how the number of candidates differs, whether by more than a tenth)] of a group's runs"""
    theirs = printed.candidates(group.cfg.dataset)
    numbers = sorted({run.results['candidates'] for run in group.runs})
    return [(f'{ours} candidates ({theirs})', abs(ours - theirs) > NEAR * theirs) for ours in numbers if ours != theirs]


def of_heads(number, group):
    """[(in words how the heads of Table 4 or 8 were trained otherwise than Table 6 says, True)] of a group's runs"""
    records = [(run, run.read('ave' if number == 8 else 'classification')) for run in group.runs]
    found = [(f'heads trained with {record["options"]} ({Path(run.folder).name})', True)
             for run, record in records if record['options']]
    if number == 4:
        found += [(f'a head for each task ({Path(run.folder).name}; one for all)', True)
                  for run, record in records if any(None in row for row in record['acc'])]
    return found


def _sentence(start, found, groups):
    """What all groups share is said once, the rest by its group.  found: [(group's name, words)]"""
    if not found:
        return ''
    by_words = {}
    for name, words in found:
        by_words.setdefault(words, []).append(name)
    said = [words if len(names) == groups else f'{words} in {" and ".join(names)}' for words, names in by_words.items()]
    return f'\n{start}: {"; ".join(said)}.\n'
