"""The options of a run, as its folder keeps them."""

from pathlib import Path
from typing import Any

import yaml

from timm_hnc.errors import DataError

# libyaml's are ten times as fast, but not in every build of PyYAML
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
_DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)


def load_yaml(text: str) -> Any:
    """What a YAML text of plain values says.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _LOADER)


def dump_yaml(values: dict[str, Any]) -> str:
    """A YAML text of plain values, a line each, sorted by name."""
    return yaml.dump(values, Dumper=_DUMPER, default_flow_style=False)


def find_run(path: Path) -> Path | None:
    """The run folder that a path is or lies in, as its model_best and the weights of its checkpoints do; else None."""
    path = path.absolute()
    # RUN/checkpoints/epoch-0/model/model.safetensors has four folders
    folders = (path, path.parent, *list(path.resolve().parents)[:4])
    return next((folder for folder in folders if (folder / 'args.yaml').is_file()), None)


def read_options(folder: Path) -> dict[str, Any]:
    """args.yaml of a run folder.

    Raises:
        DataError: it is no run folder.
    """
    if not (folder / 'args.yaml').is_file():
        raise DataError(f"'{folder}' is no run folder of train.py: there is no args.yaml in it.")
    try:
        options = load_yaml((folder / 'args.yaml').read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"'{folder / 'args.yaml'}' cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise DataError(f"'{folder}' is no run folder of train.py: its args.yaml has no options.")
    return options
