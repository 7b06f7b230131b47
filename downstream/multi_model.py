"""Evaluate all models of a run in one pass over the clips.

In:  a finished run, its models, and one data set per task.
Out: for each model and each task, what a function returns for all clips.

Decoding a clip takes longer than a forward pass. So each clip is decoded once, and all models see it.
"""
import psutil
import torch
from tqdm import tqdm

from config import UserError
from streams.common import batches_by_task


def group_models(run, models):
    """Split the models [(t, name, file)] into lists that fit into memory together. Each list needs one pass over the
    clips. A list takes at most half of the free memory; a model of the paper's size has 0.75 GB."""
    if run.device.type == 'cuda':
        free = torch.cuda.mem_get_info(run.device)[0]
    else:
        free = psutil.virtual_memory().available
    size = max(1, free // 2 // max(file.stat().st_size for _, _, file in models))
    return [models[start:start + size] for start in range(0, len(models), size)]


def run_models(run, models, datasets, fn, title):
    """Load the models [(t, name, file)] and apply a function to each batch of each task, once per model.

    fn((backbone, avm), task, batch)  gets a batch on the CPU, of clips of one task. It returns a tuple of tensors
                                      (B, …), on the CPU
    returns                           outputs[model][task]: these tensors for all clips of the task, (n, …)

    Clips that cannot be read are left out, and named. Raises UserError if no clip of a task can be read.
    """
    outputs, left_out = [], {}
    for group in group_models(run, models):
        loaded = [run.load_model(file) for _, _, file in group]
        rows, bad = run_loaded(run, loaded, datasets, run.cfg.batch_size, fn, title)
        outputs += rows
        left_out |= dict.fromkeys(bad)
    for line in left_out:
        tqdm.write(f'left out: {line}')
    return outputs


@torch.no_grad()
def run_loaded(run, models, datasets, batch_size, fn, title):
    """`run_models` for models in memory, of any type: fn gets them as they are.  → outputs; 'name: reason' of each clip
    that is left out"""
    outputs, bad = [[[] for _ in datasets] for _ in models], []
    with tqdm(total=sum(map(len, datasets)), desc=title, unit='clip', leave=False, disable=None) as bar:
        for task, batch in batches_by_task(datasets, batch_size, run.workers, bad):
            for model, output in zip(models, outputs):
                output[task].append(fn(model, task, batch))
            bar.update(len(batch['clip']))
    if [] in outputs[0]:
        raise UserError(f'{title}: none of the clips of task {outputs[0].index([]) + 1} can be read. The first errors: '
                        f'{bad[:3]}')
    return [[tuple(map(torch.cat, zip(*batches))) for batches in by_task] for by_task in outputs], bad


def right_after(matrix, tasks_learned):
    """matrix [model][task] → the value of each task by the model that has just learned it; None without these models.

    tasks_learned: the number of tasks that each model has learned. Multitask has no model after each task.
    """
    T = tasks_learned[-1]
    if not set(range(1, T + 1)) <= set(tasks_learned):
        return None
    return [matrix[tasks_learned.index(i + 1)][i] for i in range(T)]
