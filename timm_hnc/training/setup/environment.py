"""Device, precision, compilation and processes: command line and launcher end in one Accelerator."""

import importlib
import logging
import os
from argparse import Namespace
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
from timm_hnc.evaluation.compilation import resolve_compilation
from timm_hnc.evaluation.precision import on_cpu, resolve_precision, set_up_process

_logger = logging.getLogger(__name__)


def create_accelerator(args: Namespace, explicit: frozenset[str]) -> Accelerator:
    """The Accelerator that command line and launcher ask for.

    Args:
        args: training options, changed to what is in force where the launcher has a say.
        explicit: names of the options that were given.

    Raises:
        UsageError: command line and launcher contradict each other, or a package is missing.
    """
    for module in args.device_modules or ():
        try:
            importlib.import_module(module)
        except (ImportError, ValueError, TypeError) as error:
            raise UsageError(f'--device-modules {module}: cannot be imported ({error}).') from error
    cpu = on_cpu(args)
    args.grad_accum_steps = _accumulation(args, explicit)
    resolve_compilation(args)
    trackers = _trackers(args)
    accelerator = Accelerator(
        mixed_precision=resolve_precision(args, explicit),
        cpu=cpu,
        # our own counter closes the last window of an epoch; Accelerate's would scale the loss a second time
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend='no'),  # it would compile around DDP, and leave out what is evaluated
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=not args.no_ddp_bb)],
        log_with=trackers or None,
        project_config=ProjectConfiguration(logging_dir='.'),  # `start_trackers` puts the run folder there
        step_scheduler_with_optimizer=False,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(
            f"accelerate launch asks for {accelerator.distributed_type.value}: train.py's checkpoints are those of "
            'whole models on every process; launch it with --multi_gpu.'
        )
    _check_sync_bn(args, accelerator)
    set_up_process(args, accelerator)
    if cpu and not args.device.startswith('cpu'):
        _logger.info('No accelerator here: training on the CPU.')
    return accelerator


def _check_sync_bn(args: Namespace, accelerator: Accelerator) -> None:
    if args.sync_bn and accelerator.device.type == 'cpu':
        raise UsageError('--sync-bn: PyTorch synchronises batch statistics on accelerators only; leave it out here.')


def _accumulation(args: Namespace, explicit: frozenset[str]) -> int:
    launcher = int(os.environ.get('ACCELERATE_GRADIENT_ACCUMULATION_STEPS') or 1)
    if launcher == 1 or launcher == args.grad_accum_steps:
        return args.grad_accum_steps
    if 'grad_accum_steps' in explicit:
        raise UsageError(f'--grad-accum-steps {args.grad_accum_steps} contradicts the launcher, which says {launcher}.')
    return launcher


def _trackers(args: Namespace) -> list[str]:
    trackers = []
    for wanted, package, advice in (
        (args.log_tensorboard, 'tensorboard', 'pip install "timm_hnc[track]"'),
        (args.log_wandb, 'wandb', 'pip install wandb'),
    ):
        if wanted and find_spec(package) is None:
            raise UsageError(f'--log-{package} needs the package {package}: {advice}.')
        if wanted:
            trackers.append(package)
    return trackers
