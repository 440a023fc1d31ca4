"""Training curves of runs, and their accuracy by the weight of HNC (Fig. 4 of the paper)."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from timm_hnc.errors import DataError
from timm_hnc.plots.figures import COLOURS, as_image, new_figure, style_of

# columns of summary.csv by what stands at the axis
PANELS = {
    'training loss': ('train_loss',),
    'HNC of the training batches': ('train_hnc',),
    'validation top-1, %': ('eval_top1',),
    'validation mAP, %': ('eval_map',),
    'validation loss': ('eval_loss',),
}
ACCURACIES = ('eval_top1', 'eval_map')
# runs that differ in one of these cannot show what the weight of HNC does
SHARED = ('model', 'dataset', 'data_dir', 'epochs', 'holdout', 'label_noise', 'loss', 'lr', 'batch_size')


@dataclass(frozen=True)
class RunCurves:
    """What a run folder tells of its training.

    Args:
        name: of the folder.
        options: of args.yaml.
        rows: of summary.csv.
    """

    name: str
    options: dict[str, Any]
    rows: list[dict[str, float]]

    @property
    def label(self) -> str:
        """Name and loss."""
        hnc = self.options.get('hnc', 'none')
        return self.name if hnc == 'none' else f'{self.name} ({hnc}, {self.options["hnc_weight"]:g})'

    def last(self, columns: Sequence[str]) -> float | None:
        """The figure of the last epoch in the first of the columns that is there."""
        return next((self.rows[-1][column] for column in columns if column in self.rows[-1]), None)


def read_run(folder: Path) -> RunCurves:
    """Read args.yaml and summary.csv of a run folder.

    Raises:
        DataError: it is no run folder, has no complete epoch, or was not written by train.py.
    """
    try:
        options = yaml.safe_load((folder / 'args.yaml').read_text())
        with (folder / 'summary.csv').open(newline='') as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, TypeError) as error:
        raise DataError(f"'{folder}' is no run folder of train.py: {error}") from error
    if not isinstance(options, dict) or not rows or 'epoch' not in rows[0] or 'train_loss' not in rows[0]:
        raise DataError(f"'{folder}' has no complete epoch, or is of another version: its summary.csv has no figures.")
    return RunCurves(folder.resolve().name, options, rows)


def draw_curves(folders: Sequence[Path]) -> Image.Image:
    """A panel a figure with a line a run; with runs of several weights of HNC also accuracy by weight.

    Raises:
        DataError: a folder is no run folder.
        UsageError: matplotlib is not installed.
    """
    runs = [read_run(folder) for folder in folders]
    panels = {
        title: names for title, names in PANELS.items() if any(name in run.rows[0] for run in runs for name in names)
    }
    by_weight = _by_weight(runs)
    columns = len(panels) + bool(by_weight)
    figure = new_figure(4.6 * columns, 4.2 + 0.22 * len(runs))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis, (title, (column, *_)) in zip(axes, panels.items(), strict=False):
        for number, run in enumerate(runs):
            points = [(row['epoch'] + 1, row[column]) for row in run.rows if column in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=run.label, marker='.', markersize=5, **style_of(number))
        _label(axis, 'epoch', title)
    if by_weight:
        _draw_weights(axes[-1], by_weight, runs)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(3, len(runs)), fontsize=11, frameon=False)
    return as_image(figure)


def _by_weight(runs: Sequence[RunCurves]) -> dict[str, list[tuple[float, float]]]:
    """(weight, accuracy) points of each form of HNC that was run with several weights."""
    points = defaultdict(list)
    for run in _alike(runs):
        accuracy = run.last(ACCURACIES)
        if run.options.get('hnc', 'none') != 'none' and accuracy is not None:
            points[run.options['hnc']].append((run.options['hnc_weight'], accuracy))
    return {variant: sorted(each) for variant, each in points.items() if len({weight for weight, _ in each}) > 1}


def _alike(runs: Sequence[RunCurves]) -> list[RunCurves]:
    """The first run and those that are trained as it is, but for HNC."""
    return [run for run in runs if all(run.options.get(name) == runs[0].options.get(name) for name in SHARED)]


def _draw_weights(axis: Any, by_weight: dict[str, list[tuple[float, float]]], runs: Sequence[RunCurves]) -> None:
    for number, (variant, points) in enumerate(by_weight.items()):
        axis.plot(*zip(*points, strict=True), color=COLOURS[number], marker='o', label=f'HNC_{variant}')
    for run in _alike(runs):
        if run.options.get('hnc', 'none') == 'none' and run.last(ACCURACIES) is not None:
            axis.axhline(run.last(ACCURACIES), color='#555555', linestyle=':', label='CE')
            break
    axis.set_xscale('log')
    axis.legend(fontsize=11)
    _label(axis, 'weight of HNC (lambda)', 'accuracy of the last epoch, %')


def _label(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=12)
    axis.set_title(y, fontsize=13)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
