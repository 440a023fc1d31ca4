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
from timm_hnc.evaluation.map_quality import MapQuality

OnBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class WatchedMaps(nn.Module):
    """A model whose maps are measured while it is evaluated.

    Args:
        model: timm model.
        args: options of validate.py.
        loader: tells which samples are the sampler's padding.

    Raises:
        UsageError: the model has no exact class maps.
    """

    def __init__(self, model: Any, args: Namespace, loader: Any) -> None:
        super().__init__()
        try:
            self.model = CamModel(model)
        except UnsupportedHead as error:
            raise UsageError(f'--cam-metrics: {error}') from error
        self.quality = MapQuality(args.num_classes, args.cam_topk, evaluation_sample_limit(loader))
        self.classes_file = args.cam_classes_file
        self.class_maps: ClassMaps | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) logits; the maps are kept until the batch is counted."""
        try:
            self.class_maps = self.model.class_maps(x)
        except ValueError as error:
            raise DataError(f'--cam-metrics: {error}') from error
        return self.class_maps.logits

    def before(self, on_batch: OnBatch) -> OnBatch:
        """Count the maps of every batch, then do what else is done to it."""

        def counted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            if self.class_maps is not None:
                self.quality.update(self.class_maps, target)
            self.class_maps = None
            return on_batch(output, target)

        return counted

    def figures(self, accelerator: Accelerator, class_names: list[str]) -> dict[str, float]:
        """Figures over all processes; the rows of the classes go to --cam-classes-file.

        Raises:
            UsageError: the file cannot be written.
        """
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
        return {f'cam_{name}': round(value, 6) for name, value in self.quality.compute().items()}
