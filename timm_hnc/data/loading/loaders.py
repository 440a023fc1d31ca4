"""Data sets that options name, and timm's loaders of them."""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from PIL import ImageMode
from timm.data import ImageDataset, create_loader, create_naflex_loader
from timm.data.distributed_sampler import OrderedDistributedSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.loading.rows_ahead import read_rows_ahead
from timm_hnc.data.loading.wrapped_dataset import follow_transform, inner_loader, innermost
from timm_hnc.data.naflex import Patches
from timm_hnc.data.options import DataOptions, LoaderOptions, TaskOptions
from timm_hnc.errors import UsageError, first_lines

_modes: list[torch.inference_mode] = []  # of this process, while it loads


def image_mode(asked: str | None, channels: int) -> str:
    """Colour mode that images are read in: as asked for, else by the model's channels.

    Raises:
        UsageError: there is no such mode, or it has other channels than the model.
    """
    mode = asked or ('RGB' if channels == 3 else 'L')
    try:
        described = ImageMode.getmode(mode)
    except KeyError as error:
        raise UsageError(f'--input-img-mode {mode}: Pillow knows no such mode (RGB, L, CMYK, ...).') from error
    if described.typestr != '|u1':
        raise UsageError(f'--input-img-mode {mode}: its channels do not have 8 bits.')
    bands = len(described.bands)
    if bands != channels:
        raise UsageError(
            f'images of mode {mode} have {bands} channels, the model has {channels}: see --input-img-mode.'
        )
    return mode


def open_dataset(data: DataOptions, task: TaskOptions, channels: int, num_classes: int, **options: Any) -> Dataset[Any]:
    """The data set that the options name; `options` are split and more for timm's create_dataset."""
    return create_dataset(
        name=data.dataset,
        root=data.data_dir,
        num_classes=num_classes,
        multi_label=task.multi_label,
        target_format=task.target_format,
        class_map=data.class_map,
        download=data.dataset_download,
        input_img_mode=image_mode(data.input_img_mode, channels),
        input_key=data.input_key,
        target_key=task.target_key,
        trust_remote_code=data.dataset_trust_remote_code,
        **options,
    )


def open_eval_dataset(
    data: DataOptions, task: TaskOptions, channels: int, num_classes: int, holdout_seed: int, **options: Any
) -> Dataset[Any]:
    """The validation data: of a split, or what --holdout keeps of it; arguments as of `open_dataset`."""
    dataset = open_dataset(data, task, channels, num_classes, is_training=False, **options)
    return split_off(dataset, data.holdout, holdout_seed)[1] if data.holdout else dataset


def create_eval_loader(
    dataset: Any,
    data: DataOptions,
    options: LoaderOptions,
    data_config: dict[str, Any],
    batch_size: int,
    accelerator: Accelerator,
    patches: Patches | None = None,
    **arguments: Any,
) -> Any:
    """Timm's validation loader, which shards by itself; `arguments` are more for timm's create_loader.

    With `patches` it makes NaFlex batches.
    """
    distributed = accelerator.num_processes > 1
    # the reader repeats samples to even out workers, as timm's train.py says
    repeats = distributed and data.dataset.lower().startswith('tfds')
    defaults: dict[str, Any] = dict(
        batch_size=batch_size,
        is_training=False,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'],
        num_workers=min(2, options.workers) if repeats else options.workers,
        persistent_workers=not isinstance(dataset, IterableDataset),
    )
    if patches is not None:
        defaults |= dict(patch_size=patches.size, max_seq_len=patches.max_seq_len)
    device = accelerator.device
    return create_timed_loader(dataset, options, data_config, device, distributed, patches, **defaults | arguments)


def is_loader(data: Any, processes: int) -> bool:
    """Whether data is a loader already, and no data set to make one of.

    Raises:
        UsageError: it is, and each of several processes would read all of it.
    """
    if not isinstance(data, DataLoader):
        return False
    if processes > 1:
        raise UsageError(
            f'a DataLoader, and {processes} processes, each of which would read all of it: give its data set instead.'
        )
    return True


def sample_order(loader: Any) -> Iterator[int] | None:
    """Indices of the samples as a loader reads them; None where it may read them in another order each time."""
    sampler, batches = loader.sampler, loader.batch_sampler
    known = type(sampler) in (SequentialSampler, OrderedDistributedSampler)
    return iter(sampler) if known and type(batches) is BatchSampler and batches.sampler is sampler else None


def create_timed_loader(
    dataset: Any,
    options: LoaderOptions,
    data_config: dict[str, Any],
    device: torch.device,
    distributed: bool,
    patches: Patches | None = None,
    **arguments: Any,
) -> Any:
    """Timm's create_loader, with an end to waiting for a worker that hangs; arguments as of `create_eval_loader`.

    With `patches` it is timm's create_naflex_loader.
    """
    # what a prefetcher copies to Apple's GPUs without waiting may be other numbers there (pytorch issue 189690)
    device = torch.device('cpu') if device.type == 'mps' else device
    defaults: dict[str, Any] = dict(
        mean=data_config['mean'],
        std=data_config['std'],
        num_workers=options.workers,
        pin_memory=options.pin_mem,
        use_prefetcher=not options.no_prefetcher,
        device=device,
        distributed=distributed,
    )
    if patches is None:
        defaults['input_size'] = data_config['input_size']
        dataset = read_rows_ahead(dataset)
    else:
        defaults |= dict(channels=data_config['input_size'][0], patchify_channels_last=patches.channels_last)
    create: Any = create_loader if patches is None else create_naflex_loader
    try:
        with redirect_stdout(io.StringIO()):  # timm's NaFlex loader prints how many batches it will make
            loader: Any = create(dataset, **defaults | arguments)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise UsageError(f'images cannot be loaded with these options: {first_lines(error)}') from error
    follow_transform(dataset)
    inner = inner_loader(loader)
    if inner.num_workers:
        inner.timeout = options.worker_timeout
        if isinstance(innermost(dataset), ImageDataset):  # who provides another may differentiate in it
            inner.worker_init_fn = partial(_without_autograd, inner.worker_init_fn)
    return loader


def _without_autograd(before: Callable[[int], None] | None, worker: int) -> None:
    """Let a loading process make tensors that nobody differentiates, as in timm's evaluation; others it hands on."""
    if before is not None:
        before(worker)
    mode = torch.inference_mode()
    mode.__enter__()
    _modes.append(mode)
