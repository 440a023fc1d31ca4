"""Options: frozen dataclasses, each beside what it drives. An option has one name: as field, as flag, and in YAML."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from math import inf, isfinite
from typing import Any, TypeVar, get_type_hints

from timm_hnc.errors import UsageError

Groups = TypeVar('Groups')


def flag_of(name: str) -> str:
    """The flag of an option: 'batch_size' -> '--batch-size'."""
    return '--' + name.replace('_', '-')


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
            raise UsageError(f'{flag_of(name)} {number}: expected {" and ".join(bounds) or "a finite number"}.')


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
        found[name] = group(**{each.name: left.pop(each.name) for each in fields(group) if each.name in left})
    if left:
        raise TypeError(f'no option of {kind.__name__}: {", ".join(left)}')
    return kind(**found)


def flattened(options: Any) -> dict[str, Any]:
    """All options of all groups by name, with lists in place of tuples, as YAML keeps them."""
    groups = [getattr(options, name) for name in get_type_hints(type(options))]
    values = {each.name: getattr(group, each.name) for group in groups for each in fields(group)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
