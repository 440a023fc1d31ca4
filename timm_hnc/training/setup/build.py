"""Everything a run is made of, built from its options."""

import logging
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm import utils
from timm.data import Mixup
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, MultiLabelClassificationTask
from timm.utils import ModelEmaV3

from timm_hnc.cam import CamModel
from timm_hnc.checkpoints.checkpoints import CheckpointFolder
from timm_hnc.data.datasets import check_same_classes, class_names
from timm_hnc.data.loading.in_memory import RememberedBatches, keep_in_memory
from timm_hnc.data.loading.seeded_batches import KeyedBatches, mixed, use_keys
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.data.loading.worker_signals import outlive_signals
from timm_hnc.errors import UsageError, first_lines
from timm_hnc.evaluation.compilation import Compilation
from timm_hnc.evaluation.inputs import input_config
from timm_hnc.evaluation.loaders import create_eval_dataset, create_eval_loader
from timm_hnc.losses import HNCLoss
from timm_hnc.losses.base import Loss
from timm_hnc.losses.export import exported
from timm_hnc.tasks import ClassMapMultiLabelTask, ClassMapTask, HNCMultiLabelTask, HNCTask
from timm_hnc.training.averages import Averages
from timm_hnc.training.checkpoint_interval import Interval
from timm_hnc.training.setup.criterion import loss_kwargs, mixup_active
from timm_hnc.training.setup.loaders import create_mixup, create_train_dataset, create_train_loader
from timm_hnc.training.setup.losses import create_run_loss, needs_class_maps
from timm_hnc.training.setup.models import check_image_size, create_model
from timm_hnc.training.signals import StopSignals
from timm_hnc.training.update_flags import Notices

_logger = logging.getLogger(__name__)
LOSS_GROUP = 'of_the_loss'  # key of the optimizer's group that holds what the loss learns


@dataclass
class Run:
    """The parts of a run.

    Args:
        args: the options in force.
        accelerator: device, precision and processes.
        folder: the run folder.
        model: the plain timm model, unwrapped; its parameters are those that train.
        loss: of timm_hnc.losses, None for timm's.
        compiled: compiles what is evaluated, where the run is compiled.
        task: model and losses, compiled, as Accelerate wrapped them.
        ema: moving average of the model, or None.
        optimizer: as Accelerate wrapped it.
        scheduler: timm's, or None.
        num_epochs: where the run ends.
        train_loader: timm's loader.
        eval_loader: timm's loader, or None without a validation split.
        mixup: timm's mixup, or None.
        data_config: input size, mean, std, interpolation and crop.
        class_names: a name a class.
        skipped: counts images that could not be decoded.
        checkpoints: of this run folder.
        notices: what processes tell each other of every update.
        keys: the training loader's batches where their random numbers depend on their place alone, else None.
        export_copy: of `averaged_model`, with the classifier that the loss exports; None where that is the model's own.
        start_epoch: the epoch to begin with.
        start_update: updates of that epoch that are done already.
        averages: of the epoch under way.
        stop: signals that ask the run to stop.
        clock: when a checkpoint is due inside an epoch.
        skipped_updates: those left out because of numbers that are not finite.
        skipped_in_a_row: the last of them.
        skipped_images_before: those that the run skipped before it was resumed.
    """

    args: Namespace
    accelerator: Accelerator
    folder: Path
    model: Any
    loss: Loss | None
    compiled: Compilation
    task: Any
    ema: ModelEmaV3 | None
    optimizer: Any
    scheduler: Any
    num_epochs: int
    train_loader: Any
    eval_loader: Any
    mixup: Mixup | None
    data_config: dict[str, Any]
    class_names: list[str]
    skipped: SkippedImages
    checkpoints: CheckpointFolder
    notices: Notices
    keys: KeyedBatches | None = None
    export_copy: Any = None
    start_epoch: int = 0
    start_update: int = 0
    averages: Averages = field(default_factory=Averages)
    stop: StopSignals = field(default_factory=StopSignals)
    clock: Interval = field(default_factory=Interval)
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    skipped_images_before: int = 0

    def count_skipped_images(self) -> int:
        """Images that all processes skipped; all of them call it."""
        count = torch.tensor(self.skipped.count, device=self.accelerator.device)
        return self.skipped_images_before + int(self.accelerator.reduce(count, 'sum'))

    @property
    def distributed(self) -> bool:
        """Whether there are several processes."""
        return self.accelerator.num_processes > 1

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of the model's input."""
        return getattr(torch, self.args.model_dtype or 'float32')

    @property
    def eval_metric(self) -> str:
        """The metric that ranks checkpoints: the training loss where nothing is evaluated."""
        return self.args.eval_metric if self.eval_loader is not None else 'loss'

    @property
    def averaged_model(self) -> Any:
        """The weights that count: the moving average, unless it lives on the CPU alone."""
        return self.model if self.ema is None or self.args.model_ema_force_cpu else self.ema.module

    @property
    def evaluated_model(self) -> Any:
        """What is evaluated, saved and drawn: the weights that count, with the classifier that the loss exports."""
        return exported(self.averaged_model, self.loss, self.export_copy)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last window of accumulated batches may be shorter."""
        return -(-len(self.train_loader) // self.args.grad_accum_steps)


def build_run(args: Namespace, accelerator: Accelerator, checkpoints: CheckpointFolder) -> Run:
    """Make model, data, losses, optimizer and schedule.

    Raises:
        UsageError: an option is wrong.
        DataError: data or weights are missing or do not fit.
    """
    device, distributed = accelerator.device, accelerator.num_processes > 1
    utils.random_seed(args.seed, accelerator.process_index)
    with accelerator.local_main_process_first():  # what is downloaded, is downloaded once
        model = create_model(args)
    if args.num_classes is None:
        args.num_classes = model.num_classes
    data_config = input_config(model, args, verbose=accelerator.is_main_process)
    check_image_size(args, model, data_config['input_size'])
    model.to(device=device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    skipped = SkippedImages()
    train_set = create_train_dataset(args, data_config)
    train_set.skipped_images = skipped  # type: ignore[attr-defined]  # travels to the loader's workers
    mixup = create_mixup(args)
    train_loader = create_train_loader(train_set, args, data_config, device, distributed, mixup)
    outlive_signals(train_loader)
    keys = use_keys(train_loader, mixed(args.seed, accelerator.process_index))
    if args.data_in_memory and keys is not None:
        keep_in_memory(train_loader, keys, args.hflip, args.vflip, device)
    eval_loader = _create_eval_loader(args, data_config, train_set, skipped, accelerator) if args.val_split else None
    _resolve_learning_rate(args, train_loader, accelerator.num_processes)
    loss = create_run_loss(args, model, train_set)
    compiled = Compilation(args)
    task = compiled(create_task(args, model, loss, accelerator))  # inside DDP, whose hooks would break the graph
    task, optimizer = accelerator.prepare(task, _create_optimizer(args, model, loss))
    run = Run(
        args=args,
        accelerator=accelerator,
        folder=checkpoints.folder,
        model=model,
        loss=loss,
        compiled=compiled,
        task=task,
        ema=_create_ema(args, model),
        optimizer=optimizer,
        scheduler=None,
        num_epochs=0,
        train_loader=train_loader,
        keys=keys,
        clock=Interval(args.checkpoint_interval or (str(args.recovery_interval) if args.recovery_interval else None)),
        notices=Notices(accelerator, at_once=args.on_nonfinite == 'skip'),
        eval_loader=eval_loader,
        mixup=mixup,
        data_config=data_config,
        class_names=class_names(train_set, args.num_classes),
        skipped=skipped,
        checkpoints=checkpoints,
    )
    run.export_copy = exported(run.averaged_model, loss) if loss is not None and loss.changes_scores else None
    run.scheduler, run.num_epochs = _create_scheduler(run)
    return run


def _create_eval_loader(
    args: Namespace, data_config: dict[str, Any], train_set: Any, skipped: SkippedImages, accelerator: Accelerator
) -> Any:
    dataset = create_eval_dataset(args, data_config, args.val_split, args.val_num_samples)
    check_same_classes(train_set, dataset)
    dataset.skipped_images = skipped  # type: ignore[attr-defined]
    batch_size, distributed = args.validation_batch_size or args.batch_size, accelerator.num_processes > 1
    # what is kept in memory is read once
    options = {'persistent_workers': False} if args.data_in_memory else {}
    loader = create_eval_loader(dataset, args, data_config, batch_size, accelerator.device, distributed, **options)
    outlive_signals(loader)
    if args.data_in_memory:
        loader.loader = RememberedBatches(loader.loader)
    return loader


def create_task(args: Namespace, model: Any, loss: Loss | None, accelerator: Accelerator) -> Any:
    """The task that trains the model: timm's own for losses on logits, ours for those on class maps.

    Args:
        args: options of the run.
        model: plain timm model.
        loss: of timm_hnc.losses, None for timm's.
        accelerator: device of the task.
    """
    multi_label = args.task == 'multilabel'
    options: dict[str, Any] = dict(device=accelerator.device, verbose=accelerator.is_main_process)
    options |= dict(criterion_kwargs=loss_kwargs(args)) if loss is None else dict(criterion=loss)
    if multi_label:
        options['threshold'] = args.multilabel_threshold
    if not needs_class_maps(args):
        return (MultiLabelClassificationTask if multi_label else ClassificationTask)(model, **options)
    if args.hnc == 'none':
        return (ClassMapMultiLabelTask if multi_label else ClassMapTask)(CamModel(model), **options)
    hnc = HNCLoss(args.hnc, args.hnc_topk, args.hnc_alpha, args.hnc_reduction)
    if loss is not None and mixup_active(args):
        options['target_floor'] = args.smoothing / (2 if multi_label else args.num_classes)
    kind = HNCMultiLabelTask if multi_label else HNCTask
    return kind(CamModel(model), hnc=hnc, hnc_weight=args.hnc_weight, **options)


def _create_optimizer(args: Namespace, model: Any, loss: Loss | None) -> torch.optim.Optimizer:
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f'--opt {args.opt} cannot be made with these options: {first_lines(error)}') from error
    learned = list(loss.parameters()) if loss is not None else []
    if loss is not None and learned:
        settings = {name: value for name, value in loss.parameter_options.items() if name in optimizer.defaults}
        optimizer.add_param_group({'params': learned, 'lr': args.loss_lr, **settings, LOSS_GROUP: True})
    return optimizer


def _create_ema(args: Namespace, model: Any) -> ModelEmaV3 | None:
    if not args.model_ema:
        return None
    # after prepare, of the plain model: as a child of the task it would break DDP
    return ModelEmaV3(
        model,
        decay=args.model_ema_decay,
        use_warmup=args.model_ema_warmup,
        device=torch.device('cpu') if args.model_ema_force_cpu else None,
    )


def _resolve_learning_rate(args: Namespace, loader: Any, world_size: int) -> None:
    """Learning rate from the base rate and the global batch, as timm's train.py scales it."""
    if args.lr:
        return
    batch_size = getattr(loader.batch_sampler, 'average_batch_size', args.batch_size)
    ratio = batch_size * world_size * args.grad_accum_steps / args.lr_base_size
    if not args.lr_base_scale:
        args.lr_base_scale = 'sqrt' if any(name in args.opt.lower() for name in ('ada', 'lamb')) else 'linear'
    args.lr = args.lr_base * (ratio**0.5 if args.lr_base_scale == 'sqrt' else ratio)
    _logger.info(f'Learning rate {args.lr:.4g}: base {args.lr_base}, {args.lr_base_scale} scaling by {ratio:.4g}.')


def _create_scheduler(run: Run) -> tuple[Any, int]:
    decreasing = run.eval_metric == 'loss'
    scheduler, num_epochs = create_scheduler_v2(
        # prepare() gave the optimizer new parameter groups; timm's scheduler must see those
        run.optimizer.optimizer,
        **scheduler_kwargs(run.args, decreasing_metric=decreasing),
        updates_per_epoch=run.updates_per_epoch,
    )
    return scheduler, min(num_epochs, run.args.stop_epoch or num_epochs)
