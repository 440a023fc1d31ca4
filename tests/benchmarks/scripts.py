"""The commands of benchmarks/ as modules: their packages have the same names."""

import importlib.util
import sys
from types import ModuleType

from running import ROOT

FOLDER = ROOT / 'benchmarks'
sys.path.insert(0, str(FOLDER))


def load_script(name: str) -> ModuleType:
    """benchmarks/<name>.py."""
    spec = importlib.util.spec_from_file_location(f'{name}_script', FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
