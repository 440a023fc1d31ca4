"""Rows of figures as CSV and JSON files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_hnc.files.whole import write_text


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the names that any of them has; numbers in full."""
    write_text(path, csv_text(rows))


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV file, as texts."""
    with Path(path).open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `write_csv` writes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that people can read."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(without_nan(content), indent=2) + '\n'


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON where the name of the file ends so, or else as CSV, which leaves out values that are lists."""
    if Path(path).suffix.lower() == '.json':
        write_json(path, rows)
    else:
        write_csv(path, [{name: value for name, value in row.items() if not isinstance(value, list)} for row in rows])


def without_nan(content: Any) -> Any:
    """The same with null for numbers that are not finite: JSON has none of those."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(each) for each in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_both(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write path.csv and path.json."""
    write_csv(path.with_suffix('.csv'), rows)
    write_json(path.with_suffix('.json'), rows)
