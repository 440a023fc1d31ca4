"""Whether the files of a folder are those that were written: sizes and SHA-256, in a file that is written last."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from timm_hnc.errors import DataError

MANIFEST = 'manifest.json'


def write_manifest(folder: Path) -> None:
    """Bring every file of a folder to the disk, then a manifest of them, then the folder itself."""
    files = {}
    for path in sorted(path for path in folder.rglob('*') if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(folder).as_posix()] = {'size': path.stat().st_size, 'sha256': digest_of(path)}
        sync(path)
    text = json.dumps({'files': files, 'sha256': _digest_of_all(files)}, indent=2)
    (folder / MANIFEST).write_text(f'{text}\n', encoding='utf-8')
    sync(folder / MANIFEST)
    for path in (*(path for path in folder.rglob('*') if path.is_dir()), folder):
        sync(path)


def check_manifest(folder: Path, part: str = '') -> None:
    """Refuse a folder whose files, or those whose path begins with `part`, are not those of its manifest."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        files = content['files']
        whole = _digest_of_all(files) == content['sha256']
    except FileNotFoundError as error:
        raise DataError(f"'{path}' is missing: the folder was not written to its end.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' is damaged.") from error
    if not whole:
        raise DataError(f"'{path}' is damaged.")
    for name, expected in files.items():
        if not name.startswith(part):
            continue
        try:
            same = (folder / name).stat().st_size == expected['size'] and digest_of(folder / name) == expected['sha256']
        except OSError as error:
            raise DataError(f"'{folder / name}' is missing or cannot be read ({error}).") from error
        if not same:
            raise DataError(f"'{folder / name}' is damaged: it is not what was written.")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _digest_of_all(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
