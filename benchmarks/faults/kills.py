"""Kill the quickstart at random moments with SIGKILL, resume it, and compare it with one that was left alone."""

import atexit
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
UPDATES_PER_EPOCH = 22  # of the quickstart
UPDATE = re.compile(r'Train: (\d+) \[ *(\d+)/(\d+)\]')
RESUMED = re.compile(r"Going on from '.*' with epoch (\d+), update (\d+)\.")


@dataclass
class Count:
    """What was seen so far.

    Args:
        kills: processes killed.
        resumes: starts that went on from a checkpoint.
        lost: updates that had been made and were made again.
        rounds: runs that came to their end.
        equal: those of them that equal the undisturbed run in every bit.
    """

    kills: int = 0
    resumes: int = 0
    lost: int = 0
    rounds: int = 0
    equal: int = 0


def command(output: Path, name: str, extra: list[str]) -> list[str]:
    """The quickstart's command line with `extra` options, and a checkpoint every few updates."""
    fixed = ['--checkpoint-interval', '4', '--log-interval', '1', '--no-report', '--cam-images', '0']
    place = ['--output', str(output), '--experiment', name, '--resume', 'auto']
    script = [sys.executable, str(ROOT / 'train.py'), '-c', str(ROOT / 'hparams' / 'quickstart.yaml')]
    return [*script, *fixed, *extra, *place]


def start(argv: list[str], log: Path) -> subprocess.Popen:
    """Run in the background, in a process group of its own that ends with this process."""
    with log.open('w') as file:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    atexit.register(kill, process)
    return process


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the whole group, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def updates_in(log: str) -> tuple[int | None, int | None]:
    """Updates that a log begins from (0 for an untrained network) and reaches; None where it does not get there."""
    found = [tuple(map(int, each)) for each in UPDATE.findall(log)]
    resumed = RESUMED.search(log)
    begin = int(resumed[1]) * UPDATES_PER_EPOCH + int(resumed[2]) if resumed else None
    end = found[-1][0] * found[-1][2] + found[-1][1] if found else begin
    return (0 if begin is None and found else begin), end


def tensors(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint keeps."""
    state = torch.load(checkpoint / 'training_state.pt', weights_only=True)
    weights = load_file(checkpoint / 'model' / 'model.safetensors')
    return {'state': state, 'weights': weights, 'progress': (checkpoint / 'state.json').read_text()}


def same(left: Any, right: Any) -> bool:
    """Whether nested states are equal in every bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


def runs_are_equal(run: Path, other: Path) -> bool:
    """Whether two runs kept the same checkpoints and rows."""
    names = [{path.name for path in (each / 'checkpoints').iterdir()} for each in (run, other)]
    rows = [(each / 'summary.csv').read_bytes() for each in (run, other)]
    if names[0] != names[1] or rows[0] != rows[1]:
        return False
    return all(same(*(tensors(each / 'checkpoints' / name) for each in (run, other))) for name in names[0])


def kill_and_resume(work: Path, kills: int, seed: int, extra: list[str]) -> Count:
    """Rounds of a run with `extra` options that is killed at random moments, until there were so many kills."""
    rng, count, log = random.Random(seed), Count(), work / 'log.txt'
    started = time.monotonic()
    whole = start(command(work, 'undisturbed', extra), log)
    if whole.wait():
        sys.exit(f'the undisturbed run failed:\n{log.read_text()[-2000:]}')
    print(f'undisturbed: {time.monotonic() - started:.0f} s', flush=True)
    reached = 0
    while count.kills < kills or (work / 'killed').exists():
        process = start(command(work, 'killed', extra), log)
        try:
            process.wait(rng.uniform(2, 20) if count.kills < kills else None)
        except subprocess.TimeoutExpired:
            kill(process)
        begin, end = updates_in(log.read_text())
        if begin is not None:
            count.resumes += begin > 0
            count.lost += reached - begin
            reached = end or 0
        if process.returncode == -signal.SIGKILL:
            count.kills += 1
            continue
        if process.returncode:
            sys.exit(f'a resumed run failed:\n{log.read_text()[-2000:]}')
        count.rounds += 1
        count.equal += runs_are_equal(work / 'undisturbed', work / 'killed')
        print(f'{count}', flush=True)
        shutil.rmtree(work / 'killed')
        reached = 0
    return count
