"""Pages of the site that stand elsewhere in the repository: README, the changelog and the like, and their pictures."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# a file of the repository, and the page that the site makes of it
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'benchmarks/README.md': 'benchmarks.md',
}
PICTURES = tuple(f'benchmarks/results/{name}.png' for name in ('quickstart_cams', 'decoy_cams', 'evidence/evidence'))
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r'(?<=\]\()(?!\w+:|#)([^)#\s]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to the files of docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    for picture in PICTURES:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: object) -> str:
    """Links between files of the repository become links between pages."""
    uri = page.file.src_uri
    source = _SOURCES.get(uri, f'docs/{uri}')

    def target(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return posixpath.relpath(PAGES.get(path, path.removeprefix('docs/')), posixpath.dirname(uri) or '.')

    return _LINK.sub(target, markdown)
