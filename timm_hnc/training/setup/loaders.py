"""Training data as batches, augmented as timm does."""

from argparse import Namespace
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup
from torch.utils.data import Dataset

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.noise import LabelNoise, NoisyLabels
from timm_hnc.data.transforms import CROPS, use_crop
from timm_hnc.errors import DataError
from timm_hnc.evaluation.loaders import create_timed_loader, dataset_options, loader_options
from timm_hnc.training.setup.criterion import mixup_active


def create_train_dataset(args: Namespace, data_config: dict[str, Any]) -> Dataset:
    """The training data set that the options name.

    Raises:
        UsageError: an option is wrong.
        DataError: the data is missing or does not fit.
    """
    dataset = create_dataset(
        split=args.train_split,
        is_training=True,
        seed=args.seed,
        repeats=args.epoch_repeats,
        num_samples=args.train_num_samples,
        **dataset_options(args, data_config),
    )
    if args.label_noise is not None:
        dataset = NoisyLabels(dataset, LabelNoise.parse(args.label_noise), args.num_classes, args.seed)
    return split_off(dataset, args.holdout, args.seed)[0] if args.holdout else dataset


def create_mixup(args: Namespace) -> Mixup | None:
    """Timm's mixup or cutmix: a collate function for the prefetching loader, else for the batch on the device."""
    if not mixup_active(args):
        return None
    kind = Mixup if args.no_prefetcher or args.data_in_memory else FastCollateMixup
    return kind(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
        multi_label=args.task == 'multilabel',
    )


def create_train_loader(
    dataset: Any,
    args: Namespace,
    data_config: dict[str, Any],
    device: torch.device,
    distributed: bool,
    mixup: Mixup | None,
) -> Any:
    """Timm's training loader; under torch.distributed it shards by itself.

    Args:
        dataset: from `create_train_dataset`.
        args: training options.
        data_config: from timm's resolve_data_config.
        device: that batches go to.
        distributed: whether there are several processes.
        mixup: from `create_mixup`.

    Raises:
        DataError: the data does not fill one batch.
    """
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    ours = args.train_crop_mode in CROPS and not args.no_aug
    if args.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
    loader = create_timed_loader(
        dataset,
        args,
        batch_size=args.batch_size,
        is_training=True,
        interpolation=interpolation,
        train_crop_mode='rrc' if args.train_crop_mode in CROPS else args.train_crop_mode,
        num_workers=args.workers,
        worker_seeding=args.worker_seeding,
        collate_fn=mixup if isinstance(mixup, FastCollateMixup) else None,
        # what fresh workers draw depends on the epoch's seed, not on the epochs before; use_keys() lets them stay
        persistent_workers=False,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        **_augmentation(args),
        **_schedule(args),
        **loader_options(args, data_config, device, distributed),
    )
    if ours:
        _replace_crops(loader.dataset, args, data_config, interpolation)
    if len(loader) == 0:
        raise DataError(
            f'{len(dataset)} training images do not fill one batch of {args.batch_size} a process: '
            'set a lower --batch-size.'
        )
    return loader


def _augmentation(args: Namespace) -> dict[str, Any]:
    return dict(
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_split=args.resplit,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter or None,  # timm would draw for a jitter of nothing
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        num_aug_splits=args.aug_splits,
    )


def _schedule(args: Namespace) -> dict[str, Any]:
    """Options of timm's scheduled resolutions."""
    return dict(
        input_size_choices=args.train_img_sizes,
        batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs,
        batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=args.train_size_schedule_spread,
        batch_schedule_random_mix=args.train_size_random_mix,
        num_batches=args.train_batches_per_epoch,
    )


def _replace_crops(dataset: Any, args: Namespace, data_config: dict[str, Any], interpolation: str) -> None:
    if args.train_img_sizes:
        for transform, size in zip(dataset.transforms, args.train_img_sizes, strict=True):
            use_crop(args.train_crop_mode, transform, (size, size), interpolation)
    else:
        use_crop(args.train_crop_mode, dataset.transform, data_config['input_size'], interpolation)
