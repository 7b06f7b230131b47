"""All data sets by name: `--dataset NAME` → a stream of tasks (App. B).

In:  a run's options.
Out: a Stream. Another data set is one more file in this folder, one more line in DATASETS, and its name in config.py.
"""
from streams import shapes
from streams.audioset import BALANCED, audioset, read_audioset
from streams.common import reordered
from streams.folders import folders
from streams.vggsound import read_vggsound, vggsound


def open_stream(cfg, workers):
    """The stream that a run's options name, with its tasks in their order. workers: processes that test the clips.
    Raises UserError."""
    return reordered(DATASETS[cfg.dataset](cfg, workers), cfg.order)


def open_shapes(cfg, workers):
    seed = cfg.seed if cfg.data_seed < 0 else cfg.data_seed
    return shapes.stream(cfg, seed, cfg.clips_per_task, cfg.test_clips, silent=(cfg.min_silent, cfg.max_silent),
                         folder=cfg.cache, area=cfg.object_area)


def open_vggsound(cfg, workers):
    """VGGSound; with --pretrain-data, AudioSet-20k joins the initial pre-training."""
    return vggsound(cfg, workers, read_audioset(cfg.pretrain_data, [BALANCED]) if cfg.pretrain_data else ())


def open_audioset(cfg, workers):
    """AudioSet; with --pretrain-data, the initial pre-training is on all of VGGSound."""
    return audioset(cfg, workers, read_vggsound(cfg.pretrain_data) if cfg.pretrain_data else ())


DATASETS = {   # --dataset: (options, workers) → Stream
    'shapes': open_shapes,
    'vggsound': open_vggsound,
    'audioset': open_audioset,
    'folders': folders,
}
