"""Copies of a model to try things on, and settings that are put back."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam.heads.base import TimmModel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has its own training flag again."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def exact_numbers() -> Iterator[None]:
    """No TensorFloat-32, which train.py allows, where numbers are compared; and autocast keeps no weight that it casts.

    One that was cast without a gradient would be used again in a training step, which then leaves the weight without
    its gradient (seen with torch 2.6, 2.7 and 2.8).
    """
    precision, kept = torch.get_float32_matmul_precision(), torch.is_autocast_cache_enabled()
    torch.set_float32_matmul_precision('highest')
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_autocast_cache_enabled(kept)


def meta_copy(model: TimmModel) -> TimmModel:
    """The model on the meta device, without copying its weights."""
    tensors: dict[int, Any] = {}
    for tensor in _tensors(model):
        empty = torch.empty_like(tensor, device='meta')
        tensors[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    copied = copy.deepcopy(model, tensors)
    for module in copied.modules():
        if hasattr(module, '_fast_norm'):  # timm's fast norms ask for autocast, which the meta device does not know
            module._fast_norm = False
    return copied


def full_copy(model: TimmModel) -> TimmModel:
    """A deep copy; of tensors in an autograd graph, which cannot be copied, only the values."""
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in _tensors(model) if not tensor.is_leaf})


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and whatever else modules keep: some have caches, part of an autograd graph."""
    for module in model.modules():
        for value in vars(module).values():
            values = value.values() if isinstance(value, dict) else (value,)
            yield from (tensor for tensor in values if isinstance(tensor, Tensor))
