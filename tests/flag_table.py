"""The check that a parser has a flag of timm's scripts as their table has it."""

import argparse
import csv
from pathlib import Path

from timm.utils import ParseKwargs

KINDS = {
    'store': argparse._StoreAction,
    'storetrue': argparse._StoreTrueAction,
    'parsekwargs': ParseKwargs,
    'help': argparse._HelpAction,
}


def read_flags(path: Path) -> list[dict[str, str]]:
    """The rows of a table of flags."""
    return list(csv.DictReader(path.open()))


def check_flag(parser: argparse.ArgumentParser, row: dict[str, str]) -> None:
    """Same spelling, aliases, kind, type, number of values, default and choices."""
    flags = row['flags'].split()
    dest = next((flag for flag in flags if flag.startswith('--')), flags[0]).lstrip('-').replace('-', '_')
    action = {action.dest: action for action in parser._actions}[dest]
    assert action.option_strings == [flag for flag in flags if flag.startswith('-')]
    assert isinstance(action, KINDS[row['kind']])
    assert (action.type or str).__name__ == (row['type'] or 'str')
    assert str('' if action.nargs in (None, 0) else action.nargs) == row['nargs']
    assert str('' if action.default is None else action.default) == row['default']
    assert ' '.join(action.choices or ()) == row['choices']
