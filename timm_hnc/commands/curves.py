"""timm-hnc curves: training curves of runs, and accuracy by lambda (Fig. 4 of the paper)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.commands.pictures import Rows, picture_parser, save_picture, write_picture
from timm_hnc.plots.curves import curve_rows, draw_curves, read_run
from timm_hnc.report.run_files import of_this_version


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = picture_parser('curves', __doc__, 'curves.png')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='run folders of train.py')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the curves of the runs.

    Raises:
        UsageError: options are wrong.
        DataError: a file cannot be read or written.
    """
    write_picture(build_parser().parse_args(argv), _draw)


def _draw(args: argparse.Namespace) -> Rows:
    with of_this_version(args.runs):
        runs = [read_run(folder) for folder in args.runs]
        save_picture(draw_curves(runs), args.out)
        return curve_rows(runs)
