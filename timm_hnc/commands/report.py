"""timm-hnc report: one HTML page of runs, with figures, curves, images and attacks."""

import argparse
from pathlib import Path

from timm_hnc.commands.pictures import Rows, picture_command, picture_parser
from timm_hnc.report.figure_table import table_rows
from timm_hnc.report.page import write_report


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = picture_parser('report', __doc__, 'report.html')
    help = 'run folders; the others are compared with the first'
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help=help)
    return parser


def _draw(args: argparse.Namespace) -> Rows:
    return table_rows(write_report(args.runs, args.out))


main = picture_command(build_parser, _draw)
