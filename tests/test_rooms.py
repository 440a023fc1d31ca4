"""The rooms of the package and their floors: a room imports only from floors below its own."""

import ast
from pathlib import Path

import pytest
from running import ROOT

FLOORS = (
    ('errors', 'version', 'progress', 'alarm', 'launcher'),
    ('options', 'files'),
    ('cam', 'models'),
    ('losses', 'data', 'distillation', 'runtime'),
    ('tasks',),
    ('metrics', 'attacks', 'plots', 'weights', 'export'),
    ('evaluation',),
    ('checkpoints', 'report', 'demo'),
    ('hub',),
    ('training',),
    ('api', 'commands'),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = ROOT / 'timm_hnc'
FILES = sorted(path for path in PACKAGE.rglob('*.py') if path.parent != PACKAGE or not path.name.startswith('__'))


def room_of(module: str) -> str:
    """timm_hnc.cam.heads.probe -> cam."""
    return module.split('.')[1]


def imported(file: Path) -> set[str]:
    """Modules of the package that a file names in its imports, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            # what is then seen through attributes is not seen here; space.py asks it where its files lie
            assert 'timm_hnc' not in names or file.name == 'space.py', 'its modules are imported by their names'
            found.update(names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports are absolute'
            found.update(
                f'{node.module}.{alias.name}' if node.module == 'timm_hnc' else node.module for alias in node.names
            )
    return {name for name in found if name.startswith('timm_hnc.')}


def test_every_room_has_a_floor():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix('.py') for path in FILES} == set(FLOOR)


@pytest.mark.parametrize('file', FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_room_imports_from_the_floors_below(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix('.py')
    above = [name for name in imported(file) if room_of(name) != own and FLOOR[room_of(name)] >= FLOOR[own]]
    assert above == []


def test_a_run_is_set_up_without_what_it_puts_out():
    found = {(file, name) for file in PACKAGE.glob('training/setup/**/*.py') for name in imported(file)}
    assert found
    assert [each for each in found if each[1].startswith('timm_hnc.training.outputs')] == []


def test_a_room_has_about_a_dozen_files():
    folders = {path.parent for path in FILES}
    assert all(len([path for path in folder.glob('*.py') if path.name != '__init__.py']) <= 14 for folder in folders)
