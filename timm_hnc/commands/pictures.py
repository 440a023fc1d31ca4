"""What the commands that draw share: where the picture goes, and the figures that it shows."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from timm_hnc.commands.options.parsing import CommandParser
from timm_hnc.errors import UsageError
from timm_hnc.files.tables import write_table

Rows = list[dict[str, Any]]


def picture_parser(name: str, description: str | None, out: str) -> argparse.ArgumentParser:
    """The parser of a command that draws, with its --out and --values."""
    parser = CommandParser(f'timm-hnc {name}', description=description)
    parser.add_argument('--out', type=Path, default=Path(out), metavar='FILE', help='what to write')
    parser.add_argument(
        '--values', nargs='+', default=[], metavar='FILE', help='the figures that it shows, as .csv or .json files'
    )
    return parser


def picture_command(
    build_parser: Callable[[], argparse.ArgumentParser], draw: Callable[[argparse.Namespace], Rows]
) -> Callable[[Sequence[str] | None], None]:
    """The main() of a command that draws, writes the figures that the picture shows, and prints its path.

    It raises UsageError where options are wrong or a file cannot be written, DataError where one cannot be read.

    Args:
        build_parser: with the options of `picture_parser`.
        draw: writes the picture to args.out; its figures, a row a mapping.
    """

    def main(argv: Sequence[str] | None = None) -> None:
        args = build_parser().parse_args(argv)
        for file in args.values:
            if Path(file).suffix not in ('.csv', '.json'):
                raise UsageError(f"--values '{file}': expected a name that ends in .csv or .json.")
        rows = draw(args)
        for file in args.values:
            try:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                write_table(file, rows)
            except OSError as error:
                raise UsageError(f"--values '{file}' cannot be written: {error}") from error
        print(args.out)  # noqa: T201  # the result of the command

    return main


def check_picture_file(path: Path) -> None:
    """Refuse a name whose ending is no format that Pillow writes, before there is a picture."""
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"--out '{path}': expected a name that ends as a picture's, such as .png, .jpg or .webp.")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, into a folder that is made where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        size = f'{picture.width} x {picture.height} pixels'  # JPEG takes 65,500 a side, WebP 16,383
        raise UsageError(f"--out '{path}' cannot be written ({size}): {error}") from error
