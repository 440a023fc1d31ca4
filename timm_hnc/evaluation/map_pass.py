"""The class maps of a validation pass, measured beside the very forward passes that give the logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from timm.task import evaluation_sample_limit
from torch import Tensor, nn

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.cam.naflex_maps import NaFlexBatch, NaFlexMaps
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.box_pass import BoxPass
from timm_hnc.evaluation.evaluate import Autocast
from timm_hnc.files.tables import write_table
from timm_hnc.metrics.deletion import CURVES, curve_areas
from timm_hnc.metrics.map_quality import MapQuality
from timm_hnc.options import check_output_file, check_range, refuse_alone
from timm_hnc.runtime.process import sum_of_processes


@dataclass(frozen=True)
class MapOptions:
    """What is measured on class activation maps.

    Args:
        cam_metrics: how flat the maps of absent classes are, and those of present ones.
        cam_topk: absent classes of each image, highest logits first.
        cam_boxes: maps of present classes against the boxes of their objects.
        cam_curves: deletion and insertion curves of so many steps.
        boxes_dir: folder of ImageNet's XML files, for a folder of images.
        boxes_key: column of objects, with bbox and category.
        boxes_format: corners, or a corner, width and height.
        cam_classes_file: these figures with a row a class, as CSV, or JSON where its name ends in .json.
    """

    cam_metrics: bool = False
    cam_topk: int = 10
    cam_boxes: bool = False
    cam_curves: int = 0
    boxes_dir: str | None = None
    boxes_key: str = 'objects'
    boxes_format: Literal['xyxy', 'xywh'] = 'xyxy'
    cam_classes_file: str = ''

    def __post_init__(self) -> None:
        check_range(self, 'cam_topk', low=1)
        check_range(self, 'cam_curves', low=0)
        if not self.cam_metrics:
            refuse_alone(self, '--cam-metrics', ('cam_topk', 'cam_classes_file'))
        check_output_file('cam_classes_file', self.cam_classes_file)
        if not self.cam_boxes:
            refuse_alone(self, '--cam-boxes', ('boxes_dir', 'boxes_key', 'boxes_format'))

    @property
    def first(self) -> str | None:
        """Name of the first option that measures something; None where nothing is measured."""
        return next((name for name in ('cam_metrics', 'cam_boxes', 'cam_curves') if getattr(self, name)), None)


OnBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MapPass(Protocol):
    """Something that is measured on the maps of every batch."""

    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Any, padding: int) -> None:
        """Count a batch of normalised images, but for the last `padding` of them.

        The images of a NaFlex batch come one by one, each a NaFlex batch of one image, with the class maps of its grid.
        """
        ...

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures over all processes."""
        ...


class WatchedMaps(nn.Module):
    """A model whose maps are measured while it is evaluated.

    Args:
        model: with class maps.
        passes: what is measured.
        limit: images of this process that count, all if None; what comes after is the sampler's padding.
        strict: an image without finite logits is an error; else it leaves its batch out, and `failure` says so.
    """

    def __init__(self, model: CamModel, passes: Sequence[MapPass], limit: int | None, strict: bool = True) -> None:
        super().__init__()
        self.model = model
        self.passes = passes
        self.left = limit
        self.strict = strict
        self.failure = ''
        self.batch: tuple[ClassMaps, Any] | None = None

    def forward(self, x: Tensor | NaFlexBatch) -> Tensor:
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
            count = len(target) if self.left is None else min(len(target), self.left)
            self.left = None if self.left is None else self.left - count
            if self.batch is not None:
                (class_maps, inputs), self.batch = self.batch, None
                for part in _parts(class_maps, target, inputs, len(target) - count):
                    for each in self.passes:
                        each.update(*part)
            return on_batch(output, target)

        return counted

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures of all that was measured, over all processes."""
        found: dict[str, float] = {}
        for each in self.passes:
            found |= {f'cam_{name}': round(value, 6) for name, value in each.figures(accelerator).items()}
        return found


def _parts(
    class_maps: ClassMaps, target: Tensor, inputs: Any, padding: int
) -> Iterator[tuple[ClassMaps, Tensor, Any, int]]:
    """What `MapPass.update` takes of a batch: all of it, or image by image where each has a grid of its own."""
    if not isinstance(class_maps, NaFlexMaps):
        yield class_maps, target, inputs, padding
        return
    for index in range(len(target)):
        here = slice(index, index + 1)
        image = {name: tensor[here] for name, tensor in inputs.items()}
        yield class_maps.of_image(index), target[here], image, int(index >= len(target) - padding)


def with_maps(model: Any, wrap: Callable[[Any], CamModel], purpose: str) -> CamModel:
    """The CamModel that a model is, or that `wrap` makes of it.

    Raises:
        UsageError: it has no exact class maps.
    """
    try:
        return model if isinstance(model, CamModel) else wrap(model)
    except UnsupportedHead as error:
        raise UsageError(f'{purpose}: {error}') from error


def watch_maps(
    model: Any,
    options: MapOptions,
    loader: Any,
    class_names: list[str],
    multi_label: bool,
    autocast: Autocast,
    wrap: Callable[[Any], CamModel] = CamModel,
) -> WatchedMaps | None:
    """The model, whose CamModel `wrap` makes, with what the options measure of its maps; None where that is nothing.

    Raises:
        UsageError: the model has no exact class maps, or the data set no boxes.
    """
    if options.first is None:
        return None
    cam_model = with_maps(model, wrap, 'no class maps to measure')
    passes: list[MapPass] = []
    if options.cam_metrics:
        passes.append(QualityPass(class_names, options.cam_topk, options.cam_classes_file))
    if options.cam_boxes:
        source = BoxSource(loader.dataset, options.boxes_key, options.boxes_format, options.boxes_dir)
        passes.append(BoxPass(source, loader, loader.dataset, len(class_names)))
    if options.cam_curves:
        passes.append(CurvePass(model, options.cam_curves, multi_label, autocast))
    return WatchedMaps(cam_model, passes, evaluation_sample_limit(loader))


class QualityPass:
    """How flat the maps are."""

    def __init__(self, class_names: list[str], topk: int, classes_file: str = '') -> None:
        self.quality = MapQuality(len(class_names), topk)
        self.class_names, self.classes_file = class_names, classes_file

    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor, padding: int) -> None:
        """Count a batch."""
        self.quality.update(class_maps, target, padding)

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures over all processes, and how many negatives they are of; the rows of the classes go to the file."""
        self.quality.sums = sum_of_processes(self.quality.sums, accelerator)
        if self.classes_file and accelerator.is_main_process:
            rows = self.quality.per_class(self.class_names)
            try:
                write_table(self.classes_file, rows)
            except OSError as error:
                raise UsageError(f"--cam-classes-file '{self.classes_file}' cannot be written: {error}") from error
        return self.quality.compute() | {'topk': self.quality.topk}


class CurvePass:
    """Deletion and insertion curves of the class that the model sees in an image (the highest logit), as in RISE."""

    def __init__(self, model: nn.Module, steps: int, multi_label: bool, autocast: Autocast) -> None:
        self.model, self.steps, self.multi_label, self.autocast = model, steps, multi_label, autocast
        self.sums = torch.zeros(len(CURVES) + 1, dtype=torch.float64)

    @torch.no_grad()
    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor, padding: int) -> None:
        """Count a batch."""
        chosen, count = class_maps.logits.argmax(1), len(target) - padding
        maps = class_maps.maps(chosen[:, None]).squeeze(1)
        areas = curve_areas(self._logits, inputs, maps, chosen, self.steps, self.multi_label)
        areas = areas[:, :count].cpu().double()
        self.sums += torch.cat([areas.sum(1), torch.tensor([count], dtype=torch.float64)])

    def _logits(self, inputs: Tensor) -> Tensor:
        with self.autocast():
            return self.model(inputs)

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean areas over all processes."""
        *areas, count = sum_of_processes(self.sums, accelerator).tolist()
        found = {f'{name}_area': area / max(1.0, count) for name, area in zip(CURVES, areas, strict=True)}
        return {**found, 'curve_steps': self.steps}
