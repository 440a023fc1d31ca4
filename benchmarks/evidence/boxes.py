"""Where maps lie beside the boxes of their classes, and what a network loses when objects, or all else, are covered."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.data.input_geometry import InputFrame, InputGeometry
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.metrics.localization import Localization, energy_inside

_BATCH = 50


class Objects:
    """The boxes of present classes in the images of a data set.

    Args:
        dataset: with boxes, and the transform that makes inputs of its images.
    """

    def __init__(self, dataset: Any) -> None:
        self.source, self.geometry = BoxSource(dataset), InputGeometry(dataset.transform)

    def of(self, index: int, target: Tensor) -> Iterator[tuple[int, Tensor, InputFrame]]:
        """Classes that an image shows and has boxes of in its input.

        Args:
            index: of the image.
            target: (n,) its classes.

        Yields:
            A class, its boxes (m, 4) in pixels of the stored image, and how the input shows that image.
        """
        found, size = self.source[index], self.source.image_size(index)
        frame = self.geometry.frame(size) if size else None
        for label in target.nonzero().flatten().tolist() if frame else ():
            boxes = found.boxes[found.labels == label]
            seen = frame.boxes(boxes)
            if (seen[:, 2:] > seen[:, :2]).all(1).any():
                yield label, boxes, frame


class EnergyInBoxes:
    """Share of the positive values of maps that lies inside the boxes of their class."""

    def __init__(self, objects: Objects) -> None:
        self.objects, self.next, self.shares = objects, 0, list[float]()

    def update(self, maps: Tensor, targets: Tensor) -> None:
        """Count the maps (B, n, h, w) of the classes (B, n) that are in the next images."""
        for index, (image_maps, target) in enumerate(zip(maps, targets, strict=True), self.next):
            for label, boxes, frame in self.objects.of(index, target):
                self.shares.append(energy_inside(image_maps[label], frame.boxes(boxes), frame.size))
        self.next += len(maps)

    def compute(self) -> dict[str, float]:
        """The mean, in %; NaN without boxes."""
        return {'energy': 100 * sum(self.shares) / len(self.shares) if self.shares else float('nan')}


class MapsInBoxes:
    """All figures of `Localization`, as `validate.py --cam-boxes` has them."""

    def __init__(self, objects: Objects, num_classes: int) -> None:
        self.objects, self.next, self.localization = objects, 0, Localization(num_classes)

    def update(self, maps: Tensor, targets: Tensor) -> None:
        """Count the maps (B, n, h, w) of the classes (B, n) that are in the next images."""
        for index, (image_maps, target) in enumerate(zip(maps, targets, strict=True), self.next):
            for label, boxes, frame in self.objects.of(index, target):
                self.localization.update(image_maps[label], label, boxes, frame)
        self.next += len(maps)

    def compute(self) -> dict[str, float]:
        """In %."""
        found = self.localization.compute()
        return {name: found[name] for name in ('energy', 'pointing', 'max_box_acc_v2')}


@torch.no_grad()
def covered(model: nn.Module, objects: Objects, places: list[int], images: Tensor, targets: Tensor) -> dict[str, float]:
    """How far the logit of a present class falls when its boxes are covered, and when all else is: no maps take part.

    Args:
        model: in evaluation mode.
        objects: of the data set.
        places: of the images in it.
        images: (N, C, H, W) normalised; what is covered becomes 0, the mean of the training images.
        targets: (N, n) their classes.

    Returns:
        `object_covered` and `rest_covered`, in logits, means over images and classes.
    """
    labels, inside, shown = [], list[Tensor](), list[int]()
    for position, (index, target) in enumerate(zip(places, targets.cpu(), strict=True)):
        for label, boxes, frame in objects.of(index, target):
            mask = torch.zeros(images.shape[-2:], dtype=torch.bool)
            for x1, y1, x2, y2 in frame.boxes(boxes).round().int().tolist():
                mask[y1:y2, x1:x2] = True
            labels.append(label)
            inside.append(mask)
            shown.append(position)
    lost = dict.fromkeys(('object_covered', 'rest_covered'), 0.0)
    for part in torch.arange(len(labels)).split(_BATCH):
        pictures = images[[shown[each] for each in part]]
        masks = torch.stack([inside[each] for each in part])[:, None].to(images.device)
        classes = torch.tensor([labels[each] for each in part], device=images.device)[:, None]
        whole = model(pictures).gather(1, classes)
        for name, mask in (('object_covered', masks), ('rest_covered', ~masks)):
            lost[name] += (whole - model(pictures.masked_fill(mask, 0)).gather(1, classes)).sum().item()
    return {name: value / len(labels) for name, value in lost.items()}
