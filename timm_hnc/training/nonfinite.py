"""Loss and gradients that are not finite: the run stops, or the update is left out, on all processes together."""

import logging

import torch
from accelerate.utils import gather_object
from torch import Tensor

from timm_hnc.errors import DataError
from timm_hnc.training.setup.build import Run
from timm_hnc.training.sharding import whole
from timm_hnc.training.update_flags import Notice

MOST_IN_A_ROW = 20  # updates without effect; float16 needs a few at its start to find its scale
_SHOWN = 32
REMEDY = (
    'nothing of it is saved, and earlier checkpoints are whole. Lower --lr or --hnc-weight, or set --clip-grad; '
    '--on-nonfinite skip leaves such updates out.'
)
_logger = logging.getLogger(__name__)


def bad_gradient(run: Run) -> Tensor:
    """() bool, whether a gradient of this process is not finite; the scaler of float16 looks at them by itself."""
    if run.accelerator.scaler is not None:
        return torch.zeros((), dtype=torch.bool, device=run.accelerator.device)
    groups = run.optimizer.param_groups
    gradients = [each.grad for group in groups for each in group['params'] if each.grad is not None]
    if any(gradient.dtype is torch.float16 for gradient in gradients):  # whose norm ends at 65,504
        return ~torch.stack([whole(gradient.isfinite().all()) for gradient in gradients]).all()
    return ~whole(torch.nn.utils.get_total_norm(gradients)).isfinite()


def leave_out(run: Run, notice: Notice, epoch: int) -> None:
    """Count an update with bad numbers as left out (--on-nonfinite skip), or stop the run; all processes call it.

    Raises:
        DataError: with epoch, batch and samples (--on-nonfinite stop), or after too many in a row.
    """
    first, last = notice.batches[0], notice.batches[-1]
    where = f'epoch {epoch}, ' + (f'batch {last}' if first == last else f'batches {first} to {last}')
    what = f'{"the loss" if notice.bad_loss else "a gradient"} is not finite in {where}'
    seeded = run.data.seeded if notice.here or not notice.bad_loss else None
    samples = gather_object([each for batch in notice.batches for each in seeded.samples(batch)] if seeded else [])
    if samples:
        what += f' (samples {", ".join(map(str, samples[:_SHOWN]))}{", ..." if len(samples) > _SHOWN else ""})'
    if run.options.run.on_nonfinite == 'stop':
        raise DataError(f'{what}: {REMEDY}')
    _count(run, what)
    if run.accelerator.is_main_process:
        _logger.warning(f'{what}: the update is left out.')


def count_update(run: Run) -> None:
    """Count a step of the optimizer: one that worked, or one that the loss scale of float16 left out.

    Raises:
        DataError: too many were left out in a row.
    """
    if run.accelerator.scaler is not None and run.optimizer.step_was_skipped:
        _count(run, 'float16 overflows')
    else:
        run.skipped_in_a_row = 0


def _count(run: Run, what: str) -> None:
    run.skipped_updates += 1
    run.skipped_in_a_row += 1
    if run.skipped_in_a_row > MOST_IN_A_ROW:
        raise DataError(f'{what}, as in the {MOST_IN_A_ROW} updates before: {REMEDY}')
