"""Rows of figures as CSV and JSON files."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the names that any of them has; numbers in full.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that people can read.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).write_text(json.dumps(content, indent=2) + '\n')


def write_both(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write path.csv and path.json.

    Raises:
        OSError: a file cannot be written.
    """
    write_csv(path.with_suffix('.csv'), rows)
    write_json(path.with_suffix('.json'), rows)
