"""DenseNet-BC for 32 x 32 images.

Paper:
    * Densely Connected Convolutional Networks - https://arxiv.org/abs/1608.06993
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseBlock, DenseLayer, DenseNet
from torch import Tensor, nn

from timm_hnc.models.cifar_common import cifar_cfg, init_weights

__all__ = ['CifarDenseNet']  # register_model adds the networks


class DropPathDenseLayer(DenseLayer):
    """timm's dense layer, whose new channels are zeroed for whole images while training.

    Args:
        layer: the layer to take the place of; its parts and parameter names stay.
        drop_path_rate: probability of zeros for an image.
    """

    def __init__(self, layer: DenseLayer, drop_path_rate: float) -> None:
        nn.Module.__init__(self)  # timm's constructor would draw weights for parts that exist
        for name, part in layer.named_children():
            self.add_module(name, part)
        self.drop_rate = layer.drop_rate
        self.grad_checkpointing = layer.grad_checkpointing
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """The new channels that these features give."""
        return self.drop_path(super().forward(x))


class CifarDenseNet(DenseNet):
    """DenseNet-BC of a 3x3 stem and dense blocks at full, half, quarter ... resolution, from timm's blocks.

    Huang et al. (2017, https://arxiv.org/abs/1608.06993): bottlenecks of bn_size * growth_rate channels, transitions
    that halve channels and resolution, a last norm and activation. It is timm's DenseNet but for the stem (a 3x3
    convolution of 2 * growth_rate channels, with neither norm nor pooling), the initialisation, stochastic depth and
    one feature a dense block (behind the last norm for the last one).

    Args:
        growth_rate: channels that a layer adds (k).
        block_config: number of layers of every dense block; the network has L = 2 * sum + len + 1 layers.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the images.
        drop_path_rate: probability of zeros for an image in the last layer; it grows linearly from 0 in the first.
        device: as in torch.
        dtype: as in torch.
        **kwargs: of timm's DenseNet, but for its stem.
    """

    def __init__(
        self,
        growth_rate: int = 12,
        block_config: tuple[int, ...] = (16, 16, 16),
        num_classes: int = 100,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__(
            growth_rate=growth_rate,
            block_config=block_config,
            num_classes=num_classes,
            in_chans=in_chans,
            stem_type='',  # named here, what is timm's stem alone is refused among kwargs
            aa_layer=None,
            aa_stem_only=True,
            **kwargs,
            **dd,
        )
        del self.features.norm0, self.features.pool0
        stem_width = 2 * growth_rate
        self.features.conv0 = nn.Conv2d(in_chans, stem_width, kernel_size=3, padding=1, bias=False, **dd)
        names = [name for name, _ in self.features.named_children()]
        blocks = [name for name in names if name.startswith('denseblock')]
        taps = [*blocks[:-1], 'norm5']
        self.feature_ends = [names.index(tap) for tap in taps]
        channels = [info['num_chs'] for info in self.feature_info[1:]]  # timm's first feature is the stem
        self.feature_info = [
            {'num_chs': width, 'reduction': 2**index, 'module': f'features.{tap}'}
            for index, (width, tap) in enumerate(zip(channels, taps, strict=True))
        ]
        if drop_path_rate:
            self._add_drop_path(drop_path_rate, [getattr(self.features, name) for name in blocks])
        init_weights(self)

    def _add_drop_path(self, drop_path_rate: float, blocks: Sequence[DenseBlock]) -> None:
        layers = [(block, name) for block in blocks for name in block]
        rates: Sequence[Any] = calculate_drop_path_rates(drop_path_rate, len(layers))
        for (block, name), rate in zip(layers, rates, strict=True):
            block[name] = DropPathDenseLayer(cast(DenseLayer, block[name]), rate)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """See timm's DenseNet; the new classifier starts as the others."""
        super().reset_classifier(num_classes, global_pool)
        init_weights(self.classifier)

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return 'classifier' if name_only else self.classifier


default_cfgs = generate_default_cfgs(
    {
        'cifar_densenet_bc_100_k12': cifar_cfg(
            first_conv='features.conv0', classifier='classifier', paper_ids='arXiv:1608.06993'
        ),
    }
)


@register_model
def cifar_densenet_bc_100_k12(pretrained: bool = False, **kwargs: Any) -> CifarDenseNet:
    """DenseNet-BC of 100 layers and growth rate 12, of Huang et al. (2017), https://arxiv.org/abs/1608.06993."""
    return build_model_with_cfg(
        CifarDenseNet,
        'cifar_densenet_bc_100_k12',
        pretrained,
        feature_cfg={'out_indices': (0, 1, 2), 'flatten_sequential': True},
        **{'growth_rate': 12, 'block_config': (16, 16, 16), **kwargs},
    )
