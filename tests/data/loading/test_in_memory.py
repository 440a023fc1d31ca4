"""Images in memory: the outcomes of the ordinary transform, as often, in an order that can be entered anywhere."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import BatchSampler, SequentialSampler
from torchvision.transforms import RandomCrop

from timm_hnc.data.loading.in_memory import InMemoryBatches, KeptTargets, RememberedBatches
from timm_hnc.data.loading.seeded_batches import SeededBatches


def batches_of(images, count, flips=(0.5, 0.0), padding=(1, 2), size=None):
    sampler = BatchSampler(SequentialSampler(range(count)), 4, False)
    seeded = SeededBatches(sampler, seed=3)
    targets = KeptTargets()
    targets.add(torch.arange(count), images)
    targets.close()
    return InMemoryBatches(images, targets, seeded, size or images.shape[-2:], padding, flips), seeded


def outcomes(pixels, padding, flips):
    """Every result of padding, cropping and flipping an image by hand, as bytes."""
    vertical, horizontal = padding
    height, width = pixels.shape[:2]
    padded = np.zeros((height + 2 * vertical, width + 2 * horizontal, 3), np.uint8)
    padded[vertical : vertical + height, horizontal : horizontal + width] = pixels
    found = {}
    for top in range(2 * vertical + 1):
        for left in range(2 * horizontal + 1):
            image = Image.fromarray(padded[top : top + height, left : left + width])
            for across in (False, True)[: 1 + (flips[0] > 0)]:
                for over in (False, True)[: 1 + (flips[1] > 0)]:
                    turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if across else image
                    turned = turned.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if over else turned
                    found[np.asarray(turned).transpose(2, 0, 1).tobytes()] = (top, left, across, over)
    return found


def test_outcomes_are_those_of_pad_crop_and_flip_and_as_often():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 256, (3, 5, 6), generator=generator).byte()
    loader, seeded = batches_of(image.expand(400, -1, -1, -1).contiguous(), 400, flips=(0.5, 0.25))
    expected = outcomes(image.permute(1, 2, 0).numpy(), (1, 2), (0.5, 0.25))
    assert len(expected) == 3 * 5 * 2 * 2
    counts = dict.fromkeys(expected.values(), 0)
    for epoch in range(25):
        seeded.set_epoch(epoch)
        for images, _ in loader:
            for each in images:
                counts[expected[each.numpy().tobytes()]] += 1
    total = sum(counts.values())
    assert total == 10_000
    chances = {key: (0.5 / 15) * (0.25 if key[3] else 0.75) for key in counts}
    chi_squared = sum((counts[key] - total * p) ** 2 / (total * p) for key, p in chances.items())
    assert chi_squared < 101  # 59 degrees of freedom: one in a thousand is above 98


def test_images_that_are_smaller_than_the_crop_are_padded_as_torchvision_does():
    torch.manual_seed(0)
    image = torch.randint(1, 256, (3, 3, 9)).byte()
    loader, _ = batches_of(image.expand(400, -1, -1, -1).contiguous(), 400, (0.0, 0.0), (0, 1), (5, 8))
    found = {each.numpy().tobytes() for images, _ in loader for each in images}
    crop = RandomCrop((5, 8), padding=(1, 0), pad_if_needed=True)
    expected = {crop(image).numpy().tobytes() for _ in range(400)}
    assert len(expected) == 3 * 4
    assert found == expected


def test_a_batch_depends_on_its_place_alone():
    images = torch.randint(0, 256, (22, 3, 4, 4)).byte()
    loader, seeded = batches_of(images, 22)
    seeded.set_epoch(2)
    whole = list(loader)
    assert len(whole) == len(loader) == 6
    seeded.start = 3
    for (left, target), (right, other) in zip(whole[3:], loader, strict=True):
        assert torch.equal(left, right)
        assert torch.equal(target, other)
    seeded.start = 0
    seeded.set_epoch(3)
    assert not torch.equal(next(iter(loader))[0], whole[0][0])


def test_remembered_batches_are_read_once():
    reads = []

    class Loader:
        batch_size = 2

        def __iter__(self):
            reads.append(1)
            yield from (torch.ones(2), torch.zeros(2))

        def __len__(self):
            return 2

    loader = RememberedBatches(Loader())
    next(iter(loader))  # a pass that is left early is none
    first, second = list(loader), list(loader)
    assert len(reads) == 2
    assert all(left is right for left, right in zip(first, second, strict=True))
    assert (len(loader), loader.batch_size) == (2, 2)
