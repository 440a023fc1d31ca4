"""Means of an epoch."""

import pytest
import torch
from accelerate import Accelerator

from timm_hnc.training.averages import Averages


@pytest.mark.parametrize('earlier', [False, True], ids=['', 'of an earlier version'])
def test_means_are_of_the_samples_that_had_the_scalar(earlier):
    """An epoch may go on with other losses than it began with."""
    accelerator, averages = Accelerator(cpu=True), Averages()
    averages.update({'loss': torch.tensor(2.0), 'output': torch.ones(4, 2)}, 4)
    state = averages.state(accelerator)
    if earlier:  # which had one count for all
        state['sums'] = torch.cat([state['sums'][:, :1], state['sums'][:, -1:]], 1)
    averages = Averages.restored(state, accelerator)
    averages.update({'loss': torch.tensor(5.0), 'hnc': torch.tensor(6.0)}, 2)
    assert averages.compute(accelerator) == averages.summary() == {'loss': 3.0, 'hnc': 6.0}
    assert averages.count == 6
