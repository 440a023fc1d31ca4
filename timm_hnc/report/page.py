"""One page that shows what runs did: no file beside it, no network."""

from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader

from timm_hnc.errors import UsageError
from timm_hnc.files.whole import write_text
from timm_hnc.plots.curves import Panel, curve_panels, label, told_apart
from timm_hnc.plots.figures import as_image, as_label, new_figure, shortened, style_of
from timm_hnc.plots.lettering import format_ends, format_probability
from timm_hnc.plots.map_image import as_grey, as_picture, data_uri, map_uri, shared_scale, sized
from timm_hnc.plots.panel import CELL, Cell
from timm_hnc.progress import progress
from timm_hnc.report.examples import Example
from timm_hnc.report.figure_table import figure_table
from timm_hnc.report.run_files import (
    AttackLine,
    RunFiles,
    attack_lines,
    names_of_runs,
    read_run_files,
    reading_runs,
)

SHOWN_CONFUSIONS = 10
_LEGEND_LETTERS = 60
_ABOUT = {
    'model': 'model',
    'dataset': 'data set',
    'data_dir': 'data folder',
    'num_classes': 'classes',
    'loss': 'loss',
    'hnc': 'HNC',
    'hnc_weight': 'weight of HNC',
    'hnc_topk': 'top-k of HNC',
    'map_loss': 'losses on class maps',
    'map_teacher': 'teacher',
    'kd_model_name': 'teacher of distillation',
    'label_noise': 'label noise',
    'epochs': 'epochs',
    'batch_size': 'batch size',
    'lr': 'learning rate',
    'seed': 'seed',
}


def write_report(folders: Sequence[Path], path: Path) -> list[RunFiles]:
    """Write the report of runs as one HTML page; figures of the others are compared with those of the first."""
    with reading_runs(folders):
        runs = [read_run_files(folder) for folder in folders]
        page = render_report(runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        raise UsageError(f"report '{path}' cannot be written: {error}") from error
    return runs


def render_report(runs: Sequence[RunFiles]) -> str:
    """The page as HTML."""
    templates = Environment(loader=PackageLoader('timm_hnc.report'), autoescape=True, trim_blocks=True)
    names = names_of_runs(runs)
    return templates.get_template('report.html').render(
        title=', '.join(names),
        written=f'{datetime.now():%Y-%m-%d %H:%M}',
        runs=[_run(name, run) for name, run in progress(list(zip(names, runs, strict=True)), 'run')],
        names=names,
        table=figure_table([run.figures for run in runs]),
        curves=_draw(curve_panels(told_apart([run.curves for run in runs]))),
        robustness=_draw(_robustness_panels(names, runs)),
        matplotlib=find_spec('matplotlib') is not None,
    )


def _run(name: str, run: RunFiles) -> dict[str, Any]:
    options, result = run.curves.options, run.result
    values = {title: options.get(key) for key, title in _ABOUT.items()}
    about = {title: ', '.join(value) if isinstance(value, list) else value for title, value in values.items()}
    if options.get('hnc', 'none') == 'none':
        about = {title: value for title, value in about.items() if not title.endswith('of HNC')}
    about |= {'best checkpoint': result.get('best_checkpoint'), 'seconds': result.get('seconds')}
    about |= {'device': result.get('device'), 'processes': result.get('num_processes')}
    return {
        'name': name,
        'about': {title: value for title, value in about.items() if value not in (None, '')},
        'versions': ', '.join(f'{package} {version}' for package, version in (result.get('versions') or {}).items()),
        'command': result.get('command', ''),
        'changes': run.changes,
        'metric': _title_of(run),
        'finished': bool(result),
        'examples': {end: [_example(each) for each in examples] for end, examples in run.examples.items() if examples},
        'confusions': run.confusions[:SHOWN_CONFUSIONS],
        'robustness': _robustness_table(run),
    }


def _example(example: Example) -> dict[str, Any]:
    """Pictures of an image and of its maps, with one scale for all of them."""
    row = example.row
    colour = sized(row.image, CELL)
    span = shared_scale([cell.map for cell in row.cells])
    return {
        'image': data_uri(as_picture(colour)),
        'sample': example.sample,
        'loss': f'{example.loss:.3g}',
        'scale': format_ends(*span) if span and span[0] < span[1] else None,
        'cells': [_cell(cell, as_grey(colour), span, cell is row.positive) for cell in row.cells if span],
    }


def _cell(cell: Cell, grey: torch.Tensor, span: tuple[float, float], present: bool) -> dict[str, Any]:
    return {
        'picture': map_uri(cell.map, grey, span),
        'name': cell.name,
        'probability': format_probability(cell.probability),
        'present': present,
    }


def _draw(panels: dict[str, Panel]) -> list[tuple[str, str]]:
    """Titles and pictures, a picture each so that a narrow page can put them below one another."""
    if find_spec('matplotlib') is None:
        return []
    pictures = []
    for title, draw in panels.items():
        figure = new_figure(4.8, 3.8)
        axis = figure.subplots()
        draw(axis)
        handles, labels = axis.get_legend_handles_labels()
        if len(handles) > 1 and axis.get_legend() is None:  # below the lines, however many there are
            figure.set_figheight(3.8 + 0.19 * len(handles))
            names = [shortened(text, _LEGEND_LETTERS) for text in labels]
            figure.legend(handles, names, loc='outside lower center', fontsize=9, frameon=False)
        pictures.append((title, data_uri(as_image(figure, 160), 'PNG')))
    return pictures


def _robustness_panels(names: Sequence[str], runs: Sequence[RunFiles]) -> dict[str, Panel]:
    """A panel for every threat, a line a run."""
    keys = sorted({(key, _title_of(run)) for run in runs for key in attack_lines(run)})

    def panel(key: AttackLine, figure: str) -> Panel:
        def draw(axis: Any) -> None:
            for number, (name, run) in enumerate(zip(names, runs, strict=True)):
                points = attack_lines(run).get(key)
                if points and _title_of(run) == figure:
                    axis.plot(
                        *zip(*points, strict=True), label=as_label(name), marker='o', markersize=5, **style_of(number)
                    )
            axis.set_ylim(bottom=0)
            images = f'{key.images} images' if key.images else ''
            measured = '; '.join(part for part in (key.strength, images) if part)
            label(axis, f'eps, {_units(key.space)}\n{measured}'.rstrip(), f'{figure} under {_attack_of(key)}, %')

        return draw

    return {_title_of_panel(key, figure): panel(key, figure) for key, figure in keys}


def _title_of_panel(threat: AttackLine, figure: str) -> str:
    images = f', {threat.images} images' if threat.images else ''
    strength = f' ({threat.strength})' if threat.strength else ''
    return f'{figure} under {_attack_of(threat)}{strength}{images}, eps in {_units(threat.space)}'


def _attack_of(threat: AttackLine) -> str:
    return threat.attack.upper() + (' on the loss of the training' if threat.loss == 'train' else '')


def _title_of(run: RunFiles) -> str:
    return 'mAP' if run.metric == 'map' else 'top-1'


def _eps(value: float) -> str:
    text, steps = f'{value:g}', value * 255
    return f'{round(steps)}/255' if len(text) > 5 and abs(steps - round(steps)) < 1e-3 else text


def _units(space: str) -> str:
    return 'units of the normalised input' if space == 'normalized' else 'pixels of [0, 1]'


def _robustness_table(run: RunFiles) -> list[dict[str, Any]]:
    return [
        {
            'attack': _attack_of(threat),
            'units': _units(threat.space),
            'images': threat.images,
            'strength': threat.strength,
            'points': [(_eps(eps), f'{value:.2f}') for eps, value in points],
        }
        for threat, points in attack_lines(run).items()
    ]
