"""Evaluate all models of a run in one pass over the clips.

In:  a finished run, its models, and one data set per task.
Out: what a function returns for each model and each batch.

Decoding a clip takes longer than a forward pass. So each clip is decoded once, and all models see it.
"""
import psutil
import torch
from tqdm import tqdm

from config import UserError
from streams.common import tasks_in_order


def group_models(run, models):
    """Split the models into lists that fit into memory together. Each list needs one pass over the clips.

    models: [(t, name, file)] of `FinishedRun.models`. A list takes at most half of the free memory. Usually one list
    is enough: a model of the paper's size has 0.75 GB.
    """
    if run.device.type == 'cuda':
        free = torch.cuda.mem_get_info(run.device)[0]
    else:
        free = psutil.virtual_memory().available
    largest = max(file.stat().st_size for _, _, file in models)
    size = max(1, free // 2 // largest)
    return [models[start:start + size] for start in range(0, len(models), size)]


@torch.no_grad()
def run_models(run, datasets, batch_size, models, fn, title):
    """Apply a function to each batch of each task, once per model.

    fn(model, task, batch)   gets a batch on the CPU. All its clips are of one task. Its result must be on the CPU
    returns                  outputs[model][task]: a list with one result of fn per batch; and 'name: reason' of each
                             clip that cannot be read and is left out
    """
    outputs, bad = [[[] for _ in datasets] for _ in models], []
    with tqdm(total=sum(map(len, datasets)), desc=title, unit='clip', leave=False, disable=None) as bar:
        for task, batch in tasks_in_order(datasets, batch_size, run.workers, bad):
            for model, output in zip(models, outputs):
                output[task].append(fn(model, task, batch))
            bar.update(len(batch['clip']))
    return outputs, bad


def concat_batches(outputs, names, bad):
    """Concatenate the batches of each task. For an fn that returns a tuple of tensors.

    outputs[model][task]: [(B, …), …] → [model][task]: ((n, …), …). Raises UserError if no clip of a task can be read.
    """
    for name, batches in zip(names, outputs[0]):
        if not batches:
            raise UserError(f'{name}: none of the clips can be read. The first errors: {bad[:3]}')
    return [[tuple(map(torch.cat, zip(*batches))) for batches in by_task] for by_task in outputs]
