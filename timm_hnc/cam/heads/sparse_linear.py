"""A linear layer whose backward pass takes the rows that have a gradient alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class SparseLinear(torch.autograd.Function):
    """`torch.nn.functional.linear` with a weight and a bias that take no gradient.

    Behind the last attention a class token's logits depend on one token in hundreds: the others' rows are zeros, whose
    products are left out.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., out) of an input (..., in) and a weight (out, in)."""
        ctx.save_for_backward(weight)
        ctx.dtype = input.dtype
        return functional.linear(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the input."""
        (weight,) = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        if rows.is_meta:  # of a probe: there are no values
            return (gradient @ weight).to(ctx.dtype), None, None
        places = rows.any(-1).nonzero()[:, 0]
        result = rows.new_zeros(len(rows), weight.shape[1])
        result[places] = rows[places] @ weight.to(rows.dtype)
        return result.unflatten(0, gradient.shape[:-1]).to(ctx.dtype), None, None
