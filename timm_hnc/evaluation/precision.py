"""Mixed precision and device, where command line and launcher both have a say, and what a process sets once."""

import logging
import os
import time
from argparse import Namespace

import torch
from accelerate import Accelerator
from timm import utils
from timm.layers import set_fast_norm

from timm_hnc.errors import UsageError

_logger = logging.getLogger(__name__)
_ACCELERATE_NAMES = {'float16': 'fp16', 'bfloat16': 'bf16'}


def on_cpu(args: Namespace) -> bool:
    """Whether --device asks for the CPU, or there is nothing else."""
    return args.device.startswith('cpu') or not torch.accelerator.is_available()


def resolve_precision(args: Namespace, explicit: frozenset[str]) -> str:
    """Accelerate's name of the precision that command line and launcher ask for; --amp and --amp-dtype follow it.

    Args:
        args: options of the command line, changed to what is in force.
        explicit: names of the options that were given.

    Raises:
        UsageError: command line and launcher contradict each other.
    """
    # the launcher exports `no` unasked, which therefore contradicts nothing
    launcher = os.environ.get('ACCELERATE_MIXED_PRECISION') or 'no'
    precision = _ACCELERATE_NAMES[args.amp_dtype] if args.amp else 'no'
    if launcher != 'no' and precision not in ('no', launcher):
        if 'amp_dtype' in explicit:
            raise UsageError(
                f'--amp-dtype {args.amp_dtype} contradicts the launcher, which says {launcher}: leave one of them out.'
            )
        precision = launcher  # --amp alone asks for mixed precision, not for a type
    precision = launcher if precision == 'no' else precision
    if precision != 'no' and args.model_dtype not in (None, 'float32'):
        raise UsageError(f'--model-dtype {args.model_dtype} contradicts mixed precision ({precision}): drop one.')
    if precision == 'fp16' and on_cpu(args):
        _logger.warning('Mixed precision on a CPU means bfloat16 here: float16 has no effect there.')
        precision = 'bf16'
    for name, accelerate_name in _ACCELERATE_NAMES.items():
        if precision == accelerate_name:
            args.amp, args.amp_dtype = True, name
    return precision


def set_up_process(args: Namespace, accelerator: Accelerator) -> None:
    """Logging (the main process speaks, others warn), and the arithmetic that timm's scripts choose on CUDA."""
    utils.setup_default_logging(default_level=logging.INFO if accelerator.is_main_process else logging.WARNING)
    for name in ('httpx', 'httpx2', 'urllib3'):
        logging.getLogger(name).setLevel(logging.WARNING)  # they would tell of every request, signed addresses and all
    if accelerator.device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    set_fast_norm(args.fast_norm)
    _logger.info(
        f'{accelerator.num_processes} process(es) on {accelerator.device}, precision: {accelerator.mixed_precision}.'
    )


def end_training(accelerator: Accelerator) -> None:
    """Accelerate's own, once gloo's threads have let go of their tensors.

    Freeing one takes the interpreter's lock, which torch keeps while it waits for those threads to end: a process was
    seen to hang there (torch 2.7).
    """
    if accelerator.num_processes > 1 and accelerator.device.type == 'cpu':
        time.sleep(0.1)
    accelerator.end_training()
