"""Publishing a run to the Hub, which never costs the run."""

import logging
import os
import shlex
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.hub.bundle import check_baseline
from timm_hnc.hub.publish import bundled_run, check_name_and_token, check_token, publish_folder
from timm_hnc.weights.hub_errors import without_tokens

_logger = logging.getLogger(__name__)


def check_publishing(args: Namespace) -> None:
    """Refuse what could not be published, before any training.

    Raises:
        UsageError: an option of the Hub is wrong, there is no token, or the Hub does not know it.
        DataError: --baseline is no run folder.
    """
    if not args.push_to_hub:
        for name in ('hub_every', 'hub_private', 'hub_revision', 'hub_licence', 'baseline'):
            if getattr(args, name):
                raise UsageError(f'--{name.replace("_", "-")}: not without --push-to-hub USER/NAME.')
        return
    if args.hub_every is not None and args.hub_every < 1:
        raise UsageError(f'--hub-every {args.hub_every}: expected 1 or more.')
    check_name_and_token(args.push_to_hub)
    if args.baseline:
        check_baseline(Path(args.baseline))
    if (os.environ.get('RANK') or '0') == '0':
        check_token(args.push_to_hub)


class Publisher:
    """Publishes a run folder's best weights; what goes wrong is logged, with the command that does it later.

    Args:
        args: options of the run.
        folder: the run folder.
    """

    def __init__(self, args: Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self._upload: threading.Thread | None = None

    def publish_so_far(self, commit_message: str, result: dict[str, Any], with_picture: bool) -> None:
        """Publish in the background; left out while an earlier upload is under way. Training waits for the files only.

        Args:
            commit_message: of the commit.
            result: figures of these weights, as in result.json.
            with_picture: the panel in cams/ is of these weights.
        """
        if self._upload is not None and self._upload.is_alive():
            _logger.warning(f"'{commit_message}' is not published: the upload before it still goes on.")
            return
        stack = ExitStack()

        def upload(bundle: Path) -> None:
            with stack:
                self._without_harm(lambda: self._commit(bundle, commit_message))

        def start() -> None:
            bundle = stack.enter_context(self._bundle(result=result, with_picture=with_picture))
            self._upload = threading.Thread(target=upload, args=[bundle], daemon=True)
            self._upload.start()

        self._without_harm(start)

    def publish(self, commit_message: str) -> None:
        """Publish the finished run, after what is under way."""
        if not self.args.push_to_hub:
            return
        if self._upload is not None:
            self._upload.join()

        def bundle_and_commit() -> None:
            with self._bundle() as bundle:
                self._commit(bundle, commit_message)

        self._without_harm(bundle_and_commit)

    def _bundle(self, **options: Any) -> Any:
        baseline = Path(self.args.baseline) if self.args.baseline else None
        options |= {'baseline': baseline, 'licence': self.args.hub_licence}
        return bundled_run(self.folder, self.args.push_to_hub, **options)

    def _commit(self, bundle: Path, commit_message: str) -> None:
        options = {'private': self.args.hub_private, 'revision': self.args.hub_revision}
        address = publish_folder(bundle, self.args.push_to_hub, commit_message=commit_message, **options)
        _logger.info(f'Published: {address}')

    def _without_harm(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, the run is whole
            reason = first_lines(error) if isinstance(error, (DataError, UsageError)) else f'not published: {error!r}'
            _logger.error(f'{without_tokens(reason)} The run goes on; to publish it later: {self._later()}')

    def _later(self) -> str:
        args = self.args
        words = ['timm-hnc', 'push', str(self.folder), args.push_to_hub]
        words += ['--private'] if args.hub_private else []
        words += ['--revision', args.hub_revision] if args.hub_revision else []
        words += ['--licence', args.hub_licence] if args.hub_licence else []
        words += ['--baseline', args.baseline] if args.baseline else []
        return shlex.join(words)
