"""Rows of figures that a script adds to a CSV file as it finds them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_hnc.files.tables import read_csv


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none where there is no file."""
    return read_csv(path) if path.is_file() else []


def add_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file, which begins with the names of its columns."""
    fresh = not (path.is_file() and path.stat().st_size)
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        if fresh:
            writer.writeheader()
        writer.writerow(row)
