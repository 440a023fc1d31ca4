"""Products with constants whose backward pass leaves out zeros.

Behind the last attention a class token's logits depend on one token in hundreds, in it on values and not on queries and
keys: most of a gradient are whole rows or columns of zeros.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class SparseLinear(torch.autograd.Function):
    """`torch.nn.functional.linear` with a weight and a bias that take no gradient."""

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
        product = _product(gradient.flatten(0, -2), weight.to(gradient.dtype))
        return product.unflatten(0, gradient.shape[:-1]).to(ctx.dtype), None, None


class SparseMix(torch.autograd.Function):
    """`mixture @ tokens` with a mixture that takes no gradient, as that of attention."""

    @staticmethod
    def forward(ctx: Any, mixture: Tensor, tokens: Tensor) -> Tensor:
        """(..., M, C) of a mixture (..., M, N) and tokens (..., N, C), whose leading dimensions are the same."""
        ctx.save_for_backward(mixture)
        ctx.dtype = tokens.dtype
        return mixture @ tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """The gradient of the tokens."""
        mixture = ctx.saved_tensors[0].to(gradient.dtype)
        if not gradient.is_meta:
            mixed = _places(gradient.transpose(-2, -1).flatten(0, -2), 0)
            mixture, gradient = mixture[..., mixed, :], gradient[..., mixed, :]
        return None, (mixture.transpose(-2, -1) @ gradient).to(ctx.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices."""
    if left.is_meta:  # of a probe: there are no values
        return left @ right
    count, rows = len(left), _places(left, 1)
    if len(rows) < count:
        left = left[rows]
    columns = _places(left, 0)
    if len(columns) < left.shape[1]:
        left, right = left[:, columns], right[columns]
    product = left @ right
    return product if len(rows) == count else product.new_zeros(count, product.shape[1]).index_copy_(0, rows, product)


def _places(matrix: Tensor, dim: int) -> Tensor:
    """Where a matrix is not 0 all along a dimension."""
    return matrix.any(dim).nonzero()[:, 0]
