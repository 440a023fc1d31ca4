"""A run's state: what a checkpoint keeps of it, and how a run goes on from one."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from timm_hnc.checkpoints.checkpoints import read_training_state
from timm_hnc.errors import DataError, first_lines
from timm_hnc.losses import AutoWeight
from timm_hnc.training.averages import Averages
from timm_hnc.training.outputs.changed_options import (
    changes_of_the_losses,
    check_place,
    metric_changed,
    use_settings,
)
from timm_hnc.training.outputs.resume_checks import check_classes, check_optimizer, check_processes, loss_changed
from timm_hnc.training.setup.build import Run
from timm_hnc.training.sharding import load_optimizer_state, load_state, whole_state
from timm_hnc.weights.saving import save_weights

_logger = logging.getLogger(__name__)
# of torch's ReduceLROnPlateau, whose state brings them along
_PLATEAU_SETTINGS = {'factor', 'patience', 'cooldown', 'min_lrs'}
_PLATEAU_BEST = {'best', 'num_bad_epochs', 'mode', 'mode_worse'}  # by the metric


def save_run(
    run: Run, name: str, completed_epochs: int, updates: int = 0, metric: float | None = None, milestone: bool = False
) -> None:
    """Write a checkpoint, with arguments as of `CheckpointFolder.save`; all processes call it."""
    progress = run.checkpoints.progress
    progress.completed_epochs, progress.updates_in_epoch = completed_epochs, updates
    progress.num_updates = completed_epochs * run.updates_per_epoch + updates
    progress.num_processes = run.accelerator.num_processes
    progress.skipped_updates, progress.skipped_in_a_row = run.skipped_updates, run.skipped_in_a_row
    progress.skipped_images = run.count_skipped_images()
    if updates or run.data.eval_loader is None:  # else it was done for the evaluation
        run.put_together()
    state = _state(run) | _kept_apart(run, inside_epoch=updates > 0)
    write = partial(_write, run, state) if run.accelerator.is_main_process else None
    run.checkpoints.save(name, write, metric, milestone)
    run.accelerator.wait_for_everyone()


def _kept_apart(run: Run, inside_epoch: bool) -> dict[str, Any]:
    """What processes have of their own: inside an epoch sums of the losses; and buffers such as running statistics.

    At the end of an epoch buffers are alike again, but for --dist-bn ''.
    """
    apart: dict[str, Any] = {'averages': run.averages.state(run.accelerator)} if inside_epoch else {}
    if run.distributed and (inside_epoch or not run.options.processes.dist_bn):
        own = {part: {name: each.cpu() for name, each in _buffers(module).items()} for part, module in _modules(run)}
        apart['buffers'] = gather_object([own])
    return apart


def _modules(run: Run) -> list[tuple[str, nn.Module]]:
    parts = (
        ('model', run.model),
        ('model_ema', run.ema and run.ema.module),  # as timm calls it, whose --use-ema reads it
        ('loss', run.loss),
        ('projection', run.projection),
        ('hnc_weight', run.auto_weight),
    )
    return [(name, module) for name, module in parts if module is not None]


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _state(run: Run) -> dict[str, Any]:
    """What all processes have alike."""
    state = {'optimizer': run.optimizer.optimizer.state_dict()}
    state |= {name: module.state_dict() for name, module in _modules(run)}
    if run.accelerator.scaler is not None:
        state['scaler'] = run.accelerator.scaler.state_dict()
    if _has_history(run):
        state['scheduler'] = run.scheduler.lr_scheduler.state_dict()
        state['rate_without_noise'] = run.scheduler.restore_lr
    return state if run.whole is None else whole_state(state, keep=run.accelerator.is_main_process)


def _write(run: Run, state: dict[str, Any], folder: Path) -> None:
    hnc = None
    if run.hnc_joins:
        names = ('weight', 'topk', 'alpha', 'reduction')
        hnc = {'variant': run.options.hnc.hnc, **{name: getattr(run.options.hnc, f'hnc_{name}') for name in names}}
        if run.options.task.multi_label and run.options.loss.sums_over_classes:
            hnc['bce_sum'] = True  # so does the cross-entropy that is attacked with the weight beside it
        if run.auto_weight is not None:
            hnc['weight'] = run.auto_weight.value.item()
    save_weights(run.evaluated_model, folder / 'model', run.data.class_names, run.data.config, hnc)
    torch.save(state, folder / 'training_state.pt')


def _has_history(run: Run) -> bool:
    """Whether the learning rate follows from what was before; that of other schedules is a function of the step."""
    return run.options.schedule.sched == 'plateau' and run.scheduler is not None


def restore(run: Run, checkpoint: Path) -> None:
    """Put a checkpoint's state into a run, and start where it stopped."""
    check_processes(run)
    check_place(run, checkpoint)
    check_classes(run, checkpoint)
    state = read_training_state(checkpoint)
    check_optimizer(run, checkpoint, state)
    progress = run.checkpoints.progress
    if 'ema' in state:  # its name until November 2026
        state['model_ema'] = state.pop('ema')
    try:
        for name, module in _modules(run):
            if name not in state and (name in ('hnc_weight', 'projection') or not module.state_dict()):
                continue  # the weight was a number so far, or the loss or the teacher is new
            if name == 'loss' and run.options.run.no_resume_opt and loss_changed(run):
                continue
            load_state(module, state['model'] if name == 'model_ema' and name not in state else state[name])
        if not run.options.run.no_resume_opt:
            fresh = [dict(group) for group in run.optimizer.param_groups]
            load_optimizer_state(run.optimizer.optimizer, state['optimizer'])
            use_settings(run, fresh)
            if run.accelerator.scaler is not None and 'scaler' in state:
                run.accelerator.scaler.load_state_dict(state['scaler'])
            if _has_history(run) and 'scheduler' in state:
                left_out = _PLATEAU_SETTINGS | (_PLATEAU_BEST if metric_changed(run) else set())
                past = {name: value for name, value in state['scheduler'].items() if name not in left_out}
                run.scheduler.lr_scheduler.load_state_dict(past)
                run.scheduler.restore_lr = state.get('rate_without_noise')
        if progress.updates_in_epoch and run.data.seeded is not None:
            run.start_update = progress.updates_in_epoch
            run.averages = Averages.restored(state['averages'], run.accelerator)
        if len(state.get('buffers', ())) == run.accelerator.num_processes:
            _restore_buffers(run, state['buffers'][run.accelerator.process_index])
        if run.auto_weight is not None:
            _restore_weight(run, run.auto_weight, was_measured='hnc_weight' in state)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"checkpoint '{checkpoint}' does not fit this run: {first_lines(error)}") from error
    run.start_epoch = progress.completed_epochs
    run.skipped_updates = progress.skipped_updates
    run.skipped_in_a_row = 0 if run.options.run.no_resume_opt else progress.skipped_in_a_row
    run.skipped_images_before = progress.skipped_images
    if progress.updates_in_epoch and not run.start_update:
        _logger.warning(f'Epoch {run.start_epoch} begins anew: this data cannot be read from its middle.')
    _logger.info(f"Going on from '{checkpoint}' with epoch {run.start_epoch}, update {run.start_update}.")


def _restore_weight(run: Run, weight: AutoWeight, was_measured: bool) -> None:
    """Let a weight that follows be one of this run's losses."""
    changes = changes_of_the_losses(run)
    if changes or not was_measured:
        weight.begin_anew(part_of_epoch=run.start_update > 0)
    if changes and was_measured:
        _logger.warning(f'--hnc-weight {run.options.hnc.hnc_weight} is measured anew: {changes}.')
    weight.settled = weight.settled and run.options.hnc.weight_settles


def _restore_buffers(run: Run, own: dict[str, dict[str, Tensor]]) -> None:
    for name, module in _modules(run):
        for buffer, value in zip(_buffers(module).values(), own[name].values(), strict=True) if name in own else ():
            buffer.copy_(value)


def start_schedule(run: Run) -> None:
    """Bring the learning rate to where the run starts."""
    resumed, chosen = run.start_epoch > 0 or run.start_update > 0, run.options.schedule.start_epoch
    if chosen is not None:
        run.start_epoch, run.start_update, run.averages = chosen, 0, Averages()
    if run.scheduler is None:
        return
    if _has_history(run):
        goes_on = resumed and chosen != 0 and not run.options.run.no_resume_opt
        if not goes_on and (resumed or run.start_epoch > 0):
            _begin_history_anew(run)
        return  # or the optimizer's state has the rate
    num_updates = run.start_epoch * run.updates_per_epoch + run.start_update
    if run.options.schedule.sched_on_updates and num_updates:
        run.scheduler.step_update(num_updates)
    elif run.start_epoch:
        run.scheduler.step(run.start_epoch)
    else:  # a new scheduler's rate, from which its step(0) may differ, and that of a checkpoint inside the epoch
        for group, rate in zip(run.optimizer.param_groups, run.first_rates, strict=True):
            group['lr'] = rate


def _begin_history_anew(run: Run) -> None:
    """Forget what the rate followed: it is the first one, or that of the warm-up's epoch."""
    scheduler = run.scheduler
    scheduler.lr_scheduler._reset()
    scheduler.restore_lr = None
    scheduler.update_groups(scheduler.base_values)
    if run.start_epoch < scheduler.warmup_t:
        scheduler.step(run.start_epoch)
