"""Start one run several times at once, kill the one that goes on, and start it several times again."""

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

from faults.kills import command, runs_are_equal, start
from timm_hnc.files.tables import read_csv

STARTED = 3  # at once
REFUSED = re.compile(r"train\.py: error: run folder '.*' is in use by process (\d+) on \S+, since ")


@dataclass
class Together:
    """What was seen so far.

    Args:
        rounds: folders that several processes wanted.
        starts: of processes.
        refused: of them in one line that names the holder, with exit code 1.
        kills: holders that were killed, their loading workers frozen.
        resumed: starts right after a kill of which one went on.
        equal: runs that equal the undisturbed one in every bit, with every epoch once.
    """

    rounds: int = 0
    starts: int = 0
    refused: int = 0
    kills: int = 0
    resumed: int = 0
    equal: int = 0

    @property
    def good(self) -> bool:
        """Whether nobody ever wrote into another's folder."""
        left = self.starts - self.refused - self.kills
        return self.equal == self.rounds == left and self.resumed == self.kills


def start_together(work: Path, rounds: int, seed: int, extra: list[str]) -> Together:
    """Rounds of a run that is started several times at once, killed, and started several times again."""
    rng, count = random.Random(seed), Together()
    argv = command(work, 'together', ['--epochs', '2', '--workers', '2', *extra])
    whole = start(command(work, 'alone', ['--epochs', '2', '--workers', '2', *extra]), work / 'alone.txt')
    if whole.wait():
        sys.exit(f'the undisturbed run failed:\n{(work / "alone.txt").read_text()[-2000:]}')
    for _ in range(rounds):
        holder = _start(argv, work, rng, count)
        _wait_for(holder, work / 'together' / 'checkpoints', rng.uniform(0, 1))
        frozen = _freeze_workers(holder)
        holder.kill()
        holder.wait()
        count.kills += 1
        holder = _start(argv, work, rng, count)
        count.resumed += 1
        code = holder.wait()
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
        if code:
            sys.exit(f'a resumed run failed with {code}.')
        epochs = [row['epoch'] for row in read_csv(work / 'together' / 'summary.csv')]
        count.rounds += 1
        count.equal += epochs == ['0', '1'] and runs_are_equal(work / 'alone', work / 'together')
        print(f'{count}', flush=True)
        shutil.rmtree(work / 'together')
    return count


def _start(argv: list[str], work: Path, rng: random.Random, count: Together) -> subprocess.Popen:
    """Start it several times; the one process that was not refused.

    Raises:
        SystemExit: none or several go on, or one ends in another way.
    """
    logs = [work / f'log-{number}.txt' for number in range(STARTED)]
    running = {}
    for log in logs:
        running[log] = start(argv, log)
        time.sleep(rng.choice([0, rng.uniform(0, 0.5)]))
    count.starts += STARTED
    while len(running) > 1:
        time.sleep(0.05)
        for log, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[log]
            found = REFUSED.findall(log.read_text())
            others = {str(each.pid) for each in running.values()}
            if process.returncode != 1 or len(found) != 1 or found[0] not in others:
                sys.exit(f'exit code {process.returncode}, not refused by one of {others}:\n{log.read_text()[-2000:]}')
            count.refused += 1
    [holder] = running.values()
    return holder


def _wait_for(holder: subprocess.Popen, checkpoints: Path, seconds: float) -> None:
    """Until there is a checkpoint, and so long after."""
    while not list(checkpoints.glob('[!.]*')):
        if holder.poll() is not None:
            sys.exit(f'the run ended with {holder.returncode} before its first checkpoint.')
        time.sleep(0.02)
    time.sleep(seconds)


def _freeze_workers(holder: subprocess.Popen) -> list[int]:
    """Stop its loading workers, which would else see that it is gone and end; their process ids."""
    children = Path(f'/proc/{holder.pid}/task/{holder.pid}/children').read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGSTOP)
    return [int(pid) for pid in children]
