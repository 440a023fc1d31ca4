"""What a process says, set up once or again and again as by calls from Python."""

import logging

import pytest
from accelerate import Accelerator

from timm_hnc.runtime.process import set_up_process


@pytest.mark.parametrize('times', [1, 3])
def test_a_line_is_logged_once(capsys, times):
    for _ in range(times):
        set_up_process(Accelerator(cpu=True), fast_norm=False)
    capsys.readouterr()
    logging.getLogger('timm_hnc.anything').info('a line')
    assert capsys.readouterr().err.splitlines() == ['a line']


def test_handlers_of_others_stay(monkeypatch):
    other = logging.NullHandler()
    monkeypatch.setattr(logging.root, 'handlers', [other])
    for _ in range(2):
        set_up_process(Accelerator(cpu=True), fast_norm=False)
    assert logging.root.handlers[0] is other
    assert len(logging.root.handlers) == 2
