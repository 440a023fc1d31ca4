"""Class activation maps that explain the logits of timm models, and the HNC loss that trains on them (ECCV 2020)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import timm_hnc.models  # noqa: F401  # registers the CIFAR networks with timm
from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.losses import HNCLoss, hnc_loss
from timm_hnc.tasks import HNCMultiLabelTask, HNCTask
from timm_hnc.version import __version__
from timm_hnc.weights.loading import create_model
from timm_hnc.weights.saving import save_pretrained

if TYPE_CHECKING:
    from timm_hnc.api import evaluate, train
    from timm_hnc.hub.publish import push_to_hub

__all__ = [
    'CamModel',
    'ClassMaps',
    'HNCLoss',
    'HNCMultiLabelTask',
    'HNCTask',
    '__version__',
    'create_model',
    'evaluate',
    'hnc_loss',
    'push_to_hub',
    'save_pretrained',
    'train',
]
# what brings the whole training loop with it is imported when it is used
_LATER = {'evaluate': 'timm_hnc.api', 'train': 'timm_hnc.api', 'push_to_hub': 'timm_hnc.hub.publish'}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
