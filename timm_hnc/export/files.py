"""Traced graphs as files, with what a user of them must know, and reading them back."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from timm_hnc.errors import UsageError

Runner = Callable[[Tensor], dict[str, Tensor]]
_METADATA = 'timm_hnc.json'
_TORCH = '2.9'
_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


def check_format(name: str, path: Path) -> None:
    """Refuse a format that cannot be written here, or to such a path.

    Raises:
        UsageError: it is none, the path is a folder or of another format, packages are missing,
            or torch is too old to follow more than the simplest heads.
    """
    if torch.__version__ < _TORCH:
        raise UsageError(f'export needs torch {_TORCH} or newer, {torch.__version__} is installed.')
    if name not in WRITERS:
        raise UsageError(f'--format {name}: expected one of {", ".join(WRITERS)}.')
    if path.is_dir() or path.suffix != f'.{name}':
        raise UsageError(f"--out '{path}': expected the name of a file that ends in .{name}.")
    missing = [package for package in _PACKAGES if find_spec(package) is None] if name == 'onnx' else []
    if missing:
        raise UsageError(f'--format onnx needs {", ".join(missing)}: pip install "timm_hnc[export]".')


def _write_pt2(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    torch.export.save(program, path, extra_files={_METADATA: json.dumps(metadata)})
    return {}


def _write_onnx(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    inputs, outputs = metadata['inputs'], metadata['outputs']
    exported: Any = torch.onnx.export(
        program, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
    )
    graph = exported.model.graph
    for value in (*graph.inputs, *graph.outputs):
        shape = (inputs | outputs)[value.name]['shape']
        value.shape = type(value.shape)(shape)  # the names of sizes that people know, in place of s77
    for name, content in metadata.items():
        exported.model.metadata_props[name] = content if isinstance(content, str) else json.dumps(content)
    exported.save(path)
    return {'opset': exported.model.opset_imports['']}


def _open_pt2(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(module(images))

    return run


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {'images': images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return run


WRITERS = {'pt2': _write_pt2, 'onnx': _write_onnx}
"""By format: write a program with its metadata to a path; what else is known of the file then."""
READERS = {'pt2': _open_pt2, 'onnx': _open_onnx}
"""By format: the graph of a file, as a function of images."""
