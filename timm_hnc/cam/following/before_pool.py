"""What functions do to features that still have their positions, and the pools that take them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.following.layout import Live, laid_out_anew
from timm_hnc.cam.following.mean_of_parts import Parts, Stacked
from timm_hnc.cam.following.operations import AS_THEY_ARE, GATED, NORMS, RESHAPING, Call, names, tensors_in
from timm_hnc.cam.following.prefix_tokens import rows_in_front, with_rows
from timm_hnc.cam.following.tracking import Lost, Tracker
from timm_hnc.cam.heads.detached_functions import attention_weights
from timm_hnc.cam.transforms import order_gradient

_SPATIAL = names('conv2d interpolate avg_pool2d adaptive_avg_pool2d max_pool2d')
_POOLS = names('mean sum adaptive_avg_pool1d adaptive_avg_pool2d')
_BY_ELEMENT = AS_THEY_ARE | names('linear mul div')


class BeforePool:
    """The rules for tensors with positions. What changes them makes new features; the last ones enter the pool."""

    def __init__(self, tracker: Tracker, found: set[str]) -> None:
        self.companion = tracker.companion
        self.found = found

    def follow(self, call: Call) -> Any:
        """The companion of a call's result, at least one of whose arguments has positions."""
        if call.name == 'scaled_dot_product_attention':
            return self._attention(call)
        if call.name == 'matmul':
            return self._weighted_sum(call)
        lost = next((c for c in map(self.companion, tensors_in(call.args, call.kwargs)) if isinstance(c, Lost)), None)
        if lost:
            return lost
        if call.name in ('cat', 'concat'):
            return self._behind_prefix(call)
        live = self.companion(call.args[0])
        if call.name in RESHAPING and isinstance(live, Live):
            return _side_by_side(live, call) if _joins_all(live, call) else laid_out_anew(live, call)
        if call.name in _POOLS and isinstance(live, Live):
            pooled = _pool(live, call)
            if pooled is not None:
                return pooled
        if call.name in _SPATIAL and isinstance(live, Live):
            return self._new_map(live, call)
        if call.name in _BY_ELEMENT or call.name in GATED or call.name in NORMS:
            return self._by_element(call)
        return Lost(f'{call.name}()')

    def _by_element(self, call: Call) -> Any:
        tensors = tensors_in(call.args[:2])
        lives = [(tensor, c) for tensor in tensors if isinstance(c := self.companion(tensor), Live)]
        value, live = lives[0]
        across = call.name == 'linear' and value.ndim - 1 in live.dims
        if across or call.out.ndim != value.ndim or any(call.out.shape[dim] != value.shape[dim] for dim in live.dims):
            return Lost(f'{call.name}() across positions')
        if any(_place(other, tensor) != _place(live, value) for tensor, other in lives):
            return Lost(f'{call.name}() of different positions')
        if call.name == 'dropout' and call.out is not call.value:
            self.found.add('dropout in front of the pool')
        return with_rows(call, lives, self.companion)

    def _new_map(self, live: Live, call: Call) -> Any:
        spatial = (call.value.ndim - 2, call.value.ndim - 1)
        if live.prefix or call.value.shape[-2:] != live.grid or not set(live.dims) <= set(spatial):
            return Lost(f'{call.name}() of tokens')
        if call.name == 'conv2d':
            self.found.add('convolution')
            if tuple(call.out.shape[2:]) == (1, 1):
                return _pool_by_kernel(live, call)
        elif tuple(call.out.shape[2:]) == (1, 1) and live.num_positions > 1:
            return _pool_by_window(live, call)
        height, width = call.out.shape[-2:]
        return Live(spatial, (height, width))

    def _behind_prefix(self, call: Call) -> Any:
        """Tokens put in front of tokens with positions."""
        tensors = call.args[0]
        dim = call.argument(0, 'dim', 0)
        *front, last = tensors
        live = self.companion(last)
        in_front = [self.companion(tensor) for tensor in front]
        if not isinstance(live, Live) or live.prefix or live.dims != (dim % last.ndim,):
            return Lost('cat() of positions with something else')
        if any(isinstance(companion, (Live, Stacked)) for companion in in_front):
            return Lost('cat() of positions with positions')
        rows = rows_in_front(front, in_front, live, dim)
        return Live(live.dims, live.grid, sum(tensor.shape[dim] for tensor in front), rows)

    def _attention(self, call: Call) -> Any:
        query, _, tokens, *_ = (*call.args, *(call.kwargs[n] for n in ('query', 'key', 'value') if n in call.kwargs))
        live = self.companion(tokens)
        if not isinstance(live, Live) or live.dims != (tokens.ndim - 2,):
            return live if isinstance(live, Lost) else Lost('attention over something else than positions')
        weights = attention_weights(*call.args, **call.kwargs)
        if isinstance(weights, Lost):
            return weights
        asking = self.companion(query)
        if isinstance(asking, Lost) and query.shape[-2] == tokens.shape[-2]:  # what turned them left them in place
            asking = Live(live.dims, live.grid, live.prefix) if live.prefix else asking
        return self._attended(weights, tokens, live, asking)

    def _weighted_sum(self, call: Call) -> Any:
        left, right = call.args
        live = self.companion(right)
        if not isinstance(live, Live) or live.dims != (right.ndim - 2,):
            return Lost('matmul() across positions')
        all_tokens_ask = live.prefix and left.shape[-2] == right.shape[-2]
        query = Live((call.out.ndim - 2,), live.grid, live.prefix) if all_tokens_ask else None
        return self._attended(left.detach(), right, live, query)

    def _attended(self, weights: Tensor, tokens: Tensor, live: Live, query: Any) -> Any:
        """Sums over tokens with detached weights: a pool; of queries with positions, only prefix tokens are kept."""
        self.found.add('attention')
        if isinstance(query, Live):
            if query.dims != live.dims or not query.prefix:
                return Lost('attention between positions')
            weights = weights[..., : query.prefix, :]
        weights = weights.to(tokens.dtype)
        spread = weights[..., live.prefix :] * live.num_positions
        values = torch.einsum('...rl,...ld->l...rd', spread, tokens[..., live.prefix :, :])
        if live.prefix:
            rows = live.carried_out().rows
            if isinstance(rows, Lost):
                return rows
            in_front = tokens[..., : live.prefix, :] if rows is None else rows
            values = values + weights[..., : live.prefix] @ in_front
        if isinstance(query, Live):
            return replace(query, rows=values, layer=None)
        return Parts(values, live.grid)


def _place(live: Live, value: Tensor) -> tuple[Any, ...]:
    """What two tensors with the same positions have in common, whichever dimensions of size 1 are named."""
    return live.grid, live.prefix, tuple(dim for dim in live.dims if value.shape[dim] > 1)


def _pool(live: Live, call: Call) -> Any:
    """The mean or sum over all positions (and the prefix tokens, if they are still there)."""
    value = call.value
    if call.name.startswith('adaptive_avg_pool'):
        spatial = int(call.name[-2])
        if any(side != 1 for side in call.out.shape[-spatial:]):
            return None
        dims = frozenset(range(value.ndim - spatial, value.ndim))
    elif call.dims is None:
        return Lost(f'{call.name}() over everything')
    else:
        dims = call.dims
    if not set(live.dims) <= dims or any(value.shape[each] != 1 for each in dims - set(live.dims)):
        if call.out.ndim != value.ndim or set(live.dims) & dims:
            return Lost(f'{call.name}() over some positions')
        unknown = None if live.rows is None else Lost(f'{call.name}() of tokens in front of the positions')
        return replace(live, rows=unknown, layer=None)
    rows = live.carried_out().rows
    if isinstance(rows, Lost):
        return rows
    tokens = live.positions(value)
    values = tokens[live.prefix :]
    if live.prefix or call.name == 'sum':
        in_front = tokens[: live.prefix] if rows is None else rows.movedim(live.dims[0] + 1, 0)
        values = values * live.num_positions + in_front.sum(0)
        values = values / len(tokens) if call.name != 'sum' else values
    return Parts(values.reshape(live.num_positions, *call.out.shape), live.grid)


def _joins_all(live: Live, call: Call) -> bool:
    """Whether channels and positions of a feature map become one dimension, in front of a linear layer."""
    value, whole = call.value, live.num_positions > 1 and not live.prefix and live.dims == (2, 3)
    return whole and value.ndim == 4 and call.out.shape == (value.shape[0], value.shape[1:].numel())


def _side_by_side(live: Live, call: Call) -> Parts:
    """Every position with zeros in the places of the others; their mean, times as many, is the whole."""
    order_gradient(call.value)
    values = torch.diag_embed(call.value.flatten(2)) * live.num_positions  # (B, C, positions, positions)
    return Parts(values.movedim(3, 0).flatten(2), live.grid)


def _pool_by_window(live: Live, call: Call) -> Parts | Lost:
    """An average pool whose window is the whole map."""
    kernel = call.argument(0, 'kernel_size')
    sides = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel, kernel)
    whole = all(side >= length for side, length in zip(sides, live.grid, strict=True))  # larger ones with ceil_mode
    if call.name != 'avg_pool2d' or not whole:
        return Lost(f'{call.name}() to a single cell')
    values = replace(live, dims=(2, 3)).positions(call.value)
    return Parts(values.reshape(live.num_positions, *call.out.shape), live.grid)


def _pool_by_kernel(live: Live, call: Call) -> Any:
    """A convolution whose kernel covers the whole map: every position with its own slice of the kernel."""
    weight, bias = call.layer
    if tuple(weight.shape[1:]) != tuple(call.value.shape[1:]):
        return Live(live.dims, (1, 1))
    slices = weight.flatten(2).permute(2, 1, 0)  # (positions, in, out)
    values = replace(live, dims=(2, 3)).positions(call.value) @ slices * live.num_positions
    if bias is not None:
        values = values + bias
    return Parts(values.reshape(live.num_positions, *call.out.shape), live.grid)
