"""What runs inside torch.func's transforms."""

import torch


def in_transform() -> bool:
    """Whether vmap, grad or the like of torch.func runs this: tensors then may have no values to look at."""
    return torch._C._are_functorch_transforms_active()
