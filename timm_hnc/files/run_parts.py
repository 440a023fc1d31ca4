"""The parts of a run that went on with other options than it began with, as its folder keeps them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timm_hnc.errors import DataError
from timm_hnc.files.tables import json_text
from timm_hnc.files.whole import write_whole

PARTS = 'parts.json'


@dataclass
class Part:
    """What a part of a run was trained with.

    Args:
        epoch: the epoch that it began in.
        update: updates of that epoch that were done before.
        options: those that matter, and what is known of data and machine.
        changed: [before, now] of what differs from the part before, by flag.
        exact: the run ends as one that was never interrupted, as far as the change goes.
    """

    epoch: int = 0
    update: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, list[Any]] = field(default_factory=dict)
    exact: bool = True

    @property
    def where(self) -> str:
        """Where it began."""
        return f'epoch {self.epoch}' + (f', update {self.update}' if self.update else '')

    @property
    def changes(self) -> str:
        """What differs from the part before, such as '--lr 0.1 -> 0.01'."""
        return ', '.join(f'{name} {_text(before)} -> {_text(now)}' for name, (before, now) in self.changed.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return 'on' if value else 'off'
    if isinstance(value, dict):
        value = [f'{name}={each}' for name, each in value.items()]
    if isinstance(value, list):
        value = ' '.join(map(str, value))
    return 'none' if value in (None, '') else str(value)


def write_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Write parts.json of a run folder; a run whose options stayed has none."""
    if len(parts) > 1:
        write_whole(folder / PARTS, json_text([asdict(part) for part in parts]))
    else:
        (folder / PARTS).unlink(missing_ok=True)


def read_parts(folder: Path) -> list[Part]:
    """The parts of a run whose options changed, in their order; none where they stayed."""
    path = folder / PARTS
    if not path.is_file():
        return []
    try:
        parts = [Part(**part) for part in json.loads(path.read_text(encoding='utf-8'))]
        _ = [(part.where, part.changes) for part in parts]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    return parts
