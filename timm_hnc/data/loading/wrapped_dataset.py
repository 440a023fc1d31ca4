"""A data set around a data set, as timm's loaders and our checks see it."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset
from torchvision.datasets.vision import StandardTransform


class Wrapper:
    """Something around another thing, its attribute `inside`: what it does not have itself, the other has."""

    inside = 'dataset'

    def __len__(self) -> int:
        return len(getattr(self, self.inside))

    def __getattr__(self, name: str) -> Any:
        if name == self.inside or name.startswith('__'):
            raise AttributeError(name)  # while it is unpickled
        return getattr(getattr(self, self.inside), name)


class WrappedReader(Wrapper):
    """A reader of timm around another."""

    inside = 'unchecked'

    def __init__(self, reader: Any) -> None:
        self.unchecked = reader


class RememberingReader(WrappedReader):
    """Knows which sample was read last: where an image cannot be decoded, timm takes the next one."""

    last = -1

    def __getitem__(self, index: int) -> Any:
        self.last = index
        return self.unchecked[index]


def innermost(dataset: Any) -> Any:
    """The data set inside all that is wrapped around it."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def inner_loader(loader: Any) -> Any:
    """Torch's loader inside timm's that prefetches, or the loader itself."""
    return getattr(loader, 'loader', loader)


def follow_transform(dataset: Any) -> None:
    """Let a data set of torchvision's that reads by its `transforms` use the `transform` that timm's loader has set."""
    own = innermost(dataset)
    if isinstance(getattr(own, 'transforms', None), StandardTransform):
        own.transforms = StandardTransform(own.transform, own.target_transform)


def remembering(dataset: Any) -> RememberingReader | None:
    """Let the reader of a data set remember what it read, and return it; None where there is none."""
    read = innermost(dataset)
    if not hasattr(read, 'reader'):
        return None
    read.reader = RememberingReader(read.reader)
    return read.reader


def unwrapped_reader(dataset: Any) -> Any:
    """Timm's own reader of a data set that nothing is wrapped around; None where there is none."""
    reader: Any = getattr(dataset, 'reader', None)
    while hasattr(reader, 'unchecked'):
        reader = reader.unchecked
    return reader


def stored_places(dataset: Any) -> np.ndarray | None:
    """Index in the innermost data set of every sample of this one; None: samples are where they are there."""
    places = None
    while hasattr(dataset, 'dataset'):
        chosen = vars(dataset).get('indices')  # its own: wrappers hand on what is inside
        if chosen is not None:
            places = np.asarray(chosen)[... if places is None else places]
        dataset = dataset.dataset
    return places


class WrappedDataset(Wrapper, Dataset[Any]):
    """Passes on what timm's loader sets and what names of classes are read from."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Any) -> list[Any]:
        """The samples of a batch, as torch's loader asks for them."""
        return [self[index] for index in indices]

    @property
    def transform(self) -> Any:
        """The data set's own; timm's loader sets it."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform
