"""What a run prints and logs: the opening summary, plain lines without a terminal, log.jsonl, event files."""
import json
import re
import sys
from types import SimpleNamespace

import pytest

from running import TINY
from utils import logging

pytestmark = pytest.mark.usefixtures('no_pictures')
SHORT = [*TINY, '--clips-per-task', '24', '--steps', '2', '--method', 'er', '--out', 'run']


def test_the_summary_says_what_will_be_done(tmp_path, here):
    pretraining = ['--pretrain-steps', '3', '--clips-per-task', '16']
    code, out, err = here([*SHORT, *pretraining], tmp_path)
    assert code == 0, err
    for line in (r'device +cpu, float32', r'model +small: [\d,]+ parameters, AVM [\d,]+', r'method +er, batches of 8',
                 r'pre-training +3 steps on the 6,000 training clips of classes in no task.*--pretrain-steps 0',
                 r'tasks +6, 12 steps, 36 retrieval clips', r' +oak: 16 training clips, 2 steps', r'output +run'):
        assert re.search(f'^{line}', out, re.M), line

    # without a terminal, a line at the end of the initial pre-training and of each task
    lines = re.findall(r'^(.+): step (\d+/\d+), loss .*, all tasks: (\S+) left$', out, re.M)
    assert [title for title, _, _ in lines] == ['initial pre-training', *(
        f'task {number}/6 {name}' for number, name in enumerate(('ash', 'birch', 'cedar', 'elm', 'fir', 'oak'), 1))]
    assert lines[0][1] == '3/3' and lines[-1][1:] == ('2/2', '00:00')

    # the next run reads the initial pre-training from the cache; a resumed one has it
    code, out, _ = here([*SHORT, *pretraining, '--out', 'second'], tmp_path)
    assert code == 0 and re.search(r'^pre-training  cache/initial-\S+ of an earlier run has it$', out, re.M)
    code, out, _ = here([*SHORT, *pretraining, '--resume'], tmp_path)
    assert code == 0 and re.search('^pre-training  done$', out, re.M)


def test_the_log_and_lines_in_between(tmp_path, here, monkeypatch):
    monkeypatch.setattr(logging, 'PRINT_EVERY', 0)
    code, out, err = here([*SHORT, '--pretrain-steps', '0', '--steps', '5', '--log-every', '2'], tmp_path)
    assert code == 0 and 'pre-training  none: --pretrain-steps 0' in out, err
    assert re.findall(r'^task 1/6 ash: step (\d)/5', out, re.M) == ['2', '4', '5']
    code, _, err = here([*SHORT, '--pretrain-steps', '0', '--steps', '5', '--log-every', '1', '--out', 'all'], tmp_path)
    assert code == 0, err
    log, each_step = ([json.loads(line) for line in (tmp_path / folder / 'log.jsonl').read_text().splitlines()]
                      for folder in ('run', 'all'))
    assert log[0]['task_name'] == 'ash' and log[-1]['task_name'] == 'oak' and log[0]['lr'] == 1e-3
    assert [entry['epoch'] for entry in log[:3]] == [1, 2, 2]                      # 3 steps an epoch
    losses = [entry['loss'] for entry in each_step[:5]]
    assert [entry['loss'] for entry in log[:3]] == [losses[1], losses[3], losses[4]]
    means = sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]
    assert [entry['mean_loss'] for entry in log[:3]] == pytest.approx(means, rel=1e-6)
    parts = [entry['contrastive'] for entry in each_step[:5]]                      # parts are means, too
    means = sum(parts[:2]) / 2, sum(parts[2:4]) / 2, parts[4]
    assert [entry['contrastive'] for entry in log[:3]] == pytest.approx(means, rel=1e-6)


def test_event_files(tmp_path, here, monkeypatch):
    """The numbers of log.jsonl, with the package tensorboard replaced by one that records them, and without it."""
    losses = []

    def add_scalar(name, value, step):
        if name == 'loss':
            losses.append((step, value))
    writer = SimpleNamespace(add_scalar=add_scalar, flush=lambda: None)
    package = SimpleNamespace(SummaryWriter=lambda folder, purge_step: writer)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', package)
    code, _, err = here([*SHORT, '--pretrain-steps', '0', '--tensorboard', '1'], tmp_path)
    assert code == 0, err
    log = [json.loads(line) for line in (tmp_path / 'run/log.jsonl').read_text().splitlines()]
    assert losses == [(entry['global_step'], entry['loss']) for entry in log] and len(losses) == 6

    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)              # as if not installed
    code, _, err = here([*SHORT, '--tensorboard', '1', '--out', 'second'], tmp_path)
    assert code == 2 and err == 'error: --tensorboard 1 needs the package tensorboard: pip install tensorboard\n'
