"""The picture of the evidence: how far HNC's rows lie from the baseline of their regime."""

from pathlib import Path
from statistics import mean
from typing import Any

from evidence.regimes import BASELINE, REGIMES, Regime
from evidence.results import Result, accuracies, paired, results
from timm_hnc.plots.figures import COLOURS, new_figure

_INCHES = 0.22  # a row's height
_RINGS = 2  # so many pairs are drawn as they are


def draw(out: Path) -> Any:
    """Every regime in which nothing but HNC and label smoothing is compared: differences in pairs, 95 % intervals.

    Args:
        out: folder of regimes.

    Returns:
        A matplotlib figure. A ring is one pair; one or two have no interval that says anything.
    """
    groups = [(regime, _compared(regime, out / key)) for key, regime in REGIMES.items() if not regime.boxes]
    groups = [(regime, found) for regime, found in groups if len(found) > 1]
    rows = sum(len(found) for _, found in groups)
    figure = new_figure(8, _INCHES * rows + 0.7)
    axes = figure.subplots()
    axes.axvline(0, color='#888888', linewidth=1)
    place, ticks, titles = 0, [], []
    for regime, (base, *others) in groups:
        titles.append(len(ticks))
        ticks.append((place, f'{regime.title}: {mean(accuracies(base).values()):.1f} % without'))
        for result in others:
            place += 1
            ticks.append((place, f'{result.row.label}: {result.chosen}' if result.setting else result.row.label))
            _point(axes, place, result, base)
        place += 1
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8)
    for title in titles:
        axes.get_yticklabels()[title].set_fontweight('bold')
    axes.set_ylim(place - 0.3, -0.7)
    axes.set_xlabel('points of mAP (VOC2007) or top-1 over cross-entropy, pairs, 95 %', fontsize=9)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    return figure


def _compared(regime: Regime, folder: Path) -> list[Result]:
    """The baseline and the complete rows."""
    found = [result for result in results(regime, folder) if result.runs]
    return found if found and found[0].row.key == BASELINE else []


def _point(axes: Any, place: int, result: Result, base: Result) -> None:
    ours, theirs = accuracies(result), accuracies(base)
    pairs = paired(ours, theirs)
    if pairs is None or pairs[-1] <= _RINGS:
        both = sorted(set(ours) & set(theirs))
        axes.plot([ours[seed] - theirs[seed] for seed in both], [place] * len(both), 'o', mfc='none', color=COLOURS[0])
        return
    middle, low, high, *_ = pairs
    colour = COLOURS[2] if low > 0 else COLOURS[1] if high < 0 else COLOURS[0]
    axes.plot([low, high], [place, place], '-', color=colour, linewidth=1.6)
    axes.plot([middle], [place], 'o', color=colour, markersize=5)
