"""Everything a run is made of, built from its options."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm import utils
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, MultiLabelClassificationTask
from timm.utils import ModelEmaV3

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.hooked_head import is_of_timm
from timm_hnc.checkpoints.checkpoints import CheckpointFolder
from timm_hnc.data.inputs import input_config
from timm_hnc.data.loading.seeded_batches import seed_process
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.errors import UsageError
from timm_hnc.losses.auto_weight import AutoWeight
from timm_hnc.losses.base import Loss
from timm_hnc.losses.maps.base import MapLoss
from timm_hnc.losses.plain_classifier import with_plain_classifier
from timm_hnc.runtime.compilation import Compilation
from timm_hnc.runtime.process import one_process_first, sum_of_processes
from timm_hnc.tasks import ClassMapMultiLabelTask, ClassMapTask, HNCMultiLabelTask, HNCTask
from timm_hnc.training.averages import Averages
from timm_hnc.training.checkpoint_interval import CheckpointInterval
from timm_hnc.training.setup.image_sizes import grid_of, training_sizes
from timm_hnc.training.setup.model_checks import (
    check_cells,
    check_image_size,
    check_naflex_maps,
    try_image_sizes,
)
from timm_hnc.training.setup.models import create_model
from timm_hnc.training.setup.objective.criterion import timm_criterion_kwargs
from timm_hnc.training.setup.objective.distillation import check_student, create_distillation
from timm_hnc.training.setup.objective.losses import create_run_loss
from timm_hnc.training.setup.objective.map_losses import create_map_losses
from timm_hnc.training.setup.objective.teachers import create_teacher, source_of_teacher
from timm_hnc.training.setup.optimizer import create_ema, create_optimizer, with_learning_rate
from timm_hnc.training.setup.options import TrainOptions
from timm_hnc.training.setup.provided import Provided
from timm_hnc.training.setup.run_data import RunData, create_run_data
from timm_hnc.training.sharding import prepare, put_together
from timm_hnc.training.signals import StopSignals
from timm_hnc.training.update_flags import Notices

_logger = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run.

    Args:
        options: those in force.
        accelerator: device, precision and processes.
        folder: the run folder.
        model: the plain model, unwrapped; its parameters are those that train.
        loss: of timm_hnc.losses, None for timm's.
        projection: between a teacher's features and the model's, None without; it trains with the model.
        compiled: compiles what is evaluated, where the run is compiled.
        task: model and losses, compiled, as Accelerate wrapped them.
        ema: moving average of the model, or None.
        optimizer: as Accelerate wrapped it.
        data: what it trains on and is evaluated on.
        checkpoints: of this run folder.
        wrap: makes the CamModel of a model of the run's architecture.
        notices: what processes tell each other of every update.
        scheduler: timm's, or None.
        first_rates: learning rates of the optimizer's groups that it begins with.
        num_epochs: where the run ends.
        whole: takes up the weights that count where processes hold them in parts; else None.
        export_copy: of `averaged_model`, with the classifier that the loss exports; None where that is the model's own.
        start_epoch: the epoch to begin with.
        start_update: updates of that epoch that are done already.
        averages: of the epoch under way.
        stop: signals that ask the run to stop.
        clock: when a checkpoint is due inside an epoch.
        skipped_updates: those left out because of numbers that are not finite.
        skipped_in_a_row: how many of them were the last updates.
        skipped_images_before: those that the run skipped before it was resumed.
    """

    options: TrainOptions
    accelerator: Accelerator
    folder: Path
    model: Any
    loss: Loss | None
    projection: Any
    compiled: Compilation
    task: Any
    ema: ModelEmaV3 | None
    optimizer: Any
    data: RunData
    checkpoints: CheckpointFolder
    wrap: Callable[[Any], CamModel]
    notices: Notices
    scheduler: Any = None
    first_rates: list[float] = field(default_factory=list)
    num_epochs: int = 0
    whole: Any = None
    export_copy: Any = None
    start_epoch: int = 0
    start_update: int = 0
    averages: Averages = field(default_factory=Averages)
    stop: StopSignals = field(default_factory=StopSignals)
    clock: CheckpointInterval = field(default_factory=CheckpointInterval)
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    skipped_images_before: int = 0

    def count_skipped_images(self) -> int:
        """Images that all processes skipped; all of them call it."""
        count = sum_of_processes(torch.tensor(self.data.skipped.count), self.accelerator)
        return self.skipped_images_before + int(count)

    @property
    def distributed(self) -> bool:
        """Whether there are several processes."""
        return self.accelerator.num_processes > 1

    @property
    def eval_metric(self) -> str:
        """The metric that ranks checkpoints: the training loss where nothing is evaluated."""
        return self.options.run.eval_metric if self.data.eval_loader is not None else 'loss'

    @property
    def hnc_joins(self) -> bool:
        """Whether HNC is part of the loss in this epoch."""
        return bool(getattr(utils.unwrap_model(self.task), 'hnc_joins', False))

    @property
    def auto_weight(self) -> AutoWeight | None:
        """The weight of HNC where it follows from the gradients."""
        weight = getattr(utils.unwrap_model(self.task), 'hnc_weight', None)
        return weight if isinstance(weight, AutoWeight) else None

    @property
    def projection_parameters(self) -> list[Any]:
        """Those of the projection, none without one."""
        return [] if self.projection is None else list(self.projection.parameters())

    @property
    def averaged_model(self) -> Any:
        """The weights that count: the moving average, unless it lives on the CPU alone."""
        return self.averaged_parts if self.whole is None else self.whole

    @property
    def averaged_parts(self) -> Any:
        """`averaged_model` as the processes hold it."""
        return self.model if self.ema is None or self.options.ema.model_ema_force_cpu else self.ema.module

    def put_together(self) -> None:
        """Renew `averaged_model` where processes hold parts of the weights; all of them call it."""
        if self.whole is not None:
            put_together(self.averaged_parts, self.whole)

    @property
    def evaluated_model(self) -> Any:
        """What is evaluated, saved and drawn: the weights that count, with the classifier that the loss exports."""
        return with_plain_classifier(self.averaged_model, self.loss, self.export_copy)

    def classifier(self, model: Any) -> Any:
        """What returns plain logits of a model of the run's architecture, as timm's do by themselves."""
        return model if is_of_timm(model) else self.wrap(model)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last window of accumulated batches may be shorter."""
        return -(-len(self.data.train_loader) // self.options.batches.grad_accum_steps)


def build_run(
    options: TrainOptions,
    accelerator: Accelerator,
    checkpoints: CheckpointFolder,
    provided: Provided | None = None,
    skipped: SkippedImages | None = None,
) -> Run:
    """Make model, data, losses, optimizer and schedule; `skipped` counts images that cannot be decoded."""
    provided = provided or Provided()
    _check_teachers(options)
    seed_process(options.loader.seed, accelerator.process_index)
    model, data_config = _create_model(options, provided.model, accelerator)
    patches = options.naflex.patches(model)
    check_naflex_maps(options, model)
    check_cells(options, lambda: provided.wrap(model), data_config['input_size'])
    looked_at = options.distillation.on and options.needs_class_maps
    check_student(options.distillation, model, provided.wrap(model) if looked_at else None)
    num_classes = options.input.num_classes or model.num_classes
    needs_grid = options.map_losses.needs_objects
    grid = grid_of(provided.wrap(model), data_config['input_size']) if needs_grid else None
    data = create_run_data(
        *(options, provided.train_set, provided.eval_set, data_config, num_classes, grid, patches, accelerator),
        skipped or SkippedImages(),
    )
    options = _resolved(options, num_classes, data.train_loader, accelerator.num_processes)
    loss = create_run_loss(options.loss, options.task, options.mixup.active, model, num_classes, data.train_set)
    compiled = Compilation(options.device.torchcompile, options.device.torchcompile_mode)
    map_losses = create_map_losses(options, num_classes, data_config, data.train_set, accelerator)
    distil = (
        _distil(options, num_classes, data_config, data.train_set, accelerator) if options.distillation.on else None
    )
    task = create_task(options, model, provided.wrap, loss, map_losses, accelerator, distil)
    distilling = getattr(task, 'distillation', None) or task
    projection = getattr(distilling.trainable_module, 'projection', None)
    task = compiled(task)  # inside DDP, whose hooks would break the graph
    optimizer = create_optimizer(options.optimizer, options.schedule, model, loss, options.loss.loss_lr, projection)
    task, optimizer, whole_model = prepare(accelerator, task, optimizer, model)
    run = Run(
        options=options,
        accelerator=accelerator,
        folder=checkpoints.folder,
        model=model,
        loss=loss,
        projection=projection,
        compiled=compiled,
        task=task,
        ema=create_ema(options.ema, model, whole_model),
        optimizer=optimizer,
        data=data,
        clock=options.run.interval(),
        notices=Notices(accelerator, at_once=options.run.on_nonfinite == 'skip'),
        checkpoints=checkpoints,
        wrap=provided.wrap,
        whole=whole_model,
    )
    if loss is not None and loss.changes_scores:
        run.export_copy = with_plain_classifier(run.averaged_model, loss)
    _set_schedule(run)
    return run


def _set_schedule(run: Run) -> None:
    """Give a run its scheduler, the rates that it begins with, and how many epochs there are."""
    options = run.options
    run.scheduler, num_epochs = create_scheduler_v2(
        # prepare() gave the optimizer new parameter groups; timm's scheduler must see those
        run.optimizer.optimizer,
        **options.schedule.arguments(options.loader.seed, decreasing_metric=run.eval_metric == 'loss'),
        updates_per_epoch=run.updates_per_epoch,
    )
    run.first_rates = [group['lr'] for group in run.optimizer.param_groups]
    run.num_epochs = min(num_epochs, options.schedule.stop_epoch or num_epochs)
    _check_epochs(options, run.num_epochs)


def _check_teachers(options: TrainOptions) -> None:
    """Refuse teachers that are not there, before data and weights are read."""
    teachers = {'--kd-model-name': options.distillation.kd_model_name, '--map-teacher': options.map_losses.map_teacher}
    for flag, name in teachers.items():
        if name:
            source_of_teacher(name, flag)


def _check_epochs(options: TrainOptions, num_epochs: int) -> None:
    """Refuse HNC that never joins in, and warn of epochs that never come."""
    if options.hnc.hnc_start_epoch >= num_epochs:
        raise UsageError(f'--hnc-start-epoch {options.hnc.hnc_start_epoch}: the run ends after {num_epochs} epochs.')
    late = [epoch for epoch in options.run.save_epochs or () if epoch > num_epochs]
    if late:
        _logger.warning(f'--save-epochs {" ".join(map(str, late))}: the run ends after epoch {num_epochs}.')


def _create_model(options: TrainOptions, model: Any, accelerator: Accelerator) -> tuple[Any, dict[str, Any]]:
    """The provided model, or the one that the options name, on its device, and how it wants its images."""
    is_provided = model is not None
    with one_process_first(accelerator):
        if model is None:
            model = create_model(options.model, options.input, options.augmentation.aug_splits)
    data_config = input_config(model, options.input, verbose=accelerator.is_main_process)
    check_image_size(options, model, data_config['input_size'])
    placed = options.device.placed(model, accelerator.device)
    if not is_provided:
        try_image_sizes(options, placed, data_config['input_size'])
    return placed, data_config


def _resolved(options: TrainOptions, num_classes: int, loader: Any, world_size: int) -> TrainOptions:
    """The options with what model and data say: the number of classes, and the learning rate."""
    batch_size = getattr(loader.batch_sampler, 'average_batch_size', options.batches.batch_size)
    images = batch_size * world_size * options.batches.grad_accum_steps
    schedule = with_learning_rate(options.schedule, options.optimizer.opt, images)
    defaults = replace(options.defaults, scaled_lr=None if options.schedule.lr else schedule.lr)
    model = replace(options.input, num_classes=num_classes)
    return replace(options, input=model, schedule=schedule, defaults=defaults)


def _distil(
    options: TrainOptions, num_classes: int, data_config: dict[str, Any], train_set: Any, accelerator: Accelerator
) -> Callable[..., Any]:
    """What makes timm's distillation task of a student and a criterion."""
    name = options.distillation.kd_model_name or ''
    sizes = training_sizes(data_config['input_size'], options.sizes.train_img_sizes)
    teacher = create_teacher(name, '--kd-model-name', num_classes, sizes, train_set, options.device, accelerator)
    return partial(
        create_distillation,
        options.distillation,
        teacher,
        {**data_config, 'input_size': sizes[0]},
        device=accelerator.device,
        dtype=options.device.weight_dtype,
        verbose=accelerator.is_main_process,
    )


def create_task(
    options: TrainOptions,
    model: Any,
    wrap: Callable[[Any], CamModel],
    loss: Loss | None,
    map_losses: dict[str, tuple[MapLoss, float]],
    accelerator: Accelerator,
    distil: Callable[..., Any] | None = None,
) -> Any:
    """The task that trains the model: timm's own for losses on logits, ours for those on class maps."""
    multi_label, mixed = options.task.multi_label, options.mixup.active
    arguments: dict[str, Any] = dict(device=accelerator.device, verbose=accelerator.is_main_process)
    if loss is None:
        arguments['criterion_kwargs'] = timm_criterion_kwargs(options.loss, mixed, options.augmentation.aug_splits)
    else:
        arguments['criterion'] = loss
    if multi_label:
        arguments['threshold'] = options.task.multilabel_threshold
    if not options.needs_class_maps and distil is not None:
        return distil(student=model, **{name: arguments[name] for name in arguments if name.startswith('criterion')})
    if not options.needs_class_maps:
        classifier = model if is_of_timm(model) else wrap(model)
        return (MultiLabelClassificationTask if multi_label else ClassificationTask)(classifier, **arguments)
    arguments |= {'map_losses': map_losses, 'distil': distil}
    if loss is not None and mixed:
        classes = 2 if multi_label else options.input.num_classes or model.num_classes
        arguments['target_floor'] = options.loss.smoothing / classes
    if not options.hnc.on:
        return (ClassMapMultiLabelTask if multi_label else ClassMapTask)(wrap(model), **arguments)
    kind = HNCMultiLabelTask if multi_label else HNCTask
    return kind(wrap(model), hnc=options.hnc.loss(), hnc_weight=options.hnc.weight(), **arguments)
