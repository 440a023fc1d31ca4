"""The CIFAR networks of the HNC paper, registered with timm (`timm.create_model('cifar_resnet56')`) on import."""

from timm_hnc.models.cifar_densenet import CifarDenseNet, cifar_densenet_bc_100_k12
from timm_hnc.models.cifar_resnet import (
    CifarResNet,
    PadShortcut,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    cifar_resnext29_8x64d,
    cifar_resnext29_16x64d,
)

__all__ = [
    'CifarDenseNet',
    'CifarResNet',
    'PadShortcut',
    'cifar_densenet_bc_100_k12',
    'cifar_resnet20',
    'cifar_resnet32',
    'cifar_resnet44',
    'cifar_resnet56',
    'cifar_resnet110',
    'cifar_resnext29_8x64d',
    'cifar_resnext29_16x64d',
]
