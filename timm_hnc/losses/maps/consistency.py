"""Attention consistency under mirroring (Guo et al., CVPR 2019): what a network sees should move with the image."""

from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.maps.base import MapBatch, MapLoss


class ConsistencyLoss(MapLoss):
    """Mean squared difference of an image's maps, mirrored, and those of the mirror image.

    The mean is over images, all classes and positions. It trains the features alone: the maps are made with the
    classifier's weights as constants, as the authors' code does. Beside cross-entropy of both views with weight 0.6 it
    is `AttentionConsistencyLoss`, which says what else that code does.
    """

    needs: ClassVar[Literal['class_maps', 'two_views']] = 'two_views'
    default_weight: ClassVar[float] = 0.6

    def of_batch(self, batch: MapBatch) -> Tensor:
        """The loss of a batch, a scalar; see `MapLoss.forward`."""
        # the bias is the same in both and falls out
        detached = replace(batch.class_maps, weight=batch.class_maps.weight.detach(), bias=None)
        maps, mirrored = at_least_float32(detached.maps()).chunk(2)
        return (maps.flip(-1) - mirrored).square().mean()
