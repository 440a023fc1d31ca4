"""What tests of benchmarks/ share."""

import sys

import pytest
from running import clean_process
from table_runs import FAKE

__all__ = ['clean_process']


@pytest.fixture
def launcher(tmp_path):
    path = tmp_path / 'fake.py'
    path.write_text(FAKE)
    return f'{sys.executable} {path}'
