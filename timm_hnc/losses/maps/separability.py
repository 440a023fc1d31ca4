"""Attention separability (ICASC, Wang et al., ICCV 2019): the maps of two classes should lie in different places."""

from typing import ClassVar

import torch
from torch import Tensor

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import mean_over_images
from timm_hnc.losses.maps.base import MOST_PRESENT, MapBatch, MapLoss


class SeparabilityLoss(MapLoss):
    r"""Overlap of a present class's map with that of the most confusing absent class, between 0 and 1.

    .. math::
        2 \sum_{i,j} \min(A_t, A_c)(i, j) \Big/ \sum_{i,j} (A_t + A_c)(i, j)

    with :math:`A = \max(M, 0)` of the present class t and of c, the absent class with the highest logit: of one map
    twice it is 1, of maps that share no position 0, as it is where both have no positive part. Of several present
    classes it is the mean; an image without an absent class adds 0. The gradient flows through both maps.

    ICASC has the term for GradCAM of the last layer and of one before it, counts the overlap inside a soft mask of the
    present class alone, and adds a term between the two layers. Ours are the exact maps of the last layer.
    """

    needs_one_shape: ClassVar[bool] = False

    def of_batch(self, batch: MapBatch) -> Tensor:
        """The loss of a batch, a scalar; see `MapLoss.forward`."""
        class_maps, target, target_floor, *_ = batch
        present, is_present = class_maps.topk_positives(target, MOST_PRESENT, target_floor)
        absent, is_absent = class_maps.topk_negatives(target, 1, target_floor)
        maps = at_least_float32(class_maps.scores(torch.cat([present, absent], 1))).relu()
        own, other = maps[:, :-1], maps[:, -1:]
        overlap, both = torch.minimum(own, other).sum(-1), (own + other).sum(-1)
        shares = 2 * overlap / both.masked_fill(both == 0, 1.0)
        return mean_over_images(shares, is_present & is_absent)
