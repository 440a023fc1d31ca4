"""The images of a data set that a model does best and worst on, with their class activation maps."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from timm_hnc.attacks.attacks import sample_losses
from timm_hnc.cam import ClassMaps
from timm_hnc.errors import DataError
from timm_hnc.files.tables import write_csv, write_json
from timm_hnc.plots.cams import panel_rows
from timm_hnc.plots.map_image import as_colour, as_picture
from timm_hnc.plots.panel import Cell, PanelRow

ENDS = ('best', 'worst')
_DIGITS = 4  # of the maps in a file


@dataclass(frozen=True, eq=False)
class Example:
    """An image that was evaluated.

    Args:
        sample: its place in the data set, None where the data has no order.
        loss: cross-entropy, or its mean over classes on sigmoids for several labels.
        row: image and maps.
    """

    sample: int | None
    loss: float
    row: PanelRow


class ExamplePass:
    """Keeps the images with the lowest and the highest loss of a validation pass.

    Args:
        restore: normalised images, as the model takes them, to (C, H, W) each in [0, 1].
        class_names: a name a class.
        multi_label: several labels an image.
        order: indices of the samples in the order in which they come, None where that is unknown.
        count: images at each end.
    """

    def __init__(
        self,
        restore: Callable[[Any], Iterable[Tensor]],
        class_names: Sequence[str],
        multi_label: bool,
        order: Iterator[int] | None = None,
        count: int = 4,
    ) -> None:
        self.restore, self.class_names, self.multi_label = restore, class_names, multi_label
        self.order, self.count = order, count
        self.kept: dict[str, list[Example]] = {end: [] for end in ENDS}

    @torch.no_grad()
    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor, padding: int) -> None:
        """Look through a batch."""
        samples = [None if self.order is None else next(self.order, None) for _ in range(len(target))]
        losses = sample_losses(class_maps.logits, target) / (target.shape[1] if target.ndim == 2 else 1)
        values = losses[: len(target) - padding].tolist()
        found = {end: self._records(end, values) for end in ENDS}
        if not any(found.values()):
            return
        rows = panel_rows(class_maps, self.restore(inputs), target, self.class_names, self.multi_label)
        for end, places in found.items():
            fresh = [Example(samples[place], values[place], _alone(rows[place])) for place in places]
            self.kept[end] = self._ranked(end, self.kept[end] + fresh)

    def _records(self, end: str, losses: list[float]) -> list[int]:
        """Places in a batch of the images that belong to those kept."""
        sign = 1 if end == 'best' else -1
        ranked = sorted(range(len(losses)), key=lambda place: sign * losses[place])[: self.count]
        if len(self.kept[end]) == self.count:
            ranked = [place for place in ranked if sign * losses[place] < sign * self.kept[end][-1].loss]
        return ranked

    def _ranked(self, end: str, examples: list[Example]) -> list[Example]:
        return sorted(examples, key=lambda each: each.loss, reverse=end == 'worst')[: self.count]

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """No figure of its own; from here on the images are those of all processes."""
        if accelerator.num_processes > 1:
            for end in ENDS:
                self.kept[end] = self._ranked(end, gather_object(self.kept[end]))
        return {}


def _alone(row: PanelRow) -> PanelRow:
    """The row without the rest of its batch behind it in memory."""
    cells = [replace(cell, map=cell.map.clone()) for cell in row.negatives]
    positive = replace(row.positive, map=row.positive.map.clone()) if row.positive else None
    return replace(row, image=row.image.clone(), positive=positive, negatives=cells)


def write_examples(folder: Path, kept: dict[str, list[Example]]) -> None:
    """Write examples.json (with the maps), examples.csv (without) and an image file each."""
    entries, rows = [], []
    for end in ENDS:
        for rank, example in enumerate(kept[end], start=1):
            image = f'{end}-{rank}.png'
            as_picture(as_colour(example.row.image)).save(folder / image)
            about = {'end': end, 'rank': rank, 'sample': example.sample, 'loss': example.loss, 'image': image}
            row = example.row
            named = [
                {'class': cell.name, 'present': cell is row.positive, 'probability': cell.probability}
                for cell in row.cells
            ]
            maps = [{'map': [[round(x, _DIGITS) for x in line] for line in cell.map.tolist()]} for cell in row.cells]
            entries.append(about | {'classes': [a | b for a, b in zip(named, maps, strict=True)]})
            rows += [about | each for each in named]
    write_json(folder / 'examples.json', entries)
    write_csv(folder / 'examples.csv', rows)


def read_examples(folder: Path) -> dict[str, list[Example]]:
    """What `write_examples` wrote; no examples where it wrote nothing."""
    kept: dict[str, list[Example]] = {end: [] for end in ENDS}
    path = folder / 'examples.json'
    if not path.is_file():
        return kept
    try:
        for entry in json.loads(path.read_text(encoding='utf-8')):
            with Image.open(folder / Path(entry['image']).name) as file:
                pixels = torch.from_numpy(np.array(file.convert('RGB')))
            row = PanelRow(pixels.permute(2, 0, 1) / 255, *_cells(entry['classes']))
            kept[entry['end']].append(Example(entry['sample'], entry['loss'], row))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' cannot be read: {type(error).__name__}: {error}") from error
    return kept


def _cells(classes: list[dict[str, Any]]) -> tuple[Cell | None, list[Cell]]:
    cells = [(each['present'], Cell(torch.tensor(each['map']), each['class'], each['probability'])) for each in classes]
    return next((cell for own, cell in cells if own), None), [cell for own, cell in cells if not own]
