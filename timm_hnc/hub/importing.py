"""Checkpoints of other code as run folders: the authors' ImageNet networks, or any state dict of a timm model."""

import hashlib
import os
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.models import is_model, load_state_dict

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.hub.weights import save_pretrained
from timm_hnc.rows import write_json


def import_checkpoint(
    file: Path, model_name: str, folder: Path, num_classes: int | None = None, hnc: dict[str, Any] | None = None
) -> None:
    """Make a run folder of a checkpoint, that validates and publishes like one of train.py.

    The file is a state dict or holds one as `state_dict` or `model`, possibly with the `module.` of DataParallel before
    its names. It is loaded without executing anything (`weights_only=True`).

    Args:
        file: .pth, .pth.tar or .safetensors.
        model_name: timm's name of the architecture.
        folder: the run folder, which must not exist.
        num_classes: of the classifier, the model's own if None.
        hnc: what the config's `hnc` block says of its training.

    Raises:
        UsageError: the folder exists, or there is no such architecture.
        DataError: the file cannot be read, or is of another architecture.
    """
    if not is_model(model_name):
        raise UsageError(f"--model '{model_name}' is no model of timm's.")
    if folder.exists():
        raise UsageError(f"run folder '{folder}' exists already: choose another --out.")
    if not file.is_file():
        raise DataError(f"checkpoint '{file}' does not exist.")
    try:
        state = load_state_dict(str(file), use_ema=False, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise DataError(
            f"checkpoint '{file}' cannot be read without executing code: {first_lines(error, 160)}"
        ) from error
    model: Any = timm.create_model(model_name, num_classes=num_classes)
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"checkpoint '{file}' is not of a '{model_name}': {first_lines(error)}") from error
    weights = folder / 'checkpoints' / 'imported' / 'model'
    try:
        save_pretrained(model, weights, hnc=hnc)
        os.symlink(weights.relative_to(folder), folder / 'model_best')
        recorded = {f'hnc_{name}': value for name, value in (hnc or {}).items() if name != 'variant'}
        about = {'model': model_name, 'num_classes': model.num_classes, 'hnc': (hnc or {}).get('variant', 'none')}
        (folder / 'args.yaml').write_text(yaml.safe_dump({**about, **recorded}))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        write_json(folder / 'result.json', {'model': model_name, 'imported_from': file.name, 'sha256': digest})
    except OSError as error:
        raise DataError(f"run folder '{folder}' cannot be written: {error}") from error
