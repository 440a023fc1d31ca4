"""timm-hnc losses: HNC's mse and kd and their gradients over two maps (Fig. 3 of the paper)."""

import argparse

from timm_hnc.commands.pictures import Rows, check_picture_file, picture_command, picture_parser, save_picture
from timm_hnc.plots.loss_figure import draw_losses, loss_rows


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    return picture_parser('losses', __doc__, 'losses.png')


def _draw(args: argparse.Namespace) -> Rows:
    check_picture_file(args.out)
    save_picture(draw_losses(), args.out)
    return loss_rows()


main = picture_command(build_parser, _draw)
