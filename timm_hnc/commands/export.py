"""timm-hnc export: write a model with its class maps as one file, for ONNX Runtime or torch.export."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.cam import CamModel
from timm_hnc.commands.command_line import ended_like_ctrl_c
from timm_hnc.commands.options.named_model import NAMED, add_architecture_flags, named_model
from timm_hnc.commands.options.parsing import CommandParser
from timm_hnc.export.export import Exported, cost_of_maps, export_model
from timm_hnc.export.files import check_format
from timm_hnc.export.graph import Outputs
from timm_hnc.weights.opening import short_name

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser('timm-hnc export', description=__doc__)
    add = parser.add_argument
    add('model', metavar='MODEL', help=NAMED)
    add('--format', default='onnx', metavar='FORMAT', help='onnx, or pt2 of torch.export')
    add('--maps', metavar='WHICH', help='topK (the K classes with the highest logits), all or none (default: top5)')
    add('--contrast', action='store_true', help='also the map of the first class minus that of each other one')
    add('--preprocess', action='store_true', help='resize, crop and normalise in the graph: it takes bytes')
    add('--out', type=Path, metavar='FILE', help='what to write; named like the model if left out')
    add('--pretrained', action='store_true', help="load the published weights of timm's name")
    add_architecture_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, and print what it is."""
    args = build_parser().parse_args(argv)
    path = args.out or Path(f'{short_name(args.model)}.{args.format}')
    check_format(args.format, path)
    outputs = Outputs(args.maps or Outputs.maps, args.contrast)
    model = named_model(args.model, args, args.pretrained)
    if args.maps is None:
        outputs = Outputs.of_most(model.num_classes, args.contrast)
    _logger.info(f'Writing {path}, and comparing what it says with the model ...')
    with ended_like_ctrl_c():  # what is half written goes
        exported = export_model(model, path, args.format, outputs, args.preprocess)
    timing = cost_of_maps(model, exported, args.preprocess) if outputs.maps != 'none' else None
    print(_summary(exported, model, timing))  # noqa: T201  # the result of the command


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
