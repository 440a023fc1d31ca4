"""Repositories of the test Hub on disk: blobs by hash, commits that are complete trees, refs that point at commits.

    <folder>/<namespace>/<name>/repository.json      private, gated, refs: full ref name -> commit
                                blobs/<sha256>       contents, each written once
                                commits/<sha>.json   a complete tree: path -> blob

A path inside a repository is only ever a key in a tree, never a path on disk. A commit exists as a whole before a ref
points at it, and repository.json is replaced in one step: a reader sees the old commit or the new one.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r'(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?<![.-])')
_SHA1 = re.compile(r'[0-9a-f]{40}')
_SHA256 = re.compile(r'[0-9a-f]{64}')
MAIN = 'refs/heads/main'


@dataclass(frozen=True)
class Blob:
    """A file in a tree. `oid` is git's blob id, of the LFS pointer where the file is an LFS file."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub calls the version of a file: sha256 for LFS files, git's id for the others."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A complete tree under a name."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, Blob]


def git_id(data: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def lfs_blob(sha256: str, size: int) -> Blob:
    return Blob(sha256, size, git_id(f'oid sha256:{sha256}\nsize {size}\n'.encode()), lfs=True)


def write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.{threading.get_ident()}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)


class Repository:
    """One repository's folder. Nothing is kept in memory: a second server on the same folder goes on with it."""

    def __init__(self, repo_id: str, folder: Path):
        self.repo_id = repo_id
        self.folder = folder

    @property
    def namespace(self) -> str:
        return self.repo_id.removeprefix('spaces/').partition('/')[0]

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / 'repository.json').read_bytes())

    @property
    def refs(self) -> dict[str, str]:
        """Full ref names (refs/heads/main, refs/tags/v1, refs/pr/1) and the commits that they point at."""
        return self.settings['refs']

    def change(self, refs: dict[str, str | None] | None = None, **settings: Any) -> None:
        """Replace settings, set refs, and drop those that are None."""
        new = {'private': False, 'gated': False, 'refs': {}}
        if (self.folder / 'repository.json').is_file():
            new = self.settings
        new |= settings
        new['refs'] = {name: sha for name, sha in (new['refs'] | (refs or {})).items() if sha}
        write_atomically(self.folder / 'repository.json', json.dumps(new).encode())

    def find_ref(self, revision: str) -> str | None:
        """The full name of the branch, tag or pull request that a revision names."""
        refs = self.refs
        names = (f'refs/heads/{revision}', f'refs/tags/{revision}', revision)
        return next((name for name in names if name in refs), None)

    def find_commit(self, revision: str) -> Commit | None:
        """The commit of a branch, tag, refs/pr/N or complete commit id; None where there is none."""
        name = self.find_ref(revision)
        sha = self.refs[name] if name else revision
        path = self.folder / 'commits' / f'{sha}.json'
        if not _SHA1.fullmatch(sha) or not path.is_file():
            return None
        content = json.loads(path.read_bytes())
        tree = {path: Blob(**blob) for path, blob in content.pop('tree').items()}
        return Commit(sha=sha, tree=tree, **content)

    def history(self, revision: str) -> Iterator[Commit]:
        """A commit and its ancestors, the newest first."""
        commit = self.find_commit(revision)
        while commit:
            yield commit
            commit = self.find_commit(commit.parent) if commit.parent else None

    def blob_path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f'not a sha256: {sha256!r}')
        return self.folder / 'blobs' / sha256

    def has_blob(self, sha256: str) -> bool:
        return self.blob_path(sha256).is_file()

    def add_blob(self, data: bytes, lfs: bool = False) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        write_atomically(self.blob_path(sha256), data)
        return lfs_blob(sha256, len(data)) if lfs else Blob(sha256, len(data), git_id(data), lfs=False)

    def add_commit(
        self, ref: str, parent: str | None, tree: dict[str, Blob], title: str, message: str = '', author: str = ''
    ) -> Commit:
        """Write a complete commit, then point a ref at it."""
        date = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime())
        content = {'parent': parent, 'title': title, 'message': message, 'author': author, 'date': date}
        content['tree'] = {path: asdict(blob) for path, blob in sorted(tree.items())}
        data = json.dumps(content).encode()
        sha = hashlib.sha1(data + str(time.time_ns()).encode()).hexdigest()
        write_atomically(self.folder / 'commits' / f'{sha}.json', data)
        self.change(refs={ref: sha})
        return Commit(sha, parent, title, message, author, date, tree)

    def contents(self, revision: str) -> dict[str, bytes]:
        commit = self.find_commit(revision)
        if commit is None:
            raise KeyError(f'{self.repo_id} has no revision {revision!r}, only {sorted(self.refs)}')
        return {path: self.blob_path(blob.sha256).read_bytes() for path, blob in commit.tree.items()}


class Storage:
    """All repositories, and the lock that whoever changes one holds."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def allowed(repo_id: str) -> bool:
        """Whether a repository may have this name; no other reaches the disk."""
        parts = repo_id.removeprefix('spaces/').split('/')
        return len(parts) == 2 and all(_NAME.fullmatch(part) for part in parts) and not repo_id.endswith('.git')

    def find(self, repo_id: str) -> Repository | None:
        if not self.allowed(repo_id):
            return None
        repository = Repository(repo_id, self.folder / repo_id)
        return repository if (repository.folder / 'repository.json').is_file() else None

    def create(self, repo_id: str, files: dict[str, bytes], lfs: set[str], **settings: Any) -> Repository:
        """A repository with one commit; if there is one of that name, a commit more, of just these files."""
        if not self.allowed(repo_id):
            raise ValueError(f'{repo_id!r} cannot name a repository; it is namespace/name')
        with self.lock:
            repository = Repository(repo_id, self.folder / repo_id)
            tree = {path: repository.add_blob(data, path in lfs) for path, data in files.items()}
            repository.change(**settings)
            parent = repository.refs.get(MAIN)
            title = 'another commit' if parent else 'initial commit'
            repository.add_commit(MAIN, parent, tree, title, author=repository.namespace)
            return repository

    def delete(self, repository: Repository) -> None:
        with self.lock:
            shutil.rmtree(repository.folder)
