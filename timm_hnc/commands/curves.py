"""timm-hnc curves: training curves of runs, and accuracy by lambda (Fig. 4 of the paper)."""

import argparse
from pathlib import Path

from timm_hnc.commands.pictures import Rows, check_picture_file, picture_command, picture_parser, save_picture
from timm_hnc.files.run_curves import read_run
from timm_hnc.plots.curves import curve_rows, draw_curves
from timm_hnc.report.run_files import reading_runs


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = picture_parser('curves', __doc__, 'curves.png')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='run folders of train.py')
    return parser


def _draw(args: argparse.Namespace) -> Rows:
    check_picture_file(args.out)
    with reading_runs(args.runs):
        runs = [read_run(folder) for folder in args.runs]
        save_picture(draw_curves(runs), args.out)
        return curve_rows(runs)


main = picture_command(build_parser, _draw)
