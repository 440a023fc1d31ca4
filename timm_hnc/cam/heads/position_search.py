"""Finding where in a model's features, or in its tail, the positions lie."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.grids import cell_of, is_shaped_as, token_grid
from timm_hnc.cam.heads.base import MAX_PREFIX_TOKENS, TimmModel
from timm_hnc.cam.heads.detached_head import Branch
from timm_hnc.cam.heads.detached_tail import DetachedTail, tail_maps
from timm_hnc.cam.heads.hooked_head import is_of_timm, logits_of

BATCH = 2


def branches(model: TimmModel, shapes: Sequence[Sequence[int]], image_size: tuple[int, int]) -> list[Branch]:
    """Where the positions of features lie, by their shapes.

    Raises:
        ValueError: no dimension is that of the channels, or tokens form no grid.
    """
    widths = widths_of(model)
    return [_branch(model, tuple(shape), widths, image_size) for shape in shapes]


def widths_of(model: TimmModel) -> list[int]:
    """How many channels its features may have, as the model says; none where it does not."""
    width = getattr(model, 'num_features', ())
    infos = getattr(model, 'feature_info', None) or []
    channels = [info['num_chs'] for info in infos if isinstance(info, dict) and 'num_chs' in info]
    return [*(width if isinstance(width, (list, tuple)) else [width]), *channels]


def _branch(model: TimmModel, shape: tuple[int, ...], widths: list[int], image_size: tuple[int, int]) -> Branch:
    channels = (1, 3) if len(shape) == 4 else (2, 1)
    found = next((dim for width in widths for dim in channels if len(shape) in (3, 4) and shape[dim] == width), None)
    if found is None and not widths:
        found = _channels_by_shape(shape, image_size)
    if found is None:
        raise ValueError(f'its features of shape {shape} are no map and no row of tokens')
    if len(shape) == 4:
        return Branch((2, 3) if found == 1 else (1, 2))
    if found == 2:
        return token_branch(model, shape[1], image_size)
    try:
        return Branch((2,), cell=cell_of(token_grid(shape[2], image_size), image_size))
    except ValueError:  # states without a place in the image
        return Branch((2,))


def _channels_by_shape(shape: tuple[int, ...], image_size: tuple[int, int]) -> int:
    """The dimension of the channels of a feature map: the one whose other two are shaped as the image is."""
    sides = {1: shape[2:], 3: shape[1:3]} if len(shape) == 4 else {}
    fitting = [dim for dim, grid in sides.items() if is_shaped_as(grid, image_size)]
    if len(fitting) != 1:
        raise ValueError(f'it has no num_features, and the shape {shape} does not say which dimension is its channels')
    return fitting[0]


def token_branch(model: TimmModel, num_tokens: int, image_size: tuple[int, int]) -> Branch:
    """Where the patches lie among tokens: behind as many as the model says, or as few as leave a grid.

    Raises:
        ValueError: no grid behind MAX_PREFIX_TOKENS tokens or fewer.
    """
    told = getattr(model, 'num_prefix_tokens', None)
    for prefix in (*(() if told is None else (told,)), *range(MAX_PREFIX_TOKENS + 1)):
        if prefix < num_tokens:
            with suppress(ValueError):
                return Branch((1,), prefix, cell_of(token_grid(num_tokens - prefix, image_size), image_size))
    raise ValueError(f'{num_tokens} tokens of an image of {image_size[0]} x {image_size[1]} pixels form no grid.')


def find_tail(model: TimmModel, images: Tensor) -> DetachedTail | None:
    """The last block whose tokens reach the logits through an attention (in evaluation mode), None without one."""
    with torch.no_grad():
        calls, features = _calls(model, images)
        count = len(features) if isinstance(features, (list, tuple)) else 1
        for name, tensors in reversed(calls):
            inputs = _token_inputs(model, tensors, images)
            if len(inputs) < count:
                continue
            maps, tracker = tail_maps(model, images, DetachedTail('G', name, inputs))
            if isinstance(maps, Lost):
                continue
            reached = tuple(one for one, seen in zip(inputs, maps.reached(), strict=True) if seen)
            if tracker.attended and len(reached) >= count:
                return DetachedTail('H' if count > 1 or tracker.found_maximum else 'G', name, reached)
    return None


def _calls(model: TimmModel, images: Tensor) -> tuple[list[tuple[str, list[Tensor]]], Any]:
    """The numbered modules (blocks, stages) in the order in which they are entered, and what enters them."""
    calls: list[tuple[str, list[Tensor]]] = []

    def enter(name: str) -> Any:
        return lambda _, args, kwargs: calls.append((name, tensors_in(args, kwargs)))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name.rsplit('.', 1)[-1].isdigit():
                hooks.enter_context(module.register_forward_pre_hook(enter(name), with_kwargs=True))
        return calls, model.forward_features(images) if is_of_timm(model) else logits_of(model(images))


def _token_inputs(model: TimmModel, tensors: list[Tensor], images: Tensor) -> tuple[tuple[int, Branch], ...]:
    image_size = (images.shape[-2], images.shape[-1])
    inputs = []
    for index, tensor in enumerate(tensors):
        if tensor.ndim != 3 or len(tensor) != len(images):
            continue
        if is_of_timm(model) and tensor.shape[2] not in widths_of(model):
            continue
        with suppress(ValueError):
            branch = token_branch(model, tensor.shape[1], image_size)
            if tensor.shape[1] - branch.prefix > 1:
                inputs.append((index, branch))
    return tuple(inputs)
