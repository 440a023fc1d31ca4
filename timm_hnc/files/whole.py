"""Text files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: str | Path, text: str) -> None:
    r"""Write UTF-8; what a path held stays until all of the new text is on disk.

    Bytes of a file name that is no UTF-8 are escaped, as in \udce9.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not path.is_file():  # such as /dev/stdout
        _write(path, text)
        return
    unfinished = path.with_name(f'.{path.name}.new')
    try:
        _write(unfinished, text)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding='utf-8', errors='backslashreplace', newline='')
