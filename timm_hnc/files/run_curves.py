"""What a run folder tells of its training: options, and figures by epoch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_hnc.errors import DataError
from timm_hnc.files.run_options import read_options
from timm_hnc.files.tables import read_csv

_ACCURACIES = ('eval_top1', 'eval_map')


@dataclass(frozen=True)
class RunCurves:
    """A run's training.

    Args:
        name: of its folder.
        options: of args.yaml.
        rows: of summary.csv, an epoch each.
    """

    name: str
    options: dict[str, Any]
    rows: list[dict[str, float]]

    @property
    def accuracy(self) -> float | None:
        """Top-1 or mAP of the last epoch, in percent; None where there is none, or training came to no finite one."""
        last = self.rows[-1]
        return next((last[column] for column in _ACCURACIES if math.isfinite(last.get(column, math.nan))), None)


def read_run(folder: Path) -> RunCurves:
    """Read args.yaml and summary.csv of a run folder.

    Raises:
        DataError: it is no run folder, has no complete epoch, or was not written by train.py.
    """
    options = read_options(folder)
    try:
        texts = read_csv(folder / 'summary.csv')
        rows = [{name: float(value) for name, value in row.items() if value} for row in texts]
    except FileNotFoundError as error:
        raise DataError(f"'{folder}' has no summary.csv: no epoch is complete, or it was imported.") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"'{folder}' is no run folder of train.py: {error}") from error
    if not rows or 'epoch' not in rows[0] or 'train_loss' not in rows[0]:
        raise DataError(f"'{folder}' has no complete epoch, or is of another version: its summary.csv has no figures.")
    name = folder.resolve().name.encode('utf-8', 'replace').decode()  # any bytes can be a folder's name
    return RunCurves(name, options, rows)
