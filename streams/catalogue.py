"""The data that a run can name: `--dataset NAME` → a stream of tasks (App. B).

In:  a run's options, among them the `Sizes`.
Out: a Stream. Another data set is one more file beside this one, and one more line in DATASETS.
"""
import functools
from pathlib import Path

from streams import shapes
from streams.audioset import BALANCED, audioset, read_audioset
from streams.common import check_batches, reordered
from streams.vggsound import read_vggsound, vggsound


def open_stream(cfg, workers):
    """The data that a run's options name, its tasks in the order asked for → Stream. Raises UserError.
    workers: processes that test the clips."""
    return reordered(DATASETS[cfg.dataset](cfg, workers), cfg.order)


def open_shapes(cfg, workers):
    seed = cfg.seed if cfg.data_seed < 0 else cfg.data_seed
    return shapes.stream(cfg, seed, cfg.clips_per_task, cfg.test_clips,
                         silent=(cfg.min_silent, cfg.max_silent), folder=cfg.cache, area=cfg.object_area)


def open_vggsound(cfg, workers):
    """VGGSound; with --pretrain-data, AudioSet-20k joins the initial pre-training."""
    pretrain = cfg.pretrain_data and (cfg.pretrain_data, read_audioset(cfg.pretrain_data, [BALANCED]))
    return vggsound(cfg.data, cfg, clips_per_class=cfg.clips_per_class, pretrain=pretrain,
                    **_given(cfg, workers))


def open_audioset(cfg, workers):
    """AudioSet; with --pretrain-data, the initial pre-training is on all of VGGSound."""
    pretrain = cfg.pretrain_data and (cfg.pretrain_data, read_vggsound(cfg.pretrain_data))
    return audioset(cfg.data, cfg, pretrain=pretrain, **_given(cfg, workers))


def _given(cfg, workers):
    """What both take: the lists that the user names, how training clips roll, and how clips are counted
    and tested."""
    return dict(tasks_csv=cfg.tasks or None, retrieval_list=cfg.retrieval_list, max_roll=cfg.max_roll,
                counted=functools.partial(check_batches, cfg), workers=workers, max_bad=cfg.max_bad,
                cache=Path(cfg.cache) / 'checked-clips.json')


DATASETS = {   # --dataset: (options, workers) → Stream
    'shapes': open_shapes,
    'vggsound': open_vggsound,
    'audioset': open_audioset,
}
