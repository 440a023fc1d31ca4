"""What a run tells about itself: summary.csv, trackers and result.json."""

import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import trim_summary

from timm_hnc.errors import DataError
from timm_hnc.files.tables import csv_text, json_text, read_csv
from timm_hnc.files.whole import write_whole
from timm_hnc.launcher import command_line
from timm_hnc.report.run_files import VALIDATION
from timm_hnc.training.setup.output_options import TrackingOptions
from timm_hnc.version import __version__

_PACKAGES = ('timm', 'torch', 'torchvision', 'accelerate', 'safetensors', 'huggingface-hub')


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that a file of the run cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error}") from error


def drop_rows(path: Path, start_epoch: int) -> None:
    """Drop what summary.csv has of an earlier attempt at this and later epochs."""
    if not path.exists():
        return
    trimmed = path.with_name(f'.{path.name}.new')
    shutil.copy(path, trimmed)
    trim_summary(str(trimmed), start_epoch)
    os.replace(trimmed, path)  # a run that is killed meanwhile has its rows


def add_row(path: Path, row: dict[str, float]) -> None:
    """Add an epoch to summary.csv; cells are empty where a resume has figures that the run had not before, or less."""
    rows = read_csv(path) if path.exists() else []
    with writing(path):
        write_whole(path, csv_text([*rows, row]))


def start_trackers(accelerator: Accelerator, folder: Path, tracking: TrackingOptions, values: dict[str, Any]) -> None:
    """Open TensorBoard or Weights & Biases, as the options ask."""
    if not accelerator.log_with:
        return
    accelerator.project_configuration.logging_dir = str(folder)
    # TensorBoard takes no others
    config = {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}
    wandb: dict[str, Any] = {
        'name': folder.name,
        'tags': list(tracking.wandb_tags),
        'dir': str(folder),
        'config': values,
    }
    if tracking.wandb_resume_id:
        wandb |= {'id': tracking.wandb_resume_id, 'resume': 'must'}
    project = tracking.wandb_project or os.environ.get('WANDB_PROJECT') or 'timm_hnc'
    accelerator.init_trackers(project, config, {'wandb': wandb})


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, device and command line, for result.json."""
    device = accelerator.device
    return {
        'versions': {
            'python': platform.python_version(),
            'timm_hnc': __version__,
            **{name: version(name) for name in _PACKAGES},
        },
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
        'num_processes': accelerator.num_processes,
        'precision': accelerator.mixed_precision,
        'command': shlex.join(command_line()),
    }


def remove_results(folder: Path) -> None:
    """Take away what an earlier end of the run left: its figures are not those of the weights to come."""
    for name in ('result.json', VALIDATION, 'report.html', 'cams/best.png'):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"'{folder / name}' of an earlier end cannot be removed: {error}") from error
    shutil.rmtree(folder / 'report', ignore_errors=True)


def figures_of(folder: Path, epoch: int, data: str = 'eval') -> dict[str, float]:
    """Figures of an epoch on the validation ('eval') or training data ('train') in summary.csv; empty without any."""
    row = next((row for row in read_csv(folder / 'summary.csv') if int(row['epoch']) == epoch), {})
    figures = {name.partition('_')[2]: value for name, value in row.items() if name.startswith(f'{data}_')}
    return {name: float(value) for name, value in figures.items() if value}


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json."""
    with writing(folder / 'result.json'):
        write_whole(folder / 'result.json', json_text(result))
