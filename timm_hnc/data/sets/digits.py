"""The quickstart's data: the 1,797 handwritten digits (8 x 8 pixels) that scikit-learn ships."""

import io
from importlib.util import find_spec

import numpy as np
from PIL import Image

from timm_hnc.errors import UsageError

VALIDATION_EVERY = 5  # every fifth image validates: 360 of 1,797, the writers of the training images among them


class DigitsReader:
    """timm's reader protocol over scikit-learn's digits, with a fixed split.

    Raises:
        UsageError: no such split, or scikit-learn is not installed.
    """

    def __init__(self, split: str) -> None:
        if split not in ('train', 'validation'):
            raise UsageError(f"hnc/digits has no split '{split}': use train or validation.")
        if find_spec('sklearn') is None:
            raise UsageError('--dataset hnc/digits needs scikit-learn: pip install "timm_hnc[quickstart]".')
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        held_out = np.arange(len(targets)) % VALIDATION_EVERY == 0
        self.indices = np.flatnonzero(held_out if split == 'validation' else ~held_out)
        self.images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # ink comes as 0 to 16
        self.targets = [int(target) for target in targets[self.indices]]
        self.class_to_idx = {str(digit): digit for digit in range(10)}

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        position = self.indices[index]
        file = io.BytesIO()
        Image.fromarray(self.images[position]).save(file, 'PNG')
        file.seek(0)
        return file, self.targets[index]

    def __len__(self) -> int:
        return len(self.indices)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """A name for the image: its place in scikit-learn's set."""
        return f'digit-{self.indices[index]:04d}.png'
