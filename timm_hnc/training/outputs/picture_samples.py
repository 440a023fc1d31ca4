"""A few validation images of a run, the same ones whenever it is asked."""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchvision.transforms.functional import normalize

from timm_hnc.cam.naflex_maps import NaFlexBatch
from timm_hnc.data.loading.loader_errors import read
from timm_hnc.data.loading.worker_signals import outlive_signals
from timm_hnc.data.naflex import Patches
from timm_hnc.data.samples import evenly_spread
from timm_hnc.data.targets import batch_of
from timm_hnc.data.transforms import denormalize
from timm_hnc.training.setup.build import Run


def spread_samples(run: Run, count: int) -> tuple[Any, Tensor] | None:
    """Samples evenly spread over the validation set, or the first ones where it can only be read in order.

    Returns:
        (B, C, H, W) normalised images, or a NaFlex batch, and their targets; None where there are none.
    """
    if isinstance(run.data.eval_loader, DataLoader):
        return _of_loader(run.data.eval_loader, count)
    dataset: Any = run.data.eval_loader.dataset
    if not isinstance(dataset, IterableDataset):
        dataset = Subset(dataset, evenly_spread(len(dataset), count))
    # where workers read the data, one reads this too: they would share what a reader has opened before they were forked
    workers = min(1, run.options.loader.workers)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, timeout=run.options.loader.worker_timeout * workers
    )
    outlive_signals(loader)
    samples = list(islice(read(loader), count))
    if not samples:
        return None
    if run.data.patches is not None:
        return _naflex_batch(samples, run.data.patches, run.data.config)
    images, targets, *_ = zip(*samples, strict=True)
    stacked = torch.stack([torch.as_tensor(image) for image in images])
    if stacked.dtype == torch.uint8:
        stacked = normalize(stacked / 255, run.data.config['mean'], run.data.config['std'])
    return stacked, torch.stack([torch.as_tensor(target) for target in targets])


def _of_loader(loader: DataLoader[Any], count: int) -> tuple[Tensor, Tensor] | None:
    """Samples of torch's own loader, put together as its owner wants it."""
    if loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset):
        loader = _over_few(loader, count)
    images: list[Tensor] = []
    targets: list[Tensor] = []
    for batch, target in map(batch_of, read(loader)):
        if sum(map(len, images)) >= count or (images and batch.shape[1:] != images[0].shape[1:]):
            break
        images.append(batch)
        targets.append(target)
    return (torch.cat(images)[:count], torch.cat(targets)[:count]) if images else None


def _over_few(loader: DataLoader[Any], count: int) -> DataLoader[Any]:
    """The same loader over a few samples of those that it takes, in the order of the data set."""
    batches: Any = loader.batch_sampler
    taken = sorted(set(chain.from_iterable(batches)))
    few = Subset(loader.dataset, [taken[place] for place in evenly_spread(len(taken), count)])
    workers = min(1, loader.num_workers)
    one = DataLoader(
        few,
        count,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        timeout=loader.timeout * workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    outlive_signals(one)
    return one


def _naflex_batch(samples: list[Any], patches: Patches, config: dict[str, Any]) -> tuple[NaFlexBatch, Tensor]:
    batch, targets = patches.batch(samples)
    if samples[0][0]['patches'].dtype == torch.uint8:
        batch = patches.normalized(batch, config['mean'], config['std'])
    return batch, targets


def restored(run: Run, inputs: Any) -> list[Tensor]:
    """Normalised images, or those of a NaFlex batch, in [0, 1], (C, H, W) each."""
    config, patches = run.data.config, run.data.patches
    images: Iterable[Tensor] = inputs if patches is None else patches.images(inputs, len(config['mean']))
    return [denormalize(image.float().cpu(), config['mean'], config['std']).clamp(0, 1) for image in images]
