"""Data sets by name: timm's and ours, checked before the first batch."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, default_collate

from timm_hnc.data.labels import sample_labels
from timm_hnc.data.loading.converted_images import ConvertedImages
from timm_hnc.data.loading.rows_ahead import keep_rows_ahead
from timm_hnc.data.loading.unreadable_images import check_images
from timm_hnc.data.loading.wrapped_dataset import innermost, unwrapped_reader
from timm_hnc.data.sets.coco import read_coco
from timm_hnc.data.sets.cub import read_cub
from timm_hnc.data.sets.decoy_digits import DecoyDigitsReader
from timm_hnc.data.sets.digits import DigitsReader
from timm_hnc.data.sets.tiny_imagenet import read_tiny_imagenet
from timm_hnc.data.targets import ClassIndex, LabelSet
from timm_hnc.errors import DataError, UsageError

_EMBEDDED = {'hnc/digits': DigitsReader, 'hnc/decoy-digits': DecoyDigitsReader}
# as their authors publish them
_PUBLISHED: dict[str, Callable[[str, str], Any]] = {
    'hnc/cub200': read_cub,
    'hnc/tiny-imagenet': read_tiny_imagenet,
    'hnc/coco': read_coco,
}
_OWN_LABELS = ('torch', 'torchvision', 'timm', 'timm_hnc')  # their data sets have the labels that they say
_FIRST = 16  # samples whose targets are looked at
_PACKAGES = {'hfds': 'datasets', 'hfids': 'datasets', 'wds': 'webdataset'}


def create_dataset(
    name: str,
    root: str | None,
    split: str,
    num_classes: int,
    multi_label: bool = False,
    target_format: str | None = None,
    **kwargs: Any,
) -> Dataset[Any]:
    """A data set that timm's loaders take, with targets that are checked as they are read.

    Args:
        name: as timm names data sets (empty for a folder or tar, 'torch/...', 'hfds/...', 'hfids/...', 'wds/...'),
            or 'hnc/digits' (scikit-learn's handwritten digits), 'hnc/cub200', 'hnc/tiny-imagenet', 'hnc/coco'.
        root: folder, tar file or cache, as that kind of data set wants it.
        split: name of the split.
        num_classes: outputs of the model.
        multi_label: targets are sets of labels, encoded as (num_classes,) floats.
        target_format: 'indices' or 'multihot', for sets of labels.
        **kwargs: for timm's create_dataset.
    """
    if name.startswith('hnc/'):
        if name == 'hnc/coco' and target_format == 'multihot':
            raise UsageError('--target-format multihot: not for hnc/coco, whose targets are class indices.')
        _refuse_class_map(name, kwargs.get('class_map'))
        dataset: Any = _create_own_dataset(name, root, split, multi_label, kwargs.get('input_img_mode') or 'RGB')
    else:
        dataset = _create_timm_dataset(name, root, split, target_format=target_format, **kwargs)
        if name.lower().startswith('hfds/'):
            keep_rows_ahead(dataset)
    check_images(dataset)
    dense = target_format == 'multihot'
    dataset.target_transform = LabelSet(num_classes, dense) if multi_label else ClassIndex(num_classes)
    if not multi_label:
        _check_labels(dataset, name or root, num_classes, training=kwargs.get('is_training', False))
    elif name == 'hnc/coco':
        _check_range(set(class_to_idx(dataset).values()), name, num_classes)
    elif not dense:
        _check_indices(dataset, name or root, num_classes)
    if name.lower().startswith('torch/'):
        return ConvertedImages(dataset, kwargs.get('input_img_mode') or 'RGB')
    return dataset


def _refuse_class_map(name: str, class_map: str | None) -> None:
    if class_map:
        raise UsageError(f'--class-map {class_map}: does nothing, {name} numbers its classes itself.')


def _create_own_dataset(name: str, root: str | None, split: str, multi_label: bool, mode: str) -> Any:
    if name in _EMBEDDED:
        return timm.data.ImageDataset('', reader=_EMBEDDED[name](split), input_img_mode=mode)
    if name not in _PUBLISHED:
        known = ', '.join((*_EMBEDDED, *_PUBLISHED))
        raise UsageError(f"--dataset '{name}' is unknown: timm_hnc has {known}.")
    if not root:
        raise UsageError(f'--dataset {name}: pass --data-dir DIR, the folder of the data set.')
    if not Path(root).is_dir():
        raise DataError(f"data folder '{root}' does not exist: see --data-dir.")
    if name == 'hnc/coco' and not multi_label:
        raise UsageError('--dataset hnc/coco has several labels an image: pass --task multilabel.')
    if name != 'hnc/coco' and multi_label:
        raise UsageError(f'--dataset {name} has one label an image: pass --task classification, the default.')
    return timm.data.ImageDataset('', reader=_PUBLISHED[name](root, split), input_img_mode=mode)


def _create_timm_dataset(name: str, root: str | None, split: str, **kwargs: Any) -> Any:
    prefix = name.split('/')[0].lower() if '/' in name else ''
    package = _PACKAGES.get(prefix)
    if package and find_spec(package) is None:
        raise UsageError(f'--dataset {name} needs the package {package}: pip install "timm_hnc[data]".')
    if not prefix:
        _check_folder(root, split)
    if prefix == 'torch':
        _refuse_class_map(name, kwargs.get('class_map'))
    try:
        dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    except Exception as error:  # every reader's library has errors of its own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise DataError(f"data set '{name or root}', split '{split}', cannot be read: {reason}") from error
    _check_columns(dataset, name)
    return dataset


def _check_columns(dataset: Any, name: str) -> None:
    """Hugging Face's reader takes any column name, and fails at the first sample."""
    reader: Any = getattr(dataset, 'reader', None)
    columns = getattr(getattr(getattr(reader, 'dataset', None), 'data', None), 'column_names', None)
    if columns is None:
        return
    targets = getattr(reader, 'target_keys', None) or [getattr(reader, 'label_key', None)]
    # the reader has added its image column, empty, where there was none
    images = reader.dataset.data.column(reader.image_key)
    if images.null_count == len(images):
        columns = [column for column in columns if column != reader.image_key]
    wanted = [('--input-key', reader.image_key), *(('--target-key', key.split('/')[0]) for key in targets if key)]
    for flag, column in wanted:
        if column not in columns:
            raise DataError(f"data set '{name}' has no column '{column}' but {', '.join(columns)}: see {flag}.")


def _check_folder(root: str | None, split: str) -> None:
    if not root:
        raise UsageError('no data: pass --data-dir DIR, or --dataset NAME.')
    path = Path(root)
    if not path.exists():
        raise DataError(f"data folder '{root}' does not exist: see --data-dir.")
    if path.is_file():
        return
    # timm takes the whole folder where it finds none for the split, training images for validation among it
    found = timm.data.dataset_factory._search_split(root, split)
    others = [child for child in ('train', 'training', 'val', 'validation', 'test') if (path / child).is_dir()]
    if found == root and others:
        raise DataError(
            f"data folder '{root}' has no folder for the split '{split}' but has {', '.join(others)}: "
            'see --train-split and --val-split.'
        )


def class_to_idx(dataset: Any) -> dict[str, int]:
    """Class names and the indices that their images come with, empty where the data set does not know them."""
    reader = getattr(dataset, 'reader', dataset)
    # timm's reader of tar files calls it differently
    found = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None) or {}
    return {name: _as_it_comes(dataset, index) for name, index in found.items()}


def _as_it_comes(dataset: Any, label: Any) -> Any:
    """A label as a provided data set's own target transform numbers it; as it is where that makes no number of it."""
    transform = getattr(innermost(dataset), 'target_transform', None)
    if transform is None or isinstance(transform, (ClassIndex, LabelSet)):
        return label
    try:
        return int(transform(label))
    except Exception:  # whatever somebody's transform raises
        return label


def check_same_classes(train: Any, evaluation: Any) -> None:
    """Refuse validation data whose class names have other indices than the training data's.

    Folders number their own classes: one that lacks a class numbers those behind it differently.

    Raises:
        DataError: with a class that differs.
    """
    known = class_to_idx(train)
    for name, index in class_to_idx(evaluation).items() if known else ():
        if known.get(name) != index:
            raise DataError(
                f"class '{name}' is number {index} in the validation data but {known.get(name, 'none')} in the "
                'training data: give both the same class folders, or a --class-map.'
            )


def same_files(one: Any, other: Any) -> bool:
    """Whether two data sets list the same files, as folders do in which timm finds none of either split's name."""
    first, second = (_files(getattr(innermost(each), 'reader', None)) for each in (one, other))
    return bool(first) and first == second


def _files(reader: Any) -> list[Any]:
    """What a reader of a folder or of tar files lists; empty for others."""
    samples: Any = getattr(reader, 'samples', None)
    if isinstance(samples, np.ndarray):  # of tar files: places in them, which are never equal
        return [reader.root, *reader.filenames()]
    return samples if isinstance(samples, list) else []


def check_classes_of_model(names: Sequence[str], dataset: Any) -> None:
    """Refuse data in which a class that the model knows by its name has another index than in the model.

    A name that is its own index is none: it stands where the training data had no name.

    Raises:
        DataError: with a class that differs.
    """
    known = {name: index for index, name in enumerate(names) if name != str(index)}
    for name, index in class_to_idx(dataset).items():
        if known.get(str(name), index) != index:
            raise DataError(
                f"class '{name}' is number {index} in the data but {known[str(name)]} in the model: "
                'give the --class-map that the model was trained with.'
            )


def class_names(dataset: Any, num_classes: int) -> list[str]:
    """The name of every class, its index where the data set has no name."""
    names = {index: str(name) for name, index in class_to_idx(dataset).items()}
    return [names.get(index, str(index)) for index in range(num_classes)]


def _check_labels(dataset: Any, name: str | None, num_classes: int, training: bool) -> None:
    labels = {int(label) for label in sample_labels(dataset) or () if isinstance(label, Integral)}
    labels = labels or set(class_to_idx(dataset).values())
    if training and len(labels) == 1:
        raise DataError(f"data set '{name}' has images of one class only: a classifier needs at least two.")
    _check_range(labels, name, num_classes)
    if hasattr(dataset, '__len__') and len(dataset) == 0:
        raise DataError(f"data set '{name}' is empty.")


def _check_indices(dataset: Any, name: str | None, num_classes: int) -> None:
    """Refuse lists that are as long as there are classes and of zeros and ones: as indices they are of two classes."""
    reader = unwrapped_reader(dataset)
    if num_classes < 3 or not hasattr(reader, 'target_keys'):
        return
    first = [reader[index][1] for index in range(min(len(reader), _FIRST))]
    if first and all(isinstance(each, list) and len(each) == num_classes and {*each} <= {0, 1} for each in first):
        raise DataError(
            f"data set '{name}' has targets such as {str(first[0])[:40]}, {num_classes} zeros and ones each: pass "
            '--target-format multihot.'
        )


def check_provided(dataset: Any, num_classes: int, multi_label: bool) -> None:
    """Refuse provided data with a label that the model does not have, where labels are there without images.

    Args:
        dataset: a data set, or a DataLoader; looked at where samples are read by torch's, torchvision's or timm's own
            class, whose labels are the targets, and a loader takes all of them as they are.
        num_classes: outputs of the model.
        multi_label: targets are sets of labels, and not looked at.

    Raises:
        DataError: with such a label.
    """
    if isinstance(dataset, DataLoader):
        plain = dataset.collate_fn is default_collate and type(dataset.batch_sampler) is BatchSampler
        takes_all = type(dataset.sampler) in (SequentialSampler, RandomSampler)
        dataset = dataset.dataset if plain and takes_all else None
    reader = getattr(type(dataset), '__getitem__', None)
    if multi_label or getattr(reader, '__module__', '').split('.')[0] not in _OWN_LABELS:
        return
    labels = sample_labels(dataset)
    known = set(labels) if isinstance(labels, (list, tuple)) and all(isinstance(each, int) for each in labels) else ()
    _check_range({_as_it_comes(dataset, label) for label in known}, type(innermost(dataset)).__name__, num_classes)


def _check_range(labels: set[int], name: str | None, num_classes: int) -> None:
    wrong = sorted(label for label in labels if not 0 <= label < num_classes)
    if wrong:
        way_out = 'set --num-classes to the classes of the data' if wrong[-1] >= 0 else 'number the classes from 0'
        raise DataError(
            f"data set '{name}' has labels outside the model's range 0 to {num_classes - 1}, such as {wrong[-1]}: "
            f'{way_out}.'
        )
