"""Spurious attention (§3.2, App. J; Fig. 3, 16): where does the AVM look if one modality is from another task?

In:  the last model of a run, and the retrieval clips of its stream.
Out: I_a and I_v of Eq. 3 for each pair, and with one modality swapped; with a known source (shapes), their metrics.
"""
import torch
from torch.utils.data import Dataset

from avm import attend
from config import UserError
from downstream.maps import UNKNOWN, add_maps, make_batch, metric_row, read_clips, score_maps, source_area, sources
from downstream.maps import to_device
from downstream.multi_model import run_models
from downstream.pictures import plot_maps
from patches import patchify
from utils.checkpoint import read_checkpoint, save_atomically
from utils.markdown import markdown_table


def evaluate(run, args):
    """The last model's attention with its own and with a swapped modality → results. Raises UserError for one task.

    results   {tasks, after, avm: {auc_v: {own, other}, …}, chance: {area_v, area_a}}. Without a known source, only
              tasks and after
    RUN/eval/spurious.pt   the first clip of each task, with its maps
    """
    tests, model = run.stream.retrieval, run.models()[-1]
    if len(tests) < 2:
        raise UserError('spurious attention compares clips of two tasks, and this stream has one')
    pairs = [SwappedPairs(tests, task) for task in range(len(tests))]
    results = {'tasks': list(run.stream.names), 'after': model[1]}

    # the first clip of each task, with its maps
    partners = [dataset.partner(0) for dataset in pairs]
    clips = read_clips(tests, run.cfg, [(task, 0) for task in range(len(tests))])
    others = make_batch(read_clips(tests, run.cfg, partners), run.device)
    batch = make_batch(clips, run.device) | dict(other_audio=others['audio'], other_video=others['video'])
    maps = attend_swapped(run.cfg, *run.load_model(model[2]), batch)
    add_maps(clips, dict(zip(('I_a', 'I_v', 'I_a_other', 'I_v_other'), maps)))
    clips = [dict(clip, other_task=other_task) for clip, (other_task, _) in zip(clips, partners)]
    save_atomically(dict(results, clips=clips), run.eval_path('spurious', 'pt'))

    source = [sources(dataset, run.cfg) for dataset in tests]
    if source[0][0] is None:
        return results

    def maps_of_batch(model, task, batch):
        return attend_swapped(run.cfg, *model, to_device(batch, run.device))

    # each metric's mean over all tasks' clips
    (by_task,) = run_models(run, [model], pairs, maps_of_batch, 'spurious attention')
    I_a, I_v, I_a_other, I_v_other = (torch.cat(maps) for maps in zip(*by_task))
    source_a, source_v = (torch.cat(own) for own in zip(*source))
    own = score_maps('avm', I_a, I_v, source_a, source_v)
    other = score_maps('avm', I_a_other, I_v_other, source_a, source_v)
    results['avm'] = {name: {'own': own[name], 'other': other[name]} for name in own}
    results['chance'] = {'area_v': source_area(source_v), 'area_a': source_area(source_a)}
    return results


def report(run, results):
    """results of `evaluate` → Markdown table, figure of the saved clips"""
    names, after = results['tasks'], results['after']
    clips = read_checkpoint(run.eval_path('spurious', 'pt'))['clips']
    rows = [(f'{names[clip["task"]]}\nwith {names[clip["other_task"]]}', clip) for clip in clips]
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
        """audio, video, clip, bad of a clip as in VideoClips; other_audio, other_video of its partner"""
        index, seed = key
        other_task, other_index = self.partner(index)
        own, other = self.tests[self.task][index, seed], self.tests[other_task][other_index, seed]
        return dict(own, other_audio=other['audio'], other_video=other['video'], bad=own['bad'] or other['bad'])


@torch.no_grad()
def attend_swapped(cfg, backbone, avm, batch):
    """A batch of SwappedPairs → I_a (B, M), I_v (B, N) of each pair; then I_a with the other video, and I_v with the
    other audio. On the CPU."""
    own = attend(cfg, backbone, avm, patchify(batch, cfg.patch_size))
    other_audio = attend(cfg, backbone, avm, patchify(batch | {'audio': batch['other_audio']}, cfg.patch_size))
    other_video = attend(cfg, backbone, avm, patchify(batch | {'video': batch['other_video']}, cfg.patch_size))
    maps = own.I_a, own.I_v, other_video.I_a, other_audio.I_v
    return tuple(x.float().cpu() for x in maps)
