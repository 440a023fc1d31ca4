"""What timm's augmentation policies ask of the installed Pillow."""

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import AugmentOp


@pytest.mark.parametrize(('name', 'magnitude'), [('Posterize', 2), ('PosterizeIncreasing', 10)])
def test_posterize_to_no_bits_is_black(name, magnitude):
    """`rand-m9-mstd0.5-inc1` draws it in one of some hundred images."""
    posterize = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams={})
    assert not np.asarray(posterize(Image.new('RGB', (8, 8), 'white'))).any()
