"""What a run cannot go on with: other processes, classes of other numbers, another optimizer."""

import json
import logging
from pathlib import Path
from typing import Any

from timm_hnc.data.class_names import check_classes_of_model
from timm_hnc.errors import DataError
from timm_hnc.training.setup.build import Run

_logger = logging.getLogger(__name__)


def check_processes(run: Run) -> None:
    """Another number of processes reads the data in another order: that is for the user to say."""
    progress, now = run.checkpoints.progress, run.accelerator.num_processes
    if progress.num_processes == now:
        return
    if not run.options.run.allow_world_size_change:
        raise DataError(
            f'the run was trained by {progress.num_processes} process(es), now it has {now}: start as many, or pass '
            '--allow-world-size-change and get other batches from here on.'
        )
    if run.accelerator.is_main_process:
        _logger.warning(
            f'Going on with another number of processes ({now}, before {progress.num_processes}): no longer exact are '
            'the order of the data, its augmentation, the size of the global batch, and batch statistics'
            + ('; the epoch that was under way begins anew.' if progress.updates_in_epoch else '.')
        )
    progress.updates_in_epoch = 0


def check_classes(run: Run, checkpoint: Path) -> None:
    """Refuse data whose classes have other numbers than those that the weights were trained on."""
    try:
        config = json.loads((checkpoint / 'model' / 'config.json').read_text(encoding='utf-8'))
        names = config.get('label_names') or ()
    except (OSError, ValueError, AttributeError):
        return  # the weights say nothing
    try:
        check_classes_of_model(names, run.data.train_set)
    except DataError as error:
        raise DataError(f"checkpoint '{checkpoint}' does not fit this data: {error}") from error


def loss_changed(run: Run) -> bool:
    """Whether the checkpoint was trained with another criterion."""
    return run.checkpoints.progress.parts[-1].options.get('loss') != run.options.loss.loss


def check_optimizer(run: Run, checkpoint: Path, state: dict[str, Any]) -> None:
    """Refuse the state of an optimizer that has other settings, or learns something else, than this one."""
    if run.options.run.no_resume_opt:
        return
    if ('projection' in state) != (run.projection is not None):
        raise DataError(
            f"checkpoint '{checkpoint}' has another optimizer than this run: one of them learns a teacher's features "
            '(--kd-distill-type feature). Go on with the same teacher, or pass --no-resume-opt.'
        )
    learned = isinstance(state, dict) and bool(state.get('loss'))
    if loss_changed(run) and (learned or (run.loss is not None and run.loss.state_dict())):
        raise DataError(
            f"checkpoint '{checkpoint}' has another --loss than this run, and one of them learns: go on with the loss "
            'that it was trained with, or pass --no-resume-opt, and what is learned begins anew.'
        )
    before, now = run.checkpoints.progress.parts[-1].options.get('opt'), run.options.optimizer.opt
    if before == now:
        return
    try:
        kept = {*state['optimizer']['param_groups'][0]} - {'initial_lr'}
    except (KeyError, IndexError, TypeError):
        return  # it is no optimizer's, which is said where it is loaded
    if kept != {*run.optimizer.param_groups[0]} - {'initial_lr'}:
        raise DataError(
            f"checkpoint '{checkpoint}' has the state of --opt {before}, with which --opt {now} cannot go on: pass "
            f'--no-resume-opt, or go on with --opt {before}.'
        )
