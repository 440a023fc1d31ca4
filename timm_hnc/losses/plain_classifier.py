"""The plain classifier that a trained model is published with, where its loss makes scores in another way."""

import copy
from typing import Any

import torch

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.probe import name_of
from timm_hnc.losses.base import Loss


def check_classifier(cam_model: CamModel, loss: Loss) -> None:
    """Refuse a model whose classifier a loss on features cannot take the place of.

    Raises:
        ValueError: the head is more than a mean over positions and one linear layer, or has no bias for what the loss
            exports.
    """
    if not loss.needs_features:
        return
    classifier: Any = getattr(cam_model.model, 'get_classifier', lambda: None)()
    weight = getattr(classifier, 'weight', None)
    name = type(loss).__name__
    if not cam_model.kind.name.startswith('A') or weight is None:
        raise ValueError(
            f'{name} needs features, their mean over positions and one linear classifier that timm knows: '
            f"'{name_of(cam_model.model)}' has a head of kind {cam_model.kind}."
        )
    if classifier.bias is None and loss.plain_classifier(weight.detach().flatten(1), None)[1] is not None:
        raise ValueError(f'{name} is exported with a bias: {name_of(cam_model.model)} has a classifier without.')


@torch.no_grad()
def with_plain_classifier(model: Any, loss: Loss | None, copied: Any = None) -> Any:
    """A model that classifies by itself as it did in training.

    Returns:
        The model itself where the loss uses its logits; else a copy with the loss's `plain_classifier`.
    """
    if loss is None or not loss.changes_scores:
        return model
    if copied is None:
        copied = copy.deepcopy(model)
    else:
        copied.load_state_dict(model.state_dict())
    model = copied
    classifier = model.get_classifier()
    weight, bias = loss.plain_classifier(classifier.weight.flatten(1), classifier.bias)
    classifier.weight.copy_(weight.view_as(classifier.weight))
    if bias is not None:
        classifier.bias.copy_(bias)
    return model
