"""Objects that go with their images through the training transforms, to say where on the class maps they are.

Every step of the transform that moves pixels is done to the objects as well: timm's crops and flips move both alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, MaybeToTensor, ToNumpy
from torch import Tensor
from torchvision import transforms

from timm_hnc.data.loading.seeded_batches import mixed
from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, remembering
from timm_hnc.data.objects.in_memory import KeptMasks
from timm_hnc.data.objects.moved import MovedBoxes, MovedPictures, covers_of
from timm_hnc.data.objects.slots import Slots
from timm_hnc.data.objects.sources import ObjectSource
from timm_hnc.errors import DataError

# steps of training transforms that leave pixels where they are
_IN_PLACE = (
    *(transforms.ColorJitter, transforms.RandomGrayscale, transforms.RandomApply, transforms.GaussianBlur),
    *(transforms.Normalize, transforms.ToTensor, transforms.PILToTensor),
    *(MaybePILToTensor, MaybeToTensor, ToNumpy, RandomErasing),
)
_CHOICE = -7


class GuidedDataset(WrappedDataset):
    """A training set whose targets carry the masks of their objects.

    In this process and those that load for it, `odd_images` counts how often an image's objects could not be used,
    `strange_images` how often all were of classes that the image does not have, and `guided_images` how often an image
    came with a mask of its class.

    Args:
        dataset: of `create_dataset`, possibly wrapped.
        source: objects of the innermost data set.
        slots: how a sample's target and masks are joined.
        share: of the images, chosen by the seed, whose objects are used.
        seed: of that choice.
    """

    def __init__(self, dataset: Any, source: ObjectSource, slots: Slots, share: float = 1.0, seed: int = 0) -> None:
        super().__init__(dataset)
        self.source, self.slots, self.share, self.seed = source, slots, share, seed
        # locks of this kind travel to forked and spawned workers alike
        self.odd_images, self.strange_images, self.guided_images = (
            get_context('spawn').Value('q', 0) for _ in range(3)
        )
        self._reader: Any = remembering(dataset)
        self._transform: Any = None
        self._of_pixels = False
        self._objects: MovedBoxes | MovedPictures = MovedPictures({})  # of the sample that is being read

    @property
    def transform(self) -> Any:
        """timm's, of the images."""
        return self._transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self._transform = transform
        self.dataset.transform = self._apply

    def __getitem__(self, index: Any) -> tuple[Any, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[Any, Tensor]]:
        """The samples of a batch: what is done at once for all of them costs a fraction of what it costs one by one."""
        images, targets, objects = [], [], []
        for index in indices:
            image, target = self.dataset[index]
            images.append(image)
            targets.append(target)
            objects.append(self._objects)
            self._objects = MovedPictures({})
        slots = self.slots._replace(grid=tuple(images[0].shape[-2:])) if self._of_pixels else self.slots
        joined, guided, strange = slots.join(targets, covers_of(objects, slots.grid))
        _count(self.guided_images, guided)
        _count(self.strange_images, strange)
        return list(zip(images, joined, strict=True))

    @contextmanager
    def of_pixels(self) -> Iterator[KeptMasks]:
        """Meanwhile masks cover the pixels of a transformed image; yields what takes such samples."""
        self._of_pixels = True
        try:
            yield KeptMasks(self.slots)
        finally:
            self._of_pixels = False

    def _apply(self, image: Image.Image) -> Any:
        """The transform of an image, and of the objects of the sample that was read last."""
        self._objects = self._read(self._reader.last, image.size)
        for step in self._transform.transforms:
            if isinstance(step, _IN_PLACE) or not len(self._objects):
                image = step(image)
                continue
            image, self._objects = self._objects.through(step, image)
        return image

    def _read(self, index: int, size: tuple[int, int]) -> MovedBoxes | MovedPictures:
        if self.share < 1 and mixed(self.seed, _CHOICE, index) >= self.share * 2**64:
            return MovedPictures({})
        try:
            return self.source.read(index, size)
        except DataError:
            _count(self.odd_images)
            return MovedPictures({})


def _count(value: Any, more: int = 1) -> None:
    with value.get_lock():
        value.value += more
