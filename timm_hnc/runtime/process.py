"""What a process sets once: Accelerate's state, logging, the arithmetic of timm's scripts; and how it ends."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized
from timm import utils
from timm.layers import is_fast_norm, set_fast_norm
from torch import Tensor

from timm_hnc.cam.number_types import widest
from timm_hnc.errors import UsageError, first_lines
from timm_hnc.runtime.device import DeviceOptions

_logger = logging.getLogger(__name__)
# they would tell of every request, signed addresses and all
_TALKATIVE = ('httpx', 'httpx2', 'urllib3')


def evaluation_accelerator(options: DeviceOptions) -> Accelerator:
    """The Accelerator of an evaluation, and the process set up for it."""
    accelerator = accelerator_of(options)
    set_up_process(accelerator, options.fast_norm)
    return accelerator


def accelerator_of(options: DeviceOptions, **arguments: Any) -> Accelerator:
    """An Accelerator with a device and a precision of its own.

    Raises:
        UsageError: Accelerate says that they do not go together.
    """
    renew_state(options)
    try:
        accelerator = Accelerator(mixed_precision=options.precision, cpu=options.on_cpu, **arguments)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:  # of a launcher's wish that cannot be met
        raise UsageError(f'Accelerate: {first_lines(error)}') from error
    accelerator.sync_gradients = True  # somebody's loop may have ended between two updates: optimizers would do nothing
    return accelerator


@contextmanager
def one_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Do what is inside first in one process of a machine, which may download it, then in the others.

    Accelerate's `local_main_process_first` leaves the others waiting where the first one fails; here they go on, and
    meet the same error.
    """
    first = accelerator.is_local_main_process
    if not first:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if first:
            accelerator.wait_for_everyone()


def sum_of_processes(own: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum of a tensor of every process, on the CPU and of its type; all processes call it."""
    if accelerator.num_processes == 1:
        return own.cpu()
    device = accelerator.device
    there = own.to(device, widest(device) if own.is_floating_point() else own.dtype)
    return accelerator.reduce(there, 'sum').cpu().to(own.dtype)


def renew_state(options: DeviceOptions) -> None:
    """Let Accelerate choose device and precision anew where an earlier call in this process chose others.

    It keeps them for the life of the process: it refuses another precision, and passes over another device, that of a
    PartialState alone (its progress bar makes one) as well.
    """
    if not PartialState._shared_state:
        return
    other_device = (PartialState().device.type == 'cpu') != options.on_cpu
    if other_device or (is_initialized() and AcceleratorState().mixed_precision != options.precision):
        AcceleratorState._reset_state(reset_partial_state=other_device)


def set_up_process(accelerator: Accelerator, fast_norm: bool) -> None:
    """Logging (the main process speaks, others warn), and the arithmetic that timm's scripts choose on CUDA."""
    for handler in list(logging.root.handlers):
        if isinstance(handler.formatter, utils.FormatterNoInfo):
            logging.root.removeHandler(handler)  # timm adds another one at every call: each line would come twice
    utils.setup_default_logging(default_level=logging.INFO if accelerator.is_main_process else logging.WARNING)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    if accelerator.device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    set_fast_norm(fast_norm)
    _logger.info(
        f'{accelerator.num_processes} process(es) on {accelerator.device}, precision: {accelerator.mixed_precision}.'
    )


@contextmanager
def settings_kept() -> Iterator[None]:
    """What `evaluation_accelerator` and `set_up_process` set inside is afterwards as it was."""
    with _accelerate_kept(), _logging_kept(), _arithmetic_kept():
        yield


@contextmanager
def _accelerate_kept() -> Iterator[None]:
    """The states that all Accelerators share, those of the caller too: precision, device and count of batches."""
    states = [(state._shared_state, dict(state._shared_state)) for state in (PartialState, AcceleratorState)]
    accumulation = vars(GradientState())
    states.append((accumulation, dict(accumulation)))
    try:
        yield
    finally:
        for shared, before in states:
            if shared is PartialState._shared_state and not before and torch.distributed.is_initialized():
                continue  # which Accelerate has begun here
            shared.clear()
            shared.update(before)


@contextmanager
def _logging_kept() -> Iterator[None]:
    loggers = [logging.root, *map(logging.getLogger, _TALKATIVE)]
    levels, handlers = [logger.level for logger in loggers], list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _arithmetic_kept() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    benchmark, fast_norm = cudnn.benchmark, is_fast_norm()
    try:
        name, precision = 'allow_tf32', matmul.allow_tf32
    except RuntimeError:  # torch's newer setting was used, and refuses to be read by the older
        name, precision = 'fp32_precision', matmul.fp32_precision
    try:
        yield
    finally:
        if getattr(matmul, name) != precision:
            setattr(matmul, name, precision)
        cudnn.benchmark = benchmark
        set_fast_norm(fast_norm)


def end_training(accelerator: Accelerator, leave_group: bool = False) -> None:
    """Accelerate's own, once gloo's threads have let go of their tensors.

    With `leave_group` trackers alone end: whoever called goes on with the group of processes.

    Freeing one takes the interpreter's lock, which torch keeps while it waits for those threads to end: a process was
    seen to hang there (torch 2.7).
    """
    if leave_group:
        for tracker in accelerator.trackers:
            tracker.finish()
        return
    if accelerator.num_processes > 1 and accelerator.device.type == 'cpu':
        time.sleep(0.1)
    accelerator.end_training()
