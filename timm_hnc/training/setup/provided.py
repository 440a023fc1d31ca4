"""A model and data that a caller brings in place of those that options name, and what options may say of them."""

import logging
from collections.abc import Callable, Collection, Iterable, Sized
from dataclasses import dataclass, fields, replace
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from timm_hnc.cam import CamModel
from timm_hnc.data.inputs import InputOptions
from timm_hnc.data.options import DataOptions
from timm_hnc.errors import UsageError
from timm_hnc.options import flattened, given
from timm_hnc.training.setup.data_options import AugmentationOptions, BatchOptions, TrainSizeOptions
from timm_hnc.training.setup.models import ModelOptions
from timm_hnc.training.setup.options import TrainOptions


@dataclass(frozen=True)
class Provided:
    """What a caller brings in place of what the options name.

    Args:
        model: plain model.
        train_set: data set that timm's loader can take, or a loader of normalised batches.
        eval_set: the same for validation.
        wrap: makes the CamModel of a model of this architecture.
    """

    model: Any = None
    train_set: Any = None
    eval_set: Any = None
    wrap: Callable[[Any], CamModel] = CamModel


def _names(*kinds: type[Any]) -> set[str]:
    return {each.name for kind in kinds for each in fields(kind)}


# what only those do that open data, make a model, or make the training batches
OF_DATA = frozenset(_names(DataOptions) | {'target_key', 'target_format'})
OF_MODEL = frozenset({'gp', 'model_kwargs'})
_logger = logging.getLogger(__name__)
_OF_SPLITS = frozenset({'train_split', 'train_num_samples', 'val_num_samples', 'epoch_repeats', 'label_noise'})
_OF_TRAINED_MODEL = OF_MODEL | _names(ModelOptions) - {'model'}
_OF_BATCHES = frozenset(
    _names(AugmentationOptions, TrainSizeOptions) - {'no_aug', 'aug_splits'}
    | {'data_in_memory', 'use_multi_epochs_loader', 'worker_seeding'}
)


def refuse_unused(options: Any, names: Iterable[str], why: str) -> None:
    """Refuse options that would do nothing, unless they have their default."""
    values, defaults = flattened(options), flattened(type(options)())
    for name in sorted(names):
        if values[name] != defaults[name]:
            raise UsageError(f'{given(name, values[name])}: does nothing, {why}')


def check_num_classes(options: InputOptions, model: Any) -> None:
    """Refuse another number of classes than a model that is provided has."""
    if options.num_classes not in (None, model.num_classes):
        raise UsageError(f'--num-classes {options.num_classes}: the model that is provided has {model.num_classes}.')


def fitted_options(
    options: TrainOptions, explicit: Collection[str], model: Any, train_set: Any, eval_set: Any
) -> TrainOptions:
    """The options of a run on a model and data that are provided, with the batch size of a loader."""
    refuse_unused(options, OF_DATA | _OF_SPLITS, 'the data sets are provided.')
    refuse_unused(options, _OF_TRAINED_MODEL, 'the model is provided.')
    check_num_classes(options.input, model)
    if isinstance(eval_set, DataLoader):
        refuse_unused(options, {'validation_batch_size'}, 'the DataLoader that is provided makes the batches.')
    if not isinstance(train_set, DataLoader):
        return options
    refuse_unused(options, _OF_BATCHES, 'the DataLoader that is provided makes the training batches.')
    try:
        len(train_set)
    except TypeError as error:
        raise UsageError(
            'the DataLoader that is provided does not know how many batches it has: give its data set or batch '
            'sampler a __len__.'
        ) from error
    batches: Any = train_set.batch_sampler
    size = options.batches.batch_size
    own = getattr(batches, 'batch_size', None)
    if not isinstance(own, int):  # of a batch sampler of somebody's
        if not options.schedule.lr:
            _logger.warning(
                'The DataLoader that is provided does not say its batch size: the learning rate follows from '
                f'--batch-size {size}; give lr in its place.'
            )
        return options
    if size != own and ('batch_size' in explicit or size != BatchOptions.batch_size):
        raise UsageError(f'--batch-size {size}: the DataLoader that is provided makes batches of {own}.')
    options = replace(options, batches=replace(options.batches, batch_size=own))
    usual = isinstance(batches, BatchSampler)
    images = len(batches.sampler) if usual and isinstance(batches.sampler, Sized) else 0
    if options.mixup.active and images % 2 and not batches.drop_last:
        raise UsageError(
            f'--mixup and --cutmix mix pairs, and the last batch of {images} images is odd: give the DataLoader '
            'drop_last=True.'
        )
    return options
