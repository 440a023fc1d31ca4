"""Means with their 95 % intervals, and what ours is better by, image by image."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from faithfulness.measure import LOWER_IS_BETTER, METRICS, Values

_RESAMPLES = 2000
_FIELDS = ('run', 'model', 'top1', 'maps', 'metric', 'n', 'mean', 'low', 'high')


@dataclass(frozen=True)
class Measured:
    """Figures of one network.

    Args:
        run: its name.
        model: timm's name of the network.
        top1: of the test images, in percent; None where it was not measured.
        values: by metric and map.
    """

    run: str
    model: str
    top1: float | None
    values: Values

    @property
    def maps(self) -> list[str]:
        """Names of the maps."""
        return list(dict.fromkeys(name for _, name in self.values))


def interval(values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval over images (percentiles of 2,000 resamples)."""
    numbers = values.double().numpy()
    rng = np.random.default_rng(seed)
    means = [rng.choice(numbers, len(numbers)).mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(numbers.mean()), float(low), float(high)


def rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """A row a figure; 'ours - random' is the mean over images of the difference."""
    found = []
    for each in measured:
        for (metric, name), values in each.values.items():
            pairs = [(name, values)]
            if name != 'ours' and (metric, 'ours') in each.values:
                pairs.append((f'ours - {name}', each.values[metric, 'ours'] - values))
            for label, numbers in pairs:
                figures = (each.run, each.model, each.top1, label, metric, len(numbers), *interval(numbers))
                found.append(dict(zip(_FIELDS, figures, strict=True)))
    return found


def write_csv(found: Sequence[dict[str, object]], path: Path) -> None:
    """A row a figure."""
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, _FIELDS, lineterminator='\n')
        writer.writeheader()
        for row in found:
            writer.writerow({key: f'{value:.5f}' if isinstance(value, float) else value for key, value in row.items()})


def markdown(measured: Sequence[Measured], found: Sequence[dict[str, object]], about: str) -> str:
    """Two tables: the figures, and what ours is better by, where there is more than ours."""
    by_key = {(row['run'], row['maps'], row['metric']): row for row in found}
    head = [f'{metric} {"↓" if metric in LOWER_IS_BETTER else "↑"}' for metric in METRICS]
    lines = [about, '', f'| network | top-1 | maps | {" | ".join(head)} |', f'|---|--:|---|{"---|" * len(METRICS)}']
    for each in measured:
        top1 = '' if each.top1 is None else f'{each.top1:.1f}'
        for name in each.maps:
            cells = [_cell(by_key.get((each.run, name, metric))) for metric in METRICS]
            lines.append(f'| {each.run} | {top1} | {name} | {" | ".join(cells)} |')
    if all(len(each.maps) == 1 for each in measured):
        return '\n'.join(lines) + '\n'
    lines += [
        '',
        'Differences, image by image; **bold** where the interval leaves out 0 and ours is better, _italic_ worse.',
        '',
    ]
    lines += [f'| network | ours minus | {" | ".join(head)} |', f'|---|---|{"---|" * len(METRICS)}']
    for each in measured:
        for name in each.maps:
            differences = [by_key.get((each.run, f'ours - {name}', metric)) for metric in METRICS]
            if any(differences):
                cells = [_difference(row, metric) for row, metric in zip(differences, METRICS, strict=True)]
                lines.append(f'| {each.run} | {name} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _cell(row: dict | None) -> str:
    return f'{row["mean"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f})' if row else ''


def _difference(row: dict | None, metric: str) -> str:
    if row is None:
        return ''
    text = f'{row["mean"]:+.3f} ({row["low"]:+.3f} to {row["high"]:+.3f})'
    if row['low'] <= 0 <= row['high']:
        return text
    better = (row['mean'] < 0) == (metric in LOWER_IS_BETTER)
    return f'**{text}**' if better else f'_{text}_'
