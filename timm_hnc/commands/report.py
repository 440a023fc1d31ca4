"""timm-hnc report: one HTML page of runs, with figures, curves, images and attacks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.commands.pictures import Rows, picture_parser, write_picture
from timm_hnc.report.figure_table import table_rows
from timm_hnc.report.page import write_report


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = picture_parser('report', __doc__, 'report.html')
    help = 'run folders; the others are compared with the first'
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help=help)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of the runs.

    Raises:
        UsageError: options are wrong.
        DataError: a file cannot be read or written.
    """
    write_picture(build_parser().parse_args(argv), _draw)


def _draw(args: argparse.Namespace) -> Rows:
    return table_rows(write_report(args.runs, args.out))
