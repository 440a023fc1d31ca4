"""Class activation maps of photographs, of one model or of two above each other (Fig. 1 and 5 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor

from timm_hnc.cam import CamModel
from timm_hnc.errors import DataError
from timm_hnc.plots.cams import panel_rows
from timm_hnc.plots.panel import PanelRow, draw_panel
from timm_hnc.plots.photos import load_photo


@dataclass(frozen=True)
class Subject:
    """A model whose maps are drawn.

    Args:
        model: in evaluation mode.
        caption: under its pictures.
        class_names: a name a class.
    """

    model: CamModel
    caption: str
    class_names: Sequence[str]


def names_of(model: Any, class_names: Sequence[str] | None = None) -> list[str]:
    """A name for every class: those given, those that came with the weights, ImageNet's, or numbers.

    Raises:
        DataError: there are fewer names than classes.
    """
    found = list(class_names or model.pretrained_cfg.get('label_names') or ())
    subset = None if found else infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        found = [info.index_to_description(index) for index in range(info.num_classes())]
    if not found:
        return [str(index) for index in range(model.num_classes)]
    if len(found) < model.num_classes:
        raise DataError(f'{len(found)} class names for {model.num_classes} classes of the model.')
    return found


@torch.no_grad()
def draw_photos(
    photos: Sequence[Path], subjects: Sequence[Subject], topk: int = 4, title: str = '', progress: Any = iter
) -> Image.Image:
    """Draw the maps of photographs: the class that the model sees, then the next ones by rank.

    Args:
        photos: image files.
        subjects: one model, or several whose rows stand above each other with one colour scale a photo.
        topk: how many classes behind the first.
        title: over the picture.
        progress: wraps the photos while they are worked on.

    Returns:
        An RGB picture, a row a photo and model.

    Raises:
        DataError: a photo cannot be read.
    """
    rows: list[PanelRow] = []
    for path in progress(photos):
        photo = load_photo(path)
        own = [_row(photo, subject, topk) for subject in subjects]
        cells = [cell for row in own for cell in ([row.positive] if row.positive else []) + list(row.negatives)]
        values = torch.cat([cell.map.flatten() for cell in cells])
        rows += [replace(row, scale=(values.min().item(), values.max().item())) for row in own]
    return draw_panel(rows, title)


def _row(photo: Image.Image, subject: Subject, topk: int) -> PanelRow:
    model = subject.model
    config = resolve_data_config({}, model=model.model)
    transform = create_transform(**config)
    device = next(model.parameters()).device
    input: Tensor = transform(photo)[None]
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ('mean', 'std'))
    maps = model.class_maps(input.to(device))
    seen = maps.logits.argmax(1)
    [row] = panel_rows(maps, (input * std + mean).clamp(0, 1), seen, subject.class_names, topk=topk)
    return replace(row, caption=subject.caption)
