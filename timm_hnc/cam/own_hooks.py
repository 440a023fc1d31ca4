"""Hooks of a model around which its class maps go: they see the pass, and must not change the values in it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.heads.refusal import otherwise
from timm_hnc.cam.naflex_maps import NaFlexBatch


def same_values(given: Tensor, found: Tensor) -> bool:
    """Whether a tensor is another one, cast to another type or laid out anew at most."""
    if found is given or found.is_meta:
        return True
    if found.shape != given.shape:
        return False
    steps = [torch.finfo(each.dtype).eps for each in (given, found) if each.is_floating_point()]
    return torch.allclose(given.double(), found.double(), rtol=max(steps, default=0.0), atol=1e-7, equal_nan=True)


def show_input(model: nn.Module, x: Any) -> Any:
    """Call the model's forward pre-hooks with images, and return what they make of them.

    Raises:
        ValueError: one changes their values.
    """
    for key, hook in list(model._forward_pre_hooks.items()):
        if key in model._forward_pre_hooks_with_kwargs:
            found = hook(model, (x,), {})
            found = found if found is None else found[0]
        else:
            found = hook(model, (x,))
        x = x if found is None else _as_given(model, x, found, 'the images')
    return x


def show_output(model: nn.Module, x: Tensor | NaFlexBatch, logits: Tensor) -> Tensor:
    """Call the model's forward hooks with images and logits, and return what they make of the logits.

    Raises:
        ValueError: one changes their values.
    """
    for key, hook in list(model._forward_hooks.items()):
        found = hook(model, (x,), *([{}] if key in model._forward_hooks_with_kwargs else []), logits)
        logits = logits if found is None else _as_given(model, logits, found, 'the logits')
    return logits


def _as_given(model: nn.Module, given: Any, found: Any, what: str) -> Any:
    found = found[0] if isinstance(found, tuple) else found
    before, now = tensors_in(given), tensors_in(found)
    if len(before) != len(now) or not all(map(same_values, before, now)):
        raise otherwise(model, f'a hook of its own changes {what}: make that a part of the model, and wrap it anew')
    return found


def watched(layers: Sequence[nn.Module]) -> AbstractContextManager[list[tuple[Tensor, Tensor]]]:
    """Pairs of what hooks of these layers are given and what they leave of it, during the passes inside."""
    hooked = [] if torch.compiler.is_compiling() else [each for each in layers if _has_hooks(each)]
    return _watching(hooked) if hooked else nullcontext([])


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


@contextmanager
def _watching(layers: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    pairs: list[tuple[Tensor, Tensor]] = []
    given: list[Tensor] = []  # a layer runs to its end before the next one begins

    def first(*seen: Any) -> None:
        given[:] = tensors_in(seen[1:])[-1:]

    def last(*seen: Any) -> None:
        pairs.extend(zip(given, tensors_in(seen[1:])[-1:], strict=False))

    handles = [
        handle
        for layer in layers
        for handle in (
            layer.register_forward_pre_hook(first, prepend=True),
            layer.register_forward_pre_hook(last),
            layer.register_forward_hook(first, prepend=True),
            layer.register_forward_hook(last),
        )
    ]
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()
