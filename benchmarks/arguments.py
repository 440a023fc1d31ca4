"""Types of the scripts' arguments."""

import argparse
from collections.abc import Callable


def at_least(low: int) -> Callable[[str], int]:
    """Of whole numbers from `low` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f'{text}: expected {low} or more')
        return value

    number.__name__ = 'whole number'  # argparse calls it so where the text is none
    return number
