"""Exporting a model with its class maps: traced, written, compared with PyTorch, and only then there."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import full_copy
from timm_hnc.cam.heads.probe import name_of, way_out_of
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.export.check import Agreement, compare, cost, rounding
from timm_hnc.export.describe import describe
from timm_hnc.export.files import READERS, WRITERS, check_format
from timm_hnc.export.graph import MapGraph, Outputs
from timm_hnc.export.preprocessing import Preprocessing, stated_config
from timm_hnc.export.program import Size, Traced, trace, trace_one_size
from timm_hnc.export.written_out import write_out
from timm_hnc.files.tables import write_json

TOLERANCE = 1e-3
"""Largest difference to PyTorch, as a share of the largest value."""
TOLERANCE_OF_BYTES = 0.02
"""The same where the graph resizes: a pixel may come out one of 255 levels brighter."""
_BATCHES = (1, 2, 5)


class _Unwritten(DataError):
    """A file does not say what PyTorch says."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"'{path}' is not written: {why}")
        self.why = why


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared.

    Args:
        path: of it; `path`.json beside it tells what it holds.
        file_format: 'onnx' or 'pt2'.
        num_bytes: of the file.
        opset: of ONNX, None for other formats.
        sizes: (height, width) of the images that it was compared on.
        fixed: why it takes images of one size alone; '' where it takes others.
        agreement: with PyTorch.
    """

    path: Path
    file_format: str
    num_bytes: int
    opset: int | None
    sizes: tuple[Size, ...]
    fixed: str
    agreement: Agreement


def export_model(
    model: CamModel,
    path: str | Path,
    file_format: str = 'onnx',
    outputs: Outputs | None = None,
    preprocess: bool = False,
    class_names: Sequence[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as a graph with named outputs, in float32, that takes batches of any size.

    Args:
        model: with trainable maps; of class-token models only the logits can be exported.
        path: of the file; its name ends in its format.
        file_format: 'onnx', or 'pt2' of `torch.export`.
        outputs: which, see `MapGraph`; the maps of the top 5 classes, or of as many as there are, if None.
        preprocess: the graph takes (B, H, W, C) bytes of any height and width; else (B, C, H, W) normalised floats.
        class_names: a name a class; those that came with the weights if None.
        data_config: what the model wants of its images in place of what `CamModel.data_config` says, such as the mean
            and std of a model that is none of timm's.

    Returns:
        What was written, and how it compares.

    Raises:
        UsageError: the maps take a backward pass, the model has fewer classes or wants another preprocessing or does
            not say which, packages are missing, or the file cannot be written.
        DataError: torch.export or ONNX cannot follow the model, or the file does not say what PyTorch says.

    Example:
        >>> export_model(CamModel(timm.create_model('resnet18')), 'resnet18.onnx')
    """
    outputs = outputs or Outputs.of_most(model.num_classes)
    return _export(model, Path(path).expanduser(), file_format, outputs, preprocess, class_names, data_config)


def _export(
    model: CamModel,
    path: Path,
    file_format: str,
    outputs: Outputs,
    preprocess: bool,
    class_names: Sequence[str] | None,
    data_config: Mapping[str, Any] | None,
    fixed: str = '',
) -> Exported:
    """See `export_model`; `fixed` says why one size is enough."""
    check_format(file_format, path)
    _check_maps(model, outputs)
    names = model.class_names if class_names is None else [str(name) for name in class_names]
    if names and len(names) != model.num_classes:
        raise UsageError(f'{len(names)} class names for {model.num_classes} classes of the model.')
    config = stated_config(model, data_config, preprocess)
    channels, height, width = config['input_size']
    graph = MapGraph(full_copy(model).cpu().float(), outputs, Preprocessing(config) if preprocess else None).eval()
    if file_format == 'onnx':
        write_out(graph)
    size = (height, width)
    traced = trace_one_size(graph, channels, size, fixed) if fixed else trace(graph, channels, size)

    def write(traced: Traced) -> Exported:
        about, batches = describe(graph, traced, config, names), _batches(channels, traced.sizes, preprocess)
        return _write_compared(path, file_format, traced, graph, about, batches)

    try:
        return write(traced)
    except _Unwritten as error:
        if traced.fixed or preprocess:
            raise
        # torch took other sizes, and what became of its graph does not
        return write(trace_one_size(graph, channels, size, error.why[:100]))


def _write_compared(
    path: Path, file_format: str, traced: Traced, graph: MapGraph, about: dict[str, Any], batches: Sequence[Tensor]
) -> Exported:
    """Write a file that says what the graph says, with its JSON."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
            found, agreement = _written(Path(folder) / path.name, file_format, traced, graph, about, batches)
            _check(agreement, path, graph, batches)
            num_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
            write_json(Path(folder) / f'{path.name}.json', about | found)
            for file in sorted(Path(folder).iterdir(), reverse=True):  # the model last: the others are there then
                file.replace(path.parent / file.name)
    except OSError as error:
        raise UsageError(f"--out '{path}' cannot be written: {error}") from error
    return Exported(path, file_format, num_bytes, found.get('opset'), traced.sizes, traced.fixed, agreement)


def _written(
    path: Path, file_format: str, traced: Traced, graph: MapGraph, about: dict[str, Any], batches: Sequence[Tensor]
) -> tuple[dict[str, Any], Agreement]:
    """Write a file and run it; what is known of it then, and how it compares."""
    try:
        found = WRITERS[file_format](traced.program, path, about)
        return found, compare(READERS[file_format](path), graph, batches)
    except OSError:
        raise
    except Exception as error:  # of ONNX and its runtime, which have many
        # torch.onnx's own words are advice on how to go on
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _Unwritten(path.name, first_lines(cause)) from error


def _check_maps(model: CamModel, outputs: Outputs) -> None:
    if outputs.maps != 'none' and not model.head.trainable:
        tried = way_out_of(model.model)
        way_out = f'{tried}, its class-token weights then need fine-tuning; or ' if tried else ''
        raise UsageError(
            f"--maps {outputs.maps}: the class maps of '{name_of(model.model)}' take a backward pass, which no "
            f'exported graph has. Way out: {way_out}leave them out (--maps none).'
        )


def cost_of_maps(
    model: CamModel, exported: Exported, preprocess: bool = False, data_config: Mapping[str, Any] | None = None
) -> tuple[float, float]:
    """Seconds for one image, and as a multiple of what the same model takes without maps.

    Args:
        model: that was exported.
        exported: with its maps.
        preprocess: as it was exported.
        data_config: the same.
    """
    channels = model.data_config['input_size'][0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'plain.{exported.file_format}'
        logits, fixed = Outputs('none'), exported.fixed
        plain = _export(model, path, exported.file_format, logits, preprocess, None, data_config, fixed)
        runners = [READERS[each.file_format](each.path) for each in (exported, plain)]
        return cost(runners[0], runners[1], _batches(channels, exported.sizes[:1], preprocess)[0])


def _batches(channels: int, sizes: Sequence[Size], preprocess: bool) -> list[Tensor]:
    """Batches of several images of the first size, then of one image of each other."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, *sizes[0]) for batch in _BATCHES] + [(1, *size) for size in sizes[1:]]
    if preprocess:
        return [torch.randint(256, (*shape, channels), generator=generator).byte() for shape in shapes]
    return [torch.randn(batch, channels, *size, generator=generator) for batch, *size in shapes]


def _check(agreement: Agreement, path: Path, graph: MapGraph, batches: Sequence[Tensor]) -> None:
    """Refuse a file that says something else; NaN is no agreement."""
    tolerance = TOLERANCE if graph.preprocessing is None else TOLERANCE_OF_BYTES
    if agreement.relative <= tolerance:
        return
    name, off, largest = agreement.name, agreement.difference, agreement.largest
    why = f"its {name} are {off:.3g} off PyTorch's, which go up to {largest:.3g}."
    own = rounding(graph, batches)
    if own is not None and own.relative > tolerance:
        why += f' In float32 the {own.name} of PyTorch are themselves {own.difference:.3g} off those in float64: '
        why += 'weights that are not trained can do that, and no file can agree with them.'
    raise _Unwritten(path, why)
