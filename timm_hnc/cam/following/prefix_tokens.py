"""Prefix tokens that depend on the positions, and what functions make of the rows that they are the mean of."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.mean_of_parts import Parts, Scores
from timm_hnc.cam.following.operations import AS_THEY_ARE, GATED, Call, names, tensors_in
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.heads.detached_functions import detached_gate, detached_norm

_OVER_CHANNELS = names('layer_norm rms_norm')


def rows_in_front(front: list[Tensor], companions: list[Any], live: Live, dim: int) -> Tensor | None:
    """Rows of tokens that are put in front of tokens with positions; None where none of them depends on positions."""
    if not any(isinstance(each, (Parts, Scores)) for each in companions):
        return None
    rows = []
    for tensor, each in zip(front, companions, strict=True):
        parts = each.carried_out(tensor.shape) if isinstance(each, Scores) else each
        constant = not isinstance(parts, Parts)
        rows.append(tensor.expand(live.num_positions, *tensor.shape) if constant else parts.on(live.grid))
    return torch.cat(rows, dim % front[0].ndim + 1)


def with_rows(call: Call, lives: list[tuple[Tensor, Live]], companion: Callable[[Any], Any]) -> Live:
    """What a function makes of tokens by element: the positions stay where they are, the rows change with the tokens.

    `lives` are its arguments with positions, one or more, all in the same place.
    """
    live = lives[0][1]
    known = [each for _, each in lives if each.rows is not None]
    if not known:
        return live
    lost = next((each.rows for each in known if isinstance(each.rows, Lost)), None)
    if lost:
        return replace(live, rows=lost, layer=None)
    if len(lives) == 1 and call.name == 'dropout' and call.out is call.value:
        return live
    if len(lives) == 1 and call.name == 'linear':
        return replace(live.carried_out(), layer=call.layer)
    return replace(live, rows=_rows(call, [(t, each.carried_out()) for t, each in lives], companion), layer=None)


def _rows(call: Call, lives: list[tuple[Tensor, Live]], companion: Callable[[Any], Any]) -> Tensor | Lost:
    live, rows = lives[0][1], {id(tensor): each.rows for tensor, each in lives if isinstance(each.rows, Tensor)}
    dim = live.dims[0] - lives[0][0].ndim  # from the end, as tensors are broadcast
    lost = Lost(f'{call.name}() of tokens in front of the positions')
    if len(lives) == 1 and (call.name in GATED or call.name in _OVER_CHANNELS):
        if call.name in _OVER_CHANNELS and len(call.options[0]) >= -dim:
            return lost
        detached = detached_gate if call.name in GATED else detached_norm
        in_front = replace(call, value=live.prefix_of(call.value), out=live.prefix_of(call.out))
        return detached(in_front, rows[id(call.args[0])])
    if not _is_linear(call, rows):
        return lost
    for tensor in tensors_in(call.args, call.kwargs):
        known = companion(tensor)
        if known is not None and not isinstance(known, Live):
            return lost
        if id(tensor) not in rows:
            value = call.value if tensor is call.args[0] else tensor
            along = value.ndim >= -dim and value.shape[dim] > 1
            rows[id(tensor)] = value.narrow(dim, 0, live.prefix) if along else value
    return call.repeated(rows)


def _is_linear(call: Call, rows: Collection[int]) -> bool:
    """Whether a function is linear in the tensors that have rows, given by id."""
    if call.name in ('mul', 'div'):
        factors = [id(factor) in rows for factor in call.args]
        return sum(factors) == 1 and (call.name == 'mul' or factors[0]) and not call.kwargs.get('rounding_mode')
    return call.name in AS_THEY_ARE
