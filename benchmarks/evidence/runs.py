"""Runs of a regime: those that choose the setting of a row, and those that are measured with it."""

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables.plan import ROOT, Cell
from tables.runs import Plan, Run

from evidence.regimes import Regime, Row
from timm_hnc.errors import DataError


@dataclass(frozen=True)
class Setting:
    """What a row chooses: `--hnc-weight` and `--hnc-topk` as train.py takes them."""

    weight: str
    topk: int

    @property
    def flags(self) -> tuple[str, ...]:
        """Of train.py."""
        return '--hnc-weight', self.weight, '--hnc-topk', str(self.topk)

    @property
    def name(self) -> str:
        """Part of a run's name."""
        return f'-{self.weight.replace(":", "-")}-k{self.topk}'


@dataclass(frozen=True)
class TrialRun(Run):
    """A run on a part of the training images, evaluated on the rest of them."""

    @property
    def next_step(self) -> str | None:
        """'train', or None for a complete run."""
        return None if (self.folder / 'result.json').is_file() else 'train'


@dataclass(frozen=True)
class MeasuredRun(Run):
    """A run on all training images, evaluated on the test images.

    Args:
        regime: its data and network.
        data_dir: folder of parquet files.
    """

    regime: Regime
    data_dir: str

    @property
    def next_step(self) -> str | None:
        """'train', 'figures', or None for a complete run."""
        if not (self.folder / 'result.json').is_file():
            return 'train'
        return None if self.figures_file.is_file() else 'figures'

    def command(self, step: str) -> list[str]:
        """The script of a step and its arguments."""
        if step == 'train':
            return super().command(step)
        script = str(ROOT / 'benchmarks' / 'evidence.py')
        return [script, 'figures', self.regime.key, '--data-dir', self.data_dir, '--run', str(self.folder)]

    @property
    def figures_file(self) -> Path:
        """Where the figures of a complete run lie."""
        return self.folder / 'figures.json'


@dataclass(frozen=True)
class Stage:
    """Runs of a regime in a folder.

    Args:
        regime: what they share.
        folder: of the regime.
        data_dir: folder of parquet files.
        flags: of train.py, that name the data and the weights to begin with.
        extra: of train.py, from the command line; they win.
    """

    regime: Regime
    folder: Path
    data_dir: str
    flags: Sequence[str] = ()
    extra: Sequence[str] = ()

    def trials(self, row: Row, settings: Iterable[Setting]) -> list[TrialRun]:
        """Runs that show how good settings are on held-out training images."""
        plan = self._plan(self.folder / 'trials', '--holdout', str(self.regime.holdout))
        cells = [self._cell(row, setting) for setting in settings]
        return [TrialRun(plan, cell, seed) for seed in range(self.regime.choice_seeds) for cell in cells]

    def measured(self, row: Row, setting: Setting | None, seeds: int) -> list[MeasuredRun]:
        """Runs on all training images, one a seed."""
        plan, cell = self._plan(self.folder), self._cell(row, setting)
        return [MeasuredRun(plan, cell, seed, self.regime, self.data_dir) for seed in range(seeds)]

    def _plan(self, folder: Path, *flags: str) -> Plan:
        epochs = self.regime.flags[self.regime.flags.index('--epochs') + 1]
        shared = (*self.flags, '--train-split', self.regime.train_split, *flags, '--val-interval', epochs)
        return Plan(folder, shared, self.extra, self.regime.test_split)

    def _cell(self, row: Row, setting: Setting | None) -> Cell:
        name, flags = (setting.name, setting.flags) if setting else ('', ())
        return Cell(row.key, '', f'{row.key}{name}', (*self.regime.flags, *row.flags, *flags))


def last_figure(run: Run, metric: str) -> float:
    """A figure of the last epoch, in %.

    Raises:
        DataError: the run does not hold it.
    """
    return float(last_row(run)[f'eval_{metric}'])


def last_row(run: Run) -> dict[str, Any]:
    """What summary.csv says of the last epoch.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with (run.folder / 'summary.csv').open() as file:
            return list(csv.DictReader(file))[-1]
    except (OSError, IndexError) as error:
        raise DataError(f'{run.name} has no figures that can be read: {error!r}.') from error


class Choices:
    """The setting of every row; one that has been chosen stays.

    Args:
        stage: whose trials are looked at.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.path = stage.folder / 'chosen.json'
        self.chosen: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def setting(self, row: Row) -> Setting | None:
        """What was chosen for a row, None where there is nothing to choose or nothing chosen yet."""
        found = self.chosen.get(row.key)
        return Setting(found['weight'], found['topk']) if found else None

    def missing(self, rows: Iterable[Row]) -> list[TrialRun]:
        """Trials that are to be run before more can be chosen: weights with the first k, then other k."""
        return [run for row in rows for run in self._needed(row) if run.next_step]

    def _needed(self, row: Row) -> list[TrialRun]:
        if not row.weights or row.key in self.chosen:
            return []
        first = [Setting(weight, row.topks[0]) for weight in row.weights]
        runs = self.stage.trials(row, first)
        if any(run.next_step for run in runs):
            return runs
        best = max(first, key=lambda setting: self._held_out(row, setting))
        return self.stage.trials(row, [Setting(best.weight, topk) for topk in row.topks[1:]])

    def choose(self, rows: Iterable[Row]) -> None:
        """Keep the best setting of every row whose trials are complete."""
        for row in rows:
            if not row.weights or row.key in self.chosen or any(run.next_step for run in self._needed(row)):
                continue
            tried = self._tried(row)
            best = max(tried, key=lambda setting: tried[setting])
            held_out = {f'{setting.weight} k{setting.topk}': value for setting, value in tried.items()}
            self.chosen[row.key] = {'weight': best.weight, 'topk': best.topk, 'held_out': held_out}
        self.path.write_text(f'{json.dumps(self.chosen, indent=2)}\n')

    def _tried(self, row: Row) -> dict[Setting, float]:
        """Means of held-out figures, over seeds, of all complete settings of a row."""
        settings = [Setting(weight, topk) for topk in row.topks for weight in row.weights]
        complete = [one for one in settings if not any(run.next_step for run in self.stage.trials(row, [one]))]
        return {setting: self._held_out(row, setting) for setting in complete}

    def _held_out(self, row: Row, setting: Setting) -> float:
        return statistics.mean(last_figure(run, self.stage.regime.metric) for run in self.stage.trials(row, [setting]))
