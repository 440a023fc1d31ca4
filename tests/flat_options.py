"""Options as one bag, for tests that look at many, and as a file."""

from pathlib import Path
from types import SimpleNamespace

import yaml

from timm_hnc.commands.options import train_options, validate_options
from timm_hnc.options import flattened


def config(folder: Path, /, **values) -> str:
    path = folder / 'config.yaml'
    path.write_text(yaml.safe_dump(values))
    return str(path)


def parse_train_options(argv=None):
    options, explicit, _ = train_options.parse_train_options(argv)
    return SimpleNamespace(**flattened(options)), explicit


def parse_validate_options(argv=None):
    options, explicit, own = validate_options.parse_validate_options(argv)
    results = {name: own[name] for name in ('results_file', 'results_format')}
    return SimpleNamespace(**flattened(options), **results), explicit
