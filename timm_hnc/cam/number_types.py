"""Types of numbers."""

from functools import lru_cache

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@lru_cache
def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it: Apple's GPUs, and some of Intel's."""
    if device.type == 'mps' or (device.type == 'xpu' and not torch.xpu.get_device_properties(device).has_fp64):
        return torch.float32
    return torch.float64
