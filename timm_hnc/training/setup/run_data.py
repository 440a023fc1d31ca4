"""The data of a run: its loaders, and what goes with them."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from timm.data import Mixup
from timm.data.naflex_dataset import NaFlexCollator, NaFlexMapDatasetWrapper
from torch.utils.data import DataLoader

from timm_hnc.data.class_names import check_same_classes, class_names
from timm_hnc.data.datasets import same_files
from timm_hnc.data.label_checks import check_provided
from timm_hnc.data.loading.in_memory import KeptTargets, RememberedBatches, keep_in_memory
from timm_hnc.data.loading.loaders import create_eval_loader, is_loader, open_eval_dataset
from timm_hnc.data.loading.naflex_batches import NaFlexBatches, seed_naflex_batches
from timm_hnc.data.loading.seeded_batches import SeededBatches, mixed, seed_batches
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.data.loading.worker_signals import outlive_signals
from timm_hnc.data.naflex import Patches
from timm_hnc.data.objects.guided import GuidedDataset
from timm_hnc.errors import UsageError
from timm_hnc.training.setup.loaders import (
    create_mixup,
    create_naflex_train_loader,
    create_train_loader,
    open_train_dataset,
    with_masks,
)
from timm_hnc.training.setup.options import TrainOptions

_logger = logging.getLogger(__name__)


@dataclass
class RunData:
    """What a run trains on and is evaluated on.

    Args:
        train_set: what the training labels and the names of classes are read from.
        train_loader: timm's loader, or the one that was provided.
        seeded: its batches where their random numbers depend on their place alone, else None.
        eval_loader: the same for validation, or None without a validation split.
        mixup: timm's mixup, or None.
        config: input size, mean, std, interpolation and crop.
        class_names: a name a class.
        skipped: counts images that could not be decoded.
        guided: the training set with the masks of its objects, where a loss needs them.
        patches: how images become patches, with NaFlex batches.
    """

    train_set: Any
    train_loader: Any
    seeded: SeededBatches | NaFlexBatches | None
    eval_loader: Any
    mixup: Mixup | None
    config: dict[str, Any]
    class_names: list[str]
    skipped: SkippedImages
    guided: GuidedDataset | None = None
    patches: Patches | None = None


def create_run_data(
    options: TrainOptions,
    train_set: Any,
    eval_set: Any,
    config: dict[str, Any],
    num_classes: int,
    grid: tuple[int, int] | None,
    patches: Patches | None,
    accelerator: Accelerator,
    skipped: SkippedImages,
) -> RunData:
    """Open the data sets that are not provided but None, and make the loaders; `config` is that of `RunData`.

    With a `grid`, that of the class maps, the training images come with the masks of their objects. With `patches` the
    loaders make NaFlex batches.
    """
    channels = config['input_size'][0]
    for provided in (train_set, eval_set):
        if provided is not None:
            check_provided(provided, num_classes, options.task.multi_label)
    mixup = None
    if patches is None:
        mixup = create_mixup(options, num_classes, on_device=isinstance(train_set, DataLoader))
    if train_set is None:
        train_set = open_train_dataset(options, channels, num_classes)
    guided = with_masks(train_set, options, num_classes, grid) if grid is not None else None
    train_set = train_set if guided is None else guided
    train_loader, seeded = _create_train_loader(
        train_set, options, config, mixup, patches, num_classes, skipped, accelerator
    )
    if train_loader is train_set:
        train_set = train_loader.dataset
    eval_loader = None
    if options.splits.val_split:
        if eval_set is None:
            eval_set = open_eval_dataset(
                options.data,
                options.task,
                channels,
                num_classes,
                options.loader.seed,
                split=options.splits.val_split,
                num_samples=options.splits.val_num_samples,
                batch_size=options.batches.batch_size,
            )
            if not options.data.holdout and same_files(train_set, eval_set):
                _logger.warning(f'--val-split {options.splits.val_split}: it is evaluated on the training images.')
        if not isinstance(eval_set, DataLoader):
            check_same_classes(train_set, eval_set)
        eval_loader = _create_eval_loader(eval_set, options, config, patches, skipped, accelerator)
    names = class_names(train_set, num_classes)
    return RunData(train_set, train_loader, seeded, eval_loader, mixup, config, names, skipped, guided, patches)


def _create_train_loader(
    train_set: Any,
    options: TrainOptions,
    config: dict[str, Any],
    mixup: Mixup | None,
    patches: Patches | None,
    num_classes: int,
    skipped: SkippedImages,
    accelerator: Accelerator,
) -> tuple[Any, SeededBatches | NaFlexBatches | None]:
    """The loader that trains, and what seeds its batches, where each is a function of its place."""
    distributed, device = accelerator.num_processes > 1, accelerator.device
    seed = mixed(options.loader.seed, accelerator.process_index)
    if _is_loader(train_set, patches, accelerator.num_processes):
        return train_set, None
    train_set.skipped_images = skipped  # travels to the loader's workers
    if patches is not None:
        loader = create_naflex_train_loader(train_set, options, config, patches, num_classes, accelerator)
        outlive_signals(loader)
        return loader, seed_naflex_batches(loader, seed)
    loader = create_train_loader(train_set, options, config, device, distributed, mixup)
    outlive_signals(loader)
    seeded = seed_batches(loader, seed)
    if options.batches.data_in_memory and seeded is not None:
        hflip, vflip = options.augmentation.hflip, options.augmentation.vflip
        with train_set.of_pixels() if isinstance(train_set, GuidedDataset) else nullcontext(KeptTargets()) as targets:
            keep_in_memory(loader, seeded, hflip, vflip, device, targets)
    return loader, seeded


def _is_loader(data: Any, patches: Patches | None, processes: int) -> bool:
    """Whether data is a loader already, which is taken as it is; one of NaFlex batches is refused, or beside them."""
    if patches is not None and isinstance(data, DataLoader):
        raise UsageError('--naflex-loader: a DataLoader was provided, give its data set instead.')
    if not is_loader(data, processes):
        return False
    if isinstance(data.dataset, NaFlexMapDatasetWrapper) or isinstance(data.collate_fn, NaFlexCollator):
        raise UsageError('a DataLoader of NaFlex batches was provided: give its data set, and naflex_loader=True.')
    return True


def _create_eval_loader(
    eval_set: Any,
    options: TrainOptions,
    config: dict[str, Any],
    patches: Patches | None,
    skipped: SkippedImages,
    accelerator: Accelerator,
) -> Any:
    batches = options.batches
    if _is_loader(eval_set, patches, accelerator.num_processes):
        return eval_set
    eval_set.skipped_images = skipped
    arguments: dict[str, Any] = dict(img_dtype=options.device.input_dtype)
    if batches.data_in_memory:
        arguments['persistent_workers'] = False  # what is kept in memory is read once
    loader = create_eval_loader(
        eval_set, options.data, options.loader, config, batches.eval_batch_size, accelerator, patches, **arguments
    )
    outlive_signals(loader)
    if batches.data_in_memory:
        loader.loader = RememberedBatches(loader.loader)
    return loader
