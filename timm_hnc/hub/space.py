"""The page of `timm-hnc demo` as a Space of the Hub, for weights that are published there."""

import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader

import timm_hnc
from timm_hnc.data.naflex import NaFlexOptions
from timm_hnc.errors import UsageError
from timm_hnc.hub.publish import publish_folder

PACKAGE = 'timm_hnc'
_OLDEST_GRADIO = '6.20.0'


def push_space(
    repo_id: str,
    *,
    multi_label: bool = False,
    naflex: NaFlexOptions | None = None,
    mode: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Publish the page as a Space that has the name of a published model, whose weights it loads when it starts.

    `mode` is that of `Subject`.

    Raises:
        DataError: the Hub refuses or fails; the Space is as it was, or has the whole commit.
    """
    with TemporaryDirectory() as folder:
        write_space(Path(folder), repo_id, multi_label, naflex, revision, mode)
        return publish_folder(
            Path(folder), repo_id, private=private, commit_message='Add page', token=token, repo_type='space'
        )


def write_space(
    folder: Path,
    repo_id: str,
    multi_label: bool,
    naflex: NaFlexOptions | None = None,
    revision: str | None = None,
    mode: str | None = None,
) -> None:
    """Write what a Space is made of: README.md, app.py, requirements.txt, and this package, which no index has."""
    templates = Environment(loader=PackageLoader('timm_hnc.hub'), trim_blocks=True, keep_trailing_newline=True)
    facts = {
        'repo_id': repo_id,
        'name': repo_id.partition('/')[2],
        'model': f'hf-hub:{repo_id}@{revision}' if revision else f'hf-hub:{repo_id}',
        'multi_label': multi_label,
        'naflex': repr(naflex) if naflex and naflex.naflex_loader else '',
        'gradio': _gradio_version(),
        'mode': mode,
    }
    for template, name in (('space.md', 'README.md'), ('space_app.txt', 'app.py')):
        (folder / name).write_text(templates.get_template(template).render(facts), encoding='utf-8')
    (folder / 'requirements.txt').write_text('\n'.join([*requirements(), '']), encoding='utf-8')
    package = Path(timm_hnc.__file__).parent
    shutil.copytree(package, folder / PACKAGE, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))


def requirements() -> list[str]:
    """The packages that this one needs.

    Raises:
        UsageError: it is not installed, and does not say.
    """
    try:
        return [text for text in requires(PACKAGE) or () if 'extra ==' not in text]
    except PackageNotFoundError as error:
        raise UsageError(
            '--space: what a Space has to install, the installed package says: pip install -e . in the clone.'
        ) from error


def _gradio_version() -> str:
    try:
        return version('gradio')
    except PackageNotFoundError:
        return _OLDEST_GRADIO
