"""benchmarks/maps.py runs, and prints a row of numbers a model."""

import re
import sys

from running import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))

import maps


def test_a_quick_run_has_a_row_a_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['maps.py', '--quick', '--parts', 'validation', '--device', 'cpu'])
    maps.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| cifar_resnet20')]
    assert len(rows) == 1
    middle, low, high = map(float, re.search(r'([\d.]+) \(([\d.]+) to ([\d.]+)\)', rows[0]).groups())
    assert 0 < low <= middle <= high
