"""Labels that a model does not have are refused, as far as they can be had without reading an image."""

from itertools import islice
from numbers import Integral
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from timm_hnc.data.class_names import as_target, class_to_idx
from timm_hnc.data.labels import sample_labels
from timm_hnc.data.loading.wrapped_dataset import innermost, unwrapped_reader
from timm_hnc.data.targets import OTHER_CLASSES
from timm_hnc.errors import DataError

_OWN_LABELS = ('torch', 'torchvision', 'timm', 'timm_hnc')  # their data sets have the labels that they say
_FIRST = 16  # samples whose targets are looked at


def check_labels(dataset: Any, name: str | None, num_classes: int, training: bool) -> None:
    """Refuse class indices that the model does not have, data of one class to train on, and no data at all.

    Raises:
        DataError: with what is wrong.
    """
    labels = {int(label) for label in sample_labels(dataset) or () if isinstance(label, Integral)}
    labels = labels or set(class_to_idx(dataset).values())
    if training and len(labels) == 1:
        raise DataError(f"data set '{name}' has images of one class only: a classifier needs at least two.")
    check_label_range(labels, name, num_classes)
    if hasattr(dataset, '__len__') and len(dataset) == 0:
        raise DataError(f"data set '{name}' is empty: see its folder, and the name of the split.")


def check_indices(dataset: Any, name: str | None, num_classes: int) -> None:
    """Refuse lists that are as long as there are classes and of zeros and ones: as indices they are of two classes."""
    reader = unwrapped_reader(dataset)
    if num_classes < 3 or not hasattr(reader, 'target_keys') or not hasattr(reader, 'iter_targets'):  # of a stream
        return
    first = [*islice(reader.iter_targets(), _FIRST)]  # whose images may be missing
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
    targets = {as_target(dataset, label) for label in known}
    check_label_range(targets, type(innermost(dataset)).__name__, num_classes, 'give the model more classes')


def check_label_range(labels: set[int], name: str | None, num_classes: int, way_out: str = OTHER_CLASSES) -> None:
    """Refuse labels of which one is no class of the model, with one of them."""
    wrong = sorted(label for label in labels if not 0 <= label < num_classes)
    if wrong:
        way_out = way_out if wrong[-1] >= 0 else 'number the classes from 0'
        raise DataError(
            f"data set '{name}' has labels outside the model's range 0 to {num_classes - 1}, such as {wrong[-1]}: "
            f'{way_out}.'
        )
