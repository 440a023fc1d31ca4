"""Options: frozen dataclasses, each beside what it drives. An option has one name: as field, as flag, and in YAML."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from math import inf, isfinite
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from timm_hnc.errors import UsageError

Groups = TypeVar('Groups')
_KINDS: dict[Any, type] = {bool: bool, int: Integral, float: Real, str: str}
_WORDS = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'text'}


def flag_of(name: str) -> str:
    """The flag of an option: 'batch_size' -> '--batch-size'."""
    return '--' + name.replace('_', '-')


def given(name: str, value: Any) -> str:
    """An option as it is given: '--batch-size 8', '--amp', '--lr-noise 0.4 0.9'."""
    words = value if isinstance(value, (list, tuple)) else () if value is True else (value,)
    return ' '.join([flag_of(name), *map(str, words)])


def check_choice(options: Any, name: str, allowed: Iterable[str | None]) -> None:
    """Refuse a value that is not in `allowed`, which the message lists without None and ''.

    Raises:
        UsageError: with the flag, the value and what is allowed.
    """
    allowed, value = tuple(allowed), getattr(options, name)
    if value not in allowed:
        raise UsageError(f"{flag_of(name)} '{value}': expected one of {', '.join(text for text in allowed if text)}.")


def check_range(
    options: Any, *names: str, low: float = -inf, high: float = inf, above: float = -inf, below: float = inf
) -> None:
    """Refuse a number, or one in a list, that is not finite or not in [low, high] and (above, below); None passes.

    Raises:
        UsageError: with the flag, the value and what is allowed.
    """
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if number is None or (isfinite(number) and low <= number <= high and above < number < below):
                continue
            bounds = [f'{low:g} or more'] if isfinite(low) else []
            bounds += [f'{high:g} or less'] if isfinite(high) else []
            bounds += [f'more than {above:g}'] if isfinite(above) else []
            bounds += [f'less than {below:g}'] if isfinite(below) else []
            expected = ['a finite number'] * (not isfinite(number)) + [' and '.join(bounds)] * bool(bounds)
            raise UsageError(f'{flag_of(name)} {number}: expected {", ".join(expected)}.')


def check_output_file(name: str, path: str) -> None:
    """Refuse a file whose folder does not exist, or that is a folder itself; '' passes.

    Raises:
        UsageError: with the flag and the file.
    """
    if not path:
        return
    file = Path(path)
    if not file.parent.is_dir():
        raise UsageError(f'{flag_of(name)} {file}: its folder does not exist.')
    if file.is_dir():
        raise UsageError(f'{flag_of(name)} {file}: it is a folder, expected a file.')


def refuse_alone(options: Any, needed: str, names: Iterable[str]) -> None:
    """Refuse options of a dataclass that would do nothing, unless they have their default; a list may be a tuple.

    Args:
        options: the dataclass.
        needed: what it takes for them to do something.
        names: of the options.

    Raises:
        UsageError: with the flag and the value.
    """
    defaults = {each.name: each.default for each in fields(options)}
    for name in names:
        value = getattr(options, name)
        value = tuple(value) if isinstance(value, list) else value
        if value not in (defaults[name], None, ''):
            raise UsageError(f'{given(name, value)}: does nothing without {needed}.')


def grouped(kind: type[Groups], values: Mapping[str, Any]) -> Groups:
    """Options in their groups, from one mapping.

    Args:
        kind: dataclass of groups, such as TrainOptions.
        values: by name; those that are left out have their default.

    Raises:
        UsageError: a value cannot be used.
        TypeError: there is no such option.

    Example:
        >>> grouped(TrainOptions, {'epochs': 10, 'hnc': 'mse'}).schedule.epochs
        10
    """
    left, found = dict(values), {}
    for name, group in get_type_hints(kind).items():
        hints = _hints_of(group)
        given = {each.name: left.pop(each.name) for each in fields(group) if each.name in left}
        found[name] = group(**{each: _of_its_type(each, value, hints[each]) for each, value in given.items()})
    if left:
        known = [each.name for group in get_type_hints(kind).values() for each in fields(group)]
        raise TypeError(f'no option of {kind.__name__}: {", ".join(left)}{nearest(next(iter(left)), known)}')
    return kind(**found)


def nearest(name: str, known: Iterable[str]) -> str:
    """How a message ends that tells of an unknown name."""
    known, name = list(known), name.replace('-', '_')
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    found += sorted((each for each in known if len(each) > 2 and name.startswith(each)), key=len, reverse=True)
    found += difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean '{found[0]}'?" if found else ', and no option has a similar name.'


@cache
def _hints_of(group: type) -> dict[str, Any]:
    return get_type_hints(group)


def _of_its_type(name: str, value: Any, hint: Any) -> Any:
    """A value as its option has it, paths as text, and a list of the one value that is given for a list.

    Raises:
        UsageError: it is of another type, or none of the choices.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    lists = [get_args(kind)[0] for kind in kinds if get_origin(kind) is Sequence]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if value is None and (NoneType in kinds or not choices):
        return () if lists and NoneType not in kinds else None
    if lists:
        return _list_of(name, value, lists[0])
    if any(get_origin(kind) is dict for kind in kinds) and not isinstance(value, Mapping):
        raise UsageError(f'{flag_of(name)} {value!r}: expected a mapping of names to values.')
    types = [kind for kind in kinds if kind in _KINDS]
    if not (choices or types):
        return value
    if isinstance(value, PathLike) and str in types:
        return fspath(value)
    if choices and value not in choices:
        raise UsageError(f"{flag_of(name)} '{value}': expected one of {', '.join(map(str, choices))}.")
    fitting = next((kind for kind in types if _fits(value, kind)), None)
    if types and fitting is None:
        raise UsageError(f'{flag_of(name)} {value!r}: expected {" or ".join(_WORDS[kind] for kind in types)}.')
    return fitting(value) if fitting and type(value) not in _KINDS else value  # numbers of numpy


def _list_of(name: str, value: Any, kind: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        raise UsageError(f'{flag_of(name)} {value!r}: expected a list.')
    values = value.tolist() if hasattr(value, 'tolist') else value  # of arrays and tensors
    values = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    found = [_of_its_type(name, each, kind) for each in values]
    return tuple(found) if isinstance(values, tuple) else found


def _fits(value: Any, kind: type) -> bool:
    return kind is bool if isinstance(value, bool) else isinstance(value, _KINDS[kind])


def flattened(options: Any) -> dict[str, Any]:
    """All options of all groups by name, with lists in place of tuples, as YAML keeps them."""
    groups = [getattr(options, name) for name in get_type_hints(type(options))]
    values = {each.name: getattr(group, each.name) for group in groups for each in fields(group)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
