"""What every loss in this folder declares, so that tasks and train.py can use it without knowing it."""

from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.object_masks import ObjectMasks

MOST_PRESENT = 10
"""Of more present classes of an image than that, a loss looks at those with the highest logits."""


class MapBatch(NamedTuple):
    """What a loss may look at; the arguments of `MapLoss.forward`."""

    class_maps: ClassMaps
    target: Tensor
    target_floor: float
    images: Tensor | None
    masks: ObjectMasks | None


class MapLoss(nn.Module):
    """A loss on class maps, beside a criterion: the mean over the images of a batch.

    A subclass declares its needs and writes `of_batch`:

    - `needs = 'class_maps'`: of the batch;
    - `needs = 'two_views'`: of the batch and behind it its mirror images, 2 * B in all.

    The result is a scalar in float32 or float64, whatever the type of the maps.
    """

    needs: ClassVar[Literal['class_maps', 'two_views']] = 'class_maps'
    needs_masks: ClassVar[bool] = False
    """It looks at where the objects are."""
    needs_one_shape: ClassVar[bool] = True
    """It compares maps on one grid, and cannot train on NaFlex batches."""
    needs_several_cells: ClassVar[bool] = False
    """It looks at where a map is high alone, and teaches nothing on maps of a single cell."""
    default_weight: ClassVar[float] = 1.0
    """The weight beside the criterion where nobody gives one."""

    def forward(
        self,
        class_maps: ClassMaps,
        target: Tensor,
        target_floor: float = 0.0,
        images: Tensor | None = None,
        masks: ObjectMasks | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            class_maps: of all images.
            target: of all images, (N,) class indices or (N, n) values, one a class.
            target_floor: the value that smoothing gives to absent classes; a class is present above it.
            images: all images, (N, C, H, W), for a loss that needs them.
            masks: where their objects are, for a loss that needs it.

        Raises:
            TypeError: images or masks are not there for a loss that needs them.
            ValueError: a gradient is wanted of maps that have none.
        """
        class_maps.check_gradient()
        return self.of_batch(MapBatch(class_maps, target, target_floor, images, masks))

    def of_batch(self, batch: MapBatch) -> Tensor:
        """What `forward` returns."""
        raise NotImplementedError
