"""Comparing class maps and gradients."""

import torch
from torch import nn

from timm_hnc import ClassMaps


def seeded(function, *args, **kwargs):
    torch.manual_seed(11)
    return function(*args, **kwargs)


def off_by(class_maps: ClassMaps) -> float:
    """Distance of the maps' means from the logits, relative to the largest logit."""
    means = class_maps.maps(None).flatten(2).to(torch.float64).mean(-1)
    return ((means - class_maps.logits).abs().max() / class_maps.logits.abs().max()).item()


def roundings_off(class_maps: ClassMaps, dtype: torch.dtype = torch.bfloat16) -> float:
    """The same distance in roundings to a dtype, relative to the mean size of a map.

    Four are made: of the features and of the weights as they are cast, of a map and of a logit as products are summed.
    """
    maps = class_maps.maps(None).flatten(2)
    distance = (maps.to(torch.float64).mean(-1) - class_maps.logits).abs().max()
    return (distance / maps.abs().double().mean(-1).max() / (torch.finfo(dtype).eps / 2)).item()


def gradients(loss: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)
