"""timm-hnc losses: both forms of HNC and their gradients over two maps (Fig. 3 of the paper)."""

import argparse
from collections.abc import Sequence

from timm_hnc.commands.pictures import Rows, picture_parser, save_picture, write_picture
from timm_hnc.plots.loss_figure import draw_losses, loss_rows


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    return picture_parser('losses', __doc__, 'losses.png')


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure.

    Raises:
        UsageError: options are wrong.
        DataError: a file cannot be read or written.
    """
    write_picture(build_parser().parse_args(argv), _draw)


def _draw(args: argparse.Namespace) -> Rows:
    save_picture(draw_losses(), args.out)
    return loss_rows()
