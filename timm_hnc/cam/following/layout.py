"""Where a tensor's positions lie, and where they go when the tensor is laid out anew."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.following.mean_of_parts import Parts, Scores, Term
from timm_hnc.cam.following.operations import Call
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.grids import Grid
from timm_hnc.cam.transforms import order_gradient


@dataclass(frozen=True)
class Live:
    """A tensor that still has its positions: a feature map or a row of tokens.

    Args:
        dims: the dimensions that run over positions in raster order; one for tokens.
        grid: (h, w) of the positions.
        prefix: tokens in front of the positions, in the same dimension.
        rows: what the prefix tokens are the mean of, (h * w, *shape with the prefix tokens alone); None if they do
            not depend on the positions, `Lost` if nobody knows how.
        layer: weight and bias of a linear layer behind the rows that was not carried out on them.
    """

    dims: tuple[int, ...]
    grid: Grid
    prefix: int = 0
    rows: Tensor | Lost | None = None
    layer: tuple[Tensor, Tensor | None] | None = None

    @property
    def num_positions(self) -> int:
        """H * w."""
        return self.grid[0] * self.grid[1]

    def positions(self, value: Tensor) -> Tensor:
        """The tensor's positions, prefix tokens first, as (prefix + h * w, *the other dimensions)."""
        order_gradient(value)
        others = [dim for dim in range(value.ndim) if dim not in self.dims]
        return value.permute(*self.dims, *others).flatten(0, len(self.dims) - 1)

    def carried_out(self) -> 'Live':
        """With the linear layer carried out on the rows."""
        if self.layer is None or not isinstance(self.rows, Tensor):
            return self
        return replace(self, rows=functional.linear(self.rows, *self.layer), layer=None)

    def prefix_of(self, value: Tensor) -> Tensor:
        """The tensor's prefix tokens, in place."""
        return value.narrow(self.dims[0], 0, self.prefix)


def laid_out_anew(live: Live, call: Call) -> Any:
    """Where the positions are after a view, a slice or a transposition: `Live`, `Lost`, or a prefix token (its rows).

    The call is repeated on a tensor without data whose strides are 0 but along the positions: the strides and the
    offset of the result say where they went, whatever the function.
    """
    value = call.value
    strides = [0] * value.ndim
    step = 1
    for dim in reversed(live.dims):
        strides[dim] = step
        step *= value.shape[dim]
    probe = torch.empty(step, dtype=torch.uint8, device='meta').as_strided(value.shape, strides)
    result = call.function(probe, *call.options, **call.kwargs)
    if isinstance(result, Tensor):
        return _place(live, call, result, call.out)
    return tuple(_place(live, call, *pair, index) for index, pair in enumerate(zip(result, call.out, strict=True)))


def _place(live: Live, call: Call, probe: Tensor, out: Tensor, index: int | None = None) -> Any:
    dims = tuple(dim for dim in range(probe.ndim) if probe.shape[dim] > 1 and probe.stride(dim))
    offset = int(probe.storage_offset())
    count = 1
    for dim in reversed(dims):
        if probe.stride(dim) != count:
            return Lost(f'{call.name}() of some positions')
        count *= probe.shape[dim]
    if offset + count <= live.prefix:
        return _prefix_token(live, live.rows, call, out, index) if isinstance(live.rows, Tensor) else live.rows
    if offset > live.prefix or offset + count != live.prefix + live.num_positions:
        return Lost(f'{call.name}() of some positions')
    if not dims:  # a single position is the mean over itself
        return Parts(out[None], live.grid)
    prefix = live.prefix - offset
    rows = live.carried_out().rows if prefix else None
    if isinstance(rows, Tensor):
        rows = _rows(rows, call, out, index, (dims[0], prefix))
    return replace(live, dims=dims, prefix=prefix, rows=rows, layer=None)


def _prefix_token(live: Live, rows: Tensor, call: Call, out: Tensor, index: int | None) -> Parts | Scores:
    if live.layer is not None and out.ndim == 2:
        return Scores((Term(Parts(_rows(rows, call, out, index), live.grid), *live.layer),))
    if live.layer is not None:
        rows = functional.linear(rows, *live.layer)
    return Parts(_rows(rows, call, out, index), live.grid)


def _rows(rows: Tensor, call: Call, out: Tensor, index: int | None, tokens: tuple[int, int] | None = None) -> Tensor:
    """What rows become: the same call on them; to a new shape, with their number in the tokens' dimension."""
    if call.name in ('reshape', 'view', 'flatten', 'unflatten') and tokens is not None:
        shape = list(out.shape)
        shape[tokens[0]] = tokens[1]
        return rows.reshape(len(rows), *shape)

    def at_one(row: Tensor) -> Any:
        result = call.function(row, *call.options, **call.kwargs)
        return result if index is None else result[index]

    return torch.vmap(at_one)(rows)
