"""Docstrings as the site shows them: formulas as MathML, which browsers show without a script, and examples as code."""

import re
from textwrap import dedent

from griffe import Extension, Object
from latex2mathml.converter import convert

_INLINE = re.compile(r':math:`([^`]+)`')
_DISPLAYED = re.compile(r'^( *)\.\. math::\n((?:\1 +\S.*\n?|\s*\n)+)', re.MULTILINE)
_EXAMPLE = re.compile(r'^( *)Example:$', re.MULTILINE)


class Docstrings(Extension):
    """Rewrites every docstring."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        """Called for everything that has been read."""
        if obj.docstring:
            text = _DISPLAYED.sub(_displayed, obj.docstring.value)
            text = _EXAMPLE.sub(r'\1Examples:', text)  # griffe knows the plural
            obj.docstring.value = _INLINE.sub(lambda formula: convert(formula[1]), text)


def _displayed(block: re.Match) -> str:
    formulas = ' '.join(dedent(block[2]).split('\n')).split(r'\qquad')
    return ''.join(f'\n{block[1]}{convert(formula.strip(), display="block")}\n' for formula in formulas) + '\n'
