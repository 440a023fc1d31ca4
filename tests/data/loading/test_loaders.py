"""Loading processes of the command's own loaders."""

import numpy as np
import torch
from torch.utils.data import Dataset

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.loading.loaders import create_timed_loader
from timm_hnc.data.options import LoaderOptions


def mode(image):
    """In an image's place, in what mode it was loaded."""
    return np.full((3, 8, 8), int(torch.is_inference_mode_enabled()), np.uint8)


class Provided(Dataset):
    """Differentiates as it loads."""

    transform = None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        weight = torch.ones(3, 8, 8, requires_grad=True)
        (weight * index).sum().backward()
        return weight.grad.byte(), index


CONFIG = {'input_size': (3, 8, 8), 'mean': (0.0,) * 3, 'std': (1.0,) * 3}


def loader_of(dataset):
    options = LoaderOptions(workers=1, no_prefetcher=True)
    loader = create_timed_loader(dataset, options, CONFIG, torch.device('cpu'), False, batch_size=2)
    dataset.transform = mode
    return loader


def test_processes_load_images_without_autograd_that_are_ordinary_here():
    dataset = create_dataset('hnc/digits', None, 'validation', 10)
    images, _ = next(iter(loader_of(dataset)))
    assert images.eq(1).all()
    weight = torch.ones(3, 8, 8, requires_grad=True)
    (images.float() * weight).sum().backward()
    torch.testing.assert_close(weight.grad, images.float().sum(0))


def test_a_data_set_of_ones_own_may_differentiate():
    images, targets = next(iter(loader_of(Provided())))
    torch.testing.assert_close(images[:, 0, 0, 0].long(), targets)


def test_the_prefetcher_leaves_images_on_the_cpu_where_its_copies_may_be_wrong():
    dataset = create_dataset('hnc/digits', None, 'validation', 10)
    options, device = LoaderOptions(workers=0), torch.device('mps')
    images, _ = next(iter(create_timed_loader(dataset, options, CONFIG, device, False, batch_size=2)))
    assert (images.device.type, images.dtype) == ('cpu', torch.float32)
