"""Heads of any classifier: what lies behind a module, followed while the model itself runs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.following.positions import PositionTracker
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.heads.detached_head import Branch, as_probed


@dataclass(frozen=True)
class Place:
    """Where in a model the features are.

    Args:
        module: its name.
        entering: they are what enters the module, in place of what leaves it.
    """

    module: str
    entering: bool = False

    def __str__(self) -> str:
        return f"features_input='{self.module}'" if self.entering else f"features='{self.module}'"

    def hook(self, model: nn.Module, see: Callable[[Tensor], Tensor | None]) -> Any:
        """Show the features to a function, whose tensor takes their place if it returns one; removed by `with`."""
        module = model.get_submodule(self.module)
        thread = threading.get_ident()

        def show(tensors: Any) -> Any:  # the hook is the model's, this pass is not
            return _shown(tensors, see) if threading.get_ident() == thread else None

        if self.entering:
            return module.register_forward_pre_hook(
                lambda _, args, kwargs=None: None if kwargs is None else show((args, kwargs)), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, args, output: show(output))


def _shown(tensors: Any, see: Callable[[Tensor], Tensor | None]) -> Any:
    """Show the first of the tensors; None, or all of them with another in its place."""
    first = next(iter(tensors_in(tensors)), None)
    other = None if first is None else see(first)
    return None if other is None else tree_map(lambda leaf: other if leaf is first else leaf, tensors)


def logits_of(output: Any) -> Any:
    """What a classifier returns, as logits: transformers and some of torchvision have them among other things."""
    return output if isinstance(output, Tensor) else getattr(output, 'logits', None)


def is_of_timm(model: Any) -> bool:
    """Whether a model makes features, and then logits of them, as timm's do."""
    return hasattr(model, 'forward_features') and hasattr(model, 'forward_head')


def whole_pass(model: Any, x: Tensor) -> Any:
    """A model's logits."""
    return model.forward_head(model.forward_features(x)) if is_of_timm(model) else logits_of(model(x))


@dataclass(frozen=True)
class HookedHead:
    """What lies behind the features of a model, with what is not linear detached at its value in the same pass.

    Args:
        kind: as `DetachedHead` has it, 'A' where nothing had to be detached.
        place: of the features.
        branch: where their positions lie.
        num_classes: of the logits.
        input_size: (channels, height, width) of the images that it was probed with.
    """

    kind: str
    place: Place
    branch: Branch
    num_classes: int
    input_size: tuple[int, int, int]
    trainable = True

    def class_maps(self, model: nn.Module, x: Tensor) -> ClassMaps:
        """Logits and maps of images, in one forward pass."""
        return as_probed(hooked_class_maps(model, x, self.place, self.branch)[0], model)


@torch.compiler.disable
def hooked_class_maps(model: nn.Module, x: Tensor, place: Place, branch: Branch) -> tuple[ClassMaps | Lost, set[str]]:
    """Run a model and follow its features; also what lies between them and the logits."""
    tracker, image_size = PositionTracker(), (x.shape[-2], x.shape[-1])

    def start(features: Tensor) -> None:
        tracker.start(features, branch.live(features, image_size))

    with place.hook(model, start), tracker:
        logits = logits_of(model(x))
    return tracker.class_maps(logits), tracker.found
