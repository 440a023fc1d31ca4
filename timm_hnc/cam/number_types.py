"""Types of numbers."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Operations keep the types of their inputs here, on the device of this tensor."""
    # the meta device knows no autocast
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


@lru_cache
def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it: Apple's GPUs, and some of Intel's."""
    if device.type == 'mps' or (device.type == 'xpu' and not torch.xpu.get_device_properties(device).has_fp64):
        return torch.float32
    return torch.float64
