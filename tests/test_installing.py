"""What is installed does without the repository, and a clone named as the package is in no import's way.

The environments are fresh but for what timm_hnc needs, which comes from the tests' own; no network is used.
"""

import json
import os
import subprocess
import sys
import tarfile
import venv
from email.parser import HeaderParser
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from data_fixtures import images
from forks import Script
from packaging.requirements import Requirement
from running import ROOT, SMALL, clean_process, train

from timm_hnc.version import __version__

__all__ = ['clean_process', 'images']
NAME = 'timm_hnc'

# `python -m MODULE ...` and Python of a user, in one process: importing takes longer than all the rest
USED = """
import json, sys

sys.path[:] = json.loads(sys.argv.pop())

import importlib.resources, runpy
from pathlib import Path

def command(module, *argv):
    sys.argv = [module, *argv]
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as end:
        return end.code or 0

run, out = map(Path, sys.argv[1:])
codes = [command('timm_hnc', *words) for words in ([], ['push', '--help'], ['train', '--help'])]
codes.append(command('timm_hnc', 'report', str(run), '--out', str(out / 'report.html')))

import timm_hnc
from timm_hnc.hub.bundle import bundle_run
bundle_run(run, out / 'published', 'user/name')
model = timm_hnc.create_model(f'local-dir:{run / "model_best"}')
typed = importlib.resources.files('timm_hnc').joinpath('py.typed').is_file()
print('--result\\n' + json.dumps([timm_hnc.__file__, codes, typed, model.num_classes]))
"""


def without_repository() -> dict[str, str]:
    """The environment, with nothing of the repository on its path."""
    return {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}


def run(*command, cwd: Path) -> str:
    """What a command prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=without_repository(), capture_output=True, text=True, timeout=350)
    assert done.returncode == 0, f'{" ".join(words)}\n{done.stdout}\n{done.stderr}'
    return done.stdout


def fresh_environment(folder: Path) -> tuple[Path, Path]:
    """The interpreter of a new environment, and the folder of its packages."""
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob('lib/python*/site-packages')
    outside = [path for path in sys.path if Path(path).name in ('site-packages', 'dist-packages')]
    (packages / 'outside.pth').write_text('\n'.join(outside))  # behind its own packages
    return folder / 'bin' / 'python', packages


def pip_install(python: Path, *what) -> None:
    pip = [sys.executable, '-m', 'pip', '--isolated', '--disable-pip-version-check', '--python', python]
    offline = ['--no-index', '--no-deps', '--no-build-isolation']
    # without --ignore-installed, the one that is outside would do
    run(*pip, 'install', '--quiet', '--ignore-installed', *offline, *what, cwd=python.parent)


def build(kind: str, source: Path, out: Path) -> Path:
    run(sys.executable, '-m', 'hatchling', 'build', '-t', kind, '-d', out, cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """The sources in a folder named as the package is, made of a source distribution."""
    folder = tmp_path_factory.mktemp('a folder')
    with tarfile.open(build('sdist', ROOT, folder / 'sdist')) as archive:
        archive.extractall(folder / 'unpacked', **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    (unpacked,) = (folder / 'unpacked').iterdir()
    return unpacked.rename(folder / NAME)


@pytest.fixture(scope='module')
def wheel(clone, tmp_path_factory):
    return build('wheel', clone, tmp_path_factory.mktemp('wheel'))


def files_below(folder: Path) -> set[str]:
    """Their names; nobody wrote those of caches."""
    files = [path.relative_to(folder.parent) for path in folder.rglob('*') if path.is_file()]
    return {path.as_posix() for path in files if not any(part.startswith(('.', '__pycache__')) for part in path.parts)}


@pytest.mark.parametrize('name', ['timm_hnc', 'hparams', 'benchmarks', 'tests', 'docs'])
def test_a_source_distribution_holds_all_that_readme_runs(clone, name):
    assert files_below(clone / name) == files_below(ROOT / name)
    beside = {'pyproject.toml', 'README.md', 'LICENSE', 'train.py', 'validate.py', 'mkdocs.yml'}
    assert beside | {'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md'} < set(os.listdir(clone))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.split('/')[0].endswith('.dist-info')}
    assert names - about == files_below(ROOT / NAME)
    assert any(name.endswith('/licenses/LICENSE') for name in about)


def test_quickstart_shows_everything(wheel):
    """Its data set, and the curves of its report."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('/METADATA'))
        lines = HeaderParser().parsestr(archive.read(name).decode()).get_all('Requires-Dist')
    asked = [each for each in map(Requirement, lines) if each.marker and each.marker.evaluate({'extra': 'quickstart'})]
    assert {each.name for each in asked} == {'scikit-learn', 'matplotlib'}


def test_a_wheel_does_without_the_repository(wheel, images, tmp_path):
    python, packages = fresh_environment(tmp_path / 'environment')
    pip_install(python, wheel)
    made = train('--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run')
    empty = tmp_path / 'empty'
    empty.mkdir()
    (tmp_path / 'used.py').write_text(USED)
    # in a process that has torch, with the path of the environment's interpreter
    path = json.loads(run(python, '-c', 'import json, sys; print(json.dumps(sys.path[1:]))', cwd=empty))
    words = [tmp_path / 'used.py', made, tmp_path, json.dumps(path)]
    used = Script([str(word) for word in words], without_repository(), cwd=empty, imported='torch')
    printed, errors = used.communicate(timeout=350)
    assert used.returncode == 0, errors
    for command in ('timm-hnc COMMAND', 'timm-hnc push', 'python -m timm_hnc train'):
        assert f'usage: {command} ' in printed
    assert json.loads(printed.rpartition('--result\n')[2]) == [
        str(packages / NAME / '__init__.py'),
        [0, 0, 0, 0],
        True,
        3,
    ]
    [console] = PathDistribution(packages / f'{NAME}-{__version__}.dist-info').entry_points
    assert (console.group, console.name) == ('console_scripts', 'timm-hnc')
    assert console.load().__module__ == 'timm_hnc.commands.console'
    assert (python.parent / 'timm-hnc').is_file()
    assert '<h2>Final figures</h2>' in (tmp_path / 'report.html').read_text()
    assert "timm.create_model('hf-hub:user/name'" in (tmp_path / 'published' / 'README.md').read_text()
    assert not list(empty.iterdir())


def test_an_editable_install_is_found_beside_a_clone_of_its_name(clone, tmp_path):
    python, _ = fresh_environment(tmp_path / 'environment')
    pip_install(python, '-e', clone)
    # a namespace package, which the clone's folder would be, has no such file
    code = f'from importlib.util import find_spec; print(find_spec({NAME!r}).origin)'
    assert run(python, '-c', code, cwd=clone.parent) == f'{clone / NAME / "__init__.py"}\n'
