"""A tensor behind the pool as the mean of parts, one a position, and logits as linear layers of such parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.grids import Grid, finest, resize_positions


@dataclass(frozen=True)
class Parts:
    """A tensor is the mean of `values` over their first dimension: (h * w, *its shape)."""

    values: Tensor
    grid: Grid

    def on(self, grid: Grid) -> Tensor:
        """The values on another grid."""
        return resize_positions(self.values, self.grid, grid)


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
        values = [
            resize_positions(_linear(term.parts.values.flatten(2), term.weight, term.bias), term.parts.grid, grid)
            for term in self.terms
        ]
        return Parts(sum(values[1:], values[0]).reshape(-1, *shape), grid)


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
    positions = [parts.on(grid).flatten(2) for parts, _ in weights.values()]
    beside = [weight for _, weight in weights.values()]
    single = len(beside) == 1
    joined = positions[0] if single else torch.cat(positions, 2)
    return ClassMaps(joined.transpose(0, 1), beside[0] if single else torch.cat(beside, 1), bias, grid, logits)
