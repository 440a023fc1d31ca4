"""Command lines and YAML files to values: with the parser that says what there is, and which of them were given."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import yaml
from timm.utils import ParseKwargs

from timm_hnc.errors import UsageError
from timm_hnc.files.run_options import load_yaml
from timm_hnc.launcher import is_first_process
from timm_hnc.options import nearest

_logger = logging.getLogger(__name__)
_OFF = {'color_jitter': 0.0, 'smoothing': 0.0}  # what timm's train.py takes for null


class KeyValues(ParseKwargs):
    """timm's `name=value ...` options, with an argument that has no '=' refused by name instead of a traceback."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the dictionary of the given `name=value` words."""
        for value in values:
            if value and '=' not in value:
                raise argparse.ArgumentError(self, f"'{value}': expected name=value.")
        super().__call__(parser, namespace, values, option_string)


class HelpFormatter(argparse.HelpFormatter):
    """argparse's help with the defaults that say something: not None, False or an empty text, list or mapping."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        says_nothing = default is None or default is False or default in ('', [], {}, argparse.SUPPRESS)
        if says_nothing or '(default: ' in (action.help or ''):
            return action.help
        return f'{action.help} (default: %(default)s)'


class CommandParser(argparse.ArgumentParser):
    """argparse's parser with our help; of several processes that of rank 0 prints usage and ends with 2."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog, description=description, formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        if is_first_process():
            super().error(message)
        raise UsageError(message)


def load_config(
    parser: argparse.ArgumentParser, path: str | Path, former: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Read a YAML file of option names and values, as timm's `--config` takes it.

    Args:
        parser: whose options the file may set; its actions check and convert the values.
        path: the file, one flat mapping of destination names ('batch_size') to values. A number that YAML 1.1 reads
            as text ('3e-4') is a number where the option is one.
        former: keys that the parser had options for once, and what took their place. They are passed over, and one
            warning names them.

    Raises:
        UsageError: the file cannot be read, is no mapping, or has a key or value that the parser has no use for.
    """
    try:
        content = load_yaml(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'--config {path}: cannot be read ({error}).') from error
    except (yaml.YAMLError, ValueError) as error:  # a date or number that is none
        raise UsageError(f'--config {path}: not a YAML file ({" ".join(str(error).split())}).') from error
    if not isinstance(content, dict):
        raise UsageError(f'--config {path}: expected a mapping of option names to values.')
    actions = {action.dest: action for action in parser._actions if not isinstance(action, argparse._HelpAction)}
    values = {}
    for key, value in content.items():
        if key not in actions:
            if key in former:
                continue
            raise UsageError(f"{path}: unknown key '{key}'{nearest(str(key), actions)}")
        try:
            values[key] = _convert(actions[key], value)
        except (TypeError, ValueError) as error:
            raise UsageError(f'{path}: {key} = {value!r}: expected {_describe(actions[key])}.') from error
    passed_over = [f'{key} (now {former[key]})' for key in content if key in former and key not in actions]
    if passed_over and is_first_process():
        _logger.warning(f'{path}: options of other versions of timm are passed over: {", ".join(passed_over)}.')
    return values


def parse_options(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    former: Mapping[str, str] = MappingProxyType({}),
    given: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> tuple[argparse.Namespace, frozenset[str]]:
    """Parse a command line; values of the file that `--config` names replace defaults, the command line wins.

    Args:
        parser: may have an option with the destination `config`; it is not changed.
        argv: the command line, that of the process if None.
        former: keys of the file that are passed over (`load_config`).
        given: which values of the file somebody gave; the others are left to their defaults.

    Returns:
        The options, and the destinations that were given on the command line or in the file.

    Raises:
        UsageError: the file is refused (`load_config`).
        SystemExit: argparse's own, for `--help` and for what it refuses.
    """
    args, own = parser.parse_args(argv), given_on_command_line(parser, argv)
    if not getattr(args, 'config', None):
        return args, frozenset(own)
    values = given(load_config(parser, args.config, former))
    # a run's own args.yaml names the file it was made from, which is not read again
    values.pop('config', None)
    return argparse.Namespace(**vars(args) | values | own), frozenset(own | values)


def given_on_command_line(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What a command line sets itself, defaults and config files left aside."""
    defaults = [(action, action.default) for action in parser._actions]
    for action, _ in defaults:  # a copy of the parser takes longer than all of the parsing
        action.default = argparse.SUPPRESS
    try:
        return vars(parser.parse_args(argv))
    finally:
        for action, default in defaults:
            action.default = default


def refuse(
    parser: argparse.ArgumentParser, args: argparse.Namespace, explicit: frozenset[str], refused: Mapping[str, str]
) -> None:
    """Refuse options that the parser knows only to say what to use instead: `refused`, advice by destination.

    Their defaults are let through: timm writes every option into its args.yaml.
    """
    for action in parser._actions:
        dest = action.dest
        if dest in refused and dest in explicit and getattr(args, dest) != action.default:
            raise UsageError(f'{action.option_strings[0]}: {refused[dest]}')


def _convert(action: argparse.Action, value: Any) -> Any:
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise TypeError
        return value
    if value is None and action.default is None:
        return None
    if value is None and action.dest in _OFF:
        return _OFF[action.dest]
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return value
    is_list = action.nargs not in (None, '?')
    if value is None and not is_list:
        # an empty text is what timm's scripts take for "none" wherever the default is a text
        value = '' if action.type in (None, str) else value
    if not is_list:
        return _convert_one(action, value)
    if not isinstance(value, list):
        raise TypeError
    if isinstance(action.nargs, int) and len(value) != action.nargs:
        raise ValueError
    # '+' wants one value or more on the command line; a default of none comes back from args.yaml
    if action.nargs == '+' and not value and value != action.default:
        raise ValueError
    return [_convert_one(action, element) for element in value]


def _convert_one(action: argparse.Action, value: Any) -> Any:
    kind = action.type if callable(action.type) else str
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    converted = kind(value) if kind in (int, float) else kind(str(value))
    if action.choices is not None and converted not in action.choices:
        raise ValueError
    return converted


def _describe(action: argparse.Action) -> str:
    if isinstance(action, argparse._StoreTrueAction):
        return 'true or false'
    if isinstance(action, ParseKwargs):
        return 'a mapping of names to values'
    one, many = ('an integer', 'integers') if action.type is int else ('text', 'texts')
    if action.type is float:
        one, many = 'a number', 'numbers'
    if action.choices is not None:
        return f'one of {", ".join(map(str, action.choices))}'
    if isinstance(action.nargs, int):
        return f'a list of {action.nargs} {many}'
    return one if action.nargs in (None, '?') else f'a list of {many}'
