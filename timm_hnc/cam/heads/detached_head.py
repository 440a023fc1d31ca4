"""Heads with norms, hidden layers, activations or attention: maps by detaching what is not linear (kinds B to H)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.positions import PositionTracker
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.grids import Cell, Grid, token_grid
from timm_hnc.cam.heads.base import TimmModel
from timm_hnc.cam.heads.refusal import changed_since_probe

Maps = TypeVar('Maps')
# the kind is the first of these that the head has
KINDS = {'attention': 'F', 'convolution': 'E', 'gate': 'D', 'norm': 'C', 'batch norm': 'B', 'hidden layer': 'D'}


@dataclass(frozen=True)
class Branch:
    """Where the positions of one of the features lie.

    Args:
        dims: the dimensions that run over positions.
        prefix: tokens in front of the positions.
        cell: (height, width) of a cell in pixels, for tokens.
        grid: (h, w), for tokens that are as many whatever the size of the image.
    """

    dims: tuple[int, ...]
    prefix: int = 0
    cell: Cell | None = None
    grid: Grid | None = None

    def live(self, features: Tensor, image_size: tuple[int, int]) -> Live:
        """The positions of these features.

        Raises:
            ValueError: tokens form no grid.
        """
        sizes = [features.shape[dim] for dim in self.dims]
        if self.grid is not None and sizes[0] - self.prefix != self.grid[0] * self.grid[1]:
            raise ValueError(f'{sizes[0]} tokens, where there were {self.grid[0]} x {self.grid[1]}.')
        of_tokens = len(sizes) == 1 and (self.grid or token_grid(sizes[0] - self.prefix, image_size, self.cell))
        grid = of_tokens or tuple(sizes)
        return Live(self.dims, grid, self.prefix)  # type: ignore[arg-type]  # two sizes


@dataclass(frozen=True)
class DetachedHead:
    """A head whose non-linear parts are detached at the values that they take in its own forward pass.

    Args:
        kind: 'B' batch norm, 'C' other norms, 'D' activations, 'E' convolutions in front of the pool, 'F' attention,
            'H' several branches.
        branches: of the features, in their order; None for features that have no place in the image.
    """

    kind: str
    branches: tuple[Branch | None, ...]
    trainable = True

    def class_maps(self, model: TimmModel, x: Tensor) -> ClassMaps:
        """Logits and maps of images, in one forward pass."""
        features = model.forward_features(x)
        maps, _ = detached_class_maps(model, features, self.branches, (x.shape[-2], x.shape[-1]))
        return as_probed(maps, model)


def as_probed(maps: Maps | Lost, model: nn.Module) -> Maps:
    """The maps.

    Raises:
        ValueError: this pass did something else than the one that was probed.
    """
    if isinstance(maps, Lost):
        raise changed_since_probe(model, maps.reason)
    return maps


def followed_calls(
    run: Callable[[], Tensor], features: Any, branches: Sequence[Branch | None], image_size: tuple[int, int]
) -> list[str]:
    """Names of the functions that `run` calls on what comes of the features, in order."""
    tracker = _tracker(features, branches, image_size)
    with tracker:
        run()
    tracker.forget()
    return tracker.calls


def _tracker(features: Any, branches: Sequence[Branch | None], image_size: tuple[int, int]) -> PositionTracker:
    tracker = PositionTracker()
    each = features if isinstance(features, (list, tuple)) else [features]
    for tensor, branch in zip(each, branches, strict=True):
        tracker.start(tensor, None if branch is None else branch.live(tensor, image_size))
    return tracker


@torch.compiler.disable
def detached_class_maps(
    model: TimmModel, features: Any, branches: Sequence[Branch | None], image_size: tuple[int, int]
) -> tuple[ClassMaps | Lost, set[str]]:
    """Run a head and follow its features; also what lies between features and logits."""
    tracker = _tracker(features, branches, image_size)
    with tracker:
        logits = model.forward_head(features)
    return tracker.class_maps(logits), tracker.found
