"""What is complete of a regime: the figures of its rows by seed, and their differences in pairs."""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from evidence.regimes import Regime, Row
from evidence.runs import Setting, largest_tried, read_choices


@dataclass(frozen=True)
class Result:
    """A row of a regime.

    Args:
        row: what was trained.
        setting: what it chose, None where there is nothing to choose.
        runs: figures by seed.
        at_end: the weight was the largest tried.
        machines: that it was trained on, with their torch.
    """

    row: Row
    setting: Setting | None
    runs: Mapping[int, dict[str, Any]]
    at_end: bool = False
    machines: tuple[str, ...] = ()

    @property
    def chosen(self) -> str:
        """Weight and k as the table shows them."""
        if self.setting is None:
            return ''
        return f'{self.setting.weight}, k {self.setting.topk}{" (end)" if self.at_end else ""}'


def accuracies(result: Result) -> dict[int, float]:
    """Accuracy, mAP or top-1 in %, by seed."""
    return column(result, 'accuracy')


def column(result: Result, name: str) -> dict[int, float]:
    """A figure by seed, of the runs that have it."""
    return {seed: float(figures[name]) for seed, figures in result.runs.items() if name in figures}


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> tuple[float, float, float, int, int] | None:
    """Differences of runs with the same seed.

    Args:
        values: by seed.
        base: by seed, of the baseline.

    Returns:
        Mean, both ends of its 95 % interval (Student's t), seeds that were better, and seeds; None for fewer than two.

    Example:
        >>> paired({0: 2.0, 1: 4.0}, {0: 1.0, 1: 2.0})[::3]
        (1.5, 2)
    """
    ours, theirs = in_pairs(values, base)
    if len(ours) < 2:
        return None
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    interval = ttest_rel(ours, theirs).confidence_interval(0.95) if len(set(differences)) > 1 else (mean, mean)
    return mean, *map(float, interval), sum(each > 0 for each in differences), len(ours)


def in_pairs(values: Mapping[int, float], base: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """The values of the seeds that both have, in the same order."""
    seeds = sorted(set(values) & set(base))
    return [values[seed] for seed in seeds], [base[seed] for seed in seeds]


def results(regime: Regime, folder: Path) -> list[Result]:
    """What is complete of a regime in the folder of its runs, or in what was kept of them, in the order of its rows.

    A row of which nothing is complete has no runs.
    """
    chosen, found = read_choices(folder), []
    for row in regime.rows:
        setting = chosen[row.key].setting if row.key in chosen else None
        ready = setting or not row.weights
        runs = dict(_runs(folder, f'{row.key}{setting.name if setting else ""}')) if ready else {}
        figures = {seed: json.loads((run / 'figures.json').read_text()) for seed, run in runs.items()}
        at_end = row.key in chosen and largest_tried(row, chosen[row.key])
        found.append(Result(row, setting, figures, at_end, tuple(sorted(set(map(_machine, runs.values()))))))
    return found


def _runs(folder: Path, name: str) -> Iterator[tuple[int, Path]]:
    for path in sorted((folder / 'runs').glob(f'{name}-seed*/figures.json')):
        seed = path.parent.name.rpartition('-seed')[2]
        if seed.isdigit():
            yield int(seed), path.parent


def _machine(run: Path) -> str:
    path = run / 'result.json'
    result = json.loads(path.read_text()) if path.is_file() else {}
    return f'{result.get("device", "?")} (torch {result.get("versions", {}).get("torch", "?")})'
