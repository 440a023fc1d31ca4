"""Data sets by name: timm's and ours, checked before the first batch."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from torch.utils.data import Dataset

from timm_hnc.data.class_names import ClassMap, class_to_idx
from timm_hnc.data.label_checks import check_indices, check_label_range, check_labels
from timm_hnc.data.loading.converted_images import ConvertedImages
from timm_hnc.data.loading.rows_ahead import keep_rows_ahead
from timm_hnc.data.loading.unreadable_images import check_images
from timm_hnc.data.loading.whole_shards import read_whole_shards
from timm_hnc.data.loading.wrapped_dataset import innermost
from timm_hnc.data.sets.coco import read_coco
from timm_hnc.data.sets.cub import read_cub
from timm_hnc.data.sets.decoy_digits import DecoyDigitsReader
from timm_hnc.data.sets.digits import DigitsReader
from timm_hnc.data.sets.tiny_imagenet import read_tiny_imagenet
from timm_hnc.data.targets import ClassIndex, LabelSet
from timm_hnc.errors import DataError, UsageError

_logger = logging.getLogger(__name__)
_EMBEDDED = {'hnc/digits': DigitsReader, 'hnc/decoy-digits': DecoyDigitsReader}
# as their authors publish them
_PUBLISHED: dict[str, Callable[[str, str], Any]] = {
    'hnc/cub200': read_cub,
    'hnc/tiny-imagenet': read_tiny_imagenet,
    'hnc/coco': read_coco,
}
_WITH_ALPHA = ('RGBA', 'RGBa', 'LA', 'La', 'PA')
_SEVERAL_LABELS = {'hnc/coco'}  # an image; the others of ours have one
_PACKAGES = {'hfds': 'datasets', 'hfids': 'datasets', 'wds': 'webdataset', 'tfds': 'tensorflow_datasets'}
_PREFIXES = ('torch', *_PACKAGES)
# of torchvision's: whatever is not a name of the training split is the test split to timm
_TRAIN_OR_TEST = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')
_SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'eval', 'evaluation', 'test')


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
    if kwargs.get('class_map') and name.lower().startswith(('hnc/', 'torch/')):
        _logger.warning(f'--class-map {kwargs["class_map"]}: does nothing, {name} numbers its classes itself.')
    if name.startswith('hnc/'):
        if name in _SEVERAL_LABELS and target_format == 'multihot':
            raise UsageError(f'--target-format multihot: not for {name}, whose targets are class indices.')
        dataset: Any = _create_own_dataset(name, root, split, multi_label, kwargs.get('input_img_mode') or 'RGB')
    else:
        dataset = _create_timm_dataset(name, root, split, target_format=target_format, **kwargs)
        if name.lower().startswith('hfds/'):
            keep_rows_ahead(dataset)
        read_whole_shards(dataset)
    check_images(dataset)
    dense = target_format == 'multihot'
    dataset.target_transform = LabelSet(num_classes, dense) if multi_label else ClassIndex(num_classes)
    if not multi_label:
        check_labels(dataset, name or root, num_classes, training=kwargs.get('is_training', False))
    elif name in _SEVERAL_LABELS:
        check_label_range(set(class_to_idx(dataset).values()), name, num_classes)
    elif not dense:
        check_indices(dataset, name or root, num_classes)
    if name.lower().startswith('torch/'):
        if (kwargs.get('input_img_mode') or 'RGB') in _WITH_ALPHA:
            raise UsageError(
                f'--input-img-mode {kwargs["input_img_mode"]}: not with {name}, whose images lose their alpha.'
            )
        return ConvertedImages(dataset, kwargs.get('input_img_mode') or 'RGB')
    return dataset


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
    if name in _SEVERAL_LABELS and not multi_label:
        raise UsageError(f'--dataset {name} has several labels an image: pass --task multilabel.')
    if name not in _SEVERAL_LABELS and multi_label:
        raise UsageError(f'--dataset {name} has one label an image: pass --task classification, the default.')
    return timm.data.ImageDataset('', reader=_PUBLISHED[name](root, split), input_img_mode=mode)


def _create_timm_dataset(name: str, root: str | None, split: str, **kwargs: Any) -> Any:
    prefix = name.split('/')[0].lower() if '/' in name else ''
    package = _PACKAGES.get(prefix)
    if package and find_spec(package) is None:
        install = 'tensorflow tensorflow-datasets' if prefix == 'tfds' else '"timm_hnc[data]"'
        raise UsageError(f'--dataset {name} needs the package {package}: pip install {install}.')
    if prefix and prefix not in _PREFIXES:
        raise UsageError(f"--dataset '{name}': expected a name that begins with {', '.join(_PREFIXES)} or hnc.")
    if prefix in ('torch', 'wds') and not root:
        raise UsageError(f'--dataset {name}: pass --data-dir DIR, the folder of the data set.')
    if not prefix:
        _check_folder(root, split)
    if prefix == 'torch' and name.split('/', 2)[-1].lower() in _TRAIN_OR_TEST and split not in _SPLITS:
        raise UsageError(f"--dataset {name}: split '{split}' is none of {', '.join(_SPLITS)}.")
    try:
        dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    except Exception as error:  # every reader's library has errors of its own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if kwargs.get('class_map') and reason.startswith('Found 0 images'):
            reason += f'; of classes that --class-map {kwargs["class_map"]} names'
        raise DataError(f"data set '{name or root}', split '{split}', cannot be read: {reason}") from error
    _check_columns(dataset, name)
    reader: Any = getattr(dataset, 'reader', None)
    if getattr(reader, 'remap_class', False):
        reader.class_to_idx = ClassMap(reader.class_to_idx)
    if not prefix and kwargs.get('class_map'):
        _tell_of_folders(dataset, kwargs['class_map'])
    return dataset


def _tell_of_folders(dataset: Any, class_map: str) -> None:
    """Warn of folders in the split's own whose images timm leaves out: no class of the map has their name."""
    root, samples = Path(dataset.reader.root), getattr(dataset.reader, 'samples', None)
    if not root.is_dir() or not isinstance(samples, list):  # of tar files
        return
    folders = {os.path.dirname(path) for path, *_ in samples}  # of over a million images in seconds
    read = {part for folder in folders for part in Path(folder).relative_to(root).parts[:1]}
    others = sorted(path for path in root.iterdir() if path.is_dir() and path.name not in read)
    left_out = [path.name for path in others if _has_images(path)]
    if left_out:
        names = ', '.join(left_out[:5]) + (' ...' if left_out[5:] else '')
        _logger.warning(f"--class-map {class_map}: has no class for {names}; these folders of '{root}' are left out.")


def _has_images(folder: Path) -> bool:
    names = (name for _, _, files in os.walk(folder, followlinks=True) for name in files)
    return any(timm.data.is_img_extension(os.path.splitext(name)[1].lower()) for name in names)


def _check_columns(dataset: Any, name: str) -> None:
    """Hugging Face's reader takes any column name, and fails at the first sample."""
    reader: Any = getattr(dataset, 'reader', None)
    columns = getattr(getattr(getattr(reader, 'dataset', None), 'data', None), 'column_names', None)
    if columns is None:
        return
    targets = getattr(reader, 'target_keys', None) or [getattr(reader, 'label_key', None)]
    # the reader has added its image column, empty, where there was none
    images = reader.dataset.data.column(reader.image_key)
    if images.null_count == len(images) > 0:
        columns = [column for column in columns if column != reader.image_key]
    # a key leads into a column's fields, where no column has that name
    targets = [key if key in columns else key.split('/')[0] for key in targets if key]
    wanted = [('--input-key', reader.image_key), *(('--target-key', key) for key in targets)]
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
    if split and Path(found) == path and others:
        raise DataError(
            f"data folder '{root}' has no folder for the split '{split}' but has {', '.join(others)}: "
            'see --train-split and --val-split (validate: --split).'
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
