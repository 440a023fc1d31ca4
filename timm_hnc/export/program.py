"""Tracing a graph with torch.export, for batches of any size, and images of any size where the model takes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor
from torch.export import Dim, ExportedProgram

from timm_hnc.alarm import alarm
from timm_hnc.cam.model import CamModel, cell_size
from timm_hnc.errors import DataError, first_lines
from timm_hnc.export.graph import MapGraph

Size = tuple[int, int]
_PADDED_BY_SIZE = (Conv2dSame, AvgPool2dSame, MaxPool2dSame)
_SECONDS = 60  # for tracing a graph of any size; most take three, some would take hours
_LARGEST = 16384  # side of an image, in pixels
_LARGEST_BATCH = 2**20  # without a bound torch 2.7 finds fault with one


@dataclass(frozen=True)
class Traced:
    """A graph that was traced.

    Args:
        program: of `torch.export`.
        sizes: (height, width) of images to try it on; the first is the model's own.
        fixed: why it takes images of this size alone; '' where it takes others.
    """

    program: ExportedProgram
    sizes: tuple[Size, ...]
    fixed: str = ''


def trace(graph: MapGraph, channels: int, size: Size) -> Traced:
    """Trace a graph."""
    if graph.preprocessing is not None:
        wide, high = (size[0] + 37, 2 * size[1]), (2 * size[0] + 1, size[1])  # as photographs come
        images = torch.zeros(2, *wide, channels, dtype=torch.uint8)
        sides = {1: Dim('height', min=2, max=_LARGEST), 2: Dim('width', min=2, max=_LARGEST)}
        return Traced(_export_or_refuse(graph, images, sides), (size, wide, high))
    try:
        down, right = _cell(graph.model, channels, size)
        wide, high = (size[0] + down, size[1] + 2 * right), (size[0] + 2 * down, size[1])
        graph(torch.zeros(2, channels, *wide))  # many models say why they take one size alone
        if any(isinstance(module, _PADDED_BY_SIZE) for module in graph.modules()):
            raise ValueError('its padding depends on the size')  # torch.export would not come to an end
        with alarm(_SECONDS, TimeoutError(f'torch.export of other sizes took more than {_SECONDS} s')):
            program = _export(graph, torch.zeros(2, channels, *wide), {2: Dim.AUTO, 3: Dim.AUTO})
        _refuse_limits(program)
        for other in (size, high):
            program.module()(torch.zeros(1, channels, *other))
        return Traced(program, (size, wide, high))
    except Exception as error:  # of the model, of torch.export, or of what it made
        reason = first_lines(error, 100)
    return trace_one_size(graph, channels, size, reason)


def _refuse_limits(program: ExportedProgram) -> None:
    """Refuse a graph that is one of images up to a size: torch.export says so, ONNX would answer beyond it as well."""
    largest = [bounds.upper for bounds in program.range_constraints.values() if bounds.upper != _LARGEST_BATCH]
    limit = min((int(upper) for upper in largest if upper.is_Integer), default=_LARGEST)
    if limit < _LARGEST:
        raise ValueError(f'it does something else with images of more than {limit} pixels')


def _cell(model: CamModel, channels: int, size: Size) -> Size:
    """(height, width) of one cell of the maps in pixels: images that are less larger may have the same grid."""
    cell = cell_size(model.model)
    if cell > 1 or not model.head.trainable:
        return cell, cell
    with torch.no_grad():
        grid = model.class_maps(torch.zeros(2, channels, *size)).maps([0]).shape[-2:]
    rows, columns = (math.ceil(side / cells) for side, cells in zip(size, grid, strict=True))
    return rows, columns


def trace_one_size(graph: MapGraph, channels: int, size: Size, why: str) -> Traced:
    """Trace a graph for images of one size, and say why."""
    return Traced(_export_or_refuse(graph, torch.zeros(2, channels, *size), {}), (size,), why)


def _export_or_refuse(graph: MapGraph, images: Tensor, sides: Mapping[int, object]) -> ExportedProgram:
    try:
        return _export(graph, images, sides)
    except Exception as error:
        raise DataError(f'torch.export cannot follow the model: {first_lines(error)}') from error


def _export(graph: MapGraph, images: Tensor, sides: Mapping[int, object]) -> ExportedProgram:
    with torch.no_grad():
        shapes = {'images': {0: Dim('batch', max=_LARGEST_BATCH), **sides}}
        return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
