"""Layers that ONNX does not know, written out in those that it does."""

from collections.abc import Callable

import torch
from timm.layers import CondConv2d
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn
from torch.nn import functional


def write_out(model: nn.Module) -> None:
    """Change the layers of a model that is exported and used for nothing else."""
    for module in model.modules():
        if getattr(module, 'fused_attn', False):  # known with four dimensions and the strides of one kernel alone
            module.fused_attn = False  # type: ignore[assignment]
        if isinstance(module, CondConv2d):
            module.__class__ = MixedOutputs


class MixedOutputs(CondConv2d):
    """What the experts make is mixed, in place of their weights: ONNX has no convolution of a group an image."""

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """(B, C, H, W) features, of which every image has its own (B, experts) shares."""
        convolve: Callable[..., Tensor] = conv2d_same if self.dynamic_padding else functional.conv2d
        settings = self.stride, self.padding, self.dilation, self.groups
        weights = self.weight.view(self.num_experts, *self.weight_shape)
        biases = [None] * self.num_experts if self.bias is None else self.bias
        made = [convolve(x, weight, bias, *settings) for weight, bias in zip(weights, biases, strict=True)]
        return (routing_weights[:, :, None, None, None] * torch.stack(made, 1)).sum(1)
