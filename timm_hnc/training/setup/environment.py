"""Device, precision, compilation and processes: command line and launcher end in one Accelerator."""

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    TorchDynamoPlugin,
)

from timm_hnc.errors import UsageError
from timm_hnc.options import check_choice
from timm_hnc.runtime.device import DeviceOptions
from timm_hnc.runtime.process import accelerator_of, set_up_process
from timm_hnc.training.setup.output_options import TrackingOptions
from timm_hnc.training.sharding import check_sharding

_REFUSED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessOptions:
    """What several processes share.

    Args:
        no_ddp_bb: DDP does not broadcast buffers.
        dist_bn: batch statistics: broadcast, reduce or ''.
        synchronize_step: wait for the device after each step.
        device_modules: modules to import for the device.
    """

    no_ddp_bb: bool = False
    dist_bn: str = 'reduce'
    synchronize_step: bool = False
    device_modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_choice(self, 'dist_bn', ('', 'broadcast', 'reduce'))


def import_device_modules(processes: ProcessOptions) -> None:
    """Import what makes the device known to torch."""
    for module in processes.device_modules or ():
        try:
            importlib.import_module(module)
        except (ImportError, ValueError, TypeError) as error:
            raise UsageError(f'--device-modules {module}: cannot be imported ({error}).') from error


def create_accelerator(device: DeviceOptions, processes: ProcessOptions, tracking: TrackingOptions) -> Accelerator:
    """The Accelerator that the options ask for, those with which the launcher agrees.

    Raises:
        UsageError: the launcher asks for what cannot be, or a package is missing.
    """
    advice = {'tensorboard': 'pip install "timm_hnc[track]"', 'wandb': 'pip install wandb'}
    trackers = [package for package in advice if getattr(tracking, f'log_{package}')]
    for package in trackers:
        if find_spec(package) is None:
            raise UsageError(f'--log-{package} needs the package {package}: {advice[package]}.')
    accelerator = accelerator_of(
        device,
        # our own counter closes the last window of an epoch; Accelerate's would scale the loss a second time
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend='no'),  # it would compile around DDP, and leave out what is evaluated
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=not processes.no_ddp_bb)],
        log_with=trackers or None,
        project_config=ProjectConfiguration(logging_dir='.'),  # `start_trackers` puts the run folder there
        step_scheduler_with_optimizer=False,
    )
    refused = [accelerator.distributed_type.value] if accelerator.distributed_type in _REFUSED else []
    parallel = getattr(accelerator, 'parallelism_config', None)
    sizes = ('tp_size', 'cp_size', 'sp_size')  # of parts of the model or of an image, not of the batch
    refused += [f'--parallelism_config_{name}' for name in sizes if (getattr(parallel, name, None) or 1) > 1]
    if refused:
        raise UsageError(
            f'accelerate launch asks for {refused[0]}: launch train.py with --multi_gpu, or with --use_fsdp '
            '--fsdp_version 2.'
        )
    check_sharding(accelerator)
    set_up_process(accelerator, device.fast_norm)
    if device.on_cpu and not device.device.startswith('cpu'):
        _logger.info('No accelerator here: training on the CPU.')
    return accelerator
