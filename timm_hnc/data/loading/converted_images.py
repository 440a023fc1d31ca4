"""Images of torchvision's data sets in the colour mode of the model: theirs come in one of their own."""

from functools import partial
from typing import Any

from PIL import Image

from timm_hnc.data.loading.wrapped_dataset import WrappedDataset


class ConvertedImages(WrappedDataset):
    """A data set whose images are converted before its transform sees them, as timm's data sets do.

    Args:
        dataset: of torchvision's; reads PIL images.
        mode: of Pillow.
    """

    def __init__(self, dataset: Any, mode: str) -> None:
        super().__init__(dataset)
        self.mode = mode
        self.transform = dataset.transform

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    @property
    def transform(self) -> Any:
        """That of the converted images; timm's loader sets it."""
        return self.dataset.transform.keywords['transform']

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = partial(_converted, mode=self.mode, transform=transform)


def _converted(image: Image.Image, mode: str, transform: Any) -> Any:
    if image.mode != mode:
        image = image.convert(mode)
    return image if transform is None else transform(image)
