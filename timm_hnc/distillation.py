"""A student of timm's distillation tasks whose class maps other losses look at, all in one forward pass."""

from typing import Any

from torch import Tensor, nn

from timm_hnc.cam import CamModel, ClassMaps


class Student(nn.Module):
    """What timm's distillation tasks take for a timm model; its class maps are kept until somebody takes them.

    Whatever else the tasks ask of a model, they get of the timm model itself.

    Args:
        cam_model: of a timm model, which has one classifier, or one for the labels and one for the teacher.
    """

    def __init__(self, cam_model: CamModel) -> None:
        super().__init__()
        self.cam_model = cam_model
        self._seen: tuple[ClassMaps, _Noted] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            cam_model: Any = super().__getattr__('cam_model')
            return getattr(cam_model.model, name)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits (B, n), or those of each classifier where timm's task asked for them (`set_distilled_training`)."""
        class_maps, noted = self._look(x)
        return noted.logits or class_maps.logits

    def forward_features(self, x: Tensor) -> Any:
        """The features of the images, whose logits and maps are made at the same time."""
        return self._look(x)[1].features

    def forward_head(self, features: Any, pre_logits: bool = False) -> Tensor:
        """Logits (B, n) of the images that `forward_features` saw last, or the pooled features."""
        if pre_logits or self._seen is None:
            return self.cam_model.model.forward_head(features, pre_logits=pre_logits)
        return self._seen[0].logits

    def take_class_maps(self) -> ClassMaps:
        """The class maps of the images that were seen last; they are kept no longer.

        Raises:
            RuntimeError: no images were seen since.
        """
        if self._seen is None:
            raise RuntimeError('the student has seen no images since its class maps were taken.')
        class_maps, self._seen = self._seen[0], None
        return class_maps

    def _look(self, x: Tensor) -> tuple[ClassMaps, '_Noted']:
        noted: Any = _Noted(self.cam_model.model)
        self._seen = self.cam_model.head.class_maps(noted, x), noted
        return self._seen


class _Noted:
    """A timm model in a head's hands: what it makes on the way is noted.

    Args:
        model: the timm model.

    Attributes:
        features: of the images.
        logits: of each of its classifiers, empty where there is one. The model predicts with their mean.
    """

    def __init__(self, model: Any) -> None:
        self.noted_model = model
        self.features: Any = None
        self.logits: tuple[Tensor, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noted_model, name)

    def forward_features(self, x: Tensor) -> Any:
        self.features = self.noted_model.forward_features(x)
        return self.features

    def forward_head(self, features: Any) -> Tensor:
        found = self.noted_model.forward_head(features)
        if isinstance(found, Tensor):
            return found
        self.logits = first, *others = tuple(found)
        return sum(others, first) / len(self.logits)
