"""What runs inside torch.func's transforms, and what gradients look like outside of them."""

import torch
from torch import Tensor


def in_transform() -> bool:
    """Whether vmap, grad or the like of torch.func runs this: tensors then may have no values to look at."""
    return torch._C._are_functorch_transforms_active()


def order_gradient(features: Tensor) -> None:
    """Let the gradient of the features of one image lie in memory as usual.

    Where it went through `flatten` or the like, its strides are others, and batch normalization on a CPU makes a wrong
    gradient of it (torch 2.14; not of two images, and not compiled).
    """
    if not features.requires_grad or torch.compiler.is_compiling() or in_transform():
        return
    if features.shape[0] == 1:  # behind the others, where it may be a symbol
        features.register_hook(_in_order)


def _in_order(gradient: Tensor | None) -> Tensor | None:  # None where nothing depends on the features
    return None if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
