"""Holding what a head does to its pooled vector, so that it becomes affine in its positions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class HeldDropout(TorchFunctionMode):
    """Let dropout draw as the model itself would (once, the same random numbers) and keep its factors.

    Args:
        factors: receives the factors of every active dropout call, 0 or 1 / (1 - p), in its input's shape.
    """

    def __init__(self, factors: list[Tensor]) -> None:
        super().__init__()
        self.factors = factors

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
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
