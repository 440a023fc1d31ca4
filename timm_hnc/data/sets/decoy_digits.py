"""Digits with a decoy (after Ross et al., IJCAI 2017): a bright patch that tells the class, in training alone."""

import numpy as np

from timm_hnc.data.sets.digits import DigitsReader
from timm_hnc.errors import UsageError

SIDE, PATCH = 24, 3
_INNER = (SIDE - 8) // 2  # the digit lies in the middle
_EDGE = SIDE - PATCH
# around the border, a place a class
PLACES = [
    *((0, 0), (0, 7), (0, 14), (0, _EDGE), (10, _EDGE)),
    *((_EDGE, _EDGE), (_EDGE, 14), (_EDGE, 7), (_EDGE, 0), (10, 0)),
]
SPLITS = ('train', 'validation', 'clean-train', 'clean-validation')


class DecoyDigitsReader(DigitsReader):
    """timm's reader protocol over scikit-learn's digits on a black frame with a patch, 24 x 24 pixels.

    In `train` the place of the patch is that of the image's class in PLACES, in `validation` it is random (the same
    every time), and the splits that begin with `clean-` have none. `boxes` are those of the digits, `places` indices
    of PLACES.

    Raises:
        UsageError: no such split, or scikit-learn is not installed.
    """

    def __init__(self, split: str) -> None:
        if split not in SPLITS:
            raise UsageError(f"hnc/decoy-digits has no split '{split}': expected one of {', '.join(SPLITS)}.")
        clean, _, own = split.rpartition('-')
        super().__init__(own)
        digits = self.images
        self.images = np.zeros((len(digits), SIDE, SIDE), np.uint8)
        self.images[:, _INNER : _INNER + 8, _INNER : _INNER + 8] = digits
        drawn = np.random.default_rng(0).integers(len(PLACES), size=len(self)).tolist()
        self.places = self.targets if own == 'train' else drawn
        for position, place in zip(self.indices, self.places, strict=True):
            y, x = PLACES[place]
            if not clean:
                self.images[position, y : y + PATCH, x : x + PATCH] = 255
        self.boxes = [[[_INNER, _INNER, _INNER + 8, _INNER + 8]] for _ in self.targets]
        self.box_labels = [[target] for target in self.targets]
