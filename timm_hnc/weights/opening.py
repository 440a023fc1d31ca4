"""A model by what a user calls it: a run folder, a folder of weights, or a name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.weights.loading import WITH_WEIGHTS, check_classes, create_model
from timm_hnc.weights.saving import find_weights

A_MODEL = "a run folder, hf-hub:USER/NAME, local-dir:FOLDER or a name of timm's"


def open_model(model: str, pretrained: bool = False, **arguments: Any) -> CamModel:
    """A model in evaluation mode, on the CPU."""
    folder, name = find_weights(Path(model)), model
    if folder is not None:
        name = f'local-dir:{folder}'
    elif Path(model).is_dir():
        raise DataError(f"'{model}' is neither a run folder nor a folder of weights.")
    elif Path(model).is_file():
        raise DataError(f"'{model}' is a file: `timm-hnc import` makes a run folder of a checkpoint.")
    elif '/' in model and ':' not in model:
        raise DataError(f"'{model}' does not exist: expected {A_MODEL}.")
    if pretrained and not name.startswith(WITH_WEIGHTS):
        arguments['pretrained'] = True
    try:
        made = create_model(name, **arguments).eval()
    except (DataError, UnsupportedHead):
        raise
    except Exception as error:  # timm, safetensors, torch and the Hub each have errors of their own
        raise UsageError(f"'{model}' cannot be made: {first_lines(error)}") from error
    if name.startswith(WITH_WEIGHTS):
        check_classes(made.model, model)
    return made


def short_names(models: Sequence[str]) -> list[str]:
    """Short names of models that stand beside each other; numbered where they would be equal."""
    names = [short_name(model) for model in models]
    numbered = (f'{name} ({number})' for number, name in enumerate(names, 1))
    return names if len(set(names)) == len(names) else list(numbered)


def short_name(model: str) -> str:
    """The last part of a folder's or a model's name, for files and captions."""
    path = Path(model.removeprefix('local-dir:'))
    if path.exists():
        path = path.resolve() if not path.name else path.absolute()
        return path.parent.name if path.name in ('model_best', 'last', 'model') else path.name
    return (model.partition(':')[2] or model).partition('@')[0].rpartition('/')[2]
