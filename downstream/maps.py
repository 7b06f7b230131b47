"""Maps with one number per patch, and metrics of how well they find the source of a sound (§3.2, App. E, J).

In:  a batch {audio (B, t, f), video (B, T, 3, H, W) uint8} and a model. The built-in clips also know their source.
Out: four maps per clip, and their metrics.

    I_a, I_v             Eq. 2, 3: the AVM's importance scores                          Fig. 2, 3, 12 (e), 16, 17
    cosine_a, cosine_v   cosine between a patch and the mean of the other modality      Fig. 12 (b)-(d)

The paper shows such maps for a few clips. With a known source, all clips can be measured.
"""
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F

from avm import attend
from patches import patchify
from streams.scenes import SECONDS, cover, frame_times, truth
from utils.markdown import format_number


# ---------------------------------------------------------------------------------------- maps

class Maps(NamedTuple):
    """One number per patch. A high number means: the source is here."""
    I_a: torch.Tensor        # B,M   sums to 1
    I_v: torch.Tensor        # B,N   sums to 1
    cosine_a: torch.Tensor   # B,M   in [-1, 1]
    cosine_v: torch.Tensor   # B,N


@torch.no_grad()
def compute_maps(cfg, backbone, avm, batch):
    """batch: audio (B, t, f), video (B, T, 3, H, W) uint8 → Maps, float32 on the CPU

    The cosine maps follow App. E and CAV-MAE: "cosine similarity between each video patch and averaged audio
    embedding", and the same for audio patches.
    """
    patches = patchify(batch, cfg.patch_size)
    out = attend(cfg, backbone, avm, patches)
    a, v = backbone.unimodal_tokens(out.tokens.o_a, out.tokens.o_v, patches.ids_a, patches.ids_v)     # B,M,D and B,N,D
    c_a, c_v = a.mean(1, keepdim=True), v.mean(1, keepdim=True)                          # B,1,D
    cosine_a, cosine_v = F.cosine_similarity(a, c_v, dim=-1), F.cosine_similarity(v, c_a, dim=-1)
    return Maps(*(x.float().cpu() for x in (out.I_a, out.I_v, cosine_a, cosine_v)))


def to_device(batch, device):
    """The tensors of a batch, on the device"""
    return {name: x.to(device) for name, x in batch.items() if torch.is_tensor(x)}


# ------------------------------------------------------------------------- clips for pictures

def read_clips(datasets, cfg, places):
    """places [(task, index)] → [{task, frames (T, 3, H, W), audio (t, f), truth_a, truth_v}], for `plot_maps`"""
    clips = []
    for task, index in places:
        item, (truth_a, truth_v) = datasets[task][index, 0], source_of_clip(datasets[task], cfg, index)
        clips.append(dict(task=task, frames=item['video'], audio=item['audio'], truth_a=truth_a, truth_v=truth_v))
    return clips


def make_batch(clips, device):
    """Clips of `read_clips` → their audio and video as a batch"""
    return dict(audio=torch.stack([clip['audio'] for clip in clips]).to(device),
                video=torch.stack([clip['frames'] for clip in clips]).to(device))


def add_maps(clips, maps):
    """Give each clip its row of the maps {name: (clips, …)}."""
    for name, rows in maps.items():
        for clip, row in zip(clips, rows):
            clip[name] = row.clone()                           # torch.save would write the whole tensor behind a view


# ------------------------------------------------------------------------------- the true source

def source_of_clip(dataset, cfg, index=0):
    """→ source_a (M,), source_v (N,) bool: the patches of the source. None, None if the data set does not know it."""
    return truth(dataset.scene(index), cfg) if hasattr(dataset, 'scene') else (None, None)


def sources(dataset, cfg):
    """→ source_a (clips, M), source_v (clips, N) bool of a whole data set, or None, None"""
    if not hasattr(dataset, 'scene'):
        return None, None
    source_a, source_v = zip(*(truth(dataset.scene(index), cfg) for index in range(len(dataset))))
    return torch.stack(source_a), torch.stack(source_v)


def silent_objects(scene, sizes):
    """→ (N,) bool: frame patches with a silent object on a tenth of the patch or more, and nothing of the source"""
    covered = np.stack([[cover(track, time, sizes.image_size) for time in frame_times(sizes)]
                        for track in scene.tracks])                                    # objects,T,H,W
    covered = F.avg_pool2d(torch.from_numpy(covered), sizes.patch_size).flatten(1)     # objects,N; the first: source
    return (covered[1:] >= 0.1).any(0) & (covered[0] == 0)


def frame_moments(sizes):
    """→ (M,) bool: spectrogram patches at the times of the video frames"""
    time, freq = sizes.grid_a
    at = torch.zeros(time, dtype=torch.bool)
    at[[int(seconds / SECONDS * time) for seconds in frame_times(sizes)]] = True
    return at[:, None].expand(time, freq).flatten()


def measurable(source):
    """source (clips, n) bool → (clips,) bool: clips with source patches and with other patches"""
    return source.any(1) & ~source.all(1)


def source_area(source):
    """Percent of source patches in the measurable clips: the chance level of share and pointing. None without clips.
    source (clips, n) bool"""
    source = source[measurable(source)]
    return 100 * source.double().mean().item() if len(source) else None


# --------------------------------------------------------------------------------------- metrics
# Each one: a map m (B, n) and its source (B, n) bool, both kinds of patches in each row → (B,).
# n counts the patches of all frames together, as Eq. 3 does.

def auc(m, source):
    """ROC-AUC of each clip, in [0, 1]: the Mann-Whitney U statistic of all clips at once. A NaN map scores 0."""
    rank_of = torch.from_numpy(scipy.stats.rankdata(m.numpy(), axis=1)).nan_to_num(0)    # B,n; ties are averaged
    positives = source.sum(1)
    U = (rank_of * source).sum(1) - positives * (positives + 1) / 2        # pairs in the right order; a tie is ½
    return U.clamp(min=0).float() / (positives * (~source).sum(1))


def share(I, source):
    """Percent of the attention that is on the source. For maps that sum to 1."""
    return 100 * (I * source).sum(1) / I.sum(1)


def pointing(m, source):
    """Pointing game: 100 if the highest patch is on the source, else 0. A tie with another patch counts as a miss."""
    highest_on = m.masked_fill(~source, -torch.inf).amax(1)
    highest_off = m.masked_fill(source, -torch.inf).amax(1)
    return 100 * (highest_on > highest_off).double()


METRICS = {'avm': (auc, share, pointing), 'backbone': (auc, pointing)}      # cosines do not sum to 1: no share


def score_maps(which, map_a, map_v, source_a, source_v):
    """METRICS[which] → {'auc_v': mean over the clips, or None without clips, …}.  map_a, source_a (B, M), map_v,
    source_v (B, N)

    A clip that is not measurable in one modality is left out of this modality's metrics only.
    """
    scores = {}
    for modality, m, source in (('v', map_v, source_v), ('a', map_a, source_a)):
        rows = measurable(source)
        for metric in METRICS[which]:
            scores[f'{metric.__name__}_{modality}'] = mean_or_none(metric(m[rows], source[rows]))
    return scores


def mean_or_none(values):
    """values (n,) → their mean in float64; None if n = 0"""
    return values.double().mean().item() if len(values) else None


def mean(values):
    """The mean of all values that are not None; None if there are none"""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


# ---------------------------------------------------------------------------------------- tables

UNKNOWN = 'The sources in these clips are not known, so there are no metrics. See the figure.'
SYMBOLS = {('avm', 'v'): '$I_v$', ('avm', 'a'): '$I_a$',
           ('backbone', 'v'): 'cosine of frames', ('backbone', 'a'): 'cosine of sound'}
TITLES = {'auc': 'ROC-AUC', 'share': 'attention on the source, %', 'pointing': 'pointing game, %'}


def metric_row(which, name, first, last, chance):
    """→ the cells of a table's row: map and metric, two values or None, the drop between them, and chance

    which, name: as in `score_maps`, 'avm' and 'auc_v'; chance: {'area_v', 'area_a'} by `source_area`
    """
    metric, modality = name.split('_')
    digits = 3 if metric == 'auc' else 1
    drop = None if first is None or last is None else first - last
    by_chance = 0.5 if metric == 'auc' else chance[f'area_{modality}']
    label = f'{SYMBOLS[which, modality].replace("$", "")}: {TITLES[metric]}'
    return [label] + [format_number(value, digits) for value in (first, last, drop, by_chance)]
