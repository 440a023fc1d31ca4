"""Weights onto the Hugging Face Hub, in one commit."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.hub.bundle import bundle_model, bundle_run
from timm_hnc.hub.card import CardFacts
from timm_hnc.version import __version__
from timm_hnc.weights.hub_errors import explain, may_pass, try_again

RECORDS = {'args.yaml', 'summary.csv', 'result.json', 'cams.png'}
_logger = logging.getLogger(__name__)


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = 'Add model',
    token: str | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    data_config: dict[str, Any] | None = None,
    hnc: dict[str, Any] | None = None,
    figures: dict[str, float] | None = None,
    licence: str | None = None,
) -> str:
    """Publish a model: model.safetensors, config.json and a card; plain timm loads it.

    Args:
        model: a timm model or CamModel.
        repo_id: user/name; made if it is missing.
        private: make the repository private.
        revision: branch to commit to, made if it is missing.
        create_pr: open a pull request to the main branch instead.
        commit_message: of the commit.
        token: of the Hub; that of HF_TOKEN or `hf auth login` if None.
        class_names: label names, one a class, in their order or by index.
        data_config: input size, mean, std, interpolation and crop that the weights were trained for.
        hnc: what stands in the config's `hnc` block.
        figures: for the card, such as {'top1': 73.5}.
        licence: identifier of the Hub's, such as 'apache-2.0'; the card names none if None.

    Returns:
        Address of the commit or pull request.

    Raises:
        UsageError: (a ValueError) the name is not allowed, there is no token, or the model is none of timm's.
        DataError: (a RuntimeError) the weights do not reload, or the Hub refuses or fails. Nothing is half-published.

    Example:
        >>> timm_hnc.push_to_hub(cam_model, 'user/resnet18-hnc', class_names=names)
    """
    if revision and create_pr:
        raise UsageError('revision: not together with create_pr, which is for the main branch.')
    check_name_and_token(repo_id, token)
    with TemporaryDirectory() as folder:
        facts = CardFacts(repo_id, {}, licence, _checked(figures or {}), revision=revision)
        bundle_model(model, Path(folder), facts, class_names, data_config, hnc)
        return publish_folder(
            Path(folder),
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            token=token,
        )


def push_run(
    run: Path,
    repo_id: str,
    *,
    baseline: Path | None = None,
    licence: str | None = None,
    commit_message: str = 'Add model',
    **options: Any,
) -> str:
    """Publish the best weights of a run folder with its records.

    Takes what `bundle_run` and `push_to_hub` take, and returns the address of the commit or pull request.

    Raises:
        UsageError: the name is not allowed, or there is no token.
        DataError: the run cannot be published, or the Hub refuses or fails. Nothing is half-published.
    """
    check_name_and_token(repo_id, options.get('token'))
    with bundled_run(run, repo_id, baseline=baseline, licence=licence, revision=options.get('revision')) as folder:
        return publish_folder(folder, repo_id, commit_message=commit_message, **options)


@contextmanager
def bundled_run(run: Path, repo_id: str, **options: Any) -> Iterator[Path]:
    """A temporary folder with what is published of a run; options as of `bundle_run`.

    Raises:
        DataError: the run cannot be published.
    """
    with TemporaryDirectory() as name:
        try:
            bundle_run(run, Path(name), repo_id, **options)
        except (OSError, ValueError, AttributeError, TypeError, LookupError, SafetensorError) as error:
            raise DataError(f"'{run}' cannot be published: {first_lines(error)}") from error
        yield Path(name)


def _is_replaced(name: str, repo_type: str) -> bool:
    """Whether a file that was published before, and now is not, goes: records of other weights, code of a Space."""
    return name in RECORDS if repo_type == 'model' else name.startswith('timm_hnc/') and name.endswith('.py')


def _checked(figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f'figures: {name} is {value!r}, expected a finite number.')
    return figures


def check_name_and_token(repo_id: str, token: str | None = None) -> None:
    """Refuse what cannot be published before any work is done.

    Raises:
        UsageError: the name is not allowed, there is no token, or the client is told to stay offline.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count('/') != 1:
            raise ValueError(repo_id)
    except ValueError as error:
        raise UsageError(
            f"'{repo_id}' is no name for a repository of the Hub: expected user/name of letters, digits, '-', '_', '.'."
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"'{repo_id}' cannot be published while HF_HUB_OFFLINE is set.")
    if token is None and get_token() is None:
        raise UsageError(f"no token to publish '{repo_id}': log in with `hf auth login`, or set HF_TOKEN.")


def check_account(repo_id: str, private: bool) -> None:
    """Ask the Hub what would end a publication, before hours of training; if it cannot be reached, that is for later.

    Raises:
        UsageError: it does not know the token, or one that may not write there, or cannot be asked at all; or the
            repository is to be private and is public.
    """
    api = HfApi()
    try:
        account = api.whoami()
        is_public = private and api.repo_exists(repo_id) and not api.repo_info(repo_id).private
    except Exception as error:
        if may_pass(error):
            _logger.warning(explain(error, repo_id))
            return
        raise UsageError(explain(error, repo_id)) from error
    # of a token with rights of its own the Hub does not say where it may write
    role = account.get('auth', {}).get('accessToken', {}).get('role')
    names = [account['name'], *(each['name'] for each in account.get('orgs', ()))]
    if role == 'read' or (role == 'write' and repo_id.partition('/')[0] not in names):
        raise UsageError(f"the token of '{account['name']}' has no right to write to '{repo_id}'.")
    if is_public:
        raise UsageError(f"--hub-private: '{repo_id}' exists already and is public.")


def publish_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = 'Add model',
    token: str | None = None,
    repo_type: Literal['model', 'space'] = 'model',
) -> str:
    """Commit the files of a folder to a repository or a Space of Gradio's, all or none; else as `push_to_hub`.

    Raises:
        DataError: the Hub refuses or fails; the branch is as it was, or has the whole commit.
    """
    commit_message = commit_message or 'Add model'
    api = HfApi(token=token, library_name='timm_hnc', library_version=__version__)
    name = f'{repo_id}@{revision}' if revision else repo_id
    name = f'spaces/{name}' if repo_type == 'space' else name

    def commit() -> str:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*')) if path.is_file()}
        there = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
        left = {name for name in there if name not in files and _is_replaced(name, repo_type)}
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(left)]
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            repo_type=repo_type,
        )
        return str(done.pr_url or done.commit_url)

    try:
        sdk = 'gradio' if repo_type == 'space' else None
        try_again(
            lambda: api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk), name
        )
        if private and not try_again(lambda: api.repo_info(repo_id, repo_type=repo_type), name).private:
            raise DataError(f"not published: '{repo_id}' exists already and is public.")
        if revision:
            try_again(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), name)
        # an answer that was lost may have opened the pull request: a second attempt would open a second one
        return commit() if create_pr else try_again(commit, name)
    except DataError:
        raise
    except Exception as error:  # of the client and of its HTTP library
        raise DataError(f'not published: {explain(error, name, writing=True)}') from error
