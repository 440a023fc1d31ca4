"""Training curves of runs, and their accuracy by the weight of HNC (Fig. 4 of the paper)."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from statistics import mean
from typing import Any

from PIL import Image

from timm_hnc.files.run_curves import RunCurves
from timm_hnc.files.run_options import NOT_COMPARED
from timm_hnc.plots.figures import as_image, as_label, new_figure, style_of

Panel = Callable[[Any], None]  # draws on an axis of matplotlib
# columns of summary.csv by what stands at the axis
PANELS = {
    'training loss': 'train_loss',
    'HNC of the training batches': 'train_hnc',
    'validation top-1, %': 'eval_top1',
    'validation mAP, %': 'eval_map',
    'validation loss': 'eval_loss',
}
# settings of HNC beside its weight, and how a legend calls them: runs that differ in them stand on lines of their own
SETTINGS = {
    'hnc_topk': 'k',
    'hnc_alpha': 'alpha',
    'hnc_reduction': 'reduction',
    'hnc_start_epoch': 'start epoch',
}
# options in which runs may differ that show what the weight of HNC does: any other is another training
_MAY_DIFFER = NOT_COMPARED | {'hnc', 'hnc_weight', 'seed', 'workers', *SETTINGS}


def told_apart(runs: Sequence[RunCurves]) -> list[RunCurves]:
    """The runs with their names numbered where two are equal."""
    names, found = [run.name for run in runs], []
    taken = set(names)
    for run in runs:
        name = run.name
        if names.count(name) > 1:
            name = next(other for other in (f'{run.name} ({number})' for number in count(1)) if other not in taken)
            taken.add(name)
        found.append(replace(run, name=name))
    return found


def label_of(run: RunCurves) -> str:
    """Name and loss of a run, for a legend."""
    hnc, weight = run.options.get('hnc', 'none'), run.options.get('hnc_weight')
    name = as_label(run.name)
    if hnc == 'none':
        return name
    return f'{name} ({hnc}, {weight if isinstance(weight, str) else format(weight, "g")})'


def draw_curves(runs: Sequence[RunCurves]) -> Image.Image:
    """A panel a figure with a line a run; with runs of several weights of HNC also accuracy by weight."""
    runs = told_apart(runs)
    panels = curve_panels(runs)
    longest = 0.6 + 0.1 * max(len(label_of(run)) for run in runs)  # inches of the legend's widest column
    width = max(4.6 * len(panels), longest)
    columns = max(1, min(3, len(runs), int(width / longest)))
    figure = new_figure(width, 4.2 + 0.22 * math.ceil(len(runs) / columns))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, draw in zip(axes, panels.values(), strict=True):
        draw(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, fontsize=11, frameon=False)
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
        for run in told_apart(runs)
        for row in run.rows
    ]


def _draw_lines(axis: Any, runs: Sequence[RunCurves], column: str, title: str) -> None:
    for number, run in enumerate(runs):
        points = [(row['epoch'] + 1, row[column]) for row in run.rows if column in row]
        if points:
            axis.plot(*zip(*points, strict=True), label=label_of(run), marker='.', markersize=5, **style_of(number))
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    label(axis, 'epoch', title)


def _by_weight(runs: Sequence[RunCurves]) -> dict[str, dict[float, list[float]]]:
    """The accuracies of the seeds by weight, for each form and setting of HNC that was run with several weights."""
    found: dict[tuple[Any, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in _alike(runs):
        variant, weight, accuracy = run.options.get('hnc', 'none'), run.options.get('hnc_weight'), run.accuracy
        if variant != 'none' and accuracy is not None and isinstance(weight, (int, float)) and weight > 0:
            line = (variant, *(run.options.get(name) for name in SETTINGS))
            found[line][weight].append(accuracy)
    lines = {line: points for line, points in found.items() if len(points) > 1}
    return {_name_of_line(line, list(lines)): dict(sorted(points.items())) for line, points in lines.items()}


def _name_of_line(line: tuple[Any, ...], lines: Sequence[tuple[Any, ...]]) -> str:
    """The form of HNC, and those of its settings in which the lines differ."""
    told = [
        f'{name} = {values[0]}'
        for name, *values in zip(SETTINGS.values(), line[1:], *(other[1:] for other in lines), strict=True)
        if len(set(values)) > 1
    ]
    return ', '.join([f'HNC_{line[0]}', *told])


def _alike(runs: Sequence[RunCurves]) -> list[RunCurves]:
    """The first run and those that are trained as it is, but for HNC and the seed."""

    def training(run: RunCurves) -> dict[str, Any]:
        return {name: value for name, value in run.options.items() if name not in _MAY_DIFFER}

    return [run for run in runs if training(run) == training(runs[0])]


def _draw_weights(axis: Any, by_weight: dict[str, dict[float, list[float]]], runs: Sequence[RunCurves]) -> None:
    # with a weight of 0 HNC is only measured
    without = [
        run for run in _alike(runs) if run.options.get('hnc', 'none') == 'none' or run.options.get('hnc_weight') == 0
    ]
    plain = [run.accuracy for run in without if run.accuracy is not None]
    for number, (name, points) in enumerate(by_weight.items()):
        style = style_of(number)
        axis.plot(list(points), [mean(each) for each in points.values()], marker='o', label=name, **style)
        single = [(weight, each) for weight, all_seeds in points.items() for each in all_seeds if len(all_seeds) > 1]
        if single:
            axis.scatter(*zip(*single, strict=True), s=12, color=style['color'], alpha=0.5)
    if plain:
        axis.axhline(mean(plain), color='#555555', linestyle=':', label='without HNC')
    axis.set_xscale('log')
    room = min(0.6, 0.07 * (len(by_weight) + 1))  # share of the height that the legend has for itself
    low, high = axis.get_ylim()
    axis.set_ylim(low, low + (high - low) / (1 - room))
    axis.legend(fontsize=9, loc='upper left')
    several = len(plain) > 1 or any(len(each) > 1 for points in by_weight.values() for each in points.values())
    label(axis, 'weight of HNC (lambda)', f'accuracy of the last epoch, {"mean of seeds, " if several else ""}%')


def label(axis: Any, x: str, title: str) -> None:
    """What an axis shows, in letters that can be read at arm's length."""
    axis.set_xlabel(x, fontsize=12)
    axis.set_title(title, fontsize=13)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
