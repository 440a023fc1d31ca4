"""A classifier as a graph with named outputs: its logits, and class maps beside them."""

import re
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from timm_hnc.cam import CamModel
from timm_hnc.errors import UsageError
from timm_hnc.export.preprocessing import Preprocessing


@dataclass(frozen=True)
class Outputs:
    """What a graph returns beside the logits.

    Args:
        maps: 'topK' (such as top5) for those of the K classes with the highest logits, 'all' or 'none'.
        contrast: for 'topK', the map of the first class minus that of each other one.

    Raises:
        UsageError: something else.
    """

    maps: str = 'top5'
    contrast: bool = False

    def __post_init__(self) -> None:
        if self.maps not in ('all', 'none') and not re.fullmatch(r'top[1-9]\d*', self.maps):
            raise UsageError(f'--maps {self.maps}: expected topK (such as top5), all or none.')
        if self.contrast and (self.topk or 0) < 2:
            raise UsageError(f'--contrast: needs --maps topK with a K of 2 or more, got --maps {self.maps}.')

    @classmethod
    def of_most(cls, num_classes: int, contrast: bool = False) -> 'Outputs':
        """The maps of the top 5 classes, or of as many as there are."""
        return cls(f'top{max(1, min(cls().topk or 1, num_classes))}', contrast)

    @property
    def topk(self) -> int | None:
        """K of 'topK'."""
        return int(self.maps[3:]) if self.maps.startswith('top') else None


class MapGraph(nn.Module):
    """Logits and class maps as tensors by name, for `torch.export` and those who run what it makes.

    Args:
        model: in evaluation mode.
        outputs: which.
        preprocessing: in front of the model, if any.

    Raises:
        UsageError: the model has fewer classes than maps are asked for.
    """

    def __init__(self, model: CamModel, outputs: Outputs, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        if outputs.topk is not None and outputs.topk > model.num_classes:
            raise UsageError(f'--maps {outputs.maps}: the model has {model.num_classes} classes, see --maps all.')
        self.model, self.outputs, self.preprocessing = model, outputs, preprocessing

    @property
    def output_names(self) -> list[str]:
        """In the order in which a graph returns them."""
        names = ['logits', *([] if self.outputs.topk is None else ['classes'])]
        names += [] if self.outputs.maps == 'none' else ['maps']
        names += ['contrast'] if self.outputs.contrast else []
        return list(pytree.tree_leaves({name: name for name in names}))

    def forward(self, images: Tensor, classes: Tensor | None = None) -> dict[str, Tensor]:
        """The named outputs.

        Args:
            images: (B, C, H, W) normalised floats, or what the preprocessing takes.
            classes: (B, K) to return the maps of, in place of those with the highest logits.

        Returns:
            `logits` (B, n); with 'topK' `classes` (B, K), highest logit first, and `maps` (B, K, h, w), with 'all'
            `maps` (B, n, h, w); `contrast` (B, K - 1, h, w). The mean of a map is the logit of its class.
        """
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        if self.outputs.maps == 'none':
            return {'logits': self.model(images)}
        class_maps = self.model.class_maps(images)
        if self.outputs.topk is None:
            return {'logits': class_maps.logits, 'maps': class_maps.maps(None)}
        if classes is None:
            classes = class_maps.logits.topk(self.outputs.topk).indices
        maps = class_maps.maps(classes)
        found = {'logits': class_maps.logits, 'classes': classes, 'maps': maps}
        return found | ({'contrast': maps[:, :1] - maps[:, 1:]} if self.outputs.contrast else {})
