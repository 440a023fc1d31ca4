"""Final figures of several runs beside each other, the best of each marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm_hnc.report.run_files import RunFiles, names_of_runs

# how figures begin that are of other things where this one differs, how a message puts it, and the flag that sets it
_COMPARABLE = {
    'cam_negative_': ('cam_topk', 'classes an image', '--cam-topk'),
    'cam_deletion_': ('cam_curve_steps', 'steps', '--cam-curves'),
    'cam_insertion_': ('cam_curve_steps', 'steps', '--cam-curves'),
}
# name of a figure, how it reads, and whether high (1) or low (-1) is good
KNOWN = {
    'top1': ('top-1, %', 1),
    'top5': ('top-5, %', 1),
    'map': ('mAP, %', 1),
    'macro_f1': ("mean of the classes' F1, %", 1),
    'c_p': ('precision, mean over classes, %', 1),
    'c_r': ('recall, mean over classes, %', 1),
    'c_f1': ('F1 of these two means, %', 1),
    'o_p': ('precision over all labels, %', 1),
    'o_r': ('recall over all labels, %', 1),
    'o_f1': ('F1 over all labels, %', 1),
    'loss': ('validation loss', -1),
    'cam_negative_peak': ('maps of absent classes: peak above the mean', -1),
    'cam_negative_positive_share': ('maps of absent classes: share of cells above 0', -1),
    'cam_negative_kl': ('maps of absent classes: KL from flat, nats', -1),
    'cam_positive_peak': ('maps of present classes: peak above the mean', 0),
    'cam_positive_positive_share': ('maps of present classes: share of cells above 0', 0),
    'cam_positive_kl': ('maps of present classes: KL from flat, nats', 0),
    'cam_max_box_acc_v2': ('MaxBoxAccV2, %', 1),
    'cam_pointing': ('pointing game, %', 1),
    'cam_energy': ('energy inside the boxes, %', 1),
    'cam_deletion_area': ('deletion area', -1),
    'cam_insertion_area': ('insertion area', 1),
}


@dataclass(frozen=True)
class FigureRow:
    """A figure of every run.

    Args:
        name: how it reads.
        texts: one a run, empty where a run lacks it.
        differences: from the first run, one a run, empty where there is none.
        best: whether it is the best of the runs.
    """

    name: str
    texts: list[str]
    differences: list[str]
    best: list[bool]


def figure_table(runs: Sequence[Mapping[str, float]]) -> list[FigureRow]:
    """Rows of the figures that any run has, those whose meaning is known.

    Figures that were measured otherwise, maps of absent classes on other numbers of classes (--cam-topk of
    validate.py), curves in other numbers of steps, have rows that say so, and are not compared.
    """
    rows = []
    for name, (title, direction) in KNOWN.items():
        values = [figures.get(name) for figures in runs]
        found = [value for value in values if value is not None]
        if not found:
            continue
        best = max(found, key=lambda value: direction * value) if direction and len(found) > 1 else None
        first = values[0]
        if differing := _measured_otherwise(name, runs):
            title, best, first = f'{title} ({differing})', None, None
        rows.append(
            FigureRow(
                title,
                ['' if value is None else f'{value:.{_digits(value)}f}' for value in values],
                [
                    '' if value is None or first is None or not place else f'{value - first:+.{_digits(value)}f}'
                    for place, value in enumerate(values)
                ],
                [best is not None and value == best for value in values],
            )
        )
    return rows


def _measured_otherwise(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """In which the figures of a name cannot be compared; empty where they can."""
    of, words, flag = next((found for start, found in _COMPARABLE.items() if name.startswith(start)), ('', '', ''))
    counts = list(dict.fromkeys(figures[of] for figures in runs if of in figures))
    if len(counts) < 2:
        return ''
    return f'of {" and ".join(f"{count:g}" for count in counts)} {words}: not comparable, see {flag}'


def table_rows(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """The figures in full, a row a run."""
    return [{'run': name, **run.figures} for name, run in zip(names_of_runs(runs), runs, strict=True)]


def _digits(value: float) -> int:
    return 2 if abs(value) >= 1 else 3
