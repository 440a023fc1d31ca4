"""Evaluation on other labels than the data set's: reassessed ImageNet labels, a part of the classes, precision."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from timm.data import RealLabelsImagenet
from timm.task import evaluation_sample_limit
from torch import Tensor
from torch.utils.data import IterableDataset

from timm_hnc.data.loading.loaders import sample_order
from timm_hnc.data.loading.wrapped_dataset import inner_loader, stored_places
from timm_hnc.errors import DataError, UsageError, first_lines

_TOP = 5  # timm's figures are of the first class and of so many


@dataclass(frozen=True)
class LabelOptions:
    """Evaluation on other labels, and with other figures.

    Args:
        real_labels: JSON file of the reassessed ImageNet labels.
        valid_labels: text file of the class indices to evaluate.
        metrics_avg: precision, recall and F1, averaged this way.
    """

    real_labels: str = ''
    valid_labels: str = ''
    metrics_avg: Literal['micro', 'macro', 'weighted'] | None = None


def _real_labels(dataset: Any, path: str, loader: Any) -> RealLabelsImagenet:
    """Reassessed labels by the file names of a data set's samples, also of a part of it."""
    try:
        names, places = dataset.filenames(basename=True), stored_places(dataset)
    except (AttributeError, NotImplementedError, AssertionError) as error:  # the last one of timm's streams
        raise DataError(f'--real-labels {path}: this data set gives no file names of its images.') from error
    workers = getattr(inner_loader(loader), 'num_workers', 0)
    if isinstance(dataset, IterableDataset) and workers > 1:
        raise UsageError('--real-labels takes the images in order: read a stream with --workers 1.')
    labels = RealLabelsImagenet(names, real_json=path)  # which has as many as there are names
    if places is not None:
        labels.filenames = [names[place] for place in places]
    return labels


def _valid_labels(path: str, num_classes: int) -> list[int]:
    """The class indices of a text file, one a line."""
    expected = f'expected class indices from 0 to {num_classes - 1}, one a line'
    try:
        classes = [int(line) for line in Path(path).read_text(encoding='utf-8-sig').splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f'--valid-labels {path} cannot be read: {error}') from error
    except ValueError as error:
        raise DataError(f'--valid-labels {path}: {expected} ({first_lines(error)}).') from error
    if not classes or not 0 <= min(classes) <= max(classes) < num_classes:
        raise DataError(f'--valid-labels {path}: {expected}.')
    return classes


class OtherLabels:
    """timm's --valid-labels, --real-labels and --metrics-avg, applied batch by batch.

    Raises:
        UsageError: an option does not work here.
        DataError: a file cannot be read, or its classes are not those of the model.
    """

    def __init__(self, options: LabelOptions, dataset: Any, loader: Any, distributed: bool, num_classes: int) -> None:
        self.average = options.metrics_avg
        if self.average and find_spec('sklearn') is None:
            raise UsageError('--metrics-avg needs scikit-learn: pip install "timm_hnc[quickstart]".')
        if options.real_labels and distributed:
            raise UsageError('--real-labels takes the images in order: evaluate with one process.')
        if options.real_labels and not isinstance(dataset, IterableDataset) and sample_order(loader) is None:
            raise UsageError('--real-labels takes the images in order: the DataLoader may have another each time.')
        self.limit = evaluation_sample_limit(loader)
        self.predictions: list[Tensor] = []
        self.targets: list[Tensor] = []
        valid, real = options.valid_labels, options.real_labels
        try:
            self.real_labels = _real_labels(dataset, real, loader) if real else None
        except AssertionError as error:  # timm's, of the number of labels
            raise DataError(f'--real-labels {real}: it has not one entry for each of the images.') from error
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f'--real-labels {real} cannot be read: {first_lines(error)}') from error
        self.classes = _valid_labels(valid, num_classes) if valid else None
        left = num_classes if self.classes is None else len(self.classes)
        if real and left < _TOP:
            raise UsageError(f"--real-labels: of ImageNet's classes, the model has {left}.")

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, target) as they are to be counted."""
        every = output
        if self.classes is not None:
            if int(target.max()) >= len(self.classes):
                raise DataError(
                    f'--valid-labels: images are of class {int(target.max())}, and the file lists '
                    f'{len(self.classes)} classes: class 0 of the data is that of its first line.'
                )
            output = output[:, self.classes]
        if self.real_labels is not None:
            if self.classes is not None:  # the others cannot be the answer
                every = torch.full_like(every, -torch.inf)
                every[:, self.classes] = output
            try:
                self.real_labels.add_result(every)
            except (KeyError, IndexError, TypeError) as error:
                raise DataError(
                    f"--real-labels: images must have ImageNet's validation names, and a list of classes each "
                    f'({error!r}).'
                ) from error
        if self.average:
            self.predictions.append(output.argmax(1).cpu())
            self.targets.append(target.cpu())
        return output, target

    def accuracy(self) -> dict[str, float]:
        """Top-1 and top-5 on reassessed labels, in place of those on the data set's; empty without them."""
        if self.real_labels is None:
            return {}
        return {f'top{k}': self.real_labels.get_accuracy(k=k) for k in (1, _TOP)}

    def precision_and_recall(self) -> dict[str, float]:
        """scikit-learn's precision, recall and F1 in percent, over all processes; empty without --metrics-avg."""
        if not self.average:
            return {}
        from sklearn.metrics import precision_recall_fscore_support

        of_no_image = torch.zeros(0, dtype=torch.long)  # where a process has none
        predictions = torch.cat([*self.predictions, of_no_image])[: self.limit].tolist()
        targets = torch.cat([*self.targets, of_no_image])[: self.limit].tolist()
        figures = precision_recall_fscore_support(
            gather_object(targets), gather_object(predictions), average=self.average, zero_division=0
        )
        names = ('precision', 'recall', 'f1_score')
        return {f'{self.average}_{name}': round(100 * float(v), 4) for name, v in zip(names, figures, strict=False)}
