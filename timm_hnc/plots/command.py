"""python -m timm_hnc.plots: pictures of photographs, of the two losses, and of training runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.utils import tqdm

from timm_hnc.cam import CamModel
from timm_hnc.cam.probe import UnsupportedHead
from timm_hnc.command_line import HelpFormatter, KeyValues
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.hub import find_weights
from timm_hnc.plots.curves import draw_curves
from timm_hnc.plots.loss_figure import draw_losses
from timm_hnc.plots.panel import MAX_NEGATIVES
from timm_hnc.plots.photo_cams import Subject, draw_photos, names_of
from timm_hnc.plots.photos import find_photos


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command, one subcommand a kind of picture."""
    parser = argparse.ArgumentParser(prog='python -m timm_hnc.plots', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add_command(name: str, run: Any, help: str, out: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, formatter_class=HelpFormatter)
        command.set_defaults(run=run)
        command.add_argument('--out', default=out, metavar='FILE', help='picture to write')
        return command

    cams = add_command('cams', _cams, 'class activation maps of photographs (Fig. 1 and 5 of the paper)', 'cams.png')
    cams.add_argument('photos', nargs='+', metavar='PHOTO', help='image files, and folders of them')
    cams.add_argument('--model', metavar='NAME', help="timm's name of the model; a run folder knows its own")
    cams.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='model arguments')
    cams.add_argument('--num-classes', type=int, metavar='N', help="number of classes, the model's own if left out")
    cams.add_argument('--pretrained', action='store_true', help='load the published weights')
    cams.add_argument('--checkpoint', metavar='PATH', help='run folder, its model_best, or a weights file')
    cams.add_argument('--against', metavar='PATH', help='a second checkpoint, drawn above each row of the first')
    cams.add_argument('--class-names', metavar='FILE', help='text file, a name a line')
    cams.add_argument('--topk', type=int, default=MAX_NEGATIVES, metavar='K', help='classes behind the first')
    cams.add_argument('--title', default='', metavar='TEXT', help='over the picture')
    add_command('losses', _losses, 'both forms of HNC and their gradients over two maps (Fig. 3)', 'losses.png')
    curves = add_command('curves', _curves, 'training curves of runs, and accuracy by lambda (Fig. 4)', 'curves.png')
    curves.add_argument('runs', nargs='+', metavar='RUN', help='run folders of train.py')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line says.

    Raises:
        UsageError: options are wrong.
        DataError: a file cannot be read or written.
    """
    args = build_parser().parse_args(argv)
    path = Path(args.out)
    picture = args.run(args)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--out '{path}' cannot be written: {error}") from error
    print(path)  # noqa: T201  # the result of the command


def _cams(args: argparse.Namespace) -> Any:
    if not 0 <= args.topk <= MAX_NEGATIVES:
        raise UsageError(f'--topk {args.topk}: expected 0 to {MAX_NEGATIVES}.')
    photos = find_photos(args.photos)
    names = None
    if args.class_names:
        try:
            names = [line.strip() for line in Path(args.class_names).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--class-names '{args.class_names}' cannot be read: {error}") from error
    paths = [path for path in (args.against, args.checkpoint) if path] or [None]
    subjects = []
    for path in paths:
        model = _load(args, path)
        caption = Path(path).name if path and len(paths) > 1 else ''
        subjects.append(Subject(model, caption, names_of(model.model, names)))
    return draw_photos(photos, subjects, args.topk, args.title, lambda each: tqdm(each, unit='photo', leave=False))


def _load(args: argparse.Namespace, checkpoint: str | None) -> CamModel:
    """A model in evaluation mode, on the accelerator if there is one."""
    options: dict[str, Any] = dict(args.model_kwargs)
    if args.num_classes is not None:
        options['num_classes'] = args.num_classes
    name, folder = args.model, find_weights(Path(checkpoint)) if checkpoint else None
    if folder is not None:
        name, options['pretrained'] = f'local-dir:{folder}', True
    elif name is None:
        raise UsageError('no model: pass --checkpoint RUN, or --model NAME with --pretrained or --checkpoint FILE.')
    elif checkpoint:
        options['checkpoint_path'] = checkpoint
    else:
        options['pretrained'] = args.pretrained or name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:'))
    try:
        model = timm.create_model(name, **options)
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        raise DataError(f"'{checkpoint or name}' cannot be loaded: {first_lines(error)}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device('cpu')
    try:
        return CamModel(model).eval().to(device)
    except UnsupportedHead as error:
        raise UsageError(str(error)) from error


def _losses(args: argparse.Namespace) -> Any:
    return draw_losses()


def _curves(args: argparse.Namespace) -> Any:
    return draw_curves([Path(run) for run in args.runs])
