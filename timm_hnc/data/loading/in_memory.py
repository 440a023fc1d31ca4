"""A data set that is decoded once and stays in memory: for small images, whose decoding costs more than their training.

Training images lie on the device as bytes, and the CIFAR augmentation (padded crop, flips) is made there for a batch at
once. Order and random numbers follow from seed, epoch and batch, as they do in the ordinary loader.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import RandomCrop

from timm_hnc.data.loading.loader_errors import read
from timm_hnc.data.loading.seeded_batches import Batch, SeededBatches, mixed
from timm_hnc.data.loading.wrapped_dataset import Wrapper
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.progress import progress

_DECODED_AT_ONCE = 512
_MOST_OF_MEMORY = 0.8
# of torch's three errors, of its collating here, in a loading process, and of the memory here
_SEVERAL_SIZES = ('to be equal size', 'resize storage', 'expanded size')


class KeptTargets:
    """Targets of the images in memory."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._columns: tuple[Tensor, ...] = ()

    def add(self, targets: Tensor, images: Tensor) -> None:
        """Take those of further images, as the data set yields both."""
        self._parts.append((targets,))

    @property
    def bytes_an_image(self) -> float:
        """How much memory is taken for one image of the first part, in bytes."""
        return sum(column.nbytes for column in self._parts[0]) / len(self._parts[0][0])

    def close(self) -> None:
        """There are no more of them."""
        self._columns = tuple(torch.cat(column) for column in zip(*self._parts, strict=True))
        self._parts = []

    def batch(self, indices: Tensor, crop: Callable[[Tensor], Tensor]) -> Tensor:
        """Those of a batch; `crop` takes pictures (B, C, H, W) of all its images the way their images go."""
        return self._columns[0][indices]


def keep_in_memory(
    loader: Any, seeded: SeededBatches, hflip: float, vflip: float, device: torch.device, targets: KeptTargets
) -> None:
    """Let timm's prefetching training loader take its batches from memory; it normalises and erases as before.

    Args:
        loader: timm's PrefetchLoader over images of one size with the padded crop, changed in place.
        seeded: its batch sampler, from `seed_batches`.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        device: where the images lie.
        targets: takes theirs.

    Raises:
        UsageError: the images have several sizes.
        DataError: they do not fit into the memory.
    """
    dataset = loader.loader.dataset.dataset
    crop = next(step for step in dataset.transform.transforms if isinstance(step, RandomCrop))
    before = dataset.transform.transforms[: dataset.transform.transforms.index(crop)]
    ordinary, dataset.transform = dataset.transform, transforms.Compose([*before, transforms.PILToTensor()])
    try:
        images = _decode(dataset, targets, loader.loader, device)
    finally:
        dataset.transform = ordinary
    left, top = crop.padding
    loader.loader = InMemoryBatches(images, targets, seeded, tuple(crop.size), (top, left), (hflip, vflip))


class InMemoryBatches:
    """Augmented batches of (images, targets), images (B, C, H, W) of bytes.

    Args:
        images: (N, C, H, W) bytes.
        targets: of all images.
        batch_sampler: yields the batches' indices and places.
        size: (height, width) of the crop in pixels.
        padding: (vertical, horizontal) zeros on each side in pixels; more where the crop is larger, as RandomCrop does.
        flips: probabilities of a horizontal and of a vertical flip.
    """

    def __init__(
        self,
        images: Tensor,
        targets: KeptTargets,
        batch_sampler: SeededBatches,
        size: tuple[int, int],
        padding: tuple[int, int],
        flips: tuple[float, float],
    ) -> None:
        self.images, self.targets, self.batch_sampler = images, targets, batch_sampler
        self.size, self.flips = size, flips
        self.padding = tuple(
            zeros + max(0, side - length - 2 * zeros)
            for zeros, side, length in zip(padding, size, images.shape[-2:], strict=True)
        )
        self.dataset, self.sampler, self.num_workers = images, batch_sampler.sampler, 0
        self._generator = torch.Generator(images.device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batch_sampler:
            yield self._augmented(batch)

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._generator.manual_seed(mixed(batch.seed, batch.epoch, batch.number) >> 1)
        indices = torch.tensor(batch.indices)
        if self.images.is_cuda:
            indices = indices.pin_memory()  # only then its copy lets the device go on
        indices = indices.to(self.images.device, non_blocking=True)
        (vertical, horizontal), (height, width) = self.padding, self.images.shape[-2:]
        rows = self._places(len(indices), height + 2 * vertical, self.size[0], self.flips[1])
        columns = self._places(len(indices), width + 2 * horizontal, self.size[1], self.flips[0])

        def crop(pictures: Tensor) -> Tensor:
            padded = functional.pad(pictures, (horizontal, horizontal, vertical, vertical))
            padded = padded.gather(2, rows[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3]))
            return padded.gather(3, columns[:, None, None, :].expand(-1, padded.shape[1], padded.shape[2], -1))

        return crop(self.images[indices]), self.targets.batch(indices, crop)

    def _places(self, count: int, length: int, side: int, flip: float) -> Tensor:
        """(count, side) rows or columns of random crops, some of them backwards."""
        device = self.images.device
        starts = torch.randint(length - side + 1, (count, 1), generator=self._generator, device=device)
        places = starts + torch.arange(side, device=device)
        backwards = torch.rand(count, 1, generator=self._generator, device=device) < flip
        return torch.where(backwards, places.flip(1), places)


class RememberedBatches(Wrapper):
    """What a loader of unchanging batches, whose transform draws nothing, yields: kept from its first pass on."""

    inside = 'loader'

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self._kept: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._kept is None:
            kept = []
            for batch in self.loader:
                kept.append(batch)
                yield batch
            self._kept = kept
        else:
            yield from self._kept


def _decode(dataset: Dataset[Any], kept: KeptTargets, like: DataLoader[Any], device: torch.device) -> Tensor:
    stored, count = torch.empty(0), 0
    loader = DataLoader(dataset, _DECODED_AT_ONCE, num_workers=like.num_workers, timeout=like.timeout)
    try:
        for images, targets in progress(read(loader), 'batch', len(loader), 'Decoding'):
            images = images.to(device)
            kept.add(targets.to(device), images)
            if not count:
                needed = images[0].nbytes + kept.bytes_an_image
                _check_memory(needed * len(dataset), device)  # type: ignore[arg-type]
                stored = images.new_empty(len(dataset), *images.shape[1:])  # type: ignore[arg-type]
            stored[count : count + len(images)] = images
            count += len(images)
        kept.close()
        return stored
    except (RuntimeError, DataError) as error:
        if not any(words in str(error) for words in _SEVERAL_SIZES):
            raise
        raise UsageError(f'--data-in-memory: the images have several sizes ({first_lines(error, 120)}).') from error


def _check_memory(needed: float, device: torch.device) -> None:
    if device.type == 'cuda':
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > _MOST_OF_MEMORY * free:
        raise DataError(
            f'--data-in-memory: the images take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}.'
        )
