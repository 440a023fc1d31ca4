"""Weights onto the Hugging Face Hub, in one commit."""

import logging
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from timm_hnc.errors import DataError, UsageError
from timm_hnc.hub.bundle import bundle_model, bundle_run
from timm_hnc.hub.card import CardFacts
from timm_hnc.hub.problems import explain, is_of_the_hub, may_pass, try_again

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
    class_names: list[str] | None = None,
    data_config: dict[str, Any] | None = None,
    hnc: dict[str, Any] | None = None,
    figures: dict[str, float] | None = None,
    licence: str = 'apache-2.0',
) -> str:
    """Publish a model: model.safetensors, config.json and a card; plain timm loads it.

    Args:
        model: a timm model or CamModel.
        repo_id: user/name; made if it is missing.
        private: make the repository private.
        revision: branch to commit to, made if it is missing.
        create_pr: open a pull request instead.
        commit_message: of the commit.
        token: of the Hub; that of HF_TOKEN or `hf auth login` if None.
        class_names: label names, one a class.
        data_config: input size, mean, std, interpolation and crop that the weights were trained for.
        hnc: what stands in the config's `hnc` block.
        figures: for the card, such as {'top1': 73.5}.
        licence: identifier of the Hub's.

    Returns:
        Address of the commit or pull request.

    Raises:
        UsageError: (a ValueError) the name is not allowed, or there is no token.
        DataError: (a RuntimeError) the weights do not reload, or the Hub refuses or fails. Nothing is half-published.

    Example:
        >>> timm_hnc.push_to_hub(cam_model, 'user/resnet18-hnc', class_names=names)
    """
    check_name_and_token(repo_id, token)
    with TemporaryDirectory() as folder:
        facts = CardFacts(repo_id, {}, licence, figures or {})
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
    licence: str = 'apache-2.0',
    commit_message: str = 'Add model',
    **options: Any,
) -> str:
    """Publish the best weights of a run folder with its records.

    Args:
        run: run folder.
        repo_id: user/name; made if it is missing.
        baseline: run folder whose figures stand beside those of the run.
        licence: identifier of the Hub's.
        commit_message: of the commit.
        **options: private, revision, create_pr and token, as for `push_to_hub`.

    Returns:
        Address of the commit or pull request.

    Raises:
        UsageError: the name is not allowed, or there is no token.
        DataError: the run cannot be published, or the Hub refuses or fails. Nothing is half-published.
    """
    check_name_and_token(repo_id, options.get('token'))
    with TemporaryDirectory() as folder:
        bundle_run(run, Path(folder), repo_id, baseline, licence)
        return publish_folder(Path(folder), repo_id, commit_message=commit_message, **options)


def check_name_and_token(repo_id: str, token: str | None = None) -> None:
    """Refuse what cannot be published before any work is done.

    Raises:
        UsageError: the name is not allowed, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count('/') != 1:
            raise ValueError(repo_id)
    except ValueError as error:
        raise UsageError(
            f"'{repo_id}' is no name for a repository of the Hub: expected user/name of letters, digits, '-', '_', '.'."
        ) from error
    if token is None and get_token() is None:
        raise UsageError(f"no token to publish '{repo_id}': log in with `hf auth login`, or set HF_TOKEN.")


def check_token(repo_id: str) -> None:
    """Ask the Hub who we are, before hours of training; if it cannot be reached, that is for later.

    Raises:
        UsageError: it does not know the token.
    """
    try:
        HfApi().whoami()
    except Exception as error:
        if may_pass(error) or not is_of_the_hub(error):
            _logger.warning(explain(error, repo_id))
            return
        raise UsageError(explain(error, repo_id)) from error


def publish_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = 'Add model',
    token: str | None = None,
) -> str:
    """Commit the files of a folder to a repository, all or none.

    Args:
        folder: with README.md, config.json, model.safetensors ...
        repo_id: user/name; made if it is missing.
        private: make the repository private.
        revision: branch to commit to, made if it is missing.
        create_pr: open a pull request instead.
        commit_message: of the commit.
        token: of the Hub; that of HF_TOKEN or `hf auth login` if None.

    Returns:
        Address of the commit or pull request.

    Raises:
        DataError: the Hub refuses or fails; the branch is as it was, or has the whole commit.
    """
    api = HfApi(token=token, library_name='timm_hnc', library_version=version('timm_hnc'))
    name = f'{repo_id}@{revision}' if revision else repo_id

    def commit() -> str:
        operations = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob('*'))
            if path.is_file()
        ]
        done = api.create_commit(
            repo_id, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
        )
        return str(done.pr_url or done.commit_url)

    try:
        try_again(lambda: api.create_repo(repo_id, private=private, exist_ok=True), name)
        if revision and not create_pr:
            try_again(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), name)
        # an answer that was lost may have opened the pull request: a second attempt would open a second one
        return commit() if create_pr else try_again(commit, name)
    except Exception as error:  # of the client and of its HTTP library
        if not is_of_the_hub(error):
            raise
        raise DataError(f'not published: {explain(error, name)}') from error
