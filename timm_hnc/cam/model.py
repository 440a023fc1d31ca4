"""The wrapper that makes a timm classifier emit class activation maps."""

from typing import Any

import timm
from timm.models import parse_model_name
from torch import Tensor, nn

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.frozen import HeldDropout
from timm_hnc.cam.heads import Head, TimmModel
from timm_hnc.cam.probe import probe_head


class CamModel(nn.Module):
    """A timm model that also emits class activation maps, exactly: the mean of a map is the logit.

    `model` is the untouched timm model: optimizers, EMA and exports take it, not the wrapper.

    Args:
        model: a timm classifier whose head is an average pool in front of a linear layer.

    Raises:
        UnsupportedHead: (a ValueError) any other head; the message names model, head and way out.

    Example:
        >>> model = CamModel(timm.create_model('resnet18', num_classes=10))
        >>> maps = model.class_maps(torch.randn(2, 3, 224, 224))
        >>> maps.maps(maps.logits.topk(3).indices).shape
        torch.Size([2, 3, 7, 7])
    """

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        if isinstance(model, CamModel):
            raise TypeError('the model is a CamModel already.')
        self.head: Head = probe_head(model)
        self.model: TimmModel = model

    @property
    def num_classes(self) -> int:
        """Number of classes, as the timm model says."""
        return self.model.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The timm model's pretrained_cfg."""
        return self.model.pretrained_cfg

    def get_classifier(self) -> nn.Module:
        """The timm model's classifier."""
        return self.model.get_classifier()

    def class_maps(self, x: Tensor) -> ClassMaps:
        """Logits and the factors of their class activation maps, in one forward pass.

        In train mode the maps hold what this very pass used: batch statistics and the dropout of the pooled vector.

        Args:
            x: (B, C, H, W) normalised images.
        """
        features = self.model.forward_features(x)
        factors: list[Tensor] = []
        with HeldDropout(factors):
            logits = self.model.forward_head(features)
        positions, grid = self.head.positions(features, (x.shape[-2], x.shape[-1]))
        for factor in factors:
            positions = positions * factor.flatten(1)[:, None]
        weight, bias = self.head.linear(self.model)
        return ClassMaps(positions, weight, bias, grid, logits)

    def forward(self, x: Tensor, return_class_maps: bool = False) -> Tensor | ClassMaps:
        """The timm model's logits (B, n), or its ClassMaps (so that DDP and compile see one forward)."""
        return self.class_maps(x) if return_class_maps else self.model(x)


def create_model(model_name: str, **kwargs: Any) -> CamModel:
    """`CamModel(timm.create_model(...))`; weights of 'hf-hub:' and 'local-dir:' names are loaded unless told not to.

    Args:
        model_name: any name timm knows, `hf-hub:user/name` or `local-dir:path`.
        **kwargs: for `timm.create_model`.

    Raises:
        UnsupportedHead: (a ValueError) no exact class maps for this model.
    """
    source, _ = parse_model_name(model_name)
    kwargs.setdefault('pretrained', bool(source))
    return CamModel(timm.create_model(model_name, **kwargs))
