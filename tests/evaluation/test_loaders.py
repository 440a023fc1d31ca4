"""Loading processes of the command's own loaders."""

import numpy as np
import torch
from torch.utils.data import Dataset

from timm_hnc.data.options import LoaderOptions
from timm_hnc.evaluation.loaders import create_timed_loader


class Modes(Dataset):
    """Images whose target says whether they were loaded without autograd."""

    transform = None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.full((3, 8, 8), index, np.uint8), int(torch.is_inference_mode_enabled())


def test_processes_load_without_autograd_what_is_ordinary_here():
    config = {'input_size': (3, 8, 8), 'mean': (0.0,) * 3, 'std': (1.0,) * 3}
    options = LoaderOptions(workers=1, no_prefetcher=True)
    loader = create_timed_loader(Modes(), options, config, torch.device('cpu'), False, batch_size=2, is_training=True)
    for images, targets in loader:
        assert targets.tolist() == [1, 1]
        weight = torch.ones(3, 8, 8, requires_grad=True)
        (images.float() * weight).sum().backward()
        torch.testing.assert_close(weight.grad, images.float().sum(0))
