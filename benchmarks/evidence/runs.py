"""Runs of a regime: those that choose the setting of a row, and those that are measured with it."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tables.plan import ROOT, Cell
from tables.runs import Plan, Run

from evidence.regimes import Regime, Row
from timm_hnc.errors import DataError
from timm_hnc.files.tables import read_csv
from timm_hnc.weights.saving import find_weights

FIRST_SEED = 10  # of what is measured; settings are chosen with seeds from 0 on
_WIDER = 2  # weights tried beyond a row's largest; below its smallest lies the baseline
_STEP = 3  # from one to the next


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

    def at(self, topk: int) -> 'Setting':
        """The same pull on another number of maps: HNC is their sum. A weight that follows does so by itself."""
        weight = self.weight if ':' in self.weight else f'{float(self.weight) * self.topk / topk:g}'
        return Setting(weight, topk)

    def stronger(self) -> 'Setting':
        """The next larger weight."""
        name, colon, value = self.weight.rpartition(':')
        return Setting(f'{name}{colon}{_STEP * float(value):g}', self.topk)

    def __str__(self) -> str:
        return f'{self.weight}, k {self.topk}'


@dataclass(frozen=True)
class MeasuredRun(Run):
    """A run on all training images, evaluated on the test images.

    Args:
        regime: its data and network.
        data_dir: folder of parquet files.
        teacher: the run that it learns from, None for one that learns from none.
    """

    regime: Regime
    data_dir: str
    teacher: 'MeasuredRun | None' = None

    @property
    def lacks_teacher(self) -> bool:
        """Whether it is still to be trained, and its teacher is not complete or has no weights here."""
        if self.next_step != 'train' or self.teacher is None:
            return False
        return self.teacher.next_step == 'train' or find_weights(self.teacher.folder) is None

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
        extra: of train.py, from the command line; they win, but for the seed.
        failed: what went wrong, by name of the run.
    """

    regime: Regime
    folder: Path
    data_dir: str
    flags: Sequence[str] = ()
    extra: Sequence[str] = ()
    failed: dict[str, str] = field(default_factory=dict, compare=False)
    _checked: set[Path] = field(default_factory=set, compare=False)

    def trials(self, row: Row, setting: Setting | None) -> list[Run]:
        """Runs that show how good a setting is on held-out training images, one a seed."""
        plan = self._plan(self.folder / 'trials', '--holdout', str(self.regime.holdout))
        return [Run(plan, self._cell(row, setting), seed) for seed in range(self.regime.choice_seeds)]

    def measured(self, row: Row, setting: Setting | None, seeds: int) -> list[MeasuredRun]:
        """Runs on all training images, one a seed."""
        plan, cell = self._plan(self.folder), self._cell(row, setting)
        chosen = range(FIRST_SEED, FIRST_SEED + seeds)
        teacher = self.teacher(row)
        return [MeasuredRun(plan, cell, seed, self.regime, self.data_dir, teacher) for seed in chosen]

    def teacher(self, row: Row) -> MeasuredRun | None:
        """The run that a row learns from; None for one that learns from none."""
        return next((self.measured(each, None, 1)[0] for each in self.regime.rows if each.key == row.teacher), None)

    def check(self, runs: Sequence[Run]) -> None:
        """Refuse complete runs that were made with other options; one that was looked at is not read again.

        Raises:
            DataError: naming the run.
        """
        for run in runs:
            if run.folder in self._checked or run.next_step == 'train':
                continue
            try:
                run.check_options()
            except DataError as error:
                raise DataError(f'{run.name}: {error}') from error
            self._checked.add(run.folder)

    def _plan(self, folder: Path, *flags: str) -> Plan:
        epochs = self.regime.flags[self.regime.flags.index('--epochs') + 1]
        # evaluated and kept once, at the end: a run that is killed needs checkpoints of its own
        ends = ('--val-interval', epochs, '--checkpoint-interval', '3m')
        return Plan(folder, (*self.flags, '--train-split', self.regime.train_split, *flags, *ends), self.extra)

    def _cell(self, row: Row, setting: Setting | None) -> Cell:
        name, flags = (setting.name, setting.flags) if setting else ('', ())
        teacher = self.teacher(row)
        if teacher:
            flags = (*flags, '--map-teacher', str(teacher.folder))
        return Cell(row.key, '', f'{row.key}{name}', (*self.regime.flags, *row.flags, *flags))


def last_figure(run: Run, metric: str) -> float:
    """A figure of the last epoch, in %.

    Raises:
        DataError: the run does not hold it.
    """
    try:
        return float(read_csv(run.folder / 'summary.csv')[-1][f'eval_{metric}'])
    except (OSError, LookupError, ValueError) as error:
        raise DataError(f'{run.name} has no figures that can be read: {error!r}.') from error


@dataclass(frozen=True)
class Choice:
    """What a row was tried with.

    Args:
        setting: that did best; None where there is nothing to choose.
        held_out: figures on held-out training images, in %, means over seeds, by setting; None where training failed.
    """

    setting: Setting | None
    held_out: dict[str, float | None]


def read_choices(folder: Path) -> dict[str, Choice]:
    """The choices of a regime's folder by row; none where there are none.

    Raises:
        DataError: its chosen.json cannot be read.
    """
    path = folder / 'chosen.json'
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
        return {
            key: Choice(Setting(each['weight'], each['topk']) if 'weight' in each else None, each['held_out'])
            for key, each in found.items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"'{path}' cannot be read: {error!r}.") from error


def add_choices(folder: Path, *choices: Mapping[str, Choice]) -> None:
    """Add choices by row to a regime's chosen.json as it is now, or make it; the last one of a row counts."""
    found = read_choices(folder)
    for each in choices:
        found |= each
    rows = {
        key: {**(vars(choice.setting) if choice.setting else {}), 'held_out': choice.held_out}
        for key, choice in found.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'chosen.json'
    unfinished = path.with_suffix(f'.{os.getpid()}')
    unfinished.write_text(f'{json.dumps(rows, indent=2)}\n')
    unfinished.replace(path)


def largest_tried(row: Row, choice: Choice) -> bool:
    """Whether a row chose the largest weight that was tried with its first k, or the same pull with another k."""
    tried = [setting for setting in _grid(row) if str(setting) in choice.held_out] if row.weights else []
    return bool(tried) and choice.setting is not None and choice.setting == tried[-1].at(choice.setting.topk)


def needed_trials(stage: Stage, row: Row) -> list[Run]:
    """The trials that come next of a row: its weights with the first k, then other k with the best weight.

    While the largest weight is the best, a larger one is tried; one that is too large to train with ends that.
    """
    if not row.weights:
        return stage.trials(row, None)
    grid = _grid(row)
    for count in range(len(row.weights), len(grid) + 1):
        runs = [run for setting in grid[:count] for run in stage.trials(row, setting)]
        if count > len(row.weights) and _diverged(stage, runs):
            break
        if any(run.next_step for run in runs):
            return runs
        best = max(grid[:count], key=lambda setting: held_out(stage, row, setting))
        if best != grid[count - 1]:
            break
    return [run for topk in row.topks[1:] for run in stage.trials(row, best.at(topk))]


def _diverged(stage: Stage, runs: Sequence[Run]) -> bool:
    """Whether numbers of a run were not finite; one that failed otherwise, such as killed, may be done another time."""
    return any('not finite' in stage.failed.get(run.name, '') for run in runs)


def _grid(row: Row) -> list[Setting]:
    """A row's weights, and those that follow while the largest is the best, with the first k."""
    grid = [Setting(weight, row.topks[0]) for weight in row.weights]
    for _ in range(_WIDER):
        grid.append(grid[-1].stronger())
    return grid


def _tried(row: Row) -> list[Setting] | list[None]:
    """All that a row may be tried with; None where there is nothing to choose."""
    grid = _grid(row) if row.weights else []
    return [*grid, *(setting.at(topk) for setting in grid for topk in row.topks[1:])] or [None]


def choose(stage: Stage, row: Row) -> None:
    """Keep the best setting of a row whose trials are complete; one that is kept already stays."""
    if row.key in read_choices(stage.folder) or any(run.next_step for run in needed_trials(stage, row)):
        return
    if not row.weights:
        add_choices(stage.folder, {row.key: Choice(None, {'': held_out(stage, row, None)})})
        return
    grid = _grid(row)
    figures = {
        setting: held_out(stage, row, setting)
        for setting in _tried(row)
        if setting is not None and not any(run.next_step for run in stage.trials(row, setting))
    }
    best = max(figures, key=lambda setting: figures[setting])
    failed = {str(setting): None for setting in grid if _diverged(stage, stage.trials(row, setting))}
    reached = {str(setting): value for setting, value in figures.items()}
    add_choices(stage.folder, {row.key: Choice(best, reached | failed)})


def held_out(stage: Stage, row: Row, setting: Setting | None) -> float:
    """The figure of a setting on held-out training images, in %, the mean over seeds."""
    return statistics.mean(last_figure(run, stage.regime.metric) for run in stage.trials(row, setting))


def due_runs(stage: Stage, rows: Sequence[Row], seeds: int) -> list[Run]:
    """What can be done by now, complete or not; rows whose trials are complete get their setting.

    Args:
        stage: where the runs lie.
        rows: of the regime.
        seeds: runs of every row once its setting is known.

    Returns:
        The runs of rows that have their setting, seed by seed, then the trials of the others; none that lacks its
        teacher.

    Raises:
        DataError: a complete run was made with other options.
    """
    if stage.regime.choice_seeds:
        for row in rows:
            stage.check([run for setting in _tried(row) for run in stage.trials(row, setting)])
            choose(stage, row)
    chosen = read_choices(stage.folder)
    settings = {row: chosen[row.key].setting if row.key in chosen else None for row in rows}
    known = [stage.measured(row, settings[row], seeds) for row in rows if settings[row] or not row.weights]
    runs: list[Run] = [run for each in zip(*known, strict=True) for run in each if not run.lacks_teacher]
    runs += [run for row in rows if row.key not in chosen for run in needed_trials(stage, row)]
    stage.check(runs)
    return runs
