"""timm-hnc export: write a model with its class maps as one file, for ONNX Runtime or torch.export."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import parse_model_name

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.commands.options.parsing import HelpFormatter, KeyValues
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.export.export import Exported, cost_of_maps, export_model
from timm_hnc.export.files import check_format
from timm_hnc.export.graph import Outputs
from timm_hnc.weights.loading import WITH_WEIGHTS, create_model
from timm_hnc.weights.saving import find_weights


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser('timm-hnc export', description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add('model', metavar='MODEL', help="run folder, folder of weights, or a name: timm's, hf-hub: or local-dir:")
    add('--format', default='onnx', metavar='FORMAT', help='onnx, or pt2 of torch.export')
    add('--maps', default='top5', metavar='WHICH', help='topK (the K classes with the highest logits), all or none')
    add('--contrast', action='store_true', help='also the map of the first class minus that of each other one')
    add('--preprocess', action='store_true', help='resize, crop and normalise in the graph: it takes bytes')
    add('--out', type=Path, metavar='FILE', help='what to write; named like the model if left out')
    add('--pretrained', action='store_true', help="load the published weights of timm's name")
    add('--num-classes', type=int, metavar='N', help="number of classes, the model's own if left out")
    add('--gp', metavar='POOL', help='global pooling, such as avg')
    add('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='model arguments')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, and print what it is.

    Raises:
        UsageError: options are wrong, or the model's maps cannot be exported.
        DataError: the model cannot be read or followed.
    """
    args = build_parser().parse_args(argv)
    path = args.out or Path(f'{_name(args.model)}.{args.format}')
    check_format(args.format, path)
    outputs = Outputs(args.maps, args.contrast)
    try:
        model = _load(args).eval()
        exported = export_model(model, path, args.format, outputs, args.preprocess)
        timing = cost_of_maps(model, exported, args.preprocess) if outputs.maps != 'none' else None
    except UnsupportedHead as error:
        raise UsageError(str(error)) from error
    print(_summary(exported, model, timing))  # noqa: T201  # the result of the command


def _load(args: argparse.Namespace) -> CamModel:
    options: dict[str, Any] = dict(args.model_kwargs)
    if args.num_classes is not None:
        options['num_classes'] = args.num_classes
    if args.gp is not None:
        options['global_pool'] = args.gp
    folder, name = find_weights(Path(args.model)), args.model
    if folder is not None:
        name = f'local-dir:{folder}'
    elif Path(args.model).is_dir():
        raise DataError(f"'{args.model}' is neither a run folder nor a folder of weights.")
    if args.pretrained and not name.startswith(WITH_WEIGHTS):
        options['pretrained'] = True
    try:
        return create_model(name, **options)
    except (DataError, UnsupportedHead):
        raise
    except Exception as error:  # timm, safetensors, torch and the Hub each have errors of their own
        raise UsageError(f"'{args.model}' cannot be made: {first_lines(error)}") from error


def _name(model: str) -> str:
    """Of a file: the last part of a folder's or a model's name."""
    path = Path(model)
    if path.is_dir():
        path = path.resolve() if not path.name else path
        return path.absolute().parent.name if path.name in ('model_best', 'last', 'model') else path.absolute().name
    return parse_model_name(model)[1].rpartition('/')[2].partition('@')[0]


def _summary(exported: Exported, model: CamModel, timing: tuple[float, float] | None) -> str:
    agreement, (size, *others) = exported.agreement, [f'{height} x {width}' for height, width in exported.sizes]
    opset = f', opset {exported.opset}' if exported.opset else ''
    takes = f'any size (tried: {", ".join([size, *others])})' if others else f'{size} only ({exported.fixed})'
    lines = [
        f'{exported.path}: {exported.num_bytes / 1e6:.1f} MB{opset}, kind {model.kind}',
        f'images: {takes}, in batches of any number',
        f'largest difference to PyTorch: {agreement.difference:.2g} of {agreement.largest:.3g}',
    ]
    if timing is not None:
        seconds, ratio = timing
        lines.append(f'one image: {1000 * seconds:.1f} ms, {ratio:.2f} of the same model without maps')
    return '\n'.join(lines)
