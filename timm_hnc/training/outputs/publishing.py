"""Publishing a run to the Hub, which never costs the run."""

import logging
import shlex
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.hub.bundle import check_baseline
from timm_hnc.hub.publish import bundled_run, check_account, check_name_and_token, publish_folder
from timm_hnc.launcher import is_first_process
from timm_hnc.training.setup.output_options import HubOptions
from timm_hnc.weights.hub_errors import without_tokens

_logger = logging.getLogger(__name__)


def check_publishing(options: HubOptions) -> None:
    """Refuse what could not be published, before any training.

    Raises:
        UsageError: there is no token, or the Hub does not know it or would not take what is published with it.
        DataError: --baseline is no run folder.
    """
    if not options.push_to_hub:
        return
    check_name_and_token(options.push_to_hub)
    if options.baseline:
        check_baseline(Path(options.baseline))
    if is_first_process():
        check_account(options.push_to_hub, options.hub_private)


class Publisher:
    """Publishes a run folder's best weights; what goes wrong is logged, with the command that does it later."""

    def __init__(self, options: HubOptions, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.repo_id = options.push_to_hub or ''
        self._upload: threading.Thread | None = None

    def publish_so_far(self, commit_message: str, result: dict[str, Any], with_picture: bool) -> None:
        """Publish in the background, but not while an upload is under way. Training waits for the files only."""
        if self._upload is not None and self._upload.is_alive():
            _logger.warning(f"'{commit_message}' is not published: the upload before it still goes on.")
            return
        stack = ExitStack()

        def upload(bundle: Path) -> None:
            with stack, self._without_harm():
                self._commit(bundle, commit_message)

        with self._without_harm():
            bundle = stack.enter_context(self._bundle(result=result, with_picture=with_picture))
            self._upload = threading.Thread(target=upload, args=[bundle], daemon=True)
            self._upload.start()

    def publish(self, commit_message: str) -> None:
        """Publish the finished run, after what is under way."""
        if not self.repo_id:
            return
        if self._upload is not None:
            self._upload.join()

        with self._without_harm(), self._bundle() as bundle:
            self._commit(bundle, commit_message)

    def _bundle(self, **options: Any) -> Any:
        baseline = Path(self.options.baseline) if self.options.baseline else None
        options |= {'baseline': baseline, 'licence': self.options.hub_licence, 'revision': self.options.hub_revision}
        return bundled_run(self.folder, self.repo_id, **options)

    def _commit(self, bundle: Path, commit_message: str) -> None:
        private, revision = self.options.hub_private, self.options.hub_revision
        address = publish_folder(
            bundle, self.repo_id, commit_message=commit_message, private=private, revision=revision
        )
        _logger.info(f'Published: {address}')

    @contextmanager
    def _without_harm(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the run is whole
            reason = first_lines(error) if isinstance(error, (DataError, UsageError)) else f'not published: {error!r}'
            _logger.error(f'{without_tokens(reason)} The run goes on; to publish it later: {self._later()}')

    def _later(self) -> str:
        options = self.options
        words = ['timm-hnc', 'push', str(self.folder), self.repo_id]
        words += ['--private'] if options.hub_private else []
        words += ['--revision', options.hub_revision] if options.hub_revision else []
        words += ['--licence', options.hub_licence] if options.hub_licence else []
        words += ['--baseline', options.baseline] if options.baseline else []
        return shlex.join(words)
