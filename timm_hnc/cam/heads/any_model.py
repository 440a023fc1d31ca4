"""Finding the features of a classifier that is none of timm's: the last of its tensors that still have positions."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.grids import Grid, cell_of, is_shaped_as, token_grid
from timm_hnc.cam.heads.base import MAX_PREFIX_TOKENS, agree
from timm_hnc.cam.heads.detached_head import KINDS, Branch
from timm_hnc.cam.heads.detached_tail import DetachedTail
from timm_hnc.cam.heads.hooked_head import HookedHead, Place, hooked_class_maps, logits_of
from timm_hnc.cam.heads.model_copies import full_copy
from timm_hnc.cam.heads.position_order import in_order
from timm_hnc.cam.heads.position_search import BATCH, find_tail, token_branch
from timm_hnc.cam.heads.refusal import ERRORS, Refused
from timm_hnc.errors import first_lines

_SIZES = ((224, 288), (224, 224), (32, 32))  # tried in this order; unequal sides tell rows from columns
_MOST_TRIED = 16
_CLASSES = 'make it with num_classes=N'
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
    if any(parameter.is_meta for parameter in model.parameters()):
        raise Refused('it is on the meta device, and has to be run', 'make it on the CPU')
    if getattr(model, 'num_classes', None) == 0:
        raise Refused('it has no classifier', _CLASSES)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise Refused('some of its weights are made with its first batch', 'run it once')
    copied = _shaken(full_copy(model)).eval()
    images, logits = _run(copied, image_size)
    input_size = images.shape[1], *(image_size or _told_size(model) or (images.shape[-2], images.shape[-2]))
    outputs = _outputs(copied, images)
    probe = _Probe(copied, images, logits, input_size, _grids(outputs))
    if place is not None:
        return probe.head_at(place)
    refused = None
    with_positions = (place for place, features in _candidates(outputs) if probe.branches(features, place))
    for candidate in islice(with_positions, _MOST_TRIED):
        try:
            return probe.head_at(candidate)
        except Refused as error:
            refused = refused or error
    if (tail := probe.tail()) is not None:
        return tail
    raise refused or Refused('none of its modules returns features with positions', _ELSEWHERE)


@torch.no_grad()
def _shaken(model: nn.Module) -> nn.Module:
    """With other values where all of a parameter's are alike: a classifier of zeros has no logits to compare."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and (parameter == parameter.flatten()[:1]).all():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, device='cpu').to(parameter))
    return model


def _run(model: nn.Module, image_size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Two random images of a size that the model takes, and their logits."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise Refused('it has no weights', 'use an image classifier')
    told = image_size or _told_size(model)
    reason = ''
    for size, channels in product((told,) if told else _SIZES, _channels(model)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, channels, *size, generator=generator, device='cpu').to(parameter)
        try:
            with torch.no_grad():
                logits = logits_of(model(images))
        except ERRORS as error:
            reason = reason or f'it does not run on images of {size[0]} x {size[1]} ({first_lines(error, 120)})'
            continue
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != BATCH:
            raise Refused('it returns no (batch, classes) logits', 'wrap it in a module that returns them')
        if logits.shape[1] == 0:
            raise Refused('it has no classifier', _CLASSES)
        return images, logits
    raise Refused(reason, 'say how large its images are with image_size=(height, width)')


def _channels(model: nn.Module) -> list[int]:
    """Of its images, likeliest first."""
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    return list(dict.fromkeys((first, 3, 1)))


def _told_size(model: nn.Module) -> tuple[int, int] | None:
    """The size of images that a model or its config names, as those of fixed size do."""
    told = getattr(model, 'image_size', None) or getattr(getattr(model, 'config', None), 'image_size', None)
    told = told or getattr(getattr(model, 'patch_embed', None), 'img_size', None)  # of timm's
    if isinstance(told, int):
        return told, told
    return tuple(told) if isinstance(told, (list, tuple)) and len(told) == 2 else None


def _outputs(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """Names of the modules that return feature maps or tokens, in the order in which they do, and these."""
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
    return outputs


def _grids(outputs: list[tuple[str, Tensor]]) -> set[Grid]:
    """Rows and columns of all feature maps."""
    shapes = [tuple(tensor.shape) for _, tensor in outputs if tensor.ndim == 4]
    return {(shape[2], shape[3]) for shape in shapes} | {(shape[1], shape[2]) for shape in shapes}


def _candidates(outputs: list[tuple[str, Tensor]]) -> Iterator[tuple[Place, Tensor]]:
    """Where positions may be, the last place first; of several modules with one output the outermost first.

    An outer one may return it when the logits are made already: then the one that made it is tried.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in reversed(outputs):
        names.setdefault(id(tensor), []).append(name)
    tensors = {id(tensor): tensor for _, tensor in outputs}
    for each, (outer, *inner) in names.items():
        yield Place(outer), tensors[each]
        if inner:
            yield Place(inner[-1]), tensors[each]


@dataclass(frozen=True)
class _Probe:
    """What is known of a model when a place is tried.

    Args:
        model: a copy, in evaluation mode.
        images: two of them.
        logits: of the images.
        input_size: (channels, height, width) of the images that the model wants.
        grids: of the feature maps that its modules return.
    """

    model: nn.Module
    images: Tensor
    logits: Tensor
    input_size: tuple[int, int, int]
    grids: set[Grid]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    def head_at(self, place: Place) -> HookedHead:
        """The head behind a place, if every logit is the mean of a map of what is there and of nothing else."""
        features = self._features(place, self.images)
        if features.ndim and len(features) != BATCH:
            shape = tuple(features.shape)
            raise Refused(
                f'what is at {place} are {len(features)} rows of {BATCH} images (its shape is {shape})', _ELSEWHERE
            )
        refused = None
        for branch in self.branches(features, place):
            try:
                return self._head_behind(features, place, branch)
            except Refused as error:
                refused = refused or error
        raise refused or Refused(
            f'what is at {place} has no positions (its shape is {tuple(features.shape)})', _ELSEWHERE
        )

    def _head_behind(self, features: Tensor, place: Place, branch: Branch) -> HookedHead:
        self._check_order(place, branch)
        maps, found = self._followed(place, branch)
        with torch.no_grad():
            if not (agree(maps.logits, self.logits) and agree(self.logits, maps.maps(None).mean((2, 3)))):
                raise Refused(f'its logits are not the means of its maps behind {place}')
        if not agree(self._logits_with(place, features.flip(0)), self.logits.flip(0)):  # of the other image
            raise Refused(f'its logits depend on more than what is behind {place}', _ELSEWHERE)
        if branch.prefix and 'attention' not in found:
            mixed = torch.cat([features[:, : branch.prefix].flip(0), features[:, branch.prefix :]], 1)
            if not agree(self._logits_with(place, mixed), self.logits):
                text = f'class tokens, which have no place in the image, enter its logits behind {place}'
                raise Refused(text, _IN_FRONT)
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]  # running statistics among them
        try:
            self.model.train()
            self._followed(place, branch)
        finally:
            self.model.eval()
            for buffer, before in buffers:
                buffer.copy_(before)
        kind = next((kind for part, kind in KINDS.items() if part in found), 'A')
        return HookedHead(kind, place, branch, self.logits.shape[1], self.input_size)

    def branches(self, features: Tensor, place: Place) -> list[Branch]:
        """Where the positions of features may lie, the likeliest first; nowhere if they have none."""
        found: list[Branch | None] = []
        if features.ndim == 4:
            found = [Branch(dims) for dims in _spatial(tuple(features.shape), self.image_size)]
        elif features.ndim == 3:
            found = [self._tokens(features.shape[1], place)]
        return [each for each in found if each and each.live(features, self.image_size).num_positions > 1]

    def _tokens(self, count: int, place: Place) -> Branch | None:
        """Tokens are positions where they are as many as a feature map has, or become more with a larger image."""
        for prefix in range(MAX_PREFIX_TOKENS + 1):
            with suppress(ValueError):
                grid = token_grid(count - prefix, self.image_size) if prefix < count else (0, 0)
                if grid in self.grids:
                    fixed = grid if self._is_fixed(count, place) else None
                    return Branch((1,), prefix, cell_of(grid, self.image_size), fixed)
        with suppress(ValueError, Refused):
            height, width = self.image_size
            larger = torch.zeros(BATCH, self.images.shape[1], 2 * height, 2 * width).to(self.images)
            if self._features(place, larger).shape[1] > count:
                return token_branch(self.model, count, self.image_size)
        return None

    def _is_fixed(self, count: int, place: Place) -> bool:
        """Whether the tokens of smaller images are as many, as those of a model are that resizes its images."""
        smaller = self.images[..., : self.image_size[0] // 2, : self.image_size[1] // 2]
        try:
            return self._features(place, smaller).shape[1] == count
        except Refused:  # it takes no others
            return False

    def _check_order(self, place: Place, branch: Branch) -> None:
        if not in_order(lambda images: self._features(place, images), self.images[:1], branch):
            raise Refused(f'the positions at {place} are not in the order of the image', _ELSEWHERE)

    def _followed(self, place: Place, branch: Branch) -> tuple[ClassMaps, set[str]]:
        mode = ' in training' if self.model.training else ''
        try:
            with torch.enable_grad():
                maps, found = hooked_class_maps(self.model, self.images, place, branch)
        except ERRORS as error:
            raise Refused(f'it cannot be followed behind {place}{mode} ({first_lines(error, 120)})') from error
        if isinstance(maps, Lost):
            raise Refused(f'it cannot be followed behind {place}{mode} ({maps.reason})')
        return maps, found

    @torch.no_grad()
    def _logits_with(self, place: Place, features: Tensor) -> Tensor:
        """Logits with other features in their place."""
        try:
            with place.hook(self.model, lambda _: features):
                return logits_of(self.model(self.images))
        except ERRORS as error:
            raise Refused(f'it does not run with other features at {place} ({first_lines(error, 120)})') from error

    def _features(self, place: Place, images: Tensor) -> Tensor:
        seen: list[Any] = []
        try:
            # what comes behind may change them in place
            hook = place.hook(self.model, lambda features: seen.append(features.clone()))
        except AttributeError as error:
            names = ', '.join(name for name, _ in self.model.named_children())
            raise Refused(f'it has no module {place}', f'its modules are {names} and what is in them') from error
        try:
            with torch.no_grad(), hook:
                self.model(images)
        except ERRORS as error:
            raise Refused(f'it does not run ({first_lines(error, 120)})') from error
        if not seen:
            raise Refused(f'nothing passes through {place}', _ELSEWHERE)
        return seen[-1]

    def tail(self) -> DetachedTail | None:
        """Maps for pictures, where the logits see positions only through the last attention."""
        with suppress(Refused, *ERRORS):
            tail = find_tail(self.model, self.images)
            if tail is not None:
                self._check_order(Place(tail.module, entering=True), tail.inputs[0][1])
                return replace(tail, num_classes=self.logits.shape[1], input_size=self.input_size)
        return None


def _spatial(shape: tuple[int, ...], image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of a feature map: the last two sizes, unless the first two alone are shaped as the image is.

    Both may be: with as many channels as columns, on square images.
    """
    first, last = (is_shaped_as(grid, image_size) for grid in (shape[1:3], shape[2:4]))
    return ([(2, 3)] if last or not first else []) + ([(1, 2)] if first else [])
