"""Device, mixed precision and compilation, where command line and launcher both have a say."""

import logging
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env

from timm_hnc.cam.number_types import widest
from timm_hnc.errors import UsageError
from timm_hnc.options import check_choice
from timm_hnc.runtime.compilation import agreed_compilation, check_compiler

_logger = logging.getLogger(__name__)
_ACCELERATE_NAMES = {'float16': 'fp16', 'bfloat16': 'bf16'}


@dataclass(frozen=True)
class DeviceOptions:
    """Device, number formats and compilation.

    Args:
        device: device to run on; of several, one with its index, such as cuda:1.
        amp: mixed precision.
        amp_dtype: of --amp: float16 or bfloat16.
        model_dtype: without --amp: float32, float16, bfloat16 or float64 weights.
        channels_last: channels-last memory layout.
        fast_norm: norm layers in the lower precision.
        torchcompile: compile the model.
        torchcompile_mode: mode of torch.compile.
    """

    device: str = 'cuda'
    amp: bool = False
    amp_dtype: str = 'float16'
    model_dtype: str | None = None
    channels_last: bool = False
    fast_norm: bool = False
    torchcompile: str | None = None
    torchcompile_mode: str | None = None

    def __post_init__(self) -> None:
        check_choice(self, 'amp_dtype', ('float16', 'bfloat16'))
        check_choice(self, 'model_dtype', (None, '', 'float32', 'float16', 'bfloat16', 'float64'))
        if self.amp and self.weight_dtype not in (None, torch.float32):
            raise UsageError(
                f'--model-dtype {self.model_dtype}: --amp needs a float32 model; leave out one of the two.'
            )
        check_compiler(self.torchcompile, self.torchcompile_mode)

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU is asked for, or there is nothing else."""
        asked = self.device.startswith('cpu') or parse_flag_from_env('ACCELERATE_USE_CPU')
        return asked or not torch.accelerator.is_available()

    @property
    def weight_dtype(self) -> torch.dtype | None:
        """Type that the model's weights are cast to; None leaves them."""
        return getattr(torch, self.model_dtype) if self.model_dtype else None

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of the model's input."""
        return self.weight_dtype or torch.float32

    @property
    def precision(self) -> str:
        """Accelerate's name of the mixed precision."""
        return _ACCELERATE_NAMES[self.amp_dtype] if self.amp else 'no'

    def placed(self, model: Any, device: torch.device) -> Any:
        """The model on the device, with weights of the type and in the memory layout that the options name."""
        model = model.to(device=device, dtype=self.weight_dtype)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model


def agreed_device(options: DeviceOptions, explicit: frozenset[str]) -> DeviceOptions:
    """The options with what the launcher asks for, and what the machine can do: precision and compilation.

    The device that they name, where there are several, is the current one from now on: Accelerate takes that.

    Raises:
        UsageError: there is no such device, or command line and launcher contradict each other.
    """
    _choose_device(options.device)
    backend, mode = agreed_compilation(options.torchcompile, options.torchcompile_mode)
    options = replace(options, torchcompile=backend, torchcompile_mode=mode)
    options = _as_the_accelerator_can(options)
    precision = _agreed_precision(options, explicit)
    if precision == 'fp16' and options.on_cpu:
        _logger.warning('Mixed precision on a CPU means bfloat16 here: float16 has no effect there.')
        precision = 'bf16'
    names = [name for name, accelerate_name in _ACCELERATE_NAMES.items() if precision == accelerate_name]
    options = replace(options, amp=True, amp_dtype=names[0]) if names else options
    in_bfloat16 = precision == 'bf16' or options.weight_dtype is torch.bfloat16
    if in_bfloat16 and options.on_cpu and torch.backends.cpu.get_cpu_capability() == 'AVX2':
        what = 'mixed precision (amp: false in a YAML file)' if options.amp else '--model-dtype bfloat16'
        _logger.warning(
            'This CPU computes no bfloat16 (it has AVX2 and no AVX-512), convolutions take about ten times as long as '
            f'in float32: leave out {what}.'
        )
    return options


def _choose_device(text: str) -> None:
    """Refuse a device that this machine does not have, and make one with an index the current one."""
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(f"--device '{text}': expected a device of torch's, such as cpu, cuda or cuda:1.") from error
    if device.type == 'cpu' or text == DeviceOptions.device:
        return  # the default stands for whatever there is
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if here is not None else 0
    if here is None or here.type != device.type or (device.index or 0) >= count:
        names = ', '.join(['cpu', *(f'{here.type}:{index}' for index in range(count) if here is not None)])
        raise UsageError(f'--device {text}: this machine has {names}.')
    if device.index is None:
        return
    if int(os.environ.get('LOCAL_RANK') or -1) >= 0:
        _logger.warning(f'--device {text}: the launcher gives every process a device, the index is passed over.')
        return
    torch.accelerator.set_device_index(device.index)


def _as_the_accelerator_can(options: DeviceOptions) -> DeviceOptions:
    here = None if options.on_cpu else torch.accelerator.current_accelerator()
    if here is None:
        return options
    if options.weight_dtype is torch.float64 and widest(here) != torch.float64:
        raise UsageError(f'--model-dtype float64: {here.type} has no float64.')
    if options.channels_last and here.type == 'mps':
        _logger.warning(
            'No --channels-last: on mps, batch norms were seen to have wrong gradients in it '
            '(github.com/pytorch/pytorch/issues/175189).'
        )
        return replace(options, channels_last=False)
    return options


def _agreed_precision(options: DeviceOptions, explicit: frozenset[str]) -> str:
    # the launcher exports `no` unasked, which therefore contradicts nothing
    launcher = os.environ.get('ACCELERATE_MIXED_PRECISION') or 'no'
    if launcher not in ('no', *_ACCELERATE_NAMES.values()):
        raise UsageError(f'accelerate launch asks for the precision {launcher}: expected no, fp16 or bf16.')
    precision = options.precision
    if launcher != 'no' and precision not in ('no', launcher):
        if 'amp_dtype' in explicit:
            raise UsageError(
                f'--amp-dtype {options.amp_dtype} contradicts the launcher, which says {launcher}: leave one of them '
                'out.'
            )
        precision = launcher  # --amp alone asks for mixed precision, not for a type
    precision = launcher if precision == 'no' else precision
    if precision != 'no' and options.weight_dtype not in (None, torch.float32):
        raise UsageError(f'--model-dtype {options.model_dtype} contradicts mixed precision ({precision}): drop one.')
    return precision
