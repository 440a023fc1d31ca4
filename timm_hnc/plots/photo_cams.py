"""Class activation maps of photographs, of one model or of two above each other (Fig. 1 and 5 of the paper)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from torch import Tensor

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.model import names_of_weights
from timm_hnc.cam.naflex_maps import on_device
from timm_hnc.data.naflex import Patches
from timm_hnc.data.transforms import denormalize
from timm_hnc.errors import DataError, UsageError
from timm_hnc.plots.cams import check_evaluated, panel_rows
from timm_hnc.plots.map_image import shared_scale
from timm_hnc.plots.panel import PanelRow
from timm_hnc.plots.photos import load_photos


@dataclass(frozen=True)
class Subject:
    """A model whose maps are drawn.

    Args:
        model: in evaluation mode.
        caption: under its pictures.
        class_names: a name a class.
        multi_label: probabilities are sigmoids instead of a softmax.
        patches: how photographs become patches, of a model that sees them in their own shape.
        mode: of Pillow, that photographs are converted to; L or RGB by the model's channels if None.

    Raises:
        ValueError: the model is in training mode.
    """

    model: CamModel
    caption: str
    class_names: Sequence[str]
    multi_label: bool = False
    patches: Patches | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        check_evaluated(self.model)


def names_of(model: Any, class_names: Sequence[str] | None = None) -> list[str]:
    """A name for every class: those given, those that came with the weights, ImageNet's, or numbers.

    Raises:
        DataError: there are fewer names than classes, or more are given.
    """
    found = list(class_names or names_of_weights(model) or ())
    subset = None if found else infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        found = [info.index_to_description(index) for index in range(info.num_classes())]
    if not found:
        return [str(index) for index in range(model.num_classes)]
    if len(found) < model.num_classes or (class_names and len(found) > model.num_classes):
        raise DataError(f'{len(found)} class names for {model.num_classes} classes of the model.')
    return found


@torch.no_grad()
def photo_rows(
    photos: Iterable[Path], subjects: Sequence[Subject], topk: int = 4, contrast: bool = False
) -> list[tuple[Path, PanelRow]]:
    """The maps of photographs: of the class that the model sees, then of the next ones by rank.

    A photo that cannot be read is skipped with a warning.

    Args:
        photos: image files.
        subjects: one model, or several whose rows stand below each other with one colour scale a photo.
        topk: how many classes behind the first.
        contrast: in place of their maps, that of the first class minus each: why the model sees that and not this.

    Returns:
        A photo and its row for `draw_panel`, for every photo and model.
    """
    rows: list[tuple[Path, PanelRow]] = []
    for path, photo in load_photos(photos):
        own = [_row(photo, subject, topk) for subject in subjects]
        own = [_contrasted(row) for row in own] if contrast else own
        scale = shared_scale([cell.map for row in own for cell in row.cells])
        rows += [(path, replace(row, scale=scale)) for row in own]
    return rows


def map_values(photo: Path, row: PanelRow) -> list[dict[str, Any]]:
    """The figures behind a row.

    Returns:
        A cell each: class, probability, 'mean' of its map (a logit, or the difference of two), 'peak' (the highest
        value above the mean, as `MapQuality` has it), and the map.
    """
    return [
        {
            'photo': str(photo),
            'model': row.caption,
            'rank': rank,
            'class': cell.name,
            'probability': cell.probability,
            'mean': cell.map.mean().item(),
            'peak': (cell.map.max() - cell.map.mean()).item(),
            'map': cell.map.tolist(),
        }
        for rank, cell in enumerate(row.cells)
    ]


def _contrasted(row: PanelRow) -> PanelRow:
    """The mean of a difference of maps is the difference of the logits."""
    first = row.cells[0].map
    return replace(row, negatives=[replace(cell, map=first - cell.map) for cell in row.negatives])


def check_channels(model: CamModel) -> int:
    """The channels of the images that a model takes."""
    channels = int(model.data_config['input_size'][0])
    if channels not in (1, 3):
        raise UsageError(f'the model has {channels} input channels: photos have 1 or 3.')
    return channels


def see(photo: Image.Image, subject: Subject) -> tuple[ClassMaps, Tensor]:
    """The maps of a photograph, and (1, C, H, W) what the model sees of it, in [0, 1]."""
    model, patches = subject.model, subject.patches
    channels, config = check_channels(model), model.data_config
    parameter, photo = next(model.parameters()), photo.convert(subject.mode or ('L' if channels == 1 else 'RGB'))
    inputs: Any
    if patches is None:
        seen: Tensor = create_transform(**config)(photo)[None]
        inputs = seen.to(parameter)
    else:
        batch, _ = patches.batch([(patches.transform(**config)(photo), 0)])
        seen = patches.images(batch, channels)[0][None]
        inputs = on_device(batch, parameter.device, parameter.dtype)
    try:
        found: Any = model.class_maps(inputs)
    except ValueError as error:  # weights that are not finite
        raise DataError(f'{subject.caption or "the model"}: {error}') from error
    maps = found if patches is None else found.of_image(0)
    return maps, denormalize(seen, config['mean'], config['std']).clamp(0, 1)


def _row(photo: Image.Image, subject: Subject, topk: int) -> PanelRow:
    maps, image = see(photo, subject)
    [row] = panel_rows(maps, image, maps.logits.argmax(1), subject.class_names, subject.multi_label, topk)
    return replace(row, caption=subject.caption)
