"""What the site shows of the rest of the repository: README, the changelog and the like, and what pages link to."""

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
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r'(?<=\]\()(?!\w+:|#)([^)#\s]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to the files of docs/: the named ones, then pictures, tables and rows that a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    unread = list(files.documentation_pages())
    while unread:
        page = unread.pop()
        for link in _LINK.findall(page.content_string):
            uri = _site_path(link, page.src_uri)
            if files.get_file_from_path(uri) is None and (ROOT / uri).is_file():
                files.append(linked := File.generated(config, uri, abs_src_path=str(ROOT / uri)))
                unread += [linked] * linked.is_documentation_page()
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: object) -> str:
    """Links between files of the repository become links between pages."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri) or '.'
    return _LINK.sub(lambda link: posixpath.relpath(_site_path(link[1], uri), folder), markdown)


def _site_path(link: str, page: str) -> str:
    """Where the site has the file of the repository that `link` on `page` leads to."""
    source = _SOURCES.get(page, page if (ROOT / page).is_file() else f'docs/{page}')
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return PAGES.get(path, path.removeprefix('docs/'))
