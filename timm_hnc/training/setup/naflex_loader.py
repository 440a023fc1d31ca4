"""Training data as NaFlex batches, augmented as timm does."""

import logging
from typing import Any

from accelerate import Accelerator
from timm.data import NaFlexMixup
from timm.data.naflex_dataset import calculate_naflex_batch_size

from timm_hnc.data.naflex import Patches
from timm_hnc.evaluation.loaders import create_timed_loader
from timm_hnc.training.setup.loaders import augmentation_arguments, train_interpolation
from timm_hnc.training.setup.options import TrainOptions

_logger = logging.getLogger(__name__)


def create_naflex_train_loader(
    dataset: Any,
    options: TrainOptions,
    data_config: dict[str, Any],
    patches: Patches,
    num_classes: int,
    accelerator: Accelerator,
) -> Any:
    """Timm's NaFlex loader for training; of several processes each reads its share."""
    naflex = options.naflex
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
        batch_size=options.batches.batch_size,
        is_training=True,
        img_dtype=options.device.input_dtype,
        interpolation=train_interpolation(options.augmentation, data_config),
        train_crop_mode=options.augmentation.train_crop_mode,
        worker_seeding=options.batches.worker_seeding,
        train_seq_lens=tuple(naflex.naflex_train_seq_lens),
        mixup_fn=_mixup(options, num_classes),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=options.loader.seed,
        **sizes,
        **augmentation_arguments(options.augmentation),
    )


def _tell_batch_sizes(options: TrainOptions) -> None:
    """Timm makes batches of so many patches, and of a multiple of 8 images, or of a single one."""
    lengths = sorted(set(options.naflex.naflex_train_seq_lens))
    tokens = options.batches.batch_size * lengths[-1]
    sizes = [calculate_naflex_batch_size(tokens, length, divisor=8) for length in lengths]
    text = ', '.join(f'{size} of {length}' for size, length in zip(sizes, lengths, strict=True))
    _logger.info(f'NaFlex batches: images, and patches of an image at most: {text}.')


def _mixup(options: TrainOptions, num_classes: int) -> NaFlexMixup | None:
    mixing = options.mixup
    if not mixing.active:
        return None
    return NaFlexMixup(
        num_classes=num_classes,
        mixup_alpha=mixing.mixup,
        cutmix_alpha=mixing.cutmix,
        prob=mixing.mixup_prob,
        switch_prob=mixing.mixup_switch_prob,
        label_smoothing=options.loss.smoothing,
        mixup_off_epoch=mixing.mixup_off_epoch,
        multi_label=options.task.multi_label,
    )
