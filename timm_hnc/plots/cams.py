"""Pictures of a model's class activation maps: the positive and the highest-scoring negatives (Fig. 1 and 5)."""

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.naflex_maps import NaFlexBatch
from timm_hnc.plots.panel import Cell, PanelRow, draw_panel


def panel_rows(
    class_maps: ClassMaps,
    images: Iterable[Tensor],
    target: Tensor,
    class_names: Sequence[str],
    multi_label: bool = False,
    topk: int = 4,
) -> list[PanelRow]:
    """A row an image: the map of its highest-scoring positive class, then those of its top-k negatives.

    The arguments are those of `draw_cams`, with the images' class maps in place of model and inputs.
    """
    logits = class_maps.logits.float()
    probability = logits.sigmoid() if multi_label else logits.softmax(1)
    positive, is_present = class_maps.topk_positives(target, 1)
    negatives, valid = class_maps.topk_negatives(target, max(topk, 1))
    negatives, valid = negatives[:, :topk], valid[:, :topk]
    classes = torch.cat([positive, negatives], 1)
    maps = [own.float().cpu() for own in class_maps.of_each(classes)]
    rows = []
    for row, image in enumerate(image.cpu() for image in images):
        cells = [
            Cell(maps[row][column], class_names[index], probability[row, index].item())
            for column, index in enumerate(classes[row].tolist())
        ]
        chosen = [cell for cell, use in zip(cells[1:], valid[row].tolist(), strict=True) if use]
        rows.append(PanelRow(image, cells[0] if is_present[row, 0] else None, chosen))
    return rows


def check_evaluated(model: CamModel) -> None:
    """Refuse a model in training mode, whose maps of an image depend on the others, and on chance.

    Raises:
        ValueError: it is.
    """
    if model.model.training:
        raise ValueError('the model is in training mode: call model.eval() first.')


def draw_cams(
    model: CamModel,
    inputs: Tensor | NaFlexBatch,
    images: Iterable[Tensor],
    target: Tensor,
    class_names: Sequence[str] | None,
    multi_label: bool = False,
    title: str = '',
) -> Image.Image:
    """Draw the class activation maps of a batch: an RGB picture, a row an image.

    Args:
        model: in evaluation mode.
        inputs: (B, C, H, W) normalised images on the model's device, or a NaFlex batch.
        images: the same images in [0, 1], to be seen, (C, H, W) each.
        target: (B,) class indices, or (B, n) values, one a class.
        class_names: a name a class; their numbers if None.
        multi_label: several labels an image.
        title: over the picture.

    Raises:
        TypeError: the model is no CamModel.
        ValueError: there are more or fewer names than classes, or images than inputs, or the model is in training mode.
    """
    if not isinstance(model, CamModel):
        raise TypeError(f'the model is a {type(model).__name__}: wrap it, draw_cams(CamModel(model), ...).')
    check_evaluated(model)
    if class_names is None:
        class_names = [str(index) for index in range(model.num_classes)]
    if len(class_names) != model.num_classes:
        raise ValueError(f'{len(class_names)} class names for {model.num_classes} classes.')
    images = list(images)
    with torch.no_grad():
        class_maps = model.class_maps(inputs)
        if len(images) != len(class_maps.logits):
            raise ValueError(f'{len(images)} images for {len(class_maps.logits)} inputs.')
        rows = panel_rows(class_maps, images, target, class_names, multi_label)
    return draw_panel(rows, title)
