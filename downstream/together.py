"""The models of a run asked side by side: a clip is decoded once, however many of them look at it.

In:  a recorded run, its models, the data sets of its tasks.
Out: which models are held in memory together; what each of them makes of each batch, in one pass over the clips.

Decoding takes longer than anything that a model does with a clip, so it is not done again for the next model.
"""
import torch
from tqdm import tqdm

from patches import UserError
from processes import machine_memory
from streams.common import tasks_in_order


def groups(run, models):
    """The models, in lists: those of one list are held on the device together, and share a pass over the clips.

    models: [(t, name, file)] of `Recorded.models`. Mostly they are one list: of the paper's size a model has 0.75 GB,
    and a run nine of them. Where they would fill more than half of the free memory, each list has as many as do not.
    """
    largest = max(file.stat().st_size for _, _, file in models)            # a file is hardly more than its model
    together = max(1, free_memory(run.device) // 2 // largest)
    return [models[start:start + together] for start in range(0, len(models), together)]


def free_memory(device):
    """Bytes that are free: of the GPU, or else of this machine and within what a container may have."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return machine_memory()[1]


@torch.no_grad()
def in_one_pass(run, datasets, size, models, watch, title):
    """All models look at all tasks' clips, each of which is read once, in batches of `size` clips of one task.

    watch(model, task, batch)   of a batch on the CPU → what is kept of it, on the CPU
    returns                     found[model][task]: a list, of each batch what `watch` returned; and what could not be
                                read, as "name: reason", which is left out
    """
    found, bad = [[[] for _ in datasets] for _ in models], []
    with tqdm(total=sum(map(len, datasets)), desc=title, unit='clip', leave=False, disable=None) as bar:
        for task, batch in tasks_in_order(datasets, size, run.workers, bad):
            for model, own in zip(models, found):
                own[task].append(watch(model, task, batch))
            bar.update(len(batch['clip']))
    return found, bad


def joined(found, names, bad):
    """Of `in_one_pass` that kept a tuple of tensors of each batch: the tensors of each task, all its batches in one.

    found[model][task]: [(B, …), …] → [model][task]: ((n, …), …). Raises UserError where nothing of a task can be read.
    """
    for name, batches in zip(names, found[0]):
        if not batches:
            raise UserError(f'{name}: none of the clips can be read. Of all that cannot: {bad[:3]}')
    return [[tuple(map(torch.cat, zip(*batches))) for batches in of_model] for of_model in found]
