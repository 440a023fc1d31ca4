"""The maps that are compared: (CamModel, images, classes (B, k)) -> (B, k, h, w)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from faithfulness.alternatives import ALTERNATIVES
from faithfulness.layers import Layers, layers
from timm_hnc.cam import CamModel

Maps = Callable[[CamModel, Tensor, Tensor], Tensor]


@torch.no_grad()
def ours(cam_model: CamModel, images: Tensor, classes: Tensor) -> Tensor:
    """Class maps of `CamModel`."""
    return cam_model.class_maps(images).maps(classes).float()


def gradcam(cam_model: CamModel, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the layer that our maps are taken of.

    Of several branches, each is scaled to its maximum and their mean is taken, as pytorch-grad-cam does with layers.
    """
    found = layers(cam_model, images)
    return torch.stack([_gradcam(found, column) for column in classes.unbind(1)], 1)


def _gradcam(found: Layers, classes: Tensor) -> Tensor:
    scores = found.logits.gather(1, classes[:, None])
    values = found.positions([value.detach() for value in found.values])
    maps = []
    for branch, (value, gradient) in enumerate(zip(values, found.gradients(scores), strict=True)):
        weighted = (value * gradient.mean(0)).sum(-1).relu()
        maps.append(found.on_grid(weighted, branch))
    if len(maps) == 1:
        return maps[0]
    return torch.stack([each / each.amax((1, 2), keepdim=True).clamp(min=1e-12) for each in maps]).mean(0)


class Random:
    """Independent values on the grid of our maps: what is left of a figure when a map knows nothing."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, cam_model: CamModel, images: Tensor, classes: Tensor) -> Tensor:
        """Maps (B, k, h, w)."""
        with torch.no_grad():
            grid = cam_model.class_maps(images[:1]).grid
        return torch.rand(*classes.shape, *grid, generator=self._generator).to(images.device)


MAPS: dict[str, Callable[[], Maps]] = {
    'ours': lambda: ours,
    'gradcam': lambda: gradcam,
    'random': Random,
    **{name: (lambda maps=maps: maps) for name, maps in ALTERNATIVES.items()},
}


def chosen_maps(names: Sequence[str]) -> dict[str, Maps]:
    """Maps by name, in the order of the names; random ones begin anew."""
    return {name: MAPS[name]() for name in names}
