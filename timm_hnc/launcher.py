"""What a launcher (torchrun, accelerate launch) tells a process, before there is an Accelerator to ask."""

import os


def process_count() -> int:
    """How many processes run together."""
    return int(os.environ.get('WORLD_SIZE') or 1)


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return (os.environ.get('RANK') or '0') == '0'
