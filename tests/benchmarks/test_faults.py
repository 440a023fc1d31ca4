"""The fault harness tells one end from another."""

import os
import signal
import sys
import time

import pytest
import torch
from faults.isolated import isolated
from faults.kills import same, updates_in
from faults.together import Together

from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import DataError


def wrong(argv):
    raise DataError('nothing there.')


def broken(argv):
    raise KeyError('nothing')


ENDS = {
    'success': lambda: 0,
    'one line': lambda: run_command(wrong, []),
    'traceback': lambda: run_command(broken, []),
    'silence': lambda: 1,
    'crash': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'hang': lambda: time.sleep(60),
}


@pytest.mark.parametrize('kind', ENDS)
def test_ends(tmp_path, kind):
    end = isolated(ENDS[kind], tmp_path / 'log.txt', seconds=1 if kind == 'hang' else 30)
    assert end.kind == kind, end.text
    assert end.good == (kind in ('success', 'one line'))


def test_argparse_exits_with_one_line(tmp_path):
    def refuse():
        sys.stderr.write('train.py: error: no.\n')
        sys.exit(2)

    assert isolated(refuse, tmp_path / 'log.txt', seconds=30).kind == 'one line'


def test_updates_in_a_log():
    assert updates_in('starting') == (None, None)
    log = 'Train: 0 [   1/22]  loss 2\nTrain: 0 [  22/22]  loss 2\nTrain: 1 [   3/22]  loss 1\n'
    assert updates_in(log) == (0, 25)
    resumed = "Going on from '/x/recovery-1-4' with epoch 1, update 4.\n"
    assert updates_in(resumed) == (26, 26)
    assert updates_in(resumed + 'Train: 1 [   7/22]  loss 1') == (26, 29)


def test_same_sees_a_bit():
    state = {'a': [torch.ones(3), 1.0], 'b': {'c': None}}
    assert same(state, {'a': [torch.ones(3), 1.0], 'b': {'c': None}})
    other = torch.ones(3)
    other[1] = torch.nextafter(other[1], torch.tensor(2.0))
    assert not same(state, {'a': [other, 1.0], 'b': {'c': None}})
    assert not same(state, {'a': [torch.ones(3).double(), 1.0], 'b': {'c': None}})
    assert not same(state, {'a': [torch.ones(3)], 'b': {'c': None}})


def test_runs_that_share_a_folder_are_not_good():
    seen = {'rounds': 2, 'starts': 12, 'refused': 8, 'kills': 2, 'resumed': 2, 'equal': 2}
    assert Together(**seen).good
    for name in ('refused', 'kills', 'resumed', 'equal'):
        assert not Together(**{**seen, name: seen[name] - 1}).good
