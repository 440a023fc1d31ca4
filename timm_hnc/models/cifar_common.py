"""What the CIFAR networks share: their default configuration and the initialisation of the papers' code."""

from typing import Any

from torch import nn

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)


def cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    """A network's pretrained_cfg: CIFAR-100's images and classes, and no weights; `kwargs` are fields that differ."""
    return {
        'url': '',
        'num_classes': 100,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'mean': CIFAR100_MEAN,
        'std': CIFAR100_STD,
        **kwargs,
    }


def init_weights(model: nn.Module) -> None:
    """Initialise as the papers' code does: He et al. (2015, https://arxiv.org/abs/1502.01852) by outputs.

    Convolutions are normal with variance 2 / (kernel area * output channels), batch norms start as the identity (the
    last ones of residual branches too), biases at zero; the weights of linear layers stay as torch draws them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
