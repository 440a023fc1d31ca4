"""A table as Markdown and CSV, and the picture of Figure 4: measured figures only, the paper's beside them."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from tables.plan import MULTI_LABEL_METRICS, NETWORKS, Cell, Table
from tables.runs import METRICS, Plan, Run
from timm_hnc.errors import DataError
from timm_hnc.plots.figures import new_figure

DASH = '-'
HEADINGS = {
    **{'top1': 'top-1', 'top5': 'top-5', 'map': 'mAP', 'macro_f1': 'F1-C', 'c_p': 'P-C', 'c_r': 'R-C'},
    **{'o_f1': 'F1-O', 'o_p': 'P-O', 'o_r': 'R-O'},
}
Found = dict[tuple[str, str], list[Run]]


def find_runs(table: Table, plan: Plan) -> tuple[Found, dict[str, str]]:
    """The complete runs of every cell, and what is wrong with those that are left out."""
    found: Found = {}
    left_out: dict[str, str] = {}
    for cell in table.cells:
        runs = found.setdefault((cell.row, cell.column), [])
        for run in plan.finished(cell):
            try:
                run.check_options()
                _ = run.figures
                runs.append(run)
            except DataError as error:
                left_out[run.name] = str(error)
    return found, left_out


def values_of(table: Table, runs: Sequence[Run], metric: str) -> list[float]:
    """A figure of every run, as the table has it."""
    values = [run.figures[f'best_{metric}' if table.best_epoch else metric] for run in runs]
    return [100 - value if table.errors else value for value in values]


def format_values(values: Sequence[float]) -> str:
    """Mean, standard deviation (of n - 1) and n; a dash for none.

    Example:
        >>> format_values([73.0, 74.0])
        '73.50 ± 0.71, n = 2'
    """
    if not values:
        return DASH
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{spread}, n = {len(values)}'


def markdown(table: Table, found: Found, about: str) -> str:
    """The table and what is to be known about it."""
    ours = [(column, metric) for column in table.columns for metric in table.metrics]
    lonely = [
        (column, metric)
        for column in dict.fromkeys(column for _, column in table.paper)
        for metric in table.metrics
        if column not in table.columns
    ]
    head = [table.corner]
    for column, metric in ours:
        head.append(f'{table.columns[column]} {HEADINGS[metric]}')
        head += ['paper'] if _has_paper(table, column) else []
    head += [f'paper: {_label(table, column)} {HEADINGS[metric]}' for column, metric in lonely]
    lines = [f'# {table.title}', '', about, '', _row(head), '|' + '---|' * len(head)]
    for row in _row_order(table, found):
        cells = [_label(table, row)]
        for column, metric in ours:
            cells.append(format_values(values_of(table, found.get((row, column), []), metric)))
            cells += [_paper(table, row, column, metric)] if _has_paper(table, column) else []
        lines.append(_row([*cells, *(_paper(table, row, column, metric) for column, metric in lonely)]))
    return '\n'.join([*lines, '', *(f'- {remark}' for remark in _remarks(table, found))]) + '\n'


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _row_order(table: Table, found: Found) -> list[str]:
    """The rows of the table, those that only the paper has behind them; with `by_figure` the highest first."""
    rows = list(dict.fromkeys([*table.rows, *(row for row, _ in table.paper)]))
    if not table.by_figure:
        return rows
    (column,) = table.columns

    def first_figure(row: str) -> float:
        values = values_of(table, found.get((row, column), []), table.metrics[0])
        return statistics.mean(values) if values else float('-inf')

    return sorted(rows, key=first_figure, reverse=True)


def _label(table: Table, key: str) -> str:
    return table.rows.get(key) or table.columns.get(key) or NETWORKS.get(key, key)


def _has_paper(table: Table, column: str) -> bool:
    return any(column == other for _, other in table.paper)


def _paper(table: Table, row: str, column: str, metric: str) -> str:
    value = paper_figure(table, row, column, metric)
    return DASH if value is None else f'{value:.1f}' if table.name in ('table2', 'table3', 'table4') else f'{value:.2f}'


def paper_figure(table: Table, row: str, column: str, metric: str) -> float | None:
    """The paper's figure for a cell, None where it has none."""
    figures = table.paper.get((row, column), ())
    index = table.metrics.index(metric) if metric in table.metrics else len(figures)
    return figures[index] if index < len(figures) else None


def _remarks(table: Table, found: Found) -> list[str]:
    settings = dict.fromkeys(setting for cell in table.cells if (setting := _hnc_setting(cell)))
    remarks = [table.note, 'Mean ± standard deviation over n seeds; a dash: not measured, or not in the paper.']
    if settings and table.name not in ('figure4', 'sweep'):
        remarks.append(f'HNC: {"; ".join(settings)}.')
    machines = dict.fromkeys(run.machine for runs in found.values() for run in runs)
    return [*remarks, *([f'Trained on: {"; ".join(machines)}.'] if machines else [])]


def _hnc_setting(cell: Cell) -> str:
    if '--hnc-weight' not in cell.flags:
        return ''
    network, variant, weight, topk = (
        cell.flags[cell.flags.index(flag) + 1] for flag in ('--model', '--hnc', '--hnc-weight', '--hnc-topk')
    )
    return f'{variant} on {network} with weight {weight}, k = {topk}'


def write_csv(table: Table, found: Found, path: Path) -> None:
    """A row a run; a cell without runs has a row without figures."""
    with path.open('w', newline='') as file:
        names = MULTI_LABEL_METRICS if 'map' in table.metrics else METRICS
        columns = ('row', 'column', 'run', 'seed', *names, *(f'best_{name}' for name in names), 'best_epoch', 'epochs')
        writer = csv.DictWriter(file, (*columns, *(f'paper_{name}' for name in names)))
        writer.writeheader()
        for cell in table.cells:
            paper = {f'paper_{name}': paper_figure(table, cell.row, cell.column, name) for name in names}
            place = {'row': cell.row, 'column': cell.column, 'run': cell.name, **paper}
            runs = found[cell.row, cell.column]
            writer.writerows([{**place, 'seed': run.seed, **_as_table_has_it(table, run)} for run in runs] or [place])


def _as_table_has_it(table: Table, run: Run) -> dict[str, float]:
    counts = ('best_epoch', 'epochs')
    return {
        name: value if name in counts else round(100 - value if table.errors else value, 4)
        for name, value in run.figures.items()
    }


def draw_weights(table: Table, found: Found, path: Path) -> None:
    """Figure 4: accuracy against the weight of HNC, a line for each variant and one for cross-entropy.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for column, label in table.columns.items():
        points = [
            (float(row), values)
            for row in table.rows
            if row != '0' and (values := values_of(table, found.get((row, column), []), 'top1'))
        ]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        means = [statistics.mean(values) for _, values in points]
        axes.errorbar([weight for weight, _ in points], means, spreads, marker='o', capsize=3, label=label)
    baseline = next((values for column in table.columns if (values := _baseline(table, found, column))), [])
    if baseline:
        axes.axhline(statistics.mean(baseline), color='grey', linestyle=':', label='CE')
    axes.set(xscale='log', xlabel='weight of HNC (lambda)', ylabel='top-1 accuracy in %')
    axes.legend()
    figure.savefig(path, dpi=150)


def _baseline(table: Table, found: Found, column: str) -> list[float]:
    return values_of(table, found.get(('0', column), []), 'top1')
