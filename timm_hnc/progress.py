"""Progress bars, for whatever takes longer than a moment."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from accelerate.utils import tqdm

T = TypeVar('T')


def progress(each: Iterable[T], unit: str, total: int | None = None, description: str | None = None) -> Iterator[T]:
    """The same things, with a bar on the terminal of the main process; none where the output is a file."""
    silent = not sys.stderr.isatty()
    return tqdm(each, total=total, unit=unit, desc=description, disable=silent, leave=False)
