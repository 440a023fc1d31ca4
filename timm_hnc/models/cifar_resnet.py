"""ResNets and ResNeXts for 32 x 32 images.

Papers:
    * Deep Residual Learning for Image Recognition, section 4.2 - https://arxiv.org/abs/1512.03385
    * Aggregated Residual Transformations for Deep Neural Networks, section 5.3 - https://arxiv.org/abs/1611.05431
"""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    DropPath,
    LayerType,
    calculate_drop_path_rates,
    create_classifier,
    get_act_layer,
    get_norm_layer,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from torch import Tensor, nn

from timm_hnc.models.cifar_common import cifar_cfg, init_weights

__all__ = ['CifarResNet', 'PadShortcut']  # register_model adds the networks


class PadShortcut(nn.Module):
    """Shortcut without parameters: every stride-th pixel, and channels of zeros behind those of the input.

    Option A of He et al. (2016, https://arxiv.org/abs/1512.03385), section 4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f'a shortcut pads channels and drops none: {in_channels} to {out_channels} asked for.')
        self.padding = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))

    def extra_repr(self) -> str:
        """What print shows."""
        return f'padding={self.padding}, stride={self.stride}'


class CifarResNet(ResNet):
    """ResNet or ResNeXt of a 3x3 stem and stages at full, half, quarter ... resolution, from timm's blocks.

    ResNets are those of He et al. (2016, https://arxiv.org/abs/1512.03385), section 4.2; ResNeXts those of Xie et al.
    (2017, https://arxiv.org/abs/1611.05431), section 5.3. It has the interface of timm's ResNet, with one feature a
    stage.

    Args:
        block: timm's BasicBlock or Bottleneck.
        layers: number of blocks of every stage, four stages at most.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the images.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax' or '' for none.
        channels: `planes` of every stage's blocks, whose outputs have block.expansion times as many.
        stem_width: channels of the stem.
        cardinality: groups of a Bottleneck's 3x3 convolution.
        base_width: width of one group where a stage has 64 planes.
        pad_shortcut: shortcuts between stages have no parameters (option A); else they are 1x1 convolutions with batch
            norm (option B).
        act_layer: activation.
        norm_layer: normalisation.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        device: as in torch.
        dtype: as in torch.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = 'avg',
        channels: tuple[int, ...] = (16, 32, 64),
        stem_width: int = 16,
        cardinality: int = 1,
        base_width: int = 64,
        pad_shortcut: bool = True,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # timm's constructor would make a network for large images
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        act, norm = get_act_layer(act_layer), get_norm_layer(norm_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        conv1 = nn.Conv2d(in_chans, stem_width, kernel_size=3, padding=1, bias=False, **dd)
        self.conv1 = conv1  # type: ignore[assignment]  # timm may have several
        self.bn1 = norm(stem_width, **dd)
        self.act1 = act(inplace=True)
        self.maxpool = nn.Sequential()  # timm's forward passes have a pool and four stages

        self.stage_names = ('layer1', 'layer2', 'layer3', 'layer4')[: len(layers)]
        self.feature_info: list[dict[str, Any]] = []
        widths = (stem_width, *(planes * block.expansion for planes in channels))
        rates: Iterator[Any] = iter(calculate_drop_path_rates(drop_path_rate, sum(layers)))
        options: dict[str, Any] = {'cardinality': cardinality, 'base_width': base_width, 'act_layer': act}
        for index, (name, (before, after)) in enumerate(zip(self.stage_names, pairwise(widths), strict=True)):
            stride = 1 if index == 0 else 2
            shortcut = make_shortcut(before, after, stride, pad_shortcut, norm_layer=norm, **dd)
            stage = nn.Sequential()
            for rate in islice(rates, layers[index]):
                path = DropPath(rate) if rate else None
                stage.append(
                    block(before, channels[index], stride, shortcut, drop_path=path, norm_layer=norm, **options, **dd)
                )
                before, stride, shortcut = after, 1, None
            self.add_module(name, stage)
            self.feature_info.append({'num_chs': after, 'reduction': 2**index, 'module': name})
        for number in range(len(layers) + 1, 5):
            self.add_module(f'layer{number}', nn.Sequential())

        self.num_features = widths[-1]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        init_weights(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """See timm's ResNet; the new classifier starts as the others."""
        super().reset_classifier(num_classes, global_pool)
        init_weights(self.fc)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """See timm's ResNet: features, and the outputs of stages, whose numbers are `indices`; `norm` has no effect."""
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt is {output_fmt!r}: only NCHW is known.')
        taken, _ = feature_take_indices(len(self.stage_names), indices)
        numbers = [index + 1 for index in taken]  # timm's first feature is the stem
        return super().forward_intermediates(x, numbers, norm, stop_early, output_fmt, intermediates_only)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """See timm's ResNet: remove what `forward_intermediates` with these indices does not need."""
        taken, last = feature_take_indices(len(self.stage_names), indices)
        for name in self.stage_names[last + 1 :]:
            setattr(self, name, nn.Sequential())
        prune_end = last < len(self.stage_names) - 1
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return list(taken)


def make_shortcut(
    in_channels: int, out_channels: int, stride: int, pad: bool, norm_layer: type[nn.Module], **dd: Any
) -> nn.Module | None:
    """The shortcut of a stage's first block: None where the identity does, else option A (pad) or B."""
    if stride == 1 and in_channels == out_channels:
        return None
    if pad:
        return PadShortcut(in_channels, out_channels, stride)
    return downsample_conv(in_channels, out_channels, kernel_size=1, stride=stride, norm_layer=norm_layer, **dd)


_RESNET = cifar_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:1512.03385')
_RESNEXT = cifar_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:1611.05431')
_RESNEXT_ARGS = dict(block=Bottleneck, layers=(3, 3, 3), channels=(64, 128, 256), stem_width=64, pad_shortcut=False)

default_cfgs = generate_default_cfgs(
    {
        **{f'cifar_resnet{depth}': _RESNET for depth in (20, 32, 44, 56, 110)},
        **{f'cifar_resnext29_{cardinality}x64d': _RESNEXT for cardinality in (8, 16)},
    }
)


def _network(name: str, **defaults: Any) -> Callable[..., CifarResNet]:
    """The function that makes a network, known to timm by its name; its paper is in `default_cfgs`."""

    def create(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
        feature_cfg = {'out_indices': (0, 1, 2)}
        return build_model_with_cfg(CifarResNet, name, pretrained, feature_cfg=feature_cfg, **{**defaults, **kwargs})

    create.__name__ = create.__qualname__ = name
    return register_model(create)


cifar_resnet20 = _network('cifar_resnet20', block=BasicBlock, layers=(3, 3, 3))
cifar_resnet32 = _network('cifar_resnet32', block=BasicBlock, layers=(5, 5, 5))
cifar_resnet44 = _network('cifar_resnet44', block=BasicBlock, layers=(7, 7, 7))
cifar_resnet56 = _network('cifar_resnet56', block=BasicBlock, layers=(9, 9, 9))
cifar_resnet110 = _network('cifar_resnet110', block=BasicBlock, layers=(18, 18, 18))
cifar_resnext29_8x64d = _network('cifar_resnext29_8x64d', cardinality=8, **_RESNEXT_ARGS)
cifar_resnext29_16x64d = _network('cifar_resnext29_16x64d', cardinality=16, **_RESNEXT_ARGS)
