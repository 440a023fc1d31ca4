"""Hooks of a timm model itself, around which its class maps go: they see the pass, and must not change it."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.heads.base import otherwise
from timm_hnc.cam.naflex_maps import NaFlexBatch


def show_input(model: nn.Module, x: Tensor | NaFlexBatch) -> None:
    """Call the model's forward pre-hooks with images.

    Raises:
        ValueError: one changes them, or the model's forward() was replaced.
    """
    if 'forward' in vars(model):
        raise otherwise(model, 'its forward() was replaced: what should change or run around it belongs to CamModel')
    _call(model, model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs, (x,), x, 'the images')


def show_output(model: nn.Module, x: Tensor | NaFlexBatch, logits: Tensor) -> None:
    """Call the model's forward hooks with images and logits.

    Raises:
        ValueError: one changes the logits.
    """
    _call(model, model._forward_hooks, model._forward_hooks_with_kwargs, (x,), logits, 'the logits', logits)


def _call(
    model: nn.Module,
    hooks: Mapping[int, Callable[..., Any]],
    with_kwargs: Mapping[int, bool],
    given: tuple[Any, ...],
    unchanged: Any,
    what: str,
    *output: Tensor,
) -> None:
    for key, hook in list(hooks.items()):
        found = hook(model, given, *([{}] if key in with_kwargs else []), *output)
        if found is not None and [*map(id, tensors_in(found))] != [*map(id, tensors_in(unchanged))]:
            raise otherwise(model, f'a hook of its own changes {what}: register it with the CamModel')
