"""Models from the Hub and from folders in its format, looked at before timm builds them."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from timm.models import is_model, parse_model_name
from timm.models._hub import hf_split

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.base import classifier_names
from timm_hnc.data.transforms import INTERPOLATIONS
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.weights.hub_errors import explain, is_of_the_hub
from timm_hnc.weights.saving import check_weights_file, find_weights

# names that weights come with, the second as older versions of timm write it
WITH_WEIGHTS = ('hf-hub:', 'hf_hub:', 'local-dir:')
# what a config may tell timm of where weights lie; none of them is needed in a repository that holds its own
_PATHS = ('file', 'hf_hub_filename')
# arguments of timm's that are no part of an architecture
_NOT_OF_A_MODEL = ('pretrained', 'features', 'checkpoint', 'cache_dir', 'scriptable', 'exportable', 'no_jit')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) is int and 0 < n <= 65536 for n in value)
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    names = list(value.values()) if isinstance(value, dict) else value
    return isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)


# what a config may say of these, and how a message puts it
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    'input_size': (_is_size, 'three whole numbers: channels, height and width'),
    'mean': (_are_numbers, 'numbers'),
    'std': (_are_numbers, 'numbers'),
    'interpolation': (lambda value: value in INTERPOLATIONS, f'one of {", ".join(INTERPOLATIONS)}'),
    'crop_pct': (lambda value: _is_number(value) and value > 0, 'a number above 0'),
    'num_classes': (lambda value: type(value) is int and value >= 0, 'a whole number'),
    'label_names': (_are_names, 'names'),
}


def create_model(model_name: str, **kwargs: Any) -> CamModel:
    """`CamModel(timm.create_model(...))`; weights of 'hf-hub:' and 'local-dir:' names are loaded unless told not to.

    Args:
        model_name: any name timm knows, `hf-hub:user/name`, `hf-hub:user/name@revision` or `local-dir:path`.
        **kwargs: for `timm.create_model`; `global_pool='avg'` gives most class-token models maps that
            can be trained on.

    Raises:
        UnsupportedHead: (a ValueError) no exact class maps for this model.
        DataError: (a RuntimeError) the repository or folder cannot be read, or is damaged.

    Example:
        >>> model = create_model('hf-hub:user/name')
        >>> model.class_names
    """
    source, _ = parse_model_name(model_name)
    asked = set(kwargs) - {'pretrained'}
    kwargs.setdefault('pretrained', bool(source))
    try:
        with reading(model_name):
            model = timm.create_model(model_name, **kwargs)
    except (TypeError, AssertionError) as error:
        if not source or asked:  # arguments of the caller's
            raise
        raise DataError(f"the config.json of '{model_name}' makes no model: {first_lines(error)}") from error
    return CamModel(model)


def check_classes(model: Any, name: str) -> None:
    """Refuse a model made with another number of classes than its weights have, whose classifier is untrained.

    Raises:
        DataError: of a model with weights of a folder or of the Hub that `name` calls by its name.
    """
    own = model.pretrained_cfg.get('num_classes', model.num_classes)
    if own != model.num_classes:
        raise DataError(f"'{name}' has {own} classes, --num-classes says {model.num_classes}: leave it out.")


def is_of_classes(error: Exception, model: Any) -> bool:
    """Whether weights do not fit a model because of its number of classes."""
    return any(f'size mismatch for {name}.' in str(error) for name in classifier_names(model))


@contextmanager
def reading(model_name: str) -> Iterator[None]:
    """Around timm's making of a model: its config is checked before, and errors say what is wrong with it.

    Names of timm's own models pass through as they are.

    Raises:
        DataError: the repository or folder cannot be read, or is damaged.
    """
    source, where = parse_model_name(model_name)
    if not source:
        yield
        return
    name = model_name.removeprefix('hf_hub:').removeprefix('hf-hub:')
    try:
        check_config(_read_config(source, where), model_name)
        yield
    except (UsageError, DataError, TypeError, AssertionError):
        raise
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        if is_of_the_hub(error):
            raise DataError(explain(error, name)) from error
        raise DataError(f"the weights of '{model_name}' do not load: {first_lines(error)}") from error


def _read_config(source: str, where: str) -> Any:
    if source == 'local-dir':
        path = Path(where) / 'config.json'
        if not path.is_file():
            inside = find_weights(path.parent)
            way_out = f": did you mean 'local-dir:{inside}'?" if inside else '.'
            raise DataError(f"'{where}' holds no config.json{way_out}")
        check_weights_file(path.parent)
    else:
        try:
            name, revision = hf_split(where)
        except (AssertionError, ValueError) as error:
            raise DataError(f"'{where}' is no name of the Hub's: expected user/name or user/name@revision.") from error
        path = Path(hf_hub_download(name, 'config.json', revision=revision))
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f"the config.json of '{where}' cannot be read: {first_lines(error)}") from error


def check_config(config: Any, name: str) -> None:
    """Refuse what no config of a timm model holds.

    Raises:
        DataError: the architecture is unknown, or something points elsewhere than to the repository's own weights.
    """
    where = f"the config.json of '{name}'"
    inner = config.get('pretrained_cfg', config) if isinstance(config, dict) else None
    architecture = config.get('architecture') if isinstance(config, dict) else None
    if not isinstance(inner, dict) or not isinstance(architecture, str):
        raise DataError(f'{where} is not of a timm model: it has no architecture.')
    if not is_model(architecture):
        raise DataError(
            f"{where} names the architecture '{architecture}', which timm {timm.__version__} does not have: a newer "
            'timm may, or the repository needs a package of its own.'
        )
    for key in _PATHS:
        value = inner.get(key)
        if value and _leaves(str(value)):
            raise DataError(f"{where} points to a file elsewhere ({key}: '{value}'): not loaded.")
    for key, (is_good, expected) in _VALUES.items():
        value = inner.get(key, config.get(key))
        if value is not None and not is_good(value):
            raise DataError(f'{where} has {key} = {str(value)[:60]!r}: expected {expected}.')
    arguments = config.get('model_args') or {}
    wrong = not isinstance(arguments, dict) or next((key for key in arguments if key.startswith(_NOT_OF_A_MODEL)), None)
    if wrong:
        raise DataError(f'{where} has the model_args {wrong if isinstance(wrong, str) else arguments!r}: not loaded.')


def _leaves(path: str) -> bool:
    both = PurePosixPath(path), PureWindowsPath(path)
    return any(each.is_absolute() or '..' in each.parts for each in both) or '://' in path
