"""What groups of options ask of each other, checked before any data or weights are read."""

from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from timm.loss import create_classification_loss
from timm.task import ClassificationEvaluator

from timm_hnc.data.naflex import KEPT_SHAPE
from timm_hnc.errors import UsageError
from timm_hnc.launcher import process_count
from timm_hnc.losses.base import Loss
from timm_hnc.losses.factory import LOSSES, MAP_LOSSES
from timm_hnc.metrics.multilabel import MultiLabelEvaluator
from timm_hnc.options import flag_of, refuse_alone
from timm_hnc.training.setup.objective.criterion import read_class_stats, timm_criterion_kwargs
from timm_hnc.training.setup.objective.loss_options import LOSS_LR, OF_TIMMS_LOSSES
from timm_hnc.training.setup.objective.losses import loss_of

if TYPE_CHECKING:
    from timm_hnc.training.setup.options import TrainOptions


def check_options(options: 'TrainOptions') -> None:
    """Refuse options that contradict each other; of several contradictions the first one is told."""
    _check_label_noise(options)
    _check_data_in_memory(options)
    _check_mixing(options)
    if not options.naflex.naflex_loader:
        _check_even(options)
    _check_losses(options)
    _check_auto_weight(options)
    _check_two_views(options)
    _check_distillation(options)
    _check_objects(options)
    _check_naflex(options)
    _check_run(options)


def _check_label_noise(options: 'TrainOptions') -> None:
    noise, data = options.splits.label_noise, options.data
    if noise is not None and options.task.multi_label:
        raise UsageError(f'--label-noise {noise}: for --task classification only.')
    if noise is not None and data.is_streamed:
        raise UsageError(f'--label-noise {noise}: {data.dataset} is streamed, its images have no index.')


def _check_distillation(options: 'TrainOptions') -> None:
    """Refuse a teacher where timm's tasks of distillation cannot work."""
    loss = options.loss
    if not options.distillation.on:
        return
    flag = f'--kd-model-name {options.distillation.kd_model_name}'
    if options.task.multi_label:
        raise UsageError(f'{flag}: for --task classification only.')
    if loss.needs != 'logits':
        allowed = [name for name, kind in LOSSES.items() if kind.needs == 'logits']
        raise UsageError(
            f'{flag}: not together with --loss {loss.loss}, which looks at more than logits; of these losses '
            f'{", ".join(allowed)} can be used.'
        )


def _check_data_in_memory(options: 'TrainOptions') -> None:
    batches, augmentation = options.batches, options.augmentation
    if not batches.data_in_memory:
        return
    # it makes the padded crop and flips, and leaves erasing and mixup to timm
    if augmentation.train_crop_mode != 'pad' or augmentation.no_aug:
        raise UsageError('--data-in-memory: needs --train-crop-mode pad.')
    others = ('aa', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob', 'aug_splits')
    used = [name for name in others if getattr(augmentation, name)]
    used += ['train_img_sizes'] if options.sizes.train_img_sizes else []
    used += ['no_prefetcher'] if options.loader.no_prefetcher else []
    used += ['use_multi_epochs_loader'] if batches.use_multi_epochs_loader else []
    if used:
        raise UsageError(
            f'{flag_of(used[0])}: not together with --data-in-memory, which makes padded crops and flips only.'
        )
    if options.mixup.active and options.mixup.mixup_mode == 'half':
        raise UsageError('--mixup-mode half: not together with --data-in-memory, where it would be batch.')
    if options.data.is_streamed:
        raise UsageError(f'--data-in-memory: {options.data.dataset} is streamed.')


def _check_mixing(options: 'TrainOptions') -> None:
    """Refuse augmented splits, repeats, sizes and mixing that do not go together."""
    model, augmentation, train_sizes = options.model, options.augmentation, options.sizes.train_img_sizes
    splits = augmentation.aug_splits
    if splits and options.mixup.active:
        raise UsageError(f'--aug-splits {splits}: not together with --mixup or --cutmix.')
    if splits and options.task.multi_label:
        raise UsageError(f'--aug-splits {splits}: for --task classification only.')
    if splits and options.loader.no_prefetcher:
        raise UsageError(f"--aug-splits {splits}: not together with --no-prefetcher; timm's prefetcher joins them.")
    if model.split_bn and not (splits or augmentation.resplit):
        raise UsageError('--split-bn: needs --aug-splits of 2 or more, or --resplit.')
    if train_sizes is not None and options.batches.use_multi_epochs_loader:
        raise UsageError('--use-multi-epochs-loader: not together with --train-img-sizes.')
    mixed_by_workers = options.mixup.active and options.loader.workers and not options.loader.no_prefetcher
    if mixed_by_workers and options.mixup.mixup_off_epoch and options.batches.use_multi_epochs_loader:
        raise UsageError(
            '--use-multi-epochs-loader: not together with --mixup-off-epoch; its loading processes mix to the end.'
        )
    if train_sizes is not None and splits:
        raise UsageError(f'--aug-splits {splits}: not together with --train-img-sizes.')
    repeats = augmentation.aug_repeats
    if repeats and process_count() == 1:
        raise UsageError(f'--aug-repeats {repeats:g}: for several processes only (accelerate launch, torchrun).')
    if model.sync_bn and model.split_bn and process_count() > 1:
        raise UsageError('--split-bn: not together with --sync-bn.')


def _check_even(options: 'TrainOptions') -> None:
    """Refuse batches of which mixup and cutmix make no pairs."""
    several = options.sizes.train_batch_sizes
    name = 'train_batch_sizes' if several else 'batch_size'
    for size in several or [options.batches.batch_size]:
        if options.mixup.active and size % 2:
            raise UsageError(f'{flag_of(name)} {size}: --mixup and --cutmix mix pairs, expected an even number.')


def _check_losses(options: 'TrainOptions') -> None:
    """Refuse a loss that does not go with the task, the targets, the data or its own settings."""
    loss = options.loss
    if loss.kind is None:
        _check_timms(options)
    else:
        _check_own(options, loss.kind)
    if loss.loss_lr != LOSS_LR and not (loss.kind and list(loss_of(loss, options.task).parameters())):
        raise UsageError(f'--loss-lr {loss.loss_lr:g}: --loss {loss.loss or "ce"} learns nothing of its own.')


def _check_auto_weight(options: 'TrainOptions') -> None:
    """Refuse a weight that follows from the gradient at the logits where the loss is no function of them."""
    loss, weight = options.loss, options.hnc.hnc_weight
    if isinstance(weight, str) and loss.needs != 'logits':
        raise UsageError(f'--hnc-weight {weight}: --loss {loss.loss} is no function of logits; give a number.')


def _check_objects(options: 'TrainOptions') -> None:
    """Refuse losses that need objects where boxes and masks cannot follow their images."""
    flag = options.map_losses.needs_objects
    if not flag:
        return
    if options.data.is_streamed:
        raise UsageError(f'{flag}: {options.data.dataset} is streamed, its images have no boxes.')
    masks = options.map_losses.masks_flag
    if masks and options.task.multi_label:
        raise UsageError(f'{masks}: for one class an image; of several, give boxes.')
    others = {
        '--aa': options.augmentation.aa,
        '--aug-splits': options.augmentation.aug_splits,
        '--mixup and --cutmix': options.mixup.active,
        '--train-img-sizes': options.sizes.train_img_sizes,
    }
    for other, value in others.items():
        if value:
            raise UsageError(f'{flag}: not together with {other}, through which objects do not follow their images.')


def _check_two_views(options: 'TrainOptions') -> None:
    """Refuse losses on mirror images beside splits, which are views already, each with batch norms of its own."""
    of_two = [f'--map-loss {name}' for name in options.map_losses.weights if MAP_LOSSES[name].needs == 'two_views']
    of_two += [f'--loss {options.loss.loss}'] if options.loss.needs == 'two_views' else []
    splits = ['aug_splits'] if options.augmentation.aug_splits else []
    splits += ['split_bn'] if options.model.split_bn else []
    if of_two and splits:
        raise UsageError(f'{of_two[0]}: not together with {flag_of(splits[0])}.')


def _check_own(options: 'TrainOptions', kind: type[Loss]) -> None:
    loss, task, data, num_classes = options.loss, options.task, options.data, options.input.num_classes
    name = loss.loss
    if task.task not in kind.tasks:
        raise UsageError(f'--loss {name}: for --task {" and ".join(kind.tasks)} only.')
    if options.mixup.active and not kind.soft_targets:
        raise UsageError(f'--loss {name}: not together with --mixup or --cutmix.')
    if loss.smoothing and not kind.soft_targets:
        raise UsageError(f'--smoothing {loss.smoothing:g}: --loss {name} takes none.')
    of_timms = [each.name for each in fields(loss) if each.name.startswith(OF_TIMMS_LOSSES)]
    refuse_alone(loss, f"a loss of timm's in place of --loss {name}", of_timms)
    if task.task not in kind.counts_for:
        refuse_alone(loss, f'a loss in place of --loss {name} that counts classes', ['class_stats'])
    if task.task in kind.counts_for and data.is_streamed and not loss.class_stats:
        raise UsageError(
            f'--loss {name}: {data.dataset} is streamed, its classes cannot be counted: give --class-stats.'
        )
    if task.task in kind.counts_for:
        read_class_stats(loss, num_classes)
    loss_of(loss, task, num_classes)


def _check_timms(options: 'TrainOptions') -> None:
    loss, multi_label, splits = options.loss, options.task.multi_label, options.augmentation.aug_splits
    name = loss.loss or ('bce' if multi_label else 'ce')
    if name == 'jsd' and splits < 2:
        raise UsageError(f'--loss jsd: needs --aug-splits of 2 or more, got {splits}.')
    if name == 'db' and not loss.class_stats:
        raise UsageError('--loss db: needs --class-stats.')
    kwargs = timm_criterion_kwargs(loss, options.mixup.active, splits, options.input.num_classes)
    try:
        create_classification_loss(multi_label=multi_label, **kwargs)
    except (ValueError, AssertionError) as error:
        task = options.task.task
        raise UsageError(f'--loss {name} with --task {task}: {error or "timm refuses its settings."}') from error


def _check_naflex(options: 'TrainOptions') -> None:
    """Refuse what timm's NaFlex loader cannot do, and losses that need images of one shape."""
    naflex, augmentation, batches, mixup = options.naflex, options.augmentation, options.batches, options.mixup
    naflex.refuse_beside(KEPT_SHAPE, img_size=options.input.img_size, input_size=options.input.input_size)
    one_shape = [name for name in options.map_losses.weights if MAP_LOSSES[name].needs_one_shape]
    naflex.refuse_beside(
        'which has nothing of the kind: leave it out',
        dataset=options.data.is_streamed and options.data.dataset,
        aug_splits=augmentation.aug_splits,
        aug_repeats=augmentation.aug_repeats,
        train_crop_mode=augmentation.train_crop_mode not in (None, '', 'rrc') and augmentation.train_crop_mode,
        data_in_memory=batches.data_in_memory,
        use_multi_epochs_loader=batches.use_multi_epochs_loader,
        cutmix_minmax=mixup.cutmix_minmax,
        mixup_mode=mixup.active and mixup.mixup_mode != 'batch' and mixup.mixup_mode,
        train_batches_per_epoch=options.sizes.train_batches_per_epoch,
    )
    naflex.refuse_beside(
        'whose images differ in shape: leave one of the two out',
        train_img_sizes=options.sizes.train_img_sizes,
        kd_model_name=options.distillation.kd_model_name,
        map_loss=one_shape,
        loss=options.loss.needs == 'two_views' and options.loss.loss,
        save_images=options.run.save_images,
    )


def _check_run(options: 'TrainOptions') -> None:
    task, metric, resumed = options.task, options.run.eval_metric, options.tracking.wandb_resume_id
    names = (MultiLabelEvaluator if task.multi_label else ClassificationEvaluator).metric_names
    if metric not in names:
        raise UsageError(f'--eval-metric {metric}: expected one of {", ".join(names)} for --task {task.task}.')
    if resumed and not options.run.resume:
        raise UsageError(f'--wandb-resume-id {resumed}: needs --resume.')
    if options.ema.model_ema and options.device.weight_dtype is torch.float16:
        raise UsageError(
            '--model-ema: not together with --model-dtype float16, in which an average stands still: use bfloat16, or '
            '--amp, whose weights are float32.'
        )
    if options.model.sync_bn and options.device.on_cpu:
        raise UsageError('--sync-bn: PyTorch synchronises batch statistics on accelerators only; leave it out here.')
