"""How a process was started: what a launcher (torchrun, accelerate launch) tells it, and what the user typed."""

import os
import sys
from pathlib import Path


def process_count() -> int:
    """How many processes run together."""
    return int(os.environ.get('WORLD_SIZE') or 1)


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return (os.environ.get('RANK') or '0') == '0'


def command_words(script: str) -> list[str]:
    """What a user types to run the command that runs now: a subcommand of timm-hnc, or the script."""
    name = Path(sys.argv[0]).name
    console = {'timm-hnc': ['timm-hnc'], '__main__.py': ['python', '-m', 'timm_hnc']}.get(name)
    return [*console, *sys.argv[1:2]] if console else [script]


def command_line() -> list[str]:
    """All that the user typed to run the command that runs now."""
    script = Path(sys.argv[0]).name
    words = command_words(script)
    return [*words, *sys.argv[1 if words == [script] else 2 :]]
