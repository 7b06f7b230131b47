"""Spurious attention (§3.2, App. J; Fig. 3, 16): where does the AVM look if one modality is from another task?

In:  the last model of a run, and the retrieval clips of its stream.
Out: I_a and I_v of Eq. 3 for each pair, and with one modality swapped; with a known source (shapes), their metrics.
"""
import torch
from torch.utils.data import Dataset

from avm import attend
from config import UserError
from downstream.maps import UNKNOWN, ClipSubset, copy_row, load_record, mean_scores, metric_row, score_maps
from downstream.maps import source_area, sources, to_device
from downstream.markdown import markdown_table
from downstream.multi_model import run_models
from downstream.pictures import plot_maps
from patches import patchify


def evaluate(run, args):
    """The last model's attention with its own and with a swapped modality → results. Raises UserError for one task.

    results   {tasks, after, avm: {auc_v: {own, other}, …}, chance: {area_v, area_a}}. Without a known source, only
              tasks and after
    RUN/eval/spurious.pt   the first clip of each task, with its maps
    """
    tests, names = run.stream.test, run.stream.names
    if len(tests) < 2:
        raise UserError('spurious attention compares clips of two tasks, and this stream has one')
    _, after, file = run.models()[-1]
    source = [sources(dataset, run.cfg) for dataset in tests]
    known = source[0][0] is not None
    own, other, clips = [], [], {}

    def score_batch(model, task, batch):
        I_a, I_v, I_a_other, I_v_other = attend_swapped(run.cfg, *model, to_device(batch, run.device))
        source_a, source_v = (x[batch['clip']] if known else None for x in source[task])
        if known:
            own.append(score_maps('avm', I_a, I_v, source_a, source_v))
            other.append(score_maps('avm', I_a_other, I_v_other, source_a, source_v))
        # save the first clip of the task
        if task not in clips:
            tensors = dict(frames=batch['video'], audio=batch['audio'], other_frames=batch['other_video'],
                           other_audio=batch['other_audio'], truth_a=source_a, truth_v=source_v, I_a=I_a, I_v=I_v,
                           I_a_other=I_a_other, I_v_other=I_v_other)
            clips[task] = dict(task=task, other_task=batch['other_task'][0].item(),
                               **{name: copy_row(x, 0) for name, x in tensors.items()})

    # without a known source, only the first pair of each task is read
    pairs = [SwappedPairs(tests, task) for task in range(len(tests))]
    datasets = pairs if known else [ClipSubset(dataset, [0]) for dataset in pairs]
    run_models(run, datasets, run.cfg.batch_size, [run.load_model(file)], score_batch, 'spurious attention')

    results = {'tasks': list(names), 'after': after}
    torch.save(dict(results, clips=list(clips.values())), run.eval_path('spurious', 'pt'))
    if not known:
        return results
    with_own, with_other = mean_scores(own), mean_scores(other)
    results['avm'] = {name: {'own': with_own[name], 'other': with_other[name]} for name in with_own}
    results['chance'] = {'area_v': source_area(torch.cat([v for _, v in source])),
                         'area_a': source_area(torch.cat([a for a, _ in source]))}
    return results


def report(run, results):
    """results of `evaluate` → Markdown table, figure of the saved clips"""
    names, after = results['tasks'], results['after']
    rows = [(f'{names[clip["task"]]}\nwith {names[clip["other_task"]]}', clip)
            for clip in load_record(run, 'spurious')['clips']]
    figure = plot_maps(run.cfg, rows, [('$I_v$, own sound', 'I_v'), ('$I_v$, other sound', 'I_v_other')],
                       [('$I_a$, own frames', 'I_a'), ('$I_a$, other frames', 'I_a_other')],
                       f'Attention with the own and with another task\'s clip (model: {after})')
    if 'avm' not in results:
        return UNKNOWN, figure
    table = markdown_table(
        [f'all tasks; model: {after}', 'with its own', 'with another task\'s', 'drop', 'chance'],
        [metric_row('avm', name, value['own'], value['other'], results['chance'])
         for name, value in results['avm'].items()])
    return table, figure


class SwappedPairs(Dataset):
    """The clips of one task, each with a clip of another task whose audio or video replaces its own.

    The paper pairs with past data, and does not say which. Here clip j gets clip j of the other tasks in turn, starting
    with the task before. The first task starts with the last one.
    """

    def __init__(self, tests, task):
        self.tests, self.task = tests, task

    def __len__(self):
        return len(self.tests[self.task])

    def partner(self, index):
        """→ (other task, index of its clip)"""
        other = (self.task - 1 - index % (len(self.tests) - 1)) % len(self.tests)
        return other, index % len(self.tests[other])

    def __getitem__(self, key):
        """audio (t, f), video (T, 3, H, W) uint8 of the clip; other_audio, other_video, other_task of its partner; clip
        and bad as in VideoClips"""
        index, seed = key
        other_task, other_index = self.partner(index)
        own, other = self.tests[self.task][index, seed], self.tests[other_task][other_index, seed]
        return dict(audio=own['audio'], video=own['video'], clip=own['clip'], other_audio=other['audio'],
                    other_video=other['video'], other_task=other_task, bad=own['bad'] or other['bad'])


def attend_swapped(cfg, backbone, avm, batch):
    """A batch of SwappedPairs → I_a (B, M), I_v (B, N) of each pair; then I_a with the other video, and I_v with the
    other audio. On the CPU."""
    own = attend(cfg, backbone, avm, patchify(batch, cfg.patch_size))
    other_audio = attend(cfg, backbone, avm, patchify(batch | {'audio': batch['other_audio']}, cfg.patch_size))
    other_video = attend(cfg, backbone, avm, patchify(batch | {'video': batch['other_video']}, cfg.patch_size))
    maps = own.importance_a, own.importance_v, other_video.importance_a, other_audio.importance_v
    return tuple(x.float().cpu() for x in maps)
