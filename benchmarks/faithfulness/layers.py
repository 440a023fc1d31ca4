"""Where a network's maps are taken: the tensors that hold their positions, and gradients of logits there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from timm_hnc.cam import CamModel
from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.grids import finest, resize_positions
from timm_hnc.cam.heads.base import Head
from timm_hnc.cam.heads.detached_head import Branch
from timm_hnc.cam.heads.detached_tail import DetachedTail

_DIMS = {'NCHW': (2, 3), 'NHWC': (1, 2), 'NLC': (1,)}


@dataclass(frozen=True)
class Layers:
    """A forward pass that can be differentiated with respect to where the maps are taken.

    Args:
        logits: (B, n).
        values: what gradients are taken of, one tensor a branch.
        places: where the positions of each lie.
    """

    logits: Tensor
    values: tuple[Tensor, ...]
    places: tuple[Live, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """The finest grid of the branches."""
        return finest([place.grid for place in self.places])

    def positions(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like `values` as (L, B, D), without prefix tokens."""
        return [place.positions(tensor)[place.prefix :] for tensor, place in zip(tensors, self.places, strict=True)]

    def gradients(self, scores: Tensor) -> list[Tensor]:
        """(L, B, D) gradients of one score an image, a branch each."""
        return self.positions(torch.autograd.grad(scores.sum(), self.values, retain_graph=True))

    def on_grid(self, shares: Tensor, branch: int) -> Tensor:
        """(L, B) of a branch as (B, h, w) on the finest grid."""
        return resize_positions(shares, self.places[branch].grid, self.grid).T.unflatten(1, self.grid)


@torch.enable_grad()
def layers(cam_model: CamModel, images: Tensor, module: str = '') -> Layers:
    """Run a model and keep what its maps are made of: the features in front of its head, or the tokens of its tail.

    Args:
        cam_model: in evaluation mode.
        images: (B, C, H, W) normalised images.
        module: name of a block at whose entry the tokens are taken instead.
    """
    head = cam_model.head
    if isinstance(head, DetachedTail):
        return _tail_layers(cam_model, images, module or head.module, head.inputs)
    if module:
        (branch,) = _branches(head)
        return _tail_layers(cam_model, images, module, [(0, Branch((1,), branch.prefix, branch.cell))])
    size = (images.shape[-2], images.shape[-1])
    features = cam_model.model.forward_features(images)
    several = isinstance(features, (list, tuple))
    leaves = [each.detach().requires_grad_() for each in (features if several else [features])]
    logits = cam_model.model.forward_head(leaves if several else leaves[0])
    pairs = [(leaf, branch) for leaf, branch in zip(leaves, _branches(cam_model.head), strict=True) if branch]
    places = tuple(branch.live(leaf, size) for leaf, branch in pairs)
    return Layers(logits, tuple(leaf for leaf, _ in pairs), places)


def _branches(head: Any) -> Sequence[Branch | None]:
    if isinstance(head, Head):
        return [Branch(_DIMS[head.layout], head.num_prefix_tokens, head.cell)]
    return head.branches


def _tail_layers(cam_model: CamModel, images: Tensor, module: str, inputs: Sequence[tuple[int, Branch]]) -> Layers:
    found: list[tuple[Tensor, Tensor, Live]] = []

    def enter(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        tensors = tensors_in(args, kwargs)
        for index, branch in inputs:
            leaf = tensors[index].detach().requires_grad_()
            found.append((tensors[index], leaf, branch.live(leaf, (images.shape[-2], images.shape[-1]))))
        leaves = {id(tensor): leaf for tensor, leaf, _ in found}
        return tree_map_only(Tensor, lambda tensor: leaves.get(id(tensor), tensor), (args, kwargs))

    handle = cam_model.model.get_submodule(module).register_forward_pre_hook(enter, with_kwargs=True)
    try:
        logits = cam_model.model(images)
    finally:
        handle.remove()
    return Layers(logits, tuple(leaf for _, leaf, _ in found), tuple(place for *_, place in found))
