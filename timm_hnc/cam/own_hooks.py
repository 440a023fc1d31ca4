"""Hooks of a model around which its class maps go: they see the pass, and must not change the values in it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.heads.refusal import changed_since_probe
from timm_hnc.cam.naflex_maps import NaFlexBatch


def same_values(given: Tensor, found: Tensor) -> bool:
    """Whether a tensor is another one, cast to another type or laid out anew at most."""
    if found is given or found.is_meta:
        return True
    if found.shape != given.shape or found.device != given.device:
        return False
    steps = [torch.finfo(each.dtype).eps for each in (given, found) if each.is_floating_point()]
    wide = torch.float64 if torch.float64 in (given.dtype, found.dtype) else torch.float32
    return torch.allclose(given.to(wide), found.to(wide), rtol=max(steps, default=0.0), atol=1e-7, equal_nan=True)


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
        found = found[0] if isinstance(found, tuple) and len(found) == 1 else found
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
    before, now = tensors_in(given), tensors_in(found)
    if isinstance(found, tuple) or len(before) != len(now) or not all(map(same_values, before, now)):
        raise changed_since_probe(
            model, f'a hook of its own changes {what}: make that a part of the model, and wrap it anew'
        )
    return found


def watched(layers: Sequence[nn.Module], pairs: list[tuple[Tensor, Tensor]]) -> AbstractContextManager[None]:
    """Note what hooks of these layers are given, and what they leave of it, in the passes inside; not while compiling.

    Args:
        layers: some may be part of others.
        pairs: receives (given, left) of every input and output of a layer that has hooks.
    """
    hooked = [] if torch.compiler.is_compiling() else [each for each in layers if _has_hooks(each)]
    return _watching(hooked, pairs) if hooked else nullcontext()


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


@contextmanager
def _watching(layers: Sequence[nn.Module], pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    given: dict[nn.Module, list[Tensor]] = {}
    thread = threading.get_ident()

    def first(layer: nn.Module, *seen: Any) -> None:
        if threading.get_ident() == thread:  # the hook is the layer's, this pass is not
            given[layer] = [each.detach().clone() for each in tensors_in(seen)[-1:]]  # a hook may write into it

    def last(layer: nn.Module, *seen: Any) -> None:
        if threading.get_ident() == thread:
            pairs.extend(zip(given[layer], tensors_in(seen)[-1:], strict=False))

    with ExitStack() as handles:
        for layer in layers:
            for hook in (first, last):
                in_front = hook is first
                handles.enter_context(layer.register_forward_pre_hook(hook, prepend=in_front))
                handles.enter_context(layer.register_forward_hook(hook, prepend=in_front))
        yield
