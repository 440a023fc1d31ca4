"""Texts as files, in UTF-8."""

import os
import shutil
from pathlib import Path

from timm_hnc.files.manifest import sync


def write_text(path: str | Path, text: str) -> None:
    r"""Write UTF-8, with the ends of lines that the text has.

    Bytes of a file name that is no UTF-8 are escaped, as in \udce9.

    Raises:
        OSError: it cannot be written.
    """
    Path(path).write_text(text, encoding='utf-8', errors='backslashreplace', newline='')


def write_whole(path: Path, text: str) -> None:
    """The same, of a file that a run needs: what it held stays until all of the new text is on disk.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f'.{path.name}.new')
    try:
        write_text(unfinished, text)
        if path.exists():
            shutil.copymode(path, unfinished)
        sync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
