"""The table of a regime: rows with the same seeds, and their differences in pairs."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, copytree
from tempfile import TemporaryDirectory
from typing import Any

from scipy.stats import ttest_rel

from evidence.regimes import BASELINE, REGIMES, Regime, Row
from evidence.runs import Setting, add_choices, largest_tried, read_choices
from timm_hnc.files.tables import write_csv

KEPT = ('args.yaml', 'summary.csv', 'figures.json', 'result.json')
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
are means over seeds ± standard deviations. `difference` is that of pairs with the same seed, with Student's 95 %
interval, one row at a time; `better` counts the seeds that were above the first row. Weight and k did best on
held-out training images; `(end)` is beside a weight that was the largest tried, so that a larger one might do better
still.

In %: accuracy on test images, the same on training images with the labels of training, energy (share of a map's
positive values inside the boxes of its class), grid pointing (share of a class's positive map in its own cell of a
grid of four images, 25 by chance), calibration error, accuracy under FGSM at 1/255 and 2/255, pointing game,
MaxBoxAccV2. In logits: the highest value of a negative map above its mean, and what the logit of a present class
loses when its boxes are covered, or all else is.
"""


@dataclass(frozen=True)
class Result:
    """A row of a regime.

    Args:
        row: what was trained.
        setting: what it chose, None where there is nothing to choose.
        runs: figures by seed.
        at_end: the weight was the largest tried.
    """

    row: Row
    setting: Setting | None
    runs: Mapping[int, dict[str, Any]]
    at_end: bool = False

    @property
    def chosen(self) -> str:
        """Weight and k as the table shows them."""
        if self.setting is None:
            return ''
        return f'{self.setting.weight}, k {self.setting.topk}{" (end)" if self.at_end else ""}'


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
    ours, theirs = _in_pairs(values, base)
    if len(ours) < 2:
        return None
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    interval = ttest_rel(ours, theirs).confidence_interval(0.95) if len(set(differences)) > 1 else (mean, mean)
    return mean, *map(float, interval), sum(each > 0 for each in differences), len(ours)


def _in_pairs(values: Mapping[int, float], base: Mapping[int, float]) -> tuple[list[float], list[float]]:
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
        runs = dict(_figures(folder, f'{row.key}{setting.name if setting else ""}')) if ready else {}
        found.append(Result(row, setting, runs, row.key in chosen and largest_tried(row, chosen[row.key])))
    return found


def _figures(folder: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for path in sorted((folder / 'runs').glob(f'{name}-seed*/figures.json')):
        seed = path.parent.name.rpartition('-seed')[2]
        if seed.isdigit():
            yield int(seed), json.loads(path.read_text())


def markdown(regime: Regime, found: Sequence[Result]) -> str:
    """The table of a regime, of what `results` found."""
    base = next(result for result in found if result.row.key == BASELINE)
    known = {name for result in found for figures in result.runs.values() for name in figures}
    names = [name for name in _HEADINGS if name in known]
    headings = ['n', _METRICS[regime.metric], 'difference (95 %)', 'better', *(_HEADINGS[name] for name in names[1:])]
    lines = [f'## {regime.key}', '', f'{regime.about}.', '', _line(['', 'weight, k', *headings])]
    lines.append('|' + '---|' * (len(headings) + 2))
    for result in found:
        if result.runs:
            cells = [result.row.label, result.chosen, str(len(result.runs)), _spread(accuracies(result), 2)]
            cells += _difference(result, base)
            lines.append(_line([*cells, *(_spread(_column(result, name), 1) for name in names[1:])]))
    left_out = [result.row.label for result in found if not result.runs]
    if left_out:
        lines += ['', f'Not run: {"; ".join(left_out)}.']
    return '\n'.join(lines) + '\n'


def accuracies(result: Result) -> dict[int, float]:
    """Accuracy, mAP or top-1 in %, by seed."""
    return _column(result, 'accuracy')


def _column(result: Result, name: str) -> dict[int, float]:
    return {seed: float(figures[name]) for seed, figures in result.runs.items() if name in figures}


def _spread(values: Mapping[int, float], digits: int) -> str:
    if not values:
        return '-'
    if not all(map(math.isfinite, values.values())):
        return 'not finite'
    spread = f' ± {statistics.stdev(values.values()):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.mean(values.values()):.{digits}f}{spread}'


def _difference(result: Result, base: Result) -> list[str]:
    if result is base:
        return ['', '']
    pairs = paired(accuracies(result), accuracies(base))
    if pairs is None:
        return ['-', '-']
    mean, low, high, better, seeds = pairs
    return [f'{mean:+.2f} ({low:+.2f} to {high:+.2f})', f'{better} of {seeds}']


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def p_values(regime: Regime, found: Sequence[Result]) -> list[tuple[float, str]]:
    """Student's p of the difference of accuracy of every row with two pairs or more, with what it is of.

    A regime of boxes has none: its rows differ from the first one in more than a loss.
    """
    base = next(result for result in found if result.row.key == BASELINE)
    tests = []
    for result in found:
        ours, theirs = _in_pairs(accuracies(result), accuracies(base))
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


def keep(regime: Regime, folder: Path, kept: Path) -> None:
    """Copy what shows how the figures of a regime came about to the folder of all that is kept."""
    target = kept / regime.key
    for run in _complete(folder):
        copy = target / run.relative_to(folder)
        copy.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if (run / file).is_file():
                copyfile(run / file, copy / file)
    if chosen := read_choices(folder):
        add_choices(target, chosen)


def _complete(folder: Path) -> list[Path]:
    """Run folders that are trained, and measured where they are to be."""
    runs = [file.parent for file in sorted(folder.glob('runs/*/figures.json'))]
    runs += [file.parent for file in sorted(folder.glob('trials/runs/*/summary.csv'))]
    return [run for run in runs if (run / 'result.json').is_file()]


def take_up(regime: Regime, folder: Path, kept: Path) -> None:
    """Copy what was kept of a regime to the folder of its runs, but for runs that are there, begun or complete."""
    source = kept / regime.key
    for run in _complete(source):
        target = folder / run.relative_to(source)
        if not target.exists():
            _copy_at_once(run, target, folder)
    if chosen := read_choices(source):
        add_choices(folder, chosen, read_choices(folder))


def _copy_at_once(run: Path, target: Path, folder: Path) -> None:
    """Copy a run so that it is never there by half, neither if this is killed nor if another process does the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix='.') as unfinished:
        copy = copytree(run, Path(unfinished) / run.name)
        try:
            copy.rename(target)
        except OSError:
            if not target.exists():
                raise


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
