"""Maps of one number a patch, and how well they find the source of a sound (§3.2, App. E, J; Fig. 2, 3, 12, 16, 17).

In:  a batch {audio (B, t, f), video (B, T, 3, H, W) uint8} and a model; where the source is known (shapes), its
     patches.
Out: four maps a clip, and measures of them in the form of Markdown rows.

    I_a, I_v             Eq. 2, 3: what the AVM attends to              Fig. 2, 3, 12 (e), 16, 17
    cosine_a, cosine_v   patches of one modality · mean of the other    Fig. 12 (b)-(d)

The paper shows such maps for chosen clips; with the source known they can be measured over all.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from avm import score
from patches import whole
from streams.scenes import SECONDS, cover, frame_times, truth


# ---------------------------------------------------------------------------------------- maps

class Maps(NamedTuple):
    """One number a patch: the higher, the more the source is held to be there."""
    I_a: torch.Tensor        # B,M   sums to 1
    I_v: torch.Tensor        # B,N   sums to 1
    cosine_a: torch.Tensor   # B,M   in [-1, 1]
    cosine_v: torch.Tensor   # B,N


@torch.no_grad()
def maps(cfg, backbone, avm, batch):
    """batch: audio (B, t, f), video (B, T, 3, H, W) uint8 → Maps

    The cosine maps are App. E's, after CAV-MAE: "cosine similarity between each video patch and averaged audio
    embedding", and the same the other way.
    """
    patches = whole(batch, cfg.patch_size)
    s = score(cfg, backbone, avm, patches)
    a, v = backbone.tokens(s.o_a, s.o_v, patches.kept_a, patches.kept_v)     # B,M,D and B,N,D
    c_a, c_v = a.mean(1, keepdim=True), v.mean(1, keepdim=True)              # B,1,D
    cosine_a, cosine_v = F.cosine_similarity(a, c_v, dim=-1), F.cosine_similarity(v, c_a, dim=-1)
    return Maps(s.importance_a, s.importance_v, cosine_a, cosine_v)


# --------------------------------------------------------------------------- where the source is

def true_source(dataset, cfg, index=0):
    """truth_a (M,), truth_v (N,) bool of a clip of a data set that knows its scenes, else None, None"""
    return truth(dataset.scene(index), cfg) if hasattr(dataset, 'scene') else (None, None)


def sources(dataset, cfg):
    """truth_a (clips, M), truth_v (clips, N) of a data set that knows its scenes, else None, None"""
    if not hasattr(dataset, 'scene'):
        return None, None
    true = [true_source(dataset, cfg, index) for index in range(len(dataset))]
    return torch.stack([a for a, _ in true]), torch.stack([v for _, v in true])


def silent(scene, sizes):
    """(N,) bool: frame patches of which a silent object covers a tenth or more, and the source nothing"""
    share = lambda track: F.avg_pool2d(torch.stack([torch.from_numpy(cover(track, time, sizes.image_size))
                                                    for time in frame_times(sizes)]), sizes.patch_size).flatten()
    source, *others = map(share, scene.tracks)
    return torch.stack([torch.zeros_like(source), *others]).amax(0).ge(0.1) & (source == 0)


def moments(sizes):
    """(M,) bool: the patches of the spectrogram in which a frame was taken"""
    time, freq = sizes.grid_a
    at = torch.zeros(time, dtype=torch.bool)
    at[[int(seconds / SECONDS * time) for seconds in frame_times(sizes)]] = True
    return at[:, None].expand(time, freq).flatten()


def countable(true):
    """true (clips, n) → (clips,) bool: those with a source, and with something beside it"""
    return true.any(1) & ~true.all(1)


def area(true):
    """Percent of the patches that are the source's, over the clips that are measured: what share and pointing are by
    chance. None where no clip is.  true (clips, n)"""
    counted = true[countable(true)]
    return 100 * counted.double().mean().item() if len(counted) else None


# ------------------------------------------------------------------------------------ measures
# Of a map (B, n) and its truth (B, n) bool, neither empty nor full in any row → (B,). For video, n counts the patches
# of all frames together, as Eq. 3 does.

def auc(m, truth):
    """ROC-AUC: of all pairs of a true and a false patch, the share in which the true one has more; a tie is half a
    pair."""
    pairs = truth[:, :, None] & ~truth[:, None, :]                           # B,n,n
    wins, ties = ((compare(m[:, :, None], m[:, None, :]) & pairs).sum((1, 2)) for compare in (torch.gt, torch.eq))
    return (wins + ties / 2) / pairs.sum((1, 2))


def share(I, truth):
    """Σ of I over the true patches, in percent: how much of the attention is on the source."""
    return 100 * (I * truth).sum(1) / I.sum(1)


def pointing(m, truth):
    """100 where the top patch is on the source, else 0. A tie counts against the model: a constant map must not
    score."""
    best = lambda where: m.masked_fill(~where, -torch.inf).amax(1)
    return 100 * (best(truth) > best(~truth)).double()


MEASURES = {'avm': (auc, share, pointing), 'backbone': (auc, pointing)}      # cosines do not add up to 1: no share


def scored(which, map_a, map_v, truth_a, truth_v):
    """{'auc_v': (clips,), …} by MEASURES[which].  map_a, truth_a (B, M), map_v, truth_v (B, N)

    A clip without a source in one modality, or with nothing else, is left out of that modality's measures only.
    """
    found = {}
    for modality, m, true in (('v', map_v, truth_v), ('a', map_a, truth_a)):
        counted = countable(true)
        for function in MEASURES[which]:
            found[f'{function.__name__}_{modality}'] = function(m[counted], true[counted])
    return found


def means(parts):
    """Measures of several batches [{'auc_v': (clips,), …}] → {'auc_v': mean over all their clips, or None of none}"""
    whole_task = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]} if parts else {}
    return {name: values.mean().item() if len(values) else None for name, values in whole_task.items()}


def mean(values):
    """The mean of what is there; None of nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


# ------------------------------------------------------------------------------- what is told of it

UNKNOWN = 'The sources in these clips are not known, so nothing is measured: see the picture beside this file.'
SYMBOLS = {('avm', 'v'): '$I_v$', ('avm', 'a'): '$I_a$',
           ('backbone', 'v'): 'cosine of frames', ('backbone', 'a'): 'cosine of sound'}
TITLES = {'auc': 'ROC-AUC', 'share': 'attention on the source, %', 'pointing': 'top patch on the source, %'}


def row_of_table(which, name, values, chance):
    """A line of Markdown: what was measured with which map, two values, their drop, and chance.

    which, name   as in `scored`: 'avm', 'auc_v'
    values        the first and the last; None for what is not there
    chance        {'area_v', 'area_a'} by `area`
    """
    function, modality = name.split('_')
    digits = 3 if function == 'auc' else 1
    first, last = values
    drop = None if None in values else first - last
    by_chance = 0.5 if function == 'auc' else chance[f'area_{modality}']
    cells = ['–' if value is None else f'{value:.{digits}f}' for value in (first, last, drop, by_chance)]
    return f'| {SYMBOLS[which, modality].replace("$", "")}: {TITLES[function]} | ' + ' | '.join(cells) + ' |'


# ------------------------------------------------------------------------------- clips, and records

class Some(Dataset):
    """Some clips of a data set, as one of its own; an item still says which clip of the whole it is."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, key):
        return self.dataset[self.indices[key[0]], key[1]]


def moved(batch, device):
    """The tensors of a batch, on the device."""
    return {name: x.to(device) for name, x in batch.items()}


def alone(x, row):
    """A row of a batch. A copy: a view would be written to disk with the whole batch behind it. None of None."""
    return None if x is None else x[row].clone()


def save(run, name, record):
    """RUN/eval/name.pt: tensors and plain values, for `saved` and for the paper's figures"""
    torch.save(record, run.place(name, 'pt'))


def saved(run, name):
    """What `save` left of these very models: all of the run's, its last, or the one that was named"""
    return torch.load(run.place(name, 'pt'), map_location='cpu', weights_only=True)
