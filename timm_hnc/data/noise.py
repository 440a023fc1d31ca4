"""Training labels that are wrong on purpose (section 4.5 of the paper), the same ones in every process and epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, remembering

KINDS = ('symmetric', 'asymmetric')


@dataclass(frozen=True)
class LabelNoise:
    """How labels become wrong.

    Args:
        kind: 'symmetric', drawn anew from all classes, its own included; 'asymmetric', the next class, circularly.
        rate: probability in [0, 1] that this happens to a label.

    Raises:
        ValueError: the kind is unknown, or the rate is no probability.
    """

    kind: str
    rate: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"label noise '{self.kind}' is unknown: expected {' or '.join(KINDS)}.")
        if not 0 <= self.rate <= 1:
            raise ValueError(f'label noise at rate {self.rate}: expected a probability, 0 to 1.')

    @classmethod
    def parse(cls, text: str) -> 'LabelNoise':
        """Noise written as 'symmetric:0.4'."""
        kind, _, rate = text.partition(':')
        try:
            probability = float(rate)
        except ValueError as error:
            raise ValueError(f"label noise '{text}': expected TYPE:RATE, such as symmetric:0.4.") from error
        return cls(kind, probability)

    def label(self, label: int, index: int, num_classes: int, seed: int) -> int:
        """What becomes of the label of one sample: a function of its arguments alone."""
        generator = np.random.default_rng((seed, index))
        if generator.random() >= self.rate:
            return label
        return int(generator.integers(num_classes)) if self.kind == 'symmetric' else (label + 1) % num_classes


class NoisyLabels(WrappedDataset):
    """A data set of (image, class index) samples, accessed by index, with noisy labels; all else is as it was."""

    def __init__(self, dataset: Any, noise: LabelNoise, num_classes: int, seed: int) -> None:
        super().__init__(dataset)
        self.noise = noise
        self.num_classes = num_classes
        self.seed = seed
        self._reader = remembering(dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return image, self.label(int(index if self._reader is None else self._reader.last), label)

    def label(self, index: int, label: int) -> int:
        """What becomes of the true label of a sample."""
        return self.noise.label(label, index, self.num_classes, self.seed)
