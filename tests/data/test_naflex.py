"""Images as patches, and patches as images again."""

import pytest
import torch
from timm.data.naflex_transforms import Patchify

from timm_hnc.data.naflex import Patches


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('flat', [True, False])
def test_images_come_back_from_their_patches(channels_last, flat):
    patches = Patches((4, 8), 12, channels_last)
    images = [torch.randn(3, 4 * rows, 8 * columns) for rows, columns in ((3, 4), (1, 5), (2, 2))]
    cut = Patchify((4, 8), flatten_patches=flat, channels_last=channels_last)
    batch, targets = patches.batch([(cut(image), index) for index, image in enumerate(images)])
    assert targets.tolist() == [0, 1, 2]
    assert batch['patches'].shape[:2] == (3, 12)
    for found, image in zip(patches.images(batch, 3), images, strict=True):
        assert torch.equal(found, image)


@pytest.mark.parametrize('channels_last', [True, False])
def test_pixels_are_normalised_channel_by_channel(channels_last):
    patches, mean, std = Patches((4, 4), 6, channels_last), (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    batch, _ = patches.batch([(Patchify(4, channels_last=channels_last)(image), 0)])
    [found] = patches.images(patches.normalized(batch, mean, std), 3)
    for channel in range(3):
        torch.testing.assert_close(found[channel], (image[channel] / 255 - mean[channel]) / std[channel])
