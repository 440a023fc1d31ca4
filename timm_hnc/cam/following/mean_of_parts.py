"""A tensor behind the pool as the mean of parts, one a position, and logits as linear layers of such parts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.grids import Grid, finest, resize_positions
from timm_hnc.cam.hidden_layers import Dense, HiddenLayers, HiddenMaps, Layer


@dataclass(frozen=True)
class Parts:
    """A tensor is the mean of `values` over their first dimension: (h * w, *its shape)."""

    values: Tensor
    grid: Grid

    def on(self, grid: Grid) -> Tensor:
        """The values on another grid."""
        return resize_positions(self.values, self.grid, grid)


class HiddenParts(Parts):
    """Parts behind hidden layers, carried through them when their values are asked for.

    Args:
        hidden: (B, L, D) positions and the layers behind them.
        shape: of the tensor.
        grid: of the positions.
    """

    def __init__(self, hidden: HiddenLayers, shape: Sequence[int], grid: Grid) -> None:
        for name, value in (('hidden', hidden), ('shape', tuple(shape)), ('grid', grid)):
            object.__setattr__(self, name, value)

    hidden: HiddenLayers
    shape: tuple[int, ...]

    @cached_property
    def values(self) -> Tensor:
        """See `Parts`."""
        return self.hidden.outer.transpose(0, 1).reshape(-1, *self.shape)

    def then(self, *layers: Layer) -> 'HiddenParts':
        """With more layers behind."""
        return HiddenParts(self.hidden.then(*layers), self.shape, self.grid)

    def shaped(self, shape: Sequence[int]) -> 'HiddenParts':
        """The same of a tensor with other dimensions of size 1."""
        return HiddenParts(self.hidden, shape, self.grid)


@dataclass(frozen=True)
class Term:
    """parts @ weight.T + bias: a linear layer that was not carried out at every position."""

    parts: Parts
    weight: Tensor
    bias: Tensor | None

    def scaled(self, factor: Any) -> 'Term':
        """The layer times a number."""
        return Term(self.parts, self.weight * factor, None if self.bias is None else self.bias * factor)


@dataclass(frozen=True)
class Scores:
    """A tensor (B, n) that is a sum of linear layers of parts."""

    terms: tuple[Term, ...]

    @property
    def grid(self) -> Grid:
        """The finest grid of the terms."""
        return finest([term.parts.grid for term in self.terms])

    def scaled(self, factor: Any) -> 'Scores':
        """Every term times a number."""
        return Scores(tuple(term.scaled(factor) for term in self.terms))

    def carried_out(self, shape: Sequence[int]) -> Parts:
        """The linear layers at every position, in the shape of the tensor."""
        grid = self.grid
        if len(self.terms) == 1:
            (term,) = self.terms
            hidden = HiddenLayers(term.parts.values.flatten(2).transpose(0, 1), (), precision_of(term.weight))
            if isinstance(term.parts, HiddenParts):
                hidden = term.parts.hidden
            return HiddenParts(hidden.then(Dense(term.weight, term.bias)), shape, grid)
        values = [
            resize_positions(_linear(term.parts.values.flatten(2), term.weight, term.bias), term.parts.grid, grid)
            for term in self.terms
        ]
        return Parts(sum(values[1:], values[0]).reshape(-1, *shape), grid)


def precision_of(tensor: Tensor) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context of autocast that is in force now on the device of a tensor."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of (positions, B, D); with the batch in front, as channels-last features lie in memory."""
    return functional.linear(values.transpose(0, 1), weight, bias).transpose(0, 1)


@dataclass(frozen=True)
class Stacked:
    """Scores side by side in a new first dimension."""

    scores: tuple[Scores, ...]


def side_by_side(scores: Scores, logits: Tensor) -> ClassMaps:
    """Logits as one linear layer: weights of the same parts added, different parts beside each other in D."""
    grid = scores.grid
    weights: dict[int, tuple[Parts, Tensor]] = {}
    bias = None
    for term in scores.terms:
        weight = term.weight
        if id(term.parts) in weights:
            weight = weights[id(term.parts)][1] + weight
        weights[id(term.parts)] = (term.parts, weight)
        if term.bias is not None:
            bias = term.bias if bias is None else bias + term.bias
    beside = [weight for _, weight in weights.values()]
    single = len(beside) == 1
    only = next(iter(weights.values()))[0]
    if single and isinstance(only, HiddenParts):
        return HiddenMaps(None, beside[0], bias, grid, logits, hidden=only.hidden)  # type: ignore[arg-type]  # made later
    positions = [parts.on(grid).flatten(2) for parts, _ in weights.values()]
    joined = positions[0] if single else torch.cat(positions, 2)
    return ClassMaps(joined.transpose(0, 1), beside[0] if single else torch.cat(beside, 1), bias, grid, logits)
