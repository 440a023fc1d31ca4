"""Flags made of option dataclasses: a field gives name, type and default, its line in the docstring the help."""

import argparse
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from timm_hnc.commands.options.parsing import KeyValues
from timm_hnc.options import flag_of

Arguments = Mapping[str, Mapping[str, Any]]
_METAVARS = {int: 'N', float: 'X', str: 'NAME', dict: 'K=V'}


def add_flags(
    parser: argparse.ArgumentParser,
    title: str,
    kind: type,
    arguments: Arguments = MappingProxyType({}),
) -> Any:
    """A group of flags, one for every field of a dataclass, in their order.

    Args:
        parser: that gets them.
        title: of the group in --help.
        kind: the dataclass, with Google's docstring.
        arguments: by field, what differs from what its type says: 'short' and 'also' are flags more, before and
            behind its own; all else is argparse's.
    """
    group = parser.add_argument_group(title)
    hints, helps = get_type_hints(kind), field_helps(kind)
    for each in fields(kind):
        given = dict(arguments.get(each.name, {}))
        flags = [given.pop('short', None), flag_of(each.name), given.pop('also', None)]
        made = _argument(hints[each.name], _default(each)) | {'help': helps[each.name]} | given
        group.add_argument(*filter(None, flags), **made)
    return group


def split_values(args: argparse.Namespace, kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a parser found: values of the options of `kind`, a dataclass of groups, and all others."""
    names = {each.name for group in get_type_hints(kind).values() for each in fields(group)}
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, value in vars(args).items():
        found[name not in names][name] = value
    return found


def field_helps(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of its fields, without the full stop."""
    entries = []
    for each in reversed(kind.__mro__):
        section = inspect.cleandoc(each.__doc__ or '').partition('Args:\n')[2].partition('\n\n')[0]
        entries += re.findall(r'^    (\w+): (.*(?:\n {8}.*)*)', section, re.MULTILINE)
    texts = {name: ' '.join(text.split()).replace('%', '%%') for name, text in entries}
    return {name: text if text.endswith('...') else text.removesuffix('.') for name, text in texts.items()}


def _default(field: 'Field[Any]') -> Any:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return list(default) if isinstance(default, tuple) else default


def _argument(hint: Any, default: Any) -> dict[str, Any]:
    """Argparse's arguments for a value of this type."""
    if get_origin(hint) in (Union, UnionType):
        hint, *others = (each for each in get_args(hint) if each is not NoneType)
        if others:
            return {'default': default}  # what reads them is among the caller's arguments
    if hint is bool:
        return {'action': 'store_true'}
    made: dict[str, Any] = {'default': default}
    if get_origin(hint) is dict:
        return made | {'nargs': '*', 'action': KeyValues, 'metavar': 'K=V'}
    if get_origin(hint) is Sequence:
        [hint] = get_args(hint)
        made['nargs'] = '+'
    if get_origin(hint) is Literal:
        return made | {'choices': get_args(hint)}
    return made | {'type': hint, 'metavar': _METAVARS[hint]}
