"""The class maps of a validation pass, measured beside the very forward passes that give the logits."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from timm.task import evaluation_sample_limit
from torch import Tensor, nn

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.box_pass import BoxPass
from timm_hnc.files.tables import write_csv
from timm_hnc.metrics.deletion import CURVES, curve_areas
from timm_hnc.metrics.map_quality import MapQuality

OnBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MapPass(Protocol):
    """Something that is measured on the maps of every batch."""

    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor) -> None:
        """Count a batch of normalised images."""
        ...

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures over all processes."""
        ...


class WatchedMaps(nn.Module):
    """A model whose maps are measured while it is evaluated.

    Args:
        model: with class maps.
        passes: what is measured.
        strict: an image without finite logits is an error; else it leaves its batch out, and `failure` says so.
    """

    def __init__(self, model: CamModel, passes: Sequence[MapPass], strict: bool = True) -> None:
        super().__init__()
        self.model = model
        self.passes = passes
        self.strict = strict
        self.failure = ''
        self.batch: tuple[ClassMaps, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) logits; maps and images are kept until the batch is counted."""
        try:
            class_maps = self.model.class_maps(x)
        except ValueError as error:
            self.failure = f'no class maps: {error}'
            if self.strict:
                raise DataError(self.failure) from error
            return self.model(x)
        self.batch = class_maps, x
        return class_maps.logits

    def before(self, on_batch: OnBatch) -> OnBatch:
        """Measure the maps of every batch, then do what else is done to it."""

        def counted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            if self.batch is not None:
                (class_maps, inputs), self.batch = self.batch, None
                for each in self.passes:
                    each.update(class_maps, target, inputs)
            return on_batch(output, target)

        return counted

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures of all that was measured, over all processes."""
        found: dict[str, float] = {}
        for each in self.passes:
            found |= {f'cam_{name}': round(value, 6) for name, value in each.figures(accelerator).items()}
        return found


def watch_maps(model: Any, args: Namespace, loader: Any, dataset: Any, class_names: list[str]) -> WatchedMaps | None:
    """The model with what the options measure of its maps; None where they measure nothing.

    Args:
        model: timm model.
        args: options of validate.py.
        loader: tells which samples are the sampler's padding, and their order.
        dataset: that the loader reads, with its boxes for --cam-boxes.
        class_names: a name a class.

    Raises:
        UsageError: the model has no exact class maps, or the data set no boxes.
    """
    if not (args.cam_metrics or args.cam_boxes or args.cam_curves):
        return None
    try:
        cam_model = CamModel(model)
    except UnsupportedHead as error:
        raise UsageError(f'no class maps to measure: {error}') from error
    limit = evaluation_sample_limit(loader)
    passes: list[MapPass] = []
    if args.cam_metrics:
        passes.append(
            QualityPass(MapQuality(len(class_names), args.cam_topk, limit), class_names, args.cam_classes_file)
        )
    if args.cam_boxes:
        passes.append(BoxPass(args, loader, dataset, len(class_names), limit))
    if args.cam_curves:
        passes.append(CurvePass(model, args.cam_curves, args.task == 'multilabel', limit))
    return WatchedMaps(cam_model, passes)


class QualityPass:
    """How flat the maps are.

    Args:
        quality: that counts.
        class_names: a name a class.
        classes_file: CSV that gets a row a class; none if empty.
    """

    def __init__(self, quality: MapQuality, class_names: list[str], classes_file: str) -> None:
        self.quality, self.class_names, self.classes_file = quality, class_names, classes_file

    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor) -> None:
        """Count a batch."""
        self.quality.update(class_maps, target)

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures over all processes, and how many negatives they are of; the rows of the classes go to the file.

        Raises:
            UsageError: the file cannot be written.
        """
        if accelerator.num_processes > 1:
            self.quality.gather(accelerator.device)
        if self.classes_file and accelerator.is_main_process:
            rows = self.quality.per_class(self.class_names)
            try:
                write_csv(self.classes_file, rows)
            except OSError as error:
                raise UsageError(f"--cam-classes-file '{self.classes_file}' cannot be written: {error}") from error
        return self.quality.compute() | {'topk': self.quality.topk}


class CurvePass:
    """Deletion and insertion curves, of the class that the model sees in every image (the highest logit), as in RISE.

    Args:
        model: timm model, in evaluation mode when it is used.
        steps: of the curves.
        multi_label: probabilities are sigmoids.
        max_samples: images of this process that count.
    """

    def __init__(self, model: nn.Module, steps: int, multi_label: bool, max_samples: int | None) -> None:
        self.model, self.steps, self.multi_label = model, steps, multi_label
        self.left = max_samples
        self.sums = torch.zeros(len(CURVES) + 1, dtype=torch.float64)

    @torch.no_grad()
    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor) -> None:
        """Count a batch."""
        chosen = class_maps.logits.argmax(1)
        count = len(target) if self.left is None else min(len(target), self.left)
        self.left = None if self.left is None else self.left - count
        maps = class_maps.maps(chosen[:, None]).squeeze(1)
        areas = curve_areas(self.model, inputs, maps, chosen, self.steps, self.multi_label)
        areas = areas[:, :count].double().cpu()
        self.sums += torch.cat([areas.sum(1), torch.tensor([count], dtype=torch.float64)])

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean areas over all processes."""
        *areas, count = accelerator.reduce(self.sums.to(accelerator.device), 'sum').tolist()
        return {f'{name}_area': area / max(1.0, count) for name, area in zip(CURVES, areas, strict=True)}
