"""The tables of a regime: rows with the same seeds, and their differences in pairs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_rel

from evidence.kept import keep
from evidence.regimes import BASELINE, REGIMES, Regime
from evidence.results import Result, accuracies, column, in_pairs, paired, results
from evidence.runs import read_choices
from timm_hnc.files.tables import write_csv

_HEADINGS = {
    **{'accuracy': 'accuracy', 'train_accuracy': 'of training images', 'negative_peak': 'peak of negative maps'},
    **{'energy': 'energy in boxes', 'grid_pointing': 'grid pointing', 'calibration_error': 'calibration error'},
    **{'fgsm_1': 'FGSM 1/255', 'fgsm_2': 'FGSM 2/255', 'pointing': 'pointing game', 'max_box_acc_v2': 'MaxBoxAccV2'},
    **{'object_covered': 'logit lost, object covered', 'rest_covered': 'logit lost, rest covered'},
}
_METRICS = {'map': 'mAP', 'top1': 'top-1'}
_LEGEND = """\
# Does HNC help, where, and with which weight?

`python benchmarks/evidence.py table`. A regime is data, a network and a schedule; its rows share their n seeds. Cells
are means over seeds ± standard deviations. Differences are those of pairs with the same seed, over Student's 95 %
interval, each by itself, bold where it excludes 0; `more` counts the seeds whose accuracy was above the first row's.
Rows that were trained on different machines differ by these as well. Weight and k did best on held-out training
images; `(end)` is beside a weight that was the largest tried, so that a larger one might do better still.

In %: accuracy on test images, the same on training images with the labels of training, energy (share of a map's
positive values inside the boxes of its class), grid pointing (share of a class's positive map in its own cell of a
grid of four images, 25 by chance), calibration error, accuracy under FGSM at 1/255 and 2/255, pointing game,
MaxBoxAccV2. In logits: the highest value of a negative map above its mean, and what the logit of a present class
loses when its boxes are covered, or all else is.
"""


def markdown(regime: Regime, found: Sequence[Result]) -> str:
    """The tables of a regime, of what `results` found: means, and differences where there are pairs."""
    lines = [f'## {regime.key}', '', f'{regime.about}.', '', *_means(regime, found)]
    left_out = [result.row.label for result in found if not result.runs]
    if left_out:
        lines += ['', f'Not run: {"; ".join(left_out)}.']
    lines += ['', f'Trained on: {_machines(found)}.']
    if apart := _differences(regime, found):
        lines += ['', 'Differences from the first row, which has its means:', '', *apart]
    return '\n'.join(lines) + '\n'


def _means(regime: Regime, found: Sequence[Result]) -> list[str]:
    names = _figures_of(found)
    lines = _head(['weight, k', 'n', *_named(regime, names)])
    for result in found:
        if result.runs:
            cells = [result.row.label, result.chosen, str(len(result.runs)), _spread(accuracies(result), 2)]
            lines.append(_line([*cells, *(_spread(column(result, name), 1) for name in names[1:])]))
    return lines


def _differences(regime: Regime, found: Sequence[Result]) -> list[str]:
    """No lines where no row has two pairs."""
    base, names, lines = _base(found), _figures_of(found), list[str]()
    own = [f'{statistics.mean(column(base, name).values()):.1f}' if column(base, name) else '-' for name in names]
    for result in found:
        accuracy = paired(accuracies(result), accuracies(base))
        if accuracy is not None and result is not base:
            others = [_difference(paired(column(result, name), column(base, name))) for name in names[1:]]
            seeds = '{} of {}'.format(*accuracy[3:])
            name = '<br>'.join(filter(None, [result.row.label, result.chosen]))
            lines.append(_line([name, _difference(accuracy), seeds, *others]))
    metric, *others = _named(regime, names)
    first = _line([base.row.label, own[0], '', *own[1:]])
    return [*_head([metric, 'more', *others]), first, *lines] if lines else []


def _machines(found: Sequence[Result]) -> str:
    """On what the rows were trained; a difference of rows that were trained on others includes that of the machines."""
    rows: dict[str, list[str]] = {}
    for result in found:
        if result.runs:
            rows.setdefault(' and '.join(result.machines), []).append(f'`{result.row.key}`')
    if len(rows) == 1:
        return next(iter(rows))
    return '; '.join(f'{machine}: {", ".join(labels)}' for machine, labels in rows.items())


def _base(found: Sequence[Result]) -> Result:
    return next(result for result in found if result.row.key == BASELINE)


def _figures_of(found: Sequence[Result]) -> list[str]:
    known = {name for result in found for figures in result.runs.values() for name in figures}
    return [name for name in _HEADINGS if name in known]


def _named(regime: Regime, names: Sequence[str]) -> list[str]:
    return [_METRICS[regime.metric], *(_HEADINGS[name] for name in names[1:])]


def _difference(pairs: tuple[float, float, float, int, int] | None) -> str:
    if pairs is None or not math.isfinite(pairs[0]):
        return '-'
    mean, low, high = (round(each, 1) + 0.0 for each in pairs[:3])  # + 0.0: no -0.0
    apart = '**' if pairs[1] > 0 or pairs[2] < 0 else ''
    return f'{apart}{mean:+.1f}{apart}<br>{low:.1f} to {high:.1f}'


def _spread(values: Mapping[int, float], digits: int) -> str:
    if not values:
        return '-'
    if not all(map(math.isfinite, values.values())):
        return 'not finite'
    spread = f' ± {statistics.stdev(values.values()):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.mean(values.values()):.{digits}f}{spread}'


def _head(headings: Sequence[str]) -> list[str]:
    return [_line(['', *headings]), '|' + '---|' * (len(headings) + 1)]


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def p_values(regime: Regime, found: Sequence[Result]) -> list[tuple[float, str]]:
    """Student's p of the difference of accuracy of every row with two pairs or more, with what it is of.

    A regime of boxes has none: its rows differ from the first one in more than a loss.
    """
    base, tests = _base(found), []
    for result in found:
        ours, theirs = in_pairs(accuracies(result), accuracies(base))
        if result is not base and not regime.boxes and len(ours) > 1:
            tests.append((float(ttest_rel(ours, theirs).pvalue), f'{result.row.label} in {regime.key}'))
    return [(p, of) for p, of in tests if math.isfinite(p)]


def all_together(tests: Sequence[tuple[float, str]]) -> str:
    """What remains of the differences when they are looked at as one family (Holm, 1979)."""
    (least, of), count = min(tests), len(tests)
    apart = sum(p < 0.05 for p, _ in tests)
    return (
        f'## All differences together\n\nDifferences of accuracy above, boxes aside: {count}. {apart} have a 95 % '
        f'interval without 0; if nothing had an effect, about {count / 20:.1f} would be expected. The least p is '
        f"{least:.4f} ({of}), {min(1.0, count * least):.2f} with Holm's correction for all of them.\n"
    )


def choices(regime: Regime, folder: Path) -> str:
    """What every setting reached on held-out training images."""
    chosen = read_choices(folder)
    if not chosen:
        return ''
    lines = []
    for row in regime.rows:
        if row.key in chosen:
            reached = {
                name or 'as it is': 'not finite' if value is None else f'{value:.2f}'
                for name, value in chosen[row.key].held_out.items()
            }
            lines.append(f'{row.label}: {", ".join(map(" ".join, reached.items()))}')
    about = f'On held-out training images ({regime.holdout:g} of them, {regime.choice_seeds} seeds), by weight and k:'
    return '\n'.join([about, '', *(f'- {line}' for line in lines)]) + '\n'


def write(out: Path, kept: Path | None) -> str:
    """The tables of all regimes in a folder; with `kept`, its files are copied there, and they are of all kept."""
    if kept and kept.resolve() != out.resolve():
        for key, regime in REGIMES.items():
            keep(regime, out / key, kept)
    parts, tests = [], []
    for key, regime in REGIMES.items():
        found = results(regime, (kept or out) / key)
        if any(result.runs for result in found):
            parts += [markdown(regime, found), choices(regime, (kept or out) / key)]
            tests += p_values(regime, found)
    if not parts:
        return ''
    text = '\n'.join([_LEGEND, *parts, *([all_together(tests)] if tests else [])])
    if kept:
        (kept / 'evidence.md').write_text(text)
        _write_csv(kept, kept / 'evidence.csv')
    return text


def _write_csv(out: Path, path: Path) -> None:
    """A row a run."""
    rows = []
    for key, regime in REGIMES.items():
        for result in results(regime, out / key):
            weight, topk = (result.setting.weight, result.setting.topk) if result.setting else ('', '')
            named = {'regime': key, 'row': result.row.key, 'weight': weight, 'topk': topk}
            for seed, figures in result.runs.items():
                rows.append({**named, 'seed': seed, **{name: figures.get(name, '') for name in _HEADINGS}})
    write_csv(path, rows)
