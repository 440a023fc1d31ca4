"""Maps behind hidden layers whose gates and scales are detached, so that the layers are affine.

Two ways lead to the maps of k classes: the positions go through the layers, or the k rows of the last layer come back
through them. The second costs less where k is smaller than the number of positions.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from timm_hnc.cam.class_maps import ClassMaps, register_as_output
from timm_hnc.cam.classes import Classes, class_indices

_FEW = 16  # rows come back while a graph is exported, whose sizes are no numbers that could be compared


@dataclass(frozen=True)
class Dense:
    """A linear layer.

    Args:
        weight: (H, D).
        bias: (H,) or None.
    """

    weight: Tensor
    bias: Tensor | None

    def forward(self, values: Tensor) -> Tensor:
        """(B, L, D) to (B, L, H)."""
        bias = None if self.bias is None else self.bias.to(values.dtype)
        return functional.linear(values, self.weight.to(values.dtype), bias)

    def back(self, rows: Tensor) -> Tensor:
        """(B, k, H) to (B, k, D): rows that give the same products with what goes in."""
        return torch.matmul(rows, self.weight.to(rows.dtype))

    def at_zero(self, constant: Tensor | None) -> Tensor | None:
        """(B or 1, 1, H) of what comes out for a (B or 1, 1, D) constant; None stands for 0."""
        if constant is not None:
            return self.forward(constant)
        return None if self.bias is None else self.bias[None, None]


@dataclass(frozen=True)
class Scale:
    """A detached gate or scale, and a shift.

    Args:
        scale: (B or 1, 1, H).
        shift: (H,) or None.
    """

    scale: Tensor
    shift: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        """(B, L, H) to the same."""
        scaled = values * self.scale
        return (scaled if self.shift is None else scaled + self.shift).to(values.dtype)

    def back(self, rows: Tensor) -> Tensor:
        """(B, k, H) to the same."""
        return (rows * self.scale).to(rows.dtype)

    def at_zero(self, constant: Tensor | None) -> Tensor | None:
        """As of `Dense.at_zero`."""
        if constant is not None:
            return self.forward(constant)
        return None if self.shift is None else self.shift[None, None]


class Centre:
    """What layer norm takes away: the mean over features."""

    def forward(self, values: Tensor) -> Tensor:
        """(B, L, H) to the same."""
        mean = values.mean(-1, keepdim=True, dtype=torch.promote_types(values.dtype, torch.float32))
        return (values - mean).to(values.dtype)

    back = forward

    def at_zero(self, constant: Tensor | None) -> Tensor | None:
        """As of `Dense.at_zero`."""
        return None if constant is None else self.forward(constant)


Layer = Dense | Scale | Centre


@dataclass(eq=False)
class HiddenLayers:
    """Positions in front of layers.

    Args:
        positions: (B, L, D).
        layers: the first one first.
        precision: makes the context of autocast in which the model itself ran.
        made: `outer`, once it was asked for.
        with_gradients: gradients were on then.
    """

    positions: Tensor
    layers: tuple[Layer, ...]
    precision: Callable[[], AbstractContextManager[object]]
    made: Tensor | None = field(default=None, init=False)
    with_gradients: bool = field(default=False, init=False)

    def then(self, *layers: Layer) -> 'HiddenLayers':
        """With more layers behind."""
        return HiddenLayers(self.positions, (*self.layers, *layers), self.precision)

    @property
    def outer(self) -> Tensor:
        """(B, L, H) positions behind the layers, made once; once more where gradients are wanted first now."""
        if self.made is None or (torch.is_grad_enabled() and not self.with_gradients):
            values = self.positions
            with self.precision():
                for layer in self.layers:
                    values = layer.forward(values)
            self.made, self.with_gradients = values, torch.is_grad_enabled()
        return self.made

    def scores(self, rows: Tensor) -> Tensor:
        """(B, k, L) products of the (B, k, H) rows with the positions behind the layers."""
        constant: Tensor | None = None
        with self.precision():
            for layer in self.layers:
                constant = layer.at_zero(constant)
            products = None if constant is None else (rows * constant.to(rows.dtype)).sum(-1, keepdim=True)
            for layer in reversed(self.layers):
                rows = layer.back(rows)
            scores = torch.matmul(rows.to(self.positions.dtype), self.positions.transpose(1, 2))
            return scores if products is None else scores + products.to(scores.dtype)

    def is_cheaper_back(self, k: int) -> bool:
        """Whether k rows come back at less cost than all positions go through: from sizes alone, in products."""
        if torch.compiler.is_exporting():
            return k <= _FEW
        length, features = self.positions.shape[1:]
        weights = [layer.weight for layer in self.layers if isinstance(layer, Dense)]
        through = sum(weight.numel() for weight in weights)
        return k * (through + features * length) < length * (through + k * len(weights[-1]))


@dataclass(eq=False)
class HiddenMaps(ClassMaps):
    """`ClassMaps` behind hidden layers, whose `positions` go through them when they are asked for.

    Args:
        hidden: what the positions are made of; other positions that are given are taken in their place.
    """

    hidden: HiddenLayers = field(kw_only=True)

    def __post_init__(self) -> None:
        given = self.positions is not None and self.positions is not self.hidden.made
        if not given:
            del self.positions  # made by __getattr__
        if given or self.logits is None:
            super().__post_init__()
        self._made_with = self._versions()

    def __repr__(self) -> str:
        return f'{type(self).__name__}(logits of shape {tuple(self.logits.shape)}, grid={self.grid})'

    def __getattr__(self, name: str) -> Tensor:
        if name == 'positions':
            return self.hidden.outer
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'.")

    def _weights(self) -> list[Tensor | None]:
        found = super()._weights()
        for layer in self.hidden.layers:
            found += [layer.weight, layer.bias] if isinstance(layer, Dense) else []
            found += [layer.shift] if isinstance(layer, Scale) else []
        return found

    def _features(self) -> Tensor:
        found: Tensor = vars(self).get('positions', self.hidden.positions)
        return found

    def _scores(self, classes: Classes | None) -> Tensor:
        if 'positions' in vars(self):
            return super()._scores(classes)
        inner = self.hidden.positions
        if classes is not None:
            classes = class_indices(classes, inner.shape[0], self.num_classes, inner.device)
        if classes is None or not self.hidden.is_cheaper_back(classes.shape[1]):
            return super()._scores(classes)
        scores = self.hidden.scores(functional.embedding(classes, self.weight))
        return scores if self.bias is None else scores + self.bias[classes].to(scores.dtype)[..., None]


def _hidden_layers(found: Iterable[Any], precision: Any) -> HiddenLayers:
    positions, layers = found
    return HiddenLayers(positions, layers, precision)


pytree.register_pytree_node(Dense, lambda layer: ([layer.weight, layer.bias], None), lambda found, _: Dense(*found))
pytree.register_pytree_node(Scale, lambda layer: ([layer.scale, layer.shift], None), lambda found, _: Scale(*found))
pytree.register_pytree_node(Centre, lambda layer: ([], None), lambda found, _: Centre())
pytree.register_pytree_node(
    HiddenLayers,
    lambda hidden: ([hidden.positions, hidden.layers], hidden.precision),
    _hidden_layers,
)
register_as_output(HiddenMaps, 'hidden', 'weight', 'bias', 'logits')
