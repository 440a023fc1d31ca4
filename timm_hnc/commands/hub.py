"""python -m timm_hnc.hub: publish a finished run, or take over a checkpoint of other code."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.commands.command_line import HelpFormatter, require_range
from timm_hnc.data.transforms import INTERPOLATIONS
from timm_hnc.errors import UsageError
from timm_hnc.files.options import flag_of
from timm_hnc.hub.importing import import_checkpoint
from timm_hnc.hub.publish import push_run


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog='python -m timm_hnc.hub', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    push = commands.add_parser('push', help='publish the best weights of a run', formatter_class=HelpFormatter)
    push.set_defaults(run_command=_push)
    push.add_argument('run', type=Path, metavar='RUN', help='run folder of train.py')
    push.add_argument('repo_id', metavar='USER/NAME', help='repository, made if it is missing')
    push.add_argument('--private', action='store_true', help='make it private')
    push.add_argument('--revision', metavar='BRANCH', help='commit to this branch, made if it is missing')
    push.add_argument('--create-pr', action='store_true', help='open a pull request instead')
    push.add_argument('--commit-message', default='Add model', metavar='TEXT')
    push.add_argument('--baseline', type=Path, metavar='RUN', help='run folder whose figures stand beside')
    push.add_argument('--licence', metavar='ID', help='as the Hub names it, such as apache-2.0')
    taken = commands.add_parser('import', help='a run folder of a checkpoint file', formatter_class=HelpFormatter)
    taken.set_defaults(run_command=_import)
    taken.add_argument('file', type=Path, metavar='FILE', help="such as the authors' checkpoints of ImageNet networks")
    taken.add_argument('--model', required=True, metavar='NAME', help="timm's name of the architecture")
    taken.add_argument('--num-classes', type=int, metavar='N', help="number of classes, the model's own if left out")
    taken.add_argument('--out', type=Path, metavar='DIR', help='run folder to make; output/imported/<name of the file>')
    taken.add_argument('--hnc', choices=('none', 'mse', 'kd'), default='none', help='what it was trained with')
    taken.add_argument('--hnc-weight', type=float, metavar='X', help='weight of HNC')
    taken.add_argument('--hnc-topk', type=int, metavar='K', help='top-k of HNC')
    taken.add_argument('--img-size', type=int, default=224, metavar='N', help='side of its images')
    taken.add_argument('--crop-pct', type=float, default=0.875, metavar='X', help='share that the center crop keeps')
    taken.add_argument('--interpolation', choices=INTERPOLATIONS, default='bilinear', help='how images are resized')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says.

    Raises:
        UsageError: options are wrong.
        DataError: files cannot be used, or the Hub refuses or fails.
    """
    args = build_parser().parse_args(argv)
    print(args.run_command(args))  # noqa: T201  # the result of the command


def _push(args: argparse.Namespace) -> str:
    return push_run(
        args.run,
        args.repo_id,
        baseline=args.baseline,
        licence=args.licence,
        commit_message=args.commit_message,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
    )


def _import(args: argparse.Namespace) -> Path:
    folder = args.out or Path('output', 'imported', args.file.name.split('.')[0])
    for name in ('hnc_weight', 'hnc_topk'):
        if args.hnc == 'none' and getattr(args, name) is not None:
            raise UsageError(f'{flag_of(name)} {getattr(args, name)}: does nothing without --hnc mse or --hnc kd.')
    require_range(args, 'img_size', low=1)
    require_range(args, 'crop_pct', low=0.01, high=1)
    hnc = {'variant': args.hnc, 'weight': args.hnc_weight, 'topk': args.hnc_topk} if args.hnc != 'none' else None
    size = (3, args.img_size, args.img_size)
    data_config = {'input_size': size, 'crop_pct': args.crop_pct, 'interpolation': args.interpolation}
    import_checkpoint(args.file, args.model, folder, args.num_classes, hnc, data_config)
    return folder
