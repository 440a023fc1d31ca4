"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)
