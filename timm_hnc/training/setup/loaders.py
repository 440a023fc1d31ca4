"""Training data as batches, NaFlex batches among them, augmented as timm does."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import AugMixDataset, FastCollateMixup, Mixup, NaFlexMixup
from timm.data.naflex_dataset import calculate_naflex_batch_size
from torch.utils.data import DataLoader, Dataset

from timm_hnc.data.holdout import split_off
from timm_hnc.data.loading.loaders import create_timed_loader, open_dataset
from timm_hnc.data.loading.seeded_batches import mixed, seed_shares
from timm_hnc.data.loading.wrapped_dataset import innermost
from timm_hnc.data.naflex import Patches
from timm_hnc.data.noise import NoisyLabels
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.data.objects.guided import GuidedDataset
from timm_hnc.data.objects.slots import Slots
from timm_hnc.data.objects.sources import Boxes, MaskColumn, MaskFolder, Masks, ObjectSource
from timm_hnc.data.transforms import CROPS, use_crop
from timm_hnc.errors import DataError, UsageError
from timm_hnc.losses.maps.base import MOST_PRESENT
from timm_hnc.training.setup.objective.loss_options import MapLossOptions
from timm_hnc.training.setup.options import TrainOptions

_logger = logging.getLogger(__name__)


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
    chosen, multi_label = options.map_losses, options.task.multi_label
    if isinstance(dataset, DataLoader):
        raise UsageError(f'{chosen.needs_objects}: a DataLoader was provided, give its data set instead.')
    source = _objects(innermost(dataset), chosen)
    slots = Slots(num_classes if multi_label else 0, min(num_classes, MOST_PRESENT) if multi_label else 1, grid)
    return GuidedDataset(dataset, source, slots, chosen.boxes_share, options.loader.seed)


def _objects(dataset: Any, chosen: MapLossOptions) -> ObjectSource:
    reader = getattr(dataset, 'reader', None)
    if chosen.masks_dir:
        return Masks(MaskFolder(reader, chosen.masks_dir), chosen.masks_grey)
    if chosen.masks_key:
        return Masks(MaskColumn(reader, chosen.masks_key), chosen.masks_grey)
    return Boxes(BoxSource(dataset, chosen.boxes_key, chosen.boxes_format, chosen.boxes_dir, chosen.needs_objects))


def _mixing_arguments(options: TrainOptions, num_classes: int) -> dict[str, Any]:
    """Mixup and cutmix as timm's classes of both loaders take them."""
    mixing = options.mixup
    return dict(
        num_classes=num_classes,
        mixup_alpha=mixing.mixup,
        cutmix_alpha=mixing.cutmix,
        prob=mixing.mixup_prob,
        switch_prob=mixing.mixup_switch_prob,
        label_smoothing=options.loss.smoothing,
        multi_label=options.task.multi_label,
    )


def create_mixup(options: TrainOptions, num_classes: int, on_device: bool = False) -> Mixup | None:
    """Timm's mixup or cutmix: a collate function for the prefetching loader, else for the batch on the device."""
    mixing = options.mixup
    if not mixing.active:
        return None
    on_device = on_device or options.loader.no_prefetcher or options.batches.data_in_memory
    kind = Mixup if on_device else FastCollateMixup
    return kind(**_mixing_arguments(options, num_classes), cutmix_minmax=mixing.cutmix_minmax, mode=mixing.mixup_mode)


def _tell_what_does_nothing(options: TrainOptions) -> None:
    sizes, batches = options.sizes, options.batches
    if sizes.train_batches_per_epoch and not sizes.train_img_sizes:
        _logger.warning(
            f'--train-batches-per-epoch {sizes.train_batches_per_epoch}: does nothing without --train-img-sizes, as in '
            'timm; an epoch has all images.'
        )
    if options.splits.epoch_repeats and not options.data.is_streamed:
        _logger.warning(
            f'--epoch-repeats {options.splits.epoch_repeats:g}: does nothing with data that are no stream, as in timm.'
        )
    if batches.worker_seeding != 'all' and not (options.data.is_streamed or batches.use_multi_epochs_loader):
        _logger.warning(
            f'--worker-seeding {batches.worker_seeding}: does nothing, random numbers follow from the place of a batch.'
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
    augmentation, sizes, seed = options.augmentation, options.sizes, options.loader.seed
    mode, schedule = augmentation.train_crop_mode, sizes.train_size_schedule
    _tell_what_does_nothing(options)
    if augmentation.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=augmentation.aug_splits)
    arguments = _training_arguments(options, data_config)
    loader = create_timed_loader(
        dataset,
        options.loader,
        data_config,
        device,
        distributed,
        train_crop_mode='rrc' if mode in CROPS else mode,
        collate_fn=mixup if isinstance(mixup, FastCollateMixup) else None,
        # what fresh workers draw depends on the epoch's seed, not on the epochs before; seed_batches() lets them stay
        persistent_workers=False,
        use_multi_epochs_loader=options.batches.use_multi_epochs_loader,
        input_size_choices=sizes.train_img_sizes,
        batch_size_choices=sizes.train_batch_sizes,
        batch_choice_weights=sizes.train_size_probs,
        batch_choice_seed=seed,
        batch_choice_schedule=schedule,
        batch_schedule_epochs=options.schedule.epochs if schedule == 'progressive' else None,
        batch_schedule_spread=sizes.train_size_schedule_spread,
        batch_schedule_random_mix=sizes.train_size_random_mix,
        num_batches=sizes.train_batches_per_epoch,
        **arguments,
    )
    seed_shares(loader, seed)
    if mode in CROPS and not augmentation.no_aug:
        several = sizes.train_img_sizes or ()
        transforms = loader.dataset.transforms if several else [loader.dataset.transform]
        shapes = [(size, size) for size in several] or [data_config['input_size']]
        for transform, shape in zip(transforms, shapes, strict=True):
            use_crop(mode, transform, shape, arguments['interpolation'])
    if len(loader) == 0:
        raise DataError(
            f'{len(dataset)} training images do not fill one batch of {options.batches.batch_size} a process: '
            'set a lower --batch-size.'
        )
    return loader


def create_naflex_train_loader(
    dataset: Any,
    options: TrainOptions,
    data_config: dict[str, Any],
    patches: Patches,
    num_classes: int,
    accelerator: Accelerator,
) -> Any:
    """Timm's NaFlex loader for training; of several processes each reads its share."""
    naflex, mixing = options.naflex, options.mixup
    mixup = None
    if mixing.active:
        mixup = NaFlexMixup(**_mixing_arguments(options, num_classes), mixup_off_epoch=mixing.mixup_off_epoch)
    _tell_batch_sizes(options)
    sizes: dict[str, Any] = {'patch_size': patches.size}
    if naflex.naflex_patch_sizes:
        sizes = {
            'patch_size_choices': list(naflex.naflex_patch_sizes),
            'patch_size_choice_probs': naflex.naflex_patch_size_probs,
        }
    return create_timed_loader(
        dataset,
        options.loader,
        data_config,
        accelerator.device,
        accelerator.num_processes > 1,
        patches,
        train_crop_mode=options.augmentation.train_crop_mode,
        train_seq_lens=tuple(naflex.naflex_train_seq_lens),
        mixup_fn=mixup,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=mixed(options.loader.seed) >> 32,  # timm adds the epoch, and seeds beside each other would share orders
        **sizes,
        **_training_arguments(options, data_config),
    )


def _tell_batch_sizes(options: TrainOptions) -> None:
    """Timm makes batches of so many patches, and of a multiple of 8 images, or of a single one."""
    lengths = sorted(set(options.naflex.naflex_train_seq_lens))
    tokens = options.batches.batch_size * lengths[-1]
    sizes = [calculate_naflex_batch_size(tokens, length, divisor=8) for length in lengths]
    text = ', '.join(f'{size} of {length}' for size, length in zip(sizes, lengths, strict=True))
    _logger.info(f'NaFlex batches: images, and patches of an image at most: {text}.')


def _training_arguments(options: TrainOptions, data_config: dict[str, Any]) -> dict[str, Any]:
    """Batches and augmentation as both of timm's training loaders take them."""
    augmentation = options.augmentation
    return dict(
        batch_size=options.batches.batch_size,
        is_training=True,
        img_dtype=options.device.input_dtype,
        interpolation=(not augmentation.no_aug and augmentation.train_interpolation) or data_config['interpolation'],
        worker_seeding=options.batches.worker_seeding,
        no_aug=augmentation.no_aug,
        re_prob=augmentation.reprob,
        re_mode=augmentation.remode,
        re_count=augmentation.recount,
        re_split=augmentation.resplit,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=augmentation.color_jitter or None,  # timm would draw for a jitter of nothing
        color_jitter_prob=augmentation.color_jitter_prob,
        grayscale_prob=augmentation.grayscale_prob,
        gaussian_blur_prob=augmentation.gaussian_blur_prob,
        auto_augment=augmentation.aa,
        num_aug_repeats=augmentation.aug_repeats,
        num_aug_splits=augmentation.aug_splits,
    )
