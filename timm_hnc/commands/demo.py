"""timm-hnc demo: a page on this machine to try a model on, or to compare two."""

import argparse
import logging
import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import torch

from timm_hnc.commands.command_line import ended_like_ctrl_c
from timm_hnc.commands.options.named_model import (
    NAMED,
    add_architecture_flags,
    add_device_flag,
    device_of,
    named_model,
    subject_of,
)
from timm_hnc.commands.options.parsing import CommandParser
from timm_hnc.commands.options.validate_options import parse_validate_options
from timm_hnc.data.loading.loaders import open_eval_dataset
from timm_hnc.demo.samples import Sample, spread_over
from timm_hnc.errors import DataError, UsageError
from timm_hnc.files.run_options import options_of_run
from timm_hnc.plots.photo_cams import Subject
from timm_hnc.weights.opening import short_names

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser('timm-hnc demo', description=__doc__)
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help=f'one or two: {NAMED}')
    add('--no-pretrained', action='store_true', help="random weights for timm's names")
    add_architecture_flags(parser)
    add_device_flag(parser)
    add('--task', choices=('classification', 'multilabel'), help='softmax or sigmoid; a run knows its own')
    add('--images', type=int, default=24, metavar='N', help="of the first run's validation images to pick from")
    add('--host', default='127.0.0.1', metavar='ADDRESS', help='the address to listen on: this machine alone')
    add('--port', type=int, metavar='N', help='a free one from 7860 on if left out')
    add('--open', action='store_true', help='open the page in the browser')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until somebody presses Ctrl-C."""
    args = build_parser().parse_args(argv)
    if len(args.models) > 2:
        raise UsageError(f'{len(args.models)} models: expected one, or two to compare.')
    if args.images < 0:
        raise UsageError(f'--images {args.images}: expected 0 or more.')
    if find_spec('gradio') is None:
        raise UsageError('the page needs Gradio: pip install "timm_hnc[demo]".')
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UsageError(f'--port {args.port}: expected 1 to 65535.')
    _check_address(args.host, args.port or 0)
    device = device_of(args)
    subjects = [_subject(*each, args, device) for each in zip(args.models, short_names(args.models), strict=True)]
    samples: list[Sample] = []
    note = ''
    try:
        for model, subject in zip(args.models, subjects, strict=True) if args.images else ():
            samples = samples or _samples(model, subject, args.images)
    except (DataError, UsageError) as error:
        _logger.warning(f'No validation images to pick from: {error}')
        note = 'No validation images to pick from: the log says why.'  # an error may name folders of this machine
    with ended_like_ctrl_c(), TemporaryDirectory(prefix='timm-hnc-demo-') as folder:  # uploads go with the page
        os.environ['GRADIO_TEMP_DIR'] = folder  # pages that share one delete each other's files
        known = os.environ.get('no_proxy') or os.environ.get('NO_PROXY')  # clients look at the first one first
        direct = ','.join(filter(None, [known, 'localhost,127.0.0.1', args.host]))
        os.environ.update(NO_PROXY=direct, no_proxy=direct)
        _serve(subjects, samples, note, args)


def _serve(subjects: Sequence[Subject], samples: Sequence[Sample], note: str, args: argparse.Namespace) -> None:
    from timm_hnc.demo.page import build_page, show_page

    page = build_page(subjects, samples, note)
    address = show_page(page, server_name=args.host, server_port=args.port, inbrowser=args.open)
    print(f'{address} (Ctrl-C ends it)', flush=True)  # noqa: T201  # the result of the command
    page.block_thread()


def _check_address(host: str, port: int) -> None:
    if ':' in host:
        raise UsageError(f'--host {host}: the page is served on names and addresses of IPv4 alone.')
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port or None, type=socket.SOCK_STREAM)
        socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        where = f'--host {host}' + (f', --port {port}' if port else '')
        raise UsageError(f'{where}: the page cannot be served there: {error}') from error


def _subject(model: str, caption: str, args: argparse.Namespace, device: torch.device) -> Subject:
    made = named_model(model, args, pretrained=not args.no_pretrained)
    return subject_of(made, model, caption, args.task, device)


def _samples(model: str, subject: Subject, count: int) -> list[Sample]:
    """Validation images of a run; none of a model that is no run."""
    if not options_of_run(model):
        return []
    options, _, _ = parse_validate_options(['--checkpoint', model.removeprefix('local-dir:')])
    channels = subject.model.data_config['input_size'][0]
    seed, split = options.loader.seed, options.evaluation.split
    dataset = open_eval_dataset(options.data, options.task, channels, len(subject.class_names), seed, split=split)
    return spread_over(dataset, count)
