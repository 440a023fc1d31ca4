"""Detaching the non-linear functions of a network at the values they take, so that what is left is affine.

Every function here answers: if a tensor `value` went into a function and `out` came out, and `value` is the mean of
`parts` over their leading dimension, of which parts is `out` the mean? Scales, gates and statistics are those of
`value`, without a gradient; weights and parts keep theirs. `parts` of the shape of `value` alone is the case of a
detached network that runs beside the real one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from timm_hnc.cam.following.operations import Call
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.hidden_layers import Centre, Scale
from timm_hnc.cam.number_types import at_least_float32


class DetachedDropout(TorchFunctionMode):
    """Let dropout draw as the model itself would (once, the same random numbers) and keep its factors.

    Args:
        factors: receives the factors of every active dropout call, 0 or 1 / (1 - p), in its input's shape.
    """

    def __init__(self, factors: list[Tensor]) -> None:
        super().__init__()
        self.factors = factors

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept dropout, leave everything else as it is."""
        if func is functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        factors = functional.dropout(torch.ones_like(input), p)
        self.factors.append(factors)
        return input * factors


def gate_of(call: Call) -> Tensor:
    """The gate f(z) / z of f(z) = z * gate, detached, in the shape of z; 0 where z is."""
    value, out = at_least_float32(call.value.detach()), at_least_float32(call.out.detach())
    return out / torch.where(value == 0, 1, value)


def detached_gate(call: Call, parts: Tensor) -> Tensor:
    """f(z) = z * g with the gate detached: activations, dropout, normalisation to unit length."""
    if call.name == 'dropout' and call.out is call.value:
        return parts
    return (at_least_float32(parts) * gate_of(call)).to(call.out.dtype)


def detached_norm(call: Call, parts: Tensor) -> Tensor:
    """A norm with its scale detached; the mean that it takes away is linear (batch norm: detached too)."""
    arguments = (at_least_float32(call.value.detach()), at_least_float32(parts), *call.options)
    return _NORMS[call.name](*arguments, **call.kwargs).to(call.out.dtype)


def affine_norm(call: Call) -> tuple[Centre | Scale, ...]:
    """The layers that `detached_norm` is for a layer norm of (B, D) vectors, or a batch norm; none for other norms."""
    if call.name == 'layer_norm' and call.value.ndim == 2:
        return _layers_of_layer_norm(at_least_float32(call.value.detach()), *call.options, **call.kwargs)
    if call.name == 'batch_norm' and call.value[0].numel() == call.value.shape[1]:
        mean, scale, bias = _batch_factors(at_least_float32(call.value.detach()), *call.options, **call.kwargs)
        return (Scale(scale[None, None], -mean * scale if bias is None else bias - mean * scale),)
    return ()


def _layers_of_layer_norm(
    value: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> tuple[Centre | Scale, ...]:
    scale = (value.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    return Centre(), Scale((scale if weight is None else scale * weight)[:, None], bias)


def _layer_norm(
    value: Tensor, parts: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    scale = (value.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    return _affine(parts - parts.mean(dims, keepdim=True), scale, weight, bias)


def _rms_norm(value: Tensor, parts: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(value.dtype).eps if eps is None else eps
    return _affine(parts, (value.square().mean(dims, keepdim=True) + eps).rsqrt(), weight, None)


def _batch_norm(value: Tensor, parts: Tensor, *options: Any, **kwargs: Any) -> Tensor:
    shape = (-1, *(1,) * (value.ndim - 2))
    mean, scale, bias = _batch_factors(value, *options, **kwargs)
    return _affine(parts - mean.view(shape), scale.view(shape), None, bias, shape)


def _batch_factors(
    value: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(D,) means, what the distances from them are multiplied by, and the bias."""
    if training or running_mean is None or running_var is None:
        variance, mean = torch.var_mean(value, [0, *range(2, value.ndim)], correction=0)
    else:
        variance, mean = running_var.detach(), running_mean.detach()
    scale = (at_least_float32(variance) + eps).rsqrt()
    return at_least_float32(mean), scale if weight is None else scale * weight, bias


def _group_norm(
    value: Tensor, parts: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    grouped = (groups, -1)
    scale = (value.flatten(1).unflatten(1, grouped).var(-1, correction=0, keepdim=True) + eps).rsqrt()
    leading = parts.ndim - value.ndim + 1
    flat = parts.flatten(leading).unflatten(leading, grouped)
    centred = (flat - flat.mean(-1, keepdim=True)).reshape(parts.shape)
    every = scale.expand(*scale.shape[:-1], value[0].numel() // groups).reshape(value.shape)
    return _affine(centred, every, weight, bias, (-1, *(1,) * (value.ndim - 2)))


def _affine(
    centred: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...] | None = None
) -> Tensor:
    if weight is not None:
        scale = scale * (weight if shape is None else weight.view(shape))
    if bias is None:
        return centred * scale
    return torch.addcmul(bias if shape is None else bias.view(shape), centred, scale)


_NORMS: dict[str, Callable[..., Tensor]] = {
    'layer_norm': _layer_norm,
    'rms_norm': _rms_norm,
    'batch_norm': _batch_norm,
    'group_norm': _group_norm,
}


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | Lost:
    """The weights (B, heads, queries, tokens) of `scaled_dot_product_attention`, detached: without a gradient."""
    if dropout_p or is_causal or enable_gqa:
        return Lost('attention with dropout, a causal mask or grouped queries in front of the classifier')
    query, key = at_least_float32(query.detach()), at_least_float32(key.detach())
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)
