"""Validation data as batches."""

from argparse import Namespace
from typing import Any

import torch
from PIL import ImageMode
from timm.data import create_loader
from torch.utils.data import Dataset, IterableDataset

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.errors import UsageError, first_lines


def image_mode(args: Namespace, data_config: dict[str, Any]) -> str:
    """Colour mode that images are read in: as asked for, else by the model's channels.

    Raises:
        UsageError: there is no such mode, or it has other channels than the model.
    """
    channels = args.in_chans or data_config['input_size'][0]
    mode = args.input_img_mode or ('RGB' if channels == 3 else 'L')
    try:
        bands = len(ImageMode.getmode(mode).bands)
    except KeyError as error:
        raise UsageError(f'--input-img-mode {mode}: Pillow knows no such mode (RGB, L, CMYK, ...).') from error
    if bands != channels:
        raise UsageError(
            f'images of mode {mode} have {bands} channels, the model has {channels}: see --input-img-mode.'
        )
    return mode


def dataset_options(args: Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    """The options of `create_dataset` that training and validation share on the command line."""
    return dict(
        name=args.dataset or '',
        root=args.data_dir,
        num_classes=args.num_classes,
        multi_label=args.task == 'multilabel',
        target_format=args.target_format,
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=image_mode(args, data_config),
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
    )


def create_eval_dataset(
    args: Namespace, data_config: dict[str, Any], split: str, num_samples: int | None, **kwargs: Any
) -> Dataset:
    """The validation data set that the options name: of a split, or of what --holdout keeps of it.

    Raises:
        UsageError: an option is wrong.
        DataError: the data is missing or does not fit.
    """
    options = dataset_options(args, data_config)
    dataset = create_dataset(split=split, is_training=False, num_samples=num_samples, **options, **kwargs)
    return split_off(dataset, args.holdout, args.seed)[1] if args.holdout else dataset


def loader_options(
    args: Namespace, data_config: dict[str, Any], device: torch.device, distributed: bool
) -> dict[str, Any]:
    """The options of timm's create_loader that training and validation share."""
    return dict(
        input_size=data_config['input_size'],
        mean=data_config['mean'],
        std=data_config['std'],
        pin_memory=args.pin_mem,
        img_dtype=getattr(torch, args.model_dtype or 'float32'),
        device=device,
        distributed=distributed,
        use_prefetcher=not args.no_prefetcher,
    )


def create_eval_loader(
    dataset: Any,
    args: Namespace,
    data_config: dict[str, Any],
    batch_size: int,
    device: torch.device,
    distributed: bool,
    **kwargs: Any,
) -> Any:
    """Timm's validation loader; under torch.distributed it shards by itself.

    Args:
        dataset: from `create_eval_dataset`.
        args: of the command line.
        data_config: from timm's resolve_data_config.
        batch_size: images a batch and process.
        device: that batches go to.
        distributed: whether there are several processes.
        **kwargs: more for timm's create_loader.
    """
    options: dict[str, Any] = dict(
        batch_size=batch_size,
        is_training=False,
        interpolation=data_config['interpolation'],
        num_workers=_eval_workers(args, distributed),
        crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'],
        persistent_workers=not isinstance(dataset, IterableDataset),
    )
    options |= loader_options(args, data_config, device, distributed) | kwargs
    return create_timed_loader(dataset, args, **options)


def create_timed_loader(dataset: Any, args: Namespace, **options: Any) -> Any:
    """Timm's create_loader, with an end to waiting for a worker that hangs.

    Raises:
        UsageError: timm refuses an option.
    """
    try:
        loader: Any = create_loader(dataset, **options)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise UsageError(f'images cannot be loaded with these options: {first_lines(error)}') from error
    inner = getattr(loader, 'loader', loader)
    if inner.num_workers:
        inner.timeout = args.worker_timeout
    return loader


def _eval_workers(args: Namespace, distributed: bool) -> int:
    # iterable readers repeat samples to even out workers, as timm's train.py says
    iterable = (args.dataset or '').lower().startswith(('tfds', 'wds'))
    return min(2, args.workers) if distributed and iterable else args.workers
