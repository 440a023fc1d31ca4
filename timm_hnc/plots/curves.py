"""Training curves of runs, and their accuracy by the weight of HNC (Fig. 4 of the paper)."""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from timm_hnc.errors import DataError
from timm_hnc.files.options import read_options
from timm_hnc.plots.figures import COLOURS, as_image, new_figure, style_of

Panel = Callable[[Any], None]  # draws on an axis of matplotlib
# columns of summary.csv by what stands at the axis
PANELS = {
    'training loss': 'train_loss',
    'HNC of the training batches': 'train_hnc',
    'validation top-1, %': 'eval_top1',
    'validation mAP, %': 'eval_map',
    'validation loss': 'eval_loss',
}
ACCURACIES = ('eval_top1', 'eval_map')
# runs that differ in one of these cannot show what the weight of HNC does
SHARED = ('model', 'dataset', 'data_dir', 'epochs', 'holdout', 'label_noise', 'loss', 'lr', 'batch_size')


@dataclass(frozen=True)
class RunCurves:
    """What a run folder tells of its training."""

    name: str
    options: dict[str, Any]
    rows: list[dict[str, float]]

    @property
    def label(self) -> str:
        """Name and loss."""
        hnc, weight = self.options.get('hnc', 'none'), self.options.get('hnc_weight')
        if hnc == 'none':
            return self.name
        return f'{self.name} ({hnc}, {weight if isinstance(weight, str) else format(weight, "g")})'

    @property
    def accuracy(self) -> float | None:
        """Top-1 or mAP of the last epoch, in percent."""
        return next((self.rows[-1][column] for column in ACCURACIES if column in self.rows[-1]), None)


def read_run(folder: Path) -> RunCurves:
    """Read args.yaml and summary.csv of a run folder.

    Raises:
        DataError: it is no run folder, has no complete epoch, or was not written by train.py.
    """
    options = read_options(folder)
    try:
        with (folder / 'summary.csv').open(newline='') as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"'{folder}' is no run folder of train.py: {error}") from error
    if not rows or 'epoch' not in rows[0] or 'train_loss' not in rows[0]:
        raise DataError(f"'{folder}' has no complete epoch, or is of another version: its summary.csv has no figures.")
    return RunCurves(folder.resolve().name, options, rows)


def draw_curves(runs: Sequence[RunCurves]) -> Image.Image:
    """A panel a figure with a line a run; with runs of several weights of HNC also accuracy by weight.

    Raises:
        UsageError: matplotlib is not installed.
    """
    panels = curve_panels(runs)
    figure = new_figure(4.6 * len(panels), 4.2 + 0.22 * len(runs))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, draw in zip(axes, panels.values(), strict=True):
        draw(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(3, len(runs)), fontsize=11, frameon=False)
    return as_image(figure)


def curve_panels(runs: Sequence[RunCurves]) -> dict[str, Panel]:
    """What draws each panel of the training curves on an axis of matplotlib, by title."""
    found: dict[str, Panel] = {}
    for title, column in PANELS.items():
        if any(column in row for run in runs for row in run.rows):
            found[title] = partial(_draw_lines, runs=runs, column=column, title=title)
    by_weight = _by_weight(runs)
    if by_weight:
        found['accuracy by the weight of HNC, %'] = partial(_draw_weights, by_weight=by_weight, runs=runs)
    return found


def curve_rows(runs: Sequence[RunCurves]) -> list[dict[str, Any]]:
    """The figures behind the curves: a row a run and epoch."""
    return [
        {'run': run.name, 'hnc': run.options.get('hnc', 'none'), 'hnc_weight': run.options.get('hnc_weight'), **row}
        for run in runs
        for row in run.rows
    ]


def _draw_lines(axis: Any, runs: Sequence[RunCurves], column: str, title: str) -> None:
    for number, run in enumerate(runs):
        points = [(row['epoch'] + 1, row[column]) for row in run.rows if column in row]
        if points:
            axis.plot(*zip(*points, strict=True), label=run.label, marker='.', markersize=5, **style_of(number))
    axis.xaxis.get_major_locator().set_params(integer=True)
    label(axis, 'epoch', title)


def _by_weight(runs: Sequence[RunCurves]) -> dict[str, list[tuple[float, float]]]:
    """(weight, accuracy) points of each form of HNC that was run with several weights."""
    points = defaultdict(list)
    for run in _alike(runs):
        accuracy = run.accuracy
        weight = run.options.get('hnc_weight')
        if run.options.get('hnc', 'none') != 'none' and accuracy is not None and isinstance(weight, float):
            points[run.options['hnc']].append((weight, accuracy))
    return {variant: sorted(each) for variant, each in points.items() if len({weight for weight, _ in each}) > 1}


def _alike(runs: Sequence[RunCurves]) -> list[RunCurves]:
    """The first run and those that are trained as it is, but for HNC."""
    return [run for run in runs if all(run.options.get(name) == runs[0].options.get(name) for name in SHARED)]


def _draw_weights(axis: Any, by_weight: dict[str, list[tuple[float, float]]], runs: Sequence[RunCurves]) -> None:
    for number, (variant, points) in enumerate(by_weight.items()):
        axis.plot(*zip(*points, strict=True), color=COLOURS[number], marker='o', label=f'HNC_{variant}')
    for run in _alike(runs):
        if run.options.get('hnc', 'none') == 'none' and run.accuracy is not None:
            axis.axhline(run.accuracy, color='#555555', linestyle=':', label='CE')
            break
    axis.set_xscale('log')
    axis.legend(fontsize=11)
    label(axis, 'weight of HNC (lambda)', 'accuracy of the last epoch, %')


def label(axis: Any, x: str, title: str) -> None:
    """What an axis shows, in letters that can be read at arm's length."""
    axis.set_xlabel(x, fontsize=12)
    axis.set_title(title, fontsize=13)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
