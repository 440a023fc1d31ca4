"""Finding the features of a classifier that is none of timm's: the last of its tensors that still have positions."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.heads.detached_head import KINDS, Branch
from timm_hnc.cam.heads.detached_tail import DetachedTail
from timm_hnc.cam.heads.hooked_head import HookedHead, Place, hooked_class_maps, logits_of
from timm_hnc.cam.heads.model_copies import full_copy
from timm_hnc.cam.heads.plain import agree
from timm_hnc.cam.heads.position_search import BATCH, find_tail, token_branch
from timm_hnc.cam.heads.refusal import ERRORS, Refused
from timm_hnc.errors import first_lines

_SIZES = ((224, 288), (224, 224), (32, 32))  # tried in this order; unequal sides tell rows from columns
_MOST_TRIED = 16
_IN_FRONT = "name the block in front of the last attention with features='...'"
_ELSEWHERE = "name the module behind which they are with features='...'"


def find_hooked_head(
    model: nn.Module, place: Place | None, image_size: tuple[int, int] | None
) -> HookedHead | DetachedTail:
    """The head of any classifier.

    Args:
        model: nothing of it is changed; a copy is run.
        place: of its features; looked for if None.
        image_size: (height, width) of its images; what its config says, or tried out, if None.

    Raises:
        Refused: it has no exact class maps there.
    """
    copied = _shaken(full_copy(model)).eval()
    images, logits = _run(copied, image_size)
    if place is not None:
        return _head_at(copied, place, images, logits)
    refused, tried = None, list[Place]()
    for candidate, features in _candidates(copied, images):
        with suppress(Refused):
            _branch(copied, features, (images.shape[-2], images.shape[-1]), candidate)
            tried.append(candidate)
    for candidate in tried[:_MOST_TRIED]:
        try:
            return _head_at(copied, candidate, images, logits)
        except Refused as error:
            refused = refused or error
    if (tail := _tail(copied, images, logits)) is not None:
        return tail
    raise refused or Refused('none of its modules returns features with positions', _ELSEWHERE)


@torch.no_grad()
def _shaken(model: nn.Module) -> nn.Module:
    """With other values where all of a parameter's are alike: a classifier of zeros has no logits to compare."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter == parameter.flatten()[:1]).all():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def _run(model: nn.Module, image_size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Two random images of a size that the model takes, and their logits."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise Refused('it has no weights', 'use an image classifier')
    channels = _channels(model)
    told = image_size or _told_size(model)
    reason = ''
    for size in (told,) if told else _SIZES:
        images = torch.randn(BATCH, channels, *size, generator=torch.Generator().manual_seed(0)).to(parameter)
        try:
            with torch.no_grad():
                logits = logits_of(model(images))
        except ERRORS as error:
            reason = reason or f'it does not run on images of {size[0]} x {size[1]} ({first_lines(error, 120)})'
            continue
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != BATCH:
            raise Refused('it returns no (batch, classes) logits', 'wrap it in a module that returns them')
        return images, logits
    raise Refused(reason, 'say how large its images are with image_size=(height, width)')


def _channels(model: nn.Module) -> int:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _told_size(model: nn.Module) -> tuple[int, int] | None:
    """The size of images that a model or its config names, as those of fixed size do."""
    told = getattr(model, 'image_size', None) or getattr(getattr(model, 'config', None), 'image_size', None)
    if isinstance(told, int):
        return told, told
    return tuple(told) if isinstance(told, (list, tuple)) and len(told) == 2 else None


def _candidates(model: nn.Module, images: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """Modules whose output may have positions, the last one first; of several with one output the outermost first.

    An outer one may return it when the logits are made already: then the one that made it is tried.
    """
    outputs: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            for tensor in tensors_in(output)[:1]:
                if tensor.ndim in (3, 4) and len(tensor) == len(images):
                    outputs.append((name, tensor))

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(note(name)))
        model(images)
    names: dict[int, list[str]] = {}
    for name, tensor in reversed(outputs):
        names.setdefault(id(tensor), []).append(name)
    tensors = {id(tensor): tensor for _, tensor in outputs}
    for each, (outer, *inner) in names.items():
        yield Place(outer), tensors[each]
        if inner:
            yield Place(inner[-1]), tensors[each]


def _head_at(model: nn.Module, place: Place, images: Tensor, logits: Tensor) -> HookedHead:
    """The head behind a place, if every logit is the mean of a map of what is there and of nothing else."""
    features = _features(model, place, images)
    branch = _branch(model, features, (images.shape[-2], images.shape[-1]), place)
    maps, found = _followed(model, place, branch, images)
    with torch.no_grad():
        if not (agree(maps.logits, logits) and agree(logits, maps.maps(None).mean((2, 3)))):
            raise Refused(f'its logits are not the means of its maps behind {place}')
    if not agree(_logits_with(model, place, images, features.flip(0)), logits.flip(0)):  # of the other image
        raise Refused(f'its logits depend on more than what is behind {place}', _ELSEWHERE)
    if branch.prefix and 'attention' not in found:
        mixed = torch.cat([features[:, : branch.prefix].flip(0), features[:, branch.prefix :]], 1)
        if not agree(_logits_with(model, place, images, mixed), logits):
            raise Refused(f'class tokens, which have no place in the image, enter its logits behind {place}', _IN_FRONT)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running statistics among them
    try:
        _followed(model.train(), place, branch, images)
    finally:
        model.eval()
        for buffer, before in buffers:
            buffer.copy_(before)
    kind = next((kind for part, kind in KINDS.items() if part in found), 'A')
    channels, height, width = images.shape[1:]
    return HookedHead(kind, place, branch, logits.shape[1], (channels, height, width))


@torch.no_grad()
def _logits_with(model: nn.Module, place: Place, images: Tensor, features: Tensor) -> Tensor:
    """Logits with other features in their place."""
    try:
        with place.hook(model, lambda _: features):
            return logits_of(model(images))
    except ERRORS as error:
        raise Refused(f'it does not run with other features at {place} ({first_lines(error, 120)})') from error


def _followed(model: nn.Module, place: Place, branch: Branch, images: Tensor) -> tuple[ClassMaps, set[str]]:
    mode = ' in training' if model.training else ''
    try:
        with torch.enable_grad():
            maps, found = hooked_class_maps(model, images, place, branch)
    except ERRORS as error:
        raise Refused(f'it cannot be followed behind {place}{mode} ({first_lines(error, 120)})') from error
    if isinstance(maps, Lost):
        raise Refused(f'it cannot be followed behind {place}{mode} ({maps.reason})')
    return maps, found


def _tail(model: nn.Module, images: Tensor, logits: Tensor) -> DetachedTail | None:
    """Maps for pictures, where the logits see positions only through the last attention."""
    channels, height, width = images.shape[1:]
    with suppress(*ERRORS):
        tail = find_tail(model, images)
        return tail and replace(tail, num_classes=logits.shape[1], input_size=(channels, height, width))
    return None


def _features(model: nn.Module, place: Place, images: Tensor) -> Tensor:
    seen: list[Any] = []
    try:
        with torch.no_grad(), place.hook(model, seen.append):
            model(images)
    except AttributeError as error:
        names = [name for name, _ in model.named_children()]
        raise Refused(f'it has no module {place}', f'its modules are {", ".join(names)} and what is in them') from error
    if not seen or not isinstance(seen[-1], Tensor):
        raise Refused(f'nothing passes through {place}' if not seen else f'no tensor is at {place}', _ELSEWHERE)
    return seen[-1]


def _branch(model: nn.Module, features: Tensor, image_size: tuple[int, int], place: Place) -> Branch:
    shape = tuple(features.shape)
    found = None
    if len(shape) == 4:
        found = Branch(_spatial(shape, image_size))
    elif len(shape) == 3:
        with suppress(ValueError):
            found = token_branch(model, shape[1], image_size)
    if found is None or found.live(features, image_size).num_positions < 2:
        raise Refused(f'what is at {place} has no positions (its shape is {shape})', _ELSEWHERE)
    return found


def _spatial(shape: tuple[int, ...], image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a feature map: the last two sizes, unless only the first two are shaped as the image is."""
    (height, width), limit = image_size, max(image_size)
    first, last = (abs(h * width - w * height) < limit for h, w in (shape[1:3], shape[2:4]))
    return (1, 2) if first and not last else (2, 3)
