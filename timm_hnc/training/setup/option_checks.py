"""What groups of options ask of each other, checked before any data or weights are read."""

import os

from timm.loss import create_classification_loss
from timm.task import ClassificationEvaluator

from timm_hnc.data.options import DataOptions, LoaderOptions, TaskOptions
from timm_hnc.errors import UsageError
from timm_hnc.losses.factory import LOSSES, MAP_LOSSES
from timm_hnc.metrics.multilabel import MultiLabelEvaluator
from timm_hnc.options import flag_of
from timm_hnc.training.setup.data_options import (
    AugmentationOptions,
    BatchOptions,
    MixupOptions,
    TrainSizeOptions,
)
from timm_hnc.training.setup.models import ModelOptions
from timm_hnc.training.setup.objective.criterion import read_class_stats, timm_criterion_kwargs
from timm_hnc.training.setup.objective.distillation import DistillationOptions
from timm_hnc.training.setup.objective.loss_options import LOSS_LR, HNCOptions, LossOptions, MapLossOptions
from timm_hnc.training.setup.objective.losses import loss_of


def world_size() -> int:
    """Number of processes, as the launcher tells it."""
    return int(os.environ.get('WORLD_SIZE') or 1)


def check_label_noise(noise: str | None, data: DataOptions, task: TaskOptions) -> None:
    """Refuse label noise where it cannot be."""
    if noise is not None and task.multi_label:
        raise UsageError(f'--label-noise {noise}: for --task classification only.')
    if noise is not None and data.is_streamed:
        raise UsageError(f'--label-noise {noise}: {data.dataset} is streamed, its images have no index.')


def check_distillation(distillation: DistillationOptions, task: TaskOptions, loss: LossOptions) -> None:
    """Refuse a teacher where timm's tasks of distillation cannot work."""
    if not distillation.on:
        return
    flag = f'--kd-model-name {distillation.kd_model_name}'
    if task.multi_label:
        raise UsageError(f'{flag}: for --task classification only.')
    if loss.is_ours and LOSSES[loss.loss or ''].needs != 'logits':
        allowed = [name for name, kind in LOSSES.items() if kind.needs == 'logits']
        raise UsageError(
            f'{flag}: not together with --loss {loss.loss}, which looks at more than logits; of these losses '
            f'{", ".join(allowed)} can be used.'
        )


def check_data_in_memory(
    data: DataOptions,
    batches: BatchOptions,
    augmentation: AugmentationOptions,
    sizes: TrainSizeOptions,
    loader: LoaderOptions,
) -> None:
    """Refuse data kept in memory where it cannot be."""
    if not batches.data_in_memory:
        return
    # it makes the padded crop and flips, and leaves erasing and mixup to timm
    if augmentation.train_crop_mode != 'pad' or augmentation.no_aug:
        raise UsageError('--data-in-memory: needs --train-crop-mode pad.')
    others = ('aa', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob', 'aug_splits')
    used = [name for name in others if getattr(augmentation, name)]
    used += ['train_img_sizes'] if sizes.train_img_sizes else []
    used += ['no_prefetcher'] if loader.no_prefetcher else []
    used += ['use_multi_epochs_loader'] if batches.use_multi_epochs_loader else []
    if used:
        raise UsageError(
            f'{flag_of(used[0])}: not together with --data-in-memory, which makes padded crops and flips only.'
        )
    if data.is_streamed:
        raise UsageError(f'--data-in-memory: {data.dataset} is streamed.')


def check_mixing(
    task: TaskOptions,
    model: ModelOptions,
    augmentation: AugmentationOptions,
    mixup: MixupOptions,
    sizes: TrainSizeOptions,
    batches: BatchOptions,
    loader: LoaderOptions,
) -> None:
    """Refuse augmented splits, repeats, sizes and mixing that do not go together."""
    splits = augmentation.aug_splits
    if splits and mixup.active:
        raise UsageError(f'--aug-splits {splits}: not together with --mixup or --cutmix.')
    if splits and task.multi_label:
        raise UsageError(f'--aug-splits {splits}: for --task classification only.')
    if splits and loader.no_prefetcher:
        raise UsageError(f"--aug-splits {splits}: not together with --no-prefetcher; timm's prefetcher joins them.")
    if model.split_bn and not (splits or augmentation.resplit):
        raise UsageError('--split-bn: needs --aug-splits of 2 or more, or --resplit.')
    if sizes.train_img_sizes is not None and batches.use_multi_epochs_loader:
        raise UsageError('--use-multi-epochs-loader: not together with --train-img-sizes.')
    if sizes.train_img_sizes is not None and splits:
        raise UsageError(f'--aug-splits {splits}: not together with --train-img-sizes.')
    if augmentation.aug_repeats and world_size() == 1:
        repeats = augmentation.aug_repeats
        raise UsageError(f'--aug-repeats {repeats:g}: for several processes only (accelerate launch, torchrun).')
    if model.sync_bn and model.split_bn and world_size() > 1:
        raise UsageError('--split-bn: not together with --sync-bn.')


def check_even(mixup: MixupOptions, sizes: TrainSizeOptions, batches: BatchOptions) -> None:
    """Refuse batches of which mixup and cutmix make no pairs."""
    name = 'train_batch_sizes' if sizes.train_batch_sizes else 'batch_size'
    for size in sizes.train_batch_sizes or [batches.batch_size]:
        if mixup.active and size % 2:
            raise UsageError(f'{flag_of(name)} {size}: --mixup and --cutmix mix pairs, expected an even number.')


def check_metric(task: TaskOptions, eval_metric: str) -> None:
    """Refuse a metric that the task does not have."""
    names = (MultiLabelEvaluator if task.multi_label else ClassificationEvaluator).metric_names
    if eval_metric not in names:
        raise UsageError(f'--eval-metric {eval_metric}: expected one of {", ".join(names)} for --task {task.task}.')


def check_losses(
    loss: LossOptions,
    task: TaskOptions,
    data: DataOptions,
    mixup: MixupOptions,
    augmentation: AugmentationOptions,
    num_classes: int | None,
) -> None:
    """Refuse a loss that does not go with the task, the targets, the data or its own settings."""
    if loss.is_ours:
        _check_own(loss, task, data, mixup, num_classes)
    else:
        _check_timms(loss, task, mixup, augmentation, num_classes)
    if loss.loss_lr != LOSS_LR and not (loss.is_ours and list(loss_of(loss, task).parameters())):
        raise UsageError(f'--loss-lr {loss.loss_lr:g}: --loss {loss.loss or "ce"} learns nothing of its own.')


def check_auto_weight(loss: LossOptions, hnc: HNCOptions) -> None:
    """Refuse a weight that follows from the gradient at the logits where the loss is no function of them."""
    if isinstance(hnc.hnc_weight, str) and loss.is_ours and LOSSES[loss.loss or ''].needs != 'logits':
        raise UsageError(f'--hnc-weight {hnc.hnc_weight}: --loss {loss.loss} is no function of logits; give a number.')


def check_objects(
    map_losses: MapLossOptions,
    data: DataOptions,
    batches: BatchOptions,
    augmentation: AugmentationOptions,
    mixup: MixupOptions,
    sizes: TrainSizeOptions,
) -> None:
    """Refuse losses that need objects where boxes and masks cannot follow their images."""
    flag = map_losses.needs_objects
    if not flag:
        return
    if data.is_streamed:
        raise UsageError(f'{flag}: {data.dataset} is streamed, its images have no boxes.')
    options = {
        '--aa': augmentation.aa,
        '--aug-splits': augmentation.aug_splits,
        '--mixup and --cutmix': mixup.active,
        '--train-img-sizes': sizes.train_img_sizes,
        '--data-in-memory': batches.data_in_memory,
    }
    for other, value in options.items():
        if value:
            raise UsageError(f'{flag}: not together with {other}, through which objects do not follow their images.')


def check_two_views(map_losses: MapLossOptions, augmentation: AugmentationOptions) -> None:
    """Refuse losses on mirror images beside augmented splits, which are views already."""
    for name in map_losses.weights:
        if MAP_LOSSES[name].needs == 'two_views' and augmentation.aug_splits:
            raise UsageError(f'--map-loss {name}: not together with --aug-splits.')


def _check_own(
    loss: LossOptions, task: TaskOptions, data: DataOptions, mixup: MixupOptions, num_classes: int | None
) -> None:
    name = loss.loss or ''
    kind = LOSSES[name]
    if task.task not in kind.tasks:
        raise UsageError(f'--loss {name}: for --task {" and ".join(kind.tasks)} only.')
    if mixup.active and not kind.soft_targets:
        raise UsageError(f'--loss {name}: not together with --mixup or --cutmix.')
    if loss.smoothing and not kind.soft_targets:
        raise UsageError(f'--smoothing {loss.smoothing:g}: --loss {name} takes none.')
    if task.task in kind.counts_for and data.is_streamed and not loss.class_stats:
        raise UsageError(
            f'--loss {name}: {data.dataset} is streamed, its classes cannot be counted: give --class-stats.'
        )
    if task.task in kind.counts_for:
        read_class_stats(loss, num_classes)
    loss_of(loss, task, num_classes)


def _check_timms(
    loss: LossOptions,
    task: TaskOptions,
    mixup: MixupOptions,
    augmentation: AugmentationOptions,
    num_classes: int | None,
) -> None:
    name = loss.loss or ('bce' if task.multi_label else 'ce')
    if name == 'jsd' and augmentation.aug_splits < 2:
        raise UsageError(f'--loss jsd: needs --aug-splits of 2 or more, got {augmentation.aug_splits}.')
    if name == 'db' and not loss.class_stats:
        raise UsageError('--loss db: needs --class-stats.')
    kwargs = timm_criterion_kwargs(loss, mixup.active, augmentation.aug_splits, num_classes)
    try:
        create_classification_loss(multi_label=task.multi_label, **kwargs)
    except (ValueError, AssertionError) as error:
        raise UsageError(f'--loss {name} with --task {task.task}: {error or "timm refuses its settings."}') from error
