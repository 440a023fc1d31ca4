"""The class maps of a validation pass, taken from the very forward passes that give the logits."""

import csv
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from timm.task import evaluation_sample_limit
from torch import Tensor, nn

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.probe import UnsupportedHead
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.box_pass import BoxPass
from timm_hnc.evaluation.map_quality import MapQuality

OnBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class WatchedMaps(nn.Module):
    """A model whose maps are measured while it is evaluated.

    Args:
        model: timm model.
        args: options of validate.py.
        loader: tells which samples are the sampler's padding, and their order.
        dataset: that the loader reads, with its boxes for --cam-boxes.

    Raises:
        UsageError: the model has no exact class maps, or the data set no boxes.
    """

    def __init__(self, model: Any, args: Namespace, loader: Any, dataset: Any) -> None:
        super().__init__()
        try:
            self.model = CamModel(model)
        except UnsupportedHead as error:
            raise UsageError(f'--cam-{"metrics" if args.cam_metrics else "boxes"}: {error}') from error
        limit = evaluation_sample_limit(loader)
        self.boxes = BoxPass(args, loader, dataset, limit) if args.cam_boxes else None
        self.measured = args.cam_metrics
        self.quality = MapQuality(args.num_classes, args.cam_topk, limit)
        self.classes_file = args.cam_classes_file
        self.class_maps: ClassMaps | None = None
        self.size = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) logits; the maps are kept until the batch is counted."""
        try:
            self.class_maps = self.model.class_maps(x)
        except ValueError as error:
            raise DataError(f'--cam-metrics: {error}') from error
        self.size = (x.shape[-2], x.shape[-1])
        return self.class_maps.logits

    def before(self, on_batch: OnBatch) -> OnBatch:
        """Count the maps of every batch, then do what else is done to it."""

        def counted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            if self.class_maps is not None and self.measured:
                self.quality.update(self.class_maps, target)
            if self.class_maps is not None and self.boxes is not None:
                self.boxes.update(self.class_maps, target, self.size)
            self.class_maps = None
            return on_batch(output, target)

        return counted

    def figures(self, accelerator: Accelerator, class_names: list[str]) -> dict[str, float]:
        """Figures over all processes; the rows of the classes go to --cam-classes-file.

        Raises:
            UsageError: the file cannot be written.
        """
        found = {} if self.boxes is None else self.boxes.figures(accelerator)
        if not self.measured:
            return found
        if accelerator.num_processes > 1:
            self.quality.gather(accelerator.device)
        if self.classes_file and accelerator.is_main_process:
            rows = self.quality.per_class(class_names)
            try:
                with open(self.classes_file, 'w', newline='') as file:
                    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
            except OSError as error:
                raise UsageError(f"--cam-classes-file '{self.classes_file}' cannot be written: {error}") from error
        return {f'cam_{name}': round(value, 6) for name, value in self.quality.compute().items()} | found
