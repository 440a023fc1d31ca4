"""The wrapper that makes a classifier emit class activation maps."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import Tensor, nn

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.heads.base import Kind, TimmModel, forward_of
from timm_hnc.cam.heads.hooked_head import HookedHead, Place, is_of_timm, logits_of
from timm_hnc.cam.heads.naflex_head import naflex_class_maps
from timm_hnc.cam.heads.probe import MapHead, probe_head
from timm_hnc.cam.heads.refusal import changed_since_probe, other_number
from timm_hnc.cam.naflex_maps import NaFlexBatch
from timm_hnc.cam.own_hooks import show_input, show_output
from timm_hnc.cam.transforms import in_transform


class CamModel(nn.Module):
    """A classifier that also emits class activation maps, exactly: the mean of a map is the logit.

    `model` is the untouched model: optimizers, EMA and exports take it, not the wrapper. The wrapper begins in the
    model's mode, training or evaluation.

    Args:
        model: a timm classifier, or any other that returns logits, alone or as `.logits`. What lies between its
            positions and its logits and is not linear (norms, activations, attention weights, dropout) is detached at
            the values that it takes in the model's own forward pass.
        features: name of the module whose output has the positions, such as 'layer4'; if None, where timm has them, or
            the last such module of a model that is none of timm's (`head.place` says which).
        features_input: the same of the module that they enter, such as 'fc'.
        image_size: (height, width), or one side, that a model of fixed size takes, where it is none of timm's and does
            not say so.

    Raises:
        UnsupportedHead: (a ValueError) no such maps; the message names model, head and way out.
        ValueError: features and features_input are both given, or image_size is no size.
        TypeError: the model is no module, or a CamModel already.

    Example:
        >>> model = CamModel(timm.create_model('resnet18', num_classes=10))
        >>> maps = model.class_maps(torch.randn(2, 3, 224, 224))
        >>> maps.maps(maps.logits.topk(3).indices).shape
        torch.Size([2, 3, 7, 7])
    """

    def __init__(
        self,
        model: nn.Module,
        features: str | None = None,
        features_input: str | None = None,
        image_size: tuple[int, int] | int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, CamModel):
            raise TypeError('the model is a CamModel already.')
        if not isinstance(model, nn.Module):
            raise TypeError(
                f'model is a {type(model).__name__}: expected an nn.Module, such as timm.create_model() makes.'
            )
        if features and features_input:
            raise ValueError('features and features_input: one place, not two.')
        name = features or features_input
        image_size = (image_size, image_size) if type(image_size) is int else image_size
        if image_size is not None and not (
            isinstance(image_size, (tuple, list))
            and len(image_size) == 2
            and all(type(side) is int and side > 0 for side in image_size)
        ):
            raise ValueError(f'image_size={image_size!r}: expected (height, width) or one side, in pixels.')
        self.head: MapHead = probe_head(model, Place(name, bool(features_input)) if name else None, image_size)
        self.model: TimmModel = model
        self.training = model.training

    def around(self, model: nn.Module) -> 'CamModel':
        """The class maps of another model of this very architecture, such as averaged weights: nothing is looked for.

        Args:
            model: a copy of this one's, perhaps with other weights.

        Raises:
            TypeError: it is no module, or a wrapper.
        """
        wraps = isinstance(getattr(model, 'module', None), nn.Module) and not hasattr(self.model, 'module')
        alike = isinstance(model, nn.Module) and is_of_timm(model) == is_of_timm(self.model)
        if isinstance(model, CamModel) or wraps or not alike:
            kind = type(model).__name__
            raise TypeError(f'model is a {kind}: expected a {type(self.model).__name__}, perhaps the one inside of it.')
        other = CamModel.__new__(CamModel)
        nn.Module.__init__(other)
        other.head, other.model, other.training = self.head, model, model.training
        return other

    @property
    def kind(self) -> Kind:
        """Which kind of class maps was found, and whether it is exact and trainable."""
        return Kind(self.head.kind, exact=True, trainable=self.head.trainable)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        of_timm = is_of_timm(self.model) and hasattr(self.model, 'num_classes')
        source: Any = self.model if of_timm else self.head
        return int(source.num_classes)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The timm model's pretrained_cfg, empty for other models."""
        return getattr(self.model, 'pretrained_cfg', None) or {}

    @property
    def data_config(self) -> dict[str, Any]:
        """How the model wants its images: size, mean, std, interpolation, crop; ImageNet's where it does not say so."""
        size = None if self.pretrained_cfg else getattr(self.head, 'input_size', None)
        # timm asks a model that has no pretrained_cfg for three channels
        return resolve_input_data_config(SimpleNamespace(pretrained_cfg={'input_size': size}) if size else self.model)

    @property
    def class_names(self) -> list[str] | None:
        """A name a class, where they came with the weights; of another classifier with as many classes as well."""
        return names_of_weights(self.model)

    def get_classifier(self) -> nn.Module:
        """The timm model's classifier."""
        return self.model.get_classifier()

    def class_maps(self, x: Tensor | NaFlexBatch) -> ClassMaps:
        """Logits and the factors of their class activation maps, in one forward pass.

        In train mode the maps hold what this very pass used: batch statistics and dropout. What wraps this module
        (DistributedDataParallel, accelerator.prepare()) must see the pass: wrapped(x, return_class_maps=True).
        Forward hooks of the model see it, but not where it is compiled; backward hooks of the model itself do not.

        Args:
            x: (B, C, H, W) normalised images; or what timm's NaFlex loader makes of them, whose maps are `NaFlexMaps`.

        Raises:
            ValueError: x has another shape or is smaller than one cell of the maps or, in evaluation mode (but not in
                torch.func's transforms), the logits are not finite; the model takes no NaFlex batches, leaves patches
                out, or its head changed.
            TypeError: x is neither.
        """
        if isinstance(x, Tensor):
            self._check_images(x)
        elif not isinstance(x, Mapping):
            raise TypeError(f'images are a {type(x).__name__}: expected a tensor, or a NaFlex batch.')
        checked = not torch.compiler.is_compiling()
        goes_around = checked and (isinstance(x, Mapping) or not isinstance(self.head, HookedHead))
        if goes_around:
            if forward_of(self.model) is not type(self.model).forward:
                raise changed_since_probe(self.model, 'its forward() was replaced: patch the CamModel in its place')
            x = show_input(self.model, x)
        class_maps = naflex_class_maps(self.model, x) if isinstance(x, Mapping) else self.head.class_maps(self.model, x)
        if goes_around:
            class_maps.logits = show_output(self.model, x, class_maps.logits)
        if goes_around or not is_of_timm(self.model):
            self._check_number_of_classes(class_maps.num_classes)
        if checked and not (self.model.training or in_transform()):
            _check_finite(class_maps.logits)
        return class_maps

    def _logits(self, x: Tensor | NaFlexBatch) -> Tensor:
        found = self.model(x)
        return found if is_of_timm(self.model) else logits_of(found)

    def _check_number_of_classes(self, found: int) -> None:
        told = getattr(self.model if is_of_timm(self.model) else self.head, 'num_classes', found)
        if told != found:
            raise changed_since_probe(self.model, other_number(told, found))

    def _check_images(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(f'images of shape {tuple(x.shape)}: expected (batch, channels, height, width).')
        height, width = x.shape[-2:]
        cell = cell_size(self.model)
        if height < cell or width < cell:
            raise ValueError(
                f'images of {height} x {width} pixels are smaller than one cell of the maps, {cell} x {cell} pixels.'
            )
        if self.model.training and drops_patches(self.model):
            raise ValueError(
                'patch dropout leaves patches out at random, and no map is whole: create the model with '
                'patch_drop_rate=0, or put it into evaluation mode.'
            )

    def forward(self, x: Tensor | NaFlexBatch, return_class_maps: bool = False) -> Tensor | ClassMaps:
        """The timm model's logits (B, n), or its ClassMaps (so that DDP and compile see one forward)."""
        return self.class_maps(x) if return_class_maps else self._logits(x)


def names_of_weights(model: Any) -> list[str] | None:
    """A name a class, where they came with the weights of a timm model."""
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names')
    names = names_by_index(names) if isinstance(names, dict) else names
    return list(names) if names and len(names) == model.num_classes else None


def names_by_index(names: Mapping[Any, str]) -> list[str] | None:
    """Names of classes by their indices, of which JSON makes texts, in order; None where these are not 0 to n - 1."""
    try:
        by_index = {int(index): name for index, name in names.items()}
    except (TypeError, ValueError):
        return None
    return [by_index[index] for index in range(len(names))] if set(by_index) == set(range(len(names))) else None


def cell_size(model: TimmModel) -> int:
    """Side of one cell of the last features in pixels, as timm's feature_info has it; 1 where it has none."""
    infos = getattr(model, 'feature_info', None) or [{}]
    return int(infos[-1].get('reduction', 1)) if isinstance(infos[-1], dict) else 1


def drops_patches(model: TimmModel) -> bool:
    """Whether a timm model leaves patches out in training."""
    return bool(getattr(getattr(model, 'patch_drop', None), 'prob', 0))


def _check_finite(logits: Tensor) -> None:
    if not logits.is_meta and not logits.detach().isfinite().all():
        images = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f'the logits of image {images[0]} of the batch are not finite: its pixels or the weights hold NaN or '
            'infinity, so there are no class maps.'
        )
