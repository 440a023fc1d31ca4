"""What a user of an exported file must know: names and shapes of its inputs and outputs, preprocessing, classes."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from timm_hnc.cam.heads.probe import name_of
from timm_hnc.export.graph import MapGraph
from timm_hnc.export.program import Traced
from timm_hnc.version import __version__


def describe(
    graph: MapGraph, traced: Traced, config: dict[str, Any], class_names: Sequence[str] | None
) -> dict[str, Any]:
    """The metadata of a file, of plain values."""
    channels, *size = config['input_size']
    any_size = ['height', 'width']
    if graph.preprocessing is not None:
        image = {'type': 'uint8', 'shape': ['batch', *any_size, channels]}
    else:
        image = {'type': 'float32', 'shape': ['batch', channels, *(size if traced.fixed else any_size)]}
    return {
        'model': name_of(graph.model.model),
        'kind': str(graph.model.kind),
        'inputs': {'images': image},
        'outputs': dict(zip(graph.output_names, map(_tensor, _results(traced)), strict=True)),
        'preprocessing': {**config, 'in_graph': graph.preprocessing is not None},
        'class_names': list(class_names) if class_names else None,
        'made_with': {'timm_hnc': __version__, 'torch': torch.__version__, 'timm': timm.__version__},
    }


def _results(traced: Traced) -> list[Tensor]:
    """The fake tensors that a program returns."""
    (output,) = (node for node in traced.program.graph.nodes if node.op == 'output')
    return [node.meta['val'] for node in output.args[0]]


def _tensor(value: Tensor) -> dict[str, Any]:
    """Type and shape, with names for sizes that vary."""
    names = ('batch', '', 'map_height', 'map_width')
    shape = [side if isinstance(side, int) else names[dim] for dim, side in enumerate(value.shape)]
    return {'type': str(value.dtype).removeprefix('torch.'), 'shape': shape}
