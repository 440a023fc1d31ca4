"""Boxes beside the class maps of a validation pass."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from timm_hnc.cam import ClassMaps
from timm_hnc.data.input_geometry import InputGeometry
from timm_hnc.data.loading.loaders import sample_order
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.errors import UsageError
from timm_hnc.metrics.localization import Localization
from timm_hnc.metrics.map_quality import present_classes
from timm_hnc.runtime.process import sum_of_processes


class BoxPass:
    """Compares the maps of the classes that are in an image with the boxes of their objects.

    Raises:
        UsageError: the loader does not say which samples it reads, or boxes cannot be followed to its images.
    """

    def __init__(self, source: BoxSource, loader: Any, dataset: Any, num_classes: int) -> None:
        self.source = source
        try:
            self.geometry = InputGeometry(dataset.transform)
        except ValueError as error:
            raise UsageError(f'--cam-boxes: boxes cannot be followed through the transform: {error}.') from error
        order = sample_order(loader)
        if order is None:
            raise UsageError('--cam-boxes: the loader shuffles or has a sampler of its own: give its data set instead.')
        self.order = order
        self.localization = Localization(num_classes)

    @torch.no_grad()
    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor, padding: int) -> None:
        """Count a batch: (B,) class indices or (B, n) label sets."""
        classes, there = (part.cpu() for part in present_classes(target))
        maps = class_maps.maps(classes.to(target.device)).cpu()
        for row, index in zip(range(len(target) - padding), self.order, strict=False):
            found = self.source[index]
            if not len(found.boxes):
                continue
            image_size = self.source.image_size(index)
            if image_size is None:
                continue  # timm has put the next image in its place
            found = found.inside(image_size, index)
            frame = self.geometry.frame(image_size)
            if frame.size != tuple(inputs.shape[-2:]):
                raise UsageError(
                    '--cam-boxes: what resizes and crops the images must stand before they become tensors, in front of '
                    'ToTensor or ToImage.'
                )
            for column in there[row].nonzero().flatten().tolist():
                label = int(classes[row, column])
                self.localization.update(maps[row, column], label, found.boxes[found.labels == label], frame)

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Figures over all processes.

        Raises:
            UsageError: no image has a box.
        """
        counted = self.localization
        for name in ('found', 'hits', 'energy'):
            setattr(counted, name, sum_of_processes(getattr(counted, name), accelerator))
        figures = counted.compute()
        if not figures['maps_with_boxes']:
            raise UsageError('--cam-boxes: no image has a box of a class that is in it.')
        return figures
