"""What is measured: one network, its classes, k and resolution, in one way to run it."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        model: timm's name of the network.
        classes: n.
        topk: k.
        img_size: side of the images in pixels.
        batch_size: images a step.
        dtype: 'float32', or 'bfloat16' under autocast.
        mode: 'eager', or 'compiled' by torch.compile.
        pairs: interleaved rounds to time.
        model_kwargs: for timm's create_model.
    """

    model: str = 'resnet50'
    classes: int = 1000
    topk: int = 100
    img_size: int = 224
    batch_size: int = 8
    dtype: str = 'float32'
    mode: str = 'eager'
    pairs: int = 40
    model_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    def describe(self) -> str:
        """One line for people."""
        return (
            f'{self.model}, {self.classes:,} classes, k {self.topk}, batch {self.batch_size}, {self.img_size} px, '
            f'{self.dtype}, {self.mode}'
        )


VIT = {'class_token': False, 'global_pool': 'avg'}
CIFAR = {'model': 'cifar_resnet110', 'img_size': 32, 'batch_size': 128}


def _each(values: dict[str, list[Any]], **fixed: Any) -> list[Case]:
    return [Case(**fixed, **dict(zip(values, chosen, strict=True))) for chosen in product(*values.values())]


_FEW = {'pairs': 12}
PRESETS = {
    'limits': [*_each({'classes': [1000, 21843]}), Case(**CIFAR, classes=100, topk=10)],
    # one thing at a time, around the limits; about 20 minutes on 2 cores without memory
    'matrix': [
        *_each({'topk': [1, 10]}, **_FEW),
        *_each({'topk': [1, 10]}, classes=10, **_FEW),
        Case(img_size=32, **_FEW),
        Case(img_size=384, pairs=8),
        *_each({'classes': [1000, 21843]}, dtype='bfloat16', **_FEW),
        *_each({'classes': [10, 1000], 'dtype': ['float32', 'bfloat16']}, **CIFAR, topk=10, **_FEW),
        *_each({'classes': [1000, 21843]}, model='convnext_tiny', **_FEW),
        *_each({'classes': [1000, 21843]}, model='vit_small_patch16_224', model_kwargs=VIT, **_FEW),
        *_each({'classes': [1000, 21843]}, model='mobilenetv3_large_100', **_FEW),
        *_each({'dtype': ['float32', 'bfloat16']}, mode='compiled', **_FEW),
    ],
}
