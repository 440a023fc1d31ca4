"""One epoch of training."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from timm import utils
from timm.data import FastCollateMixup
from timm.models import model_parameters
from torch import Tensor

from timm_hnc.cam.object_masks import ObjectMasks
from timm_hnc.data.loading.seeded_batches import seed_generators, seed_process
from timm_hnc.data.targets import check_batch
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.evaluate import batches
from timm_hnc.tasks import ClassMapTask
from timm_hnc.training.averages import Averages
from timm_hnc.training.nonfinite import REMEDY, bad_gradient, count_update, leave_out
from timm_hnc.training.setup.build import Run
from timm_hnc.training.setup.model_checks import check_cells, check_image_size
from timm_hnc.training.setup.optimizer import LOSS_GROUP, inner_optimizer
from timm_hnc.training.sharding import operations_of_parts
from timm_hnc.training.update_flags import Notice

OnUpdate = Callable[[int, Notice | None], None]

_logger = logging.getLogger(__name__)
_EPOCH_SEED_STRIDE = 100_003
_OF_THE_STEP = -2


@dataclass(frozen=True)
class Step:
    """A batch and its place among those whose gradients one update accumulates.

    Args:
        index: of the batch in its epoch.
        window: how many batches the update takes.
        last: the update follows this batch.
        input: (B, C, H, W), or a NaFlex batch.
        target: (B,) or (B, n).
        masks: where the objects are, for losses that need it.
    """

    index: int
    window: int
    last: bool
    input: Any
    target: Tensor
    masks: ObjectMasks | None = None


def train_one_epoch(run: Run, epoch: int, on_update: OnUpdate = lambda update, notice: None) -> dict[str, float]:
    """Train for an epoch, or for what is left of it.

    Raises:
        DataError: a loss or gradient is not finite, or no image can be read.
    """
    seed_process(run.options.loader.seed + _EPOCH_SEED_STRIDE * (epoch + 1), run.accelerator.process_index)
    _begin_epoch(run, epoch)
    run.task.train()
    run.optimizer.zero_grad()
    update, run.start_update = run.start_update, 0
    started, before = time.monotonic(), run.averages.count
    tally = _Tally(run)
    for step in _steps(run, epoch, update * run.options.batches.grad_accum_steps):
        # whole gradients, kept from batch to batch, would take the memory that FSDP saves
        with nullcontext() if step.last or run.whole is not None else run.accelerator.no_sync(run.task):
            with run.accelerator.autocast():  # which Accelerate leaves out where parameters are in parts
                result = _losses(run, step)
            loss = result['loss'] * (_batch_scale(run, len(step.target)) / step.window)
            run.accelerator.backward(loss, create_graph=getattr(run.optimizer.optimizer, 'is_second_order', False))
        tally.averages.update(result, len(step.target))
        if not step.last:
            continue
        log_due = update % run.options.run.log_interval == 0 or update + 1 == run.updates_per_epoch
        update += 1
        used = learning_rate(run.optimizer) if log_due else 0.0  # the schedule moves it behind the update
        notice = _exchange(run, step, tally.averages.sums['loss'])
        num_updates = epoch * run.updates_per_epoch + update
        if notice is not None and notice.bad:
            leave_out(run, notice, epoch)
            run.optimizer.zero_grad()
            tally.undo()
        else:
            _update(run, num_updates)
            count_update(run)
            run.averages.add(tally.averages)
        if run.scheduler is not None:  # which goes by the place in the run
            run.scheduler.step_update(num_updates=num_updates)
        tally = _Tally(run)
        if log_due:
            _log(run, epoch, update, used, (run.averages.count - before) / (time.monotonic() - started))
            _save_images(run, step)
        on_update(update, notice)
    settle(run, epoch)
    _settle_weight(run, epoch)
    if hasattr(run.optimizer.optimizer, 'sync_lookahead'):
        run.optimizer.optimizer.sync_lookahead()
    if not run.averages.count and run.skipped_in_a_row:
        raise DataError(f'every update of epoch {epoch} was left out: losses or gradients are not finite; {REMEDY}')
    if not run.averages.count:
        raise DataError(
            f'no training image could be used in epoch {epoch}: see --data-dir and --train-split; of a stream, each '
            'process needs a shard.'
        )
    metrics = run.averages.compute(run.accelerator)
    run.averages = Averages()
    return metrics


def _losses(run: Run, step: Step) -> dict[str, Tensor]:
    try:
        return run.task(step.input, step.target, *([] if step.masks is None else [step.masks]))
    except ValueError as error:
        if not str(error).startswith('Expected more than 1 value per channel'):  # torch's, of batch normalization
            raise
        raise UsageError(
            f'a batch of {len(step.target)} leaves a batch normalization layer one value a channel, which has no '
            'variance: give a larger --batch-size, or larger images.'
        ) from error


class _Tally:
    """What the batches of one update leave behind them, for the case that the update is left out."""

    def __init__(self, run: Run) -> None:
        self.averages = Averages()
        # bad numbers are in the running statistics before they are seen in the loss
        buffers = run.task.buffers() if run.options.run.on_nonfinite == 'skip' else ()
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def undo(self) -> None:
        for buffer, before in self._buffers:
            buffer.copy_(before)


def _exchange(run: Run, step: Step, loss: Tensor) -> Notice | None:
    due = run.accelerator.is_main_process and run.clock.passed()
    indices = range(step.index + 1 - step.window, step.index + 1)
    return run.notices.exchange(indices, ~loss.isfinite(), bad_gradient(run), run.stop.received, due)


def settle(run: Run, epoch: int) -> None:
    """Look at the last update's numbers, if that was not done yet: before anything of it is kept."""
    notice = run.notices.settle()
    if notice is not None and notice.bad:
        leave_out(run, notice, epoch)


def _begin_epoch(run: Run, epoch: int) -> None:
    loader = run.data.train_loader
    for part in (loader.dataset, loader.batch_sampler, loader.sampler):
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
    if run.data.seeded is not None:
        run.data.seeded.start = run.start_update * run.options.batches.grad_accum_steps
    if run.data.mixup is not None and run.options.mixup.mixup_off_epoch and epoch >= run.options.mixup.mixup_off_epoch:
        run.data.mixup.mixup_enabled = False
    if run.options.hnc.on:
        utils.unwrap_model(run.task).hnc_joins = epoch >= run.options.hnc.hnc_start_epoch


def _settle_weight(run: Run, epoch: int) -> None:
    """End a weight's following with the first epoch after the warm-up, if a whole one was measured."""
    weight, schedule = run.auto_weight, run.options.schedule
    if weight is None or not run.options.hnc.weight_settles:
        return
    warmup_epochs = 0 if schedule.sched == 'none' else schedule.warmup_epochs
    if epoch >= warmup_epochs and not weight.part_of_epoch:
        weight.settled = bool(weight.value > 0)
    weight.part_of_epoch = False


def _steps(run: Run, epoch: int, first: int) -> Iterator[Step]:
    """Batches on the device from the first on, each with its accumulation window; the last window may be shorter."""
    length, steps = len(run.data.train_loader), run.options.batches.grad_accum_steps
    remainder = length % steps
    inputs = batches(
        run.data.train_loader,
        run.accelerator.device,
        run.options.device,
        len(run.data.class_names),
        ignored=getattr(getattr(utils.unwrap_model(run.task), 'criterion', None), 'ignore_index', None),
    )
    mixup = None if isinstance(run.data.mixup, FastCollateMixup) else run.data.mixup  # whose batches come mixed
    mixes = run.options.mixup.active
    multi_label = run.options.task.multi_label
    values = multi_label or (mixup is None if mixes else run.options.loss.takes_values)
    for index, (input, target) in enumerate(inputs, first):
        if run.data.seeded is not None:
            # mixup on the device, dropout and stochastic depth depend on the step, not on the steps before
            seed_generators(run.data.seeded.seed, epoch, index, _OF_THE_STEP, devices=True)
        masks = None
        if run.data.guided is not None:
            target, *parts = run.data.guided.slots.split(target)
            masks = ObjectMasks(*parts)
        check_batch(target, len(run.data.class_names), indices=not multi_label, values=values)
        if index == first and epoch == run.start_epoch:
            _check_first_batch(run, input, target)
        if mixup is not None:
            input, target = mixup(input, target)
        place = index if index < length else index - length  # a loader may have more batches than it says
        last = index + 1 == length or (place + 1) % steps == 0
        window = remainder if length - remainder <= index < length else steps
        yield Step(index, window, last, input, target, masks)


def _check_first_batch(run: Run, input: Any, target: Tensor) -> None:
    """Look at what only a loader that is provided may have: images of another size, targets that are smoothed."""
    task = utils.unwrap_model(run.task)
    if isinstance(task, ClassMapTask) and not run.options.mixup.active:
        task.look_at_targets(target)
    if isinstance(input, Tensor) and input.ndim == 4:
        size = (input.shape[1], input.shape[2], input.shape[3])
        check_image_size(run.options, run.model, size)
        if size != tuple(run.data.config['input_size']) and run.whole is None:  # the others were looked at
            check_cells(run.options, lambda: run.wrap(run.model), size)


def _batch_scale(run: Run, batch_size: int) -> float:
    """Weight of a batch where batches differ in size: under scheduled resolutions, and with NaFlex."""
    options, mode, usual = run.options, 'none', float(batch_size)
    if run.data.patches is not None:
        mode, usual = options.naflex.naflex_loss_scale, options.batches.batch_size
    elif options.sizes.train_img_sizes:
        mode = options.sizes.variable_batch_loss_scale
        usual = run.data.train_loader.batch_sampler.average_batch_size
    if mode == 'none':
        return 1.0
    scale = batch_size / usual
    return scale**0.5 if mode == 'sqrt' else scale


def _update(run: Run, num_updates: int) -> None:
    """Clip, step, and let the EMA follow.

    What draws random numbers of its own, Adahessian and bfloat16's rounding of averages, does so by the place in the
    run: a resumed one draws the same.
    """
    options = run.options.optimizer
    optimizer = inner_optimizer(run.optimizer.optimizer)
    if hasattr(optimizer, 'generator'):
        optimizer.seed = num_updates  # of the generator that it makes for another device
        optimizer.generator.manual_seed(num_updates)
    if options.clip_grad is not None:
        _clip(run, options.clip_grad, options.clip_mode)
    with operations_of_parts(f'--opt {options.opt}', run.whole is not None):
        run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema is not None:
        if run.options.device.weight_dtype is torch.bfloat16:
            run.ema._sr_generator.manual_seed(num_updates)
        run.ema.update(run.model, step=num_updates)
    if run.options.processes.synchronize_step and run.accelerator.device.type != 'cpu':
        torch.accelerator.synchronize()


def _clip(run: Run, value: float, mode: str) -> None:
    parameters = [*run.model.parameters(), *run.projection_parameters]
    if mode == 'norm':
        run.accelerator.clip_grad_norm_(parameters, value)
    elif mode == 'value':
        run.accelerator.unscale_gradients(run.optimizer)  # Accelerate's own refuses FSDP
        torch.nn.utils.clip_grad_value_(parameters, value)
    else:
        run.accelerator.unscale_gradients(run.optimizer)
        parameters = [*model_parameters(run.model, exclude_head=True), *run.projection_parameters]
        with operations_of_parts('--clip-mode agc', run.whole is not None):
            utils.dispatch_clip_grad(parameters, value, mode='agc')


def _log(run: Run, epoch: int, update: int, lr: float, rate: float) -> None:
    parts = '  '.join(f'{name} {value:#.4g}' for name, value in run.averages.summary().items())
    _logger.info(
        f'Train: {epoch} [{update:>4d}/{run.updates_per_epoch}]  {parts}  '
        f'lr {lr:.3e}  {rate * run.accelerator.num_processes:.0f} images/s'
    )


def learning_rate(optimizer: Any) -> float:
    """Mean over the parameter groups of the model."""
    rates = [group['lr'] for group in optimizer.param_groups if LOSS_GROUP not in group]
    return sum(rates) / len(rates)


def _save_images(run: Run, step: Step) -> None:
    if run.options.run.save_images and run.accelerator.is_main_process:
        path = run.folder / f'train-batch-{step.index}.jpg'
        torchvision.utils.save_image(step.input.float(), path, padding=0, normalize=True)
