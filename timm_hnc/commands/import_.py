"""timm-hnc import: make a run folder of a checkpoint file, such as the authors' of ImageNet networks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.commands.options.named_model import add_architecture_flags, named_options
from timm_hnc.commands.options.parsing import CommandParser
from timm_hnc.data.inputs import CROP_PCT
from timm_hnc.data.transforms import INTERPOLATIONS
from timm_hnc.errors import UsageError
from timm_hnc.hub.importing import import_checkpoint
from timm_hnc.options import check_range, given


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser('timm-hnc import', description=__doc__)
    add = parser.add_argument
    add('file', type=Path, metavar='FILE', help='checkpoint file')
    add('--model', required=True, metavar='NAME', help="timm's name of the architecture")
    add_architecture_flags(parser)
    add('--use-ema', action='store_true', help='take the moving average of the weights, of a file that has one')
    add('--out', type=Path, metavar='DIR', help='run folder to make; output/imported/<name of the file>')
    add('--hnc', choices=('none', 'mse', 'kd'), default='none', help='what it was trained with')
    add('--hnc-weight', type=float, metavar='X', help='weight of HNC')
    add('--hnc-topk', type=int, metavar='K', help='top-k of HNC')
    add('--img-size', type=int, metavar='N', help='side of its images (default: 224; 32 for cifar_*)')
    add('--crop-pct', type=float, metavar='X', help='share that the center crop keeps (default: 0.875; 1 for cifar_*)')
    add('--interpolation', choices=INTERPOLATIONS, help='how images are resized (default: bilinear)')
    add('--crop-mode', choices=('center', 'squash', 'border'), help='how they are cropped (default: center)')
    for name in ('mean', 'std'):
        text = f"{name} of each channel that images are normalised with (default: ImageNet's; CIFAR-100's for cifar_*)"
        add(f'--{name}', type=float, nargs='+', metavar='X', help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make the run folder, and print its path."""
    args = build_parser().parse_args(argv)
    folder = args.out or Path('output', 'imported', args.file.name.split('.')[0])
    for name in ('hnc_weight', 'hnc_topk'):
        if args.hnc == 'none' and getattr(args, name) is not None:
            raise UsageError(f'{given(name, getattr(args, name))}: does nothing without --hnc.')
    check_range(args, 'img_size', 'hnc_topk', low=1)
    check_range(args, 'crop_pct', **CROP_PCT)
    check_range(args, 'hnc_weight', low=0)
    check_range(args, 'mean')
    check_range(args, 'std', above=0)
    hnc = {'variant': args.hnc, 'weight': args.hnc_weight, 'topk': args.hnc_topk} if args.hnc != 'none' else None
    size = None if args.img_size is None else (3, args.img_size, args.img_size)
    named = {name: getattr(args, name) for name in ('crop_pct', 'crop_mode', 'interpolation', 'mean', 'std')} | {
        'input_size': size
    }
    data_config = {name: value for name, value in named.items() if value is not None}
    import_checkpoint(args.file, args.model, folder, named_options(args), hnc, data_config, args.use_ema)
    print(folder)  # noqa: T201  # the result of the command
