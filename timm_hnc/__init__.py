"""Class activation maps that explain the logits of timm models, and the HNC loss that trains on them (ECCV 2020)."""

import timm_hnc.models  # noqa: F401  # registers the CIFAR networks with timm
from timm_hnc.api import evaluate, train
from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.hub.publish import push_to_hub
from timm_hnc.losses import HNCLoss, hnc_loss
from timm_hnc.tasks import HNCMultiLabelTask, HNCTask
from timm_hnc.version import __version__
from timm_hnc.weights.loading import create_model
from timm_hnc.weights.saving import save_pretrained

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
