"""A model's figures over a data set, every sample counted once."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import gather_object
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.naflex_maps import on_device
from timm_hnc.data.loading.loader_errors import read
from timm_hnc.data.targets import batch_of, check_batch, check_classes
from timm_hnc.errors import DataError
from timm_hnc.metrics.multilabel import MultiLabelEvaluator
from timm_hnc.progress import progress
from timm_hnc.runtime.device import DeviceOptions

_logger = logging.getLogger(__name__)
Autocast = Callable[[], AbstractContextManager[Any]]


def create_evaluator(
    loader: Any, device: torch.device, multi_label: bool = False, threshold: float = 0.5
) -> ClassificationEvaluator:
    """Timm's evaluator of a task, told how much of this process's data is the sampler's padding."""
    limit = evaluation_sample_limit(loader)
    if multi_label:
        return MultiLabelEvaluator(device, max_samples=limit, threshold=threshold)
    return ClassificationEvaluator(device, max_samples=limit)


def batches(
    loader: Any,
    device: torch.device,
    options: DeviceOptions,
    num_classes: int,
    ignored: int | None = None,
) -> Iterable[Any]:
    """(input, target) pairs of a timm loader, of NaFlex too, on the device, whether it prefetches or not.

    Raises:
        DataError: a class index is not in [0, num_classes), and not `ignored`.
    """
    # a stream that was asked for its length warns when it turns out to be another
    streamed = isinstance(getattr(loader, 'dataset', None), IterableDataset)
    try:
        total = None if streamed else len(loader)
    except TypeError:  # of a batch sampler that does not know it
        total = None
    for input, target in map(batch_of, progress(read(loader), 'batch', total)):
        check_classes(target, num_classes, ignored)
        input, target = on_device(input, device, options.input_dtype), target.to(device)
        channels_last = options.channels_last and isinstance(input, Tensor)
        yield input.contiguous(memory_format=torch.channels_last) if channels_last else input, target


def evaluate(
    model: nn.Module,
    inputs: Iterable[tuple[Any, Tensor]],
    evaluator: ClassificationEvaluator,
    autocast: Autocast,
    distributed: bool = False,
    on_batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    log_interval: int = 50,
) -> dict[str, float]:
    """Figures of a model in evaluation mode, over all processes.

    Args:
        model: images to (B, n) logits.
        inputs: (images or NaFlex batch, target) batches on the model's device.
        evaluator: counts them; a fresh one a call.
        autocast: makes the mixed-precision context.
        distributed: sum the counts over processes.
        on_batch: changes (logits, target) before they are counted.
        log_interval: batches between two log lines.

    Returns:
        The evaluator's metrics, percentages but for the loss.

    Raises:
        DataError: a target does not fit the task, or nothing was there to evaluate.
    """
    seen = 0
    with evaluating(model):
        for index, (input, target) in enumerate(inputs):
            # not around the loop: what a reader keeps for the next pass may be changed outside of it
            with torch.inference_mode():
                with autocast():
                    output = model(input)
                output = output[0] if isinstance(output, (tuple, list)) else output
                if on_batch is not None:
                    output, target = on_batch(output, target)
                multi_label = isinstance(evaluator, MultiLabelEvaluator)
                check_batch(target, output.shape[-1], indices=not multi_label, values=multi_label)
                evaluator.update(output, target)
                seen += len(target)
                if (index + 1) % log_interval == 0:
                    _logger.info(f'Evaluated {seen} images of this process: {_text(evaluator.summary())}')
    if not (sum(gather_object([seen])) if distributed else seen):
        raise DataError('the validation set is empty: see --val-split (validate: --split) and --data-dir.')
    metrics = dict(evaluator.compute(distributed=distributed))
    _logger.info(f'Evaluation: {_text(metrics)}')
    return metrics


def _text(metrics: Mapping[str, float]) -> str:
    return '  '.join(f'{name} {value:.4f}' for name, value in metrics.items())
