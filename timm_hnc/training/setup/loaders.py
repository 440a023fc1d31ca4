"""Training data as batches, augmented as timm does."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup
from torch.utils.data import DataLoader, Dataset

from timm_hnc.data.boxes import BoxSource
from timm_hnc.data.guidance import GuidedDataset, Slots
from timm_hnc.data.holdout import split_off
from timm_hnc.data.loading.seeded_batches import seed_shares
from timm_hnc.data.loading.wrapped_dataset import innermost
from timm_hnc.data.noise import NoisyLabels
from timm_hnc.data.object_sources import Boxes, MaskColumn, MaskFolder, Masks, ObjectSource
from timm_hnc.data.transforms import CROPS, use_crop
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.loaders import create_timed_loader, open_dataset
from timm_hnc.losses.maps.base import MOST_PRESENT
from timm_hnc.training.setup.data_options import AugmentationOptions, TrainSizeOptions
from timm_hnc.training.setup.objective.loss_options import MapLossOptions
from timm_hnc.training.setup.options import TrainOptions


def open_train_dataset(options: TrainOptions, channels: int, num_classes: int) -> Dataset[Any]:
    """The training data that the options name, without what --holdout keeps of it."""
    data, splits, seed = options.data, options.splits, options.loader.seed
    dataset = open_dataset(
        data,
        options.task,
        channels,
        num_classes,
        split=splits.train_split,
        is_training=True,
        batch_size=options.batches.batch_size,
        seed=seed,
        repeats=splits.epoch_repeats,
        num_samples=splits.train_num_samples,
    )
    noise = splits.noise()
    if noise is not None:
        dataset = NoisyLabels(dataset, noise, num_classes, seed)
    return split_off(dataset, data.holdout, seed)[0] if data.holdout else dataset


def with_masks(dataset: Any, options: TrainOptions, num_classes: int, grid: tuple[int, int]) -> GuidedDataset:
    """The training data with the masks of its objects on the grid of the class maps.

    Raises:
        UsageError: it has no boxes or masks.
        DataError: the folder of boxes or masks has none.
    """
    chosen, several = options.map_losses, options.task.multi_label
    if isinstance(dataset, DataLoader):
        raise UsageError(f'{chosen.needs_objects}: a DataLoader was provided, give its data set instead.')
    source = _objects(innermost(dataset), chosen, several)
    slots = Slots(num_classes if several else 0, min(num_classes, MOST_PRESENT) if several else 1, grid)
    return GuidedDataset(dataset, source, slots, chosen.boxes_share, options.loader.seed)


def _objects(dataset: Any, chosen: MapLossOptions, several: bool) -> ObjectSource:
    if chosen.masks_flag and several:
        raise UsageError(f'{chosen.masks_flag}: for one class an image; of several, give boxes.')
    reader = getattr(dataset, 'reader', None)
    if chosen.masks_dir:
        return Masks(MaskFolder(reader, chosen.masks_dir), chosen.masks_grey)
    if chosen.masks_key:
        return Masks(MaskColumn(reader, chosen.masks_key), chosen.masks_grey)
    return Boxes(BoxSource(dataset, chosen.boxes_key, chosen.boxes_format, chosen.boxes_dir, chosen.needs_objects))


def create_mixup(options: TrainOptions, num_classes: int, on_device: bool = False) -> Mixup | None:
    """Timm's mixup or cutmix: a collate function for the prefetching loader, else for the batch on the device."""
    mixing = options.mixup
    if not mixing.active:
        return None
    on_device = on_device or options.loader.no_prefetcher or options.batches.data_in_memory
    kind = Mixup if on_device else FastCollateMixup
    return kind(
        mixup_alpha=mixing.mixup,
        cutmix_alpha=mixing.cutmix,
        cutmix_minmax=mixing.cutmix_minmax,
        prob=mixing.mixup_prob,
        switch_prob=mixing.mixup_switch_prob,
        mode=mixing.mixup_mode,
        label_smoothing=options.loss.smoothing,
        num_classes=num_classes,
        multi_label=options.task.multi_label,
    )


def create_train_loader(
    dataset: Any,
    options: TrainOptions,
    data_config: dict[str, Any],
    device: torch.device,
    distributed: bool,
    mixup: Mixup | None,
) -> Any:
    """Timm's training loader; under torch.distributed it shards by itself."""
    augmentation, batches = options.augmentation, options.batches
    interpolation = train_interpolation(augmentation, data_config)
    mode = augmentation.train_crop_mode
    if augmentation.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=augmentation.aug_splits)
    loader = create_timed_loader(
        dataset,
        options.loader,
        data_config,
        device,
        distributed,
        batch_size=batches.batch_size,
        is_training=True,
        img_dtype=options.device.input_dtype,
        interpolation=interpolation,
        train_crop_mode='rrc' if mode in CROPS else mode,
        worker_seeding=batches.worker_seeding,
        collate_fn=mixup if isinstance(mixup, FastCollateMixup) else None,
        # what fresh workers draw depends on the epoch's seed, not on the epochs before; use_keys() lets them stay
        persistent_workers=False,
        use_multi_epochs_loader=batches.use_multi_epochs_loader,
        **augmentation_arguments(augmentation),
        **_sizes(options.sizes, options.schedule.epochs, options.loader.seed),
    )
    seed_shares(loader, options.loader.seed)
    if mode in CROPS and not augmentation.no_aug:
        _replace_crops(loader.dataset, mode, options.sizes.train_img_sizes, data_config['input_size'], interpolation)
    if len(loader) == 0:
        raise DataError(
            f'{len(dataset)} training images do not fill one batch of {batches.batch_size} a process: '
            'set a lower --batch-size.'
        )
    return loader


def train_interpolation(options: AugmentationOptions, data_config: dict[str, Any]) -> str:
    """How training images are resized."""
    return (not options.no_aug and options.train_interpolation) or data_config['interpolation']


def augmentation_arguments(options: AugmentationOptions) -> dict[str, Any]:
    """Augmentation as timm's loaders take it."""
    return dict(
        no_aug=options.no_aug,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
        re_split=options.resplit,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter or None,  # timm would draw for a jitter of nothing
        color_jitter_prob=options.color_jitter_prob,
        grayscale_prob=options.grayscale_prob,
        gaussian_blur_prob=options.gaussian_blur_prob,
        auto_augment=options.aa,
        num_aug_repeats=options.aug_repeats,
        num_aug_splits=options.aug_splits,
    )


def _sizes(options: TrainSizeOptions, epochs: int, seed: int) -> dict[str, Any]:
    """Options of timm's scheduled resolutions."""
    return dict(
        input_size_choices=options.train_img_sizes,
        batch_size_choices=options.train_batch_sizes,
        batch_choice_weights=options.train_size_probs,
        batch_choice_seed=seed,
        batch_choice_schedule=options.train_size_schedule,
        batch_schedule_epochs=epochs if options.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=options.train_size_schedule_spread,
        batch_schedule_random_mix=options.train_size_random_mix,
        num_batches=options.train_batches_per_epoch,
    )


def _replace_crops(
    dataset: Any, mode: str, sizes: Sequence[int] | None, input_size: Sequence[int], interpolation: str
) -> None:
    if sizes:
        for transform, size in zip(dataset.transforms, sizes, strict=True):
            use_crop(mode, transform, (size, size), interpolation)
    else:
        use_crop(mode, dataset.transform, input_size, interpolation)
