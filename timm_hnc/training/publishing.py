"""Publishing a run to the Hub, which never costs the run."""

import logging
import os
import shlex
from argparse import Namespace
from pathlib import Path

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.hub.problems import without_tokens
from timm_hnc.hub.publish import check_name_and_token, check_token, push_run
from timm_hnc.plots.run_files import read_figures

_logger = logging.getLogger(__name__)


def check_publishing(args: Namespace) -> None:
    """Refuse what could not be published, before any training.

    Raises:
        UsageError: an option of the Hub is wrong, there is no token, or the Hub does not know it.
        DataError: --baseline is no run folder.
    """
    if not args.push_to_hub:
        for name in ('hub_every', 'hub_private', 'hub_revision', 'baseline'):
            if getattr(args, name):
                raise UsageError(f'--{name.replace("_", "-")}: not without --push-to-hub USER/NAME.')
        return
    if args.hub_every is not None and args.hub_every < 1:
        raise UsageError(f'--hub-every {args.hub_every}: expected 1 or more.')
    check_name_and_token(args.push_to_hub)
    if args.baseline and not read_figures(Path(args.baseline)):
        raise DataError(f"--baseline '{args.baseline}' is no run folder with figures.")
    if (os.environ.get('RANK') or '0') == '0':
        check_token(args.push_to_hub)


def publish(args: Namespace, folder: Path, commit_message: str) -> None:
    """Publish the best weights so far; what goes wrong is logged, with the command that does it later."""
    if not args.push_to_hub:
        return
    try:
        address = push_run(
            folder,
            args.push_to_hub,
            baseline=Path(args.baseline) if args.baseline else None,
            commit_message=commit_message,
            private=args.hub_private,
            revision=args.hub_revision,
        )
        _logger.info(f'Published: {address}')
    except Exception as error:  # whatever it is, the run is whole
        reason = first_lines(error) if isinstance(error, (DataError, UsageError)) else f'not published: {error!r}'
        _logger.error(f'{without_tokens(reason)} The run goes on; to publish it later: {_later(args, folder)}')


def _later(args: Namespace, folder: Path) -> str:
    words = ['python', '-m', 'timm_hnc.hub', 'push', str(folder), args.push_to_hub]
    words += ['--private'] if args.hub_private else []
    words += ['--revision', args.hub_revision] if args.hub_revision else []
    words += ['--baseline', args.baseline] if args.baseline else []
    return shlex.join(words)
