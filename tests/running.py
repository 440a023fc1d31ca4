"""Running train.py and validate.py: in this process, in one of its own, in several."""

import csv
import importlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from forks import Script
from timm.layers import set_fast_norm
from timm.utils.log import FormatterNoInfo

from timm_hnc.cam.heads.probe import MapHead, name_of, probe_head
from timm_hnc.commands.console import COMMANDS

ROOT = Path(__file__).parents[1]
# as small as it learns with: most of a test's time would be convolutions
NARROW = {'output_stride': 8, 'stem_width': 16, 'channels': (16, 16, 16, 16), 'layers': (1, 1, 0, 0)}
MODEL = [
    *('--model', 'test_resnet', '--model-kwargs'),
    *(f'{name}={value}'.replace(' ', '') for name, value in NARROW.items()),
    *('--num-classes', '3', '--img-size', '32'),
]
SMALL = [
    *MODEL,
    *('--workers', '0', '-b', '8', '--epochs', '1', '--device', 'cpu'),
    *('--no-report', '--cam-images', '0'),  # each takes as long as a run as small as this
]
WITH_REPORT = [word for word in SMALL if word != '--no-report']
# Accelerate reads it anew at every look whether a package is there
importlib.metadata.metadata = cache(importlib.metadata.metadata)
# libyaml's reads a run's args.yaml ten times as fast
yaml.SafeLoader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
# a loader of a failed run is collected late, and then waits this long for its workers
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.3
_LAUNCHER = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Accelerate, logging and the launcher's environment as in a fresh process, before and after."""
    for name in [name for name in os.environ if name.startswith('ACCELERATE_') or name in _LAUNCHER]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(sys, 'argv', ['pytest'])  # however the tests were started: commands say how they were
    forget_run()
    level = logging.root.level
    yield
    forget_run()
    set_fast_norm(False)  # --fast-norm is for the whole process
    logging.root.setLevel(level)


def forget_run() -> None:
    """Drop what Accelerate and logging keep of a run for the life of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for handler in [handler for handler in logging.root.handlers if isinstance(handler.formatter, FormatterNoInfo)]:
        logging.root.removeHandler(handler)


@contextmanager
def kept_process_group():
    """Let every run of a script under torchrun use the same processes' group: it cannot be made twice.

    It is left before the script ends: a thread of gloo that frees a tensor while the interpreter ends aborts it.
    """
    destroy, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda self, group=None: None
    yield
    PartialState.destroy_process_group = destroy
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main_of(command: str):
    """The main() of a command of ours."""
    return importlib.import_module(f'timm_hnc.commands.{COMMANDS[command][0]}').main


_HEADS: dict[str, MapHead] = {}


def _probe_once(model, place, image_size):
    if place or name_of(model) not in ('test_resnet', 'test_efficientnet_gn'):
        return probe_head(model, place, image_size)
    network = repr(model)
    if network not in _HEADS:
        _HEADS[network] = probe_head(model)
    return _HEADS[network]


def probed_once():
    """Every run probes its network twice, and most are of the same ones: for the time of a with statement, once."""
    return mock.patch('timm_hnc.cam.model.probe_head', _probe_once)


def train(*argv) -> Path:
    """Run train.py's main(); the run folder that --output and --experiment name."""
    from timm_hnc.commands.train import main

    argv = [str(word) for word in argv]
    forget_run()
    with probed_once():
        main(argv)
    if '--output' not in argv or '--experiment' not in argv:
        return Path()
    return Path(argv[argv.index('--output') + 1]) / argv[argv.index('--experiment') + 1]


def validate(capsys, *argv):
    """Run validate.py's main(); the figures that it prints."""
    from timm_hnc.commands.validate import main

    forget_run()
    capsys.readouterr()
    main([str(word) for word in argv])
    return json.loads(capsys.readouterr().out.rpartition('--result\n')[2])


def failure(capsys, command: str, *argv) -> tuple[int, str]:
    """Run a command line that fails: its exit code, and the one line of stderr that says error."""
    from timm_hnc.commands.command_line import run_command

    forget_run()
    capsys.readouterr()
    code = run_command(main_of(command), [str(word) for word in argv])
    captured = capsys.readouterr()
    assert 'Traceback' not in captured.err
    lines = [line for line in captured.err.splitlines() if ': error: ' in line]
    assert len(lines) == 1, captured.err
    assert captured.err.rstrip().endswith(lines[0])
    return code, lines[0].partition(': error: ')[2]


def subprocess_environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith('ACCELERATE_')}
    for name in _LAUNCHER:
        environment.pop(name, None)
    paths = [str(ROOT), str(ROOT / 'tests'), environment.get('PYTHONPATH', '')]
    return environment | {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'PYTHONPATH': os.pathsep.join(paths)}


def start_script(
    *command, processes: int = 0, fresh: bool = False, cwd: Path | None = None, imported: str = 'timm_hnc'
) -> Script | subprocess.Popen:
    """Start a Python script, alone or in several processes.

    Args:
        command: a path, '-m' and a module, or '-c' and code, and the arguments.
        processes: in a group; 0 for one without.
        fresh: an interpreter of its own, and torchrun for a group, rather than forks that have all imports done.
        cwd: folder to work in.
        imported: what a fork need not import: 'timm_hnc' and all that it imports, or 'torch' alone.
    """
    words = [str(word) for word in command]
    if not fresh and words[0] != '-c':
        return Script(words, subprocess_environment(), processes, cwd, imported)
    launcher = [sys.executable]
    if processes:
        launcher += ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen([*launcher, *words], env=subprocess_environment(), cwd=cwd, start_new_session=True, **pipes)


def run_script(*command, **kwargs) -> subprocess.CompletedProcess:
    """A Python script to its end; `start_script` says how."""
    process = start_script(*command, **kwargs)
    out, err = process.communicate(timeout=150)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def result_of(process: subprocess.CompletedProcess):
    """What a script printed after --result."""
    assert process.returncode == 0, process.stderr[-3000:]
    text = process.stdout.rpartition('--result\n')[2]
    return json.JSONDecoder().raw_decode(text)[0]


def summary(run: Path) -> list[dict[str, float]]:
    """The rows of summary.csv, without their empty cells."""
    with (run / 'summary.csv').open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def result(run: Path) -> dict:
    return json.loads((run / 'result.json').read_text())


def arguments(run: Path) -> dict:
    return yaml.safe_load((run / 'args.yaml').read_text())


def training_state(run: Path) -> dict:
    return torch.load(run / 'last' / 'training_state.pt', weights_only=True)


def best_weights(run: Path) -> dict:
    return safetensors.torch.load_file(run / 'model_best' / 'model.safetensors')


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / 'checkpoints').iterdir()}


def equal_tensors(left: dict, right: dict) -> bool:
    """Whether two state dicts are equal bit by bit."""
    return left.keys() == right.keys() and not differences(left, right)


def differences(left, right, where: str = '') -> list[str]:
    """Where two nested states differ, in any bit."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [each for key in left for each in differences(left[key], right[key], f'{where}/{key}')]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [each for index, pair in pairs for each in differences(*pair, f'{where}/{index}')]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        equal = left.dtype == right.dtype and torch.equal(left, right)
    else:
        equal = type(left) is type(right) and left == right
    return [] if equal else [where]


def state_of_checkpoint(checkpoint: Path) -> dict:
    """All that a checkpoint keeps: the figures of state.json and every tensor."""
    return {
        'progress': json.loads((checkpoint / 'state.json').read_text()),
        'training': torch.load(checkpoint / 'training_state.pt', weights_only=True),
        'weights': safetensors.torch.load_file(checkpoint / 'model' / 'model.safetensors'),
    }


def run_differences(run: Path, other: Path) -> list[str]:
    """Where two runs' results differ, in any bit: every checkpoint that is kept, and the rows of summary.csv."""
    found = differences(
        *({path.name: state_of_checkpoint(path) for path in (each / 'checkpoints').iterdir()} for each in (run, other))
    )
    rows = [(each / 'summary.csv').read_text() for each in (run, other)]
    return found + (['summary.csv'] if rows[0] != rows[1] else [])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, to see that none of them was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}
