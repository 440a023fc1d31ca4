"""Which part of a timm model is features and which is head, how its features are laid out, and what a head may do.

A head is accepted by what it does, not by its name: its operations are recorded and its values compared with the mean
over positions. So a new architecture works unseen, or is refused here, and never yields maps that explain nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Layout = Literal['NCHW', 'NHWC', 'NLC']
TimmModel = Any  # an nn.Module with forward_features, forward_head, get_classifier; timm has no common type for it


@dataclass(frozen=True)
class Head:
    """An average pool in front of one linear layer, or of several whose outputs are averaged (kinds A1 to A6).

    Args:
        layout: of the features that enter the pool.
        num_prefix_tokens: tokens in front of the patch tokens, left out of the mean ('NLC' only).
        classifiers: names of the linear layers in the model.
        convolutional: the linear layers are 1x1 convolutions.
    """

    layout: Layout
    num_prefix_tokens: int
    classifiers: tuple[str, ...]
    convolutional: bool

    @property
    def kind(self) -> str:
        """A1 NCHW, A2 NCHW with a convolution, A3 NHWC, A4 tokens, A5 tokens behind a prefix, A6 averaged layers."""
        if len(self.classifiers) > 1:
            return 'A6'
        if self.layout == 'NCHW':
            return 'A2' if self.convolutional else 'A1'
        if self.layout == 'NHWC':
            return 'A3'
        return 'A5' if self.num_prefix_tokens else 'A4'

    def positions(self, features: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Features as (B, L, D) positions in raster order, and their (h, w) grid, without copying.

        Args:
            features: what forward_features returned.
            image_size: (height, width) of the images in pixels.
        """
        if self.layout == 'NCHW':
            return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
        if self.layout == 'NHWC':
            return features.flatten(1, 2), (features.shape[1], features.shape[2])
        tokens = features[:, self.num_prefix_tokens :]
        return tokens, token_grid(tokens.shape[1], image_size)

    def linear(self, model: TimmModel) -> tuple[Tensor, Tensor | None]:
        """The last linear layer as (n, D) weight and (n,) bias or None; averaged where there are several."""
        layers = [model.get_submodule(name) for name in self.classifiers]
        if len(layers) == 1:
            return layers[0].weight.flatten(1), layers[0].bias
        weight = sum(layer.weight for layer in layers) / len(layers)
        bias = sum(layer.bias for layer in layers) / len(layers) if layers[0].bias is not None else None
        return weight.flatten(1), bias


def token_grid(num_tokens: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) grid of patch tokens: h * w tokens, shaped as the image is.

    Raises:
        ValueError: no such grid, so some tokens are no patches.

    Example:
        >>> token_grid(12, (96, 128))
        (3, 4)
    """
    patch = (image_size[0] * image_size[1] / num_tokens) ** 0.5
    rows = image_size[0] / patch
    heights = [h for h in range(max(1, int(rows)), int(rows) + 2) if num_tokens % h == 0]
    for height in sorted(heights, key=lambda h: abs(h - rows)):
        if abs(num_tokens // height - image_size[1] / patch) < 1:
            return height, num_tokens // height
    raise ValueError(f'{num_tokens} tokens of an image of {image_size[0]} x {image_size[1]} pixels form no grid.')
