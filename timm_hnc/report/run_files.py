"""What a run folder tells of its run, for the report."""

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from timm_hnc.errors import DataError, UsageError
from timm_hnc.files.run_curves import RunCurves, read_run
from timm_hnc.files.run_parts import Part, read_parts
from timm_hnc.plots.curves import told_apart
from timm_hnc.report.examples import Example, read_examples

_logger = logging.getLogger(__name__)
_SAME = 1.0  # percentage points; other devices and number formats differ by less
VALIDATION = 'validation.json'  # of validate.py --results-file, if it was written into the run folder
_ATTACKED = re.compile(r'(?P<attack>fgsm|pgd)_(?P<eps>[\d.e-]+)_(?P<figure>.+)')


class AttackLine(NamedTuple):
    """What the figures of an attack depend on, beside its eps.

    Args:
        attack: its name.
        space: units of eps.
        loss: that is attacked.
        strength: how many steps and starts, empty of FGSM and where that is not known.
        images: how many, empty for all of the validation data.
    """

    attack: str
    space: str
    loss: str = 'ce'
    strength: str = ''
    images: str = ''


@dataclass(frozen=True)
class RunFiles:
    """A finished run.

    Args:
        curves: options and epochs.
        result: of result.json.
        figures: final figures by name, those of the maps with 'cam_' in front.
        examples: best and worst images.
        confusions: rows of `ConfusionPass`.
        robustness: rows with 'attack', 'eps', 'space' and figures, of the run 'images', of validate.py 'attack_loss'
            and 'strength'; the clean images have eps = 0.
        changes: parts that went on with other options.
    """

    curves: RunCurves
    result: dict[str, Any]
    figures: dict[str, float]
    examples: dict[str, list[Example]]
    confusions: list[dict[str, Any]]
    robustness: list[dict[str, Any]]
    changes: list[Part] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The figure that counts: 'map' for several labels, else 'top1'."""
        return 'map' if self.curves.options.get('task') == 'multilabel' else 'top1'


@contextmanager
def reading_runs(folders: Sequence[Path]) -> Iterator[None]:
    """Around the reading and drawing of run folders: what no version of ours writes is told in one line.

    Raises:
        DataError: something in them is not what it should be.
    """
    try:
        yield
    except (UsageError, DataError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        names = ', '.join(f"'{folder}'" for folder in folders)
        raise DataError(f'{names}: not of this version of timm_hnc ({type(error).__name__}: {error}).') from error


def read_run_files(folder: Path) -> RunFiles:
    """Read a run folder; parts that an unfinished run or one without a report lacks are empty.

    Raises:
        DataError: it is no run folder, or a file is damaged.
    """
    curves, report = read_run(folder), folder / 'report'
    robustness = _read(report / 'robustness.json', list) or []
    validation = _read_validation(folder)
    return RunFiles(
        curves,
        read_result(folder),
        _figures(folder, validation),
        read_examples(report),
        _read(report / 'confusions.json', list) or [],
        _of_both(_attacks(validation), robustness),
        read_parts(folder)[1:],
    )


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run folder, empty where there is none."""
    return _read(folder / 'result.json', dict) or {}


def read_figures(folder: Path) -> dict[str, float]:
    """Final figures by name: those of the run, of its report, and of validate.py where it wrote into the folder."""
    return _figures(folder, _read_validation(folder))


def _figures(folder: Path, validation: dict[str, Any]) -> dict[str, float]:
    final = read_result(folder).get('final') or {}
    measured = {name: value for name, value in numbers(validation).items() if name.startswith('cam_') or not final}
    return numbers(final) | numbers(_read(folder / 'report' / 'figures.json', dict) or {}) | measured


def _read_validation(folder: Path) -> dict[str, Any]:
    """What validate.py wrote into a run folder; empty where its figures are not those of the run's end."""
    try:
        validation = _read(folder / VALIDATION, dict) or {}
    except DataError as error:
        _logger.warning(f'{error}: left out.')
        return {}
    final = numbers(read_result(folder).get('final') or {})
    for name in ('top1', 'map'):
        found = numbers(validation).get(name)
        if found is not None and abs(found - final.get(name, found)) > _SAME:
            _logger.warning(
                f"'{folder / VALIDATION}' is left out: {name} is {found:g} there and {final[name]:g} at the end of the "
                'run, so that it is of other images or weights.'
            )
            return {}
    return validation


def _read(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(content, kind) or not all(isinstance(row, dict) for row in content if kind is list):
        raise DataError(f"'{path}' is not what this version of timm_hnc writes there.")
    return content


def numbers(figures: Any) -> dict[str, float]:
    """Those of some figures that are finite numbers."""
    if not isinstance(figures, dict):
        return {}
    return {name: value for name, value in figures.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def _of_both(measured: list[dict[str, Any]], of_the_run: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of validate.py, and of the run's end those of other attacks or units."""
    known = {_threat(row)._replace(images='') for row in measured}
    return measured + [row for row in of_the_run if _threat(row)._replace(images='') not in known]


def _threat(row: dict[str, Any]) -> AttackLine:
    # report/robustness.json is of cross-entropy and does not say so
    texts = ('attack', ''), ('space', ''), ('attack_loss', 'ce'), ('strength', ''), ('images', '')
    return AttackLine(*(str(row.get(name, default)) for name, default in texts))


def _attacks(validation: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the attacks of validate.py, clean images first."""
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    of_all = {'space': validation.get('attack_space', 'pixel'), 'attack_loss': validation.get('attack_loss', 'ce')}
    for name, value in validation.items():
        match = _ATTACKED.fullmatch(name)
        if match:
            attack, eps = match['attack'], float(match['eps'])
            strength = _strength(validation) if attack == 'pgd' else ''
            clean: dict[str, Any] = {'attack': attack, 'eps': 0.0, 'strength': strength, **of_all}
            rows.setdefault((attack, 0.0), clean)[match['figure']] = validation.get(match['figure'])
            rows.setdefault((attack, eps), clean | {'eps': eps})[match['figure']] = value
    return [rows[key] for key in sorted(rows)]


def _strength(validation: dict[str, Any]) -> str:
    """Steps and starts of PGD, in words."""
    steps, size = validation.get('attack_steps'), validation.get('attack_step_size')
    if steps is None:  # of an older version
        return ''
    restarts = validation.get('attack_restarts', 1)
    starts = f'{restarts} starts' if restarts > 1 else ''
    start = 'from the image itself' if validation.get('attack_no_random_start') else starts
    return ', '.join(part for part in (f'{steps} steps', f'of {size:g}' if size else '', start) if part)


def attack_lines(run: RunFiles) -> dict[AttackLine, list[tuple[float, float]]]:
    """(eps, figure that counts) points of every threat."""
    lines: dict[AttackLine, list[tuple[float, float]]] = {}
    for row in run.robustness:
        if isinstance(row.get(run.metric), (int, float)):
            lines.setdefault(_threat(row), []).append((float(row['eps']), float(row[run.metric])))
    return {key: sorted(points) for key, points in lines.items()}


def names_of_runs(runs: Sequence[RunFiles]) -> list[str]:
    """Their folders' names, numbered where two are equal."""
    return [run.name for run in told_apart([run.curves for run in runs])]
