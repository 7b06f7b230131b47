"""Spurious attention (§3.2, App. J; Fig. 3, 16): where does the AVM look when one modality is another task's?

In:  the last model of a run, and the retrieval clips of its stream.
Out: I_a and I_v of Eq. 3 within each pair and across tasks; where the source is known (shapes), how well they find it.
"""
import torch
from torch.utils.data import Dataset

from avm import score
from downstream.maps import UNKNOWN, Some, alone, area, means, moved, row_of_table, save, saved, scored, sources
from downstream.pictures import overlays
from downstream.together import in_one_pass
from patches import UserError, whole


def measure(run, args):
    """How the last model's attention moves when one modality is another task's → results. Raises UserError for a stream
    of one task.

    results   {tasks, after, avm: {auc_v: {own, other}, …}, chance: {area_v, area_a}}, without the last two where no
              source is known
    RUN/eval/spurious.pt   one clip a task with its maps under its own and under the other
    """
    tests, names = run.stream.test, run.stream.names
    if len(tests) < 2:
        raise UserError('spurious attention compares clips of two tasks, and this stream has one')
    _, after, file = run.models()[-1]
    true = [sources(dataset, run.cfg) for dataset in tests]
    own, other, clips = swap(run, file, true)
    results = {'tasks': list(names), 'after': after}
    save(run, 'spurious', dict(results, clips=clips))
    if not own:
        return results
    with_own, with_other = means(own), means(other)
    results['avm'] = {name: {'own': with_own[name], 'other': with_other[name]} for name in with_own}
    results['chance'] = {f'area_{x}': area(torch.cat([task[k] for task in true])) for x, k in (('v', 1), ('a', 0))}
    return results


def show(run, results):
    """→ Markdown table, figure, drawn from the record that `measure` has left.  results: those of `measure`"""
    names, after, clips = results['tasks'], results['after'], saved(run, 'spurious')['clips']
    labels = [f'{names[clip["task"]]}\nwith {names[clip["other_task"]]}' for clip in clips]
    figure = overlays(run.cfg, list(zip(labels, clips)),
                      [('$I_v$, own sound', 'I_v'), ('$I_v$, the other\'s sound', 'I_v_other')],
                      [('$I_a$, own frames', 'I_a'), ('$I_a$, the other\'s frames', 'I_a_other')],
                      f'Attention within a pair and across tasks (model: {after})')
    if 'avm' not in results:
        return UNKNOWN, figure
    lines = [f'| all tasks; model: {after} | with its own | with another task\'s | drop | chance |', '| --- ' * 5 + '|']
    lines += [row_of_table('avm', name, tuple(of.values()), results['chance']) for name, of in results['avm'].items()]
    return '\n'.join(lines), figure


class Pairs(Dataset):
    """The clips of one task, beside each a clip of another task, whose audio or video is to take its own's place.

    The paper pairs with past data, and does not say with which; here clip j meets clip j of each of the other tasks in
    turn, the first that of the task before (the first task's, that of the last).
    """

    def __init__(self, tests, task):
        self.tests, self.task = tests, task

    def __len__(self):
        return len(self.tests[self.task])

    def partner(self, index):
        """→ (other task, clip of it)"""
        other = (self.task - 1 - index % (len(self.tests) - 1)) % len(self.tests)
        return other, index % len(self.tests[other])

    def __getitem__(self, key):
        """audio (t, f), video (T, 3, H, W) uint8 of the clip; other_audio, other_video, alike, of its partner, and
        other_task; clip and bad as in VideoClips"""
        index, seed = key
        other_task, other_clip = self.partner(index)
        own, other = self.tests[self.task][index, seed], self.tests[other_task][other_clip, seed]
        return dict(audio=own['audio'], video=own['video'], clip=own['clip'], other_audio=other['audio'],
                    other_video=other['video'], other_task=other_task, bad=own['bad'] or other['bad'])


def swapped(cfg, backbone, avm, batch):
    """A batch of `Pairs` → I_a (B, M), I_v (B, N) as they belong together, then I_a under the other's video and I_v
    under the other's audio; on the CPU."""
    with_own = score(cfg, backbone, avm, whole(batch, cfg.patch_size))
    other_audio = score(cfg, backbone, avm, whole(batch | {'audio': batch['other_audio']}, cfg.patch_size))
    other_video = score(cfg, backbone, avm, whole(batch | {'video': batch['other_video']}, cfg.patch_size))
    return tuple(x.float().cpu() for x in (with_own.importance_a, with_own.importance_v,
                                           other_video.importance_a, other_audio.importance_v))


def swap(run, file, true):
    """The model of this file on every task's pairs → measures with the own and with the other modality, a dict a batch;
    and of each task its first pair's clip with its maps.

    true[task]: truth_a (clips, M), truth_v (clips, N); where they are None, not known, only the first pair is read, and
    nothing measured
    """
    all_pairs = [Pairs(run.stream.test, task) for task in range(len(true))]
    to_read = [Some(pairs, [0]) if a is None else pairs for pairs, (a, _) in zip(all_pairs, true)]
    own, other, clips = [], [], {}

    def swap_batch(model, task, batch):
        I_a, I_v, I_a_other, I_v_other = swapped(run.cfg, *model, moved(batch, run.device))
        a, v = (None if t is None else t[batch['clip']] for t in true[task])
        if a is not None:
            own.append(scored('avm', I_a, I_v, a, v))
            other.append(scored('avm', I_a_other, I_v_other, a, v))
        if task not in clips:
            first = dict(frames=batch['video'], audio=batch['audio'], other_frames=batch['other_video'],
                         other_audio=batch['other_audio'], truth_a=a, truth_v=v, I_a=I_a, I_v=I_v,
                         I_a_other=I_a_other, I_v_other=I_v_other)
            clips[task] = dict(task=task, other_task=batch['other_task'][0].item(),
                               **{name: alone(x, 0) for name, x in first.items()})

    in_one_pass(run, to_read, run.cfg.batch_size, [run.load(file)], swap_batch, 'spurious attention')
    return own, other, list(clips.values())
