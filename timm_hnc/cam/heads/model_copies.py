"""Copies of a model to try things on, and settings that are put back."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam.heads.base import TimmModel
from timm_hnc.cam.heads.refusal import Refused
from timm_hnc.errors import first_lines


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
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with _full_precision():
            yield
    finally:
        torch.set_autocast_cache_enabled(kept)


@contextmanager
def _full_precision() -> Iterator[None]:
    parts = _parts_of_their_own()
    before = [part.fp32_precision for part in parts]
    precision = _older_precision()
    try:
        for part in parts if precision is None else parts[-2:]:  # of the others the older settings are
            part.fp32_precision = 'ieee'
        if precision is None:
            yield
        else:
            torch.set_float32_matmul_precision('highest')
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
                yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = 'none'  # what is set for all is in force then
            if part.fp32_precision != value:
                part.fp32_precision = value


def _parts_of_their_own() -> list[Any]:
    """What has a precision of its own; torch 2.7 and 2.8 have none."""
    backends: Any = torch.backends
    if not hasattr(backends, 'fp32_precision'):
        return []
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return [backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _older_precision() -> str | None:
    """torch.get_float32_matmul_precision(); None where torch refuses to mix it with what somebody has set."""
    try:
        _ = torch.backends.cudnn.allow_tf32
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def meta_copy(model: TimmModel) -> TimmModel:
    """The model on the meta device, without copying its weights."""
    tensors: dict[int, Any] = {}
    for tensor in _tensors(model):
        try:
            empty = torch.empty_like(tensor, device='meta')
        except NotImplementedError:  # a quantised one, which is copied
            continue
        tensors[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    copied = _copied(model, tensors)
    for module in copied.modules():
        if hasattr(module, '_fast_norm'):  # timm's fast norms ask for autocast, which the meta device does not know
            module._fast_norm = False
    return copied


def full_copy(model: TimmModel) -> TimmModel:
    """A deep copy; of tensors in an autograd graph, which cannot be copied, only the values."""
    return _copied(model, {id(tensor): tensor.detach() for tensor in _tensors(model) if not tensor.is_leaf})


def _copied(model: nn.Module, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        reason = f'it cannot be copied to be tried out ({first_lines(error, 120)})'
        raise Refused(reason, 'take off what modules and hooks keep beside tensors, and put it back later') from error


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and whatever else modules and their hooks keep: some of it is part of an autograd graph."""
    found = [value for module in model.modules() for value in vars(module).values()]
    seen: set[int] = set()
    while found:
        value = found.pop()
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            owner = getattr(value, '__self__', None) if isinstance(value, MethodType) else None
            if isinstance(value, dict):
                found.extend(value.values())
            elif isinstance(value, (list, tuple)):
                found.extend(value)
            elif owner is not None and id(owner) not in seen and not isinstance(owner, nn.Module):
                seen.add(id(owner))
                found.extend(getattr(owner, '__dict__', {}).values())
