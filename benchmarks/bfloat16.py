#!/usr/bin/env python3
"""Run a script whose mixed precision is bfloat16 on a CPU, without the convolutions that are slow in it.

Without AVX-512 torch computes all of them with code that takes about ten times as long as float32, with it the
backward pass of depthwise ones whose stride is 2 or whose kernel is 5x5. Here they (all; with AVX-512 those in groups)
are computed in float32 of values that are rounded to bfloat16, and their results rounded: what a CPU with bfloat16
computes, but for the order in which products are added up. All else is torch's own.

    python benchmarks/bfloat16.py train.py -c hparams/cifar100_fast.yaml --data-dir DIR
    python benchmarks/evidence.py run cifar-5000 --launcher 'python benchmarks/bfloat16.py' --data-dir DIR --out OUT
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_torchs = torch.conv2d

# which convolutions are torch's own: those of the whole input, where bfloat16 is fast
UNGROUPED_ARE_FAST = torch.backends.cpu.get_cpu_capability() == 'AVX512'


class _Conv2d(torch.autograd.Function):
    """A convolution of bfloat16 tensors, forward and backward, each computed in float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.how, ctx.bias_sizes = how, None if bias is None else list(bias.shape)
        stride, padding, dilation, groups = how
        float_bias = None if bias is None else bias.float()
        return torch.ops.aten.convolution(
            images.float(), weight.float(), float_bias, stride, padding, dilation, False, [0, 0], groups
        ).bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        found = torch.ops.aten.convolution_backward(
            *(gradient.float(), images.float(), weight.float(), ctx.bias_sizes),
            *(stride, padding, dilation, False, [0, 0], groups, list(ctx.needs_input_grad[:3])),
        )
        return *(None if each is None else each.bfloat16() for each in found), None, None, None, None


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`; where autocast chooses bfloat16 on the CPU, by `_Conv2d`."""
    chosen = torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') is torch.bfloat16
    # class maps that follow a head see torch's own function alone
    followed = torch._C._len_torch_function_stack() > 0
    usual = input.device.type == 'cpu' and input.ndim == 4 and input.dtype != torch.float64 and not followed
    fast = UNGROUPED_ARE_FAST and groups == 1
    if fast or not (chosen and usual) or isinstance(padding, str):
        return _torchs(input, weight, bias, stride, padding, dilation, groups)
    how = [[value, value] if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    tensors = (None if each is None else each.bfloat16() for each in (input, weight, bias))
    with torch.autocast('cpu', enabled=False):
        return _Conv2d.apply(*tensors, *how, groups)


def main() -> None:
    """Run the script that follows, with its arguments."""
    if len(sys.argv) < 2:
        sys.exit('usage: python benchmarks/bfloat16.py SCRIPT [ARGUMENTS]')
    torch.conv2d = torch.nn.functional.conv2d = conv2d
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as Python does it
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
