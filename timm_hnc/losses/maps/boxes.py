"""Losses that want the map of a present class on its object: for images whose objects have boxes or masks."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import mean_over_images
from timm_hnc.losses.maps.base import MapBatch, MapLoss

_ROUNDING = 1e-3  # share of a cell


class BoxLoss(MapLoss):
    """The mean over images of the mean over present classes that have boxes; an image without any adds 0.

    A subclass says what a map costs: `of_maps`.
    """

    needs_masks: ClassVar[bool] = True

    def of_batch(self, batch: MapBatch) -> Tensor:
        """The loss of a batch, a scalar; see `MapLoss.forward`."""
        class_maps, masks = batch.class_maps, batch.masks
        if masks is None:
            raise TypeError('a loss with boxes needs the masks of their objects.')
        positive = at_least_float32(class_maps.maps(masks.classes.clamp(min=0))).relu()
        return mean_over_images(self.of_maps(positive, masks.on(class_maps.grid).to(positive.dtype)), masks.valid)

    def of_maps(self, positive: Tensor, cover: Tensor) -> Tensor:
        """(B, P) losses.

        Args:
            positive: (B, P, h, w) positive parts of maps.
            cover: (B, P, h, w) share of each cell that lies in a box of the class.
        """
        raise NotImplementedError


class EnergyLoss(BoxLoss):
    r"""1 - the share of a map's positive part that lies inside the boxes of its class (Rao et al., ICCV 2023).

    .. math::
        1 - \sum_{i,j \in \text{boxes}} \max(M, 0)(i, j) \Big/ \sum_{i,j} \max(M, 0)(i, j)

    A cell that a box covers in part counts with that part, where the authors' code enlarges the attribution to the
    image. A map without a positive part costs 1, and has no gradient. Ours is the exact map of the last layer; theirs
    are B-cos explanations, IxG and GradCAM of several layers.
    """

    needs_several_cells: ClassVar[bool] = True

    def of_maps(self, positive: Tensor, cover: Tensor) -> Tensor:
        """(B, P) losses; see `BoxLoss.of_maps`."""
        inside, whole = (positive * cover).sum((-2, -1)), positive.sum((-2, -1))
        return 1 - inside / whole.masked_fill(whole == 0, 1.0)


class OutsideLoss(BoxLoss):
    r"""Mean over what lies outside the boxes of the squared positive part of a map.

    .. math::
        \sum_{i,j} (1 - B) \max(M, 0)^2 (i, j) \Big/ \sum_{i,j} (1 - B)(i, j)

    with B the share of a cell that lies in a box of the class: what is right for the wrong reasons (Ross et al.,
    IJCAI 2017) costs, on maps in place of gradients at the input. Where boxes cover the whole image it is 0;
    less than a thousandth of a cell is none.
    """

    def of_maps(self, positive: Tensor, cover: Tensor) -> Tensor:
        """(B, P) losses; see `BoxLoss.of_maps`."""
        outside = functional.threshold(1 - cover, _ROUNDING, 0.0)
        area = outside.sum((-2, -1))
        return (outside * positive.square()).sum((-2, -1)) / area.masked_fill(area == 0, 1.0)


class TargetMapsLoss(BoxLoss):
    r"""Mean distance of a map from where the object is, both between 0 and 1: GALS (Petryk et al., CVPR 2022).

    .. math::
        \frac{1}{hw} \sum_{i,j} \Big| \max(M, 0)(i, j) \Big/ \max_{k,l} M(k, l) - B(i, j) \Big|

    with B the share of a cell that lies in a box or mask of the class, or a grey map of CLIP, SAM or a person's hand.
    The gradient goes through the maximum, as the authors' does. A map without a positive part stands for 0 and has no
    gradient. Theirs is GradCAM's map, from which they take its minimum as well.
    """

    needs_several_cells: ClassVar[bool] = True

    def of_maps(self, positive: Tensor, cover: Tensor) -> Tensor:
        """(B, P) losses; see `BoxLoss.of_maps`."""
        highest = positive.amax((-2, -1), keepdim=True)
        return (positive / highest.masked_fill(highest == 0, 1.0) - cover).abs().mean((-2, -1))
