"""timm-hnc cams: class activation maps of photographs (Fig. 1 and 5 of the paper)."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from timm.models import load_checkpoint

from timm_hnc.cam import CamModel
from timm_hnc.commands.options.named_model import (
    add_architecture_flags,
    add_device_flag,
    device_of,
    named_options,
    subject_of,
)
from timm_hnc.commands.pictures import Rows, check_picture_file, picture_command, picture_parser, save_picture
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.plots.panel import MAX_NEGATIVES, draw_panel
from timm_hnc.plots.photo_cams import map_values, photo_rows
from timm_hnc.plots.photos import find_photos
from timm_hnc.progress import progress
from timm_hnc.weights.loading import WITH_WEIGHTS
from timm_hnc.weights.opening import open_model, short_names
from timm_hnc.weights.saving import check_architecture, find_weights

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = picture_parser('cams', __doc__, 'cams.png')
    add = parser.add_argument
    add('photos', nargs='+', metavar='PHOTO', help='image files, and folders of them')
    add('--model', metavar='NAME', help="timm's name of the model; a run folder knows its own")
    add_architecture_flags(parser)
    add_device_flag(parser)
    add('--pretrained', action='store_true', help='load the published weights')
    add('--checkpoint', metavar='PATH', help='run folder, its model_best, or a weights file')
    add('--use-ema', action='store_true', help='take the moving average of the weights, of a file that has one')
    add('--against', metavar='PATH', help='a second checkpoint, drawn above each row of the first')
    add('--class-names', metavar='FILE', help='text file, a name a line')
    add('--topk', type=int, default=MAX_NEGATIVES, metavar='K', help='classes behind the first')
    add('--contrast', action='store_true', help='behind the first: its map minus that of each of these classes')
    add('--task', choices=('classification', 'multilabel'), help='softmax or sigmoid; a run knows its own')
    add('--title', default='', metavar='TEXT', help='over the picture')
    return parser


def _draw(args: argparse.Namespace) -> Rows:
    check_picture_file(args.out)
    if not 0 <= args.topk <= MAX_NEGATIVES:
        raise UsageError(f'--topk {args.topk}: expected 0 to {MAX_NEGATIVES}.')
    if args.contrast and not args.topk:
        raise UsageError('--contrast: needs --topk of 1 or more, the classes that the first is compared with.')
    device, photos = device_of(args), find_photos(args.photos)
    names = _read_names(args.class_names) if args.class_names else None
    checkpoints = _find_checkpoints(args)
    subjects = []
    captions = short_names([checkpoint or args.model or '' for checkpoint, _ in checkpoints])
    for (checkpoint, folder), caption in zip(checkpoints, captions, strict=True):
        model = _load(args, checkpoint, folder)
        local = args.model if (args.model or '').startswith('local-dir:') else None
        named = caption if len(checkpoints) > 1 else ''
        subjects.append(subject_of(model, checkpoint or local, named, args.task, device, names))
    drawn = photo_rows(progress(photos, 'photo'), subjects, args.topk, args.contrast)
    # whose row it is: the run's name is there where there are several
    rows = [row if row.caption or len(photos) == 1 else replace(row, caption=photo.name) for photo, row in drawn]
    panel = draw_panel(rows, args.title, labelled=False, contrast=args.contrast)
    save_picture(panel, args.out)
    return [value for photo, row in drawn for value in map_values(photo, row)]


main = picture_command(build_parser, _draw)


def _read_names(path: str) -> list[str]:
    try:
        names = [line.strip() for line in Path(path).read_text(encoding='utf-8-sig').splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--class-names '{path}' cannot be read: {error}") from error
    if not names:
        raise DataError(f"--class-names '{path}' is empty: expected a name a line.")
    return names


def _find_checkpoints(args: argparse.Namespace) -> list[tuple[str | None, Path | None]]:
    """The checkpoints to draw, None for --model alone, each with its folder of weights, None for a weights file.

    A folder knows its architecture: where all are folders, --model may repeat it and not contradict it.
    """
    found: list[tuple[str | None, Path | None]] = []
    for flag, checkpoint in (('--against', args.against), ('--checkpoint', args.checkpoint)):
        if checkpoint is None:
            continue
        try:
            if not Path(checkpoint).exists():
                raise DataError(f"{flag} '{checkpoint}' does not exist.")
            folder = find_weights(Path(checkpoint))
            if folder is None and Path(checkpoint).is_dir():
                raise DataError(f"{flag} '{checkpoint}' is neither a run folder nor its model_best.")
        except OSError as error:
            raise DataError(f"{flag} '{checkpoint}' cannot be read: {first_lines(error)}") from error
        found.append((checkpoint, folder))
    if args.checkpoint is None:
        found.append((None, None))
    if args.use_ema and not any(checkpoint and folder is None for checkpoint, folder in found):
        raise UsageError('--use-ema: does nothing without a weights file.')
    named = [(checkpoint, folder) for checkpoint, folder in found if folder is not None]
    for checkpoint, folder in named if len(named) == len(found) else ():
        check_architecture(folder, f"--model {args.model}: '{checkpoint}'", args.model)
    return found


def _load(args: argparse.Namespace, checkpoint: str | None, folder: Path | None) -> CamModel:
    """A model in evaluation mode."""
    options, name = named_options(args), args.model
    if folder is not None:
        return open_model(str(checkpoint), **options)
    if name is None:
        raise UsageError('no model: pass --checkpoint RUN, or --model NAME with --pretrained or --checkpoint FILE.')
    if checkpoint is None:
        if not args.pretrained and not name.startswith(WITH_WEIGHTS):
            _logger.warning(f"'{name}' has random weights: see --pretrained and --checkpoint.")
        return open_model(name, args.pretrained, **options)
    made = open_model(name, **options | {'pretrained': False})
    try:
        load_checkpoint(made.model, checkpoint, args.use_ema)
    except Exception as error:  # safetensors and torch each have errors of their own
        raise DataError(f"'{checkpoint}' cannot be loaded: {first_lines(error)}") from error
    return made
